"""The convexity audit of recorded trajectories: curvature along Adam's path, and after a swap.

`traces.record` keeps the weights at some epochs; their Hessians tell whether the loss is convex
there. The results are small tables, so that figures need no training.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from twophase.device import clock
from twophase.errors import check_number
from twophase.experiments import branches, runs, traces
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import ALONE, Executor, Job
from twophase.experiments.files import committed_table, write_atomically, write_rows
from twophase.experiments.hessian import Hessian
from twophase.objective import Objective, evaluate
from twophase.second_phase import Status, iterate
from twophase.switching.rules import SmoothedNormPeak, first_switch
from twophase.trainer import Trainer
from twophase.training import PAPER

log = logging.getLogger("twophase")

# CG's third iteration has conjugated two directions; the first would be a steepest descent.
CG_STEPS = 3
# Of the epochs that a recording keeps, those that are audited: about doubling.
EPOCHS = (1, 3, 7, 14, 28, 56, 110, 150)
# Iterations of CG from the swap after which its own path is audited.
CG_ITERATIONS = (20,)
KEY = ["dataset", "model", "seed", "phase", "epoch", "iteration"]


class Checkpoint(NamedTuple):
    """A point of a trajectory: so many epochs of Adam, and so many iterations of CG from there."""

    epoch: int
    iteration: int

    @property
    def phase(self) -> str:
        """Whose path the point is on."""
        return "cg" if self.iteration else "adam"


def checkpoints(
    trace: pd.DataFrame, kept: Sequence[int], cg_iterations: Sequence[int] = CG_ITERATIONS
) -> list[Checkpoint]:
    """Where a trajectory is audited: all kept epochs of Adam, and CG from a swap.

    The swap is the first kept epoch at which `SmoothedNormPeak` has fired; the last one if it never
    fires. `trace` is of Adam alone, with columns loss and grad_norm; `kept` are the epochs whose
    weights are there, ascending.
    """
    fired = first_switch(SmoothedNormPeak(), zip(trace.loss, trace.grad_norm, strict=True))
    swap = next((epoch for epoch in kept if fired and epoch >= fired), kept[-1])
    return [Checkpoint(epoch, 0) for epoch in kept] + [Checkpoint(swap, n) for n in cg_iterations]


def audit_recording(
    config: RunConfig,
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
    epochs: Sequence[int] = EPOCHS,
    cg_iterations: Sequence[int] = CG_ITERATIONS,
) -> pd.DataFrame:
    """Audit a recording at its checkpoints; `audit.csv` in its folder has a row for each.

    What is in the file already is not computed again. At Adam's checkpoints the table has the
    curvatures along Adam's next epoch and along CG's third step from there, too.

    Args:
        config, out: of a run that `traces.record` has finished, else `InputError`; the folder of
            all recordings.
        root, device: see `runs.run`.
        epochs, cg_iterations: of Adam, as far as their weights were kept; of CG after the swap.

    Returns:
        Columns `KEY`, the fields of `hessian.Curvature` (with `along_adam` and `along_cg`), its
        verdict `convexity`, and `seconds`. For errors see `hessian.Hessian`.
    """
    folder = out / traces.folder_name(config)
    trace = traces.collect([config], out)
    kept = [e for e in epochs if runs.branch_file(folder, f"epoch-{e}").exists()]
    written = folder / "audit.csv"
    rows = pd.read_csv(written).to_dict("records") if written.exists() else []
    done = {(row["epoch"], row["iteration"]) for row in rows}
    for checkpoint in checkpoints(trace, kept, cg_iterations):
        if checkpoint in done:
            continue
        log.warning("%s seed %d: %s", config.problem.name, config.seed, checkpoint)
        state = runs.branch_file(folder, f"epoch-{checkpoint.epoch}")
        trainer = runs.restore(config, state, root, device)
        problem = config.problem
        key = (problem.dataset, problem.model, config.seed, checkpoint.phase, *checkpoint)
        rows.append(dict(zip(KEY, key, strict=True)) | _row(trainer, checkpoint, config.seed))
        write_atomically(written, pd.DataFrame(rows).to_csv(index=False))
    return pd.DataFrame(rows)


def audit(
    chosen: Sequence[RunConfig],
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
    executor: Executor = ALONE,
) -> pd.DataFrame:
    """`audit_recording` of each of some recordings; all rows also in `audit.csv` in `out`.

    The rows come in the order of `chosen`, and those of other recordings stay; `RunsFailed` where
    an audit failed, after all others.
    """
    jobs = {Job(audit_recording, (config, out, root, device)): config for config in chosen}
    tables: dict[Job, pd.DataFrame] = {}
    done = []
    for job, value, error, *_ in executor.run(jobs, out):
        done.append(branches.Done(jobs[job], out / traces.folder_name(jobs[job]), error))
        if not error:
            tables[job] = value
            table = pd.concat([tables[each] for each in jobs if each in tables], ignore_index=True)
            write_rows(out / "audit.csv", table, traces.KEY)
    branches.check(done)
    return table


def committed() -> pd.DataFrame:
    """The source tree's audits of the recorded traces; `InputError` without it."""
    return committed_table("reports/reference/convexity-audit/audit.csv")


def clearly_negative(audits: pd.DataFrame, level: float = 1e-2) -> pd.Series:
    """Whether the smallest eigenvalue is below −`level` times the largest absolute one, row by row.

    Certain even before convergence, by an upper bound; see `hessian.Curvature.convexity`.
    """
    check_number("level", level, above=0, below=1)
    return audits.smallest < -level * audits[["smallest", "largest"]].abs().max(axis=1)


def turning_epoch(audits: pd.DataFrame, level: float = 1e-2) -> float:
    """Adam's first audited epoch from which on no smallest eigenvalue is clearly negative.

    It is inf where there is none. `audits` are of one trajectory; for `level`: `clearly_negative`.
    """
    path = audits[audits.phase == "adam"].sort_values("epoch")
    later = path.epoch[clearly_negative(path, level)]
    after = path.epoch if later.empty else path.epoch[path.epoch > later.max()]
    return float(after.min()) if len(after) else float("inf")


def switches_beside(fired: pd.DataFrame, weak: pd.Series) -> pd.DataFrame:
    """On how many trajectories each rule switches before negative curvature is weak, or not.

    `fired` has a row for each trajectory and a column for each rule, the epoch of its switch,
    missing where it never switches; `weak` the `turning_epoch`. Where that is inf, a switch is
    counted as neither.
    """
    never = np.isinf(weak)
    found = {
        "before": fired[~never].lt(weak[~never], axis=0),
        "then or after": fired[~never].ge(weak[~never], axis=0),
        "curvature never weak": fired[never].notna(),
        "never switches": fired.isna(),
    }
    return pd.DataFrame({name: of.sum() for name, of in found.items()})


def _row(trainer: Trainer, checkpoint: Checkpoint, seed: int) -> dict[str, object]:
    objective, began = trainer.objective, clock(trainer.device)
    trainer.model.eval()
    x = objective.vector.read()
    directions = {}
    if checkpoint.iteration:
        *_, x = _cg_path(objective, x, checkpoint.iteration)
    else:
        # where CG finds no step the difference is 0
        *_, before, after = x, x, *_cg_path(objective, x, CG_STEPS)
        objective.vector.write(x)
        trainer.epoch()
        directions = {"cg": after - before, "adam": objective.vector.read() - x}
    moved = {name: step for name, step in directions.items() if step.any()}
    found = Hessian(objective, x).audit(directions=moved, seed=seed)
    row = found._asdict()
    along = row.pop("along")
    return row | {
        **{f"along_{name}": along.get(name) for name in ("adam", "cg")},
        "convexity": str(found.convexity()),
        "seconds": round(clock(trainer.device) - began, 2),
    }


def _cg_path(objective: Objective, x: Tensor, iterations: int) -> Iterator[Tensor]:
    """The vectors after each of so many iterations of the paper's CG, fewer where it ends."""
    point, state = evaluate(objective, x), None
    for _ in range(iterations):
        iteration = iterate(objective, point, state, PAPER["second"])
        if iteration.status is not Status.MOVED:
            return
        point, state = evaluate(objective, iteration.x), iteration.state
        yield point.x
