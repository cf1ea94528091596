"""Table 1 of the paper: five networks on three data sets, Adam alone against Adam, then CG.

The two runs of a row share Adam's epochs up to the swap: they are trained once, and the second run
branches off. Every run has its own folder, so that the table can be made in any number of sittings.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from twophase.errors import InputError, TwoPhaseError, check_choice, check_integer
from twophase.experiments import runs
from twophase.experiments.branches import interval
from twophase.experiments.config import RunConfig
from twophase.experiments.files import project_folder, write_atomically

log = logging.getLogger("twophase")

# What the paper leaves open, set here for all rows alike; None: there is no field to set.
CHOICES: dict[str, tuple[object, str]] = {
    "learning_rate": (1e-3, "Adam's default (Kingma and Ba, 2015); the paper prints no rate"),
    "beta": ("PR+", "the paper names Fletcher–Reeves and Polak–Ribière; PR+ restarts by itself"),
    "line_search": ("golden", "golden section, as the paper says"),
    "tolerance": (
        1e-2,
        "of the step; an inexact search needs no more, and each digit costs passes",
    ),
    "initialisation": (None, "torch's defaults; the paper does not mention it"),
    "preprocessing": (None, "32×32 pixels, padded if smaller, standardised per channel"),
}

SWAPS = ("fixed", "rule")
FACTOR = 0.9  # the paper's gn_fact
METRICS = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
EXTRAS = ("validation_top5_accuracy", "passes", "monitor_passes", "seconds", "swap_epoch")
STRATEGIES = ("adam", "adam+cg")


class TrainingSet(NamedTuple):
    """Training examples K, channels and classes M of a data set.

    >>> TRAINING_SETS["cifar100"].classes
    100
    """

    examples: int
    channels: int
    classes: int


TRAINING_SETS = {
    "digits": TrainingSet(1437, 1, 10),
    "mnist": TrainingSet(60000, 1, 10),
    "fashion-mnist": TrainingSet(60000, 1, 10),
    "cifar10": TrainingSet(50000, 3, 10),
    "cifar100": TrainingSet(50000, 3, 100),
}


@dataclass(frozen=True)
class Protocol:
    """How long the runs of a table are.

    Args:
        datasets: the table's data sets.
        epochs, swap_epoch: of every network but vit-mlp: all epochs, and Adam's before the swap.
        mlp_epochs, mlp_swap_epoch: the same for vit-mlp, which the paper trains for 70 %.
        train_examples: size of a random training subset; None: all.

    >>> Protocol(("digits",), epochs=4, swap_epoch=2, mlp_epochs=3, mlp_swap_epoch=1).datasets
    ('digits',)
    """

    datasets: tuple[str, ...]
    epochs: int
    swap_epoch: int
    mlp_epochs: int
    mlp_swap_epoch: int
    train_examples: int | None = None

    def length(self, model: str) -> tuple[int, int]:
        """Epochs and swap epoch of a network.

        >>> PROTOCOLS["paper"].length("vit-mlp")
        (700, 210)
        """
        if model == "vit-mlp":
            return self.mlp_epochs, self.mlp_swap_epoch
        return self.epochs, self.swap_epoch


PROTOCOLS = {
    "smoke": Protocol(("digits",), 4, 2, 3, 1, train_examples=32),
    "quick": Protocol(("digits",), 40, 12, 28, 8),
    "paper": Protocol(("mnist", "cifar10", "cifar100"), 1000, 300, 700, 210),
}


@dataclass(frozen=True)
class Pair:
    """The two runs of a network on a data set with one seed, under a protocol.

    Args:
        protocol: how long the runs are.
        dataset, model: names in `TRAINING_SETS` and `twophase.problems.networks.MODELS`.
        seed: of both runs, at least 0.
        swap: where Adam ends: "fixed", after the protocol's epoch, or "rule", by Algorithm 1.

    >>> Pair(PROTOCOLS["smoke"], "digits", "vit-mlp", seed=0, swap="fixed").model
    'vit-mlp'
    """

    protocol: Protocol
    dataset: str
    model: str
    seed: int
    swap: str

    def config(self, strategy: str) -> RunConfig:
        """The configuration of one of the two runs.

        Args:
            strategy: "adam" or "adam+cg".

        Raises:
            InputError: the protocol's numbers or the pair's names are not allowed.

        >>> pair = Pair(PROTOCOLS["paper"], "mnist", "vit-mlp", seed=0, swap="fixed")
        >>> pair.config("adam").swap_epoch, pair.config("adam+cg").swap_epoch
        (None, 210)
        """
        epochs, swap_epoch = self.protocol.length(self.model)
        chosen = {name: value for name, (value, _) in CHOICES.items() if value is not None}
        fixed = strategy == "adam+cg" and self.swap == "fixed"
        return RunConfig(
            dataset=self.dataset,
            model=self.model,
            strategy=strategy,
            epochs=epochs,
            seed=self.seed,
            swap_epoch=swap_epoch if fixed else None,
            rule="norm-peak",
            factor=FACTOR,
            train_examples=self.protocol.train_examples,
            **chosen,
        )

    def folder(self, out: Path, strategy: str) -> Path:
        """Where a run of the pair lies below the table's folder.

        Adam's run is the same for both kinds of swap.

        >>> pair = Pair(PROTOCOLS["smoke"], "digits", "vit-mlp", seed=0, swap="rule")
        >>> pair.folder(Path("out"), "adam+cg").as_posix()
        'out/digits/vit-mlp/seed-0/adam+cg-rule'
        """
        name = strategy if strategy == "adam" else f"{strategy}-{self.swap}"
        return out / self.dataset / self.model / f"seed-{self.seed}" / name


def pairs(
    protocol: Protocol,
    datasets: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    seeds: int = 1,
    swap: str = "fixed",
) -> list[Pair]:
    """The pairs of runs of a table, seed by seed, so that a first whole table is there early.

    Args:
        protocol: how long the runs are.
        datasets: names in `TRAINING_SETS`; None: the protocol's.
        networks: names in `twophase.problems.networks.MODELS`; None: all five.
        seeds: how many, at least 1; they count from 0.
        swap: "fixed" or "rule"; see `Pair`.

    Returns:
        A pair for each seed, data set and network, in this order.

    Raises:
        InputError: a data set, network or swap is unknown, or a number out of range.

    >>> len(pairs(PROTOCOLS["paper"]))
    15
    """
    chosen = [check_choice("dataset", d, TRAINING_SETS) for d in datasets or protocol.datasets]
    names = [check_choice("model", model, networks.MODELS) for model in networks or networks.MODELS]
    found = [
        Pair(protocol, dataset, model, seed, check_choice("swap", swap, SWAPS))
        for seed in range(check_integer("seeds", seeds, 1))
        for dataset in chosen
        for model in names
    ]
    for pair in found:
        for strategy in STRATEGIES:
            pair.config(strategy)  # refuses a protocol that no run could follow
    return found


def protocol(
    preset: str,
    epochs: int | None = None,
    swap_epoch: int | None = None,
    train_examples: int | None = None,
) -> Protocol:
    """The protocol of a preset, with other numbers for all networks where they are given.

    Args:
        preset: smoke, quick or paper.
        epochs, swap_epoch: for all networks, vit-mlp included; None: the preset's.
        train_examples: size of a random training subset; None: the preset's.

    Returns:
        The protocol. `pairs` checks its numbers.

    Raises:
        InputError: the preset is unknown.

    >>> protocol("paper", epochs=100, swap_epoch=30).length("vit-mlp")
    (100, 30)
    """
    given = {
        "epochs": epochs,
        "mlp_epochs": epochs,
        "swap_epoch": swap_epoch,
        "mlp_swap_epoch": swap_epoch,
        "train_examples": train_examples,
    }
    known = PROTOCOLS[check_choice("preset", preset, PROTOCOLS)]
    return replace(known, **{name: value for name, value in given.items() if value is not None})


def default_folder(preset: str) -> Path:
    """Where a preset's table goes when no folder is given.

    Args:
        preset: a name, not checked here.

    Returns:
        reports/table1/PRESET in the source tree, or in the working directory without one.

    >>> default_folder("quick").parts[-3:]
    ('reports', 'table1', 'quick')
    """
    return (project_folder() or Path()) / "reports" / "table1" / preset


def listing(
    protocol: Protocol,
    datasets: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Parameters P and Q = K·M/P of every row, as the paper rounds it, without training.

    Args:
        protocol, datasets, networks: as for `pairs`.

    Returns:
        Columns dataset, model, parameters and q (to one decimal); a row for each data set and
        network. K is the protocol's `train_examples` where it has them, M the number of classes.

    Raises:
        InputError: a data set or network is unknown, or a number out of range.

    >>> listing(PROTOCOLS["paper"]).q.tolist()[:5]
    [3.9, 11.0, 14.1, 33.5, 4.9]
    """
    rows = []
    for pair in pairs(protocol, datasets, networks):
        examples, channels, classes = TRAINING_SETS[pair.dataset]
        examples = protocol.train_examples or examples
        network = networks.build(pair.model, channels, classes, seed=0)
        parameters = networks.parameter_count(network)
        q = networks.overdetermination(examples, classes, parameters)
        rows.append((pair.dataset, pair.model, parameters, round(q, 1)))
    return pd.DataFrame(rows, columns=["dataset", "model", "parameters", "q"])


def run(
    chosen: Sequence[Pair],
    out: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> pd.DataFrame:
    """Run what is not finished of the pairs, and write `table1.csv` after each.

    A pair that fails is named in the log; the others still run.

    Args:
        chosen: from `pairs`.
        out: the table's folder.
        root, device: see `twophase.experiments.runs.run`.

    Returns:
        The table; see `table`.

    Raises:
        TwoPhaseError: at least one pair failed; all others were run.
        InputError: the package does not run from its source tree; see `paper_table`.
        OSError: a file cannot be written; the pairs after it are not run.

    >>> import tempfile
    >>> short = protocol("smoke", epochs=2, swap_epoch=1, train_examples=16)
    >>> chosen = pairs(short, networks=["vit-nomlp-wkewq-wvwo1"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = run(chosen, Path(folder), device="cpu")
    >>> made.strategy.tolist(), made.seeds.tolist()
    (['adam', 'adam+cg'], [1, 1])
    """
    failed = []
    for number, pair in enumerate(chosen, 1):
        name = f"{pair.dataset} {pair.model} seed {pair.seed}"
        log.warning("[%d/%d] %s", number, len(chosen), name)
        try:
            _run_pair(pair, out, root, device)
        except TwoPhaseError as error:
            log.warning("%s failed: %s", name, error)
            failed.append((name, error))
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "table1.csv", table(chosen, out).to_csv(index=False))
    if failed:
        name, error = failed[0]
        raise TwoPhaseError(f"{len(failed)} of {len(chosen)} pairs failed; first {name}: {error}")
    return table(chosen, out)


def table(chosen: Sequence[Pair], out: Path) -> pd.DataFrame:
    """The table as far as it was run: a row for each data set, network and strategy.

    Columns: dataset, model, strategy; `seeds`, the number of finished runs (0: not run, and all
    that is measured is missing, never filled in); for each of `METRICS` its mean over seeds, the
    ends of its 95 % bootstrap interval (`_low`, `_high`, from two seeds on), the paper's figure
    (`paper_…`, where the paper has that row) and the difference (`…_difference`); the means of
    `EXTRAS`; `parameters` and `q`; and `direction_found`: whether Adam then CG ended below Adam in
    training loss, as in the paper.

    Losses are mean squared errors, accuracies shares from 0 to 1, `passes` those over the training
    set (see `twophase.training.Record`); `q` is K·M/P.

    Args:
        chosen: from `pairs`.
        out: the table's folder; it need not be there yet.

    Returns:
        The table, in the order of `chosen`.

    Raises:
        InputError: a run's files are damaged, or the package does not run from its source tree.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table(pairs(PROTOCOLS["smoke"], networks=["vit-mlp"]), Path(folder)).seeds.tolist()
    [0, 0]
    """
    paper = paper_table().set_index(["dataset", "model", "strategy"])
    rows = []
    for dataset, model in dict.fromkeys((pair.dataset, pair.model) for pair in chosen):
        group = [pair for pair in chosen if (pair.dataset, pair.model) == (dataset, model)]
        finished = {s: list(_summaries(group, out, s)) for s in STRATEGIES}
        found = _direction(finished)
        for strategy in STRATEGIES:
            key = (dataset, model, strategy)
            printed = paper.loc[key] if key in paper.index else None
            measured = pd.DataFrame(finished[strategy])
            rows.append(
                {"dataset": dataset, "model": model, "strategy": strategy}
                | {"seeds": len(measured), "direction_found": found}
                | _measured(measured)
                | _compared(measured, printed)
            )
    return pd.DataFrame(rows)


def as_text(frame: pd.DataFrame) -> str:
    """The table's most important columns for a terminal; rows that were not run say so.

    Args:
        frame: from `table`.

    Returns:
        Lines of text: a head, then one for each row.

    >>> row = {"dataset": "digits", "model": "vit-mlp", "strategy": "adam", "train_loss": 0.01}
    >>> print(as_text(pd.DataFrame([row])))
    dataset   model strategy train_loss validation_accuracy paper_train_loss
     digits vit-mlp     adam   0.010000             not run                –
    """
    shown = frame[["dataset", "model", "strategy"]].copy()
    for name, digits in (("train_loss", 6), ("validation_accuracy", 3), ("paper_train_loss", 4)):
        values = frame.get(name, pd.Series(dtype=float)).reindex(frame.index)
        empty = "–" if name.startswith("paper") else "not run"
        shown[name] = [empty if pd.isna(v) else f"{v:.{digits}f}" for v in values]
    return shown.to_string(index=False)


def paper_table() -> pd.DataFrame:
    """The paper's own Table 1, from `data/paper_table1.csv` of the source tree.

    Returns:
        A row for each data set, network and strategy; columns dataset, model, strategy, q and
        `METRICS`, as printed.

    Raises:
        InputError: the package does not run from its source tree.

    >>> len(paper_table())
    30
    """
    tree = project_folder()
    if tree is None:
        raise InputError("paper's table", None, "the source tree, whose data folder holds it")
    return pd.read_csv(tree / "data" / "paper_table1.csv")


def _run_pair(pair: Pair, out: Path, root: Path | None, device: str | torch.device) -> None:
    adam, adam_folder = pair.config("adam"), pair.folder(out, "adam")
    both, folder = pair.config("adam+cg"), pair.folder(out, "adam+cg")
    # a state for either kind of swap, so that the other kind can branch off later
    branches = [replace(pair, swap=swap).config("adam+cg") for swap in SWAPS]
    branches.run_trunk(adam, adam_folder, branches, root, device)
    start = branches.state_for(both, adam, adam_folder, root, device)
    runs.run(both, folder, root, device, branch_from=start)


def _summaries(group: Sequence[Pair], out: Path, strategy: str) -> Iterator[dict]:
    for pair in group:
        folder = pair.folder(out, strategy)
        if (folder / "summary.json").exists():
            yield runs.read(folder)[1]


def _direction(finished: dict[str, list[dict]]) -> bool | None:
    """Whether the paper's direction was found, in the mean over the seeds that both have."""
    losses = {s: {r["seed"]: r["train_loss"] for r in rows} for s, rows in finished.items()}
    shared = losses["adam"].keys() & losses["adam+cg"].keys()
    if not shared:
        return None
    return sum(losses["adam+cg"][s] for s in shared) < sum(losses["adam"][s] for s in shared)


def _measured(measured: pd.DataFrame) -> dict[str, object]:
    if measured.empty:
        ends = [f"{name}_{end}" for name in METRICS for end in ("low", "high")]
        return dict.fromkeys(("parameters", "q", "epochs", *METRICS, *EXTRAS, *ends))
    row: dict[str, object] = {
        name: measured[name].iloc[0] for name in ("parameters", "q", "epochs")
    }
    for name in (*METRICS, *EXTRAS):
        values = pd.to_numeric(measured[name], errors="coerce").dropna().to_numpy()
        row[name] = values.mean() if len(values) else None
    for name in METRICS:
        row[f"{name}_low"], row[f"{name}_high"] = interval(measured[name].to_numpy(float))
    return row


def _compared(measured: pd.DataFrame, printed: pd.Series | None) -> dict[str, object]:
    names = (*METRICS, "q")
    row = dict.fromkeys(
        [*(f"paper_{name}" for name in names), *(f"{n}_difference" for n in METRICS)]
    )
    if printed is not None:
        row |= {f"paper_{name}": printed[name] for name in names}
        if not measured.empty:
            row |= {f"{n}_difference": measured[n].mean() - printed[n] for n in METRICS}
    return row
