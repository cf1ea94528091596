"""The second phase alone: minimise an objective from where it is, within a budget."""

import math
import operator
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from twophase.automatic import DEFAULT
from twophase.distributed import check_shared, processes
from twophase.errors import InputError, check_call, check_number, check_type
from twophase.objective import Objective, Point, evaluate, start
from twophase.parameters import ParameterVector
from twophase.rehearsal import rehearse
from twophase.second_phase import MESSAGES, Minimizer, Status, check_minimizer


class Minimum(NamedTuple):
    """Where a minimisation is or has ended: x [P] with its loss, the cost so far, and why.

    `gradient_norm` is that at x, `passes` are sweeps over the data as in `Passes`, `message` says
    the status in a sentence, `second` is the phase that was used and `reason` why it was chosen.
    """

    x: Tensor
    loss: float
    gradient_norm: float
    iterations: int
    passes: int
    seconds: float
    status: Status
    message: str
    second: Minimizer
    reason: str = ""


def minimize(
    problem: Objective,
    x: Tensor | None = None,
    *,
    iterations: int | None = None,
    passes: int | None = None,
    seconds: float | None = None,
    second: Minimizer = DEFAULT,
    callback: Callable[[Minimum], object] | None = None,
) -> Minimum:
    """Minimise by the second phase alone, from the model's present weights, or from x [P].

    It ends where the phase can do no more, or with the status `budget` after the iteration that has
    spent `iterations`, `passes` or `seconds`, whichever is first (None: no bound). The model is
    left at the lowest loss found, also where an exception ends it, such as Ctrl-C or one of the
    `callback`, which is called with the result so far after each iteration and at the end.

    The default of `second`, `Automatic()`, chooses by structure and size. Raises `InputError` for a
    budget out of range or an objective that does not repeat itself, and `NonFiniteError` where the
    loss or its gradient is not finite.

    >>> import torch
    >>> from twophase import LeastSquares, Term
    >>> line = torch.nn.Linear(1, 1).double()
    >>> x = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    >>> data = Term(lambda model, points: model(points) - 2 * points - 1, x)
    >>> minimize(LeastSquares(line, [data]), passes=100).loss < 1e-20
    True
    """
    budget = {"iterations": iterations, "passes": passes, "seconds": seconds}
    limits = [math.inf if b is None else check_number(n, b, above=0) for n, b in budget.items()]
    check_minimizer(second)
    _check_problem(problem)
    if callback is not None:
        check_call("callback", callback, "a function: (result)")
    vector = getattr(problem, "vector", None)
    x = _where(x, vector)
    rehearse(problem, second=True, eval_mode=False)
    if hasattr(problem, "processes"):
        problem.processes = processes()
    check_shared(problem, [second, str(budget)], problem=problem)
    chosen, problem, reason = second.prepare(problem, len(x))
    began, before = time.perf_counter(), problem.passes.total
    try:
        for count, status, best in _descent(problem, start(problem, x), chosen):
            cost = count, problem.passes.total - before, _passed(began, seconds is not None)
            x, size = best.x, best.gradient_norm
            if status is Status.MOVED and any(map(operator.ge, cost, limits)):
                done = size <= chosen.tolerance_grad
                status = Status.CONVERGED if done else Status.BUDGET
            found = Minimum(x, best.value, size, *cost, status, MESSAGES[status], chosen, reason)
            if callback is not None and count:
                callback(found)
            if status is not Status.MOVED:
                break
    finally:
        if vector is not None:
            vector.write(x)
    return found


def _check_problem(problem: Any) -> None:
    if not hasattr(problem, "value_and_gradient"):
        allowed = "an objective, such as LeastSquares(...) or FullBatch(...); `fit` takes closures"
        raise InputError("problem", type(problem).__name__, allowed)


def _passed(began: float, decides: bool) -> float:
    """Seconds since then; where they decide, those of the first process for all."""
    passed = time.perf_counter() - began
    return processes().agreed(partial(float, passed)) if decides else passed


def _where(x: Tensor | None, vector: ParameterVector | None) -> Tensor:
    """Where to start: at x [P] if it is given, else at the model's present weights."""
    if x is not None:
        check_type("x", x, Tensor, ", a vector [P]")
        return x if vector is None else vector.taken(x, "x")
    if vector is None:
        raise InputError("x", None, "a vector to start from: the problem has no model")
    return vector.read()


def _descent(
    problem: Objective, point: Point, second: Minimizer
) -> Iterator[tuple[int, Status, Point]]:
    """Iterations made, the status and the best point; the first is the start."""
    best, state, count, status = point, None, 0, Status.MOVED
    while True:
        yield count, status, best
        done = second.iterate(problem, point, state)
        status = done.status
        if status is Status.MOVED:
            state = done.state  # the one before need not be kept while a gradient is made
            point = done.point or evaluate(problem, done.x)
            count += 1
            # what the loss does not resolve is decided by the gradient, which the phase follows
            if point.value - best.value <= point.resolution * abs(best.value):
                best = point
