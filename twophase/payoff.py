"""Whether the second phase pays, by a run's own records: its loss beside Adam's trend."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import attrgetter

from twophase.record import ADAM, TRIAL, Record
from twophase.switching.fallback import Seen, Trend


@dataclass(frozen=True)
class Payoff:
    """A second phase, and what Adam's trend foresaw for as many passes.

    From `first_epoch` to `last_epoch` the phase spent `passes` and met the lowest training `loss`,
    where Adam would have come to the loss `foreseen` by its `Trend` (see `Fallback`). This is a
    forecast, not a run: Adam's loss may fall faster or slower than its trend.
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
    """The loss that Adam will come to with so many more passes, by the trend of its records."""
    records = list(adam)
    spent = accumulate(record.passes for record in records)
    trend = Trend.of([Seen(p, record.train_loss) for p, record in zip(spent, records, strict=True)])
    promise = trend.promise(passes)
    return math.exp(promise) if trend.logarithmic else promise


def payoffs(records: Iterable[Record]) -> list[Payoff]:
    """Each second phase of a run, judged against the epochs of Adam before it, if there are any.

    A trial that was won belongs to the phase, one that was lost to none.
    """
    found: list[Payoff] = []
    adam: list[Record] = []
    trial: list[Record] = []
    for phase, group in groupby(records, key=attrgetter("phase")):
        epochs = list(group)
        if phase == ADAM:
            adam += epochs
            trial = []
        elif phase == TRIAL:
            trial = epochs
        elif adam:
            epochs = trial + epochs
            passes = sum(record.passes for record in epochs)
            lowest = min(record.train_loss for record in epochs)
            foreseen = forecast(adam, passes)
            found.append(Payoff(epochs[0].epoch, epochs[-1].epoch, passes, lowest, foreseen))
    return found
