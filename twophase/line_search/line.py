"""A loss along a line: trial steps, what they cost, and how a search along it ends.

All searches are called alike, `search(line, first_step) -> SearchResult`.
"""

import math
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from twophase.objective import Objective, Point, dot, observe

# Times the resolution: differences beyond this are no rounding error.
CLEAR = 10.0
# One contraction by a parabola keeps the new trial within these parts of the old one.
CONTRACTION = (0.01, 0.5)


class SearchStatus(StrEnum):
    """How a line search ended. `MINIMUM` comes with a step, `LIMIT` if a lower loss was found."""

    MINIMUM = "minimum"
    LIMIT = "evaluation limit"
    RESOLUTION = "resolution"
    NO_DESCENT = "no descent"
    NOT_FINITE = "not finite"


class SearchResult(NamedTuple):
    """Step along the direction (0: none), the loss there, trials spent, and the status.

    A search that has evaluated the gradient at its step hands on the `point` there, so that nobody
    computes it again; one that only compares losses has none.
    """

    step: float
    value: float
    evaluations: int
    status: SearchStatus
    point: Point | None = None

    @property
    def descended(self) -> bool:
        """Whether a step was found; it does not raise the loss beyond its resolution."""
        return self.step > 0


class Trial(NamedTuple):
    """A step that was tried and the loss there (inf: not finite).

    A trial with the gradient has the loss's slope along the line, too, and the whole point, unless
    one of them is not finite: then loss and slope are inf, as on a wall that rises.
    """

    step: float
    value: float
    slope: float = math.nan
    point: Point | None = None


class Line:
    """An objective along x + step · direction, with its value and slope at step 0.

    Args:
        objective: the loss L.
        x, direction: shape [P]; a step multiplies the direction.
        value: L(x).
        slope: the gradient at x times the direction, below 0.
        scale: the largest absolute loss so far; tells rounding errors from a wrong gradient.
        relative_resolution: of the loss at x; None: the objective's present one.
    """

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        direction: Tensor,
        value: float,
        slope: float,
        scale: float = 0.0,
        relative_resolution: float | None = None,
    ):
        self.objective, self.x, self.direction = objective, x, direction
        self.start = Trial(0.0, value, slope)
        self.slope = slope
        self.scale = max(scale, abs(value))
        # a gradient trial measures the objective's anew; one search goes by one
        self.relative_resolution = relative_resolution or objective.resolution
        self.evaluations = 0

    @property
    def resolution(self) -> float:
        """Absolute change of the loss that cannot be told from none at the start of the line."""
        return self.relative_resolution * abs(self.start.value)

    @cached_property
    def smallest_step(self) -> float:
        """Step at which the change of every parameter is lost in its own rounding error."""
        moved = self.direction != 0
        if not moved.any():
            return 0.0
        relative = (self.x[moved] / self.direction[moved]).abs().min().item()
        return 16 * torch.finfo(self.x.dtype).eps * relative

    def trial(self, step: float) -> Trial:
        """The loss at a step: one forward pass; inf for a step that the dtype cannot hold."""
        self.evaluations += 1
        if step > torch.finfo(self.x.dtype).max:
            return Trial(step, math.inf)
        value = self.objective.value(torch.add(self.x, self.direction, alpha=step))
        return Trial(step, value if math.isfinite(value) else math.inf)

    def gradient_trial(self, step: float) -> Trial:
        """The loss, slope and gradient at a step: one forward and backward pass."""
        self.evaluations += 1
        wall = Trial(step, math.inf, math.inf)
        if step > torch.finfo(self.x.dtype).max:
            return wall
        point = observe(self.objective, torch.add(self.x, self.direction, alpha=step))
        slope = dot(point.gradient, self.direction)
        finite = math.isfinite(point.value) and math.isfinite(slope)
        return Trial(step, point.value, slope, point) if finite else wall

    def result(self, best: Trial, status: SearchStatus) -> SearchResult:
        """What a search returns that ends with the trial `best`."""
        return SearchResult(best.step, best.value, self.evaluations, status, best.point)

    def failure(self, status: SearchStatus) -> SearchResult:
        """What a search returns that found no lower loss: step 0."""
        return self.result(self.start, status)


class LineSearch(Protocol):
    """What the second phase asks of a line search.

    `first_step` is where to try first; the result's loss is not above that of the start, but for
    the resolution of the loss in a search that follows slopes.

    >>> def one_trial(line: Line, first_step: float) -> SearchResult:
    ...     trial = line.trial(first_step)
    ...     if trial.value < line.start.value:
    ...         return line.result(trial, SearchStatus.MINIMUM)
    ...     return line.failure(SearchStatus.RESOLUTION)
    >>> search: LineSearch = one_trial
    """

    def __call__(self, line: Line, first_step: float) -> SearchResult: ...


def why_no_descent(line: Line, trial: Trial, broken: float) -> SearchStatus:
    """The status after a last trial that was not below the start.

    A smooth loss keeps the gain that a parabola promises, unless that is below the resolution; a
    promise broken far above it means that the slope is not that of this loss. Rounding errors can
    be those of the losses that training began with, where residuals are differences.
    """
    if math.isinf(trial.value):
        return SearchStatus.NOT_FINITE
    rounding = max(line.resolution, line.relative_resolution * line.scale)
    if broken > CLEAR * rounding:
        return SearchStatus.NO_DESCENT
    return SearchStatus.RESOLUTION


def contraction(line: Line, trial: Trial) -> tuple[float, float]:
    """A shorter step, at the parabola's vertex within bounds, and the gain promised there."""
    low, high = CONTRACTION
    part = vertex(line, trial) or 0.0
    step = trial.step * min(max(part, low), high)
    trusted = part >= low and step > line.smallest_step
    return step, abs(line.slope) * step / 2 if trusted else 0.0


def vertex(line: Line, trial: Trial) -> float | None:
    """Where the parabola through the start, its slope and a trial is lowest, in parts of its step.

    None: the parabola has no minimum.
    """
    excess = trial.value - line.start.value - line.slope * trial.step
    return -line.slope * trial.step / (2 * excess) if excess > 0 else None
