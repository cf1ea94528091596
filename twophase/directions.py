"""Where the second phase goes: descent directions from gradients, of CG and of quasi-Newton.

A rule sees the current point, what the last iteration left, and the diagonal of a preconditioner;
it returns a descent direction, the steepest one where it knows no better.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from twophase.objective import Point, dot, norm

# Hager and Zhang (2013), section 2: the lower bound on their β, in the size of the last direction.
HAGER_ZHANG_BOUND = 0.4
# A pair of step and gradient difference is kept where their angle's cosine is above this; below it
# the curvature along the step is lost in rounding errors, or negative.
SMALLEST_COSINE = 1e-10
# The last line's step is corrected by this factor at most, either way.
CORRECTION = 10.0
# What pairs may take where no history is given, and the fewest and the most that are kept then.
HISTORY_BYTES = 2**28
HISTORY_BOUNDS = (10, 300)

# A step, the difference of the gradients at its ends, [P] each, and the factor by which H grows
# before they correct it. Plain tuples: torch's optimizers rebuild state by type.
Pair = tuple[Tensor, Tensor, float]


class Memory(NamedTuple):
    """What one iteration leaves to the next: where it ended, its gradient, direction and step.

    `x` [P] is the new vector; `gradient` [P], `direction` [P] and their inner product `slope`
    belong to the vector before it. `pairs`, oldest first, are those of quasi-Newton rules. The loss
    `mark` and the gradient norm `mark_norm` are those at the last clear progress, `stalled`
    iterations ago.

    >>> Memory(torch.zeros(1), torch.ones(1), -torch.ones(1), 1.0, -1.0).age
    0
    """

    x: Tensor
    gradient: Tensor
    direction: Tensor
    step: float
    slope: float
    age: int = 0  # iterations since the last steepest descent
    scale: float = 0.0  # the largest absolute loss at an iterate
    pairs: tuple[Pair, ...] = ()
    mark: float = math.inf
    mark_norm: float = math.inf
    stalled: int = 0


class Direction(NamedTuple):
    """A descent direction [P], the loss's slope along it, and its age since steepest descent.

    `first_step` is where a line search should try first; None: it is to follow from the last step.

    >>> steepest_descent(torch.tensor([3.0, 4.0]), None).slope
    -25.0
    """

    vector: Tensor
    slope: float
    age: int = 0
    pairs: tuple[Pair, ...] = ()
    first_step: float | None = None


class DirectionRule(Protocol):
    """What an iteration asks of a rule: a direction with a slope below 0.

    `inverse` is the diagonal [P] of M⁻¹, of a preconditioner M like the Hessian; None: M is 1.

    >>> rule: DirectionRule = lambda point, last, inverse: steepest_descent(point.gradient, inverse)
    """

    def __call__(self, point: Point, last: Memory, inverse: Tensor | None) -> Direction: ...


def steepest_descent(gradient: Tensor, inverse: Tensor | None) -> Direction:
    """d = −M⁻¹ g for a gradient g [P] and the diagonal [P] of M⁻¹ (None: 1).

    >>> steepest_descent(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.5])).vector
    tensor([-3., -2.])
    """
    vector = -scaled(gradient, inverse)
    return Direction(vector, dot(vector, gradient))


def scaled(vector: Tensor, inverse: Tensor | None) -> Tensor:
    """M⁻¹ v for a vector [P] and the diagonal [P] of M⁻¹ (None: 1).

    >>> scaled(torch.tensor([3.0, 4.0]), None)
    tensor([3., 4.])
    """
    return vector if inverse is None else inverse * vector


@dataclass(frozen=True)
class Change:
    """What a β rule sees: the gradient, the last one and the last direction, as inner products.

    Args:
        gradient, previous, direction: g, the gradient p before it, and the direction d [P] of the
            step between them.
        inverse: the diagonal [P] of M⁻¹; None: 1. Gradients are multiplied in M⁻¹, which makes
            every rule that of the variables in which M is 1.

    >>> change = Change(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0]))
    >>> change.gg, change.pp, change.gy, change.dy
    (2.0, 4.0, 0.0, 2.0)
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

    >>> fletcher_reeves(Change(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]), torch.ones(2)))
    0.5
    """
    return change.gg / change.pp


def polak_ribiere(change: Change) -> float:
    """β = g'(g − p) / p'p with the gradient g and the previous gradient p ≠ 0.

    Polak and Ribière (1969); Press et al., Numerical Recipes in C, section 10.6.

    >>> polak_ribiere(Change(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]), torch.ones(2)))
    0.0
    """
    return change.gy / change.pp


def polak_ribiere_plus(change: Change) -> float:
    """β = max(0, Polak–Ribière): a restart wherever Polak–Ribière's β is negative.

    Converges where Polak–Ribière can cycle (Nocedal and Wright, Numerical Optimization, 2nd ed.,
    section 5.2).

    >>> change = Change(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), torch.ones(2))
    >>> polak_ribiere_plus(change)
    0.0
    """
    return max(0.0, polak_ribiere(change))


def hestenes_stiefel(change: Change) -> float:
    """β = g'y / d'y with y = g − p, and d the previous direction.

    The next direction is conjugate to d in the mean Hessian between the two points, however
    inexact the line search (Hestenes and Stiefel, 1952; Nocedal and Wright, equation 5.46).

    >>> x, d = torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 0.0])
    >>> hestenes_stiefel(Change(x, torch.tensor([2.0, 0.0]), d))
    0.0
    """
    return _quotient(change.gy, change.dy)


def dai_yuan(change: Change) -> float:
    """β = g'g / d'y with y = g − p: directions descend with any search that has d'y > 0.

    Dai and Yuan (1999); Nocedal and Wright, equation 5.49.

    >>> x, d = torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 0.0])
    >>> dai_yuan(Change(x, torch.tensor([2.0, 0.0]), d))
    1.0
    """
    return _quotient(change.gg, change.dy)


def hestenes_stiefel_dai_yuan(change: Change) -> float:
    """β = max(0, min(Hestenes–Stiefel, Dai–Yuan)): the first's speed with the second's descent.

    Dai and Yuan, An efficient hybrid conjugate gradient method (2001).

    >>> x, d = torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 0.0])
    >>> hestenes_stiefel_dai_yuan(Change(x, torch.tensor([2.0, 0.0]), d))
    0.0
    """
    return max(0.0, min(hestenes_stiefel(change), dai_yuan(change)))


def hager_zhang(change: Change) -> float:
    """β = max((g'y − 2 (y'y / d'y) d'g) / d'y, 0.4 d'p / d'd) with y = g − p.

    Directions descend by at least 7/8 of g'g with any line search (Hager and Zhang, A new
    conjugate gradient method with guaranteed descent, 2005); the lower bound, from their limited
    memory conjugate gradient method (2013), has no scale.

    >>> x, d = torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 0.0])
    >>> hager_zhang(Change(x, torch.tensor([2.0, 0.0]), d))
    2.0
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
class ConjugateDirection:
    """d = −M⁻¹ g + β · d_previous, with β from a rule in `BETA_RULES`.

    It is the steepest descent where β is not finite or d does not descend, and where successive
    gradients are far from orthogonal: |g'p| >= powell · g'g (Powell, 1977; Nocedal and Wright,
    equation 5.52).

    >>> from twophase.objective import FunctionObjective, evaluate
    >>> bowl = FunctionObjective(lambda x: (x**2).sum())
    >>> point, before = (evaluate(bowl, torch.tensor(x)) for x in ([1.0, 1.0], [2.0, 0.0]))
    >>> last = Memory(point.x, before.gradient, -before.gradient, 1.0, -16.0)
    >>> ConjugateDirection("FR")(point, last, None).vector
    tensor([-4., -2.])
    """

    beta: str
    powell: float | None = None

    def __call__(self, point: Point, last: Memory, inverse: Tensor | None) -> Direction:
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


@dataclass(frozen=True)
class LimitedMemoryBFGS:
    """d = −H g with the BFGS matrix H of the last `history` steps, built on γ M⁻¹.

    The two-loop recursion of Nocedal and Wright (algorithm 7.4) with γ = s'y / y'M⁻¹y from the
    last step s and difference y of gradients (their equation 7.20). A pair without positive
    curvature s'y is left out. The first trial step is 1.

    Args:
        history: pairs (s, y) that are kept, each two vectors of length P; None: see `capacity`.

    >>> from twophase.objective import FunctionObjective, evaluate
    >>> bowl = FunctionObjective(lambda x: 4 * (x**2).sum())
    >>> point, before = (evaluate(bowl, torch.tensor([x])) for x in (1.0, 2.0))
    >>> last = Memory(point.x, before.gradient, -before.gradient, 1 / 16, -256.0)
    >>> LimitedMemoryBFGS(history=5)(point, last, None).vector  # Newton's step
    tensor([-1.])
    """

    history: int | None = None

    def __call__(self, point: Point, last: Memory, inverse: Tensor | None) -> Direction:
        pairs = last.pairs
        newest = _newest_pair(point, last, inverse)
        if newest is not None:
            pairs = (*pairs, (*newest, 1.0))[-capacity(self.history, point.gradient) :]
        if not pairs:
            return steepest_descent(point.gradient, inverse)
        return _quasi_newton(point, last, pairs, _scaling(pairs[-1], inverse), inverse)


@dataclass(frozen=True)
class SelfScaledBFGS:
    """d = −H g with the self-scaled BFGS matrix H, in a limited memory.

    Each update first multiplies H by 1/τ >= 1,

        H ← (1 − ρ s y') H (1 − ρ y s') / τ + ρ s s',  ρ = 1 / s'y,  τ = min(1, s'y / s'H⁻¹s),

    which makes H as large as the curvature s'y along the step s asks for, where BFGS corrects it
    along s alone (Al-Baali, Numerical experience with a class of self-scaling quasi-Newton
    algorithms, 1998; for physics-informed networks Urbán, Stefanou and Pons, 2025). H begins as
    γ M⁻¹ with γ = s'y / y'M⁻¹y of the oldest step that is kept. Since s = −t H g, the size
    s'H⁻¹s = −t g's is known, and the two-loop recursion needs one more number for each pair. H is
    large where nothing is known yet, so that a step of 1 is mostly too long at first: the first
    trial is what follows from the last line, up to 1 (Nocedal and Wright, section 3.5, initial step
    length).

    Args:
        history: pairs (s, y) that are kept, each two vectors of length P; None: see `capacity`.

    >>> from twophase.objective import FunctionObjective, evaluate
    >>> bowl = FunctionObjective(lambda x: 4 * (x**2).sum())
    >>> point, before = (evaluate(bowl, torch.tensor([x])) for x in (1.0, 2.0))
    >>> last = Memory(point.x, before.gradient, -before.gradient, 1 / 16, -256.0)
    >>> SelfScaledBFGS(history=5)(point, last, None).vector  # Newton's step
    tensor([-1.])
    """

    history: int | None = None

    def __call__(self, point: Point, last: Memory, inverse: Tensor | None) -> Direction:
        pairs = last.pairs
        newest = _newest_pair(point, last, inverse)
        if newest is not None:
            growth = _growth(*newest, last) if pairs else 1.0
            pairs = (*pairs, (*newest, growth))[-capacity(self.history, point.gradient) :]
            # before the oldest pair there is no matrix that could have grown
            pairs = ((*pairs[0][:2], 1.0), *pairs[1:])
        if not pairs:
            return steepest_descent(point.gradient, inverse)
        found = _quasi_newton(point, last, pairs, _scaling(pairs[0], inverse), inverse)
        if not found.pairs:
            return found
        return found._replace(first_step=min(1.0, expected_step(point, last, found.slope)))


def expected_step(point: Point, last: Memory, slope: float) -> float:
    """The step of the previous first-order change of the loss, at the minimum of the last line.

    t = t* · last slope / slope (Nocedal and Wright, section 3.5, initial step length), where the
    slopes at both ends of the last step place the minimum t* of that line.

    >>> last = Memory(torch.zeros(1), torch.ones(1), -torch.ones(1), step=1.0, slope=-1.0)
    >>> point = Point(torch.zeros(1), 1.0, torch.tensor([0.5]), 1e-7)  # half way down a parabola
    >>> expected_step(point, last, slope=-0.5)
    4.0
    """
    end = dot(point.gradient, last.direction)
    factor = last.slope / (last.slope - end) if end > last.slope else 1.0
    return last.step * min(max(factor, 1 / CORRECTION), CORRECTION) * last.slope / slope


def capacity(history: int | None, vector: Tensor) -> int:
    """Pairs that a quasi-Newton rule keeps: `history`, or as many as fit into 256 MiB.

    Args:
        history: None: those that fit, at least 10 (Nocedal and Wright, section 7.2, find 3 to 20
            useful) and at most 300, whose products already take longer than a gradient does on the
            small networks of `twophase.problems.physics`.
        vector: one like those that are kept.

    >>> [capacity(None, torch.empty(p)) for p in (2_000, 154_058, 10_000_000)]
    [300, 217, 10]
    """
    if history is not None:
        return history
    fitting = HISTORY_BYTES // (2 * vector.numel() * vector.element_size())
    return min(max(fitting, HISTORY_BOUNDS[0]), HISTORY_BOUNDS[1])


def _newest_pair(
    point: Point, last: Memory, inverse: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The last step s and difference y of gradients; None without positive curvature s'y."""
    step = last.step * last.direction
    difference = point.gradient - last.gradient
    curved = dot(step, difference) > SMALLEST_COSINE * norm(step) * norm(difference)
    # its square can be lost where the curvature is not
    seen = dot(difference, scaled(difference, inverse)) > 0
    return (step, difference) if curved and seen else None


def _scaling(pair: Pair, inverse: Tensor | None) -> float:
    """γ = s'y / y'M⁻¹y."""
    step, difference, _ = pair
    return dot(step, difference) / dot(difference, scaled(difference, inverse))


def _growth(step: Tensor, difference: Tensor, last: Memory) -> float:
    """1 / τ = max(1, s'H⁻¹s / s'y) for the H that made the step."""
    return max(1.0, -last.step * dot(step, last.gradient) / dot(step, difference))


def _quasi_newton(
    point: Point,
    last: Memory,
    pairs: tuple[Pair, ...],
    scaling: float,
    inverse: Tensor | None,
) -> Direction:
    """−H g with a first step of 1, or the steepest descent where that does not descend."""
    product = _two_loops(point.gradient.double(), pairs, scaling, inverse)
    vector = -product.to(point.gradient.dtype)
    slope = dot(vector, point.gradient)
    if not -math.inf < slope < 0:
        return steepest_descent(point.gradient, inverse)
    return Direction(vector, slope, last.age + 1, pairs, first_step=1.0)


def _two_loops(
    vector: Tensor, pairs: tuple[Pair, ...], scaling: float, inverse: Tensor | None
) -> Tensor:
    """H v in float64, with H = scaling · M⁻¹ before the pairs; nothing waits for the device."""
    weights, curvatures = [], []
    for step, difference, _ in reversed(pairs):
        step, difference = step.double(), difference.double()
        curvatures.append(torch.dot(step, difference))
        weights.append(torch.dot(step, vector) / curvatures[-1])
        vector = torch.addcmul(vector, difference, weights[-1], value=-1)
    vector = scaling * scaled(vector, inverse)
    for step, difference, growth in pairs:
        if growth != 1:
            vector = growth * vector
        weight = weights.pop() - torch.dot(difference.double(), vector) / curvatures.pop()
        vector = torch.addcmul(vector, step.double(), weight)
    return vector
