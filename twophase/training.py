"""The two-phase loop: Adam, the switch, then CG, and back if need be; one record per epoch.

The loop knows phases only by what `Phase` promises, so that another optimizer, another line search
or another switch rule changes nothing here.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from twophase.adam import Adam, AdamSettings
from twophase.cg import CGSettings, Memory, Status, iterate
from twophase.device import clock, resolve_device
from twophase.errors import InputError, NonFiniteError, check_choice, check_integer
from twophase.examples import Dataset, Examples
from twophase.experiments.progress import track
from twophase.fallback import Fallback
from twophase.losses import mse
from twophase.objective import (
    FullBatch,
    Loss,
    ParameterVector,
    Point,
    check_finite,
    check_modules,
    check_repeats,
    evaluating,
    norm,
)
from twophase.payoff import Payoff, payoffs
from twophase.preconditioner import from_moments
from twophase.record import Record
from twophase.switch import FixedEpoch, NormVersusLoss, SmoothedNormPeak, SwitchRule

# Full-batch loss and gradient: a forward pass counts 1, a backward pass 2.
GRADIENT_PASSES = 3

STRATEGIES: dict[str, tuple[str, ...]] = {
    "adam": ("adam",),
    "cg": ("cg",),
    "adam+cg": ("adam", "cg"),
}


class Work(NamedTuple):
    """What a phase did in one epoch; an unfinished `status` other than moved ends the run."""

    x: Tensor
    step_size: float | None = None
    evaluations: int = 0
    passes: int = GRADIENT_PASSES
    status: Status = Status.MOVED
    message: str = ""
    point: Point | None = None  # at x, if the phase has evaluated it


class Phase(Protocol):
    """What the loop asks of an optimizer.

    `uses_gradient` says whether an epoch starts from the gradient of the full training loss. Where
    it does, that gradient belongs to the epoch's cost; where not, it is measured for the record.
    """

    uses_gradient: bool

    def follow(self, before: "Phase") -> None:
        """Know the phase before, whose last state is that at the swap."""
        ...

    def enter(self) -> None:
        """The phase takes over: forget directions that belong to an earlier trajectory."""
        ...

    def prepare(self, point: Point | None) -> int:
        """What must be checked before an epoch, outside its time; passes spent."""
        ...

    def epoch(self, point: Point | None) -> Work:
        """Advance by one epoch from the current point."""
        ...

    def state_dict(self) -> dict:
        """What the coming epochs of the phase depend on."""
        ...

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned."""
        ...


class AdamPhase:
    """Mini-batch epochs of Adam over the objective's data."""

    uses_gradient = False

    def __init__(self, objective: FullBatch, settings: AdamSettings, seed: int):
        self.objective = objective
        generator = torch.Generator().manual_seed(seed)
        self.adam = Adam(objective.model, objective.loss, settings, generator)

    def follow(self, before: Phase) -> None:
        """Adam takes nothing over."""

    def enter(self) -> None:
        """Adam goes on with the moments it had."""

    def prepare(self, point: Point | None) -> int:
        """Nothing to check: no passes."""
        return 0

    def epoch(self, point: Point | None) -> Work:
        """One sweep of mini-batches from the model's parameters."""
        self.adam.epoch(self.objective.inputs, self.objective.targets)
        return Work(self.objective.vector.read())

    def state_dict(self) -> dict:
        """The state of `Adam`."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned."""
        self.adam.load_state_dict(state)


class CGPhase:
    """Full-batch CG iterations; the gradient at the end of one starts the next."""

    uses_gradient = True

    def __init__(self, objective: FullBatch, settings: CGSettings, seed: int):
        self.objective, self.settings = objective, settings
        self.memory: Memory | None = None
        self.handed_on = False
        self.checked = False
        self.before: Phase | None = None
        self.inverse: Tensor | None = None

    def follow(self, before: Phase) -> None:
        """Take the preconditioner, if any, from that phase when the first epoch comes."""
        self.before = before

    def enter(self) -> None:
        """CG starts with a steepest descent, from a gradient that it has not counted."""
        self.memory, self.handed_on = None, False

    def prepare(self, point: Point) -> int:
        """Before the first iteration, check that the loss repeats itself."""
        if self.checked:
            return 0
        check_repeats(self.objective, point)
        self.checked = True
        return 1

    def epoch(self, point: Point) -> Work:
        """One CG iteration from the current point."""
        before = self.objective.passes.total - (0 if self.handed_on else GRADIENT_PASSES)
        if self.memory is None and self.before is not None:
            self.inverse = self._preconditioner(self.before.adam)
        iteration = iterate(self.objective, point, self.memory, self.settings, self.inverse)
        self.memory, self.handed_on = iteration.memory, iteration.point is not None
        return Work(
            iteration.x,
            iteration.step,
            iteration.evaluations,
            self.objective.passes.total - before,
            iteration.status,
            iteration.message,
            iteration.point,
        )

    def _preconditioner(self, adam: Adam) -> Tensor | None:
        batches = math.ceil(len(self.objective.inputs) / adam.batch_size)
        if not self.settings.takes_moments(batches):
            return None
        return from_moments(adam.optimizer, self.objective.vector.parameters)

    def state_dict(self) -> dict:
        """The last iteration's memory, whether it counted the gradient at its end, whether the
        loss was checked, and the preconditioner.
        """
        memory = self.memory._asdict() if self.memory else None
        return {
            "memory": memory,
            "handed_on": self.handed_on,
            "checked": self.checked,
            "inverse": self.inverse,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned."""
        self.memory = Memory(**state["memory"]) if state["memory"] else None
        self.handed_on, self.inverse = state["handed_on"], state["inverse"]
        self.checked = state["checked"]


PHASES = {"adam": AdamPhase, "cg": CGPhase}


class Kept(NamedTuple):
    """Weights [P] set aside, the training loss there, and the epoch after which they were met."""

    x: Tensor
    loss: float
    epoch: int


class Trainer:
    """Two-phase training, epoch by epoch; see `fit` for the arguments and errors.

    >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
    >>> trainer = Trainer(nn.Linear(1, 1), (inputs, 3 * inputs), strategy="cg")
    >>> first, second = trainer.epoch(), trainer.epoch()
    >>> second.train_loss < first.train_loss, first.phase
    (True, 'cg')
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset | Examples | tuple[Tensor, Tensor],
        *,
        strategy: str = "adam+cg",
        switch: SwitchRule | int | None = None,
        loss: Loss = mse,
        adam: AdamSettings | None = None,
        cg: CGSettings | None = None,
        fallback: Fallback | Literal["auto"] | None = "auto",
        seed: int = 0,
        device: str | torch.device = "auto",
        chunk_size: int | None = None,
    ):
        names = STRATEGIES[check_choice("strategy", strategy, STRATEGIES)]
        check_integer("seed", seed, 0)
        if "cg" in names:
            check_modules(model)
        self.device = resolve_device(device)
        self.model = model.to(self.device)
        dtype = ParameterVector(model.parameters()).dtype
        train, validation = _splits(data)
        train = train.to(self.device, dtype)
        self.objective = FullBatch(self.model, loss, train.inputs, train.targets, chunk_size)
        self.validation = None
        if validation is not None:
            validation = validation.to(self.device, dtype)
            self.validation = FullBatch(
                self.model, loss, validation.inputs, validation.targets, chunk_size
            )
        settings = {"adam": adam or AdamSettings(), "cg": cg or CGSettings()}
        self.phases: dict[str, Phase] = {
            name: PHASES[name](self.objective, settings[name], seed) for name in names
        }
        for first, second in pairwise(names):
            self.phases[second].follow(self.phases[first])
        self.names = names
        self.rule = _rule(switch, strategy)
        self.fallback = _fallback(fallback, self.rule)
        self.history: list[Record] = []
        self.swap_epoch: int | None = None
        self.status = Status.MOVED
        self.message = ""
        self.reason = ""
        self._name = names[0]
        self._kept: dict[str, Kept] = {}
        self._point: Point | None = None
        self._point_seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether CG has found that it can do no more."""
        return self.status is not Status.MOVED

    def epoch(self) -> Record:
        """Train for one epoch of the current phase and return its record.

        Raises:
            InputError: the model does not repeat itself, found before the first CG epoch.
            NonFiniteError: the training loss or its gradient is not finite before or after the
                epoch.

        >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> trainer = Trainer(nn.Linear(1, 1), (inputs, 3 * inputs), switch=1)
        >>> [trainer.epoch().phase for _ in range(2)]
        ['adam', 'cg']
        """
        number, name = len(self.history) + 1, self._name
        phase = self.phases[name]
        if phase.uses_gradient and self._point is None:
            self._measure(self.objective.vector.read(), f" before epoch {number}")
        monitor_passes = phase.prepare(self._point)
        if not phase.uses_gradient:
            monitor_passes += GRADIENT_PASSES
        before, began = self._point, clock(self.device)
        work = phase.epoch(before)
        seconds = clock(self.device) - began
        if phase.uses_gradient:
            seconds += self._point_seconds
        try:
            accuracy = self._settle(work, f" after epoch {number} ({name})")
        except NonFiniteError as error:
            if self.fallback is None or name != "cg":
                raise
            work = work._replace(
                x=before.x, status=Status.NOT_FINITE, message=str(error), point=None
            )
            accuracy = self._measure(work.x, f" before epoch {number} ({name})")
        monitor_passes += work.point is not None  # for the accuracy alone
        self.status, self.message = work.status, work.message
        record = self._record(number, name, work, accuracy, monitor_passes, seconds)
        note = self._decide(record, work.x)
        record = replace(record, note=note or (work.message if self.ended else ""))
        self.history.append(record)
        return record

    def finish(self) -> Record:
        """Give the model its final weights, CG's best if Adam ended above them; their record.

        It is for the end of a training: epochs after it would go on from these weights.

        >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> trainer = Trainer(nn.Linear(1, 1), (inputs, inputs), strategy="adam")
        >>> trainer.epoch() == trainer.finish()
        True
        """
        last, best = self.history[-1], self._kept.get("best")
        if best is None or last.train_loss <= best.loss:
            return last
        self.objective.vector.write(best.x)
        self._point = None
        return self.history[best.epoch - 1]

    def state_dict(self) -> dict:
        """Everything that the coming epochs depend on: tensors, numbers and strings only.

        It is a copy that further epochs do not change. A trainer of another strategy that shares
        the epochs so far can load it and branch off.

        >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> sorted(Trainer(nn.Linear(1, 1), (inputs, inputs)).state_dict())
        ['history', 'kept', 'message', 'phases', 'status', 'x']
        """
        return {
            "history": [asdict(record) for record in self.history],
            "status": str(self.status),
            "message": self.message,
            "x": self.objective.vector.read(),
            "kept": {name: kept._asdict() for name, kept in self._kept.items()},
            "phases": {name: deepcopy(phase.state_dict()) for name, phase in self.phases.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state; switch rule and fallback are replayed over its records.

        Raises:
            InputError: the records' phases are not those that this strategy and rule would take.

        >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> trunk = Trainer(nn.Linear(1, 1), (inputs, inputs), strategy="adam")
        >>> branch = Trainer(nn.Linear(1, 1), (inputs, inputs), switch=1)
        >>> trunk.epoch().phase
        'adam'
        >>> branch.load_state_dict(trunk.state_dict())
        >>> branch.epoch().phase
        'cg'
        """
        self.rule = self.rule and self.rule.fresh()
        self.fallback = self.fallback and self.fallback.fresh()
        self.history, self.swap_epoch, self._name, self._point = [], None, self.names[0], None
        x = state["x"].to(self.device)
        for fields in state["history"]:
            record = Record(**fields)
            if record.phase != self._name:
                seen = f"epoch {record.epoch} in phase {record.phase}"
                raise InputError("state", seen, f"one in phase {self._name}")
            note = self._decide(record, x)
            self.history.append(replace(record, note=note or record.note))
        self.status, self.message = Status(state["status"]), state["message"]
        # what the replay kept are the records' losses with the last epoch's weights; a branch that
        # leaves a run of Adam alone at this epoch keeps just these
        for name, kept in state["kept"].items():
            self._kept[name] = Kept(**kept | {"x": kept["x"].to(self.device)})
        self.objective.vector.write(x)
        for name, phase in state["phases"].items():
            if name in self.phases:
                # torch's optimizers keep the tensors they are given, and change them in place
                self.phases[name].load_state_dict(deepcopy(phase))

    def _measure(self, x: Tensor, where: str) -> float | None:
        """Make `x` the current point; return the training accuracy there."""
        began = clock(self.device)
        with evaluating(self.model):
            self._point, accuracy = self.objective.measure(x)
        self._point_seconds = clock(self.device) - began
        check_finite(self._point.value, norm(self._point.gradient), where)
        return accuracy

    def _settle(self, work: Work, where: str) -> float | None:
        """Make the end of an epoch the current point; the training accuracy there.

        Where the phase has evaluated the point, the accuracy takes one forward pass.
        """
        if work.point is None:
            return self._measure(work.x, where)
        self._point, self._point_seconds = work.point, 0.0
        with evaluating(self.model):
            return self.objective.score(work.x).accuracy

    def _record(
        self,
        number: int,
        name: str,
        work: Work,
        accuracy: float | None,
        monitor_passes: int,
        seconds: float,
    ) -> Record:
        loss, grad_norm = self._point.value, norm(self._point.gradient)
        validation_loss = validation_accuracy = None
        if self.validation is not None:
            with evaluating(self.model):
                validation_loss, validation_accuracy = self.validation.score(work.x)
        return Record(
            number,
            name,
            loss,
            accuracy,
            validation_loss,
            validation_accuracy,
            grad_norm,
            work.step_size,
            work.evaluations,
            work.passes,
            monitor_passes,
            seconds,
            str(work.status),
            note="",
        )

    def _decide(self, record: Record, x: Tensor) -> str:
        """After an epoch that ended at x [P]: change phase if due; the reason if it was."""
        if self.rule is None:
            return ""
        if record.phase == "adam":
            return self._decide_adam(record, x)
        return "" if self.fallback is None else self._decide_cg(record, x)

    def _decide_adam(self, record: Record, x: Tensor) -> str:
        decision = self.rule.update(record.train_loss, record.grad_norm)
        self.reason = decision.reason
        if self.fallback is not None:
            self.fallback.adam(record.train_loss, record.grad_norm, record.passes)
            if not self.fallback.ready:
                return ""
        if not decision.switch:
            return ""
        if self.fallback is not None:
            self.fallback.swap()
            self._kept["swap"] = Kept(x, record.train_loss, record.epoch)
        self.swap_epoch = self.swap_epoch or record.epoch
        self._enter("cg")
        return f"switch: {decision.reason}"

    def _decide_cg(self, record: Record, x: Tensor) -> str:
        best = self._kept.get("best")
        if best is None or record.train_loss < best.loss:
            self._kept["best"] = Kept(x, record.train_loss, record.epoch)
        decision = self.fallback.cg(
            record.train_loss, record.grad_norm, record.passes, Status(record.status)
        )
        if not decision.switch:
            return ""
        swap = self._kept.pop("swap")
        self.objective.vector.write(swap.x)
        self._point = None
        self.status, self.message = Status.MOVED, ""
        self._enter("adam")
        return f"return: {decision.reason}; Adam goes on from the weights of epoch {swap.epoch}"

    def _enter(self, name: str) -> None:
        self._name = name
        self.phases[name].enter()


@dataclass(frozen=True)
class Fit:
    """The outcome of `fit`.

    Attributes:
        records: one `Record` per epoch.
        status: "completed" when all epochs were run, else why CG ended before.
        message: the status in a sentence.
        swap_epoch: the last epoch of Adam before CG first took over; None: there was no swap.
        final: the record of the weights that the model has now: the last, or, after a return to
            Adam, that of CG's best epoch if it is lower.

    >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
    >>> result = fit(nn.Linear(1, 1), (inputs, inputs), epochs=2, strategy="adam")
    >>> result.status, result.records[-1].epoch
    ('completed', 2)
    """

    records: tuple[Record, ...] = field(repr=False)
    status: str
    message: str
    swap_epoch: int | None
    final: Record = field(repr=False)

    @property
    def changes(self) -> pd.DataFrame:
        """The changes of phase: the last epoch of a phase, the phase, and why it ended.

        >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> fit(nn.Linear(1, 1), (inputs, inputs), epochs=3, switch=2).changes.values.tolist()
        [[2, 'adam', 'switch: epoch 2, fixed swap at 2']]
        """
        columns = ["epoch", "phase", "note"]
        changed = self.history.note.str.startswith(("switch: ", "return: "))
        return self.history.loc[changed, columns].reset_index(drop=True)

    @property
    def payoffs(self) -> list[Payoff]:
        """Whether each phase of CG has paid, beside the trend of Adam before it.

        >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> result = fit(nn.Linear(1, 1), (inputs, 3 * inputs), epochs=9, switch=6)
        >>> result.payoffs[0].pays
        True
        """
        return payoffs(self.records)

    @property
    def history(self) -> pd.DataFrame:
        """The records as a table, a row per epoch and a column per field of `Record`.

        >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> table = fit(nn.Linear(1, 1), (inputs, inputs), epochs=2, strategy="adam").history
        >>> table.epoch.tolist(), table.passes.tolist()
        ([1, 2], [3, 3])
        """
        return pd.DataFrame([asdict(record) for record in self.records])


def fit(
    model: nn.Module,
    data: Dataset | Examples | tuple[Tensor, Tensor],
    *,
    epochs: int,
    strategy: str = "adam+cg",
    switch: SwitchRule | int | None = None,
    loss: Loss = mse,
    adam: AdamSettings | None = None,
    cg: CGSettings | None = None,
    fallback: Fallback | Literal["auto"] | None = "auto",
    seed: int = 0,
    device: str | torch.device = "auto",
    chunk_size: int | None = None,
    on_epoch: Callable[[Record], None] | None = None,
) -> Fit:
    """Train a model in two phases: Adam until the rule says switch, then CG (Algorithm 1).

    The model is trained in place, in the mode (train or eval) it comes in; losses and norms are
    measured in eval mode.

    Args:
        model: any module with float32 or float64 parameters of one dtype. A strategy with CG
            needs one without dropout or BatchNorm in training mode.
        data: a `Dataset` with training and validation examples, or training examples
            (inputs [K, ...], targets [K, ...]). Floating-point tensors take the model's dtype.
        epochs: at least 1. An Adam epoch costs 3 passes over the data, a CG epoch (one iteration)
            3 and its line search's evaluations.
        strategy: "adam", "cg" or "adam+cg" (the paper's Figure 6).
        switch: a rule, or the number of Adam epochs; for "adam+cg" only. Default
            `SmoothedNormPeak()`, the robust one; `GradientNormPeak()` is the paper's.
        loss: mean loss of a batch, `loss(outputs, targets)`; default `twophase.mse`, the paper's.
        adam, cg: settings of the phases; defaults `AdamSettings()` and `CGSettings()`.
        fallback: when CG hands back to Adam; None: never, as in the paper. Default "auto":
            `Fallback()` with `SmoothedNormPeak` and `NormVersusLoss`, None with the paper's own
            `GradientNormPeak`, a given epoch, or a rule of yours.
        seed: of the order of mini-batches.
        device: "auto" (CUDA if there, else CPU), "cpu", "cuda" or "cuda:N".
        chunk_size: examples per forward pass of a full-batch evaluation; bounds the memory.
            Default None: chosen by the memory that an example needs; see `FullBatch`.
        on_epoch: called with each record.

    Returns:
        A `Fit` with one record per epoch.

    Raises:
        InputError: an argument is out of range, or the model does not repeat itself.
        NonFiniteError: the loss is no longer finite; the message names the epoch.

    Source: the paper, section 4, Algorithm 1.

    >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
    >>> result = fit(nn.Linear(1, 1), (inputs, 3 * inputs), epochs=8, switch=3)
    >>> result.swap_epoch, result.history.phase.tolist().count("adam")
    (3, 3)
    """
    check_integer("epochs", epochs, 1)
    if isinstance(switch, FixedEpoch):
        switch = switch.epoch
    if isinstance(switch, int) and check_integer("switch", switch, 1) >= epochs:
        raise InputError("switch", switch, f"an epoch below the number of epochs, {epochs}")
    trainer = Trainer(
        model,
        data,
        strategy=strategy,
        switch=switch,
        loss=loss,
        adam=adam,
        cg=cg,
        fallback=fallback,
        seed=seed,
        device=device,
        chunk_size=chunk_size,
    )
    return run(trainer, epochs, on_epoch)


def run(trainer: Trainer, epochs: int, on_epoch: Callable[[Record], None] | None = None) -> Fit:
    """Train until `epochs` records are there or CG has ended, and show the progress.

    Raises:
        InputError: `epochs` is below 1.
        NonFiniteError: the loss is no longer finite.

    >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
    >>> run(Trainer(nn.Linear(1, 1), (inputs, inputs), strategy="adam"), epochs=2).status
    'completed'
    """
    check_integer("epochs", epochs, 1)
    label = f"epochs of {'+'.join(trainer.names)}"
    for record in track(_epochs(trainer, epochs), epochs - len(trainer.history), label):
        if on_epoch is not None:
            on_epoch(record)
    status, message = str(trainer.status), trainer.message
    if not trainer.ended:
        status, message = "completed", f"all {epochs} epochs were run"
    if trainer.rule is not None and trainer.swap_epoch is None:
        message += f"; no switch: {trainer.reason}"
    final = trainer.finish()
    if final != trainer.history[-1]:
        message += f"; the weights are CG's after epoch {final.epoch}, lower than Adam's last"
    message += "".join(f"; {paid.text}" for paid in payoffs(trainer.history))
    return Fit(tuple(trainer.history), status, message, trainer.swap_epoch, final)


def _epochs(trainer: Trainer, epochs: int) -> Iterator[Record]:
    while len(trainer.history) < epochs and not trainer.ended:
        yield trainer.epoch()


def _splits(data: Dataset | Examples | tuple[Tensor, Tensor]) -> tuple[Examples, Examples | None]:
    if isinstance(data, Dataset):
        return data.train, data.validation
    if isinstance(data, Examples):
        return data, None
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)
    if not pair:
        raise InputError("data", type(data).__name__, "a Dataset or tensors (inputs, targets)")
    return Examples(*data), None


def _rule(switch: SwitchRule | int | None, strategy: str) -> SwitchRule | None:
    """A rule with nothing seen yet, so that one object can serve several runs."""
    if len(STRATEGIES[strategy]) == 1:
        if switch is not None:
            raise InputError("switch", switch, f"none with strategy {strategy}: it has one phase")
        return None
    if switch is None:
        return SmoothedNormPeak()
    if isinstance(switch, int):
        return FixedEpoch(switch)
    if not hasattr(switch, "fresh"):
        raise InputError("switch", switch, "a switch rule or a number of epochs")
    return switch.fresh()


def _fallback(
    fallback: Fallback | Literal["auto"] | None, rule: SwitchRule | None
) -> Fallback | None:
    """One with nothing seen yet; none in a run of one phase."""
    if fallback == "auto":
        fallback = Fallback() if isinstance(rule, SmoothedNormPeak | NormVersusLoss) else None
    elif not isinstance(fallback, Fallback | None):
        raise InputError("fallback", fallback, 'a Fallback, None or "auto"')
    return None if rule is None or fallback is None else fallback.fresh()
