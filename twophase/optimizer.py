"""Conjugate gradient as a `torch.optim.Optimizer`, for any model and training code."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from twophase.cg import CGSettings, Iteration, Memory, Status, iterate
from twophase.errors import InputError
from twophase.line_search.golden_section import resolve
from twophase.line_search.line import LineSearch
from twophase.objective import (
    Closure,
    ClosureObjective,
    ParameterVector,
    Point,
    check_repeats,
    evaluate,
    norm,
)
from twophase.preconditioner import from_moments


@dataclass(frozen=True)
class StepResult:
    """What a step did: status and message, the loss after it, the gradient norm before it.

    `step_size` multiplies the direction; `evaluations` counts the forward passes of the line
    search, `passes` all work of the step (forward 1, forward with backward 3).

    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = ConjugateGradient([weight])
    >>> loss = optimizer.step(lambda: (weight - 3).square().sum())
    >>> optimizer.result.status, optimizer.result.gradient_norm
    (<Status.MOVED: 'moved'>, 6.0)
    """

    status: Status
    message: str
    loss: float
    gradient_norm: float
    step_size: float
    evaluations: int
    passes: int


class ConjugateGradient(torch.optim.Optimizer):
    """Nonlinear conjugate gradient, or BFGS by default, with a line search; no learning rate.

    d = −g + β · d_previous, or without a β d = −H g (see `twophase.directions`), over ALL
    parameters of all groups as one vector, then x ← x + t · d with t from the line search (see
    `twophase.cg.iterate`; the paper's section 4). `step` takes a
    closure that computes and returns the loss of the full batch and does NOT call backward: a
    trial by its loss then costs a forward pass only. The iterates do not depend on the scale of the
    loss or on how the parameters are cut into tensors or groups.

    A line search by slopes has computed the gradient where it ends, and the next step starts from
    it: the closure must be the same function at every step. Where its data have changed, call
    `restart`. If the parameters were changed between two steps, or a group was added, the gradient
    is computed again and the next direction is the steepest descent.

    `state_dict` holds vectors of length P: the parameters, the previous gradient and direction, the
    gradient handed on, the preconditioner, and for BFGS two for each step that it remembers (up to
    256 MiB by default, see `twophase.directions.capacity`). It resumes exactly under
    the same constructor arguments (without the preconditioner, which it holds).

    Args:
        params: parameters or parameter groups, float32 or float64, of one dtype on one device. A
            group is a set of parameters and takes no options: one direction serves all.
        beta, restart_every, zero_gradient_norm, direction, history, powell: see `CGSettings`.
        line_search: a name in `LINE_SEARCHES` or a `LineSearch`. Default
            `CGSettings`' for the direction. The paper's is "golden": golden section to a relative
            tolerance of 1e-2; "golden-tight": to 1e-8.
        tolerance: replaces a golden section's relative tolerance, in (0, 1).
        preconditioner: a `torch.optim.Adam` (or another with its second moments) that has trained
            the same parameters: the diagonal that its moments make at the first step scales all
            directions (see `twophase.preconditioner`). None: no scaling.

    Attributes:
        result: the last step's `StepResult`; None before the first.

    Raises:
        InputError: an argument is out of range; a closure returns no scalar or calls backward; the
            model has dropout or BatchNorm in training mode or, at the first step, does not repeat
            itself.
        NonFiniteError: the loss or its gradient is not finite at the start of a step. Whatever is
            raised in a step, the parameters are those before it.

    >>> model = torch.nn.Linear(2, 1)
    >>> inputs, targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0], [2.0]])
    >>> optimizer = ConjugateGradient(model.parameters())
    >>> for _ in range(10):
    ...     loss = optimizer.step(lambda: torch.nn.functional.mse_loss(model(inputs), targets))
    >>> loss.item() < 1e-4
    True
    """

    def __init__(
        self,
        params: Iterable,
        beta: str | None = None,
        line_search: str | LineSearch | None = None,
        tolerance: float | None = None,
        restart_every: int | None = None,
        zero_gradient_norm: float = 0.0,
        direction: str | None = None,
        history: int | None = None,
        powell: float | None = None,
        preconditioner: torch.optim.Optimizer | None = None,
    ):
        search = None
        if line_search is not None or tolerance is not None:
            search = resolve("golden" if line_search is None else line_search, tolerance)
        self.settings = CGSettings(
            beta, search, restart_every, zero_gradient_norm, direction, history, powell
        )
        self.result: StepResult | None = None
        super().__init__(params, defaults={})
        if preconditioner is not None:
            self._saved()["inverse"] = from_moments(preconditioner, self._parameters())

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters to the one vector; the next direction is the steepest descent.

        Raises:
            InputError: the group has options of its own.
            ValueError: from torch, a parameter is in a group already.

        >>> first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        >>> optimizer = ConjugateGradient([first])
        >>> optimizer.add_param_group({"params": [second]})
        >>> len(optimizer.param_groups)
        2
        """
        options = sorted(set(param_group) - {"params", "param_names"})
        if options:
            raise InputError(
                "params", ", ".join(options), "groups without options: one direction serves all"
            )
        super().add_param_group(param_group)
        self.state.clear()

    def restart(self) -> None:
        """Forget the last step: call it where the closure's loss has changed, with other data.

        The next step computes the gradient anew and goes along the steepest descent.

        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = ConjugateGradient([weight])
        >>> for target in (3.0, 5.0):
        ...     loss = optimizer.step(lambda: (weight - target).square().sum())  # noqa: B023
        ...     optimizer.restart()
        >>> loss.item() < 0.1
        True
        """
        self._saved().update(memory=None, point=None)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"settings": self.settings, "result": None}

    def step(self, closure: Closure | None = None) -> Tensor:
        """One CG iteration; returns the loss AFTER it, a float64 scalar tensor.

        `closure()` returns the loss as a scalar tensor and does not call backward; the first step
        of an optimizer calls it once more, to check that it repeats itself. Whatever is raised, the
        parameters are those before the step.

        Raises:
            InputError: `closure` is no function, calls backward, or returns no real scalar with a
                graph; the parameters are not of one dtype, float32 or float64, on one device; the
                model has dropout or BatchNorm in training mode; in the first step, two calls give
                two losses.
            NonFiniteError: the loss or its gradient is not finite at the start of the step.

        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = ConjugateGradient([weight])
        >>> loss = optimizer.step(lambda: (weight - 3).square().sum())
        >>> loss.item() < 0.01, loss.item() == optimizer.result.loss
        (True, True)
        """
        if not callable(closure):
            raise InputError("closure", closure, "a function that returns the loss")
        vector = ParameterVector(self._parameters())
        x = vector.read()
        objective = ClosureObjective(vector, closure)
        try:
            iteration = self._iterate(objective, x)
        except BaseException:
            vector.write(x)
            raise
        vector.write(iteration.x)
        return torch.tensor(iteration.value, dtype=torch.float64)

    def _iterate(self, objective: ClosureObjective, x: Tensor) -> Iteration:
        saved = self._saved()
        memory = Memory(**saved["memory"]) if saved.get("memory") else None
        if memory is not None and not torch.equal(memory.x, x):
            memory = None
        point = self._point(objective, x, saved["point"] if memory else None)
        iteration = iterate(objective, point, memory, self.settings, saved.get("inverse"))
        saved["memory"] = iteration.memory._asdict() if iteration.memory else None
        saved["point"] = _without_x(iteration.point)
        saved["iterations"] = saved.get("iterations", 0) + 1
        self.result = StepResult(
            iteration.status,
            iteration.message,
            iteration.value,
            norm(point.gradient),
            iteration.step,
            iteration.evaluations,
            objective.passes.total,
        )
        return iteration

    def _point(self, objective: ClosureObjective, x: Tensor, handed: dict | None) -> Point:
        """The point at x: what the last step's search handed on, or an evaluation."""
        point = Point(x, **handed) if handed else evaluate(objective, x)
        if self.result is None:
            check_repeats(objective, point)
        return point

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _saved(self) -> dict:
        """All state, kept with the first parameter as torch's own L-BFGS does."""
        return self.state[self._parameters()[0]]


def _without_x(point: Point | None) -> dict | None:
    """A point as it is kept beside the memory, which has its x."""
    return None if point is None else {k: v for k, v in point._asdict().items() if k != "x"}
