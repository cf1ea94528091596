"""A loss along a line: trial steps, what they cost, and how a search along it ends."""

import math
from collections.abc import Callable
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from twophase.objective import Objective, Point, dot, split

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

    A search that has the gradient at its step hands on the `point` there: nobody computes it again.
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
    """A step that was tried and the loss there; with its gradient [P], slope and resolution, too.

    Where loss or slope is not finite, both are inf, as on a wall that rises.
    """

    step: float
    value: float
    slope: float = math.nan
    gradient: Tensor | None = None
    resolution: float = 0.0


class Line:
    """An objective along x + step · direction, [P] each, with its value and slope < 0 at step 0.

    `scale` is the largest absolute loss so far, and tells rounding errors from a wrong gradient;
    `relative_resolution` is that of the loss at x (None: the objective's present one).
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
        self.start, self.slope = Trial(0.0, value, slope), slope
        self.scale = max(scale, abs(value))
        # kept, since a gradient trial measures the objective's anew
        self.relative_resolution = relative_resolution or objective.resolution
        self.evaluations = 0

    @property
    def resolution(self) -> float:
        """Absolute change of the loss that cannot be told from none at the start of the line."""
        return self.relative_resolution * abs(self.start.value)

    @cached_property
    def smallest_step(self) -> float:
        """Step at which the change of every parameter is lost in its own rounding error."""
        parts = split(self.x, self.direction)
        relative = [torch.where(d != 0, x / d, math.inf).abs().min() for x, d in parts]
        smallest = torch.stack(relative).min().item()
        return 16 * torch.finfo(self.x.dtype).eps * smallest if smallest < math.inf else 0.0

    def at(self, step: float) -> Tensor:
        """The vector [P] at a step."""
        return torch.add(self.x, self.direction, alpha=step)

    def trial(self, step: float) -> Trial:
        """The loss at a step: one forward pass; inf for a step that the dtype cannot hold."""
        self.evaluations += 1
        if step > torch.finfo(self.x.dtype).max:
            return Trial(step, math.inf)
        value = self.objective.value(self.at(step))
        return Trial(step, value if math.isfinite(value) else math.inf)

    def gradient_trial(self, step: float) -> Trial:
        """The loss, slope and gradient at a step: one forward and backward pass."""
        self.evaluations += 1
        wall = Trial(step, math.inf, math.inf)
        if step > torch.finfo(self.x.dtype).max:
            return wall
        value, gradient = self.objective.value_and_gradient(self.at(step))
        slope = dot(gradient, self.direction)
        finite = math.isfinite(value) and math.isfinite(slope)
        return Trial(step, value, slope, gradient, self.objective.resolution) if finite else wall

    def vertex(self, trial: Trial) -> float | None:
        """The minimum, if any, of the parabola by start, slope and trial, in parts of its step."""
        excess = trial.value - self.start.value - self.slope * trial.step
        return -self.slope * trial.step / (2 * excess) if excess > 0 else None

    def contraction(self, trial: Trial) -> tuple[float, float]:
        """A shorter step, at the parabola's vertex within bounds, and the gain promised there."""
        low, high = CONTRACTION
        part = self.vertex(trial) or 0.0
        step = trial.step * min(max(part, low), high)
        trusted = part >= low and step > self.smallest_step
        return step, abs(self.slope) * step / 2 if trusted else 0.0

    def why_no_descent(self, trial: Trial, broken: float) -> SearchStatus:
        """The status after a last trial that was not below the start.

        A smooth loss keeps the gain that a parabola promises; one `broken` far above the resolution
        means that the slope is not that of this loss. Rounding errors can be those of the losses
        that training began with, where residuals are differences.
        """
        if math.isinf(trial.value):
            return SearchStatus.NOT_FINITE
        rounding = max(self.resolution, self.relative_resolution * self.scale)
        return SearchStatus.NO_DESCENT if broken > CLEAR * rounding else SearchStatus.RESOLUTION

    def result(self, best: Trial, status: SearchStatus) -> SearchResult:
        """What a search returns that ends with the trial `best`."""
        point = None
        if best.gradient is not None:
            # the vector is made again, since to keep that of each trial takes memory
            point = Point(self.at(best.step), best.value, best.gradient, best.resolution)
        return SearchResult(best.step, best.value, self.evaluations, status, point)

    def failure(self, status: SearchStatus) -> SearchResult:
        """What a search returns that found no lower loss: step 0."""
        return self.result(self.start, status)


# A search along a line from a trial at a first step on; the result's loss is not above the start's,
# beyond its resolution if the search uses slopes.
LineSearch = Callable[[Line, float], SearchResult]
