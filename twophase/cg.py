"""Phase 2: nonlinear conjugate gradient as pure functions on flat vectors.

One iteration takes a point and what the previous iteration left, and returns both anew; it never
sees a model, a data set or a device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from twophase.errors import check_choice, check_integer, check_number
from twophase.line_search import (
    GoldenSection,
    Line,
    LineSearch,
    SearchResult,
    SearchStatus,
    resolve,
)
from twophase.objective import Objective, Point, dot, evaluate, norm, start

BetaRule = Callable[[Tensor, Tensor], float]


def fletcher_reeves(gradient: Tensor, previous: Tensor) -> float:
    """β = g'g / p'p with the gradient g and the previous gradient p ≠ 0, shapes [P].

    Fletcher and Reeves (1964); Press et al., Numerical Recipes in C, section 10.6.

    >>> fletcher_reeves(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
    0.5
    """
    return dot(gradient, gradient) / dot(previous, previous)


def polak_ribiere(gradient: Tensor, previous: Tensor) -> float:
    """β = g'(g − p) / p'p with the gradient g and the previous gradient p ≠ 0, shapes [P].

    Polak and Ribière (1969); Press et al., Numerical Recipes in C, section 10.6.

    >>> polak_ribiere(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
    0.0
    """
    return dot(gradient, gradient - previous) / dot(previous, previous)


def polak_ribiere_plus(gradient: Tensor, previous: Tensor) -> float:
    """β = max(0, Polak–Ribière): a restart wherever Polak–Ribière's β is negative.

    Converges where Polak–Ribière can cycle (Nocedal and Wright, Numerical Optimization, 2nd ed.,
    section 5.2). Gradients g and p ≠ 0 have shape [P].

    >>> polak_ribiere_plus(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    0.0
    """
    return max(0.0, polak_ribiere(gradient, previous))


BETA_RULES: dict[str, BetaRule] = {
    "FR": fletcher_reeves,
    "PR": polak_ribiere,
    "PR+": polak_ribiere_plus,
}


@dataclass(frozen=True)
class CGSettings:
    """How CG chooses directions and steps; it has no learning rate.

    Args:
        beta: "FR" (Fletcher–Reeves), "PR" (Polak–Ribière) or "PR+". Default "PR+": the paper names
            the first two and not its choice; PR+ has a convergence theory for inexact searches,
            while FR without restarts can jam (Nocedal and Wright, section 5.2).
        line_search: any `LineSearch`. Default golden section to a relative tolerance of 1e-2.
        restart_every: iterations after which the direction is the steepest descent again; None:
            only where the direction is no descent direction.
        zero_gradient_norm: gradient norm (loss per unit of parameter) at or below which CG has
            converged. Default 0: nothing but an exact zero, since any other depends on the loss's
            scale; where the arithmetic ends before, the line search says so.

    Raises:
        InputError: a value is out of range.

    >>> CGSettings(beta="HS")
    Traceback (most recent call last):
    twophase.errors.InputError: beta: 'HS' is not allowed; use one of FR, PR, PR+
    """

    beta: str = "PR+"
    line_search: LineSearch = field(default_factory=GoldenSection)
    restart_every: int | None = None
    zero_gradient_norm: float = 0.0

    def __post_init__(self):
        check_choice("beta", self.beta, BETA_RULES)
        if self.restart_every is not None:
            check_integer("restart_every", self.restart_every, 1)
        check_number("zero_gradient_norm", self.zero_gradient_norm, minimum=0)
        resolve(self.line_search)


class Memory(NamedTuple):
    """What one iteration leaves to the next: where it ended, its gradient, direction and step.

    `x` [P] is the new vector; `gradient` [P], `direction` [P] and their inner product `slope`
    belong to the vector before it.

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: (x**2).sum())
    >>> iterate(bowl, start(bowl, torch.ones(2).double()), None, CGSettings()).memory.slope
    -8.0
    """

    x: Tensor
    gradient: Tensor
    direction: Tensor
    step: float
    slope: float
    age: int  # iterations since the last steepest descent
    scale: float  # the largest absolute loss at an iterate


class Status(StrEnum):
    """How an iteration ended; all but the first mean that CG can do no more from here."""

    MOVED = "moved"
    CONVERGED = "converged"
    RESOLUTION = "resolution"
    NO_DESCENT = "no descent"
    NOT_FINITE = "not finite"
    LIMIT = "evaluation limit"


MESSAGES = {
    Status.MOVED: "a lower loss was found",
    Status.CONVERGED: "the gradient norm is at or below the zero gradient norm",
    Status.RESOLUTION: "no step lowers the loss by more than the arithmetic resolves",
    Status.NO_DESCENT: "the loss rises along the steepest descent: is the gradient that loss's?",
    Status.NOT_FINITE: "the loss is not finite along the steepest descent",
    Status.LIMIT: "the line search's evaluations ran out before it found a lower loss",
}


class Iteration(NamedTuple):
    """One CG iteration: the new vector and its loss, the step, its cost, the status and why.

    `x` has shape [P]; `step` multiplies the direction and is 0 where `x` is the old vector;
    `evaluations` counts the forward passes of the line search.

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: (x**2).sum())
    >>> iteration = iterate(bowl, start(bowl, torch.zeros(2)), None, CGSettings())
    >>> iteration.step, iteration.message
    (0.0, 'the gradient norm is at or below the zero gradient norm')
    """

    x: Tensor
    value: float
    step: float
    evaluations: int
    status: Status
    memory: Memory | None

    @property
    def message(self) -> str:
        """The status in a sentence."""
        return MESSAGES[self.status]


class Direction(NamedTuple):
    """A descent direction [P], the loss's slope along it, and its age since steepest descent."""

    vector: Tensor
    slope: float
    age: int


def iterate(
    objective: Objective, point: Point, memory: Memory | None, settings: CGSettings
) -> Iteration:
    """One iteration of nonlinear CG: d = −g + β · d_previous, then a line search along d.

    The direction is the steepest descent −g at the start, every `restart_every` iterations, where
    d is no descent direction (d'g >= 0), and where the search along d has failed (Press et al.,
    Numerical Recipes in C, section 10.6; Nocedal and Wright, section 5.2).

    Args:
        objective: the loss.
        point: x [P] with the loss and the gradient [P] there.
        memory: the previous iteration's; None for the first.
        settings: how to choose direction and step.

    Returns:
        The `Iteration`. Its cost is the evaluations of the search; the gradient at the new vector
        is the caller's to compute, and the next iteration's `point`.

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: (x**2).sum())
    >>> first = iterate(bowl, start(bowl, torch.ones(2).double()), None, CGSettings())
    >>> first.status, first.value < 1e-3
    (<Status.MOVED: 'moved'>, True)
    """
    if norm(point.gradient) <= settings.zero_gradient_norm:
        return Iteration(point.x, point.value, 0.0, 0, Status.CONVERGED, memory)
    direction = _direction(point.gradient, memory, settings)
    result = _search(objective, point, direction, memory, settings)
    evaluations = result.evaluations
    if not result.descended and direction.age > 0:
        direction = _steepest_descent(point.gradient)
        result = _search(objective, point, direction, memory, settings)
        evaluations += result.evaluations
    if not result.descended:
        return Iteration(point.x, point.value, 0.0, evaluations, _failed(result.status), memory)
    x = torch.add(point.x, direction.vector, alpha=result.step)
    left = Memory(
        x,
        point.gradient,
        direction.vector,
        result.step,
        direction.slope,
        direction.age,
        max(abs(point.value), memory.scale if memory else 0.0),
    )
    return Iteration(x, result.value, result.step, evaluations, Status.MOVED, left)


class Minimum(NamedTuple):
    """Where a minimisation ended, after how many iterations, and why.

    `x` has shape [P]; `value` and `gradient_norm` (loss per unit of parameter) are those at `x`.

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: (x**2).sum())
    >>> result = minimize(bowl, torch.zeros(2), max_iterations=9)
    >>> result.value, result.iterations, result.status
    (0.0, 0, <Status.CONVERGED: 'converged'>)
    """

    x: Tensor
    value: float
    gradient_norm: float
    iterations: int
    status: Status
    message: str


def minimize(
    objective: Objective, x: Tensor, max_iterations: int, settings: CGSettings | None = None
) -> Minimum:
    """Minimise an objective from the vector x [P] by at most `max_iterations` CG iterations.

    Returns:
        The `Minimum`; its status `moved` means that the bound on iterations was reached.

    Raises:
        InputError: the bound is below 1, or the objective does not repeat itself.
        NonFiniteError: the loss or its gradient is not finite at an iterate.

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: ((x - 1) ** 2).sum())
    >>> result = minimize(bowl, torch.zeros(2).double(), 9, CGSettings(zero_gradient_norm=1e-6))
    >>> result.message
    'the gradient norm is at or below the zero gradient norm'
    """
    check_integer("max_iterations", max_iterations, 1)
    settings = settings or CGSettings()
    point, memory = start(objective, x), None
    for done in range(max_iterations):
        iteration = iterate(objective, point, memory, settings)
        if iteration.status is not Status.MOVED:
            return _minimum(point, done, iteration.status)
        point, memory = evaluate(objective, iteration.x), iteration.memory
    converged = norm(point.gradient) <= settings.zero_gradient_norm
    return _minimum(point, max_iterations, Status.CONVERGED if converged else Status.MOVED)


def _minimum(point: Point, iterations: int, status: Status) -> Minimum:
    return Minimum(point.x, point.value, norm(point.gradient), iterations, status, MESSAGES[status])


def _direction(gradient: Tensor, memory: Memory | None, settings: CGSettings) -> Direction:
    due = settings.restart_every or math.inf
    if memory is None or memory.age + 1 >= due:
        return _steepest_descent(gradient)
    beta = BETA_RULES[settings.beta](gradient, memory.gradient)
    if not abs(beta) <= torch.finfo(gradient.dtype).max:
        return _steepest_descent(gradient)
    vector = torch.add(-gradient, memory.direction, alpha=beta)
    slope = dot(vector, gradient)
    if not -math.inf < slope < 0:
        return _steepest_descent(gradient)
    return Direction(vector, slope, 0 if beta == 0 else memory.age + 1)


def _steepest_descent(gradient: Tensor) -> Direction:
    return Direction(-gradient, -dot(gradient, gradient), 0)


def _search(
    objective: Objective,
    point: Point,
    direction: Direction,
    memory: Memory | None,
    settings: CGSettings,
) -> SearchResult:
    scale = memory.scale if memory else 0.0
    line = Line(objective, point.x, direction.vector, point.value, direction.slope, scale)
    return settings.line_search(line, _first_step(point, direction, memory))


def _first_step(point: Point, direction: Direction, memory: Memory | None) -> float:
    """A first trial that follows the scale of loss and parameters.

    Later iterations expect the previous first-order change of the loss (Nocedal and Wright,
    equation 3.60); the first takes the minimum of a parabola that ends at loss 0, but no longer
    than the parameter vector itself.
    """
    if memory is not None:
        return memory.step * memory.slope / direction.slope
    lengths = (
        2 * abs(point.value) / -direction.slope,
        norm(point.x) / norm(direction.vector),
    )
    return min((length for length in lengths if length > 0), default=1 / norm(direction.vector))


def _failed(status: SearchStatus) -> Status:
    return {
        SearchStatus.RESOLUTION: Status.RESOLUTION,
        SearchStatus.NO_DESCENT: Status.NO_DESCENT,
        SearchStatus.NOT_FINITE: Status.NOT_FINITE,
        SearchStatus.LIMIT: Status.LIMIT,
    }[status]
