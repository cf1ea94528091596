"""Phase 2: nonlinear conjugate gradient as pure functions on flat vectors.

One iteration takes a point and what the previous iteration left, and returns both anew; it never
sees a model, a data set or a device.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from twophase.directions import (
    BETA_RULES,
    ConjugateDirection,
    Direction,
    DirectionRule,
    LimitedMemoryBFGS,
    Memory,
    SelfScaledBFGS,
    expected_step,
    steepest_descent,
)
from twophase.errors import InputError, check_choice, check_integer, check_number
from twophase.line_search.golden_section import LINE_SEARCHES, resolve
from twophase.line_search.line import Line, LineSearch, SearchResult, SearchStatus
from twophase.objective import Objective, Point, evaluate, norm, start

# Iterations in a row without clear progress of loss or gradient norm after which CG ends. A search
# that follows slopes goes on where losses can no longer be compared; from the noise of the gradient
# on, it would go on for ever.
PATIENCE = 20

DIRECTIONS = ("cg", "ssbfgs", "lbfgs")
PRECONDITIONERS = ("none", "adam")


@dataclass(frozen=True)
class CGSettings:
    """How the second phase chooses directions and steps; it has no learning rate.

    `CGSettings()` is what reached low losses of networks with the fewest passes: self-scaled BFGS
    directions in a limited memory with a search by slopes, 3 passes for most iterations,
    preconditioned with what Adam leaves. A β rule by name is plain nonlinear CG; the paper's
    setting is `CGSettings("PR+", resolve("golden"))`.

    Args:
        beta: "FR" (Fletcher–Reeves), "PR" (Polak–Ribière), "PR+" or another of `BETA_RULES`, for CG
            directions. Default None: none, or "PR+" where `direction` is "cg". The paper names
            the first two and not its choice; PR+ has a convergence theory for inexact searches,
            while FR without restarts can jam (Nocedal and Wright, section 5.2).
        line_search: any `LineSearch`. Default None: "parabola" for CG, else "wolfe" (see
            `twophase.line_search.golden_section.LINE_SEARCHES`).
        restart_every: iterations after which the direction is the steepest descent again; None:
            only where the direction is no descent direction.
        zero_gradient_norm: gradient norm (loss per unit of parameter) at or below which CG has
            converged. Default 0: nothing but an exact zero, since any other depends on the loss's
            scale; where the arithmetic ends before, the line search says so.
        direction: "cg", or without a β "ssbfgs" or "lbfgs", self-scaled or plain BFGS in a limited
            memory (see `twophase.directions`). Default None: "cg" with a β, else "ssbfgs".
        history: steps that BFGS remembers, at least 1; 2 · `history` vectors of length P. Default
            None: as many as fit into 256 MiB, 10 to 300 (see `twophase.directions.capacity`).
        powell: restart CG along the steepest descent where successive gradients are far from
            orthogonal, |g'p| >= powell · g'g, above 0 (Powell, 1977, took 0.2); None: never.
        preconditioner: "adam": `fit` scales the directions with the second moments that its Adam
            phase, if it has one, ends with (see `twophase.preconditioner`); "none". Default None:
            "none" for CG; for BFGS "adam" after mini-batches, whose noise makes the moments a
            measure of curvature, and "none" after full batches, where they stalled the second phase
            on Poisson's equation.

    Raises:
        InputError: a value is out of range, or a β comes with BFGS.

    >>> CGSettings(beta="CD")
    Traceback (most recent call last):
    twophase.errors.InputError: beta: 'CD' is not allowed; use one of FR, PR, PR+, ...
    """

    beta: str | None = None
    line_search: LineSearch | None = None
    restart_every: int | None = None
    zero_gradient_norm: float = 0.0
    direction: str | None = None
    history: int | None = None
    powell: float | None = None
    preconditioner: str | None = None

    def __post_init__(self):
        if self.beta is not None:
            check_choice("beta", self.beta, BETA_RULES)
        if self.restart_every is not None:
            check_integer("restart_every", self.restart_every, 1)
        check_number("zero_gradient_norm", self.zero_gradient_norm, minimum=0)
        if self.direction is not None:
            check_choice("direction", self.direction, DIRECTIONS)
        if self.history is not None:
            check_integer("history", self.history, 1)
        if self.powell is not None:
            check_number("powell", self.powell, above=0)
        if self.preconditioner is not None:
            check_choice("preconditioner", self.preconditioner, PRECONDITIONERS)
        if self.direction not in (None, "cg") and self.beta is not None:
            allowed = f"none with direction {self.direction}, which has no β"
            raise InputError("beta", self.beta, allowed)
        resolve(self.search)

    @property
    def rule(self) -> DirectionRule:
        """What chooses directions after the first.

        >>> CGSettings().rule, CGSettings("FR").rule
        (SelfScaledBFGS(history=None), ConjugateDirection(beta='FR', powell=None))
        """
        if self._conjugate:
            return ConjugateDirection(self.beta or "PR+", self.powell)
        if self.direction == "lbfgs":
            return LimitedMemoryBFGS(self.history)
        return SelfScaledBFGS(self.history)

    @property
    def search(self) -> LineSearch:
        """What chooses steps.

        >>> CGSettings(direction="cg").search == resolve("parabola")
        True
        """
        if self.line_search is not None:
            return self.line_search
        return LINE_SEARCHES["parabola" if self._conjugate else "wolfe"]

    def takes_moments(self, batches: int) -> bool:
        """Whether an Adam phase with so many mini-batches an epoch leaves its preconditioner.

        >>> CGSettings().takes_moments(batches=3), CGSettings().takes_moments(batches=1)
        (True, False)
        """
        if self.preconditioner is None:
            return not self._conjugate and batches > 1
        return self.preconditioner == "adam"

    @property
    def _conjugate(self) -> bool:
        return self.beta is not None or self.direction == "cg"


class Status(StrEnum):
    """How an iteration ended; all but the first mean that CG can do no more from here."""

    MOVED = "moved"
    CONVERGED = "converged"
    RESOLUTION = "resolution"
    NO_DESCENT = "no descent"
    NOT_FINITE = "not finite"
    LIMIT = "evaluation limit"


MESSAGES = {
    Status.MOVED: "the line search found its step",
    Status.CONVERGED: "the gradient norm is at or below the zero gradient norm",
    Status.RESOLUTION: "no step lowers the loss by more than the arithmetic resolves",
    Status.NO_DESCENT: "the loss rises along the steepest descent: is the gradient that loss's?",
    Status.NOT_FINITE: "the loss is not finite along the steepest descent",
    Status.LIMIT: "the line search's evaluations ran out before it found a lower loss",
}


class Iteration(NamedTuple):
    """One CG iteration: the new vector and its loss, the step, its cost, the status and why.

    `x` has shape [P]; `step` multiplies the direction and is 0 where `x` is the old vector;
    `evaluations` counts the trials of the line search. `point` is that at `x` where the search has
    computed the gradient there.

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
    point: Point | None = None

    @property
    def message(self) -> str:
        """The status in a sentence."""
        return MESSAGES[self.status]


def iterate(
    objective: Objective,
    point: Point,
    memory: Memory | None,
    settings: CGSettings,
    inverse: Tensor | None = None,
) -> Iteration:
    """One iteration: a direction, of BFGS or d = −g + β · d_previous, and a line search along it.

    The direction is the steepest descent −g at the start, every `restart_every` iterations, where
    the rule finds no descent direction, and where the search along d has failed (Press et al.,
    Numerical Recipes in C, section 10.6; Nocedal and Wright, section 5.2).

    Args:
        objective: the loss.
        point: x [P] with the loss and the gradient [P] there.
        memory: the previous iteration's; None for the first.
        settings: how to choose direction and step.
        inverse: the diagonal [P] of M⁻¹, all above 0, of a preconditioner M that stands for the
            Hessian: the iteration is that in the variables in which M is 1. None: M is 1. It is to
            be the same for as long as `memory` is handed on.

    Returns:
        The `Iteration`. Where the search has computed the gradient at the new vector, the iteration
        holds the next one's `point`; else that is the caller's to evaluate.

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: (x**2).sum())
    >>> first = iterate(bowl, start(bowl, torch.ones(2).double()), None, CGSettings())
    >>> first.status, first.value < 1e-3
    (<Status.MOVED: 'moved'>, True)
    """
    gradient_norm = norm(point.gradient)
    if gradient_norm <= settings.zero_gradient_norm:
        return _stay(point, 0, Status.CONVERGED, memory)
    stalled = _stalled(point, gradient_norm, memory)
    if stalled > PATIENCE:
        return _stay(point, 0, Status.RESOLUTION, memory)
    direction = _direction(point, memory, settings, inverse)
    result = _search(objective, point, direction, memory, settings)
    evaluations = result.evaluations
    if not result.descended and direction.age > 0:
        direction = steepest_descent(point.gradient, inverse)
        result = _search(objective, point, direction, memory, settings)
        evaluations += result.evaluations
    if not result.descended:
        return _stay(point, evaluations, _failed(result.status), memory)
    x = torch.add(point.x, direction.vector, alpha=result.step)
    left = Memory(
        x,
        point.gradient,
        direction.vector,
        result.step,
        direction.slope,
        direction.age,
        max(abs(point.value), memory.scale if memory else 0.0),
        direction.pairs,
        *((memory.mark, memory.mark_norm) if stalled else (point.value, gradient_norm)),
        stalled,
    )
    return Iteration(x, result.value, result.step, evaluations, Status.MOVED, left, result.point)


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
        point = iteration.point or evaluate(objective, iteration.x)
        memory = iteration.memory
    converged = norm(point.gradient) <= settings.zero_gradient_norm
    return _minimum(point, max_iterations, Status.CONVERGED if converged else Status.MOVED)


def _minimum(point: Point, iterations: int, status: Status) -> Minimum:
    return Minimum(point.x, point.value, norm(point.gradient), iterations, status, MESSAGES[status])


def _direction(
    point: Point, memory: Memory | None, settings: CGSettings, inverse: Tensor | None
) -> Direction:
    due = settings.restart_every or math.inf
    if memory is None or memory.age + 1 >= due:
        return steepest_descent(point.gradient, inverse)
    return settings.rule(point, memory, inverse)


def _search(
    objective: Objective,
    point: Point,
    direction: Direction,
    memory: Memory | None,
    settings: CGSettings,
) -> SearchResult:
    scale = memory.scale if memory else 0.0
    line = Line(
        objective,
        point.x,
        direction.vector,
        point.value,
        direction.slope,
        scale,
        point.resolution,
    )
    if direction.slope == 0:  # lost to underflow
        return line.failure(SearchStatus.RESOLUTION)
    return settings.search(line, direction.first_step or _first_step(point, direction, memory))


def _first_step(point: Point, direction: Direction, memory: Memory | None) -> float:
    """A first trial that follows the scale of loss and parameters.

    Later iterations go by the last line; the first takes the minimum of a parabola that ends at
    loss 0, but no longer than the parameter vector itself.
    """
    if memory is not None:
        return expected_step(point, memory, direction.slope)
    lengths = (
        2 * abs(point.value) / -direction.slope,
        norm(point.x) / norm(direction.vector),
    )
    return min((length for length in lengths if length > 0), default=1 / norm(direction.vector))


def _stay(point: Point, evaluations: int, status: Status, memory: Memory | None) -> Iteration:
    return Iteration(point.x, point.value, 0.0, evaluations, status, memory)


def _stalled(point: Point, gradient_norm: float, memory: Memory | None) -> int:
    """Iterations in a row, up to this point, without clear progress since the mark."""
    if memory is None:
        return 0
    lower = memory.mark - point.value > point.resolution * abs(point.value)
    return 0 if lower or gradient_norm < memory.mark_norm else memory.stalled + 1


def _failed(status: SearchStatus) -> Status:
    return {
        SearchStatus.RESOLUTION: Status.RESOLUTION,
        SearchStatus.NO_DESCENT: Status.NO_DESCENT,
        SearchStatus.NOT_FINITE: Status.NOT_FINITE,
        SearchStatus.LIMIT: Status.LIMIT,
    }[status]
