"""The two phases as the training loop sees them: advance by an epoch, hand over, be resumed."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from twophase.adam import Adam, AdamSettings, load
from twophase.data_objectives import TrainingLoss
from twophase.directions import State
from twophase.errors import InputError, check_integer, check_type
from twophase.modules import evaluating, repeats_itself
from twophase.monitor import Exact, Monitor
from twophase.objective import GRADIENT_PASSES, Point, check_finite, check_repeats, norm
from twophase.objectives.closure import Closure, ClosureObjective
from twophase.parameters import unharmed
from twophase.preconditioner import Preconditioner
from twophase.second_phase import Minimizer, Status, check_minimizer, read_inverse, read_state


class Work(NamedTuple):
    """What a phase did in one epoch; a status other than moved means that it can do no more."""

    x: Tensor
    step_size: float | None = None
    evaluations: int = 0
    passes: int = GRADIENT_PASSES
    status: Status = Status.MOVED
    message: str = ""
    point: Point | None = None  # at x, if the phase has evaluated it
    means: tuple[float, float] | None = None  # loss and gradient norm over the epoch's batches


class Phase(Protocol):
    """What the loop asks of an optimizer.

    `uses_gradient` says whether an epoch starts from the gradient of the full training loss. Where
    it does, that gradient belongs to the epoch's cost; where not, it is measured for the record.
    """

    uses_gradient: bool

    @property
    def introduction(self) -> str:
        """What the next epoch's record says of a phase that begins."""
        return ""

    def enter(self) -> None:
        """The phase takes over: forget directions that belong to an earlier trajectory."""
        return

    def restart(self) -> None:
        """The loss has become another one: forget what was seen of it."""
        return

    def goes_on_from(self, x: Tensor) -> bool:
        """Whether what was seen belongs to the parameters x [P], or nothing was."""
        return True

    def prepare(self, point: Point | None) -> int:
        """What must be checked before an epoch, outside its time; passes spent."""
        return 0

    def epoch(self, point: Point | None) -> Work:
        """Advance by one epoch from the current point."""

    def state_dict(self) -> dict[str, Any]:
        """What the coming epochs of the phase depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


class FirstPhase(Phase):
    """A phase that can hand over to the second one."""

    def inverse(self, preconditioner: Preconditioner) -> Tensor | None:
        """The diagonal [P] of M⁻¹ that the phase leaves, of a preconditioner M (None: 1)."""


class AdamPhase(FirstPhase):
    """Mini-batch epochs of Adam over the objective's data; Adam goes on with the moments it had.

    With one batch of all examples an epoch is a step along the gradient of the full loss, which the
    loop has at hand; but not where the model's own mode gives another loss than eval mode, in which
    that is measured, as with dropout.
    """

    def __init__(
        self,
        objective: TrainingLoss,
        settings: AdamSettings,
        seed: int,
        monitor: Monitor = Exact(),
    ):
        self.objective, self.monitor = objective, monitor
        generator = torch.Generator().manual_seed(seed)
        self.adam = Adam(objective.vector.parameters, settings, generator)
        if isinstance(objective, ClosureObjective):
            # it has no batches, and is measured as it is
            self.batches, self.uses_gradient, self.compared = 1, True, True
        else:
            self.batches = objective.batch_count(settings.batch_size)
            self.uses_gradient = self.batches == 1 and repeats_itself(objective.model)
            self.compared = not self.uses_gradient

    def prepare(self, point: Point | None) -> int:
        if self.compared or point is None:
            return 0
        own = self.objective.value(point.x)
        # far above rounding, far below what noise in the model does
        self.uses_gradient = abs(own - point.value) <= 1e-4 * max(abs(own), abs(point.value))
        self.compared = True
        return 1

    def epoch(self, point: Point | None) -> Work:
        vector = self.objective.vector
        if self.uses_gradient and point is not None:
            vector.write_gradient(point.gradient)
            self.adam.optimizer.step()
            return Work(vector.read())
        assert not isinstance(self.objective, ClosureObjective)
        means = self.monitor.means(vector.parameters, self.objective.count)
        self.adam.epoch(self.objective, means)
        return Work(vector.read(), means=None if means is None else means.read())

    def inverse(self, preconditioner: Preconditioner) -> Tensor | None:
        parameters = self.objective.vector.parameters
        return preconditioner.inverse(self.adam.optimizer, parameters, self.batches)

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict() | {"at_hand": self.uses_gradient, "compared": self.compared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)
        self.uses_gradient, self.compared = bool(state["at_hand"]), bool(state["compared"])


class UsersPhase(FirstPhase):
    """Steps of any torch optimizer over `batches` mini-batches an epoch, which the user's loop has.

    With one, an epoch is a step along the gradient of the full loss, which is at hand.
    """

    def __init__(
        self, objective: ClosureObjective, optimizer: Optimizer, batches: int, monitor: Monitor
    ):
        self.objective, self.vector = objective, objective.vector
        self.optimizer, self.monitor = optimizer, monitor
        self.steps = 0
        self.set_batches(batches)

    def set_batches(self, batches: int) -> None:
        """An epoch has so many mini-batches; it begins."""
        self.batches, self.uses_gradient = batches, batches == 1
        self._means = self.monitor.means(self.vector.parameters, batches)

    def step(self, closure: Closure) -> Tensor:
        """A step for a mini-batch, whose loss the closure returns; the loss before it."""
        objective = ClosureObjective(self.vector, closure, here=self.objective.processes)
        with unharmed(self.vector) as x:
            value = objective.leave_gradients(x)
            size = norm(self.vector.read_gradient())
            check_finite(value, size, f" in step {self.steps + 1} of an epoch")
        loss = torch.tensor(value, dtype=torch.float64)
        if self._means is not None:
            self._means.add(loss, 1)
        self.optimizer.step()
        self.steps += 1
        return loss

    def epoch(self, point: Point | None) -> Work:
        if point is not None and self.uses_gradient:
            self.objective.write_gradient(point.gradient)
            self.optimizer.step()
            return Work(self.vector.read())
        means = None
        if self._means is not None:
            # an epoch may have had fewer batches than were told
            loss, size = (self.batches / self.steps * mean for mean in self._means.read())
            means = loss, size
        self.steps = 0
        self.set_batches(self.batches)
        return Work(self.vector.read(), means=means)

    def inverse(self, preconditioner: Preconditioner) -> Tensor | None:
        return preconditioner.inverse(self.optimizer, self.vector.parameters, self.batches)

    def state_dict(self) -> dict[str, Any]:
        means = None if self._means is None else (self._means.loss, *self._means.gradient)
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "means": means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load(self.optimizer, state["optimizer"])
        self.steps = check_integer("steps", state["steps"], 0)
        if self._means is not None and state["means"] is not None:
            self._means.read_state(*state["means"])


class DescentPhase(Phase):
    """Full-batch iterations of the second phase, the first along the steepest descent.

    `before` is the phase that hands over, and leaves the preconditioner, if there is one. With
    `freeze` the model is in eval mode meanwhile.
    """

    uses_gradient = True

    def __init__(
        self,
        objective: TrainingLoss,
        second: Minimizer,
        before: FirstPhase | None = None,
        freeze: bool = False,
    ):
        size = sum(p.numel() for p in objective.vector.parameters)
        self.before, self.data, self.freeze = before, objective, freeze
        with self._mode():
            self.minimizer, self.objective, self.reason = second.prepare(objective, size)
        self.entering = True
        self.state: State | None = None
        self.inverse: Tensor | None = None
        self.handed_on = False  # the gradient at the point is counted already
        self.checked = False  # the loss repeats itself

    @property
    def introduction(self) -> str:
        if not self.entering or not self.reason:
            return ""
        return f"{self.minimizer.label}, since the loss is {self.reason}"

    def enter(self) -> None:
        self.entering = True
        self.state, self.handed_on = None, False

    def restart(self) -> None:
        # another loss can be that of another mode
        self.state, self.handed_on, self.checked = None, False, False

    def goes_on_from(self, x: Tensor) -> bool:
        return self.state is None or torch.equal(self.state.x, x)

    def prepare(self, point: Point | None) -> int:
        if self.checked or point is None:
            return 0
        before = self.data.passes.total
        with self._mode():
            check_repeats(self.data, point)
        self.checked = True
        return self.data.passes.total - before

    def _mode(self) -> AbstractContextManager[None]:
        if not self.freeze or isinstance(self.data, ClosureObjective):
            return nullcontext()
        return evaluating(self.data.model)

    def epoch(self, point: Point | None) -> Work:
        assert point is not None
        before = self.objective.passes.total - (0 if self.handed_on else GRADIENT_PASSES)
        if self.entering:
            left = self.before
            self.inverse = left.inverse(self.minimizer.preconditioner) if left else None
            self.entering = False
        with self._mode():
            done = self.minimizer.iterate(self.objective, point, self.state, self.inverse)
        self.state, self.handed_on = done.state, done.point is not None
        passes = self.objective.passes.total - before
        return Work(
            done.x, done.step, done.evaluations, passes, done.status, done.message, done.point
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "state": self.state._asdict() if self.state else None,
            "entering": self.entering,
            "handed_on": self.handed_on,
            "checked": self.checked,
            "inverse": self.inverse,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vector = self.data.vector
        self.inverse = read_inverse(state["inverse"], vector)
        self.state = read_state(state["state"], self.minimizer, vector, self.inverse)
        self.entering = bool(state.get("entering", self.state is None))
        self.handed_on, self.checked = bool(state["handed_on"]), bool(state["checked"])


def check_phases(adam: AdamSettings | None, second: Minimizer | None) -> None:
    """Raise `InputError` unless one of the two phases is there, and each is what it should be."""
    if adam is None and second is None:
        raise InputError("second", None, "a second phase, or settings of Adam: one phase at least")
    if second is not None:
        check_minimizer(second, " or None")
    if adam is not None:
        check_type("adam", adam, AdamSettings, " or None")
