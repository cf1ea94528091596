"""The course of a training: after each epoch, which phase comes next, and from which weights."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from twophase.errors import InputError, check_integer, check_type
from twophase.objective import GRADIENT_PASSES
from twophase.second_phase import Status
from twophase.switching.fallback import Fallback
from twophase.switching.race import Race, Stage
from twophase.switching.rules import FixedEpoch, SwitchRule


class Action(Enum):
    """What a training does after an epoch."""

    STAY = auto()  # the phase goes on
    LINE = auto()  # Adam goes on, and its weights are kept as a starting line
    SWITCH = auto()  # the second phase takes over from Adam's weights
    TRY = auto()  # the second phase takes over from the starting line
    ADOPT = auto()  # the second phase goes on, a trial no more
    RETURN = auto()  # Adam takes over where it was


class Move(NamedTuple):
    """An action, and why."""

    action: Action
    reason: str


class Course(Protocol):
    """What a training loop asks, with the end of each epoch: loss, gradient norm, and its passes.

    Trials are judged by the loss `judged`, by default the same: that of validation, for example.
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

    def adam(self, loss: float, grad_norm: float, passes: int, judged: float | None = None) -> Move:
        """After an epoch of Adam: stay, draw a line, switch or try."""

    def second(
        self,
        loss: float,
        grad_norm: float,
        passes: int,
        status: Status,
        judged: float | None = None,
    ) -> Move:
        """After an iteration of the second phase: stay, adopt or return."""


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
        return ByRace(switch.fresh(), back)
    if isinstance(switch, type) or not (hasattr(switch, "fresh") and hasattr(switch, "update")):
        raise InputError("switch", switch, "a switch rule or a number of epochs")
    return ByRule(switch.fresh(), back)


@dataclass
class ByRule:
    """A rule of one loss and one norm per epoch says when, a fallback whether to go back."""

    rule: SwitchRule
    fallback: Fallback | None
    reading: int = 0

    exact = False
    trying = False

    @property
    def safe(self) -> bool:
        return self.fallback is not None

    def reads_next(self, passes: int) -> bool:
        return False

    def adam(self, loss: float, grad_norm: float, passes: int, judged: float | None = None) -> Move:
        decision = self.rule.update(loss, grad_norm)
        self.reading += getattr(self.rule, "price", GRADIENT_PASSES)
        if self.fallback is not None:
            self.fallback.adam(loss, grad_norm, passes)
        if not decision.switch or (self.fallback is not None and not self.fallback.ready):
            return Move(Action.STAY, decision.reason)
        if self.fallback is not None:
            self.fallback.swap()
        return Move(Action.SWITCH, decision.reason)

    def second(
        self,
        loss: float,
        grad_norm: float,
        passes: int,
        status: Status,
        judged: float | None = None,
    ) -> Move:
        return _back(self.fallback, loss, grad_norm, passes, status)


@dataclass
class ByRace:
    """A race says when, and whether a trial is lost; a fallback whether to go back later."""

    race: Race
    fallback: Fallback | None

    exact = True

    @property
    def trying(self) -> bool:
        return self.race.stage is Stage.TRIAL

    @property
    def safe(self) -> bool:
        return self.trying or self.fallback is not None

    @property
    def reading(self) -> int:
        return self.race.read

    def reads_next(self, passes: int) -> bool:
        return self.race.reads_next(passes)

    def adam(self, loss: float, grad_norm: float, passes: int, judged: float | None = None) -> Move:
        if self.fallback is not None:
            self.fallback.adam(loss, grad_norm, passes)
        said = self.race.after_adam(loss if judged is None else judged, passes)
        actions = {Stage.LEADING: Action.LINE, Stage.TRIAL: Action.TRY}
        return Move(actions[self.race.stage] if said else Action.STAY, said or self.race.standing)

    def second(
        self,
        loss: float,
        grad_norm: float,
        passes: int,
        status: Status,
        judged: float | None = None,
    ) -> Move:
        if not self.trying:
            self.race.spent += passes
            return _back(self.fallback, loss, grad_norm, passes, status)
        said = self.race.after_second(loss if judged is None else judged, passes, status)
        if not said:
            return Move(Action.STAY, "")
        if self.race.stage is Stage.WAITING:
            return Move(Action.RETURN, said)
        if self.fallback is not None:
            self.fallback.swap(loss)
        ended = status is not Status.MOVED and self.fallback is not None
        # ahead, but there it can do no more
        return Move(Action.RETURN if ended else Action.ADOPT, said)


def _back(
    fallback: Fallback | None, loss: float, grad_norm: float, passes: int, status: Status
) -> Move:
    if fallback is None:
        return Move(Action.STAY, "")
    decision = fallback.second(loss, grad_norm, passes, status)
    return Move(Action.RETURN if decision.switch else Action.STAY, decision.reason)
