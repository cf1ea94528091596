"""The course of a training: after each epoch, which phase comes next, and from which weights."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from twophase.errors import InputError, check_integer, check_type
from twophase.objective import GRADIENT_PASSES, Way
from twophase.second_phase import Status
from twophase.switching.fallback import Fallback
from twophase.switching.race import Race, Stage
from twophase.switching.rules import FixedEpoch, SwitchRule, tell


class Action(Enum):
    """What a training does after an epoch."""

    STAY = auto()  # the phase goes on
    SWITCH = auto()  # the second phase takes over from Adam's weights
    TRY = auto()  # the same, on trial
    ADOPT = auto()  # it goes on, a trial no more
    RETURN = auto()  # Adam takes over where it was


class Move(NamedTuple):
    """An action, and why."""

    action: Action
    reason: str


class Told(NamedTuple):
    """What a course is told of an epoch: its end, its passes, how an iteration ended, Adam's way.

    Trials are judged by the loss `judged`: the training loss again, or that of validation.
    """

    loss: float
    grad_norm: float
    passes: int
    judged: float
    status: Status = Status.MOVED
    way: Way | None = None


class Course(Protocol):
    """What a training loop asks, with what it tells of each epoch.

    `trying` says whether the second phase is on trial, `safe` whether Adam can take over again, and
    `reading` how many passes the numbers took that were needed so far, for an Adam of mini-batches.
    `exact` says whether means over mini-batches would not do, and `reads_next` whether the coming
    epoch of Adam, of so many passes, ends with a loss that must be exact.
    """

    exact: bool

    @property
    def trying(self) -> bool: ...

    @property
    def safe(self) -> bool: ...

    @property
    def reading(self) -> int: ...

    def reads_next(self, passes: int) -> bool: ...

    def adam(self, told: Told) -> Move:
        """After an epoch of Adam: stay, switch or try."""

    def second(self, told: Told) -> Move:
        """After an iteration of the second phase: stay, adopt or return."""

    def moved(self, before: float, now: float) -> None:
        """The second phase's loss has become another one, such as over other points."""


def course(switch: SwitchRule | Race | int, fallback: Fallback | None) -> Course:
    """The course by a rule, or a number of epochs of Adam, and a fallback; both as if unused.

    `InputError` where they are something else.
    """
    if fallback is not None:
        check_type("fallback", fallback, Fallback, " or None")
    back = fallback.fresh() if fallback is not None else None
    if isinstance(switch, int):
        switch = FixedEpoch(check_integer("switch", switch, 1))
    if isinstance(switch, Race):
        return ByRace(back, switch.fresh())
    if isinstance(switch, type) or not (hasattr(switch, "fresh") and hasattr(switch, "update")):
        raise InputError("switch", switch, "a switch rule or a number of epochs")
    return ByRule(back, switch.fresh())


@dataclass
class _WithFallback:
    """What is the same however the second phase has begun: a fallback, or none."""

    fallback: Fallback | None

    @property
    def safe(self) -> bool:
        return self.fallback is not None

    def moved(self, before: float, now: float) -> None:
        if self.fallback is not None:
            self.fallback.moved(before, now)

    def _watch_adam(self, told: Told) -> None:
        if self.fallback is not None:
            self.fallback.adam(told.loss, told.grad_norm, told.passes)

    def _take_over(self, loss: float | None = None) -> None:
        if self.fallback is not None:
            self.fallback.swap(loss)

    def _go_on_or_back(self, told: Told) -> Move:
        if self.fallback is None:
            return Move(Action.STAY, "")
        back = self.fallback.second(told.loss, told.grad_norm, told.passes, told.status)
        return Move(Action.RETURN if back.switch else Action.STAY, back.reason)


@dataclass
class ByRule(_WithFallback):
    """A rule of one loss and one norm per epoch says when, a fallback whether to go back."""

    rule: SwitchRule
    reading: int = 0

    exact = False
    trying = False

    def reads_next(self, passes: int) -> bool:
        return False

    def adam(self, told: Told) -> Move:
        decision = tell(self.rule, told.loss, told.grad_norm, told.way)
        self.reading += getattr(self.rule, "price", GRADIENT_PASSES)
        self._watch_adam(told)
        ready = self.fallback is None or self.fallback.ready
        if not (decision.switch and ready):
            return Move(Action.STAY, decision.reason)
        self._take_over()
        return Move(Action.SWITCH, decision.reason)

    def second(self, told: Told) -> Move:
        return self._go_on_or_back(told)


@dataclass
class ByRace(_WithFallback):
    """A race says when, and whether a trial is lost; a fallback whether to go back later.

    Near the end, where no other trial could follow, a second phase that still moves goes on unless
    Adam by its trend would end below it.
    """

    race: Race

    exact = True

    @property
    def trying(self) -> bool:
        return self.race.stage is Stage.TRIAL

    @property
    def safe(self) -> bool:
        return self.trying or super().safe

    @property
    def reading(self) -> int:
        return self.race.read

    def reads_next(self, passes: int) -> bool:
        return self.race.reads_next(passes)

    def adam(self, told: Told) -> Move:
        self._watch_adam(told)
        said = self.race.after_adam(told.judged, told.passes)
        return Move(Action.TRY if said else Action.STAY, said or self.race.standing)

    def moved(self, before: float, now: float) -> None:
        if self.trying:
            self.race.moved(before, now)
        else:
            super().moved(before, now)

    def second(self, told: Told) -> Move:
        if not self.trying:
            self.race.spent += told.passes
            move = self._go_on_or_back(told)
            useless = move.action is Action.RETURN and self._too_late(told.status)
            return Move(Action.STAY, move.reason) if useless else move
        said = self.race.after_second(told.judged, told.passes, told.status)
        if not said:
            return Move(Action.STAY, "")
        if self.race.stage is Stage.WAITING:
            return Move(Action.RETURN, said)
        # ahead, but perhaps it can do no more; then all that it has gained counts
        ended = told.status is not Status.MOVED
        self._take_over(None if ended else told.loss)
        move = self._go_on_or_back(told) if ended else Move(Action.STAY, "")
        if move.action is Action.RETURN:
            return Move(Action.RETURN, f"{said}, but {move.reason}")
        return Move(Action.ADOPT, said)

    def _too_late(self, status: Status) -> bool:
        left = self.race.left
        if self.fallback is None or left is None or status is not Status.MOVED:
            return False
        return not self.fallback.adam_ends_below(left)
