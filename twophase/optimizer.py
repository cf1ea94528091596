"""The second phase as `torch.optim.Optimizer`s, for any model and training code."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from twophase.closure import Closure, ClosureObjective
from twophase.directions import (
    ConjugateDirection,
    DirectionRule,
    LBFGSDirection,
    SelfScaledBFGSDirection,
    State,
)
from twophase.errors import InputError
from twophase.line_search import LineSearch, ParabolaFirst, StrongWolfe
from twophase.objective import Point, check_repeats, evaluate, norm
from twophase.parameters import ParameterVector
from twophase.preconditioner import from_moments
from twophase.second_phase import DEFAULT, Descent, Iteration, Status, iterate


@dataclass(frozen=True)
class StepResult:
    """What a step did: how it ended, the loss after it, the gradient norm before it, and its cost.

    `step_size` multiplies the direction; `evaluations` counts the trials of the line search,
    `passes` all work of the step (forward 1, forward with backward 3).
    """

    status: Status
    message: str
    loss: float
    gradient_norm: float
    step_size: float
    evaluations: int
    passes: int


class SecondPhase(torch.optim.Optimizer):
    """The library's second phase, or any other `Descent`, over ALL parameters as one vector.

    x ← x + t · d with a direction d and t from a line search, each iteration a `step` (see
    `twophase.second_phase.iterate`); no learning rate. `step` takes a closure that computes and
    returns the loss of the full batch and does NOT call backward: a trial by its loss then costs a
    forward pass only. The iterates do not depend on the scale of the loss or on how the parameters
    are cut into tensors or groups. `result` is the last step's `StepResult`, None before the first.

    A line search by slopes has computed the gradient where it ends, and the next step starts from
    it: the closure must be the same function at every step. Where its data have changed, call
    `restart`. If the parameters were changed between two steps, or a group was added, the gradient
    is computed again and the next direction is the steepest descent.

    `state_dict` holds vectors of length P: the parameters, the previous gradient and direction, the
    gradient handed on, the preconditioner, and for BFGS two for each step that it remembers (up to
    256 MiB by default, see `twophase.directions.quasi_newton.capacity`). It resumes exactly under
    the same constructor arguments (without the preconditioner, which it holds).

    Args:
        params: parameters or parameter groups, float32 or float64, of one dtype on one device. A
            group is a set of parameters and takes no options: one direction serves all.
        second: direction and line search. Default: that of `fit`, self-scaled BFGS in a limited
            memory with a strong Wolfe search, which solved the most test functions.
        preconditioner: a `torch.optim.Adam` (or another with its second moments) that has trained
            the same parameters: the diagonal that its moments make at once scales all directions
            (see `twophase.preconditioner.from_moments`). None: no scaling.

    Raises:
        InputError: an argument is out of range; a closure returns no scalar or calls backward; the
            model has dropout or BatchNorm in training mode or, at the first step, does not repeat
            itself.
        NonFiniteError: the loss or its gradient is not finite at the start of a step. Whatever is
            raised in a step, the parameters are those before it.

    >>> model = torch.nn.Linear(2, 1)
    >>> inputs, targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0], [2.0]])
    >>> optimizer = SecondPhase(model.parameters())
    >>> for _ in range(10):
    ...     loss = optimizer.step(lambda: torch.nn.functional.mse_loss(model(inputs), targets))
    >>> loss.item() < 1e-4, optimizer.result.status
    (True, <Status.MOVED: 'moved'>)
    """

    def __init__(
        self,
        params: Iterable[Any],
        second: Descent = DEFAULT,
        preconditioner: torch.optim.Optimizer | None = None,
    ):
        if not isinstance(second, Descent):
            raise InputError("second", second, "a Descent")
        self.second = second
        self.result: StepResult | None = None
        super().__init__(params, defaults={})
        if preconditioner is not None:
            self._saved()["inverse"] = from_moments(preconditioner, self._parameters())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the one vector; the next direction is the steepest descent.

        Raises `InputError` where the group has options of its own, and torch's `ValueError` where a
        parameter is in a group already.
        """
        options = sorted(set(param_group) - {"params", "param_names"})
        if options:
            allowed = "groups without options: one direction serves all"
            raise InputError("params", ", ".join(options), allowed)
        super().add_param_group(param_group)
        self.state.clear()

    def restart(self) -> None:
        """Forget the last step: call it where the closure's loss has changed, with other data.

        The next step computes the gradient anew and goes along the steepest descent.
        """
        self._saved().update(state=None, point=None)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"second": self.second, "result": None}

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """One iteration; returns the loss AFTER it, a float64 scalar tensor.

        `closure()` returns the loss as a scalar tensor and does not call backward; the first step
        of an optimizer calls it once more, to check that it repeats itself. Errors: see the class.
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
        state = State(**saved["state"]) if saved.get("state") else None
        if state is not None and not torch.equal(state.x, x):
            state = None
        handed = saved["point"] if state else None
        point = Point(x, **handed) if handed else evaluate(objective, x)
        if self.result is None:
            check_repeats(objective, point)
        iteration = iterate(objective, point, state, self.second, saved.get("inverse"))
        saved["state"] = iteration.state._asdict() if iteration.state else None
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

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _saved(self) -> dict[str, Any]:
        """All state, kept with the first parameter as torch's own L-BFGS does."""
        return self.state[self._parameters()[0]]


def _without_x(point: Point | None) -> dict[str, Any] | None:
    """A point as it is kept beside the state, which has its x."""
    return None if point is None else {k: v for k, v in point._asdict().items() if k != "x"}


class ConjugateGradient(SecondPhase):
    """Nonlinear conjugate gradient, d = −g + β · d_previous; see `SecondPhase`.

    Args:
        params, preconditioner: see `SecondPhase`.
        beta, restart_every, powell: see `ConjugateDirection`; default β "PR+".
        line_search: default `ParabolaFirst()`, 4 passes for most steps and as good as an exact one;
            the paper's is `GoldenSection(rtol=1e-2)`, about 16 passes a step.
        tolerance_grad: see `Descent`.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = ConjugateGradient([weight], beta="FR")
    >>> optimizer.step(lambda: (weight - 3).square().sum()).item() < 1e-9
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        beta: str = "PR+",
        line_search: LineSearch = ParabolaFirst(),
        restart_every: int | None = None,
        powell: float | None = None,
        tolerance_grad: float = 0.0,
        preconditioner: torch.optim.Optimizer | None = None,
    ):
        direction = ConjugateDirection(beta, restart_every, powell)
        second = Descent(direction, line_search, tolerance_grad=tolerance_grad)
        super().__init__(params, second, preconditioner)


class _QuasiNewton(SecondPhase):
    rule: ClassVar[Callable[[int | None], DirectionRule]]

    def __init__(
        self,
        params: Iterable[Any],
        history_size: int | None = None,
        line_search: LineSearch = StrongWolfe(),
        tolerance_grad: float = 0.0,
        preconditioner: torch.optim.Optimizer | None = None,
    ):
        direction = type(self).rule(history_size)
        second = Descent(direction, line_search, tolerance_grad=tolerance_grad)
        super().__init__(params, second, preconditioner)


class SelfScaledBFGS(_QuasiNewton):
    """Self-scaled BFGS in a limited memory; see `SelfScaledBFGSDirection` and `SecondPhase`.

    Args:
        params, preconditioner: see `SecondPhase`.
        history_size: steps that are remembered; None: as many as fit into 256 MiB, 10 to 300.
        line_search: default `StrongWolfe(c1=1e-4, c2=0.9)`, 3 passes for most steps.
        tolerance_grad: see `Descent`.
    """

    rule = SelfScaledBFGSDirection


class LBFGS(_QuasiNewton):
    """L-BFGS, for comparison with torch's own; see `LBFGSDirection` and `SelfScaledBFGS`' args."""

    rule = LBFGSDirection
