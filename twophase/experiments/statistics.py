"""How numbers over seeds are summarised: means with intervals, and ratios with their range."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from twophase.errors import InputError


def by_group(
    frame: pd.DataFrame, by: Sequence[str], describe: Callable[[pd.DataFrame], Mapping[str, Any]]
) -> pd.DataFrame:
    """A row for each combination of the values of some columns: these, and what describes its rows.

    They come in the order in which `frame` has them first; a missing value is one, too.
    """
    groups = frame.groupby(list(by), sort=False, dropna=False)
    rows = [dict(zip(by, values, strict=True)) | describe(of) for values, of in groups]
    return pd.DataFrame(rows)


# Seeds from which on there is an interval: of fewer, resampling says no more than their range.
FEWEST = 5


class Estimate(NamedTuple):
    """A mean over seeds and the ends of its `interval`, None for fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Ends of the 95 % percentile bootstrap interval of the mean of `values` [n].

    The resampling always starts from one seed, so that the same values give the same ends. For n
    below 5 the lowest and the highest value, None for n < 2.
    """
    if len(values) < 2:
        return None, None
    if len(values) < FEWEST:
        return float(np.min(values)), float(np.max(values))
    generator = np.random.default_rng(0)
    ends = bootstrap((values,), np.mean, method="percentile", rng=generator).confidence_interval
    return float(ends.low), float(ends.high)


def spread(seeds: Iterable[int]) -> str:
    """What `interval` is for some numbers of seeds, in words for a caption."""
    ranges = {count < FEWEST for count in seeds if count > 1}
    if not ranges:
        return "no intervals"
    if ranges == {True}:
        return "ranges over the seeds"
    return "95 % bootstrap intervals" + f" (ranges below {FEWEST} seeds)" * (True in ranges)


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of values [n >= 1] and its `interval`."""
    return Estimate(float(np.mean(values)), *interval(values))


def ratio(losses: np.ndarray, reference: np.ndarray) -> Estimate:
    """The geometric mean ratio of losses to others of the same seeds, both [n >= 1].

        ratio = exp(mean(ln(loss / reference)))

    It treats halving and doubling alike, and a hard seed counts like an easy one. The interval's
    ends are exp of those of the logarithms' mean. `InputError` for a loss that is not above 0 and
    for different shapes.
    """
    if np.shape(losses) != np.shape(reference):
        raise InputError("losses", np.shape(losses), f"the reference's shape {np.shape(reference)}")
    pair = np.array([losses, reference], dtype=float)
    if not (pair > 0).all():
        raise InputError("losses", pair.min(), "losses above 0")
    logs = mean_of(np.log(pair[0] / pair[1]))
    return Estimate(*(None if end is None else float(np.exp(end)) for end in logs))


QUICKER = 1 / 1.06
# Ratios below this are shown as this.
LEAST = 1e-6


class Ratio(NamedTuple):
    """A ratio of costs over seeds: median, lowest, highest (inf: a miss), seeds and misses.

    Costs are read off curves whose points are up to 6 % apart, so that a ratio is below 1 where it
    is below `QUICKER`, 1 / 1.06.
    """

    median: float
    low: float
    high: float
    seeds: int
    missed: int = 0

    @property
    def quicker(self) -> bool | None:
        """Whether all seeds are below 1 by what curves can tell, or none is; None: some are."""
        if self.high < QUICKER:
            return True
        return None if self.low < QUICKER else False

    @property
    def text(self) -> str:
        """The median and the range, or how many seeds missed."""
        if self.missed == self.seeds:
            return "missed"
        if np.isinf(self.median):
            return f"missed on {self.missed} of {self.seeds} seeds ({ratio_text(self.low)} at best)"
        if self.seeds == 1:
            return f"{ratio_text(self.median)} (one seed)"
        if 0 < self.low <= self.high < LEAST:
            return f"{ratio_text(self.median)} (all seeds)"
        return f"{ratio_text(self.median)} ({ratio_text(self.low)} to {ratio_text(self.high)})"


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The ratio over seeds; a miss counts as infinite, also in the median."""
    values = np.sort(np.asarray(ratios, dtype=float))
    # between a number and inf numpy's median is nan
    middle = [values[(len(values) - 1) // 2], values[len(values) // 2]]
    missed = int(np.isinf(values).sum())
    return Ratio(float(sum(middle) / 2), float(values[0]), float(values[-1]), len(values), missed)


def span(values: pd.Series, text: Callable[[float], str]) -> str:
    """The lowest and the highest of some numbers, or the only one."""
    return " to ".join(dict.fromkeys(map(text, (values.min(), values.max()))))


def ratio_text(value: float) -> str:
    """A ratio with two decimals, or two digits where that is less; "a miss" for inf.

    Below `LEAST`, where rounding and luck decide, it says only that.
    """
    if np.isinf(value):
        return "a miss"
    if 0 < value < LEAST:
        return f"<{LEAST:.0e}"
    if 0.095 <= value < 9.95:
        return f"{value:.2f}"
    digits = f"{value:.2g}"
    return f"{float(digits):,.0f}" if 1 < value < 1e6 else digits
