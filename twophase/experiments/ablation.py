"""Ablations: Adam then a second phase beside Adam alone, at equal epochs, passes and seconds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from twophase.errors import TwoPhaseError
from twophase.experiments import branches, executors, reached, runs
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import ALONE, Executor
from twophase.experiments.files import work_folder
from twophase.experiments.statistics import Estimate, by_group, mean_of, ratio, span
from twophase.objective import GRADIENT_PASSES

# columns of losses, and their names for readers
LOSSES = {"train_loss": "training loss", "validation_loss": "validation loss"}
BUDGETS = ("epochs", "passes", "seconds")
_MEASURED = (
    *("status", "swapped", "epochs_run", "passes", "epochs_within"),
    *(f"{loss}_{budget}" for loss in LOSSES for budget in BUDGETS),
    *(f"adam_{loss}" for loss in LOSSES),
)


def run(
    rows: Sequence[tuple[Mapping[str, Any], RunConfig]],
    out: str | Path | None = None,
    root: Path | None = None,
    device: str | torch.device = "auto",
    executor: str | Executor = ALONE,
) -> pd.DataFrame:
    """Run what is not finished of some configurations, and put them beside Adam alone.

    Each row of the table has its labels, such as {"factor": 0.9}, and a configuration that begins
    with Adam. The runs are kept in `out`, see `work_folder`; for the rest see `branches.Place` and
    `branches.run`; the executor may be a text, see `executors.named`. A run that fails is named in
    the log and in the table; the others still run.

    The columns are the labels; `seed`; `folder` below `out`, which runs of the same course share
    (see `branches.settled`); `status`, `swapped` (the last epoch before the first swap, missing if
    there was none), `epochs_run` and `passes` of the run; `epochs_within`, the epochs within the
    budget of passes; for each loss of `LOSSES`, a mean over examples and classes, its value for the
    final weights (`…_epochs`), within the passes and the seconds that Adam alone spent in all its
    epochs (`…_passes`, `…_seconds`), and that of Adam alone after these (`adam_…`); `error`, the
    reason why a run failed, else empty. What the switch reads is charged, see `reached.charged`.
    """
    executor = executors.named(executor)
    place = branches.Place(work_folder(out, executor.shared), root, device)
    done = branches.run([config for _, config in rows], place, executor)
    return pd.DataFrame(
        [_row(labels, one, place) for (labels, _), one in zip(rows, done, strict=True)]
    )


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of finished runs, else `TwoPhaseError`; of the others labels, seed and error."""
    failed = frame.error != ""
    if failed.all():
        raise TwoPhaseError(f"no run has finished; first error: {frame.error.iloc[0]}")
    labels = frame.columns[: frame.columns.get_loc("seed")]
    return frame[~failed], frame.loc[failed, [*labels, "seed", "error"]]


def within(history: pd.DataFrame, spent: pd.Series, budget: float) -> pd.Series:
    """What a run had reached within a budget: its last record that needed no more, or its first.

    `history` has a row per epoch, `spent` what each of them needed with all before it.
    """
    return history.iloc[max(int((spent <= budget).sum()) - 1, 0)]


def costs(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """What the second phase cost, for each combination of some labels: means over the seeds.

    `passes` for each of its epochs; `epochs`, made; `within`, those that fit into the passes of
    Adam alone, 0 where these are spent before the swap; and `ended`, in how many runs it ended
    before the last epoch. `frame` is from `run`, without the runs that failed.
    """
    epochs = frame.epochs_run - frame.swapped
    found = frame[list(by)].assign(
        passes=(frame.passes - GRADIENT_PASSES * frame.swapped) / epochs,
        epochs=epochs,
        within=(frame.epochs_within - frame.swapped).clip(lower=0),
        ended=frame.status != "completed",
    )
    how = {"passes": "mean", "epochs": "mean", "within": "mean", "ended": "sum"}
    return found.groupby(list(by), sort=False).agg(how).reset_index()


def compare(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means and paired ratios to Adam alone over the seeds, with intervals.

    A row for each combination of some columns of what `run` returned has these; `seeds`, the
    finished runs; `failed`, the others; and for each loss and each budget of `BUDGETS`, with the
    ends of their `interval` in `…_low` and `…_high` (missing for fewer than two seeds; all is
    missing where no run has finished): the mean loss, such as `train_loss_passes`, and its ratio to
    Adam alone, such as `train_loss_passes_ratio`; the mean loss of Adam alone, `adam_train_loss`.
    `InputError` for a finished run with a loss of 0, which has no ratio.
    """

    def describe(of: pd.DataFrame) -> dict[str, float | None]:
        done = of[of.error == ""]
        row = {"seeds": len(done), "failed": len(of) - len(done)}
        for loss in LOSSES:
            reference = done[f"adam_{loss}"].to_numpy(float)
            row |= _columns(f"adam_{loss}", mean_of, reference)
            for name in (f"{loss}_{budget}" for budget in BUDGETS):
                losses = done[name].to_numpy(float)
                row |= _columns(name, mean_of, losses)
                row |= _columns(f"{name}_ratio", ratio, losses, reference)
        return row

    return by_group(frame, by, describe)


def between(
    frame: pd.DataFrame, one: Mapping[str, Any], other: Mapping[str, Any], column: str
) -> Estimate:
    """The ratio of a loss of `run` under some labels to that under others, paired by seed."""
    values = []
    for labels in (one, other):
        there = (frame[list(labels)] == pd.Series(labels)).all(axis=1)
        values.append(frame[there].set_index("seed")[column].astype(float))
    shared = values[0].index.intersection(values[1].index)
    return ratio(*(of.loc[shared].to_numpy() for of in values))


def folds(frame: pd.DataFrame, by: Sequence[str], column: str) -> dict[str, Estimate]:
    """How many-fold the choice of one of some columns changes the training loss of `run`.

    For each of `BUDGETS` the largest ratio `between` two settings that differ in this column alone;
    1 where there are none.
    """
    seeds = {
        names: set(of.seed) for names, of in frame[frame.error == ""].groupby(list(by), sort=False)
    }
    alike = [name != column for name in by]
    pairs = [
        [dict(zip(by, names, strict=True)) for names in pair]
        for pair in permutations(seeds, 2)
        if seeds[pair[0]] & seeds[pair[1]]
        and all(a == b for a, b, same in zip(*pair, alike, strict=True) if same)
    ]
    return {
        budget: max(
            (between(frame, *pair, f"train_loss_{budget}") for pair in pairs),
            key=lambda found: found.mean,
            default=Estimate(1.0, None, None),
        )
        for budget in BUDGETS
    }


def folds_in_words(found: Mapping[str, Estimate]) -> str:
    """What `folds` found, as a phrase to follow "changes the loss up to"."""
    words = []
    for budget, one in found.items():
        spread = "one seed" if one.low is None else f"{_number(one.low)} to {_number(one.high)}"
        unclear = ", no clear difference" if one.low is not None and one.low <= 1 else ""
        words.append(f"**{_number(one.mean)}-fold** at equal {budget} ({spread}{unclear})")
    return ", ".join(words)


def clearly(found: Mapping[str, Estimate]) -> str:
    """By which budgets a choice of `folds` matters on all seeds, or "not clearly"."""
    clear = [budget for budget, one in found.items() if one.low is not None and one.low > 1]
    return f"at equal {' and '.join(clear)}" if clear else "not clearly"


def steps_in_words(found: pd.DataFrame) -> str:
    """On how many epochs of the second phase losses at equal passes rest, by `costs`, and which."""
    least, most = found.within.min(), found.within.max()
    none = ", 0 where Adam's passes are spent before the swap" if least == 0 else ""
    return (
        f"At equal passes this rests on {least:.1f} to {most:.1f} epochs of the second phase "
        f"(means over the seeds{none})."
    )


def validation_in_words(compared: pd.DataFrame) -> str:
    """Ratios of the validation loss to Adam's over all rows of `compare`, in words."""
    found = []
    for budget in BUDGETS:
        ratios = compared[f"validation_loss_{budget}_ratio"].dropna()
        found.append(f"{span(ratios, _number)} times Adam's at equal {budget}")
    return f"In validation loss, over all settings, both phases end at {', '.join(found)}."


def variants(rows: pd.DataFrame, by: Sequence[str]) -> str:
    """The labels of some rows of `compare` in words, such as "PR with 0.01 and PR+ with 0.01".

    Values of the last label are put together where the others are the same, as in "PR with 0.1 or
    0.01".
    """
    parts: dict[str, list[str]] = {}
    for *first, last in rows[list(by)].itertuples(index=False):
        text = f"{last:g}" if isinstance(last, float) else str(last)
        parts.setdefault(", ".join(map(str, first)), []).append(text)
    return " and ".join(f"{name} with {' or '.join(values)}" for name, values in parts.items())


def in_words(found: Estimate) -> str:
    """A ratio to Adam alone as a phrase to follow "the loss is": the number, its interval, a word.

    "lower" and "higher" only if the interval leaves out 1.

    >>> in_words(Estimate(0.5, 0.4, 0.6))
    "0.5 times Adam's (0.4 to 0.6), lower"
    """
    number = f"{_number(found.mean)} times Adam's"
    if found.low is None or found.high is None:
        return f"{number} (one seed)"
    word = "lower" if found.high < 1 else "higher" if found.low > 1 else "no clear difference"
    return f"{number} ({_number(found.low)} to {_number(found.high)}), {word}"


def estimate(row: pd.Series, name: str) -> Estimate:
    """What a row of `compare` says about a column: its value and the ends of its interval."""
    mean, *ends = pd.to_numeric(row[[name, f"{name}_low", f"{name}_high"]])
    return Estimate(float(mean), *(None if pd.isna(end) else float(end) for end in ends))


def as_table(compared: pd.DataFrame, by: Sequence[str], loss: str = "train_loss") -> pd.DataFrame:
    """What `compare` found, as a reader wants it: Adam's loss and ratios, with intervals as text.

    Losses, one of `LOSSES`, are in units of 10⁻³, "–" where nothing was measured.
    """
    names = {"Adam alone, 10⁻³": (f"adam_{loss}", 1e3)}
    names |= {f"ratio, equal {budget}": (f"{loss}_{budget}_ratio", 1) for budget in BUDGETS}
    shown = compared[[*by, "seeds"]].copy()
    for heading, (name, scale) in names.items():
        shown[heading] = [as_text(estimate(row, name), scale) for _, row in compared.iterrows()]
    return shown.reset_index(drop=True)


def as_text(found: Estimate, scale: float = 1.0) -> str:
    """A number times a scale, with its interval where there is one; "–" for NaN."""
    if np.isnan(found.mean):
        return "–"
    mean, *ends = (_number(scale * value) for value in found if value is not None)
    # a line may break before the interval, not within it
    interval_text = ",\N{NO-BREAK SPACE}".join(ends)
    return f"{mean} [{interval_text}]" if ends else mean


def _row(labels: Mapping[str, Any], done: branches.Done, place: branches.Place) -> dict[str, Any]:
    row = {**labels, "seed": done.config.seed, "folder": done.folder.name}
    if done.error:
        return row | dict.fromkeys(_MEASURED) | {"status": "failed", "error": done.error}
    history, summary = runs.read(done.folder)
    reference, _ = runs.read(place.folder(done.config.trunk()))
    spent = reached.charged(history, done.config)
    ends = {"epochs": history.iloc[summary["weights_epoch"] - 1]} | {
        name: within(history, spent[name], reference[name].sum()) for name in spent
    }
    return row | {
        "status": summary["status"],
        "swapped": summary["swap_epoch"],
        "epochs_run": len(history),
        "passes": int(history.passes.sum()),
        "epochs_within": int(ends["passes"].epoch),
        **{f"{loss}_{name}": end[loss] for loss in LOSSES for name, end in ends.items()},
        **{f"adam_{loss}": reference[loss].iloc[-1] for loss in LOSSES},
        "error": "",
    }


def _number(value: float) -> str:
    """Two significant digits, a few seeds tell no more; ratios near 1 have two decimals."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{3 if value >= 1 else 2}g}"


def _columns(
    name: str, estimate: Callable[..., Estimate], *losses: np.ndarray
) -> dict[str, float | None]:
    """An estimate and its ends as columns, missing where there are no losses."""
    found = estimate(*losses) if len(losses[0]) else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
