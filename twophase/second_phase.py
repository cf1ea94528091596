"""Phase 2 as pure functions on flat vectors: a direction, a line search along it, and again."""

from abc import abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twophase.directions import DirectionRule, SelfScaledBFGSDirection, State
from twophase.directions.direction import Direction, expected_step, steepest_descent
from twophase.errors import InputError, check_call, check_integer, check_number
from twophase.line_search import Line, LineSearch, SearchResult, SearchStatus, StrongWolfe
from twophase.objective import Objective, Point, dot, fetch, inner
from twophase.parameters import ParameterVector
from twophase.preconditioner import AdamMoments, Identity, Preconditioner, check_preconditioner
from twophase.settings import Settings

# Iterations in a row without clear progress of loss or gradient norm after which the phase ends: a
# search that follows slopes would go on for ever in the noise of the gradient.
PATIENCE = 20


class Prepared(NamedTuple):
    """A minimizer, the objective in the form in which it takes it, and why it was chosen."""

    minimizer: "Minimizer"
    objective: Objective
    reason: str = ""


class Minimizer(Settings):
    """Base of the settings of a second phase: what makes an iteration from what was left before.

    `preconditioner` is for a phase after Adam; `tolerance_grad` is the gradient norm (Euclidean,
    loss per unit of parameter) at which the phase has converged.
    """

    preconditioner: Preconditioner = Identity()
    tolerance_grad: float = 0.0

    def prepare(self, objective: Objective, size: int) -> Prepared:
        """What to iterate with, on what, for an objective of `size` parameters; before the start.

        `InputError` where it cannot minimise such an objective.
        """
        return Prepared(self, objective)

    def check_state(self, state: State, inverse: Tensor | None = None) -> None:
        """Raise whatever going on from a state would raise that another minimizer has left."""
        return

    @property
    def label(self) -> str:
        """What it is in a word or two, without its settings."""
        return type(self).__name__

    @abstractmethod
    def iterate(
        self, objective: Objective, point: Point, state: State | None, inverse: Tensor | None = None
    ) -> "Iteration":
        """One iteration; see the function `iterate`."""


def read_state(
    content: Any, second: Minimizer, vector: ParameterVector, inverse: Tensor | None
) -> State | None:
    """What an iteration has left, from a file; an exception unless the phase can go on from it."""
    if content is None:
        return None
    state = State(**content)
    x, gradient, direction = map(vector.taken, state[:3])
    state = state._replace(x=x, gradient=gradient, direction=direction)
    for name in ("step", "slope", "scale", "mark", "mark_norm"):
        if not isinstance(getattr(state, name), float | int):
            raise InputError(name, getattr(state, name), "a number")
    for name in ("age", "stalled"):
        check_integer(name, getattr(state, name), 0)
    second.check_state(state, inverse)
    return state


def read_inverse(saved: Any, vector: ParameterVector) -> Tensor | None:
    """The diagonal [P] of a preconditioner from a file, or None."""
    return None if saved is None else vector.taken(saved)


def check_minimizer(value: object, also: str = "") -> None:
    """Raise `InputError` unless a value can be a second phase; `also` says what else is allowed."""
    if not isinstance(value, Minimizer):
        allowed = f"Automatic(...), Descent(...) or LevenbergMarquardt(...){also}"
        raise InputError("second", value, allowed)


@dataclass(frozen=True)
class Descent(Minimizer):
    """A second phase: a direction, a line search along it, a preconditioner; no learning rate.

    The preconditioner is for a phase after Adam. The phase has converged where the gradient norm
    (Euclidean, loss per unit of parameter) is at or below `tolerance_grad`, by default an exact 0,
    since any other depends on the loss's scale; where the arithmetic ends before, the line search
    says so. `InputError` where a part is none, or the tolerance is below 0.

    >>> from twophase import ConjugateDirection, GoldenSection
    >>> paper = Descent(ConjugateDirection("PR+"), GoldenSection(rtol=1e-2))
    """

    direction: DirectionRule
    line_search: LineSearch
    preconditioner: Preconditioner = Identity()
    tolerance_grad: float = 0.0

    def __post_init__(self) -> None:
        check_call("direction", self.direction, "a direction rule: (point, last, inverse)")
        check_call("line_search", self.line_search, "a line search: (line, first_step)")
        check_preconditioner(self.preconditioner)
        check_number("tolerance_grad", self.tolerance_grad, minimum=0)

    @property
    def label(self) -> str:
        return f"{type(self.direction).__name__} with {type(self.line_search).__name__}"

    def check_state(self, state: State, inverse: Tensor | None = None) -> None:
        # a direction from somewhere else, with positive curvature on the way
        gradient = state.gradient + state.step * state.direction
        self.direction(Point(state.x, state.mark, gradient, 0.0), state, inverse)

    def iterate(
        self, objective: Objective, point: Point, state: State | None, inverse: Tensor | None = None
    ) -> "Iteration":
        """The function `iterate`, which says more, with these settings."""
        return iterate(objective, point, state, self, inverse)


# Reached low losses of networks with the fewest passes, 3 for most iterations (notebook 12).
SELF_SCALED_BFGS = Descent(SelfScaledBFGSDirection(), StrongWolfe(), AdamMoments())


class Status(StrEnum):
    """How an iteration ended; but for `MOVED` there is no more to do (`BUDGET`: in `minimize`)."""

    MOVED = "moved"
    CONVERGED = "converged"
    RESOLUTION = "resolution"
    NO_DESCENT = "no descent"
    NOT_FINITE = "not finite"
    LIMIT = "evaluation limit"
    BUDGET = "budget"


MESSAGES = {
    Status.MOVED: "the line search found its step",
    Status.CONVERGED: "the gradient norm is at or below tolerance_grad",
    Status.RESOLUTION: "no step lowers the loss by more than the arithmetic resolves",
    Status.NO_DESCENT: "the loss rises along the steepest descent: is the gradient that loss's?",
    Status.NOT_FINITE: "the loss is not finite along the steepest descent",
    Status.LIMIT: "the line search's evaluations ran out before it found a lower loss",
    Status.BUDGET: "all that it may spend is spent",
}


class Iteration(NamedTuple):
    """One iteration: the new vector x [P], its loss, and what the next iteration starts from.

    `step` multiplies the direction and is 0 where `x` is the old vector; `evaluations` counts the
    trials of the line search. `point` is that at `x` if the search computed the gradient there.
    """

    x: Tensor
    value: float
    step: float
    evaluations: int
    status: Status
    state: State | None
    point: Point | None = None

    @property
    def message(self) -> str:
        """The status in a sentence."""
        return MESSAGES[self.status]


def iterate(
    objective: Objective,
    point: Point,
    state: State | None,
    descent: Descent = SELF_SCALED_BFGS,
    inverse: Tensor | None = None,
) -> Iteration:
    """One iteration from a point and what the previous one left; sees no model, data or device.

    The direction is the steepest descent −M⁻¹ g at the start, where the rule finds no descent
    direction, and where the search along its direction has failed (Press et al., Numerical Recipes
    in C, section 10.6; Nocedal and Wright, section 5.2). `inverse` is the diagonal [P] of M⁻¹, all
    above 0, of a preconditioner M that stands for the Hessian: the iteration is that in the
    variables in which M is 1 (None: it is). It must stay the same while `state` is handed on.
    """
    if point.gradient_norm <= descent.tolerance_grad:
        return _stay(point, 0, Status.CONVERGED, state)
    marks = progress_marks(point, state)
    if marks["stalled"] > PATIENCE:
        return _stay(point, 0, Status.RESOLUTION, state)
    if state is None:
        direction = steepest_descent(point.gradient, inverse)
    else:
        direction = descent.direction(point, state, inverse)
    result = _search(objective, point, direction, state, descent.line_search)
    evaluations = result.evaluations
    if not result.descended and direction.age > 0:
        direction = steepest_descent(point.gradient, inverse)
        result = _search(objective, point, direction, state, descent.line_search)
        evaluations += result.evaluations
    if not result.descended:
        return _stay(point, evaluations, Status(result.status), state)
    end = result.point
    x = end.x if end else torch.add(point.x, direction.vector, alpha=result.step)
    left = _state(x, point, direction, result, marks)
    return Iteration(x, result.value, result.step, evaluations, Status.MOVED, left, result.point)


def _search(
    objective: Objective, point: Point, d: Direction, state: State | None, search: LineSearch
) -> SearchResult:
    scale = state.scale if state else 0.0
    line = Line(objective, point.x, d.vector, point.value, d.slope, scale, point.resolution)
    lost = d.slope == 0  # to underflow
    step = 0.0 if lost else d.first_step or _first_step(point, d, state)
    if lost or step > torch.finfo(point.x.dtype).max:
        return line.failure(SearchStatus.RESOLUTION)
    return search(line, step)


def _first_step(point: Point, d: Direction, state: State | None) -> float:
    """Where to try first: by the last line, or at the minimum of a parabola that ends at loss 0."""
    if state is not None:
        return expected_step(state, d.slope, dot(point.gradient, state.direction))
    # no longer than the parameter vector
    size, length = (square**0.5 for square in fetch(*(inner(v, v) for v in (d.vector, point.x))))
    lengths = 2 * abs(point.value) / -d.slope, length / size
    return min((length for length in lengths if length > 0), default=1 / size)


def _stay(point: Point, evaluations: int, status: Status, state: State | None) -> Iteration:
    return Iteration(point.x, point.value, 0.0, evaluations, status, state)


def progress_marks(point: Point, before: State | None) -> dict[str, Any]:
    """The fields of a `State` that say whether there is progress.

    `stalled` are the iterations in a row, up to this point, without a clear one since the mark.
    """
    mark, stalled = {"mark": point.value, "mark_norm": point.gradient_norm}, 0
    if before is None:
        return {"scale": abs(point.value), "stalled": 0} | mark
    lower = before.mark - point.value > point.resolution * abs(point.value)
    if not lower and not point.gradient_norm < before.mark_norm:
        mark, stalled = {"mark": before.mark, "mark_norm": before.mark_norm}, before.stalled + 1
    return {"scale": max(abs(point.value), before.scale), "stalled": stalled} | mark


def _state(
    x: Tensor, point: Point, d: Direction, result: SearchResult, marks: dict[str, Any]
) -> State:
    """What an iteration that has moved from a point along d to x leaves to the next."""
    return State(x, point.gradient, d.vector, result.step, d.slope, d.age, memory=d.memory, **marks)
