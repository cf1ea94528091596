"""Nonlinear conjugate gradient: d = −g + β · d_previous, with β from one of the field's rules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from twophase.directions.direction import (
    Direction,
    State,
    expected_step,
    scaled,
    steepest_descent,
)
from twophase.errors import check_choice, check_integer, check_number
from twophase.objective import Point, fetch, inner
from twophase.settings import Settings


def products(
    names: Iterable[str], point: Point, last: State, inverse: Tensor | None
) -> dict[str, float]:
    """Inner products, named by the letters of their two vectors [P].

    g is the gradient, p ≠ 0 the one before it, y = g − p, and d the direction of the step between
    them. With the diagonal [P] of M⁻¹ as `inverse` (None: 1), g, p and y are multiplied in M⁻¹ and
    d with itself in M, which makes every rule that of the variables in which M is 1.
    """
    vectors = {"g": point.gradient, "p": last.gradient, "d": last.direction}
    names = list(names)
    if any("y" in name for name in names):
        vectors["y"] = point.gradient - last.gradient
    found = []
    for name in names:
        a, b = name[0], name[1]
        other = vectors[b]
        if a + b == "dd":
            other = other if inverse is None else other / inverse
        elif "d" not in a + b:
            other = scaled(other, inverse)
        found.append(inner(vectors[a], other))
    return dict(zip(names, fetch(*found), strict=True))


def hager_zhang(gy: float, yy: float, dy: float, dg: float, dp: float, dd: float) -> float:
    """β = max((g'y − 2 (y'y / d'y) d'g) / d'y, 0.4 d'p / d'd).

    Directions descend by at least 7/8 of g'g with any line search (Hager and Zhang, A new
    conjugate gradient method with guaranteed descent, 2005); the lower bound, from section 2 of
    their limited memory conjugate gradient method (2013), has no scale.
    """
    beta = _quotient(gy - 2 * yy * _quotient(dg, dy), dy)
    return max(beta, 0.4 * dp / dd)


def _quotient(numerator: float, curvature: float) -> float:
    """NaN, which restarts, where the curvature d'y is not positive."""
    return numerator / curvature if curvature > 0 else math.nan


# β by inner products that the names of its arguments say; see `products`.
BETA_RULES: dict[str, Callable[..., float]] = {
    # Fletcher and Reeves (1964); Press et al., Numerical Recipes in C, section 10.6
    "FR": lambda gg, pp: gg / pp,
    # Polak and Ribière (1969); Press et al., section 10.6
    "PR": lambda gy, pp: gy / pp,
    # A restart wherever PR is negative: converges where PR can cycle (Nocedal and Wright, Numerical
    # Optimization, 2nd ed., section 5.2)
    "PR+": lambda gy, pp: max(0.0, gy / pp),
    # The next direction is conjugate to d in the mean Hessian between the two points, however
    # inexact the line search: Hestenes and Stiefel (1952); Nocedal and Wright, equation 5.46
    "HS": lambda gy, dy: _quotient(gy, dy),
    # Descends with any search that has d'y > 0: Dai and Yuan (1999); Nocedal and Wright, 5.49
    "DY": lambda gg, dy: _quotient(gg, dy),
    # HS's speed with DY's descent: Dai and Yuan, An efficient hybrid conjugate gradient method for
    # unconstrained optimization (2001)
    "HS-DY": lambda gy, gg, dy: max(0.0, min(_quotient(gy, dy), _quotient(gg, dy))),
    "HZ": hager_zhang,
}


@dataclass(frozen=True)
class ConjugateDirection(Settings):
    """d = −M⁻¹ g + β · d_previous, and the steepest descent −M⁻¹ g where β or d are of no use.

    That is where β is not finite, where d does not descend, every `restart_every` iterations, and
    where successive gradients are far from orthogonal: |g'p| >= powell · g'g (Powell, 1977, took
    0.2; Nocedal and Wright, section 5.2 and equation 5.52). None: never for that reason.

    `beta` is a name in `BETA_RULES`. Default "PR+" (Polak–Ribière, never below 0): it has a
    convergence theory for inexact searches, while "FR" without restarts can jam. The paper names
    Fletcher–Reeves and Polak–Ribière, and not its choice. `InputError` for a value out of range.
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
        rule = BETA_RULES[self.beta]
        names = dict.fromkeys(signature(rule).parameters)
        also = {} if self.powell is None else dict.fromkeys(("gg", "gp"))
        found = products(names | also, point, last, inverse)
        beta = rule(**{name: found[name] for name in names})
        restart = self.powell is not None and abs(found["gp"]) >= self.powell * found["gg"]
        if restart or not abs(beta) <= torch.finfo(point.gradient.dtype).max:
            return steepest_descent(point.gradient, inverse)
        vector = (beta * last.direction).sub_(scaled(point.gradient, inverse))
        slope, end = fetch(*(inner(point.gradient, along) for along in (vector, last.direction)))
        if not -math.inf < slope < 0:
            return steepest_descent(point.gradient, inverse)
        age = 0 if beta == 0 else last.age + 1
        return Direction(vector, slope, age, first_step=expected_step(last, slope, end))
