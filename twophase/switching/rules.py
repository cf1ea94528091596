"""When to leave Adam: rules that read one loss and one gradient norm per epoch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from twophase.errors import InputError, check_integer, check_number, check_type
from twophase.objective import GRADIENT_PASSES, Way
from twophase.settings import Settings, Stateful, state
from twophase.switching.peak import PeakSeen, PeakTest

# what a rule is told of an epoch: loss and gradient norm, and its way, too
Seen = tuple[float, float] | tuple[float, float, Way | None]


class Decision(NamedTuple):
    """Whether to switch to the second phase now, and why or why not."""

    switch: bool
    reason: str


class SwitchRule(Protocol):
    """What the two-phase loop asks of a rule: one update per epoch, and a copy that is new.

    A rule touches neither model nor data, and replays over a recorded trace. The library's, but for
    `FixedEpoch`, raise `InputError` where a loss or norm is not finite or a norm below zero.
    `price` is what an epoch's numbers cost, in passes over the data, where Adam takes mini-batches:
    3 for the norm, 1 for the loss alone. A rule with `sees_way = True` has a third argument in
    `update`, the `twophase.objective.Way` of the epoch, None where that is not known: in the first
    epoch of mini-batches, and with `FromBatches`.
    """

    price: int

    def update(self, loss: float, grad_norm: float) -> Decision:
        """Take one epoch's loss and gradient norm; decide whether to switch now."""

    def fresh(self) -> Self:
        """The same rule with nothing seen yet."""


@dataclass(unsafe_hash=True)
class FixedEpoch(Stateful, Settings):
    """Switch after a given number of epochs, at least 1, as the paper's Table 1 does."""

    epoch: int
    seen: int = state(default=0)

    price = 0

    def __post_init__(self) -> None:
        check_integer("swap_epoch", self.epoch, 1)

    def update(self, loss: float, grad_norm: float) -> Decision:
        self.seen += 1
        return Decision(self.seen >= self.epoch, f"epoch {self.seen}, fixed swap at {self.epoch}")


@dataclass(unsafe_hash=True)
class GradientNormPeak(Stateful, Settings):
    """Algorithm 1 of the paper, literally: switch when the norm falls to `factor` of its maximum.

    gn_max ← max(gn, gn_max); switch when gn <= factor · gn_max, with gn the gradient norm of the
    full training loss at the end of an epoch (loss per unit of parameter), and 0.9 as the paper's
    gn_fact in (0, 1]. Beware: the small dip of the norm after the initialisation can satisfy it.
    """

    factor: float = 0.9
    peak: float = state(default=0.0)

    price = GRADIENT_PASSES

    def __post_init__(self) -> None:
        check_number("factor", self.factor, above=0, maximum=1)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        self.peak = max(self.peak, grad_norm)
        level = self.factor * self.peak
        switch = grad_norm <= level
        where = "at or below" if switch else "above"
        seen = f"gradient norm {grad_norm:.4g}, peak {self.peak:.4g}, level {level:.4g}"
        return Decision(switch, f"{where} {self.factor:g} of its peak: {seen}")


@dataclass(unsafe_hash=True)
class SmoothedNormPeak(Stateful, Settings):
    """Switch when the smoothed gradient norm has risen clearly, peaked and fallen: see `PeakTest`.

    The paper, section 3, asks for smoothing where the path zigzags. A trace without a clear rise
    never fires it; then Adam simply goes on. Where the norm peaks within the first epoch (small
    batches, large data sets), update it more often.

    >>> norms = [2, 1.6, 2, 4, 8, 16, 23, 20, 16, 12, 9, 7, 5, 4, 3, 2, 1.5, 1, 0.7, 0.5, 0.3]
    >>> trace = [(0.0, norm) for norm in norms]
    >>> first_switch(SmoothedNormPeak(), trace), first_switch(GradientNormPeak(), trace)
    (13, 2)
    """

    test: PeakTest = PeakTest()
    seen: PeakSeen = state(default=None)

    price = GRADIENT_PASSES

    def __post_init__(self) -> None:
        check_type("test", self.test, PeakTest)
        self.seen = PeakSeen(self.test)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        return Decision(*self.seen.add(len(self.seen), grad_norm))


@dataclass(unsafe_hash=True)
class NormVersusLoss(SmoothedNormPeak):
    """Switch when the gradient norm, as a function of the loss, has peaked and fallen.

    `PeakTest` over the norms in the order of falling losses instead of epochs: an epoch that climbs
    back to an earlier loss is compared with what was seen there. The paper's section 3 recommends
    it for losses that fluctuate. It never switches at a loss in the upper half of those seen.
    """

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        switch, reason = self.seen.add(-loss, grad_norm)
        if switch and self.seen.rank(-loss) <= len(self.seen) // 2:
            return Decision(False, f"the loss {loss:.4g} is above most seen; {reason}")
        return Decision(switch, f"by falling loss, {reason}")


def tell(rule: SwitchRule, loss: float, grad_norm: float, way: Way | None = None) -> Decision:
    """One update of a rule, with the way if it sees that."""
    seen = (loss, grad_norm, way) if getattr(rule, "sees_way", False) else (loss, grad_norm)
    return rule.update(*seen)


def replay(rule: SwitchRule, trace: Iterable[Seen]) -> list[Decision]:
    """The decisions of a fresh rule over a recorded trace, of what it is told of each epoch."""
    rule = rule.fresh()
    return [tell(rule, *seen) for seen in trace]


def first_switch(rule: SwitchRule, trace: Iterable[Seen]) -> int | None:
    """The epoch, counted from 1, after which `replay` first says switch; None if it never does."""
    decisions = enumerate(replay(rule, trace), 1)
    return next((epoch for epoch, decision in decisions if decision.switch), None)


def moved(loss: float, before: float, now: float) -> float:
    """A loss seen earlier, where the loss `before` has become `now`: in proportion, or as far."""
    return loss * (now / before) if before > 0 and now > 0 else loss + (now - before)


def check_seen(loss: float, grad_norm: float) -> None:
    """Raise `InputError` unless both numbers are finite and the norm is at least 0."""
    for name, number in (("loss", loss), ("grad_norm", grad_norm)):
        if not _is_finite(number):
            raise InputError(name, number, "a finite number")
    if grad_norm < 0:
        raise InputError("grad_norm", grad_norm, "a norm of at least 0")


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, ValueError):
        return False
