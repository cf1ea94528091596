"""The convexity audit of recorded trajectories: curvature along Adam's path, and after a swap.

`traces.record` keeps the weights at some epochs; here their Hessians are asked whether the
loss is convex there. The results are small tables, so that figures need no training.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from twophase.device import clock
from twophase.errors import InputError, check_number
from twophase.experiments import runs, traces
from twophase.experiments.config import RunConfig
from twophase.experiments.files import project_folder, write_atomically
from twophase.experiments.hessian import audit
from twophase.objective import Objective, evaluate
from twophase.second_phase import Status, iterate
from twophase.switch import SmoothedNormPeak, first_switch
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
    """A point of a trajectory: so many epochs of Adam, and so many iterations of CG from there.

    >>> Checkpoint(14, 0).phase, Checkpoint(14, 5).phase
    ('adam', 'cg')
    """

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
    fires.

    Args:
        trace: of Adam alone, columns loss and grad_norm.
        kept: epochs whose weights are there, ascending.
        cg_iterations: iterations after the swap.

    >>> trace = pd.DataFrame({"loss": [3.0, 2.0, 1.0], "grad_norm": [1.0, 2.0, 1.0]})
    >>> checkpoints(trace, [1, 3], cg_iterations=[5])
    [Checkpoint(epoch=1, iteration=0), Checkpoint(epoch=3, iteration=0), Checkpoint(epoch=3, ...)]
    """
    fired = first_switch(SmoothedNormPeak(), zip(trace.loss, trace.grad_norm, strict=True))
    swap = next((epoch for epoch in kept if fired and epoch >= fired), kept[-1])
    path = [Checkpoint(epoch, 0) for epoch in kept]
    return path + [Checkpoint(swap, iteration) for iteration in cg_iterations]


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
        config: of a run that `twophase.experiments.traces.record` has finished.
        out: the folder of all recordings.
        root, device: see `twophase.experiments.runs.run`.
        epochs: of Adam, as far as their weights were kept; default eight, about doubling.
        cg_iterations: see `checkpoints`.

    Returns:
        Columns `KEY`, the fields of `twophase.experiments.hessian.Curvature` (with `along_adam` and
        `along_cg`), its verdict `convexity`, and `seconds`.

    Raises:
        InputError: the recording is not finished.
        NonFiniteError: a loss or a product of its Hessian is not finite.

    >>> import tempfile
    >>> config = traces.configs("smoke", networks=["vit-nomlp-wkewq-wvwo1"], seeds=1)[0]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     recorded = traces.record([config], Path(out), device="cpu")
    ...     table = audit_recording(config, Path(out), device="cpu", cg_iterations=[1])
    >>> table.epoch.tolist(), table.phase.unique().tolist()
    ([1, 3, 7, 7], ['adam', 'cg'])
    """
    folder = traces.folder(out, config)
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


def committed() -> pd.DataFrame:
    """The audits of the recorded traces, `reports/reference/convexity-audit/audit.csv`.

    Returns:
        The columns of `audit_recording`.

    Raises:
        InputError: the package does not run from its source tree.

    >>> committed().phase.unique().tolist()
    ['adam', 'cg']
    """
    tree = project_folder()
    if tree is None:
        raise InputError("audit", None, "the source tree, whose reports folder holds it")
    return pd.read_csv(tree / "reports" / "reference" / "convexity-audit" / "audit.csv")


def clearly_negative(audits: pd.DataFrame, level: float = 1e-2) -> pd.Series:
    """Whether the smallest eigenvalue is below −`level` times the largest absolute one, row by row.

    Certain even where the eigenvalue has not converged, since it is an upper bound; see
    `twophase.experiments.hessian.Curvature.convexity`, which gives the reason for the default.

    >>> clearly_negative(pd.DataFrame({"smallest": [-1.0, -0.001], "largest": 1.0})).tolist()
    [True, False]
    """
    check_number("level", level, above=0, below=1)
    return audits.smallest < -level * audits[["smallest", "largest"]].abs().max(axis=1)


def turning_epoch(audits: pd.DataFrame, level: float = 1e-2) -> float:
    """Adam's first audited epoch from which on no smallest eigenvalue is clearly negative.

    Args:
        audits: of one trajectory, columns phase, epoch, smallest and largest.
        level: see `clearly_negative`.

    Returns:
        The epoch; inf where the loss is clearly non-convex at the last one.

    >>> path = pd.DataFrame({"phase": "adam", "epoch": [1, 5, 9], "largest": 1.0})
    >>> turning_epoch(path.assign(smallest=[-1.0, -0.001, -0.002]))
    5.0
    >>> turning_epoch(path.assign(smallest=[-1.0, -0.001, -0.002]), level=1e-3)
    inf
    """
    path = audits[audits.phase == "adam"].sort_values("epoch")
    later = path.epoch[clearly_negative(path, level)]
    after = path.epoch if later.empty else path.epoch[path.epoch > later.max()]
    return float(after.min()) if len(after) else float("inf")


def _row(trainer: Trainer, checkpoint: Checkpoint, seed: int) -> dict[str, object]:
    objective, began = trainer.objective, clock(trainer.device)
    trainer.model.eval()
    x = objective.vector.read()
    directions = {}
    if checkpoint.iteration:
        x = _last(_cg_path(objective, x, checkpoint.iteration))
    else:
        path = _cg_path(objective, x, CG_STEPS)
        before = x
        for after in path:
            before, directions["cg"] = after, after - before
        objective.vector.write(x)
        trainer.epoch()
        directions["adam"] = objective.vector.read() - x
    moved = {name: step for name, step in directions.items() if step.any()}
    found = audit(objective, x, directions=moved, seed=seed)
    row = found._asdict() | {f"along_{name}": found.along.get(name) for name in ("adam", "cg")}
    del row["along"]
    return row | {
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


def _last(path: Iterator[Tensor]) -> Tensor:
    *_, last = path
    return last
