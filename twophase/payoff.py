"""Whether the second phase pays, by a run's own records: its loss beside Adam's trend."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from twophase.fallback import Seen, Trend
from twophase.record import ADAM, Record


@dataclass(frozen=True)
class Payoff:
    """A second phase, and what Adam's trend foresaw for as many passes.

    The trend is the straight line through ln(loss) over ln(passes) in the latter half of Adam's
    epochs before the phase (see `twophase.fallback.Trend`). It is a forecast from the run's own
    records, not a run of Adam: Adam's loss may fall faster or slower than its trend.

    Attributes:
        first_epoch, last_epoch: of the phase.
        passes: over the training set that the phase has spent.
        loss: the lowest training loss that it has met.
        foreseen: the loss that Adam would have come to with these passes, by its trend.

    """

    first_epoch: int
    last_epoch: int
    passes: int
    loss: float
    foreseen: float

    @property
    def pays(self) -> bool:
        """Whether the phase is below what was foreseen of Adam."""
        return self.loss < self.foreseen

    @property
    def text(self) -> str:
        """The finding as a sentence."""
        verdict = "pays" if self.pays else "does not pay"
        return (
            f"the second phase {verdict}: {self.loss:.3g} after {self.passes} passes from epoch "
            f"{self.first_epoch} on, where Adam by its trend has {self.foreseen:.3g}"
        )


def forecast(adam: Iterable[Record], passes: int) -> float:
    """The loss that Adam will come to with so many more passes, by its trend.

    Args:
        adam: records of Adam's epochs, at least one.
        passes: over the training set.
    """
    seen: list[Seen] = []
    for record in adam:
        before = seen[-1].passes if seen else 0
        seen.append(Seen(before + record.passes, record.train_loss))
    trend = Trend.of(seen)
    promise = trend.promise(passes)
    return math.exp(promise) if trend.logarithmic else promise


def payoffs(records: Iterable[Record]) -> list[Payoff]:
    """The second phases of a run, each judged against the epochs of Adam before it.

    Args:
        records: of a run, finished or not, in the order of its epochs.

    Returns:
        A `Payoff` for each second phase that has epochs of Adam before it.
    """
    return list(_payoffs(records))


def _payoffs(records: Iterable[Record]) -> Iterator[Payoff]:
    adam: list[Record] = []
    for phase, group in groupby(records, key=lambda record: record.phase):
        epochs = list(group)
        if phase == ADAM:
            adam += epochs
        elif adam:
            passes = sum(record.passes for record in epochs)
            lowest = min(record.train_loss for record in epochs)
            first, last = epochs[0].epoch, epochs[-1].epoch
            yield Payoff(first, last, passes, lowest, forecast(adam, passes))
