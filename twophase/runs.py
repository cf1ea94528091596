"""A run and its folder: configuration, history, summary.

`summary.json` is written last and marks a finished run; until then the history is in
`history.partial.csv`.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from twophase import data, models
from twophase.config import RunConfig
from twophase.device import device_name, resolve_device
from twophase.errors import InputError
from twophase.files import write_atomically, write_json
from twophase.provenance import git_revision, now, versions
from twophase.training import Fit, Record, fit


def run(
    config: RunConfig,
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> dict:
    """Train as configured and leave config.json, history.csv and summary.json in `out`.

    A finished run of the same configuration is not repeated: its summary is returned.

    Args:
        config: what to train.
        out: the run's folder; made if it is not there.
        root: the data folder; None: see `twophase.data.load`.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        The summary: final losses and accuracies, parameters, q, swap_epoch, status, work, time,
        versions, device, seed and git revision.

    Raises:
        InputError: the folder holds another run, or the configuration does not fit the data.
        DataError: a data file is missing or damaged.
        NonFiniteError: the loss is no longer finite; the folder has no history.csv or summary.json.
        OSError: the folder cannot be written to.
    """
    finished = _finished(config, out)
    if finished is not None:
        return finished
    chosen = resolve_device(device)
    dataset = data.load(
        config.dataset, root, chosen, train_examples=config.train_examples, seed=config.seed
    )
    model = models.build(config.model, dataset.channels, dataset.classes, config.seed)
    out.mkdir(parents=True, exist_ok=True)
    partial, history = out / "history.partial.csv", out / "history.csv"
    write_json(out / "config.json", config.to_dict())
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        write_atomically(partial, _csv(records))

    outcome = fit(
        model,
        dataset,
        epochs=config.epochs,
        strategy=config.strategy,
        switch=config.switch(),
        adam=config.adam(),
        cg=config.cg(),
        seed=config.seed,
        device=chosen,
        on_epoch=keep,
    )
    partial.replace(history)
    summary = _summary(config, outcome, dataset, models.parameter_count(model), chosen)
    write_json(out / "summary.json", summary)
    return summary


def read(folder: Path) -> tuple[pd.DataFrame, dict]:
    """The history and the summary of a finished run.

    Raises:
        InputError: the folder holds no finished run.
    """
    summary = folder / "summary.json"
    if not summary.exists():
        raise InputError("run", str(folder), "the folder of a finished run, with a summary.json")
    return pd.read_csv(folder / "history.csv"), json.loads(summary.read_text(encoding="utf-8"))


def _finished(config: RunConfig, out: Path) -> dict | None:
    """The summary of the same run if `out` holds it; an error if it holds another run."""
    written = out / "config.json"
    if not written.exists():
        return None
    try:
        there = json.loads(written.read_text(encoding="utf-8"))
    except ValueError:
        there = {}
    wanted = config.to_dict()
    other = [name for name in wanted if there.get(name, "missing") != wanted[name]]
    if other:
        name = other[0]
        raise InputError(
            "out",
            str(out),
            f"a folder without another run (there {name} is {there.get(name, 'missing')}, "
            f"here {wanted[name]})",
        )
    summary = out / "summary.json"
    return json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None


def _csv(records: list[Record]) -> str:
    return pd.DataFrame([asdict(record) for record in records]).to_csv(index=False)


def _summary(
    config: RunConfig,
    outcome: Fit,
    dataset: data.Dataset,
    parameters: int,
    device: torch.device,
) -> dict:
    last = outcome.records[-1]
    examples = len(dataset.train)
    return {
        "dataset": config.dataset,
        "model": config.model,
        "strategy": config.strategy,
        "seed": config.seed,
        "epochs": len(outcome.records),
        "status": outcome.status,
        "message": outcome.message,
        "swap_epoch": outcome.swap_epoch,
        "train_loss": last.train_loss,
        "train_accuracy": last.train_accuracy,
        "validation_loss": last.validation_loss,
        "validation_accuracy": last.validation_accuracy,
        "grad_norm": last.grad_norm,
        "parameters": parameters,
        "train_examples": examples,
        "q": models.overdetermination(examples, dataset.classes, parameters),
        "passes": sum(record.passes for record in outcome.records),
        "monitor_passes": sum(record.monitor_passes for record in outcome.records),
        "seconds": sum(record.seconds for record in outcome.records),
        "device": device_name(device),
        "versions": versions(),
        "git_revision": git_revision(),
        "finished": now(),
    }
