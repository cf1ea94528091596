"""The safe way back: when the second phase's results speak against it, Adam takes over again."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter

from twophase.errors import check_integer, check_number
from twophase.second_phase import Status
from twophase.settings import Settings, Stateful, state
from twophase.switching.rules import Decision, check_seen
from twophase.switching.trend import Seen, Trend

# A second phase stalls, after at least so many passes, where its loss falls by less than 30 % while
# its passes grow by a factor e. On full-batch problems, where it pays from the start, it falls by
# more than 70 % until it has converged; networks that end in a worse minimum than a later start
# would find are slower soon.
SHORTEST_STALL = 120
STALL_SLOPE = 0.3
# Adam's loss over that of a phase which has ended, and not on a plateau where a long step led it.
DEEP = 1e4
# Of the loss: searches by slopes may raise it by its rounding errors (1e-7 for float32 networks).
ROUNDING = 1e-6


@dataclass(unsafe_hash=True)
class Fallback(Stateful, Settings):
    """The evidence that ends a second phase early, and what Adam goes on from.

    It hands back to Adam after an iteration in which

    - the search found no lower loss, or the loss measured afterwards is higher or not finite, or
      the phase has converged, perhaps on a plateau, or in a minimum that is not the one that Adam
      would reach. But the training is over if Adam by its `Trend` would be above that after as many
      passes as there were so far, and either the loss is 10⁴ times below Adam's, or this is not the
      first phase that has taken over;
    - the loss is above what Adam promised for as many passes by its `Trend`, and either the
      gradient norm is above its largest under Adam (by the hypothesis the loss is not convex), or
      the loss fell by less over the last `trial` iterations than Adam promised for these;
    - the phase stalls: over the last quarter of at least 120 passes, and `trial` iterations, its
      loss fell by less than 30 % per factor e of its passes.

    Adam goes on from the weights at the swap, with the moments it had there: its epochs are those
    of a run of Adam alone. The second phase's best weights are kept aside, and are the result if
    Adam ends above them. So the final training loss is never above that of Adam alone after as many
    Adam epochs. The paper, section 3, names the risk and asks for no more than trying.

    A swap that does not pay costs about `trial` iterations: the first is a steepest descent, other
    directions need a few more to show. There are at most `max_switches`, and each waits for
    `growth` > 1 times the passes before the last one; with 2 all trials together cost less than
    twice the last one. Like switch rules, fallbacks replay over a run's records.
    """

    trial: int = 5
    max_switches: int = 3
    growth: float = 2.0
    _adam: list[Seen] = state(default_factory=list)
    _second: list[Seen] = state(default_factory=list)
    _trend: Trend | None = state(default=None)
    _peak: float = state(default=0.0)
    _spent: int = state(default=0)
    _shift: float = state(default=0.0)
    _at: float = state(default=0.0)
    _swaps: list[int] = state(default_factory=list)

    def __post_init__(self) -> None:
        check_integer("trial", self.trial, 1)
        check_integer("max_switches", self.max_switches, 1)
        check_number("growth", self.growth, above=1)

    @property
    def ready(self) -> bool:
        """Whether the second phase may take over now, after as long as earlier attempts ask for."""
        if not self._swaps:
            return True
        waited = self._spent >= self.growth * self._swaps[-1]
        return waited and len(self._swaps) < self.max_switches

    def adam(self, loss: float, grad_norm: float, passes: int) -> None:
        """Take an epoch of Adam: loss and norm at its end, and the passes it cost."""
        check_seen(loss, grad_norm)
        self._spent += passes
        before = self._adam[-1].passes if self._adam else 0
        self._adam.append(Seen(before + passes, loss))
        self._peak = max(self._peak, grad_norm)

    def swap(self, loss: float | None = None) -> None:
        """The second phase takes over after the epochs seen so far, at least one.

        It starts from Adam's last loss, or after a trial from the one that it has reached.
        """
        self._swaps.append(self._spent)
        self._at = self._adam[-1].loss if loss is None else loss
        self._second, self._shift = [Seen(0, self._at)], 0.0
        self._trend = Trend.of(self._adam)

    def second(
        self, loss: float, grad_norm: float, passes: int, status: Status = Status.MOVED
    ) -> Decision:
        """Take an iteration of the second phase, and judge whether Adam shall take over."""
        check_seen(loss, grad_norm)
        self._spent += passes
        before, self._at = self._at, loss
        self._second.append(Seen(self._second[-1].passes + passes, loss, self._shift))
        if status is not Status.MOVED:
            return Decision(not self._done(status), f"the second phase ended: {status}")
        if loss > before + ROUNDING * abs(before):
            return Decision(True, f"the loss rose from {before:.4g} to {loss:.4g}")
        assert self._trend is not None
        if grad_norm > self._peak and self._behind(self._trend):
            peak = f"its peak {self._peak:.4g}"
            return Decision(True, f"the gradient norm {grad_norm:.4g} is above {peak}")
        return self._compare_rates(self._trend)

    def adam_ends_below(self, passes: int) -> bool:
        """Whether Adam by its trend would with so many passes get below the second phase."""
        assert self._trend is not None
        return self._trend.promise(passes) < self._level(self._second[-1])

    def moved(self, before: float, now: float) -> None:
        """The second phase's loss has become another one; Adam's would have moved alike."""
        assert self._trend is not None
        self._shift += self._trend.scale(now) - self._trend.scale(before)
        self._at = now

    def _level(self, seen: Seen) -> float:
        """A loss on the trend's scale, as it would have been of Adam's loss function."""
        assert self._trend is not None
        return self._trend.scale(seen.loss) - seen.shift

    def _done(self, status: Status) -> bool:
        """Whether the phase ended so low that Adam is not about to get below."""
        assert self._trend is not None
        trend, last = self._trend, self._second[-1]
        level = self._level(last)
        below = self._level(self._second[0]) - level > trend.gain(last.passes + self._spent)
        fallen = trend.scale(self._adam[-1].loss) - level
        deep = trend.logarithmic and fallen >= math.log(DEEP)
        return status is not Status.NOT_FINITE and below and (deep or len(self._swaps) > 1)

    def _compare_rates(self, trend: Trend) -> Decision:
        if len(self._second) <= self.trial:
            done = len(self._second) - 1
            return Decision(False, f"iteration {done} of a trial of {self.trial}")
        first, last = self._second[-1 - self.trial], self._second[-1]
        gained = self._level(first) - self._level(last)
        promised = trend.promise(first.passes) - trend.promise(last.passes)
        unit = "of ln loss" if trend.logarithmic else "of the loss"
        seen = f"gained {gained:.3g}, Adam promised {promised:.3g} ({unit})"
        if stalled := self._stalled(trend):
            return Decision(True, stalled)
        spent = last.passes - first.passes
        return Decision(self._behind(trend) and gained < promised, f"in {spent} passes it {seen}")

    def _stalled(self, trend: Trend) -> str:
        """What says that the phase stalls; empty where it does not."""
        last = self._second[-1]
        if last.passes < SHORTEST_STALL:
            return ""
        begin = bisect_right(self._second, 0.75 * last.passes, key=attrgetter("passes")) - 1
        first = self._second[min(begin, len(self._second) - 1 - self.trial)]
        gained = self._level(first) - self._level(last)
        if first.passes == 0 or gained >= STALL_SLOPE * math.log(last.passes / first.passes):
            return ""
        return (
            f"it stalls: {first.loss:.4g} to {last.loss:.4g} in {last.passes - first.passes} passes"
        )

    def _behind(self, trend: Trend) -> bool:
        """Whether the loss is above what Adam promised for as many passes."""
        last = self._second[-1]
        return self._level(last) > trend.promise(last.passes)
