"""The two-phase loop, epoch by epoch: Adam, the switch, the second phase, and back if need be."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from twophase.data_objectives import TrainingLoss
from twophase.device import clock
from twophase.errors import InputError, check_choice, loading
from twophase.monitor import Exact, Measured, Monitor
from twophase.objective import GRADIENT_PASSES, agree, check_finite
from twophase.parameters import unharmed
from twophase.phases import Phase, Work
from twophase.record import ADAM, SECOND, TRIAL, Record, read_record
from twophase.second_phase import Status
from twophase.switching import Action, Course, Fallback, Race, SwitchRule, Told, course
from twophase.watch import Begun, Watch, begun
from twophase.weights import SWAP, Kept, Weights

log = logging.getLogger("twophase")

# why a loss may become another one in the second phase
WHY_IT_MOVES = "points resampled too often, or mini-batches without `batches=`?"
# by which loss weights are kept, and how a message says so
KEEP = {"train": "lower than the last", "validation": "of the lowest validation loss"}


class Loop:
    """Epochs of the phases named "adam" and "second", or of one of them, on an objective.

    The phases are made for it; `switch`, `fallback`, `keep` and `monitor` are those of `Trainer`.
    """

    def __init__(
        self,
        objective: TrainingLoss,
        phases: dict[str, Phase],
        switch: SwitchRule | Race | int = Race(),
        fallback: Fallback | None = Fallback(),
        monitor: Monitor = Exact(),
        validation: TrainingLoss | None = None,
        keep: str = "train",
    ):
        self.objective, self.watch = objective, Watch(objective, validation)
        self.keep = check_choice("keep", keep, KEEP)
        if keep == "validation" and validation is None:
            raise InputError("keep", keep, "'train' where there are no validation examples")
        self.phases, self.monitor = phases, monitor
        self._settings = switch, fallback
        self._reset()

    def _reset(self) -> None:
        self._begun: Begun | None = None
        self._at = math.inf  # the loss where the next epoch starts
        self.course = self._new_course()
        self.history: list[Record] = []
        # where the loss became another one: epochs before, and the losses before and after
        self.moves: list[tuple[int, float, float]] = []
        self.swap_epoch: int | None = None
        self.status, self.message, self.reason = Status.MOVED, "", ""
        self._name, self._passes = next(iter(self.phases)), 0
        self.weights, self.watch.point = Weights(self.objective.vector), None

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
        with self.undone():
            self.start_epoch()
            return self.end_epoch()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Where an exception ends the block, phase and parameters are as if it had not begun."""
        phase, before, coming = self.phase, dict(vars(self.phase)), self.weights.coming
        try:
            with unharmed(self.objective.vector):
                yield
        except BaseException:
            vars(phase).update(before)
            self.weights.coming, self._begun = coming, None
            raise

    @property
    def phase(self) -> Phase:
        """The phase of the coming epoch."""
        return self.phases[self._name]

    @property
    def open(self) -> bool:
        """Whether an epoch has started, and not ended."""
        return self._begun is not None

    def begin(self) -> None:
        """Give the model the weights that the coming epoch starts from."""
        if self.weights.begin(by_adam=self._name == ADAM):
            self.watch.point = None

    def start_epoch(self) -> None:
        """Train for an epoch, without looking at where it has led; `end_epoch` is to follow."""
        self.begin()
        self._begun = self._advance(self.phase)

    def _advance(self, phase: Phase) -> Begun:
        if phase.uses_gradient and self.watch.point is None:
            self.look(f" before epoch {len(self.history) + 1}")
        checking, introduction = phase.prepare(self.watch.point), phase.introduction
        before, began = self.watch.point, clock(self.watch.device)
        work = phase.epoch(before)
        seconds = clock(self.watch.device) - began
        seconds += self.watch.seconds if phase.uses_gradient else 0.0
        return Begun(work, before, checking, introduction, seconds)

    def end_epoch(self, x: Tensor | None = None) -> Record:
        """See where the epoch has led, and decide what comes next; returns its record.

        `x` [P] are the parameters where they were changed since.
        """
        assert self._begun is not None
        work, before, checking, introduction, seconds = self._begun
        work = work if x is None else work._replace(x=x)
        where = f"epoch {len(self.history) + 1} ({self._name})"
        exact = self.course is not None and self.course.reads_next(GRADIENT_PASSES)
        safe = self._name == SECOND and self.course is not None and self.course.safe
        work, seen = self.watch.settle(work, before, where, exact, safe)
        # the next epoch starts from a gradient that was measured
        by_gradient = self.phase.uses_gradient
        handed_on = GRADIENT_PASSES if by_gradient and work.point is None else 0
        self.status, self.message = work.status, work.message
        record = self._record(work, seen, checking + seen.passes - handed_on, seconds)
        record = self._added(record, work, introduction)
        self._begun, self._at = None, record.train_loss
        return record

    def _added(self, record: Record, work: Work, introduction: str) -> Record:
        """Put a record into the history, with a note of what it has brought about."""
        notes = self._decide(record, work.x), work.message if self.ended else "", introduction
        record = replace(record, note="; ".join(filter(None, notes)))
        self.history.append(record)
        self._passes += record.passes
        return record

    def look(self, where: str) -> float:
        """The loss at the present parameters; its gradient is known then, too."""
        return self.watch.measure(self.objective.vector.read(), where).loss

    def look_again(self) -> None:
        """See whether the loss, or the parameters, are others than where the last epoch ended.

        Then the second phase starts anew from there, and what was seen of the loss is moved.
        """
        point, x = self.watch.point, self.objective.vector.read()
        if self.weights.coming is not None or (point and not self.watch.is_other(point)):
            return
        now = self.look(f" before epoch {len(self.history) + 1}")
        if point is None and self.phase.goes_on_from(x):
            if agree(self._at, now, self.objective.resolution):
                return
        self.phase.restart()
        self._move(self._at, now)
        self.status, self.message = Status.MOVED, ""

    def _move(self, before: float, now: float) -> None:
        if self.course is not None:
            self.course.moved(before, now)
        self.weights.forget_losses(before, now)
        self.moves.append((len(self.history), before, now))
        epochs = [epoch - len(self.history) for epoch, *_ in self.moves[-4:]]
        if epochs[-3:] == [-2, -1, 0] and epochs[0] != -3:
            log.warning("the loss became another one in three steps in a row: %s", WHY_IT_MOVES)

    def finish(self) -> Record:
        """Give the model the weights that are to be kept, and return their record."""
        if not self.history:
            raise InputError("epochs", 0, "at least one before the end")
        last, aside = self.history[-1], self.weights.lowest()
        if aside is None or self._judged(last) <= aside.loss:
            return last
        self.weights.restore(aside)
        self.watch.point, kept = None, self.history[aside.epoch - 1]
        self.phase.restart()
        self._at = kept.train_loss
        return kept

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the coming epochs depend on: tensors, numbers and strings only.

        What a DataLoader that shuffles or dropout draws from generators of their own is not in it.
        A loop with other phases that shares the epochs so far can load it and branch off.
        """
        return {
            "history": [asdict(record) for record in self.history],
            "status": str(self.status),
            "message": self.message,
            **self.watch.state_dict(with_point=self._name == ADAM),
            "aside": self.weights.state_dict(),
            "moves": [list(move) for move in self.moves],
            "begun": self._begun and list(self._begun[2:]),
            "phases": {name: deepcopy(phase.state_dict()) for name, phase in self.phases.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; switch rule and fallback are replayed over its records.

        Raises `InputError` where the state is damaged or of other parameters, or the records'
        phases are not those that these settings would take; all is then as it was.
        """
        before = self.state_dict()
        try:
            with loading():
                self._load(state)
        except InputError:
            self._load(before)
            raise

    def _load(self, state: dict[str, Any]) -> None:
        self._reset()
        x = self.watch.load_state_dict(state)
        moves: dict[int, list[tuple[float, float]]] = {}
        for epochs, *losses in state.get("moves", ()):
            moves.setdefault(epochs, []).append(tuple(losses))
        for number, fields in enumerate(state["history"], 1):
            record = read_record(fields, number)
            for move in moves.pop(len(self.history), ()):
                self._move(*move)
            if record.phase != self.label:
                seen = f"epoch {record.epoch} in phase {record.phase}"
                raise InputError("state", seen, f"one in phase {self.label}")
            self.weights.begin(by_adam=self._name == ADAM)
            note = self._decide(record, x)
            self.history.append(replace(record, note=record.note or note))
            self._passes += record.passes
            self._at = record.train_loss
        for move in moves.pop(len(self.history), ()):
            self._move(*move)
            self._at = move[1]
        self.status, self.message = Status(state["status"]), state["message"]
        if state.get("begun"):
            self.weights.begin(by_adam=self._name == ADAM)
        self.weights.load_state_dict(state["aside"], len(self.history))
        used = {ADAM if record.phase == ADAM else SECOND for record in self.history}
        for name in self.phases.keys() & (used | state["phases"].keys()):
            # torch's optimizers keep the tensors they are given, and change them in place
            self.phases[name].load_state_dict(deepcopy(state["phases"][name]))
        if state.get("begun"):
            self._begun = begun(x, state["begun"])

    def _record(self, work: Work, seen: Measured, monitor_passes: int, seconds: float) -> Record:
        validation = self.watch.validate(work.x)
        measured = seen.loss, seen.accuracy, *validation, seen.grad_norm
        cost = work.step_size, work.evaluations, work.passes, monitor_passes, seconds
        number, status = len(self.history) + 1, str(work.status)
        return Record(number, self.label, *measured, *cost, status, "", *(seen.way or ()))

    @property
    def label(self) -> str:
        """The phase of the coming epoch as records have it."""
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
        told = Told(*seen, judged=here.loss, status=Status(record.status), way=record.way)
        if record.phase == ADAM:
            move = self.course.adam(told)
            self.reason = move.reason
        else:
            move = self.course.second(told)
        if move.action is Action.STAY:
            return ""
        change: Callable[[Kept, str], str] = getattr(self, f"_{move.action.name.lower()}")
        return change(here, move.reason)

    def _switch(self, here: Kept, reason: str) -> str:
        self._hand_over(here)
        self.swap_epoch = self.swap_epoch or here.epoch
        return f"switch: {reason}"

    def _try(self, here: Kept, reason: str) -> str:
        self._hand_over(here)
        return f"trial: {reason}"

    def _adopt(self, here: Kept, reason: str) -> str:
        swap = self.weights.kept[SWAP]
        self.swap_epoch = self.swap_epoch or swap.epoch
        return f"switch: from the weights of epoch {swap.epoch}, {reason}"

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
        self.phase.enter()
