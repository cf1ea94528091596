"""Whether the second phase pays, by a run's own records: its loss beside Adam's trend."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import attrgetter

from twophase.record import ADAM, TRIAL, Record
from twophase.switching.trend import Seen, Trend


@dataclass(frozen=True)
class Payoff:
    """A second phase, and what Adam's trend foresaw for as many passes.

    From `first_epoch` to `last_epoch` the phase spent `passes` and met the lowest training `loss`,
    where Adam would have come to the loss `foreseen` by its `Trend` (see `Fallback`). This is a
    forecast, not a run: Adam's loss may fall faster or slower than its trend. `validation` are the
    validation losses before the phase and where its training loss was lowest.
    """

    first_epoch: int
    last_epoch: int
    passes: int
    loss: float
    foreseen: float
    validation: tuple[float, float] | None = None

    @property
    def pays(self) -> bool:
        """Whether the phase is below what was foreseen of Adam."""
        return self.loss < self.foreseen

    @property
    def text(self) -> str:
        """The finding as a sentence."""
        verdict = "pays" if self.pays else "does not pay"
        text = (
            f"the second phase {verdict}: {self.loss:.3g} after {self.passes} passes from epoch "
            f"{self.first_epoch} on, where Adam by its trend has {self.foreseen:.3g}"
        )
        if not self.pays:
            text += " (a trend knows of no lowest loss)"
        if self.validation is not None and self.loses_in_validation:
            before, after = self.validation
            text += f", but its validation loss rose from {before:.3g} to {after:.3g}"
        return text

    @property
    def loses_in_validation(self) -> bool:
        """Whether the validation loss was higher after the phase than before."""
        return self.validation is not None and self.validation[1] > self.validation[0]


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
            lowest = min(epochs, key=attrgetter("train_loss"))
            foreseen = forecast(adam, passes)
            span = epochs[0].epoch, epochs[-1].epoch, passes
            before, after = adam[-1].validation_loss, lowest.validation_loss
            validation = None if before is None or after is None else (before, after)
            found.append(Payoff(*span, lowest.train_loss, foreseen, validation))
    return found
