"""Nonlinear conjugate gradient: d = −g + β · d_previous, with β from one of the field's rules."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from twophase.directions.direction import Direction, State, scaled, steepest_descent
from twophase.errors import check_choice, check_integer, check_number
from twophase.objective import Point, dot
from twophase.settings import Settings

# Hager and Zhang (2013), section 2: the lower bound on their β, in the size of the last direction.
HAGER_ZHANG_BOUND = 0.4


@dataclass(frozen=True)
class Change:
    """What a β rule sees: the gradient, the last one and the last direction, as inner products.

    Args:
        gradient, previous, direction: g, the gradient p before it, and the direction d [P] of the
            step between them.
        inverse: the diagonal [P] of M⁻¹; None: 1. Gradients are multiplied in M⁻¹, which makes
            every rule that of the variables in which M is 1.
    """

    gradient: Tensor
    previous: Tensor
    direction: Tensor
    inverse: Tensor | None = None

    @cached_property
    def gg(self) -> float:
        """g' M⁻¹ g."""
        return dot(self.gradient, scaled(self.gradient, self.inverse))

    @cached_property
    def pp(self) -> float:
        """p' M⁻¹ p."""
        return dot(self.previous, scaled(self.previous, self.inverse))

    @cached_property
    def gp(self) -> float:
        """g' M⁻¹ p."""
        return dot(self.gradient, scaled(self.previous, self.inverse))

    @cached_property
    def gy(self) -> float:
        """g' M⁻¹ (g − p)."""
        return dot(self.gradient, scaled(self._difference, self.inverse))

    @cached_property
    def yy(self) -> float:
        """(g − p)' M⁻¹ (g − p)."""
        return dot(self._difference, scaled(self._difference, self.inverse))

    @cached_property
    def dg(self) -> float:
        """d' g."""
        return dot(self.direction, self.gradient)

    @cached_property
    def dp(self) -> float:
        """d' p."""
        return dot(self.direction, self.previous)

    @cached_property
    def dy(self) -> float:
        """d' (g − p)."""
        return dot(self.direction, self._difference)

    @cached_property
    def dd(self) -> float:
        """d' M d."""
        direction = self.direction if self.inverse is None else self.direction / self.inverse
        return dot(self.direction, direction)

    @cached_property
    def _difference(self) -> Tensor:
        return self.gradient - self.previous


BetaRule = Callable[[Change], float]


def fletcher_reeves(change: Change) -> float:
    """β = g'g / p'p with the gradient g and the previous gradient p ≠ 0.

    Fletcher and Reeves (1964); Press et al., Numerical Recipes in C, section 10.6.
    """
    return change.gg / change.pp


def polak_ribiere(change: Change) -> float:
    """β = g'(g − p) / p'p with the gradient g and the previous gradient p ≠ 0.

    Polak and Ribière (1969); Press et al., Numerical Recipes in C, section 10.6.
    """
    return change.gy / change.pp


def polak_ribiere_plus(change: Change) -> float:
    """β = max(0, Polak–Ribière): a restart wherever Polak–Ribière's β is negative.

    Converges where Polak–Ribière can cycle (Nocedal and Wright, Numerical Optimization, 2nd ed.,
    section 5.2).
    """
    return max(0.0, polak_ribiere(change))


def hestenes_stiefel(change: Change) -> float:
    """β = g'y / d'y with y = g − p, and d the previous direction.

    The next direction is conjugate to d in the mean Hessian between the two points, however
    inexact the line search (Hestenes and Stiefel, 1952; Nocedal and Wright, equation 5.46).
    """
    return _quotient(change.gy, change.dy)


def dai_yuan(change: Change) -> float:
    """β = g'g / d'y with y = g − p: directions descend with any search that has d'y > 0.

    Dai and Yuan (1999); Nocedal and Wright, equation 5.49.
    """
    return _quotient(change.gg, change.dy)


def hestenes_stiefel_dai_yuan(change: Change) -> float:
    """β = max(0, min(Hestenes–Stiefel, Dai–Yuan)): the first's speed with the second's descent.

    Dai and Yuan, An efficient hybrid conjugate gradient method (2001).
    """
    return max(0.0, min(hestenes_stiefel(change), dai_yuan(change)))


def hager_zhang(change: Change) -> float:
    """β = max((g'y − 2 (y'y / d'y) d'g) / d'y, 0.4 d'p / d'd) with y = g − p.

    Directions descend by at least 7/8 of g'g with any line search (Hager and Zhang, A new
    conjugate gradient method with guaranteed descent, 2005); the lower bound, from their limited
    memory conjugate gradient method (2013), has no scale.
    """
    beta = _quotient(change.gy - 2 * change.yy * _quotient(change.dg, change.dy), change.dy)
    return max(beta, HAGER_ZHANG_BOUND * change.dp / change.dd)


def _quotient(numerator: float, curvature: float) -> float:
    """NaN, which restarts, where the curvature d'y is not positive."""
    return numerator / curvature if curvature > 0 else math.nan


BETA_RULES: dict[str, BetaRule] = {
    "FR": fletcher_reeves,
    "PR": polak_ribiere,
    "PR+": polak_ribiere_plus,
    "HS": hestenes_stiefel,
    "DY": dai_yuan,
    "HS-DY": hestenes_stiefel_dai_yuan,
    "HZ": hager_zhang,
}


@dataclass(frozen=True)
class ConjugateDirection(Settings):
    """d = −M⁻¹ g + β · d_previous, and the steepest descent −M⁻¹ g where β or d are of no use.

    That is where β is not finite, where d does not descend, every `restart_every` iterations, and
    where successive gradients are far from orthogonal: |g'p| >= powell · g'g (Powell, 1977; Nocedal
    and Wright, section 5.2 and equation 5.52).

    Args:
        beta: a name in `BETA_RULES`. Default "PR+" (Polak–Ribière, never below 0): it has a
            convergence theory for inexact searches, while "FR" without restarts can jam. The
            paper names Fletcher–Reeves and Polak–Ribière, and not its choice.
        restart_every: iterations, at least 1; None: never for their number.
        powell: above 0 (Powell took 0.2); None: never for this reason.

    Raises:
        InputError: a value is out of range.
    """

    beta: str = "PR+"
    restart_every: int | None = None
    powell: float | None = None

    def __post_init__(self) -> None:
        check_choice("beta", self.beta, BETA_RULES)
        if self.restart_every is not None:
            check_integer("restart_every", self.restart_every, 1)
        if self.powell is not None:
            check_number("powell", self.powell, above=0)

    def __call__(self, point: Point, last: State, inverse: Tensor | None) -> Direction:
        if self.restart_every is not None and last.age + 1 >= self.restart_every:
            return steepest_descent(point.gradient, inverse)
        change = Change(point.gradient, last.gradient, last.direction, inverse)
        beta = BETA_RULES[self.beta](change)
        restart = self.powell is not None and abs(change.gp) >= self.powell * change.gg
        if restart or not abs(beta) <= torch.finfo(point.gradient.dtype).max:
            return steepest_descent(point.gradient, inverse)
        vector = torch.add(-scaled(point.gradient, inverse), last.direction, alpha=beta)
        slope = dot(vector, point.gradient)
        if not -math.inf < slope < 0:
            return steepest_descent(point.gradient, inverse)
        return Direction(vector, slope, 0 if beta == 0 else last.age + 1)
