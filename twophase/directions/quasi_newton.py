"""Quasi-Newton directions d = −H g: BFGS matrices in a limited memory, plain and self-scaled."""

import math
from dataclasses import dataclass
from typing import ClassVar

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


def capacity(history_size: int | None, vector: Tensor) -> int:
    """Pairs of vectors like `vector` that are kept: `history_size`, or as many as fit into 256 MiB.

    Without a size at least 10 (Nocedal and Wright, section 7.2, find 3 to 20 useful) and at most
    300, whose products already take longer than a gradient does on small networks.
    """
    if history_size is not None:
        return history_size
    fitting = HISTORY_BYTES // (2 * vector.numel() * vector.element_size())
    return min(max(fitting, HISTORY_BOUNDS[0]), HISTORY_BOUNDS[1])


@dataclass(frozen=True)
class LBFGSDirection(Settings):
    """d = −H g with the BFGS matrix H of the last `history_size` steps, built on γ M⁻¹.

    The two-loop recursion of Nocedal and Wright (algorithm 7.4) with γ = s'y / y'M⁻¹y from the
    last step s and difference y of gradients (their equation 7.20). Pairs (s, y) without positive
    curvature s'y are left out. The first trial step is 1. A `history_size` of None: see `capacity`.
    """

    history_size: int | None = None
    _scaled_by: ClassVar[int] = -1  # the pair of γ: the newest

    def __post_init__(self) -> None:
        if self.history_size is not None:
            check_integer("history_size", self.history_size, 1)

    def __call__(self, point: Point, last: State, inverse: Tensor | None) -> Direction:
        pairs = self._pairs(point, last, inverse)
        if not pairs:
            return steepest_descent(point.gradient, inverse)
        step, difference, _ = pairs[self._scaled_by]
        scaling = dot(step, difference) / dot(difference, scaled(difference, inverse))
        product = _two_loops(point.gradient.double(), pairs, scaling, inverse)
        vector = -product.to(point.gradient.dtype)
        slope = dot(vector, point.gradient)
        if not -math.inf < slope < 0:
            return steepest_descent(point.gradient, inverse)
        first_step = self._first_step(point, last, slope)
        return Direction(vector, slope, last.age + 1, pairs, first_step)

    def _pairs(self, point: Point, last: State, inverse: Tensor | None) -> tuple[Pair, ...]:
        """The pairs so far, and that of the last step if its curvature s'y is positive."""
        step = last.step * last.direction
        difference = point.gradient - last.gradient
        curved = dot(step, difference) > SMALLEST_COSINE * norm(step) * norm(difference)
        # its square can be lost where the curvature is not
        seen = dot(difference, scaled(difference, inverse)) > 0
        if not (curved and seen):
            return last.pairs
        kept = capacity(self.history_size, point.gradient)
        newest = (step, difference, self._growth(step, difference, last))
        oldest, *newer = (*last.pairs, newest)[-kept:]
        # before the oldest pair there is no matrix that could have grown
        return ((*oldest[:2], 1.0), *newer)

    def _growth(self, step: Tensor, difference: Tensor, last: State) -> float:
        return 1.0

    def _first_step(self, point: Point, last: State, slope: float) -> float:
        return 1.0


@dataclass(frozen=True)
class SelfScaledBFGSDirection(LBFGSDirection):
    """d = −H g with the self-scaled BFGS matrix H, in a limited memory as `LBFGSDirection`'s.

    Each update first multiplies H by 1/τ >= 1,

        H ← (1 − ρ s y') H (1 − ρ y s') / τ + ρ s s',  ρ = 1 / s'y,  τ = min(1, s'y / s'H⁻¹s),

    which makes H as large as the curvature s'y along the step s asks for, where BFGS corrects it
    along s alone (Al-Baali, Numerical experience with a class of self-scaling quasi-Newton
    algorithms, 1998; for physics-informed networks Urbán, Stefanou and Pons, 2025). H begins as
    γ M⁻¹ with γ = s'y / y'M⁻¹y of the oldest step that is kept. Since s = −t H g, the size
    s'H⁻¹s = −t g's is known, and the two-loop recursion needs one more number for each pair. H is
    large where nothing is known yet, so that a step of 1 is mostly too long at first: the first
    trial is the `expected_step`, up to 1.
    """

    _scaled_by = 0  # the oldest

    def _growth(self, step: Tensor, difference: Tensor, last: State) -> float:
        """1 / τ = max(1, s'H⁻¹s / s'y) for the H that made the step."""
        return max(1.0, -last.step * dot(step, last.gradient) / dot(step, difference))

    def _first_step(self, point: Point, last: State, slope: float) -> float:
        return min(1.0, expected_step(point, last, slope))


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
