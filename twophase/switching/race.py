"""The rule that measures: the second phase starts where it gets ahead of what Adam would reach."""

import math
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from twophase.errors import check_integer, check_number
from twophase.objective import GRADIENT_PASSES
from twophase.second_phase import Status
from twophase.settings import Settings, Stateful, state
from twophase.switching.rules import moved
from twophase.switching.trend import Seen, Trend

# Passes of a training whose length is not known: 300 epochs of Adam.
USUAL_LENGTH = 900
# Passes of a trial: the share of a training that it may cost, the fewest that show anything, and as
# many as are enough for any.
TRIAL_SHARE, FEWEST, ENOUGH = 0.1, 30, 120
# An early trial begins when Adam has had this share of a trial's passes.
EARLY = 2 / 3
# The lead over Adam's trend must grow by this factor in the latter half of an early trial.
WIDENING = 2.0
# A lead of this factor is enough at any time: what has converged widens its lead no more.
CLEAR = 1000.0
# An early trial in which half of the passes brought the second phase less than this share as far
# down as they would have brought Adam is given up.
HALF_WAY = 0.5
# Adam's losses are read at these parts of its passes before a trial.
READ_AT = (0.5, 0.75, 1.0)


class Stage(Enum):
    """Where a race stands."""

    WAITING = auto()  # Adam goes on
    TRIAL = auto()  # the second phase runs from Adam's weights
    WON = auto()  # it was ahead, and goes on


@dataclass(unsafe_hash=True)
class Race(Stateful, Settings):
    """Try the second phase from Adam's weights, and keep it where it is ahead of Adam's trend.

    The early trial begins when Adam has two thirds of the passes that a trial takes. It is won
    where the second phase is not only below what Adam's `Trend` promises for as many passes, but
    its lead, the ratio of the two losses, has doubled in the latter half: there it pays at once.
    A lead of a factor of 1,000 wins at any time.
    Else Adam goes on from where it was, since a later start mostly ends in a better minimum. It is
    lost, too, where it has come less than half as far down as Adam would have in half of the
    passes.
    The late trial begins when Adam has a third (`late`) of the passes that are planned, at least
    30, and is won by any lead; also by one that would be there when half of the passes that are
    left are spent, if it goes on to grow as in the latter half of the trial, since what is learned
    of the curvature comes slowly. Others follow whenever Adam has `growth` times the passes, if all
    that were lost have cost at most a tenth of all. Any trial is lost where it can do no more.

    `length` is the number of passes that the training is planned for: None is what `fit` or a
    configuration asks for, else 900. `passes` are those of a trial: None is a tenth of the length,
    from 30 to 120. The rule reads three losses of Adam a trial, in any unit.

    `late` is 1/3, where fixed swaps had the lowest worst regret on images. The lead must double
    since in trials of 90 passes from epoch 20 it grew by a factor of 1.7 at most where the start
    was too early, and by 2.5 at least where it was not. `InputError` for a value out of range.
    """

    passes: int | None = None
    length: int | None = None
    late: float = 1 / 3
    growth: float = 2.0
    stage: Stage = state(default=Stage.WAITING)
    spent: int = state(default=0)  # by both phases
    by_adam: int = state(default=0)
    on_trials: int = state(default=0)  # that were lost
    lost: int = state(default=0)  # trials
    due: float = state(default=0.0)  # Adam's passes at the next trial; 0: nothing is planned yet
    tried_for: int = state(default=0)  # passes of the trial
    start: float = state(default=0.0)  # the loss where it began
    lowest: float = state(default=math.inf)
    half: float = state(default=math.nan)  # the lead in the middle of it
    seen: list[Seen] = state(default_factory=list)  # what was read since the last trial
    read: int = state(default=0)  # losses of Adam

    def __post_init__(self) -> None:
        for name in ("passes", "length"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        check_number("late", self.late, above=0, below=1)
        check_number("growth", self.growth, above=1)
        early = EARLY * self.trial
        self.due = early if early + self.trial <= self._late else self._late

    @property
    def trial(self) -> int:
        """The passes of a trial."""
        if self.passes is not None:
            return self.passes
        return min(max(FEWEST, round(TRIAL_SHARE * (self.length or USUAL_LENGTH))), ENOUGH)

    @property
    def _late(self) -> float:
        share = self.late * (self.length or USUAL_LENGTH)
        return max(share, min(FEWEST, self.trial))

    @property
    def _is_early(self) -> bool:
        return self.due < self._late

    def after_adam(self, loss: float, passes: int) -> str:
        """Take an epoch of Adam that cost `passes`; why a trial begins now, or nothing."""
        self.stage = Stage.WAITING
        reads = self.reads_next(passes)
        self.spent += passes
        self.by_adam += passes
        if reads:
            self.read += 1
            self.seen.append(Seen(self.by_adam, loss))
        if not self._is_due(0):
            return ""
        self.stage, self.start, self.lowest = Stage.TRIAL, loss, math.inf
        self.tried_for, self.half = 0, math.nan
        return f"up to {self.trial} passes against Adam's trend, from a loss of {loss:.4g}"

    def after_second(self, loss: float, passes: int, status: Status = Status.MOVED) -> str:
        """Take an iteration of a trial; how it ended, in words, or nothing where it goes on."""
        self.spent += passes
        self.tried_for += passes
        self.lowest = min(self.lowest, loss)
        trend = Trend.of(self.seen)
        promised = trend.promise(self.tried_for)
        lead = promised - trend.scale(self.lowest)
        hopeless = False
        if math.isnan(self.half) and 2 * self.tried_for >= self.trial:
            self.half = lead
            behind = lead < (HALF_WAY - 1) * (trend.scale(self.start) - promised)
            hopeless = behind and self._is_early
        moved = status is Status.MOVED
        over = not moved or (trend.logarithmic and lead >= math.log(CLEAR))
        if not over and self.tried_for < self.trial and not hopeless:
            return ""
        if self._is_early:
            won = lead > 0 and (over or self._has_widened(lead, trend))
        else:
            won = lead > 0 or (not over and self._catches_up(lead))
        found = f"{self.lowest:.4g} after {self.tried_for} passes"
        found += "" if moved else f" ({status})"
        adams = f"Adam by its trend {trend.loss(promised):.4g}"
        if won:
            self._plan_next()
            self.stage = Stage.WON
            return f"{'ahead' if lead > 0 else 'catching up'}: {found}, {adams}"
        self.lost += 1
        self.on_trials += self.tried_for
        why = "the lead does not widen" if lead > 0 else "behind"
        self._plan_next()
        self.stage = Stage.WAITING
        return f"{why}: {found}, {adams}"

    def _has_widened(self, lead: float, trend: Trend) -> bool:
        if trend.logarithmic:
            return lead >= self.half + math.log(WIDENING)
        return lead >= WIDENING * self.half

    def _catches_up(self, lead: float) -> bool:
        """Whether it would be ahead in time, as the lead grew in the latter half of the trial."""
        halves = self._remaining / self.tried_for  # in half of the passes that are left
        return lead + (lead - self.half) * halves > 0

    @property
    def _remaining(self) -> int:
        return max(0, (self.length or USUAL_LENGTH) - self.spent)

    @property
    def left(self) -> int | None:
        """The passes that are left, where they are too few for another trial; else None.

        None, too, where it is not known how many are planned.
        """
        needed = self.due - self.by_adam + self.trial
        return self._remaining if self.length and needed > self._remaining else None

    def _plan_next(self) -> None:
        self.due = self._late if self._is_early else self.growth * max(self.due, self.by_adam)
        self.seen = []

    def moved(self, before: float, now: float) -> None:
        """The loss has become another one during a trial: so have those that it is judged by."""
        self.seen = [one._replace(loss=moved(one.loss, before, now)) for one in self.seen]
        self.start, self.lowest = (moved(loss, before, now) for loss in (self.start, self.lowest))

    def reads_next(self, passes: int) -> bool:
        """Whether it will read the loss after an epoch of Adam that costs so many passes."""
        after = self.by_adam + passes
        marks = (part * self.due for part in READ_AT)
        return any(self.by_adam < mark <= after for mark in marks) or self._is_due(passes)

    def _is_due(self, passes: int) -> bool:
        if self.by_adam + passes < self.due:
            return False
        affordable = self.on_trials <= TRIAL_SHARE * (self.spent + passes)
        return self.lost < 2 or affordable

    @property
    def standing(self) -> str:
        """Where Adam stands, in words."""
        at = f"the next trial is at {self.due:.0f} or later"
        return f"Adam has {self.by_adam} passes, {at}"


def planned(switch: Any, epochs: int | None, passes: int | None) -> Any:
    """A race for a training of so many epochs or passes, whichever end it; other rules as given."""
    if not isinstance(switch, Race) or switch.length is not None:
        return switch
    lengths = (passes, epochs and GRADIENT_PASSES * epochs)
    return replace(switch, length=min(length for length in lengths if length is not None))
