"""Many runs that share Adam's epochs: each trajectory of Adam is trained once, others branch off.

Comparisons are then paired, run by run, and what Adam did before a swap costs nothing again. Every
run has a folder named by its configuration, so that a sweep can be made in any number of sittings.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from twophase.errors import InputError, TwoPhaseError, check_choice
from twophase.experiments import runs
from twophase.experiments.config import RunConfig
from twophase.switch import FixedEpoch, first_switch

log = logging.getLogger("twophase")

STRATEGIES = ("adam", "adam+cg")
LOSSES = ("train_loss", "validation_loss")
BUDGETS = ("epochs", "passes")
# what a run of Adam alone does not depend on
_SECOND_PHASE = (
    *("swap_epoch", "rule", "factor", "fallback"),
    *("beta", "line_search", "tolerance", "restart_every"),
)
_MEASURED = (
    *("folder", "status", "swapped", "epochs_run", "passes", "epochs_within"),
    *(f"{loss}_{budget}" for loss in LOSSES for budget in BUDGETS),
    *(f"adam_{loss}" for loss in LOSSES),
)
_END = "end"


def trunk(config: RunConfig) -> RunConfig:
    """The run of Adam alone that a run shares its first epochs with.

    All that belongs to the swap and to CG has its default there, so that runs that differ in
    nothing else have one trunk.

    Args:
        config: of a run that begins with Adam.

    Returns:
        A configuration of strategy "adam".

    >>> trunk(RunConfig(beta="FR", factor=0.8)) == trunk(RunConfig(swap_epoch=3))
    True
    """
    defaults = {field.name: field.default for field in fields(RunConfig)}
    return replace(config, strategy="adam", **{name: defaults[name] for name in _SECOND_PHASE})


def settled(config: RunConfig, trace: Iterable[tuple[float, float]]) -> RunConfig:
    """The run that takes the same course as `config`, named by the epoch of its swap.

    Without the way back to Adam a rule does nothing but choose that epoch: rules and factors that
    choose the same one are one run, and where none is chosen before the end the run is Adam's own.

    Args:
        config: of a run that begins with Adam.
        trace: of its trunk, the epochs' (training loss, gradient norm).

    Returns:
        With `fallback` "off" a configuration with a fixed swap epoch, or the trunk's; else, and for
        Adam alone, `config` itself.

    >>> trace = [(0.9, 1.0), (0.8, 2.0), (0.7, 1.5), (0.6, 1.0)]
    >>> literal = RunConfig(epochs=4, rule="norm-peak", fallback="off")
    >>> [settled(replace(literal, factor=f), trace).swap_epoch for f in (0.8, 0.9)]
    [3, 3]
    >>> settled(replace(literal, factor=0.1), trace).strategy
    'adam'
    """
    if config.strategy == "adam":
        return trunk(config)
    if config.fallback != "off":
        return config
    epoch = first_switch(config.switch(), trace)
    if epoch is None or epoch >= config.epochs:
        return trunk(config)
    plain = {"rule": RunConfig.rule, "factor": RunConfig.factor}
    return replace(config, swap_epoch=epoch, **plain)


def run_trunk(
    adam: RunConfig,
    folder: Path,
    branches: Iterable[RunConfig],
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> dict:
    """Train a run of Adam alone and keep its state where other runs leave it.

    Args:
        adam: the trunk of all branches.
        folder: the trunk's.
        branches: configurations of strategy "adam+cg", whether they will be run or not.
        root, device: see `twophase.experiments.runs.run`.

    Returns:
        The summary of the run.

    Raises:
        TwoPhaseError, OSError: as `twophase.experiments.runs.run` does.

    >>> import tempfile
    >>> both = RunConfig(train_examples=16, epochs=2, swap_epoch=1)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     summary = run_trunk(trunk(both), Path(out), [both], device="cpu")
    ...     state_for(both, trunk(both), Path(out), device="cpu").name
    'branch-epoch-1.ckpt'
    """
    leaving = {_branch_name(config): config.switch() for config in branches}
    leaving[_END] = FixedEpoch(adam.epochs)
    return runs.run(adam, folder, root, device, branches=leaving)


def state_for(
    config: RunConfig,
    adam: RunConfig,
    folder: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> Path:
    """The state of a finished trunk from which a run goes on: at its swap, or at the end.

    Where the trunk was finished before anybody asked for that swap, its first epochs are trained
    once more, into a folder beside it, for all the runs that will ask.

    Args:
        config: of strategy "adam+cg".
        adam, folder: the trunk's, finished by `run_trunk`.
        root, device: see `twophase.experiments.runs.run`.

    Returns:
        A file for the `branch_from` of `twophase.experiments.runs.run`.

    Raises:
        InputError: the trunk is not finished.
        TwoPhaseError, OSError: as `twophase.experiments.runs.run` does.

    >>> import tempfile
    >>> both = RunConfig(train_examples=16, epochs=3, swap_epoch=2)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     summary = run_trunk(trunk(both), Path(out) / "adam", [], device="cpu")
    ...     start = state_for(both, trunk(both), Path(out) / "adam", device="cpu")
    >>> start.parent.name
    'adam-first-2'
    """
    epoch = first_switch(config.switch(), _trace(runs.read(folder)[0]))
    name = _END if epoch is None else _branch_name(config)
    kept = runs.branch_file(folder, name)
    if not kept.exists():
        first = replace(adam, epochs=epoch or adam.epochs)
        beside = folder.with_name(f"{folder.name}-first-{first.epochs}")
        kept = runs.branch_file(beside, _END)
        run_trunk(first, beside, [], root, device)
    return kept


def run(
    configs: Sequence[RunConfig],
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> pd.DataFrame:
    """Run what is not finished of many configurations, each trajectory of Adam once.

    A run that fails is named in the log and in the table; the others still run.

    Args:
        configs: of strategies "adam" and "adam+cg".
        out: the folder of the runs' folders; made if it is not there.
        root, device: see `twophase.experiments.runs.run`.

    Returns:
        A row for each configuration, in their order: its fields; `folder` below `out`, which runs
        of the same course share (see `settled`); `status`, `swapped` (the last epoch before the
        first swap, missing if there was none), `epochs_run` and `passes` of the run;
        `epochs_within`, the epochs within the budget of passes; for each loss of `LOSSES` its value
        at equal epochs (`…_epochs`), at equal passes (`…_passes`) and that of Adam alone after all
        its epochs (`adam_…`); `error`, the reason why a run failed, else empty.

        Losses are means over examples and classes. At equal epochs: of the run's final weights;
        where CG ended before the last epoch, what it had reached. At equal passes: see `within`,
        with the passes that Adam alone spent in all its epochs as the budget.

    Raises:
        InputError: a strategy is another one.
        OSError: a file cannot be written; the runs after it are not run.

    >>> import tempfile
    >>> short = RunConfig(train_examples=16, epochs=3, fallback="off")
    >>> configs = [replace(short, swap_epoch=epoch) for epoch in (1, 2)]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     frame = run(configs, Path(out), device="cpu")
    ...     len(list(Path(out).iterdir()))
    3
    >>> frame.swapped.tolist(), frame.status.tolist()
    ([1, 2], ['completed', 'completed'])
    """
    families: dict[RunConfig, list[RunConfig]] = {}
    for config in configs:
        check_choice("strategy", config.strategy, STRATEGIES)
        families.setdefault(trunk(config), []).append(config)
    rows = {}
    for number, (adam, members) in enumerate(families.items(), 1):
        log.warning("[%d/%d] %s, runs: %d", number, len(families), _name(adam), len(members))
        try:
            branches = [member for member in members if member.strategy != "adam"]
            run_trunk(adam, folder_of(adam, out), branches, root, device)
        except TwoPhaseError as error:
            rows |= {member: _failed(member, error) for member in members}
            continue
        rows |= {member: _run_member(member, adam, out, root, device) for member in members}
    return pd.DataFrame([rows[config] for config in configs])


def folder_of(config: RunConfig, out: Path) -> Path:
    """Where a run lies below a sweep's folder: named by what it is and by its digest.

    >>> folder_of(RunConfig(), Path("runs")).as_posix()[:-8]
    'runs/digits-vit-nomlp-wkewq-wvwo1-adam+cg-'
    """
    return out / f"{config.dataset}-{config.model}-{config.strategy}-{config.digest()}"


def within(history: pd.DataFrame, passes: int) -> pd.Series:
    """What a run had reached within a budget: its last record that needed no more passes.

    Passes are those of the optimisation, with the trials of the line searches; `monitor_passes`,
    spent to fill the record, count for no run.

    Args:
        history: of a run, a row per epoch with a column `passes` of that epoch alone.
        passes: over the training set; forward 1, forward with backward 3.

    Returns:
        The row.

    Raises:
        InputError: the first epoch alone needed more.

    >>> history = pd.DataFrame({"epoch": [1, 2, 3], "passes": [3, 3, 17]})
    >>> [int(within(history, budget).epoch) for budget in (6, 22, 23)]
    [2, 2, 3]
    """
    inside = history[history.passes.cumsum() <= passes]
    if inside.empty:
        raise InputError("passes", passes, f"at least the first epoch's {history.passes.iloc[0]}")
    return inside.iloc[-1]


class Estimate(NamedTuple):
    """A mean over seeds and the ends of its 95 % interval, None for fewer than two seeds.

    >>> Estimate(0.5, 0.4, 0.6).mean
    0.5
    """

    mean: float
    low: float | None
    high: float | None


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Ends of the 95 % percentile bootstrap interval of the mean; None for fewer than two values.

    The resampling always starts from the same seed, so that the same values give the same ends.

    Args:
        values: shape [n].

    Returns:
        The lower and the upper end, in the unit of the values.

    >>> interval(np.array([1.0]))
    (None, None)
    """
    if len(values) < 2:
        return None, None
    generator = np.random.default_rng(0)
    ends = bootstrap((values,), np.mean, method="percentile", rng=generator).confidence_interval
    return float(ends.low), float(ends.high)


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of values [n >= 1] and its interval (see `interval`).

    >>> mean_of(np.array([2.0, 2.0]))
    Estimate(mean=2.0, low=2.0, high=2.0)
    """
    return Estimate(float(np.mean(values)), *interval(values))


def ratio(losses: np.ndarray, reference: np.ndarray) -> Estimate:
    """The ratio of paired losses: exp of the mean over seeds of ln(loss / reference).

    The geometric mean treats halving and doubling alike, and a hard seed counts like an easy one.

    Args:
        losses, reference: above 0, of the same seeds in the same order, shape [n >= 1].

    Returns:
        Geometric mean and its interval: exp of the ends of `mean_of` of the logarithms.

    Raises:
        InputError: a loss is not above 0, or the shapes differ.

    >>> ratio(np.array([1.0, 4.0]), np.array([2.0, 2.0])).mean
    1.0
    """
    if np.shape(losses) != np.shape(reference):
        raise InputError("losses", np.shape(losses), f"the reference's shape {np.shape(reference)}")
    pair = np.array([losses, reference], dtype=float)
    if not (pair > 0).all():
        raise InputError("losses", pair.min(), "losses above 0")
    logs = mean_of(np.log(pair[0] / pair[1]))
    return Estimate(*(None if end is None else float(np.exp(end)) for end in logs))


def compare(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means and paired ratios to Adam alone over the seeds, with 95 % intervals.

    Args:
        frame: from `run`.
        by: columns; a row of the result for each combination of their values.

    Returns:
        Columns `by`; `seeds`, the finished runs; `failed`, the others; and for each loss and each
        budget of `BUDGETS`, with the ends of the interval in `…_low` and `…_high` (missing for
        fewer than two seeds; all is missing where no run has finished): the mean loss, such as
        `train_loss_passes`, and its ratio to Adam alone, such as `train_loss_passes_ratio`; the
        mean loss of Adam alone, `adam_train_loss`.

    Raises:
        InputError: a finished run's loss is 0, which has no ratio.

    >>> frame = pd.DataFrame({"factor": 0.9, "seed": [0, 1], "error": ""})
    >>> for loss in LOSSES:
    ...     frame[f"adam_{loss}"] = [0.2, 0.4]
    ...     for budget in BUDGETS:
    ...         frame[f"{loss}_{budget}"] = [0.1, 0.2]
    >>> compare(frame, ["factor"]).train_loss_passes_ratio.tolist()
    [0.5]
    """
    rows = []
    for values, group in frame.groupby(list(by), sort=False, dropna=False):
        done = group[group.error == ""]
        row = dict(zip(by, values, strict=True))
        row |= {"seeds": len(done), "failed": len(group) - len(done)}
        for loss in LOSSES:
            for name in (f"adam_{loss}", *(f"{loss}_{budget}" for budget in BUDGETS)):
                losses = done[name].to_numpy(float)
                row |= _columns(name, mean_of(losses) if len(done) else None)
                if not name.startswith("adam_"):
                    reference = done[f"adam_{loss}"].to_numpy(float)
                    found = ratio(losses, reference) if len(done) else None
                    row |= _columns(f"{name}_ratio", found)
        rows.append(row)
    return pd.DataFrame(rows)


def in_words(found: Estimate) -> str:
    """A ratio to Adam alone as a phrase: the number, its interval, and what they allow to say.

    Args:
        found: from `ratio`.

    Returns:
        A phrase to follow "the loss is"; "lower" and "higher" only if the interval leaves out 1.

    >>> in_words(Estimate(0.5, 0.4, 0.6))
    "0.5 times Adam's (0.4 to 0.6), lower"
    >>> in_words(Estimate(1.2, 0.9, 1.6))
    "1.2 times Adam's (0.9 to 1.6), no clear difference"
    """
    number = f"{_number(found.mean)} times Adam's"
    if found.low is None:
        return f"{number} (one seed, no interval)"
    number += f" ({_number(found.low)} to {_number(found.high)})"
    if found.high < 1:
        return f"{number}, lower"
    if found.low > 1:
        return f"{number}, higher"
    return f"{number}, no clear difference"


def estimate(row: pd.Series, name: str) -> Estimate:
    """What a row of `compare` says about a column: its value and the ends of its interval.

    >>> estimate(pd.Series({"loss": 1.0, "loss_low": None, "loss_high": None}), "loss")
    Estimate(mean=1.0, low=None, high=None)
    """
    mean, *ends = pd.to_numeric(row[[name, f"{name}_low", f"{name}_high"]])
    return Estimate(float(mean), *(None if pd.isna(end) else float(end) for end in ends))


def as_table(compared: pd.DataFrame, by: Sequence[str], loss: str = "train_loss") -> pd.DataFrame:
    """The comparison as a reader wants it: means and ratios with their intervals as text.

    Args:
        compared: from `compare`.
        by: its leading columns.
        loss: one of `LOSSES`.

    Returns:
        Columns `by`, "seeds", the loss of Adam alone, and for either budget the loss and its ratio
        to Adam's; losses in units of 10⁻³, "–" where nothing was measured.

    >>> frame = pd.DataFrame({"factor": 0.9, "seed": [0, 1], "error": ""})
    >>> for name in LOSSES:
    ...     frame[f"adam_{name}"] = [0.2, 0.4]
    ...     for budget in BUDGETS:
    ...         frame[f"{name}_{budget}"] = [0.1, 0.2]
    >>> as_table(compare(frame, ["factor"]), ["factor"])["equal passes, 10⁻³"][0].split()
    ['150', '[100,', '200]']
    """
    names = {"Adam alone, 10⁻³": (f"adam_{loss}", 1e3)}
    for budget in BUDGETS:
        names |= {f"equal {budget}, 10⁻³": (f"{loss}_{budget}", 1e3)}
        names |= {f"ratio, equal {budget}": (f"{loss}_{budget}_ratio", 1)}
    shown = compared[[*by, "seeds"]].copy()
    for heading, (name, scale) in names.items():
        shown[heading] = [_shown(estimate(row, name), scale) for _, row in compared.iterrows()]
    return shown.reset_index(drop=True)


def _run_member(
    config: RunConfig, adam: RunConfig, out: Path, root: Path | None, device: str | torch.device
) -> dict:
    base = folder_of(adam, out)
    reference, _ = runs.read(base)
    same = settled(config, _trace(reference))
    folder = folder_of(same, out)
    try:
        if same != adam:
            start = state_for(config, adam, base, root, device)
            runs.run(same, folder, root, device, branch_from=start)
        return _row(config, folder, reference)
    except TwoPhaseError as error:
        return _failed(config, error)


def _row(config: RunConfig, folder: Path, reference: pd.DataFrame) -> dict:
    history, summary = runs.read(folder)
    budget = within(history, reference.passes.sum())
    ends = {"epochs": history.iloc[summary["weights_epoch"] - 1], "passes": budget}
    return config.to_dict() | {
        "folder": folder.name,
        "status": summary["status"],
        "swapped": summary["swap_epoch"],
        "epochs_run": len(history),
        "passes": int(history.passes.sum()),
        "epochs_within": int(budget.epoch),
        **{f"{loss}_{name}": end[loss] for loss in LOSSES for name, end in ends.items()},
        **{f"adam_{loss}": reference[loss].iloc[-1] for loss in LOSSES},
        "error": "",
    }


def _failed(config: RunConfig, error: TwoPhaseError) -> dict:
    log.warning("%s failed: %s", _name(config), error)
    missing = dict.fromkeys(_MEASURED)
    return config.to_dict() | missing | {"status": "failed", "error": str(error)}


def _shown(found: Estimate, scale: float) -> str:
    if np.isnan(found.mean):
        return "–"
    mean, *ends = (_number(scale * value) for value in found if value is not None)
    # a line may break before the interval, not within it
    interval_text = ",\N{NO-BREAK SPACE}".join(ends)
    return f"{mean} [{interval_text}]" if ends else mean


def _number(value: float) -> str:
    """Two significant digits, a few seeds tell no more; ratios near 1 have two decimals."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{3 if value >= 1 else 2}g}"


def _columns(name: str, found: Estimate | None) -> dict[str, float | None]:
    values = (None, None, None) if found is None else found
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _branch_name(config: RunConfig) -> str:
    """By the rule alone: runs that differ in CG only leave with one state."""
    if config.swap_epoch is not None:
        return f"epoch-{config.swap_epoch}"
    return f"{config.rule}-{config.factor!r}"


def _name(config: RunConfig) -> str:
    return (
        f"{config.dataset} {config.model} {config.strategy} batch size {config.batch_size} "
        f"seed {config.seed}"
    )


def _trace(history: pd.DataFrame) -> list[tuple[float, float]]:
    return list(zip(history.train_loss, history.grad_norm, strict=True))
