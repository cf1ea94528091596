"""Recorded traces of loss and gradient norm under Adam alone, and what switch rules do on them.

A new rule is tried on `data/grad_norm_traces.csv` in seconds, without training.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.signal import find_peaks

from twophase.errors import check_choice, check_integer, check_number
from twophase.experiments import branches, runs
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.executors import ALONE, Executor
from twophase.experiments.files import committed_table, write_rows
from twophase.problems import networks
from twophase.problems.problem import ImageProblem
from twophase.switching.rules import SwitchRule, first_switch, replay

COLUMNS = ("dataset", "model", "seed", "epoch", "loss", "grad_norm")
KEY = ["dataset", "model", "seed"]

# Epochs whose weights a recording keeps, for the convexity audit.
KEPT_EPOCHS = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 110, 150)


class Length(NamedTuple):
    """Epochs of a recording, and the sizes of random subsets (None: all examples)."""

    epochs: int
    train_examples: int | None = None
    validation_examples: int | None = None


# vgg5-max-relu is past its peak sooner, and its epochs cost most.
LENGTHS: dict[str, dict[str, Length]] = {
    "smoke": {"digits": Length(12, 48, 10)},
    "quick": {"digits": Length(60, 360)},
    "paper": {"digits": Length(150), "fashion-mnist": Length(150, 2048, 256)},
}
SHORTER = {"vgg5-max-relu": 0.4}


def configs(
    preset: str,
    datasets: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    seeds: int = 3,
) -> list[RunConfig]:
    """The runs of Adam alone whose traces a preset records, seed by seed.

    Data sets (of the preset's) and models are all where none are named; seeds count from 0. The
    committed traces are those of the preset "paper". `InputError` for what is not there.
    """
    lengths = LENGTHS[check_choice("preset", preset, LENGTHS)]
    found = []
    for seed in range(check_integer("seeds", seeds, 1, MOST_SEEDS)):
        for model in models or networks.MODELS:
            for dataset in datasets or lengths:
                epochs, *examples = lengths[check_choice("dataset", dataset, lengths)]
                problem = ImageProblem(dataset, model, *examples)
                epochs = round(epochs * SHORTER.get(model, 1))
                found.append(RunConfig(problem, epochs, second=None, seed=seed))
    return found


def folder_name(config: RunConfig) -> str:
    """Where a recording lies below the folder of all."""
    return f"{config.problem.dataset}/{config.problem.model}/seed-{config.seed}/{config.strategy}"


def record(
    chosen: Sequence[RunConfig],
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
    executor: Executor = ALONE,
) -> pd.DataFrame:
    """Train what is not finished of the runs, keep weights at `KEPT_EPOCHS`, return the traces.

    The traces, a row for each epoch of each run with the columns `COLUMNS`, are written to
    `grad_norm_traces.csv` in the folder `out` after each, in the order of `chosen`. `RunsFailed`
    where a run failed; all others were run. For the rest see `branches.Place` and `branches.run`;
    what was finished before stays, and so do the rows of other recordings.
    """
    place = branches.Place(out, root, device, folder_name, KEPT_EPOCHS)
    finished: set[RunConfig] = set()

    def write(one: branches.Done) -> None:
        if not one.error:
            finished.add(one.config)
            traces = collect([config for config in chosen if config in finished], out)
            write_rows(out / "grad_norm_traces.csv", traces, KEY)

    branches.check(branches.run(chosen, place, executor, write))
    return collect(chosen, out)


def collect(chosen: Iterable[RunConfig], out: Path) -> pd.DataFrame:
    """The traces of recordings, with six significant digits; `InputError` if one is unfinished."""
    rows = []
    for config in chosen:
        history, _ = runs.read(out / folder_name(config))
        key = (config.problem.dataset, config.problem.model, config.seed)
        for epoch, *seen in zip(history.epoch, history.train_loss, history.grad_norm, strict=True):
            rows.append((*key, epoch, *(float(f"{number:.6g}") for number in seen)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def committed() -> pd.DataFrame:
    """The recorded traces of the source tree; `InputError` without it.

    Five networks on the digits and on 2,048 examples of Fashion-MNIST, three seeds each, mini-batch
    Adam with its defaults and batches of 512: 150 epochs, `vgg5-max-relu` 60. In the columns
    `COLUMNS` are losses (mean squared error) and gradient norms (loss per unit of parameter) of the
    full training set at the end of each epoch.
    """
    return committed_table("data/grad_norm_traces.csv")


def artificial(noise: float = 0.3, seed: int = 0) -> pd.DataFrame:
    """Six traces by formula whose peaks are known, each once smooth and once with noise.

    The table is one of `committed`'s kind: the data set is "smooth" or "noisy", the model what the
    norm does over 160 epochs. Noisy norms are multiplied by exp(`noise` · z), z standard normal and
    the same for all shapes, drawn from `seed`; all losses fall evenly from 1 to 0.1.
    """
    epochs = np.arange(1, 161)

    def hill(centre: float, width: float, height: float) -> np.ndarray:
        return (height - 1) * np.exp(-0.5 * (np.log(epochs / centre) / width) ** 2)

    rise, decay = 1 + hill(30, 0.4, 8), 8 * 0.95 ** np.maximum(epochs - 60, 0)
    shapes = {
        "a dip first": rise * (1 - 0.4 * np.exp(-0.5 * ((epochs - 4) / 2) ** 2)),
        "a plateau": np.where(epochs < 30, rise, decay),
        "two peaks, the first higher": 1 + hill(25, 0.3, 9) + hill(70, 0.15, 5),
        "two peaks, the second higher": 1 + hill(25, 0.25, 6) + hill(48, 0.15, 11),
        "no peak, rising": 1 + epochs / 20,
        "no peak, falling": 8 / (1 + epochs / 10),
    }
    noisy = np.exp(noise * np.random.default_rng(seed).standard_normal(len(epochs)))
    shared = {"seed": seed, "epoch": epochs, "loss": np.linspace(1, 0.1, len(epochs))}
    tables = [
        pd.DataFrame({"dataset": kind, "model": name, **shared, "grad_norm": norms * factor})
        for name, norms in shapes.items()
        for kind, factor in (("smooth", 1), ("noisy", noisy))
    ]
    return pd.concat(tables, ignore_index=True)


def smoothed(norms: Sequence[float], window: int = 5) -> np.ndarray:
    """The centred mean of each value and its neighbours, shorter at the ends; shape [n]."""
    check_integer("window", window, 1)
    series = pd.Series(np.asarray(norms, float))
    return series.rolling(window, center=True, min_periods=1).mean().to_numpy()


def peak_epoch(norms: Sequence[float], window: int = 5) -> int:
    """The epoch, counted from 1, of the largest smoothed norm of a whole trace."""
    return int(np.argmax(smoothed(norms, window))) + 1


def hills(norms: Sequence[float], factor: float = 1.5, window: int = 5) -> list[int]:
    """The epochs, counted from 1, of the clear peaks of the smoothed norms of a whole trace.

    A peak is clear if the norm falls to 1/`factor` of it on both sides, before it is higher or the
    trace ends: a prominence of log `factor` in the logarithm. 1.5 is above what norms fluctuate
    by from epoch to epoch once they are smoothed over `window` epochs.
    """
    check_number("factor", factor, above=1)
    found, _ = find_peaks(np.log(smoothed(norms, window)), prominence=np.log(factor))
    return [int(epoch) + 1 for epoch in found]


def verdict(fired: int | None, peak: int) -> str:
    """Early is before the peak, late after more than three times its epoch; None: never fired."""
    if fired is None:
        return "never"
    if fired < peak:
        return "early"
    return "late" if fired > 3 * peak else "in time"


def outcomes(traces: pd.DataFrame, rules: Mapping[str, SwitchRule]) -> pd.DataFrame:
    """What each of some named rules does on each trace, a table of `COLUMNS`, without training.

    A row for each trace and rule: dataset, model, seed, rule, fired (missing: never), peak,
    epochs (the trace's length) and `verdict`.
    """
    rows = []
    for key, trace in traces.groupby(KEY, sort=False):
        peak = peak_epoch(trace.grad_norm)
        for name, rule in rules.items():
            fired = first_switch(rule, zip(trace.loss, trace.grad_norm, strict=True))
            rows.append((*key, name, fired, peak, len(trace), verdict(fired, peak)))
    columns = [*KEY, "rule", "fired", "peak", "epochs", "verdict"]
    return pd.DataFrame(rows, columns=columns).astype({"fired": "Int64"})


def reasons(rules: Mapping[str, SwitchRule], trace: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """What each rule says when it switches on a trace of (loss, norm), or at its end."""
    rows = []
    for name, rule in rules.items():
        fired, said = first_switch(rule, trace), replay(rule, trace)
        rows.append((name, fired or "never", said[(fired or len(said)) - 1].reason))
    return pd.DataFrame(rows, columns=["rule", "switches after epoch", "its reason"])


def counts(found: pd.DataFrame) -> pd.DataFrame:
    """How often each rule, a row, was early, in time, late and never."""
    table = pd.crosstab(found["rule"], found["verdict"])
    names = found["rule"].drop_duplicates()
    return table.reindex(index=names, columns=["early", "in time", "late", "never"], fill_value=0)
