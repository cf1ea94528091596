"""Train a model in two phases with one call, and what has come of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.data_objectives import Data
from twophase.directions import ConjugateDirection
from twophase.errors import InputError, check_call, check_integer
from twophase.least_squares import LeastSquares
from twophase.line_search import GoldenSection
from twophase.loop import KEEP, Loop
from twophase.losses import Loss, mse
from twophase.monitor import Exact, Monitor
from twophase.payoff import Payoff, payoffs
from twophase.record import Record, table
from twophase.second_phase import Descent, Minimizer
from twophase.switching import Fallback, FixedEpoch, GradientNormPeak, Race, SwitchRule, planned
from twophase.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd

OnEpoch = Callable[[Record], None]
# Called with the epochs of a training and their number; yields the epochs, as tqdm does.
Progress = Callable[..., Iterable[Record]]

# What the paper prescribes, for `fit`, `Trainer` and configurations: Algorithm 1, conjugate
# gradient with golden section (its section 4; it does not print β and tolerance), no way back.
PAPER: MappingProxyType[str, Any] = MappingProxyType(
    {
        "switch": GradientNormPeak(0.9),
        "second": Descent(ConjugateDirection("PR+"), GoldenSection(rtol=1e-2)),
        "fallback": None,
    }
)


@dataclass(frozen=True)
class Fit:
    """The outcome of `fit`: one `Record` per epoch, and how it ended.

    `status`, in a sentence `message`, is "completed" when all epochs were run or all passes spent,
    else why the second phase ended before. `swap_epoch` is the epoch from whose weights the second
    phase first took over (of a race: where the trial that was won began), None if it never did.
    `final` is the record of the weights that the model has now: the last, or, after a return to
    Adam, the second phase's best if that is lower; with `keep="validation"` those of the lowest
    validation loss.
    """

    records: tuple[Record, ...] = field(repr=False)
    status: str
    message: str
    swap_epoch: int | None
    final: Record = field(repr=False)

    @property
    def changes(self) -> "pd.DataFrame":
        """The changes of phase: the last epoch of a phase, the phase, and why it ended."""
        changed = self.history.note.str.startswith(("trial: ", "switch: ", "return: "))
        return self.history.loc[changed, ["epoch", "phase", "note"]].reset_index(drop=True)

    @property
    def payoffs(self) -> list[Payoff]:
        """Whether each second phase has paid, beside the trend of Adam before it."""
        return payoffs(self.records)

    @property
    def history(self) -> "pd.DataFrame":
        """The records as a table, a row per epoch and a column per field of `Record`."""
        return table(self.records)


def fit(
    model: nn.Module | LeastSquares,
    data: Data | None = None,
    *,
    validation: Data | None = None,
    epochs: int | None = None,
    passes: int | None = None,
    adam: AdamSettings | None = AdamSettings(),
    second: Minimizer | None = DEFAULT,
    switch: SwitchRule | Race | int = Race(),
    fallback: Fallback | None = Fallback(),
    keep: str = "train",
    monitor: Monitor = Exact(),
    freeze: bool = False,
    loss: Loss = mse,
    seed: int = 0,
    device: str | torch.device = "auto",
    chunk_size: int | None = None,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train in two phases: Adam until the rule says switch, then full batches (Algorithm 1).

    `fit(model, (x, y), epochs=200)` takes the library's defaults, `fit(problem, epochs=200)` does
    the same for a `LeastSquares`, and `**twophase.PAPER` takes the paper's rule, conjugate gradient
    and line search, without a way back. An Adam epoch costs 3 passes over the data, an epoch of the
    second phase (one iteration) 3 with a search by slopes, about 16 with golden section; trainings
    that are compared get `passes=` instead of or beside `epochs=`, and end with the epoch in which
    these are spent, what the switch needs to know included (see `Trainer.spent`). `on_epoch` is
    called with each record; `progress`, such as `tqdm.tqdm`, shows how far it is. For the other
    arguments and errors see `Trainer`. An exception that ends a training, Ctrl-C too, has what was
    reached as `records`.

    >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
    >>> result = fit(nn.Linear(1, 1), (inputs, 3 * inputs), epochs=8, switch=3, fallback=None)
    >>> result.swap_epoch, result.history.phase.tolist().count("adam")
    (3, 3)
    """
    _check_length(epochs, passes)
    _check_swap(switch, epochs if adam is not None and second is not None else None)
    trainer = Trainer(
        model,
        data,
        validation=validation,
        adam=adam,
        second=second,
        switch=planned(switch, epochs, passes),
        fallback=fallback,
        keep=keep,
        monitor=monitor,
        freeze=freeze,
        loss=loss,
        seed=seed,
        device=device,
        chunk_size=chunk_size,
    )
    return run(trainer, epochs, on_epoch, progress, passes)


def run(
    trainer: Loop,
    epochs: int | None = None,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
    passes: int | None = None,
) -> Fit:
    """Train until there are `epochs` records, `passes` are spent, or no more can be done."""
    _check_length(epochs, passes)
    trainer.objective.processes.check_alike([], [f"{epochs} epochs, {passes} passes"])
    if on_epoch is not None:
        check_call("on_epoch", on_epoch, "a function: (record)")
    if progress is not None:
        _check_progress(progress)
    records: Iterable[Record] = _epochs(trainer, epochs, passes)
    if progress is not None:
        records = progress(records, total=epochs and epochs - len(trainer.history))
        if not isinstance(records, Iterable):
            raise InputError("progress", f"one that returns {records!r}", "such as tqdm.tqdm")
    try:
        for record in records:
            if on_epoch is not None:
                on_epoch(record)
    except BaseException as error:
        # what was reached is the caller's
        vars(error)["records"] = tuple(trainer.history)
        raise
    return _outcome(trainer, epochs)


def _check_progress(progress: Any) -> None:
    try:
        signature(progress).bind((), total=None)
    except (TypeError, ValueError):  # the latter for builtins, which tell nothing
        raise InputError("progress", progress, "such as tqdm.tqdm: (records, total=...)") from None


def _check_length(epochs: int | None, passes: int | None) -> None:
    if epochs is None and passes is None:
        raise InputError("epochs", None, "a number of epochs, or one of passes")
    for name, number in (("epochs", epochs), ("passes", passes)):
        if number is not None:
            check_integer(name, number, 1)


def _check_swap(switch: SwitchRule | Race | int, epochs: int | None) -> None:
    swap = switch.epoch if isinstance(switch, FixedEpoch) else switch
    if isinstance(swap, int) and epochs and check_integer("switch", swap, 1) >= epochs:
        raise InputError("switch", swap, f"an epoch below the number of epochs, {epochs}")


def _epochs(trainer: Loop, epochs: int | None, passes: int | None) -> Iterator[Record]:
    while not trainer.ended:
        if epochs is not None and len(trainer.history) >= epochs:
            return
        if passes is not None and trainer.spent >= passes:
            return
        yield trainer.epoch()


def _outcome(trainer: Loop, epochs: int | None) -> Fit:
    status, message = str(trainer.status), trainer.message
    if not trainer.ended:
        done = len(trainer.history)
        whole = epochs is not None and done >= epochs
        ran = f"all {done} epochs were run" if whole else f"all {trainer.spent} passes are spent"
        status, message = "completed", ran
    if trainer.course is not None and trainer.swap_epoch is None:
        message += f"; no switch: {trainer.reason}"
    final = trainer.finish()
    if final != trainer.history[-1]:
        message += f"; the weights are those of epoch {final.epoch}, {KEEP[trainer.keep]}"
    message += "".join(f"; {paid.text}" for paid in payoffs(trainer.history))
    return Fit(tuple(trainer.history), status, message, trainer.swap_epoch, final)
