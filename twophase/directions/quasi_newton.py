"""Quasi-Newton directions d = −H g: BFGS matrices in a limited memory, plain and self-scaled."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twophase.directions.direction import (
    Direction,
    Pair,
    State,
    expected_step,
    scaled,
    steepest_descent,
)
from twophase.errors import check_integer
from twophase.objective import Point, dot, norm
from twophase.settings import Settings

# A pair of step and gradient difference is kept where their angle's cosine is above this; below it
# the curvature along the step is lost in rounding errors, or negative.
SMALLEST_COSINE = 1e-10
# What pairs may take where no history is given, and the fewest and the most that are kept then.
HISTORY_BYTES = 2**28
HISTORY_BOUNDS = (10, 300)


@dataclass(frozen=True)
class _LimitedMemory(Settings):
    """The steps of a quasi-Newton rule that are kept.

    Args:
        history_size: pairs (s, y) of step and gradient difference, at least 1, each two vectors of
            length P; None: as many as fit into 256 MiB, 10 to 300 (see `capacity`).
    """

    history_size: int | None = None

    def __post_init__(self) -> None:
        if self.history_size is not None:
            check_integer("history_size", self.history_size, 1)


@dataclass(frozen=True)
class LBFGSDirection(_LimitedMemory):
    """d = −H g with the BFGS matrix H of the last `history_size` steps, built on γ M⁻¹.

    The two-loop recursion of Nocedal and Wright (algorithm 7.4) with γ = s'y / y'M⁻¹y from the
    last step s and difference y of gradients (their equation 7.20). A pair without positive
    curvature s'y is left out. The first trial step is 1.
    """

    def __call__(self, point: Point, last: State, inverse: Tensor | None) -> Direction:
        pairs = last.pairs
        newest = _newest_pair(point, last, inverse)
        if newest is not None:
            pairs = (*pairs, (*newest, 1.0))[-capacity(self.history_size, point.gradient) :]
        if not pairs:
            return steepest_descent(point.gradient, inverse)
        return _quasi_newton(point, last, pairs, _scaling(pairs[-1], inverse), inverse)


@dataclass(frozen=True)
class SelfScaledBFGSDirection(_LimitedMemory):
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
    """

    def __call__(self, point: Point, last: State, inverse: Tensor | None) -> Direction:
        pairs = last.pairs
        newest = _newest_pair(point, last, inverse)
        if newest is not None:
            growth = _growth(*newest, last) if pairs else 1.0
            pairs = (*pairs, (*newest, growth))[-capacity(self.history_size, point.gradient) :]
            # before the oldest pair there is no matrix that could have grown
            pairs = ((*pairs[0][:2], 1.0), *pairs[1:])
        if not pairs:
            return steepest_descent(point.gradient, inverse)
        found = _quasi_newton(point, last, pairs, _scaling(pairs[0], inverse), inverse)
        if not found.pairs:
            return found
        return found._replace(first_step=min(1.0, expected_step(point, last, found.slope)))


def capacity(history_size: int | None, vector: Tensor) -> int:
    """Pairs that a quasi-Newton rule keeps: `history_size`, or as many as fit into 256 MiB.

    Without a size at least 10 (Nocedal and Wright, section 7.2, find 3 to 20 useful) and at most
    300, whose products already take longer than a gradient does on small networks. `vector` is one
    like those that are kept.

    >>> [capacity(None, torch.empty(p)) for p in (2_000, 154_058, 10_000_000)]
    [300, 217, 10]
    """
    if history_size is not None:
        return history_size
    fitting = HISTORY_BYTES // (2 * vector.numel() * vector.element_size())
    return min(max(fitting, HISTORY_BOUNDS[0]), HISTORY_BOUNDS[1])


def _newest_pair(point: Point, last: State, inverse: Tensor | None) -> tuple[Tensor, Tensor] | None:
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


def _growth(step: Tensor, difference: Tensor, last: State) -> float:
    """1 / τ = max(1, s'H⁻¹s / s'y) for the H that made the step."""
    return max(1.0, -last.step * dot(step, last.gradient) / dot(step, difference))


def _quasi_newton(
    point: Point,
    last: State,
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
