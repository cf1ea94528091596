"""Where to swap in a training of one's own: branches from one trajectory of Adam, and a verdict."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pandas as pd
from torch import nn

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.data_objectives import Data
from twophase.errors import InputError, check_integer
from twophase.experiments.profiles import short
from twophase.experiments.statistics import span
from twophase.least_squares import LeastSquares
from twophase.losses import Loss, mse
from twophase.record import Record
from twophase.record import table as table_of
from twophase.second_phase import Minimizer
from twophase.switching import Race, planned
from twophase.trainer import Trainer

COLUMNS = "epoch phase train_loss validation_loss validation_accuracy passes seconds".split()
# A swap that is not at a given epoch: never, and where the library's rule has it.
NEVER, BY_ITSELF = "never", "by the race"


@dataclass(frozen=True)
class Training:
    """What is trained: how the model begins, on what, and by which loss; see `Trainer`.

    `make` returns the model with its initial weights, the same at each call, or a `LeastSquares`.
    `error`, if there is one, says how far a model is from a solution that is known.
    """

    make: Callable[[], nn.Module | LeastSquares]
    data: Data | None = None
    validation: Data | None = None
    loss: Loss = mse
    adam: AdamSettings = field(default_factory=AdamSettings)
    error: Callable[[nn.Module], float] | None = None

    def trainer(self, **settings: Any) -> Trainer:
        """A trainer that is at its start."""
        own = {"validation": self.validation, "loss": self.loss, "adam": self.adam}
        return Trainer(self.make(), self.data, **own, **settings)


def study(
    training: Training, passes: int, swaps: Iterable[int], second: Minimizer = DEFAULT
) -> pd.DataFrame:
    """All losses of one trajectory of Adam, with the second phase from some of its epochs on.

    Each branch ends when so many `passes` over the data are spent, or the second phase can do no
    more; there is no way back. A row for each branch and epoch: `swap` is the epoch as a text,
    "never" or "by the race" (the library's default, with its way back), `passes` are those spent so
    far, those of the rule and its trials included; `seconds` are those of its epochs, trials
    included; `kept` marks the epoch whose weights are the result, and `error` is theirs.

    `InputError` where no swap is left within the passes.
    """
    check_integer("passes", passes, 1)
    alone, wanted, states = training.trainer(second=None), set(swaps), {}
    for record, spent in _epochs(alone, passes):
        if record.epoch in wanted and spent < passes:
            states[record.epoch] = alone.state_dict()
    if not states:
        raise InputError("swaps", sorted(wanted), f"epochs that end within {passes} passes")
    branches = [(NEVER, alone)]
    for epoch, state in states.items():
        branch = training.trainer(second=second, switch=epoch, fallback=None)
        branch.load_state_dict(state)
        branches.append((str(epoch), branch))
    race = planned(Race(), None, passes)
    branches.append((BY_ITSELF, training.trainer(second=second, switch=race)))
    tables = [_rows(*branch, passes, training.error) for branch in branches]
    return pd.concat(tables, ignore_index=True)


def _epochs(trainer: Trainer, passes: int) -> Iterator[tuple[Record, int]]:
    """Train to the end; each record and the passes spent until then."""
    while trainer.spent < passes and not trainer.ended:
        yield trainer.epoch(), trainer.spent


def _rows(
    name: str, trainer: Trainer, passes: int, error: Callable[[nn.Module], float] | None
) -> pd.DataFrame:
    """All epochs of a branch, which is trained to its end, and which has the weights it keeps."""
    before = accumulate(record.passes for record in trainer.history)
    spent = [*before, *(spent for _, spent in _epochs(trainer, passes))]
    table = table_of(trainer.history)[COLUMNS].assign(passes=spent)
    table.insert(0, "swap", name)
    table = table.assign(seconds=table.seconds.cumsum(), kept=table.epoch == trainer.finish().epoch)
    return table if error is None else table.assign(error=error(trainer.model))


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """What each branch has come to, and has cost, and the lowest validation loss on the way."""
    of, last = table.groupby("swap", sort=False), table[table.kept].set_index("swap")
    found = last.drop(columns=["epoch", "phase", "kept"]).assign(
        passes=of.passes.max(),
        seconds=of.seconds.max(),
        lowest_validation_loss=of.validation_loss.min(),
    )
    return found.dropna(axis="columns", how="all")


def to_ends(table: pd.DataFrame) -> pd.DataFrame:
    """`ends` with headings to read."""
    names = {"train_loss": "training loss", "error": "error of the solution"}
    return ends(table).rename(columns=names).rename(columns=lambda name: name.replace("_", " "))


def verdict(table: pd.DataFrame) -> str:
    """In words: which swap ends lowest beside Adam going on, and what validation says of it."""
    found = ends(table)
    return " ".join(_sentences(found.drop(index=BY_ITSELF), found.loc[BY_ITSELF]))


def _sentences(found: pd.DataFrame, race: pd.Series) -> Iterator[str]:
    best, adam = found.train_loss.idxmin(), found.loc[NEVER]
    level = found[found.train_loss <= 1.01 * found.train_loss.min()]  # as good as the lowest
    validates = "validation_loss" in found
    if NEVER in level.index:
        yield "**No swap pays**: Adam going on ends within 1 % of the lowest training loss."
    else:
        where, validation = "in training loss", ""
        if validates:
            pays = level.validation_loss < adam.validation_loss
            who = "and" if pays.all() else "partly" if pays.any() else "not"
            where += f", {who} in validation loss"
            validation = (
                f"; validation losses there are {span(level.validation_loss, short)}, Adam's "
                f"{short(adam.validation_loss)}"
            )
        yield (
            f"**It pays {where}**: the lowest to within 1 %, by the swap at epoch "
            f"{' or '.join(level.index)}, is {short(found.train_loss[best])}, Adam going on ends "
            f"at {short(adam.train_loss)}, at the same passes, not seconds: "
            f"{span(level.seconds, short)} beside {short(adam.seconds)}{validation}."
        )
    where = "below" if race.train_loss < adam.train_loss else "not below"
    own = f"; its own validation loss is {short(race.validation_loss)}" if validates else ""
    yield (
        f"The race, which does not know the best epoch, ends {where} Adam, at "
        f"{short(race.train_loss)}{own}."
    )
    if validates:
        yield from _on_validation(found.lowest_validation_loss, level.validation_loss.min())
    yield "This is one seed."


def _on_validation(lowest: pd.Series, end: float) -> Iterator[str]:
    first = str(lowest.idxmin())
    who, how = f"the swap at epoch {first}", f"switch={first}, fallback=None"
    if first == NEVER:
        who, how = "Adam alone", "second=None"
    yield (
        f"The lowest validation loss on the way, {short(lowest[first])}, is that of **{who}**: "
        f"the best of {len(lowest)} branches, without the race, and of all their epochs, picked on "
        "the same validation examples, so that others may not confirm it."
    )
    if end > 1.05 * lowest[first]:
        yield f'To get it, call `fit(..., {how}, keep="validation")`.'
