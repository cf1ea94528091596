"""All of the method in one torch optimizer, for a training loop of one's own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from twophase.automatic import DEFAULT
from twophase.distributed import processes
from twophase.errors import InputError, check_integer, check_number, check_type, loading
from twophase.loop import WHY_IT_MOVES, Loop
from twophase.monitor import Exact, Monitor
from twophase.objectives.closure import (
    Closure,
    ClosureObjective,
    Habits,
    check_closure,
    check_slope,
    none,
)
from twophase.optimizers.second_phase import SecondPhase
from twophase.parameters import ParameterVector, check_held, given, unharmed
from twophase.payoff import payoffs
from twophase.phases import DescentPhase, UsersPhase
from twophase.record import ADAM, SECOND, Record, table
from twophase.second_phase import Minimizer, check_minimizer
from twophase.switching import Fallback, Race, SwitchRule

if TYPE_CHECKING:
    import pandas as pd

# Of a state; one more when its content changes.
VERSION = 1
# Optimizers that evaluate closures at several points, or take no dense gradients.
OTHERS = (torch.optim.LBFGS, SecondPhase, torch.optim.SparseAdam)


class TwoPhase(Optimizer):
    """Adam, the switch, the second phase and the way back as one optimizer; see `fit`.

    Full batch: `step(closure)` is all. The closure returns the loss over all data, with or without
    calling backward (see `ClosureObjective`), and each step is an epoch of the `history`: a step of
    Adam, for one evaluation as with `torch.optim.Adam`, or an iteration of the second phase. Where
    Adam's step has led is known at the next step, which starts from there: `history` is one step
    late under Adam. In the second phase a step begins by looking at the loss again, a forward pass,
    or an evaluation where the closure calls backward: where it is another one by now, since points
    were resampled, the phase starts anew from there.

    Mini-batches: with `batches` of them in an epoch, `step(closure)` takes the loss of a batch, and
    `end_epoch(full_closure)` the loss over all data after each epoch. In the second phase a step
    has nothing to do and does not call its closure; `end_epoch` makes an iteration. `phase` tells a
    loop what comes next, so that it can leave the batches out:

        for epoch in range(epochs):
            if optimizer.phase == "adam":
                for inputs, targets in loader:
                    optimizer.step(lambda: loss(model(inputs), targets))
            optimizer.end_epoch(full_closure)

    Args:
        params: float32 or float64 tensors of one dtype on one device, or groups of them.
        lr: learning rate of Adam; 1e-3 as in torch, since the paper prints none.
        batches: mini-batches in an epoch; 1: full batches.
        first: what to use instead of Adam, any torch optimizer of the same parameters that steps
            along gradients. Learning-rate schedulers of this optimizer act on it.
        second, switch, fallback, monitor: see `Trainer`; `FromBatches` takes all batches
            as equally large, since a closure does not tell. With full batches an epoch is a step.
            It is not known how long the training will be: a `Race` plans for 900 passes, 300 epochs
            of Adam, unless it is another one, as `Race(length=3 * epochs)`.

    `InputError` for a value out of range, a `first` of other parameters, or a wrong closure, and
    `NonFiniteError` where loss or gradient is not finite; a step that an exception ends leaves
    parameters and gradients as they were before it.

    >>> model = torch.nn.Linear(1, 1).double()
    >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    >>> optimizer = TwoPhase(model.parameters())
    >>> for _ in range(100):
    ...     loss = optimizer.step(lambda: (model(x) - 3 * x).square().mean())
    >>> loss.item() < 1e-12, optimizer.phase
    (True, 'second')
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        batches: int = 1,
        *,
        first: Optimizer | None = None,
        second: Minimizer = DEFAULT,
        switch: SwitchRule | Race | int = Race(),
        fallback: Fallback | None = Fallback(),
        monitor: Monitor = Exact(),
    ):
        check_number("lr", lr, above=0)
        check_integer("batches", batches, 1)
        check_minimizer(second)
        check_type("monitor", monitor, Monitor)
        with given(params) as groups:
            super().__init__(groups, {"lr": lr})
            check_held(_parameters(self.param_groups))
        self.first = torch.optim.Adam(groups, lr) if first is None else first
        vector = ParameterVector(self._parameters_of_first())
        self._share()
        self.objective = ClosureObjective(vector, none)
        self.steps = UsersPhase(self.objective, self.first, batches, monitor)
        phases = {ADAM: self.steps, SECOND: DescentPhase(self.objective, second, self.steps)}
        self.loop = Loop(self.objective, phases, switch, fallback, monitor)
        self._given: tuple[Any, ...] = second, switch, fallback, monitor  # until the first step
        self.looks = 0  # passes to see whether the loss is the same, and its gradient its own
        self._checked = False

    def _parameters_of_first(self) -> list[Tensor]:
        """The parameters in the order of the first phase, which has all of them and no others."""
        if not isinstance(self.first, Optimizer) or isinstance(self.first, (TwoPhase, *OTHERS)):
            allowed = "a torch optimizer that steps along gradients, such as AdamW"
            raise InputError("first", type(self.first).__name__, allowed)
        own, its = _parameters(self.param_groups), _parameters(self.first.param_groups)
        if set(own) != set(its):
            found = f"an optimizer of {len(its)} tensors"
            raise InputError("first", found, f"one of the same {len(own)} tensors as params")
        return its

    def _share(self) -> None:
        """Groups and moments are those of the first phase, so that schedulers act on it."""
        self.param_groups, self.state = self.first.param_groups, self.first.state
        self.defaults = self.first.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Parameters are given at the start, all of them."""
        if hasattr(self, "loop"):
            raise InputError("params", "one group more", "all parameters at the start")
        super().add_param_group(param_group)

    @property
    def batches(self) -> int:
        """Mini-batches in an epoch; may be changed before the first step."""
        return self.steps.batches

    @batches.setter
    def batches(self, batches: int) -> None:
        check_integer("batches", batches, 1)
        if self.loop.history or self.loop.open or self.steps.steps:
            raise InputError("batches", batches, f"{self.batches}, as before: there were steps")
        self.steps.set_batches(batches)

    @property
    def phase(self) -> str:
        """What comes next: "adam", "second", or "trial", a second phase that is yet to win."""
        return self.loop.label

    @property
    def ended(self) -> bool:
        """Whether the second phase can do no more; a changed loss or weights make it go on."""
        return self.loop.ended

    @property
    def spent(self) -> int:
        """Passes so far, those that look at the loss again included, as after a resume."""
        return self.loop.spent + self.looks

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """A step of the phase; returns a loss, a float64 scalar tensor.

        Under Adam that is the loss before the step, as torch's optimizers return it, in the second
        phase the loss after it. With mini-batches the second phase returns the loss after the last
        epoch, and does not call the closure.
        """
        closure = check_closure(closure)
        self._check_parameters()
        if self.batches == 1:
            return self._value(self._full_step, closure)
        if self.phase != ADAM:
            return torch.tensor(self.loop.history[-1].train_loss, dtype=torch.float64)
        if self.steps.steps == self.batches:
            found = f"step {self.batches + 1} of an epoch"
            raise InputError("batches", found, f"end_epoch(closure) after {self.batches} steps")
        self.loop.begin()
        return self.steps.step(closure)

    def end_epoch(self, closure: Closure) -> Record:
        """After an epoch of mini-batches: see the loss over all data, and what comes next.

        In the second phase it makes an iteration first. Returns the epoch's record.
        """
        if self.batches == 1:
            allowed = "the number of mini-batches in an epoch: with full batches each step is one"
            raise InputError("batches", 1, allowed)
        if self.phase == ADAM and self.steps.steps == 0:
            raise InputError("end_epoch", "an epoch without a step", "step(closure) for each batch")
        closure = check_closure(closure)
        self._check_parameters()
        self._value(self._epoch, closure)
        return self.loop.history[-1]

    def finish(self, closure: Closure) -> Record:
        """Give the parameters the weights that are to be kept, as `fit` does; returns their record.

        These are the last, or, where Adam took over again and ended higher, the second phase's.
        """
        if self.batches > 1 and self.steps.steps:
            found = f"after {self.steps.steps} steps of an epoch"
            raise InputError("finish", found, "end_epoch(closure) before")
        if self.loop.open:
            self._value(self._see_step, check_closure(closure))
        return self.loop.finish()

    def _check_parameters(self) -> None:
        """None may be frozen or unfrozen on the way; processes are those of the first step."""
        now = [p for p in _parameters(self.param_groups) if p.requires_grad]
        then = self.objective.vector.parameters
        if len(now) != len(then) or any(p is not q for p, q in zip(now, then, strict=True)):
            found = f"{len(now)} tensors that require a gradient"
            raise InputError("params", found, f"the {len(then)} as at the start, or a new TwoPhase")
        if self._given:
            self.objective.processes, given = processes(), [f"batches={self.batches}", *self._given]
            self.objective.processes.check_alike(self.objective.vector.shapes, given)
            self._given = ()

    def _value(self, work: Callable[[], None], closure: Closure) -> Tensor:
        """Do some work that evaluates a closure; the loss at the point that is known then."""
        self.objective.closure = closure
        try:
            with unharmed(self.objective.vector):
                work()
                point = self.loop.watch.point
        finally:
            # nothing of the user's is kept
            self.objective.closure = none
        if point is None:
            return torch.tensor(self.loop.history[-1].train_loss, dtype=torch.float64)
        self.objective.write_gradient(point.gradient)
        return torch.tensor(point.value, dtype=torch.float64)

    def _full_step(self) -> None:
        loop = self.loop
        if not self._checked:
            loop.look(" before epoch 1")
            self._check()
        elif loop.open:
            self._see_step()
        self._look_again()
        if loop.ended:
            return
        if loop.phase is self.steps:
            loop.start_epoch()
        else:
            loop.epoch()

    def _see_step(self) -> None:
        """Where Adam's last step has led; the parameters may have been changed since."""
        self.loop.end_epoch(self.objective.vector.read())

    def _epoch(self) -> None:
        self._look_again()
        if self.loop.ended:
            return
        if not self._checked:
            self.loop.look(" before its end")
            self._check()
        self.loop.epoch()

    def _look_again(self) -> None:
        if self.phase != ADAM:
            before = self.objective.passes.total
            self.loop.look_again()
            self.looks += self.objective.passes.total - before

    def _check(self) -> None:
        """Whether a closure that calls backward leaves the gradient of its loss."""
        point, before = self.loop.watch.point, self.objective.passes.total
        if self.objective.habits.calls_backward and point is not None:
            check_slope(self.objective, point)
            self.objective.vector.write(point.x)
        self.looks += self.objective.passes.total - before
        self._checked = True

    @property
    def records(self) -> tuple[Record, ...]:
        """A record for each epoch of which is known where it has led."""
        return tuple(self.loop.history)

    @property
    def history(self) -> "pd.DataFrame":
        """The records as a table, a row per epoch and a column per field of `Record`."""
        return table(self.loop.history)

    def report(self) -> str:
        """What has happened, in words: the changes of phase, their reasons, and what it cost."""
        loop = self.loop
        coming = f"ended: {loop.message}" if loop.ended else f"next: {self.phase}"
        now = f"{len(loop.history)} epochs, {loop.spent} passes over the data; {coming}"
        if self.looks:
            now += f"; {self.looks} passes more to see whether the loss is still the same"
        lines = [now] + [f"epoch {r.epoch}: {r.note}" for r in loop.history if r.note]
        if loop.swap_epoch is None:
            lines.append(f"no switch so far: {loop.reason or 'no epoch has ended'}")
        if loop.moves:
            often = f"the loss became another one {len(loop.moves)} times in the second phase"
            lines.append(f"{often}, which started anew each time: {WHY_IT_MOVES}")
        return "\n".join(lines + [paid.text for paid in payoffs(loop.history)])

    def state_dict(self) -> dict[str, Any]:
        """All that the coming steps depend on, in tensors, numbers and texts; with the parameters.

        `torch.load` reads it with `weights_only=True`. It resumes exactly under the same arguments.
        """
        own = {"version": VERSION, "batches": self.batches, "loop": self.loop.state_dict()}
        own["first"] = type(self.first).__name__
        more = {"looks": self.looks, "checked": self._checked}
        habits = {"habits": tuple(self.objective.habits)}
        groups = self.first.state_dict()["param_groups"]
        return {"state": {}, "param_groups": groups, "twophase": own | more | habits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; the parameters become those of the state.

        `InputError` for a state of something else, of another version or other parameters.
        """
        with loading():
            own = self._own(state_dict)
            looks, checked = check_integer("looks", own["looks"], 0), bool(own["checked"])
            habits = Habits(*own["habits"])
            self.loop.load_state_dict(own["loop"])
        self._share()
        self.looks, self._checked, self.objective.habits = looks, checked, habits

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        own = state.get("twophase") if isinstance(state, dict) else None
        own = own if isinstance(own, dict) else {}
        version = own.get("version", "without a version")
        if version != VERSION:
            raise InputError("state", version, f"a state of TwoPhase of version {VERSION}")
        found = own["batches"], own["first"], len(own["loop"]["x"])
        here = self.batches, type(self.first).__name__, len(self.objective.vector.read())
        for name, its, ours in zip(("batches", "first", "params"), found, here, strict=True):
            if its != ours:
                raise InputError("state", f"one with {name} {its}", f"one with {name} {ours}")
        return own

    def __getstate__(self) -> dict[str, Any]:
        # a scheduler has put its own, of this very object, in the place of `step`
        return {name: value for name, value in self.__dict__.items() if name != "step"}


def _parameters(groups: list[dict[str, Any]]) -> list[Tensor]:
    return [parameter for group in groups for parameter in group["params"]]
