"""The two-phase loop, epoch by epoch: Adam, the switch, the second phase, and back if need be."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.data_objectives import data_objectives
from twophase.device import clock
from twophase.errors import (
    InputError,
    NonFiniteError,
    check_choice,
    check_integer,
    check_type,
)
from twophase.examples import Data
from twophase.full_batch import Score
from twophase.least_squares import LeastSquares
from twophase.losses import Loss, mse
from twophase.modules import check_modules, evaluating
from twophase.monitor import Exact, Measured, Monitor
from twophase.objective import GRADIENT_PASSES, Point, check_finite, norm
from twophase.phases import AdamPhase, DescentPhase, Phase, Work, check_phases
from twophase.record import ADAM, SECOND, TRIAL, Record
from twophase.second_phase import Minimizer, Status
from twophase.switching import Action, Course, Fallback, Race, SwitchRule, Told, course
from twophase.weights import LINE, SWAP, Kept, Weights

# by which loss weights are kept, and how a message says so
KEEP = {"train": "lower than the last", "validation": "of the lowest validation loss"}


class Trainer:
    """Two-phase training, epoch by epoch; `twophase.fit` runs one to its end.

    The model is trained in place, in the mode (train or eval) it comes in; losses and norms are
    measured in eval mode. `InputError` where an argument is out of range or both phases are None.

    Args:
        model: any module with float32 or float64 parameters of one dtype. A second phase needs one
            without dropout or BatchNorm in training mode. Or a `LeastSquares`, which is trained
            where it is; `data`, `loss`, `device` and `chunk_size` are not for it.
        data: a `Dataset` with training and validation examples, or training examples
            (inputs [K, ...], targets [K, ...]). Floating-point tensors take the model's dtype.
        adam, second: settings of the two phases; None: the phase is left out.
        switch: the rule that ends the first phase, or its number of epochs; by default a `Race`.
        fallback: when the second phase hands back to Adam, since its own results speak against the
            hypothesis; None: never, as in the paper.
        keep: "train": trials are judged by the training loss, and the weights in the end are the
            last, or the second phase's if Adam took over again and ended above them. "validation":
            trials are judged by the validation loss, and the weights are those of the epoch with
            the lowest one. The default does not look at validation data, so that they stay data
            that the training has not seen.
        monitor: how loss and norm of Adam's mini-batch epochs become known: `Exact`, or for nothing
            `FromBatches`. With one batch of all examples they are at hand.
        loss: mean loss of a batch, `loss(outputs, targets)`; default `twophase.mse`, the paper's.
        seed: of the order of mini-batches.
        device, chunk_size: see `resolve_device` and `FullBatch`.
    """

    def __init__(
        self,
        model: nn.Module | LeastSquares,
        data: Data | None = None,
        *,
        adam: AdamSettings | None = AdamSettings(),
        second: Minimizer | None = DEFAULT,
        switch: SwitchRule | Race | int = Race(),
        fallback: Fallback | None = Fallback(),
        keep: str = "train",
        monitor: Monitor = Exact(),
        loss: Loss = mse,
        seed: int = 0,
        device: str | torch.device = "auto",
        chunk_size: int | None = None,
    ):
        check_integer("seed", seed, 0)
        check_phases(adam, second)
        check_type("monitor", monitor, Monitor)
        self.objective, self.validation = data_objectives(model, data, loss, device, chunk_size)
        self.keep = check_choice("keep", keep, KEEP)
        if keep == "validation" and self.validation is None:
            raise InputError("keep", keep, "'train' where there are no validation examples")
        self.model, self.device = self.objective.model, self.objective.vector.parameters[0].device
        if second is not None:
            check_modules(self.model)
        self.phases: dict[str, Phase] = {}
        first = None
        if adam is not None:
            self.phases[ADAM] = first = AdamPhase(self.objective, adam, seed, monitor)
        if second is not None:
            self.phases[SECOND] = DescentPhase(self.objective, second, first)
        self._settings, self.monitor = (switch, fallback), monitor
        self.course = self._new_course()
        self.history: list[Record] = []
        self.swap_epoch: int | None = None
        self.status, self.message, self.reason = Status.MOVED, "", ""
        self._name, self._passes = next(iter(self.phases)), 0
        self.weights, self._point_seconds = Weights(self.objective.vector), 0.0
        self._point: Point | None = None

    def _new_course(self) -> Course | None:
        """The course from the start on, checked; None where one phase is left out."""
        begun = course(*self._settings)
        return begun if len(self.phases) == 2 else None

    @property
    def ended(self) -> bool:
        """Whether the second phase has found that it can do no more."""
        return self.status is not Status.MOVED

    @property
    def spent(self) -> int:
        """Passes over the data so far: those of both phases, and those that the switch needs."""
        course = self.course
        at_hand = ADAM in self.phases and self.phases[ADAM].uses_gradient
        if course is None or at_hand or not (self.monitor.exact or course.exact):
            return self._passes
        return self._passes + course.reading

    def epoch(self) -> Record:
        """Train for one epoch of the current phase and return its record.

        Raises `NonFiniteError` where loss or gradient is not finite before or after it, and
        `InputError` before the first full-batch epoch if the model does not repeat itself.
        """
        if self.weights.begin(by_adam=self._name == ADAM):
            self._point = None
        number, phase = len(self.history) + 1, self.phases[self._name]
        if phase.uses_gradient and self._point is None:
            self._measured(self.objective.vector.read(), f" before epoch {number}")
        checking, introduction = phase.prepare(self._point), phase.introduction
        before, began = self._point, clock(self.device)
        reads = self.course is not None and self.course.reads_next(GRADIENT_PASSES)
        work = phase.epoch(before)
        seconds = clock(self.device) - began
        seconds += self._point_seconds if phase.uses_gradient else 0.0
        work, seen = self._settled(work, before, f"epoch {number} ({self._name})", reads)
        # the next epoch starts from a gradient that was measured
        handed_on = GRADIENT_PASSES if phase.uses_gradient and work.point is None else 0
        self.status, self.message = work.status, work.message
        record = self._record(work, seen, checking + seen.passes - handed_on, seconds)
        record = self._added(record, work, introduction)
        self._keep_preconditioner()
        return record

    def _added(self, record: Record, work: Work, introduction: str) -> Record:
        """Put a record into the history, with a note of what it has brought about."""
        notes = self._decide(record, work.x), work.message if self.ended else "", introduction
        record = replace(record, note="; ".join(filter(None, notes)))
        self.history.append(record)
        self._passes += record.passes
        return record

    def _keep_preconditioner(self) -> None:
        """Where a starting line has just been drawn: what Adam leaves there."""
        line, second = self.weights.kept.get(LINE), self.phases.get(SECOND)
        if line is not None and line.epoch == len(self.history):
            assert isinstance(second, DescentPhase)
            second.draw_line()

    def finish(self) -> Record:
        """Give the model the weights that are to be kept, and return their record."""
        if not self.history:
            raise InputError("epochs", 0, "at least one before the end")
        last, aside = self.history[-1], self.weights.lowest()
        if aside is None or self._judged(last) <= aside.loss:
            return last
        self.weights.restore(aside)
        self._point = None
        return self.history[aside.epoch - 1]

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the coming epochs depend on: tensors, numbers and strings only.

        A trainer with other phases that shares the epochs so far can load it and branch off.
        """
        return {
            "history": [asdict(record) for record in self.history],
            "status": str(self.status),
            "message": self.message,
            "x": self.objective.vector.read(),
            "aside": self.weights.state_dict(),
            "phases": {name: deepcopy(phase.state_dict()) for name, phase in self.phases.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; switch rule and fallback are replayed over its records.

        Raises `InputError` where the records' phases are not those that these settings would take.
        """
        self.course = self._new_course()
        self.history, self.swap_epoch, self._point, self.reason = [], None, None, ""
        self._name, self._passes = next(iter(self.phases)), 0
        self.weights = Weights(self.objective.vector)
        x = state["x"].to(self.device)
        for fields in state["history"]:
            record = Record(**fields)
            if record.phase != self._label:
                seen = f"epoch {record.epoch} in phase {record.phase}"
                raise InputError("state", seen, f"one in phase {self._label}")
            self.weights.begin(by_adam=self._name == ADAM)
            note = self._decide(record, x)
            self.history.append(replace(record, note=record.note or note))
            self._passes += record.passes
        self.status, self.message = Status(state["status"]), state["message"]
        self.weights.load_state_dict(state["aside"], len(self.history), self.device)
        self.objective.vector.write(x)
        for name, phase in state["phases"].items():
            if name in self.phases:
                # torch's optimizers keep the tensors they are given, and change them in place
                self.phases[name].load_state_dict(deepcopy(phase))
        self._keep_preconditioner()

    def _measured(self, x: Tensor, where: str) -> Measured:
        """Make `x` the current point; what is known there."""
        began = clock(self.device)
        with evaluating(self.model):
            self._point, accuracy = self.objective.measure(x)
        self._point_seconds = clock(self.device) - began
        size = norm(self._point.gradient)
        check_finite(self._point.value, size, where)
        return Measured(self._point.value, accuracy, size, GRADIENT_PASSES)

    def _settled(
        self, work: Work, before: Point | None, where: str, exact: bool
    ) -> tuple[Work, Measured]:
        """Make the end of an epoch the current point; what it was, and what is known there.

        If the phase has evaluated the point, the accuracy takes one forward pass, and so does the
        loss where the epoch's means are known but will not do. Where the loss is not finite and
        Adam may take over, the epoch ends where it began.
        """
        if work.means is not None:
            self._point, (loss, size) = None, work.means
            score = self._score(work.x) if exact else Score(loss, None)
            check_finite(score.loss, size, f" after {where}")
            return work, Measured(score.loss, score.accuracy, size, int(exact))
        if work.point is not None:
            self._point, self._point_seconds = work.point, 0.0
            size = norm(work.point.gradient)
            return work, Measured(work.point.value, self._score(work.x).accuracy, size, 1)
        try:
            return work, self._measured(work.x, f" after {where}")
        except NonFiniteError as error:
            back = self._name == SECOND and self.course is not None and self.course.safe
            if not back or before is None:
                raise
            x, status = before.x, Status.NOT_FINITE
            work = work._replace(x=x, status=status, message=str(error), point=None)
            return work, self._measured(x, f" before {where}")

    def _score(self, x: Tensor) -> Score:
        with evaluating(self.model):
            return self.objective.score(x)

    def _record(self, work: Work, seen: Measured, monitor_passes: int, seconds: float) -> Record:
        validation: tuple[float | None, float | None] = (None, None)
        if self.validation is not None:
            with evaluating(self.model):
                validation = self.validation.score(work.x)
        measured = seen.loss, seen.accuracy, *validation, seen.grad_norm
        cost = work.step_size, work.evaluations, work.passes, monitor_passes, seconds
        number, status = len(self.history) + 1, str(work.status)
        return Record(number, self._label, *measured, *cost, status, note="")

    @property
    def _label(self) -> str:
        """The phase as records have it."""
        return TRIAL if self.course is not None and self.course.trying else self._name

    def _judged(self, record: Record) -> float:
        """The loss by which weights are kept and trials judged."""
        if self.keep != "validation":
            return record.train_loss
        assert record.validation_loss is not None
        return record.validation_loss

    def _decide(self, record: Record, x: Tensor) -> str:
        """After an epoch that ended at x [P]: what the course asks for; the reason of a change."""
        here = Kept(x, self._judged(record), record.epoch)
        check_finite(here.loss, record.grad_norm, f" by {self.keep} after epoch {record.epoch}")
        # without validation Adam's weights are kept only where it ends
        if self.keep == "validation" or (self.course is not None and record.phase != ADAM):
            self.weights.put_if_lower(here)
        if self.course is None:
            return ""
        seen = record.train_loss, record.grad_norm, record.passes
        told = Told(*seen, judged=here.loss, status=Status(record.status))
        if record.phase == ADAM:
            move = self.course.adam(told)
            self.reason = move.reason
        else:
            move = self.course.second(told)
        return self._moves[move.action](here, move.reason)

    @property
    def _moves(self) -> dict[Action, Callable[[Kept, str], str]]:
        return {
            Action.STAY: lambda here, reason: "",
            Action.LINE: self._draw_line,
            Action.SWITCH: self._switch,
            Action.TRY: self._try,
            Action.ADOPT: self._adopt,
            Action.RETURN: self._return,
        }

    def _draw_line(self, here: Kept, reason: str) -> str:
        self.weights.put(LINE, here)
        return reason

    def _switch(self, here: Kept, reason: str) -> str:
        self._hand_over(here)
        self.swap_epoch = self.swap_epoch or here.epoch
        return f"switch: {reason}"

    def _try(self, here: Kept, reason: str) -> str:
        self._hand_over(here)
        line = self.weights.go_to(LINE)
        return f"trial: from the weights of epoch {line.epoch}, {reason}"

    def _adopt(self, here: Kept, reason: str) -> str:
        line = self.weights.kept.pop(LINE)
        self.swap_epoch = self.swap_epoch or line.epoch
        return f"switch: from the weights of epoch {line.epoch}, {reason}"

    def _return(self, here: Kept, reason: str) -> str:
        swap = self.weights.go_to(SWAP)
        self.status, self.message = Status.MOVED, ""
        self._enter(ADAM)
        return f"return: {reason}; Adam goes on from the weights of epoch {swap.epoch}"

    def _hand_over(self, here: Kept) -> None:
        assert self.course is not None
        if self.course.safe:
            self.weights.put(SWAP, here)
        self._enter(SECOND)

    def _enter(self, name: str) -> None:
        self._name = name
        self.phases[name].enter()
