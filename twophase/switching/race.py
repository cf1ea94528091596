"""The rule that measures: the second phase starts where it gets ahead of Adam in as many passes."""

from dataclasses import dataclass
from enum import Enum, auto

from twophase.errors import check_integer, check_number
from twophase.second_phase import Status
from twophase.settings import Settings, Stateful, state
from twophase.switching.rules import moved

# A trial in which the second phase comes less than this share as far down as Adam in half of the
# passes is given up.
HALF_WAY = 0.5


class Stage(Enum):
    """Where a race stands."""

    WAITING = auto()  # Adam goes on; nothing is measured
    LEADING = auto()  # Adam runs from the starting line on, for as many passes as a trial has
    TRIAL = auto()  # the second phase runs from the same line
    WON = auto()  # the second phase was ahead, and goes on


@dataclass(unsafe_hash=True)
class Race(Stateful, Settings):
    """Try the second phase from Adam's weights, and switch where it is ahead of Adam.

    The weights after an epoch are a starting line. From there Adam goes on for `passes` passes over
    the data; then the second phase runs from the same weights. It has won as soon as its loss is
    below Adam's, half way and at the end, and goes on as the second phase. It has lost after as
    many passes, or where half of them brought it less than half as far down as Adam, or where it
    can do no more; Adam goes on from where it was. The first line is drawn after `passes` passes of
    Adam, each other one where Adam has `growth` times the passes that it had before the last trial,
    and all lost trials together have at most a `share` of all passes, plus one trial. A lost trial
    is repeated, since a second phase that is behind early is often ahead later.

    The rule reads three losses of Adam a trial; in any unit, from any zero.

    By default a trial has 60 passes: in the kept runs of notebook 13 who is ahead after so many is
    ahead at the end in 36 of 36 full-batch cases and in 5 of 6 on images, after 30 in 2 of 3; a
    `growth` of 2 repeats a lost trial before half of the training is over; a `share` of 0.1 is what
    trials may cost. `InputError` for a value out of range.
    """

    passes: int = 60
    growth: float = 2.0
    share: float = 0.1
    stage: Stage = state(default=Stage.WAITING)
    spent: int = state(default=0)  # by both phases
    by_adam: int = state(default=0)
    on_trials: int = state(default=0)  # that were lost
    line: int = state(default=0)  # Adam's passes at the starting line
    start: float = state(default=0.0)  # the loss there
    tried: int = state(default=0)  # Adam's passes before the last trial
    half: float = state(default=0.0)  # Adam's loss half way
    goal: float = state(default=0.0)  # the lower one of that and the loss at the end
    tried_for: int = state(default=0)  # passes of the trial
    read: int = state(default=0)  # losses of Adam

    def __post_init__(self) -> None:
        check_integer("passes", self.passes, 1)
        check_number("growth", self.growth, above=1)
        check_number("share", self.share, minimum=0, maximum=1)

    def after_adam(self, loss: float, passes: int) -> str:
        """Take an epoch of Adam that cost `passes`; what begins now, in words, or nothing.

        In the stage `LEADING` that is a line at this epoch, in the stage `TRIAL` a trial from it.
        """
        self.spent += passes
        self.by_adam += passes
        if self.stage is Stage.LEADING:
            return self._lead(loss, passes)
        if not self._line_is_due(0):
            self.stage = Stage.WAITING
            return ""
        self.stage, self.line, self.start = Stage.LEADING, self.by_adam, loss
        self.read += 1
        return "a starting line"

    def _lead(self, loss: float, passes: int) -> str:
        done = self.by_adam - self.line
        if self._is_half_way(done, passes):
            self.half = self.goal = loss
            self.read += 1
        if done < self.passes:
            return ""
        self.goal = min(self.goal, loss)
        self.read += 1
        self.stage, self.tried_for, self.tried = Stage.TRIAL, 0, self.by_adam
        led = f"{self.start:.4g} to {self.goal:.4g} in {done} passes"
        return f"up to {self.passes} passes against Adam, which came from {led}"

    def after_second(self, loss: float, passes: int, status: Status = Status.MOVED) -> str:
        """Take an iteration of a trial; how it ended, in words, or nothing where it goes on."""
        self.spent += passes
        self.tried_for += passes
        if loss < self.goal:
            self.stage = Stage.WON
            return f"ahead: {loss:.4g} after {self.tried_for} passes, Adam {self.goal:.4g}"
        late = 2 * self.tried_for >= self.passes
        hopeless = late and self.start - loss < HALF_WAY * (self.start - self.half)
        if status is Status.MOVED and self.tried_for < self.passes and not hopeless:
            return ""
        self.stage = Stage.WAITING
        self.on_trials += self.tried_for
        ended = "" if status is Status.MOVED else f" ({status})"
        than = self.half if hopeless else self.goal
        return f"behind: {loss:.4g} after {self.tried_for} passes{ended}, Adam {than:.4g}"

    def moved(self, before: float, now: float) -> None:
        """The loss has become another one during a trial: so have those that it is judged by."""
        self.start, self.half, self.goal = (
            moved(loss, before, now) for loss in (self.start, self.half, self.goal)
        )

    def reads_next(self, passes: int) -> bool:
        """Whether it will read the loss after an epoch of Adam that costs so many passes."""
        if self.stage is not Stage.LEADING:
            return self._line_is_due(passes)
        done = self.by_adam + passes - self.line
        return done >= self.passes or self._is_half_way(done, passes)

    def _line_is_due(self, passes: int) -> bool:
        affordable = self.on_trials <= self.share * (self.spent + passes)
        return affordable and self.by_adam + passes >= self._due

    def _is_half_way(self, done: int, passes: int) -> bool:
        return 2 * done >= self.passes > 2 * (done - passes)

    @property
    def standing(self) -> str:
        """Where Adam stands, in words."""
        if self.stage is Stage.LEADING:
            return f"{self.by_adam - self.line} of {self.passes} passes from the starting line"
        at = f"the next starting line is at {self._due:.0f} or later"
        return f"Adam has {self.by_adam} passes, {at}"

    @property
    def _due(self) -> float:
        return max(self.passes, self.growth * self.tried)
