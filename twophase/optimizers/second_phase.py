"""The second phase as `torch.optim.Optimizer`s, for any model and training code."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT
from torch.utils._pytree import tree_map_only

from twophase.automatic import DEFAULT
from twophase.directions import ConjugateDirection, LBFGSDirection, SelfScaledBFGSDirection, State
from twophase.distributed import Processes, processes
from twophase.errors import InputError, check_choice, check_integer, check_number, loading
from twophase.line_search import LineSearch, ParabolaFirst, StrongWolfe
from twophase.objective import Point, agree, check_repeats, evaluate
from twophase.objectives.closure import (
    UNKNOWN,
    Closure,
    ClosureObjective,
    Habits,
    check_closure,
    check_slope,
    none,
)
from twophase.parameters import ParameterVector, check_held, given, unharmed
from twophase.preconditioner import from_moments
from twophase.second_phase import (
    Descent,
    Iteration,
    Minimizer,
    Status,
    check_minimizer,
    read_inverse,
    read_state,
)

# What is saved, with the first parameter.
KNOWN = ("state", "point", "inverse", "habits", "loss", "iterations")


@dataclass(frozen=True)
class StepResult:
    """How a step ended: the loss after it, the gradient norm before it, its cost as in `Record`.

    `restarted` says that the loss was another one than at the end of the step before.
    """

    status: Status
    message: str
    loss: float
    gradient_norm: float
    step_size: float
    evaluations: int
    passes: int
    restarted: bool = False


class _Group(dict[str, Any]):
    """A group of parameters, which has no learning rate, and says so to a scheduler."""

    def __missing__(self, option: str) -> Any:
        if option != "lr":
            raise KeyError(option)
        raise InputError("optimizer", "one without a learning rate", "no scheduler of it")


class SecondPhase(Optimizer):
    """The library's second phase, or any other `Descent`, over ALL parameters as one vector.

    x ← x + t · d with a direction d and t from a line search; no learning rate. `step` takes a
    closure that returns the loss of the full batch. One that does not call backward is cheaper: a
    trial by its loss then costs a forward pass only. One that calls `zero_grad` and `backward`, the
    convention of torch's L-BFGS, is known by the gradients that it leaves. The iterates do not
    depend on the scale of the loss (from 1e-60 to 1e60), or on how the parameters (float32 or
    float64, of one dtype on one device) are cut into tensors or groups. `result` is the last step's
    `StepResult`, None before the first.

    A step is `max_iter` iterations, by default 1. It begins by looking at the loss where the last
    one ended, a forward pass (with a closure that calls backward also a backward pass): where the
    loss is another one by now, since points were resampled or there is another batch, or where the
    parameters were changed, the gradient is computed again and the next direction is the steepest
    descent. Where the loss stays the same, more iterations a step save this look. Afterwards the
    parameters' `grad` are the last gradient that was needed, mostly the one where the step ended.

    A `preconditioner` is a `torch.optim.Adam` (or another with its second moments) that has trained
    the same parameters: its moments now make the diagonal (see `from_moments`) that scales all
    directions. None: no scaling.

    `state_dict` holds vectors of length P: the parameters, two gradients, the direction, the
    preconditioner, and for BFGS two for each step that it remembers (up to 48 MiB by default). It
    resumes exactly under the same constructor arguments but for the preconditioner.

    A step raises `InputError` where the closure is wrong (see `ClosureObjective`), or the model has
    dropout or BatchNorm in training mode, or, at the first step, the loss does not repeat itself or
    has another gradient; and `NonFiniteError` where loss or gradient is not finite. The parameters
    and gradients are then those before it.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> inputs, targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0], [2.0]])
    >>> optimizer = SecondPhase(model.parameters())
    >>> for _ in range(20):
    ...     loss = optimizer.step(lambda: torch.nn.functional.mse_loss(model(inputs), targets))
    >>> loss.item() < 1e-4
    True
    """

    def __init__(
        self,
        params: ParamsT,
        second: Minimizer = DEFAULT,
        preconditioner: Optimizer | None = None,
        max_iter: int = 1,
    ):
        check_minimizer(second)
        self.second, self.max_iter = second, check_integer("max_iter", max_iter, 1)
        self.result: StepResult | None = None
        self._here: Processes | None = None  # those that share its steps, from the first one on
        with given(params) as groups:
            super().__init__(groups, defaults={})
            check_held(self._parameters())
        if preconditioner is not None:
            self._saved()["inverse"] = from_moments(preconditioner, self._parameters())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, without options of their own; the next step is a steepest descent."""
        options = sorted(set(param_group) - {"params", "param_names"})
        if options:
            allowed = "groups without options: one direction serves all"
            raise InputError("params", ", ".join(options), allowed)
        super().add_param_group(_Group(param_group))
        self.state.clear()

    def restart(self) -> None:
        """Forget the last step; the next is a steepest descent."""
        self._saved().update(state=None, point=None)

    def __getstate__(self) -> dict[str, Any]:
        own = {"second": self.second, "max_iter": self.max_iter, "result": None, "_here": None}
        return super().__getstate__() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        `InputError` for a damaged state, or one of something else or other parameters; all is then
        as it was.
        """
        before = self.state, self.param_groups
        try:
            with loading():
                super().load_state_dict(state_dict)
                self.param_groups = [_Group(group) for group in self.param_groups]
                # torch has made all of it the parameters' dtype, also what is float64 for good
                # reason
                self.state = defaultdict(dict)
                for number, saved in state_dict["state"].items():
                    self.state[self._parameters()[number]] = self._read(saved)
                if set(self.state) - {self._parameters()[0]}:
                    raise InputError("state", "one for each parameter", "a SecondPhase's")
        except InputError:
            self.state, self.param_groups = before
            raise

    def _read(self, saved: dict[str, Any]) -> dict[str, Any]:
        """What was saved, checked and on the parameters' device."""
        vector = ParameterVector(self._parameters())
        there: dict[str, Any] = tree_map_only(
            Tensor, partial(Tensor.to, device=vector.parameters[0].device, copy=True), saved
        )
        for name in there:
            check_choice("state", name, KNOWN)
        inverse = read_inverse(there.get("inverse"), vector)
        chosen = self.second.prepare(ClosureObjective(vector, none), len(vector.read())).minimizer
        read_state(there.get("state"), chosen, vector, inverse)
        if there.get("point"):
            value, gradient, resolution = there["point"]
            there["point"] = check_number("loss", value), vector.taken(gradient), float(resolution)
        if there.get("state"):
            check_number("loss", there["loss"])
        Habits(*there.get("habits", UNKNOWN))
        check_integer("iterations", there.get("iterations", 0), 0)
        return there

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """`max_iter` iterations, or fewer; returns the loss AFTER them, a float64 scalar tensor.

        The first step of an optimizer calls the closure a few times more, to check that it repeats
        itself and, where it calls backward, that the gradient is that of its loss.
        """
        closure = check_closure(closure)
        habits = Habits(*self._saved().get("habits", UNKNOWN))
        vector = ParameterVector(self._parameters())
        if self._here is None:
            self._here = processes()
            self._here.check_alike(vector.shapes, [self.second, f"max_iter={self.max_iter}"])
        objective = ClosureObjective(vector, closure, habits, self._here)
        with unharmed(objective.vector) as x:
            done = self._iterations(objective, x)
        objective.vector.write(done.x)
        return torch.tensor(done.value, dtype=torch.float64)

    def _iterations(self, objective: ClosureObjective, x: Tensor) -> Iteration:
        saved = self._saved()
        inverse = saved.get("inverse")
        if inverse is not None and len(inverse) != len(x):
            found = f"{len(x)} numbers that require a gradient"
            raise InputError("params", found, f"the {len(inverse)} of the preconditioner")
        state, point, restarted = self._look(objective, x)
        if self.result is None or restarted:
            check_repeats(objective, point)
        if self.result is None:
            if objective.habits.calls_backward:
                check_slope(objective, point)
        before, evaluations = point.gradient_norm, 0
        for count in range(1, self.max_iter + 1):
            done = self.second.iterate(objective, point, state, inverse)
            state, evaluations = done.state, evaluations + done.evaluations
            if done.status is not Status.MOVED or count == self.max_iter:
                break
            point = done.point or evaluate(objective, done.x)
        saved["state"] = state._asdict() if state else None
        there = done.point
        saved["point"] = there and (there.value, there.gradient, there.resolution)
        saved["habits"] = tuple(objective.habits)
        saved["loss"], saved["iterations"] = done.value, saved.get("iterations", 0) + count
        objective.vector.write_gradient((done.point or point).gradient)
        cost = done.step, evaluations, objective.passes.total, restarted
        self.result = StepResult(done.status, done.message, done.value, before, *cost)
        return done

    def _look(self, objective: ClosureObjective, x: Tensor) -> tuple[State | None, Point, bool]:
        """What the last step left, the point at x [P], and whether the loss is another one now."""
        saved = self._saved()
        state = State(**saved["state"]) if saved.get("state") else None
        if state is None or not torch.equal(state.x, x):
            return None, evaluate(objective, x), False
        handed = saved["point"]
        if handed and agree(saved["loss"], objective.value(x), objective.resolution):
            return state, Point(x, *handed), False
        point = evaluate(objective, x)
        same = not handed and agree(saved["loss"], point.value, objective.resolution)
        return state if same else None, point, not same

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
        max_iter: int = 1,
    ):
        direction = ConjugateDirection(beta, restart_every, powell)
        second = Descent(direction, line_search, tolerance_grad=tolerance_grad)
        super().__init__(params, second, preconditioner, max_iter)


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
        max_iter: int = 1,
    ):
        second = Descent(self.rule(history_size), line_search, tolerance_grad=tolerance_grad)
        super().__init__(params, second, preconditioner, max_iter)


class SelfScaledBFGS(LBFGS):
    """Self-scaled BFGS in a limited memory, as `LBFGS`; see `SelfScaledBFGSDirection`."""

    rule = SelfScaledBFGSDirection
