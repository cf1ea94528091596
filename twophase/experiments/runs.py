"""A run and its folder: configuration, checkpoints, history or curve, summary, weights.

A training is in a checkpoint after every epoch, but for short ones, of whose time writing may take
a tenth; so a run that was stopped, however hard, goes on where it was. `summary.json` is written
last and marks a finished run; until then the history so far is in `history.partial.csv`.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from twophase.device import device_name, resolve_device
from twophase.distributed import fingerprint, processes
from twophase.errors import InputError, ProcessError, TwoPhaseError
from twophase.experiments import checkpoints
from twophase.experiments.competitors import Progress, go_on, starts_over
from twophase.experiments.config import RunConfig
from twophase.experiments.files import (
    check_regular,
    clear_unfinished,
    digest_of,
    read_json,
    write_atomically,
    write_json,
    write_sealed,
)
from twophase.experiments.progress import track
from twophase.experiments.provenance import git_revision, now, versions
from twophase.objective import GRADIENT_PASSES
from twophase.problems import networks
from twophase.problems.problem import Task
from twophase.record import ADAM, SECOND, TRIAL, Record
from twophase.second_phase import Status
from twophase.switching.rules import SwitchRule, tell
from twophase.trainer import Trainer
from twophase.training import Fit
from twophase.training import run as train

FORMAT = 7
CHECKPOINTS = "checkpoints"
# Where epochs are short, a checkpoint is written after so many times as long as writing took.
TIMES_WRITING = 9
ONCE = {"phase": {"cg": SECOND}}  # how histories of earlier versions call a phase
HISTORY, CURVE, PARTIAL, WEIGHTS = "history.csv", "curve.csv", "history.partial.csv", "weights.pt"
# why a run failed; while it is there, another configuration may have the folder
FAILED = "failed.txt"
WRITTEN = ("summary.json", HISTORY, CURVE, PARTIAL, WEIGHTS, CHECKPOINTS)
RESULTS = (*WRITTEN[:-1], FAILED)
# What summaries and tables tell in any case, as numbers.
NUMBERS = ("passes", "seconds", "train_loss")
COLUMNS = {HISTORY: ("epoch", "train_loss", "grad_norm", "passes"), CURVE: Progress._fields}

log = logging.getLogger("twophase")


def run(
    config: RunConfig,
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
    branches: Mapping[str, SwitchRule] | None = None,
    branch_from: Path | None = None,
) -> dict[str, Any]:
    """Train or measure as configured; leave results and summary.json in `out`; return the summary.

    A training leaves history.csv and weights.pt; a configuration with `passes` leaves curve.csv.
    A finished run of the same configuration is not repeated. A training that was stopped goes on
    after its last checkpoint; on the CPU the results are then those of a run in one piece, bit
    for bit. Several processes (see `twophase.distributed`) each call this; the first one writes.

    Args:
        config: what to run.
        out: the run's folder; made if it is not there.
        root: the data folder; None: see `twophase.problems.images.load`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        branches: for each name a rule; the state after the epoch at which it first says switch is
            kept in `branch_file(out, name)`, so that another run can branch off there.
        branch_from: a state that another run kept, whose epochs are this run's first; needed where
            `config.passes` is given.

    Raises:
        InputError: the folder holds another run, that has not failed, or is in use by another
            process, or the configuration does not fit the data.
        DataError: a data file is missing or damaged.
        NonFiniteError: the loss is no longer finite; the folder has no history.csv or summary.json.
        OSError: the folder cannot be written to or the disk is full; what was there is intact.
    """
    chosen, here = resolve_device(device), processes()
    if here.count > 1 and config.passes is not None:
        raise InputError("passes", config.passes, "None with several processes")
    found = here.agreed(partial(finished, config, out))
    # a file may hold something else by now; other data are checked when they are read
    if found is not None and not getattr(config.problem, "is_of_a_file", False):
        return found
    task = config.problem.load(config.seed, config.dtype, chosen, root)
    trainer = config.trainer(task, chosen)
    if found is not None:
        _check_data(trainer, found, out)
        return found
    with ExitStack() as held:
        found, state = here.agreed(partial(_begin, config, out, trainer, branch_from, held))
        if found is not None:
            return found
        if here.rank > 0 and state is not None:
            trainer.load_state_dict(state)
        return _run(config, out, trainer, task, branches or {}, branch_from)


def _begin(
    config: RunConfig, out: Path, trainer: Trainer, branch_from: Path | None, held: ExitStack
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Take the folder and put the trainer where the run was stopped.

    Returns the summary where the run is finished by now, and the state that other processes need.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(FileLock(out / ".lock", timeout=0))
    except Timeout:
        raise InputError("out", str(out), "a folder that no other process is training in") from None
    found = finished(config, out, tell=True)
    if found is not None:
        return found, None
    kept = out / CHECKPOINTS
    if kept.is_symlink() or (kept.exists() and not kept.is_dir()):
        raise InputError("out", str(out), f"a folder in which {CHECKPOINTS} is no link and no file")
    if (out / FAILED).exists():
        _start_anew(config, out)
    write_json(out / "config.json", {"format": FORMAT, **config.to_dict()})
    if config.passes is None:
        with _noting_failure(out):
            _resume(trainer, out, branch_from)
    needed = processes().count > 1 and trainer.history
    return None, trainer.state_dict() if needed else None


def _run(
    config: RunConfig,
    out: Path,
    trainer: Trainer,
    task: Task,
    branches: Mapping[str, SwitchRule],
    branch_from: Path | None,
) -> dict[str, Any]:
    """The run itself, in a folder that no other process is in; the first process writes there."""
    first = processes().rank == 0
    with _noting_failure(out) if first else nullcontext():
        if config.passes is not None:
            return _measure(config, out, trainer, task, branch_from)
        keep = _keeper(trainer, out, branches) if first else None
        shown = partial(track, label=f"epochs of {config.strategy}") if first else None
        outcome = train(trainer, config.epochs, keep, shown, config.budget)
        summary = _facts(config, trainer, task) | _summary(trainer, task, outcome)
        return _finish(out, trainer, outcome, summary) if first else summary


@contextmanager
def _noting_failure(out: Path) -> Iterator[None]:
    """Where the run cannot go on, its folder says why."""
    try:
        yield
    except ProcessError:
        raise  # it can, once all processes are there again
    except TwoPhaseError as error:
        write_atomically(out / FAILED, f"{error}\n")
        raise


def read(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The history and the summary of a finished training; `InputError` where there is none.

    The history has a row per epoch with the fields of `twophase.Record`; histories that were
    written before the phases were called "adam" and "second" are read as if they were today's;
    where they lack the status, that of an iteration that moved.
    """
    allowed = "the folder of a finished run, with history and summary"
    history, summary = _read_finished(folder, HISTORY, allowed)
    history = history.replace(ONCE)
    if "phase" not in history or not history.phase.isin((ADAM, SECOND, TRIAL)).all():
        raise InputError("run", str(folder), allowed)
    return history if "status" in history else history.assign(status=Status.MOVED), summary


def read_curve(folder: Path) -> pd.DataFrame:
    """The passes, seconds and lowest losses of a finished measurement; else `InputError`."""
    return _read_finished(folder, CURVE, "the folder of a finished measurement, with its curve")[0]


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run of either kind; empty where it is damaged."""
    return read_json(folder / "summary.json")


def restore(
    config: RunConfig,
    state: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> Trainer:
    """The trainer of a run at a `state` that it kept, without validation examples.

    For the file `state` see `branch_file`, for `root` and `device` `run`. `InputError` for no state
    of such a run, `DataError` for damaged files.
    """
    chosen = resolve_device(device)
    task = config.problem.load(config.seed, config.dtype, chosen, root)
    if task.data is not None:
        task = task._replace(data=replace(task.data, validation=None))
    trainer = config.trainer(task, chosen)
    _load(trainer, checkpoints.load(state), state.parent)
    return trainer


def branch_file(out: Path, name: str) -> Path:
    """Where a run keeps the state of a branch; it is there once the branch's rule said switch."""
    return out / f"branch-{name}.ckpt"


def _resume(trainer: Trainer, out: Path, branch_from: Path | None) -> None:
    """Put the trainer where the run was stopped, or where it branches off another run."""
    for path, state in checkpoints.whole(out / CHECKPOINTS):
        try:
            return _load(trainer, state, out)
        except InputError as error:
            if error.field == "out":
                raise
            log.warning("checkpoint %s is not of this run (%s); it is passed over", path, error)
    if branch_from is not None:
        _load(trainer, checkpoints.load(branch_from), out)


def _load(trainer: Trainer, state: dict[str, Any], out: Path) -> None:
    """Go on from a state; `InputError` where the run of the folder `out` began with other data."""
    _check_data(trainer, state, out)
    trainer.load_state_dict(state)


def _check_data(trainer: Trainer, known: dict[str, Any], out: Path) -> None:
    if known.pop("data", own := _data(trainer)) != own:
        raise InputError("out", str(out), "a new folder: this run began with other data")


def _data(trainer: Trainer) -> list[Any]:
    """What tells data from others: shapes, and the bits of whole numbers, on any device."""
    parts = trainer.objective.shared
    return [
        [list(part.shape), 0 if part.is_floating_point() else int(fingerprint(part, ordered=True))]
        for part in parts
    ]


def _start_anew(config: RunConfig, out: Path) -> None:
    """Drop what is left of a run of another configuration that has failed."""
    (out / FAILED).unlink()
    if _difference(config, out):
        checkpoints.clear(out / CHECKPOINTS)
        for path in (out / PARTIAL, *out.glob("branch-*.ckpt")):
            path.unlink(missing_ok=True)


def _keeper(
    trainer: Trainer, out: Path, branches: Mapping[str, SwitchRule]
) -> Callable[[Record], None]:
    """What keeps the trainer's state after each epoch."""
    waiting = {name: rule.fresh() for name, rule in branches.items()}

    def fired(record: Record) -> list[str]:
        """The branches that leave after this epoch; each leaves once."""
        seen = record.train_loss, record.grad_norm, record.way
        names = [name for name, rule in waiting.items() if tell(rule, *seen).switch]
        for name in names:
            del waiting[name]
        return names

    for record in trainer.history:
        fired(record)

    due, data = 0.0, _data(trainer)

    def keep(record: Record) -> None:
        nonlocal due
        branching = fired(record)
        began = time.monotonic()
        if not branching and began < due:
            return
        state = trainer.state_dict() | {"data": data}
        for name in branching:
            checkpoints.write(branch_file(out, name), state)
        checkpoints.save(out / CHECKPOINTS, record.epoch, state)
        write_atomically(out / PARTIAL, _csv(trainer.history))
        ended = time.monotonic()
        due = ended + TIMES_WRITING * (ended - began)

    return keep


def _finish(out: Path, trainer: Trainer, outcome: Fit, summary: dict[str, Any]) -> dict[str, Any]:
    write_atomically(out / HISTORY, _csv(outcome.records))
    weights = io.BytesIO()
    torch.save(trainer.model.state_dict(), weights)
    write_atomically(out / WEIGHTS, weights.getvalue())
    summary["files"] = {name: digest_of(out / name) for name in (HISTORY, WEIGHTS)}
    write_sealed(out / "summary.json", summary)
    # only now: until the summary is there, this is what a stopped run goes on from
    _clear(out)
    return summary


def _clear(out: Path) -> None:
    """Drop what a finished run needs no more."""
    (out / PARTIAL).unlink(missing_ok=True)
    if not (out / CHECKPOINTS).is_symlink():
        checkpoints.clear(out / CHECKPOINTS)
    clear_unfinished(out)


def _clear_late(out: Path) -> None:
    """Drop it where a run was killed before it could, and no other process is in the folder."""
    clear_unfinished(out)
    if (out / PARTIAL).exists() or (out / CHECKPOINTS).is_dir():
        with suppress(OSError, Timeout), FileLock(out / ".lock", timeout=0):
            _clear(out)


def _measure(
    config: RunConfig, out: Path, trainer: Trainer, task: Task, branch_from: Path | None
) -> dict[str, Any]:
    if branch_from is None:
        raise InputError("branch_from", None, "the state at the end of the configuration's trunk")
    head = 0
    if starts_over(config.second):
        head = GRADIENT_PASSES * config.epochs
    else:
        _load(trainer, checkpoints.load(branch_from), out)
    rows = go_on(config.second, trainer, config.passes, head)
    curve = pd.DataFrame(rows, columns=list(Progress._fields))
    write_atomically(out / CURVE, curve.to_csv(index=False))
    last = curve.iloc[-1]
    summary = _facts(config, trainer, task) | {
        "passes": int(last.passes),
        "seconds": float(last.seconds),
        "train_loss": float(last.loss),
        "files": {CURVE: digest_of(out / CURVE)},
    }
    write_sealed(out / "summary.json", summary)
    return summary


def finished(config: RunConfig, out: Path, tell: bool = False) -> dict[str, Any] | None:
    """The summary of the same run if `out` holds it; an error if it holds another run.

    So it is where a result is no regular file, which could not be written. With `tell` the log says
    what is damaged. What a killed process had no time to clear goes.
    """
    if not (out / "config.json").exists():
        for name in WRITTEN:
            if (out / name).exists():
                raise InputError("out", str(out), f"a folder without a foreign {name}")
        return None
    differs = _difference(config, out)
    if differs and not (out / FAILED).exists():
        raise InputError("out", str(out), differs)
    for name in RESULTS:
        check_regular(out / name)
    summary = None if differs else _summary_of(out, HISTORY if config.passes is None else CURVE)
    damaged = [
        name for name in (summary or {}).get("files", {}) if not _is_whole(out, name, summary)
    ]
    if damaged and tell:
        log.warning("%s is damaged; the run is made again", out / damaged[0])
    if damaged or summary is None:
        return None
    _clear_late(out)
    return summary


def _difference(config: RunConfig, out: Path) -> str:
    """What to use in place of a folder that holds another configuration; else empty."""
    there = read_json(out / "config.json")
    if not there:
        return "another folder: its config.json is damaged"
    for name, wanted in {"format": FORMAT, **config.to_dict()}.items():
        found = there.get(name, "missing")
        if found != wanted:
            return f"a folder without another run (there {name} is {found}, here {wanted})"
    return ""


def _summary_of(out: Path, table: str) -> dict[str, Any] | None:
    """The summary of a finished run whose history or curve is there; None where it is damaged."""
    summary = {"status": "", "files": {}} | read_json(out / "summary.json")
    numbers = all(isinstance(summary.get(name), int | float) for name in NUMBERS)
    ended = table == CURVE or isinstance(summary.get("epochs"), int)
    known = isinstance(summary.get("status", ""), str) and isinstance(
        summary.get("files", {}), dict
    )
    return summary if numbers and ended and known and (out / table).is_file() else None


def _is_whole(out: Path, name: str, summary: Mapping[str, Any]) -> bool:
    """Whether a file is as the run has left it, where the summary says how (older ones do not)."""
    found = summary["files"].get(name)
    return found is None or found == digest_of(out / name)


def _read_finished(folder: Path, name: str, allowed: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A finished run's table and summary."""
    summary, found = _summary_of(folder, name), pd.DataFrame()
    if summary is not None and _is_whole(folder, name, summary):
        with suppress(OSError, ValueError):
            found = pd.read_csv(folder / name)
    numbers = set(found.select_dtypes("number"))
    if summary is None or found.empty or not set(COLUMNS[name]) <= numbers:
        raise InputError("run", str(folder), allowed)
    return found, summary


def _csv(records: Sequence[Record]) -> str:
    return pd.DataFrame([asdict(record) for record in records]).to_csv(index=False)


def _top5(trainer: Trainer, task: Task) -> float | None:
    """Share of validation examples whose class is among the five largest outputs."""
    if trainer.validation is None or task.data is None or task.data.classes <= 5:
        return None
    return trainer.validation.score(trainer.objective.vector.read(), top=5).accuracy


def _facts(config: RunConfig, trainer: Trainer, task: Task) -> dict[str, Any]:
    """What was run, on what, with what."""
    examples, parameters = trainer.objective.count, networks.parameter_count(trainer.model)
    # each character of a text is one of the classes
    outputs = 1 if task.data is None else task.data.classes * task.data.train.targets[0].numel()
    return {
        "problem": config.problem.name,
        "data": _data(trainer),
        "strategy": config.strategy,
        "seed": config.seed,
        "parameters": parameters,
        "train_examples": examples,
        "q": networks.overdetermination(examples, outputs, parameters),
        "device": device_name(trainer.device),
        "versions": versions(),
        "git_revision": git_revision(),
        "finished": now(),
    }


def _summary(trainer: Trainer, task: Task, outcome: Fit) -> dict[str, Any]:
    last = outcome.final
    ends = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    sums = ("passes", "monitor_passes", "seconds")
    # beside the optimization's own passes, those that the switch needed to know loss or norm
    reading = trainer.spent - sum(record.passes for record in outcome.records)
    return {
        "epochs": len(outcome.records),
        "weights_epoch": last.epoch,
        "status": outcome.status,
        "message": outcome.message,
        "swap_epoch": outcome.swap_epoch,
        "reading_passes": reading,
        "changes": outcome.changes.to_dict("records"),
        **{name: getattr(last, name) for name in ends},
        "validation_top5_accuracy": _top5(trainer, task),
        "grad_norm": last.grad_norm,
        **{name: sum(getattr(record, name) for record in outcome.records) for name in sums},
    }
