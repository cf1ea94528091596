"""When to leave Adam: rules that read one loss and one gradient norm per epoch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from twophase.errors import InputError, check_integer, check_number, check_type
from twophase.settings import Settings, Stateful, state

# The median of absolute deviations of a normal distribution, in standard deviations.
NORMAL_MAD = 0.6745
# The standard error of a median over that of a mean, for normal noise: sqrt(π/2).
MEDIAN_ERROR = math.sqrt(math.pi / 2)


class Decision(NamedTuple):
    """Whether to switch to the second phase now, and why or why not."""

    switch: bool
    reason: str


class SwitchRule(Protocol):
    """What the two-phase loop asks of a rule: one update per epoch, and a copy that is new.

    A rule touches neither model nor data, and replays over a recorded trace. The library's, but for
    `FixedEpoch`, raise `InputError` where a loss or norm is not finite or a norm below zero.
    """

    def update(self, loss: float, grad_norm: float) -> Decision:
        """Take one epoch's loss and gradient norm; decide whether to switch now."""

    def fresh(self) -> Self:
        """The same rule with nothing seen yet."""


@dataclass(unsafe_hash=True)
class FixedEpoch(Stateful, Settings):
    """Switch after a given number of epochs, at least 1, as the paper's Table 1 does."""

    epoch: int
    seen: int = state(default=0)

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


@dataclass(frozen=True)
class PeakTest(Settings):
    """Whether a sequence of gradient norms has risen clearly, peaked, and stayed below its peak.

    The norms are smoothed by a running median over `window` values, backwards. With s the
    logarithm of the smoothed norms, p the place of its maximum (counted from 1) and σ the noise of
    the logarithms, estimated from their second differences, e = confidence · σ · sqrt(π / window)
    is what noise may do to a difference of two smoothed values. The test asks for

    - a clear rise before the peak: s_p − min s_i >= ln(rise) + e over i <= p;
    - a lasting fall: s_i <= s_p + ln(factor) − e for the last max(patience, share · p) values.

    The time to wait grows with the time that the peak took, so that neither a dip after the
    initialisation nor the learning rate, which stretches the whole curve, decides.

    By default `factor` is the paper's gn_fact; a `rise` of 1.5 is more than the dips after the
    initialisation, and far less than the tenfold rises of the paper's Figure 5; two outliers change
    nothing in a `window` of 5, and `patience` is another window; a `share` of 1 waits as long again
    as the peak took; noise exceeds a `confidence` of 3 standard errors once in a thousand times.
    """

    factor: float = 0.9
    rise: float = 1.5
    window: int = 5
    patience: int = 5
    share: float = 1.0
    confidence: float = 3.0

    def __post_init__(self) -> None:
        check_number("factor", self.factor, above=0, maximum=1)
        check_number("rise", self.rise, above=1)
        check_integer("window", self.window, 1)
        check_integer("patience", self.patience, 1)
        check_number("share", self.share, minimum=0)
        check_number("confidence", self.confidence, minimum=0)

    def __call__(self, norms: Iterable[float]) -> Decision:
        """Decide for a sequence of at least one norm, in the order in which they were met."""
        # a norm of zero is below every other, and its logarithm must be a number
        logs = np.log(np.maximum(np.fromiter(norms, float), np.finfo(float).tiny))
        smooth = _running_median(logs, self.window)
        error = self.confidence * _noise(logs) * MEDIAN_ERROR * math.sqrt(2 / self.window)
        top = int(np.argmax(smooth))
        peak, place = math.exp(smooth[top]), top + 1
        seen = f"smoothed norm {math.exp(smooth[-1]):.4g}, peak {peak:.4g} at {place}"
        rise = smooth[top] - smooth[:place].min()
        if rise < math.log(self.rise) + error:
            ratio = f"{math.exp(rise):.3g} times, {self.rise * math.exp(error):.3g} needed"
            return Decision(False, f"no clear rise: {ratio}; {seen}")
        level = smooth[top] + math.log(self.factor) - error
        below = _trailing(smooth <= level)
        needed = max(self.patience, math.ceil(self.share * place))
        lasting = below >= needed
        found = "a clear rise and a lasting fall" if lasting else "waiting after a clear rise"
        fall = f"below {math.exp(level):.4g} for {below} of {needed}"
        return Decision(lasting, f"{found}, {fall}; {seen}")


@dataclass(unsafe_hash=True)
class SmoothedNormPeak(Stateful, Settings):
    """Switch when the smoothed gradient norm has risen clearly, peaked and fallen: see `PeakTest`.

    The robust rule and the default; the paper, section 3, asks for smoothing where the path
    zigzags. A trace without a clear rise never fires it; then Adam simply goes on. Where the norm
    peaks within the first epoch (small batches, large data sets), update it more often.

    >>> norms = [2, 1.6, 2, 4, 8, 16, 23, 20, 16, 12, 9, 7, 5, 4, 3, 2, 1.5, 1, 0.7, 0.5, 0.3]
    >>> trace = [(0.0, norm) for norm in norms]
    >>> first_switch(SmoothedNormPeak(), trace), first_switch(GradientNormPeak(), trace)
    (19, 2)
    """

    test: PeakTest = PeakTest()
    norms: list[float] = state(default_factory=list)

    def __post_init__(self) -> None:
        check_type("test", self.test, PeakTest)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        self.norms.append(grad_norm)
        return self.test(self.norms)


@dataclass(unsafe_hash=True)
class NormVersusLoss(Stateful, Settings):
    """Switch when the gradient norm, as a function of the loss, has peaked and fallen.

    `PeakTest` over the norms in the order of falling losses instead of epochs: an epoch that climbs
    back to an earlier loss is compared with what was seen there. The paper's section 3 recommends
    it for losses that fluctuate. It never switches at a loss in the upper half of those seen.
    """

    test: PeakTest = PeakTest()
    seen: list[tuple[float, float]] = state(default_factory=list)

    def __post_init__(self) -> None:
        check_type("test", self.test, PeakTest)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        self.seen.append((loss, grad_norm))
        ordered = sorted(self.seen, key=lambda pair: -pair[0])
        decision = self.test(norm for _, norm in ordered)
        lower = sum(seen < loss for seen, _ in ordered)
        if decision.switch and lower > len(ordered) // 2:
            return Decision(False, f"the loss {loss:.4g} is above most seen; {decision.reason}")
        return Decision(decision.switch, f"by falling loss, {decision.reason}")


def replay(rule: SwitchRule, trace: Iterable[tuple[float, float]]) -> list[Decision]:
    """The decisions of a fresh rule over a recorded trace of (loss, gradient norm) per epoch."""
    rule = rule.fresh()
    return [rule.update(loss, grad_norm) for loss, grad_norm in trace]


def first_switch(rule: SwitchRule, trace: Iterable[tuple[float, float]]) -> int | None:
    """The epoch, counted from 1, after which `replay` first says switch; None if it never does."""
    decisions = enumerate(replay(rule, trace), 1)
    return next((epoch for epoch, decision in decisions if decision.switch), None)


def check_seen(loss: float, grad_norm: float) -> None:
    """Raise `InputError` unless both numbers are finite and the norm is at least 0."""
    for name, number in (("loss", loss), ("grad_norm", grad_norm)):
        if not math.isfinite(number):
            raise InputError(name, number, "a finite number")
    if grad_norm < 0:
        raise InputError("grad_norm", grad_norm, "a norm of at least 0")


def _running_median(values: NDArray[Any], window: int) -> NDArray[Any]:
    """The median of each value and up to `window` − 1 before it."""
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def _noise(logs: NDArray[Any]) -> float:
    """Standard deviation of independent noise on a smooth curve, robustly."""
    if len(logs) < 3:
        return 0.0
    # second differences of the noise have six times its variance; those of the curve are small
    return float(np.median(np.abs(np.diff(logs, 2)))) / (NORMAL_MAD * math.sqrt(6))


def _trailing(below: NDArray[Any]) -> int:
    """How many values at the end are true."""
    above = np.flatnonzero(~below)
    return len(below) - (int(above[-1]) + 1 if len(above) else 0)
