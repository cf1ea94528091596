"""Second phases and their competitors from one shared Adam prefix, at equal passes and seconds.

A comparison is a list of entries, each a configuration with a budget of passes, labelled with its
method; what is read off are curves.
"""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from twophase.adam import AdamSettings
from twophase.device import device_name, resolve_device
from twophase.errors import InputError, check_choice, check_integer
from twophase.experiments import branches, provenance, reached, runs
from twophase.experiments.competitors import AdamGoesOn, Competitor
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.executors import ALONE, Executor
from twophase.experiments.files import write_atomically
from twophase.experiments.methods import METHODS
from twophase.experiments.options import check_applies, problem_named
from twophase.objective import GRADIENT_PASSES
from twophase.problems import networks
from twophase.problems.gpt import GPT_MODELS
from twophase.problems.problem import DTYPES, Problem
from twophase.second_phase import Minimizer

log = logging.getLogger("twophase")

# Saved curves keep points at which the passes have grown by this part.
SAVED_SPACING = 0.04
# Of weights, batches and subsets in the runs that tuning looks at, never in those it is judged by.
TUNING_SEED = 100
# The paper's networks from the quickest to the slowest pass, and all others.
SIZES = ("vit-nomlp-wkewq-wvwo1", "vit-nomlp-wkewq", "vit-nomlp", "vit-mlp", "vgg5-max-relu")
OTHERS = ("mlp-4", "mlp-8", "mlp-16", "resnet8", "resnet8-groupnorm", "resnet18")
OTHERS += ("resnet18-groupnorm", *GPT_MODELS)
# what a saved table says of the automatic switch; else it is another method, or was not looked at
_TOLD = {"True": True, "False": False}
MEASURED = ("passes_spent", "seconds", "loss", "validation_loss", "accuracy")


class Entry(NamedTuple):
    """A configuration with a budget of passes, and the method that it stands for."""

    config: RunConfig
    method: str
    candidate: int
    passes: int  # the comparison's budget, of which a method may have a multiple
    swap_epoch: int  # of the prefix

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that name the entry in a table of curves."""
        config, problem = self.config, self.config.problem
        return {
            "problem": getattr(problem, "dataset", problem.name),
            "model": getattr(problem, "model", ""),
            "swap_epoch": self.swap_epoch,
            "seed": config.seed,
            "batch_size": config.adam.batch_size,
            "learning_rate": config.adam.learning_rate,
            "train_examples": getattr(problem, "train_examples", None),
            "dtype": config.dtype,
            **{"method": self.method, "candidate": self.candidate, "passes": self.passes},
        }


def prefix(
    problem: Problem,
    swap_epoch: int,
    seed: int = 0,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    dtype: str = "float32",
) -> RunConfig:
    """Adam on a problem up to where the methods part; its validation examples are looked at, too.

    A full-batch problem takes all its points in one batch, whatever `batch_size` says. `InputError`
    for a field out of range.
    """
    check_integer("swap_epoch", swap_epoch, 1)
    adam = AdamSettings(learning_rate, None if problem.full_batch else batch_size)
    return RunConfig(problem, swap_epoch, adam, second=None, seed=seed, dtype=dtype)


@dataclass(frozen=True)
class Plan:
    """A comparison: problems and networks, where the methods part, their budget, and the seeds.

    See `prefix`, `ImageProblem` and `twophase.problems.problem.named`. `InputError` for a field out
    of range.
    """

    problems: tuple[str, ...]
    models: tuple[str, ...]  # equations take none
    swap_epoch: int
    passes: int  # each method's budget after the prefix, at least 3
    seeds: int = 3  # 0, 1, ..., so many
    batch_size: int = 512
    train_examples: int | None = None
    dtype: str | None = None  # None: float32, of full-batch problems float64
    validation_examples: int | None = None  # None: all; 0: training losses only

    def __post_init__(self) -> None:
        check_integer("seeds", self.seeds, 1, MOST_SEEDS)
        check_integer("passes", self.passes, GRADIENT_PASSES)
        if self.dtype is not None:
            check_choice("dtype", self.dtype, DTYPES)
        check_integer("batch_size", self.batch_size, 1)
        if self.train_examples is not None:
            check_integer("train_examples", self.train_examples, 1)
        if self.validation_examples is not None:
            check_integer("validation_examples", self.validation_examples, 0)
        for model in self.models:
            check_choice("model", model, SIZES + OTHERS)
        self.prefixes()

    def prefixes(self) -> list[RunConfig]:
        """All prefixes, seed by seed, so that a plan that is stopped has whole seeds."""
        problems: dict[Problem, None] = {}
        for name in self.problems:
            problems |= dict.fromkeys(self._problem(name, model) for model in self.models)
        return [self._prefix(problem, seed) for seed in range(self.seeds) for problem in problems]

    def tuning(self) -> RunConfig:
        """Where the methods are tuned: on the first problem's smallest network."""
        smallest = min(self.models, key=(SIZES + OTHERS).index)
        return self._prefix(self._problem(self.problems[0], smallest), TUNING_SEED)

    def _problem(self, name: str, model: str) -> Problem:
        return problem_named(name, model, self.train_examples, self.validation_examples)

    def _prefix(self, problem: Problem, seed: int) -> RunConfig:
        dtype = self.dtype or ("float64" if problem.full_batch else "float32")
        return prefix(problem, self.swap_epoch, seed, self.batch_size, dtype=dtype)


PLANS = {
    "smoke": Plan(("digits",), SIZES[:1], 2, 30, seeds=2, batch_size=16, train_examples=32),
    "quick": Plan(("digits",), SIZES[:1], 40, 100, batch_size=64, train_examples=192),
    "paper": Plan(("digits", "mnist", "cifar10"), tuple(networks.MODELS), 100, 1000),
}


def plan(preset: str, **changes: Any) -> Plan:
    """A preset's plan, with the fields that are not None instead of its own; else `InputError`.

    So it is for a field that no problem of the plan has.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    found = replace(PLANS[check_choice("preset", preset, PLANS)], **given)
    examples = "batch_size", "train_examples", "validation_examples"
    asked = {name: given.get(name) for name in examples}
    check_applies(found.problems, {"model": given.get("models"), **asked})
    return found


def entries(
    prefixes: Iterable[RunConfig],
    methods: Iterable[str],
    passes: int,
    candidates: Mapping[str, int] | None = None,
) -> list[Entry]:
    """The comparison of methods from some prefixes, of those whose package is installed.

    Each has a budget of `passes`, at least 3, times `Method.times`, and its candidate settings by
    number, as `chosen` by tuning (default: as shipped). `InputError` for an unknown method or a
    number out of range.
    """
    names = [check_choice("method", name, METHODS) for name in methods]
    here = [name for name in names if METHODS[name].installed]
    for name in set(names) - set(here):
        log.warning("%s left out: its package is not installed", name)
    numbers = candidates or {}
    return [_entry(one, name, numbers.get(name, 0), passes) for one in prefixes for name in here]


def tuning_entries(prefix: RunConfig, methods: Iterable[str], passes: int) -> list[Entry]:
    """What tuning tries first of every method that it has a choice of; else as for `entries`."""
    return [
        _entry(prefix, entry.method, number, passes)
        for entry in entries([prefix], methods, passes)
        if METHODS[entry.method].tuned
        for number in METHODS[entry.method].candidates.first
    ]


def variants(
    prefix: RunConfig, phases: Mapping[str, Minimizer | Competitor], passes: int
) -> list[Entry]:
    """Second phases of any settings by their labels, and Adam going on, from one prefix."""
    chosen = {"adam": AdamGoesOn(), **phases}
    return [
        Entry(replace(prefix, second=second, passes=passes), label, 0, passes, prefix.epochs)
        for label, second in chosen.items()
    ]


def chosen(curves: pd.DataFrame) -> dict[str, int]:
    """For each method the candidate with the lowest loss at the end of the tuning runs' budget."""
    lowest = curves.groupby(["method", "candidate"]).loss.min()
    return {method: int(of.idxmin()[1]) for method, of in lowest.groupby("method")}


def compare(
    plan: Plan,
    methods: Sequence[str],
    place: branches.Place,
    tune: bool = True,
    executor: Executor = ALONE,
) -> pd.DataFrame:
    """Tune every method alike, then run all of them from all prefixes.

    Tuning tries each method's candidates once, on `Plan.tuning`, and takes the best everywhere; its
    curves come after the others. On a ladder of settings it goes on until the best has worse ones
    on both sides, or the ladder ends. Without it all methods are as shipped. Errors as of `run`.
    """
    tried = tuning_entries(plan.tuning(), methods, plan.passes) if tune else []
    numbers: dict[str, int] = {}
    further = tried
    while further:
        numbers = chosen(run(tried, place, executor))
        known = {(entry.method, entry.candidate) for entry in tried}
        further = [
            _entry(plan.tuning(), method, number, plan.passes)
            for method, best in numbers.items()
            for number in METHODS[method].candidates.beside(best)
            if (method, number) not in known
        ]
        tried = tried + further
    if tried:
        log.warning("tuning chose %s", numbers)
    return run([*entries(plan.prefixes(), methods, plan.passes, numbers), *tried], place, executor)


def run(todo: Sequence[Entry], place: branches.Place, executor: Executor = ALONE) -> pd.DataFrame:
    """The curves of some entries, of which those that are not done are run, each prefix once.

    A row for each point: the keys of the entry, and `passes_spent` and `seconds` since the prefix,
    with the lowest training `loss` so far, and the `validation_loss` and `accuracy` of its weights,
    NaN without validation examples; `switched` says of the automatic switch whether it ever did,
    within its passes, and is None of others. `TwoPhaseError` where an entry failed, once the others
    were run; `OSError` where a file cannot be written.
    """
    done = branches.run([entry.config for entry in todo], place, executor)
    branches.check(done)
    frames = []
    for entry, one in zip(todo, done, strict=True):
        switched = None
        if entry.config.passes is None:
            points, end = _course(entry, runs.read(one.folder)[0])
            switched = end.swap_epoch is not None
        else:
            points = runs.read_curve(one.folder).rename(columns={"passes": "passes_spent"})
        points = points.reindex(columns=MEASURED).astype(dict.fromkeys(MEASURED[1:], float))
        keys = entry.keys | {"switched": switched}
        frames.append(pd.DataFrame([keys]).merge(points, how="cross"))
    return pd.concat(frames, ignore_index=True)


def _course(entry: Entry, history: pd.DataFrame) -> tuple[pd.DataFrame, reached.End]:
    """The curve of a training of both phases, from where it has spent the prefix's passes; its end.

    What the switch reads is charged.
    """
    spent = reached.charged(history, entry.config)
    spent.passes -= GRADIENT_PASSES * entry.swap_epoch
    lowest, found, along = None, [], list(reached.along(history, entry.config))
    for costs, (kept, _) in zip(spent.itertuples(index=False), along, strict=True):
        if lowest is None or kept.train_loss < lowest.train_loss:
            lowest = kept
        measured = lowest.train_loss, lowest.validation_loss, lowest.validation_accuracy
        found.append((*costs, *measured))
    table = pd.DataFrame(found, columns=list(MEASURED))
    # up to the prefix's passes it is all beginning
    first = max(int((table.passes_spent <= 0).sum()) - 1, 0)
    table.seconds -= table.seconds.iloc[first]
    points = table.iloc[first:].assign(passes_spent=lambda of: of.passes_spent.clip(lower=0))
    return points, along[-1][1]


def save(curves: pd.DataFrame, folder: Path) -> None:
    """Write curves as two small tables, `runs.csv` and `curves.csv`.

    Of each curve those points are kept at which the loss is lower than before and the passes have
    grown by 4 % or more, and its two ends; losses to five digits, seconds to three.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = [name for name in curves if name not in MEASURED]
    numbers = curves.groupby(keys, sort=False, dropna=False).ngroup()
    table = curves[keys].assign(run=numbers).drop_duplicates("run").set_index("run")
    points = curves[list(MEASURED)].assign(run=numbers)
    points = pd.concat([_thinned(run) for _, run in points.groupby("run")]).set_index("run")
    points = points.dropna(axis="columns", how="all")
    for name in points.columns.drop("passes_spent"):
        form = "{:.3g}" if name == "seconds" else "{:.5g}"
        points[name] = points[name].map(form.format, na_action="ignore")
    write_atomically(folder / "runs.csv", table.to_csv())
    write_atomically(folder / "curves.csv", points.to_csv())


def load(folder: Path) -> pd.DataFrame:
    """The curves that `save` wrote; `InputError` where the folder does not hold them."""
    try:
        table = pd.read_csv(folder / "runs.csv", index_col="run", keep_default_na=False)
        points = pd.read_csv(folder / "curves.csv")
    except (OSError, ValueError):
        table = points = pd.DataFrame({"run": []})
    if table.empty or set(points.run) != set(table.index):
        allowed = "a folder with runs.csv and curves.csv of one comparison"
        raise InputError("comparison", str(folder), allowed)
    for name in ("train_examples", "batch_size"):
        table[name] = pd.to_numeric(table[name])
    told = table.get("switched", pd.Series("", table.index))
    table["switched"] = told.astype(str).map(_TOLD.get).astype(object)
    for name in MEASURED[3:]:
        points[name] = points.get(name, float("nan"))
    return points.join(table, on="run").drop(columns="run")


def facts(
    arguments: Sequence[str],
    device: str | torch.device = "auto",
    executor: Executor = ALONE,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Provenance of results made here and now: command, revision, versions, hardware, time.

    `arguments` are those of `python -m twophase`, `seconds` those for what was not there before.
    """
    # a cluster's nodes may have other devices than this machine
    nodes = f"{device} of the cluster's nodes" if executor.shared else ""
    called = shlex.join(["python", "-m", "twophase", *arguments])
    return {
        **provenance.facts(called, nodes or device_name(resolve_device(device))),
        "executor": str(executor),
        "wall_seconds": None if seconds is None else round(seconds),
    }


def _entry(prefix: RunConfig, name: str, candidate: int, passes: int) -> Entry:
    check_integer("passes", passes, GRADIENT_PASSES)
    config = METHODS[name].config(prefix, candidate, passes)
    return Entry(config, name, candidate, passes, prefix.epochs)


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    kept, last = [0], len(curve) - 1
    for row, (passes, loss) in enumerate(zip(curve.passes_spent, curve.loss, strict=True)):
        before = curve.iloc[kept[-1]]
        apart = passes >= (1 + SAVED_SPACING) * before.passes_spent
        if row == last > 0 or (apart and loss < before.loss):
            kept.append(row)
    return curve.iloc[kept]
