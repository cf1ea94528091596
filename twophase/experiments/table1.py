"""Table 1 of the paper: five networks on three data sets, Adam alone against Adam, then CG.

The two runs of a row share Adam's epochs up to the swap: they are trained once, and the second run
branches off. Every run has its own folder, so that the table can be made in any number of sittings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from twophase.adam import AdamSettings
from twophase.errors import InputError, check_choice, check_integer
from twophase.experiments import branches, runs
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.executors import ALONE, Executor
from twophase.experiments.files import committed_table, write_rows
from twophase.experiments.statistics import interval
from twophase.problems import networks
from twophase.problems.image_files import SOURCES
from twophase.problems.problem import ImageProblem
from twophase.switching.rules import FixedEpoch
from twophase.training import PAPER

# What the paper leaves open, set here for all rows alike.
CHOICES: dict[str, tuple[object, str]] = {
    "learning rate": (
        AdamSettings().learning_rate,
        "Adam's default (Kingma and Ba, 2015); the paper prints no rate",
    ),
    "direction": (
        PAPER["second"].direction,
        "the paper names Fletcher–Reeves and Polak–Ribière; PR+ restarts by itself",
    ),
    "line search": (
        PAPER["second"].line_search,
        "golden section, as the paper says; an inexact search needs no smaller tolerance of the "
        "step, and each digit costs passes",
    ),
    "initialisation": (None, "torch's defaults; the paper does not mention it"),
    "preprocessing": (None, "32×32 pixels, padded if smaller, standardised per channel"),
}

SWAPS = ("fixed", "rule")
METRICS = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
EXTRAS = ("validation_top5_accuracy", "passes", "monitor_passes", "seconds", "swap_epoch")
KEY = ["dataset", "model", "strategy"]
# of a row, as the paper calls them
STRATEGIES = ("adam", "adam+cg")


@dataclass(frozen=True)
class Protocol:
    """How long the runs of a table are.

    Args:
        datasets: the table's data sets.
        epochs, swap_epoch: of every network but vit-mlp: all epochs, and Adam's before the swap.
        mlp_epochs, mlp_swap_epoch: the same for vit-mlp, which the paper trains for 70 %.
        train_examples: size of a random training subset; None: all.
    """

    datasets: tuple[str, ...]
    epochs: int
    swap_epoch: int
    mlp_epochs: int
    mlp_swap_epoch: int
    train_examples: int | None = None

    def length(self, model: str) -> tuple[int, int]:
        """Epochs and swap epoch of a network."""
        if model == "vit-mlp":
            return self.mlp_epochs, self.mlp_swap_epoch
        return self.epochs, self.swap_epoch


PROTOCOLS = {
    "smoke": Protocol(("digits",), 4, 2, 3, 1, train_examples=32),
    "quick": Protocol(("digits",), 40, 12, 28, 8),
    "paper": Protocol(("mnist", "cifar10", "cifar100"), 1000, 300, 700, 210),
}


def protocol(
    preset: str,
    epochs: int | None = None,
    swap_epoch: int | None = None,
    train_examples: int | None = None,
) -> Protocol:
    """The protocol of a preset, with other numbers for all networks where they are given.

    `InputError` where the preset is none of smoke, quick and paper; `configs` checks the numbers.
    """
    given = {"epochs": epochs, "mlp_epochs": epochs, "train_examples": train_examples}
    given |= {"swap_epoch": swap_epoch, "mlp_swap_epoch": swap_epoch}
    known = PROTOCOLS[check_choice("preset", preset, PROTOCOLS)]
    return replace(known, **{name: value for name, value in given.items() if value is not None})


def configs(
    protocol: Protocol,
    datasets: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    seeds: int = 1,
    swap: str = "fixed",
) -> list[RunConfig]:
    """The runs of Adam, then CG of a table; Adam alone is the trunk of each.

    They come seed by seed, so that a first whole table is there early. `InputError` for unknown
    names and numbers out of range.

    Args:
        protocol: how long the runs are.
        datasets: names in `images.DATASETS`; None: the protocol's.
        models: names in `networks.MODELS`; None: all five.
        seeds: how many, at least 1; they count from 0.
        swap: where Adam ends: "fixed", after the protocol's epoch, or "rule", by Algorithm 1.
    """
    check_choice("swap", swap, SWAPS)
    found = []
    for seed in range(check_integer("seeds", seeds, 1, MOST_SEEDS)):
        for dataset in datasets or protocol.datasets:
            for model in models or networks.MODELS:
                problem = ImageProblem(dataset, model, protocol.train_examples)
                epochs, swap_epoch = protocol.length(model)
                paper = RunConfig(problem, epochs, seed=seed, **PAPER)
                fixed = replace(paper, switch=FixedEpoch(swap_epoch))
                found.append(fixed if swap == "fixed" else paper)
    return found


def folder_name(config: RunConfig) -> str:
    """Such as digits/vit-mlp/seed-0/adam+cg-fixed; Adam's is the same for both kinds of swap."""
    name = "adam"
    if config.second is not None:
        name = "adam+cg-rule" if config.swap_epoch is None else "adam+cg-fixed"
    return f"{config.problem.dataset}/{config.problem.model}/seed-{config.seed}/{name}"


def listing(chosen: Sequence[RunConfig]) -> pd.DataFrame:
    """Parameters P and Q = K·M/P of every row, as the paper rounds it, without training.

    A row for each of the configurations, with its dataset, model, parameters and q (to one
    decimal). K is the subset's size where there is one, M the number of classes.
    """
    rows = []
    for problem in (config.problem for config in chosen):
        source = SOURCES[problem.dataset]
        network = networks.build(problem.model, source.channels, source.classes, seed=0)
        parameters = networks.parameter_count(network)
        examples = problem.train_examples or source.examples
        q = networks.overdetermination(examples, source.classes, parameters)
        rows.append((problem.dataset, problem.model, parameters, round(q, 1)))
    return pd.DataFrame(rows, columns=["dataset", "model", "parameters", "q"])


def run(
    chosen: Sequence[RunConfig], place: branches.Place, executor: Executor = ALONE
) -> pd.DataFrame:
    """Run what is not finished, and write `table1.csv` after each; return the rows of `chosen`.

    Rows of other networks and data sets that the file has stay.
    `chosen` and `place` are from `configs` and `place`. `TwoPhaseError` where at least one run
    failed; all others were run. For other errors see `branches.run` and `paper_table`.
    """
    paper_table()
    place.out.mkdir(parents=True, exist_ok=True)

    def write(_: branches.Done | None = None) -> None:
        write_rows(place.out / "table1.csv", table(chosen, place.out), KEY)

    done = branches.run(chosen, place, executor, write)
    write()
    branches.check(done)
    return table(chosen, place.out)


def place(out: Path, root: Path | None = None, device: str = "auto") -> branches.Place:
    """Where a table's runs are kept: in folders with speaking names."""
    return branches.Place(out, root, device, folder_name)


def table(chosen: Sequence[RunConfig], out: Path) -> pd.DataFrame:
    """The table as far as it was run: a row for each data set, network and strategy.

    Columns: dataset, model, strategy; `seeds`, the number of finished runs (0: not run, and all
    that is measured is missing, never filled in); for each of `METRICS` its mean over seeds, the
    ends of its `interval` (`_low`, `_high`, from two seeds on), the paper's figure
    (`paper_…`, where the paper has that row) and the difference (`…_difference`); the means of
    `EXTRAS`; `parameters` and `q`; and `direction_found`: whether Adam then CG ended below Adam in
    training loss, as in the paper.

    Losses are mean squared errors, accuracies shares from 0 to 1, `passes` those over the training
    set (see `twophase.Record`); `q` is K·M/P. Rows come in the order of `chosen`. Raises
    `InputError` where a run's files are damaged, and as `paper_table` does.
    """
    paper = paper_table().set_index(["dataset", "model", "strategy"])
    rows = []
    for dataset, model in dict.fromkeys((c.problem.dataset, c.problem.model) for c in chosen):
        group = [c for c in chosen if (c.problem.dataset, c.problem.model) == (dataset, model)]
        summaries: dict[str, list] = {strategy: [] for strategy in STRATEGIES}
        for config in group:
            for strategy, _, summary in finished(config, out):
                summaries[strategy].append(summary)
        found = _direction(summaries)
        for strategy in STRATEGIES:
            key = (dataset, model, strategy)
            printed = paper.loc[key] if key in paper.index else None
            measured = pd.DataFrame(summaries[strategy])
            rows.append(
                {"dataset": dataset, "model": model, "strategy": strategy}
                | {"seeds": len(measured), "direction_found": found}
                | _measured(measured)
                | _compared(measured, printed)
            )
    return pd.DataFrame(rows)


def as_text(frame: pd.DataFrame) -> str:
    """The most important columns of `table` for a terminal; rows that were not run say so."""
    shown = frame[["dataset", "model", "strategy"]].copy()
    for name, digits in (("train_loss", 6), ("validation_accuracy", 3), ("paper_train_loss", 4)):
        shown[name] = decimals(frame[name], digits)
    return shown.to_string(index=False)


def decimals(measured: pd.Series, digits: int) -> list[str]:
    """A column of `table` as text; missing is "not run", or "–" where the paper has no such row."""
    missing = "–" if measured.name.startswith("paper") else "not run"
    return [missing if pd.isna(value) else f"{value:.{digits}f}" for value in measured]


def paper_table() -> pd.DataFrame:
    """The paper's own Table 1, from the source tree, `InputError` without it.

    A row for each data set, network and strategy; columns dataset, model, strategy, q and
    `METRICS`, as printed.
    """
    return committed_table("data/paper_table1.csv")


def finished(config: RunConfig, out: Path) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Strategy, history and summary of the runs of a row, Adam's and that with CG, if finished."""
    for strategy, run in zip(STRATEGIES, (config.trunk(), config), strict=True):
        try:
            found = runs.read(out / folder_name(run))
        except InputError:  # what is damaged is as good as not run
            continue
        yield strategy, *found


def _direction(summaries: dict[str, list]) -> bool | None:
    """Whether the paper's direction was found, in the mean over the seeds that both have."""
    losses = {s: {r["seed"]: r["train_loss"] for r in rows} for s, rows in summaries.items()}
    shared = losses["adam"].keys() & losses["adam+cg"].keys()
    if not shared:
        return None
    return sum(losses["adam+cg"][s] for s in shared) < sum(losses["adam"][s] for s in shared)


def _measured(measured: pd.DataFrame) -> dict[str, object]:
    if measured.empty:
        ends = [f"{name}_{end}" for name in METRICS for end in ("low", "high")]
        return dict.fromkeys(("parameters", "q", "epochs", *METRICS, *EXTRAS, *ends))
    row = {name: measured[name].iloc[0] for name in ("parameters", "q", "epochs")}
    for name in (*METRICS, *EXTRAS):
        values = pd.to_numeric(measured[name], errors="coerce").dropna().to_numpy()
        row[name] = values.mean() if len(values) else None
    for name in METRICS:
        row[f"{name}_low"], row[f"{name}_high"] = interval(measured[name].to_numpy(float))
    return row


def _compared(measured: pd.DataFrame, printed: pd.Series | None) -> dict[str, object]:
    names = (*METRICS, "q")
    keys = [f"paper_{name}" for name in names] + [f"{name}_difference" for name in METRICS]
    row = dict.fromkeys(keys)
    if printed is not None:
        row |= {f"paper_{name}": printed[name] for name in names}
        if not measured.empty:
            row |= {f"{n}_difference": measured[n].mean() - printed[n] for n in METRICS}
    return row
