"""A loss along a line: trial steps, what they cost, and how a search along it ends.

Every search has one signature, `search(line, first_step) -> SearchResult`, so that CG takes any.
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

    >>> SearchResult(0.5, 1.0, 14, SearchStatus.MINIMUM).descended
    True
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
    """A step that was tried and the loss found there (inf: not finite).

    >>> min(Trial(0.0, 2.0), Trial(0.5, 1.0), Trial(4.0, math.inf), key=lambda t: t.value)
    Trial(step=0.5, value=1.0)
    """

    step: float
    value: float


class GradientTrial(NamedTuple):
    """A step that was tried with loss, slope along the line and the whole point there.

    Where loss or slope is not finite, both are inf, as on a wall that rises; `point` is then None.

    >>> GradientTrial(0.5, 1.0, -2.0, None)._replace(step=1.0).step
    1.0
    """

    step: float
    value: float
    slope: float
    point: Point | None


class Line:
    """An objective along x + step · direction, with its value and slope at step 0.

    Args:
        objective: the loss L.
        x, direction: shape [P]; a step multiplies the direction.
        value: L(x).
        slope: the gradient at x times the direction, below 0.
        scale: the largest absolute loss so far; tells rounding errors from a wrong gradient.
        relative_resolution: of the loss at x; None: the objective's present one.

    >>> from twophase.objective import FunctionObjective
    >>> objective = FunctionObjective(lambda x: (x**2).sum())
    >>> x = torch.ones(1, dtype=torch.float64)
    >>> line = Line(objective, x, -2 * x, value=1.0, slope=-4.0)
    >>> line.trial(0.5)
    Trial(step=0.5, value=0.0)
    >>> line.smallest_step < 1e-14, line.resolution < 1e-14
    (True, True)
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
        self.start = Trial(0.0, value)
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

    def gradient_trial(self, step: float) -> GradientTrial:
        """The loss, slope and gradient at a step: one forward and backward pass."""
        self.evaluations += 1
        wall = GradientTrial(step, math.inf, math.inf, None)
        if step > torch.finfo(self.x.dtype).max:
            return wall
        point = observe(self.objective, torch.add(self.x, self.direction, alpha=step))
        slope = dot(point.gradient, self.direction)
        if not (math.isfinite(point.value) and math.isfinite(slope)):
            return wall
        return GradientTrial(step, point.value, slope, point)

    def result(self, best: Trial | GradientTrial, status: SearchStatus) -> SearchResult:
        """What a search returns that ends with the trial `best`."""
        point = best.point if isinstance(best, GradientTrial) else None
        return SearchResult(best.step, best.value, self.evaluations, status, point)

    def failure(self, status: SearchStatus) -> SearchResult:
        """What a search returns that found no lower loss: step 0."""
        return self.result(self.start, status)


class LineSearch(Protocol):
    """What CG asks of a line search.

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
    """A shorter step, and the gain promised there.

    It is the vertex of the parabola through the start, its slope and the trial, within bounds.
    """
    low, high = CONTRACTION
    excess = trial.value - line.start.value - line.slope * trial.step
    part = -line.slope * trial.step / (2 * excess) if excess > 0 else 0.0
    step = trial.step * min(max(part, low), high)
    trusted = part >= low and step > line.smallest_step
    return step, abs(line.slope) * step / 2 if trusted else 0.0
