"""A run and its folder: configuration, checkpoints, history, summary, weights.

Every finished epoch is in a checkpoint, so that a run that was stopped, however hard, goes on where
it was. `summary.json` is written last and marks a finished run; until then the history so far is in
`history.partial.csv`.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout

from twophase.device import device_name, resolve_device
from twophase.errors import InputError
from twophase.examples import Dataset
from twophase.experiments import checkpoints
from twophase.experiments.config import RunConfig
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.provenance import git_revision, now, versions
from twophase.problems import images, networks
from twophase.switch import SwitchRule
from twophase.training import Fit, Record, Trainer
from twophase.training import run as train

FORMAT = 3
CHECKPOINTS = "checkpoints"
WRITTEN = ("summary.json", "history.csv", "history.partial.csv", "weights.pt", CHECKPOINTS)


def run(
    config: RunConfig,
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
    branches: Mapping[str, SwitchRule] | None = None,
    branch_from: Path | None = None,
) -> dict:
    """Train as configured; leave config.json, history.csv, summary.json and weights.pt in `out`.

    A finished run of the same configuration is not repeated: its summary is returned. A run that
    was stopped goes on after its last finished epoch; on the CPU its history and weights are then
    equal, bit for bit, to those of a run in one piece.

    Args:
        config: what to train.
        out: the run's folder; made if it is not there.
        root: the data folder; None: see `twophase.problems.images.load`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        branches: for each name a rule; the state after the epoch at which it first says switch is
            kept in `branch_file(out, name)`, so that another run can branch off there.
        branch_from: a state that another run kept, whose epochs are this run's first.

    Returns:
        The summary: final losses and accuracies, parameters, q, swap_epoch, status, work, time,
        versions, device, seed and git revision.

    Raises:
        InputError: the folder holds another run or is in use by another process, or the
            configuration does not fit the data.
        DataError: a data file is missing or damaged.
        NonFiniteError: the loss is no longer finite; the folder has no history.csv or summary.json.
        OSError: the folder cannot be written to or the disk is full; what was there is intact.

    >>> import tempfile
    >>> config = RunConfig(train_examples=16, epochs=2, swap_epoch=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = run(config, Path(folder), device="cpu")
    ...     history, again = read(Path(folder))
    >>> history.phase.tolist(), summary["swap_epoch"], again == summary
    (['adam', 'cg'], 1, True)
    """
    chosen = resolve_device(device)
    finished = _finished(config, out)
    if finished is not None:
        return finished
    dataset = images.load(
        config.dataset,
        root,
        chosen,
        train_examples=config.train_examples,
        validation_examples=config.validation_examples,
        seed=config.seed,
    )
    trainer = _trainer(config, dataset, chosen)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            finished = _finished(config, out)
            if finished is not None:
                return finished
            write_json(out / "config.json", {"format": FORMAT, **config.to_dict()})
            _resume(trainer, out, branch_from)
            outcome = train(trainer, config.epochs, _keeper(trainer, out, branches or {}))
            return _finish(config, out, trainer, outcome, dataset)
    except Timeout:
        raise InputError("out", str(out), "a folder that no other process is training in") from None


def read(folder: Path) -> tuple[pd.DataFrame, dict]:
    """The history and the summary of a finished run.

    Args:
        folder: the run's, as given to `run`.

    Returns:
        The history, a row per epoch with the fields of `twophase.training.Record`, and the
        summary that `run` returned.

    Raises:
        InputError: the folder holds no finished run, or its files are damaged.

    >>> import tempfile
    >>> read(Path(tempfile.mkdtemp()))
    Traceback (most recent call last):
    twophase.errors.InputError: run: ... use the folder of a finished run, with history and summary
    """
    try:
        summary = _read_json(folder / "summary.json")
        history = pd.read_csv(folder / "history.csv")
    except (FileNotFoundError, NotADirectoryError, pd.errors.ParserError, pd.errors.EmptyDataError):
        summary = {}
    if not summary:
        allowed = "the folder of a finished run, with history and summary"
        raise InputError("run", str(folder), allowed)
    return history, summary


def restore(
    config: RunConfig,
    state: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> Trainer:
    """The trainer of a run at a state that it kept, without validation examples.

    Args:
        config: the run's.
        state: the file; see `branch_file`.
        root, device: see `run`.

    Raises:
        InputError: the file is no state of such a run, or is damaged.
        DataError: a data file is missing or damaged.

    >>> import tempfile
    >>> from twophase.switch import FixedEpoch
    >>> config = RunConfig(strategy="adam", train_examples=16, epochs=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder)
    ...     summary = run(config, out, device="cpu", branches={"first": FixedEpoch(1)})
    ...     trainer = restore(config, branch_file(out, "first"), device="cpu")
    >>> len(trainer.history)
    1
    """
    chosen = resolve_device(device)
    examples = images.load(
        config.dataset, root, chosen, train_examples=config.train_examples, seed=config.seed
    )
    trainer = _trainer(config, replace(examples, validation=None), chosen)
    trainer.load_state_dict(checkpoints.load(state))
    return trainer


def _trainer(config: RunConfig, dataset: Dataset, device: torch.device) -> Trainer:
    model = networks.build(config.model, dataset.channels, dataset.classes, config.seed)
    return Trainer(
        model,
        dataset,
        strategy=config.strategy,
        switch=config.switch(),
        adam=config.adam(),
        cg=config.cg(),
        fallback=config.safe_way_back(),
        seed=config.seed,
        device=device,
    )


def _resume(trainer: Trainer, out: Path, branch_from: Path | None) -> None:
    """Put the trainer where the run was stopped, or where it branches off another run."""
    state = checkpoints.latest(out / CHECKPOINTS)
    if state is None and branch_from is not None:
        state = checkpoints.load(branch_from)
    if state is not None:
        trainer.load_state_dict(state)


def branch_file(out: Path, name: str) -> Path:
    """Where a run keeps the state of a branch.

    Args:
        out: the run's folder.
        name: of the branch, as in the `branches` of `run`.

    Returns:
        The file; it is there once the branch's rule has said switch.

    >>> branch_file(Path("run"), "rule").name
    'branch-rule.ckpt'
    """
    return out / f"branch-{name}.ckpt"


def _keeper(
    trainer: Trainer, out: Path, branches: Mapping[str, SwitchRule]
) -> Callable[[Record], None]:
    """What keeps the trainer's state after each epoch."""
    waiting = {name: rule.fresh() for name, rule in branches.items()}

    def fired(record: Record) -> list[str]:
        """The branches that leave after this epoch; each leaves once."""
        seen = record.train_loss, record.grad_norm
        names = [name for name, rule in waiting.items() if rule.update(*seen).switch]
        for name in names:
            del waiting[name]
        return names

    for record in trainer.history:
        fired(record)

    def keep(record: Record) -> None:
        state = trainer.state_dict()
        for name in fired(record):
            checkpoints.write(branch_file(out, name), state)
        checkpoints.save(out / CHECKPOINTS, record.epoch, state)
        write_atomically(out / "history.partial.csv", _csv(trainer.history))

    return keep


def _finish(config: RunConfig, out: Path, trainer: Trainer, outcome: Fit, dataset: Dataset) -> dict:
    write_atomically(out / "history.csv", _csv(outcome.records))
    weights = io.BytesIO()
    torch.save(trainer.model.state_dict(), weights)
    write_atomically(out / "weights.pt", weights.getvalue())
    summary = _summary(config, trainer, outcome, dataset)
    write_json(out / "summary.json", summary)
    # only now: until the summary is there, these are what a stopped run goes on from
    (out / "history.partial.csv").unlink(missing_ok=True)
    checkpoints.clear(out / CHECKPOINTS)
    return summary


def _finished(config: RunConfig, out: Path) -> dict | None:
    """The summary of the same run if `out` holds it; an error if it holds another run."""
    written = out / "config.json"
    if not written.exists():
        foreign = [name for name in WRITTEN if (out / name).exists()]
        if foreign:
            raise InputError("out", str(out), f"a folder without a foreign {foreign[0]}")
        return None
    there = _read_json(written)
    wanted = {"format": FORMAT, **config.to_dict()}
    for name in wanted:
        if there.get(name, "missing") != wanted[name]:
            raise InputError(
                "out",
                str(out),
                f"a folder without another run (there {name} is {there.get(name, 'missing')}, "
                f"here {wanted[name]})",
            )
    finished = (out / "summary.json").exists() and (out / "history.csv").exists()
    return (_read_json(out / "summary.json") or None) if finished else None


def _read_json(path: Path) -> dict:
    """The content of a JSON file; empty where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = {}
    return content if isinstance(content, dict) else {}


def _csv(records: list[Record] | tuple[Record, ...]) -> str:
    return pd.DataFrame([asdict(record) for record in records]).to_csv(index=False)


def _top5(trainer: Trainer, dataset: Dataset) -> float | None:
    """Share of validation examples whose class is among the five largest outputs."""
    if trainer.validation is None or dataset.classes <= 5:
        return None
    return trainer.validation.score(trainer.objective.vector.read(), top=5).accuracy


def _summary(config: RunConfig, trainer: Trainer, outcome: Fit, dataset: Dataset) -> dict:
    last = outcome.final
    examples, parameters = len(dataset.train), networks.parameter_count(trainer.model)
    return {
        "dataset": config.dataset,
        "model": config.model,
        "strategy": config.strategy,
        "seed": config.seed,
        "epochs": len(outcome.records),
        "weights_epoch": last.epoch,
        "status": outcome.status,
        "message": outcome.message,
        "swap_epoch": outcome.swap_epoch,
        "changes": outcome.changes.to_dict("records"),
        "train_loss": last.train_loss,
        "train_accuracy": last.train_accuracy,
        "validation_loss": last.validation_loss,
        "validation_accuracy": last.validation_accuracy,
        "validation_top5_accuracy": _top5(trainer, dataset),
        "grad_norm": last.grad_norm,
        "parameters": parameters,
        "train_examples": examples,
        "q": networks.overdetermination(examples, dataset.classes, parameters),
        "passes": sum(record.passes for record in outcome.records),
        "monitor_passes": sum(record.monitor_passes for record in outcome.records),
        "seconds": sum(record.seconds for record in outcome.records),
        "device": device_name(trainer.device),
        "versions": versions(),
        "git_revision": git_revision(),
        "finished": now(),
    }
