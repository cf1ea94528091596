"""Recorded traces of loss and gradient norm under Adam alone, and what switch rules do on them.

A new rule is tried on `data/grad_norm_traces.csv` in seconds, without training.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from twophase.errors import InputError, check_choice, check_integer
from twophase.experiments import runs
from twophase.experiments.config import RunConfig
from twophase.experiments.files import project_folder, write_atomically
from twophase.switch import FixedEpoch, SwitchRule, first_switch

log = logging.getLogger("twophase")

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
    "paper": {
        "digits": Length(150),
        "fashion-mnist": Length(150, 2048, 256),
    },
}
SHORTER = {"vgg5-max-relu": 0.4}


def configs(
    preset: str,
    datasets: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    seeds: int = 3,
) -> list[RunConfig]:
    """The runs of Adam alone whose traces a preset records, seed by seed.

    Args:
        preset: smoke, quick or paper; the committed traces are paper's.
        datasets: of the preset's; None: all of them.
        networks: names in `twophase.problems.networks.MODELS`; None: all five.
        seeds: how many, at least 1; they count from 0.

    Raises:
        InputError: a name is unknown, or `seeds` is out of range.

    >>> len(configs("paper"))
    30
    """
    lengths = LENGTHS[check_choice("preset", preset, LENGTHS)]
    chosen = [check_choice("dataset", name, lengths) for name in datasets or lengths]
    names = [check_choice("model", name, networks.MODELS) for name in networks or networks.MODELS]
    return [
        RunConfig(
            dataset,
            model,
            "adam",
            round(lengths[dataset].epochs * SHORTER.get(model, 1)),
            seed,
            train_examples=lengths[dataset].train_examples,
            validation_examples=lengths[dataset].validation_examples,
        )
        for seed in range(check_integer("seeds", seeds, 1))
        for model in names
        for dataset in chosen
    ]


def folder(out: Path, config: RunConfig) -> Path:
    """Where a recording lies below `out`.

    >>> folder(Path("out"), configs("paper")[0]).as_posix()
    'out/digits/vit-mlp/seed-0/adam'
    """
    return out / config.dataset / config.model / f"seed-{config.seed}" / config.strategy


def record(
    chosen: Sequence[RunConfig],
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> pd.DataFrame:
    """Train what is not finished of the runs, keep weights at `KEPT_EPOCHS`, return the traces.

    Args:
        chosen: from `configs`.
        out: folder of all runs; `grad_norm_traces.csv` is written there after each.
        root, device: see `twophase.experiments.runs.run`.

    Returns:
        The traces, a row for each epoch of each run; columns `COLUMNS`.

    Raises:
        TwoPhaseError: from `twophase.experiments.runs.run`; what was finished before stays.

    >>> import tempfile
    >>> chosen = configs("smoke", networks=["vit-nomlp-wkewq-wvwo1"], seeds=1)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     made = record(chosen, Path(out), device="cpu")
    >>> made.columns.tolist(), len(made)
    (['dataset', 'model', 'seed', 'epoch', 'loss', 'grad_norm'], 12)
    """
    for number, config in enumerate(chosen, 1):
        log.warning("[%d/%d] %s %s", number, len(chosen), config.dataset, config.model)
        kept = {f"epoch-{e}": FixedEpoch(e) for e in KEPT_EPOCHS if e <= config.epochs}
        runs.run(config, folder(out, config), root, device, branches=kept)
        traces = collect(chosen[:number], out)
        write_atomically(out / "grad_norm_traces.csv", traces.to_csv(index=False))
    return traces


def collect(chosen: Iterable[RunConfig], out: Path) -> pd.DataFrame:
    """The traces of finished recordings, with six significant digits.

    Raises:
        InputError: one is not finished.

    >>> collect([], Path("out")).columns.tolist()
    ['dataset', 'model', 'seed', 'epoch', 'loss', 'grad_norm']
    """
    rows = []
    for config in chosen:
        history, _ = runs.read(folder(out, config))
        rows += [
            (config.dataset, config.model, config.seed, epoch, _rounded(loss), _rounded(norm))
            for epoch, loss, norm in zip(
                history.epoch, history.train_loss, history.grad_norm, strict=True
            )
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def committed() -> pd.DataFrame:
    """The recorded traces of the source tree, `data/grad_norm_traces.csv`.

    Five networks on the digits and on 2,048 examples of Fashion-MNIST, three seeds each, mini-batch
    Adam with its defaults and batches of 512: 150 epochs, `vgg5-max-relu` 60.

    Returns:
        Columns `COLUMNS`: losses (mean squared error) and gradient norms (loss per unit of
        parameter) of the full training set at the end of each epoch.

    Raises:
        InputError: the package does not run from its source tree.

    >>> committed().groupby(KEY).ngroups
    30
    """
    tree = project_folder()
    if tree is None:
        raise InputError("traces", None, "the source tree, whose data folder holds them")
    return pd.read_csv(tree / "data" / "grad_norm_traces.csv")


def smoothed(norms: Sequence[float], window: int = 5) -> np.ndarray:
    """The centred mean of each value and its neighbours, shorter at the ends; shape [n].

    >>> smoothed([0.0, 3.0, 0.0], window=3).tolist()
    [1.5, 1.0, 1.5]
    """
    check_integer("window", window, 1)
    series = pd.Series(np.asarray(norms, float))
    return series.rolling(window, center=True, min_periods=1).mean().to_numpy()


def peak_epoch(norms: Sequence[float], window: int = 5) -> int:
    """The epoch, counted from 1, of the largest smoothed norm of a whole trace.

    >>> peak_epoch([1.0, 2.0, 5.0, 2.0, 1.0], window=3)
    3
    """
    return int(np.argmax(smoothed(norms, window))) + 1


class Outcome(NamedTuple):
    """When a rule fired on a trace (None: never), the epoch of the peak, and how they compare.

    >>> Outcome(None, 12).verdict, Outcome(5, 12).verdict, Outcome(20, 12).verdict
    ('never', 'early', 'in time')
    """

    fired: int | None
    peak: int

    @property
    def verdict(self) -> str:
        """Early is before the peak, late after more than three times its epoch."""
        if self.fired is None:
            return "never"
        if self.fired < self.peak:
            return "early"
        return "late" if self.fired > 3 * self.peak else "in time"


def outcomes(traces: pd.DataFrame, rules: Mapping[str, SwitchRule]) -> pd.DataFrame:
    """What each rule does on each trace, without training.

    Args:
        traces: columns `COLUMNS`.
        rules: by name.

    Returns:
        A row for each trace and rule: dataset, model, seed, rule, fired (missing: never), peak,
        epochs (the trace's length) and verdict; see `Outcome`.

    >>> from twophase.switch import GradientNormPeak
    >>> outcomes(committed(), {"literal": GradientNormPeak()}).verdict.value_counts().idxmax()
    'early'
    """
    rows = []
    for key, trace in traces.groupby(KEY, sort=False):
        peak = peak_epoch(trace.grad_norm)
        for name, rule in rules.items():
            fired = first_switch(rule, zip(trace.loss, trace.grad_norm, strict=True))
            verdict = Outcome(fired, peak).verdict
            rows.append((*key, name, fired, peak, len(trace), verdict))
    columns = [*KEY, "rule", "fired", "peak", "epochs", "verdict"]
    return pd.DataFrame(rows, columns=columns).astype({"fired": "Int64"})


def counts(found: pd.DataFrame) -> pd.DataFrame:
    """How many traces each rule left early, in time, late and never; a row for each rule.

    >>> from twophase.switch import GradientNormPeak
    >>> counts(outcomes(committed(), {"literal": GradientNormPeak()})).columns.tolist()
    ['early', 'in time', 'late', 'never']
    """
    table = pd.crosstab(found["rule"], found["verdict"])
    names = found["rule"].drop_duplicates()
    return table.reindex(index=names, columns=["early", "in time", "late", "never"], fill_value=0)


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")
