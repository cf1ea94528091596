"""Where a training stands: the current point, and what is known at the end of an epoch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twophase.data_objectives import TrainingLoss
from twophase.device import clock
from twophase.errors import NonFiniteError, check_integer, check_number
from twophase.monitor import Measured
from twophase.objective import GRADIENT_PASSES, Point, agree, check_finite, way
from twophase.objectives.mean_loss import Score
from twophase.phases import Work
from twophase.second_phase import Status


class Begun(NamedTuple):
    """An epoch that was trained, of which is not yet known where it has led."""

    work: Work
    before: Point | None
    checking: int  # passes
    introduction: str
    seconds: float


def begun(x: Tensor, saved: Any) -> Begun:
    """An epoch that had begun, and led to `x` [P], from a state; `InputError` for what is none."""
    checking, introduction, seconds = saved
    checking, seconds = check_integer("begun", checking, 0), check_number("begun", seconds)
    return Begun(Work(x), None, checking, str(introduction), seconds)


class Watch:
    """The point of the parameters, if it has been evaluated, and the numbers of a record.

    `seconds` is what the gradient at the point took, where it was measured.
    """

    def __init__(self, objective: TrainingLoss, validation: TrainingLoss | None):
        self.objective, self.validation = objective, validation
        self.device = objective.vector.parameters[0].device
        self.point: Point | None = None
        self.seconds = 0.0

    def state_dict(self, with_point: bool) -> dict[str, Any]:
        """The parameters and buffers, and what is known of the point if that is wanted."""
        vector, point = self.objective.vector, self.point if with_point else None
        known = ("value", "gradient", "resolution")
        saved = None if point is None else {name: getattr(point, name) for name in known}
        return {"x": vector.read(), "buffers": vector.read_buffers(), "point": saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> Tensor:
        """Take all from a state; returns the parameters [P]. `InputError` for what is none."""
        vector, saved = self.objective.vector, state.get("point")
        x, buffers = vector.taken(state["x"]), vector.taken_buffers(state.get("buffers", ()))
        self.point = None
        if saved is not None:
            numbers = [check_number(name, saved[name]) for name in ("value", "resolution")]
            self.point = Point(x, numbers[0], vector.taken(saved["gradient"]), numbers[1])
        vector.write(x)
        vector.write_buffers(buffers)
        return x

    def measure(self, x: Tensor, where: str) -> Measured:
        """Make `x` the current point; what is known there."""
        began = clock(self.device)
        self.point, accuracy = self.objective.measure(x)
        self.seconds = clock(self.device) - began
        size = self.point.gradient_norm
        check_finite(self.point.value, size, where)
        return Measured(self.point.value, accuracy, size, GRADIENT_PASSES)

    def settle(
        self, work: Work, before: Point | None, where: str, exact: bool, safe: bool
    ) -> tuple[Work, Measured]:
        """Make the end of an epoch the current point; what it was, and what is known there.

        If the phase has evaluated the point, only the accuracy is missing, a forward pass where
        there is one, and so is the loss where the epoch's means are known but `exact` ones asked
        for. Where the loss is not finite, and it is `safe` to go back, the epoch ends where it
        began.
        """
        if work.means is not None:
            self.point, (loss, size) = None, work.means
            score = self.objective.score(work.x) if exact else Score(loss, None)
            check_finite(score.loss, size, f" after {where}")
            return work, Measured(score.loss, score.accuracy, size, int(exact))
        if work.point is not None:
            self.point, self.seconds = work.point, 0.0
            size, classes = work.point.gradient_norm, self.objective.classes
            accuracy = self.objective.score(work.x).accuracy if classes else None
            return work, Measured(work.point.value, accuracy, size, int(classes))
        try:
            seen = self.measure(work.x, f" after {where}")
        except NonFiniteError as error:
            if not safe or before is None:
                raise
            x, status = before.x, Status.NOT_FINITE
            work = work._replace(x=x, status=status, message=str(error), point=None)
            return work, self.measure(x, f" before {where}")
        if before is None or work.evaluations:  # of a line search: the way is not Adam's
            return work, seen
        assert self.point is not None
        return work, seen._replace(way=way(before, self.point))

    def validate(self, x: Tensor) -> tuple[float | None, float | None]:
        """Validation loss and accuracy at `x` [P]; None where there are none."""
        return (None, None) if self.validation is None else self.validation.score(x)

    def is_other(self, point: Point) -> bool:
        """Whether the parameters are not at a point any more, or the loss there is another one."""
        if not torch.equal(point.x, self.objective.vector.read()):
            return True
        return not agree(point.value, self.objective.value(point.x), point.resolution)
