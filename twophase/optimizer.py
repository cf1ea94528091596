"""The second phase as `torch.optim.Optimizer`s, for any model and training code."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT
from torch.utils._pytree import tree_map_only

from twophase.automatic import DEFAULT
from twophase.closure import Closure, ClosureObjective
from twophase.directions import ConjugateDirection, LBFGSDirection, SelfScaledBFGSDirection, State
from twophase.errors import InputError
from twophase.line_search import LineSearch, ParabolaFirst, StrongWolfe
from twophase.objective import Point, check_repeats, evaluate, norm
from twophase.parameters import ParameterVector
from twophase.preconditioner import from_moments
from twophase.second_phase import Descent, Iteration, Minimizer, Status, check_minimizer


@dataclass(frozen=True)
class StepResult:
    """How a step ended: the loss after it, the gradient norm before it, its cost as in `Record`."""

    status: Status
    message: str
    loss: float
    gradient_norm: float
    step_size: float
    evaluations: int
    passes: int


class SecondPhase(Optimizer):
    """The library's second phase, or any other `Descent`, over ALL parameters as one vector.

    x ← x + t · d with a direction d and t from a line search, each iteration a `step`; no learning
    rate. `step` takes a closure that computes and returns the loss of the full batch and does NOT
    call backward: a trial by its loss then costs a forward pass only. The iterates do not depend on
    the scale of the loss or on how the parameters (float32 or float64, of one dtype on one device)
    are cut into tensors or groups. `result` is the last step's `StepResult`, None before the first.

    A line search by slopes has computed the gradient where it ends, and the next step starts from
    it: the closure must be the same function at every step. Where its data have changed, call
    `restart`. If the parameters were changed between two steps, the gradient is computed again and
    the next direction is the steepest descent.

    A `preconditioner` is a `torch.optim.Adam` (or another with its second moments) that has trained
    the same parameters: its moments now make the diagonal (see `from_moments`) that scales all
    directions. None: no scaling.

    `state_dict` holds vectors of length P: the parameters, two gradients, the direction, the
    preconditioner, and for BFGS two for each step that it remembers (up to 256 MiB by default). It
    resumes exactly under the same constructor arguments but for the preconditioner.

    A step raises `InputError` where the closure returns no scalar or calls backward, or the model
    has dropout or BatchNorm in training mode or, at the first step, does not repeat itself, and
    `NonFiniteError` where loss or gradient is not finite. The parameters are then those before it.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> inputs, targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0], [2.0]])
    >>> optimizer = SecondPhase(model.parameters())
    >>> for _ in range(20):
    ...     loss = optimizer.step(lambda: torch.nn.functional.mse_loss(model(inputs), targets))
    >>> loss.item() < 1e-4
    True
    """

    def __init__(
        self, params: ParamsT, second: Minimizer = DEFAULT, preconditioner: Optimizer | None = None
    ):
        check_minimizer(second)
        self.second = second
        self.result: StepResult | None = None
        super().__init__(params, defaults={})
        if preconditioner is not None:
            self._saved()["inverse"] = from_moments(preconditioner, self._parameters())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, without options of their own; the next step is a steepest descent."""
        options = sorted(set(param_group) - {"params", "param_names"})
        if options:
            allowed = "groups without options: one direction serves all"
            raise InputError("params", ", ".join(options), allowed)
        super().add_param_group(param_group)
        self.state.clear()

    def restart(self) -> None:
        """Forget the last step, for a closure with other data; the next is a steepest descent."""
        self._saved().update(state=None, point=None)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"second": self.second, "result": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        super().load_state_dict(state_dict)
        # torch has made all of it the parameters' dtype, also what is float64 for good reason
        first = self._parameters()[0]
        there = partial(torch.Tensor.to, device=first.device, copy=True)
        for saved in state_dict["state"].values():
            self.state[first] = tree_map_only(Tensor, there, saved)

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """One iteration; returns the loss AFTER it, a float64 scalar tensor.

        The first step of an optimizer calls the closure once more, to check that it repeats itself.
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
        point = Point(x, *handed) if handed else evaluate(objective, x)
        if self.result is None:
            check_repeats(objective, point)
        done = self.second.iterate(objective, point, state, saved.get("inverse"))
        saved["state"] = done.state._asdict() if done.state else None
        saved["point"] = done.point and done.point[1:]  # the state has its x
        saved["iterations"] = saved.get("iterations", 0) + 1
        before, passes = norm(point.gradient), objective.passes.total
        self.result = StepResult(
            done.status, done.message, done.value, before, done.step, done.evaluations, passes
        )
        return done

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _saved(self) -> dict[str, Any]:
        """All state, kept with the first parameter as torch's own L-BFGS does."""
        return self.state[self._parameters()[0]]


class ConjugateGradient(SecondPhase):
    """Nonlinear conjugate gradient; see `ConjugateDirection`, `Descent` and `SecondPhase`.

    Most steps take 4 passes, and are as good as exact ones; `GoldenSection()` takes about 16.
    """

    def __init__(
        self,
        params: ParamsT,
        beta: str = "PR+",
        line_search: LineSearch = ParabolaFirst(),
        restart_every: int | None = None,
        powell: float | None = None,
        tolerance_grad: float = 0.0,
        preconditioner: Optimizer | None = None,
    ):
        direction = ConjugateDirection(beta, restart_every, powell)
        second = Descent(direction, line_search, tolerance_grad=tolerance_grad)
        super().__init__(params, second, preconditioner)


class LBFGS(SecondPhase):
    """L-BFGS, to compare with torch's own; see `LBFGSDirection`, `Descent` and `SecondPhase`."""

    rule: ClassVar[type[LBFGSDirection]] = LBFGSDirection

    def __init__(
        self,
        params: ParamsT,
        history_size: int | None = None,
        line_search: LineSearch = StrongWolfe(),
        tolerance_grad: float = 0.0,
        preconditioner: Optimizer | None = None,
    ):
        second = Descent(self.rule(history_size), line_search, tolerance_grad=tolerance_grad)
        super().__init__(params, second, preconditioner)


class SelfScaledBFGS(LBFGS):
    """Self-scaled BFGS in a limited memory, as `LBFGS`; see `SelfScaledBFGSDirection`."""

    rule = SelfScaledBFGSDirection
