"""Write README's table and figure, and all results, from the files under reports/reference.

python benchmarks/results.py           # writes README, results.md and the map of when it pays
python benchmarks/results.py --check   # says whether they are up to date, as a test does
"""

import argparse
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from twophase.experiments import (
    comparison,
    generalisation,
    pattern,
    payoff_map,
    physics_results,
    profiles,
    regret,
    regret_results,
    table1,
    table1_findings,
)
from twophase.experiments.files import write_atomically
from twophase.experiments.statistics import ratio_of, ratio_text
from twophase.figures import comparison as figures
from twophase.figures import style

PROJECT = Path(__file__).resolve().parent.parent
REFERENCE = PROJECT / "reports" / "reference"
# Of the physics-informed networks, what README shows.
PHYSICS = ["1: Poisson 2D", "3: heat 1+1D"]
HARDER, LARGER = ["Burgers, 0.01/π"], (1e-1, 1e-2, 1e-3, 1e-4)
# Of the switch rules of `twophase.experiments.regret`, what README shows, and how it calls them.
SWITCHES = {
    "race": "the race, the default",
    "race by validation": 'the race, `keep="validation"`',
    "a third": "after a third of the epochs",
    "two thirds": "after two thirds of the epochs",
    "a tenth": "after a tenth of the epochs",
    "literal": "the paper's rule, literally",
    "smoothed": "the paper's rule, smoothed",
    "none": "Adam alone",
}
# passes of the long runs at which they are read off a second time
LATER, OWN_LONG = 2000, "adam+default-fixed"
README, RESULTS = PROJECT / "README.md", REFERENCE / "results.md"
MAP = REFERENCE / "payoff_map.png"
BEGIN, END = "<!-- results: written by benchmarks/results.py -->", "<!-- end of results -->"

TUNED = "adam-tuned"
METHODS = {
    "default": "default second phase",
    "torch-lbfgs": "torch's L-BFGS",
    "golden": "the paper's CG, golden section",
    TUNED: "Adam, tuned rate",
    "adam-from-start": "Adam, tuned from the start",
}
# folder under reports/reference, passes of the comparison, what was compared
COMPARISONS = (
    ("fair-comparison", 1000, "1,437 images"),
    ("fair-comparison-networks", 600, "1,437 images"),
    ("fair-comparison-vgg5", 600, "256 images"),
    ("fair-comparison-mnist-cifar", 600, "2,048 images"),
    ("payoff-map", 3000, "full batch, by self-scaled BFGS"),
)


class Compared(NamedTuple):
    """A problem of the comparisons: its name and folder, and what its methods came to.

    These are the rows of `profiles.costs` and of `profiles.validation_ends`; and, where that is
    known, by seed, whether the automatic switch ever did.
    """

    name: str
    folder: str
    costs: pd.DataFrame
    ends: pd.DataFrame
    switched: pd.Series


def compared() -> Iterator[Compared]:
    """All of them."""
    for folder, passes, kind in COMPARISONS:
        curves = comparison.load(REFERENCE / folder)
        curves = curves[(curves.seed != comparison.TUNING_SEED) & (curves.method != "adam-twice")]
        if folder == "payoff-map":
            curves = curves[(curves.model == "") & (curves.dtype == "float64")]
        for (problem, model), of in curves.groupby(["problem", "model"], sort=False):
            name = ", ".join(part for part in (problem, model, kind) if part)
            ends = profiles.validation_ends(of, passes)
            switched = of.dropna(subset="switched").groupby("seed").switched.any()
            yield Compared(name, folder, profiles.costs(of, passes), ends, switched)


def costs_table() -> Iterator[str]:
    """Passes to the loss that Adam has at the end, in parts of Adam's: a row per problem."""
    yield f"| problem | runs | {' | '.join(METHODS.values())} |"
    yield "|---" * (len(METHODS) + 2) + "|"
    for name, _, found, *_ in compared():
        losses = found.pivot_table("loss", ["swap_epoch", "seed"], "method")
        cells = [
            "as Adam: torch's rate was the best"
            if method in losses and method == TUNED and losses[method].equals(losses["adam"])
            else cell(found[found.method == method].ratio, len(losses))
            for method in METHODS
        ]
        seeds, swaps = found.seed.nunique(), found.swap_epoch.nunique()
        runs = f"{seeds} seed{'s' * (seeds > 1)}{f', {swaps} swaps' if swaps > 1 else ''}"
        yield f"| {name} | {runs} | {' | '.join(cells)} |"


# The columns of README's table, and where they are in a comparison and in a pattern.
OVERVIEW = {
    "default second phase": ("default", pattern.DEFAULT_AT_SHARE),
    "default, automatic switch": ("race", pattern.RACE),
    "the paper's CG": ("golden", pattern.CG),
    "Adam, tuned decay": ("adam-cosine", ""),
    "Adam, tuned from the start": ("adam-from-start", ""),
}
# of these, the tuned ways of Adam
TUNED_ADAMS = [name for name in OVERVIEW if name.startswith("Adam, tuned")]


class Beside(NamedTuple):
    """Losses in the end over Adam's of some methods on a problem: by method, a row for each seed.

    `switched` has a column for each method of which it is known whether it did.
    """

    folder: str
    training: pd.DataFrame
    validation: pd.DataFrame
    switched: pd.DataFrame


def beside_adam() -> dict[str, Beside]:
    """Of each problem of the comparisons and patterns, the methods of README's table."""
    found = {}
    for name, folder, costs, ends, told in compared():
        each = {"index": ["swap_epoch", "seed"], "columns": "method"}
        tables = costs.pivot(values="loss", **each), ends.pivot(values="end", **each)
        ratios = (_over_adam(table, 0, "adam").groupby("seed").median() for table in tables)
        ratios = (of.dropna(axis="columns", how="all") for of in ratios)
        found[name] = Beside(folder, *ratios, _named(told.to_frame("race"), 0))
    for name, folder in pattern.KEPT.items():
        ends = pattern.committed(folder).ends
        by = [ends.pivot(index="seed", columns="strategy", values=of) for of in pattern.LOSSES]
        swaps = ends.pivot(index="seed", columns="strategy", values="swap_epoch").notna()
        of = [_over_adam(table, 1, pattern.ALONE) for table in by]
        found[name] = Beside(folder, *of, _named(swaps, 1))
    return found


def _over_adam(table: pd.DataFrame, place: int, adam: str) -> pd.DataFrame:
    """Its columns that README's table has, in parts of Adam's, by the names there."""
    return _named(table.div(table[adam], axis=0), place) if adam in table else pd.DataFrame()


def _named(table: pd.DataFrame, place: int) -> pd.DataFrame:
    names = {names[place]: column for column, names in OVERVIEW.items() if names[place]}
    return table[[name for name in names if name in table]].rename(columns=names)


def overview_table() -> Iterator[str]:
    """Losses in the end over Adam's at equal passes: rows of training and, if known, validation."""
    yield f"| problem | loss | seeds | {' | '.join(OVERVIEW)} | files |"
    yield "|---" * (4 + len(OVERVIEW)) + "|"
    for name, one in beside_adam().items():
        known = {"training": one.training, "validation": one.validation}
        for kind, ratios in known.items():
            if not ratios.empty:
                cells = [_beside(ratios, column, one.switched) for column in OVERVIEW]
                row = name, kind, str(len(ratios)), *cells, _link(one.folder)
                yield f"| {' | '.join(row)} |"


def _beside(ratios: pd.DataFrame, column: str, switched: pd.DataFrame) -> str:
    if column not in ratios:
        return "–"
    text, did = cell(ratios[column].dropna(), len(ratios)), switched.get(column)
    if did is None or did.all():
        return text
    if did.any():
        return f"{text}; switched on {did.sum()} of {len(did)}"
    return f"never switched ({text.replace(' (', ', ').rstrip(')')})"


def against_text() -> str:
    """What the numbers say against two-phase training, in words."""
    found = beside_adam()
    default = list(OVERVIEW)[0]
    medians = pd.Series(
        {
            name: of.validation[default].median()
            for name, of in found.items()
            if default in of.validation
        }
    ).dropna()
    race = race_in_validation()
    short = table1_ratios()
    return (
        "**What speaks against it.** In validation loss the default second phase ends above Adam "
        f"on {(medians > 1).sum()} of the {len(medians)} problems of the table on which it was "
        f"looked at, and the automatic switch on {(race > 1).sum()} of the {len(race)} of "
        f"{_link('switch-regret')} that have validation examples, at {race.median():.1f} times "
        "Adam's in the median (medians over the seeds; neither side keeps the weights at which its "
        f"own was lowest). {overfitted_text()}{tuned_text(found)} "
        "By the paper's setting, at equal epochs, two-phase training ends above Adam on "
        f"{(short.ratio > 1).sum()} of {len(short)} networks of MNIST, at {short.ratio.min():.2f} "
        f"to {short.ratio.max():.2f} times its loss for {short.passes.min():.1f} to "
        f"{short.passes.max():.1f} times its passes ({_link('table1-mnist-2048')}, one seed and "
        "fewer images and epochs than in the paper)."
    )


def overfitted_text() -> str:
    """Where Adam's last weights are overfitted, so that a lower validation loss says little."""
    found = {
        name: pattern.adams_lowest(pattern.committed(of)).of_last.median()
        for name, of in pattern.KEPT.items()
    }
    said = [
        f"On {name}, Adam's last weights are overfitted: earlier they had {ratio_text(ratio)} of "
        "that validation loss, so that a ratio below 1 there says who has trained less. "
        for name, ratio in found.items()
        if ratio < pattern.MORE
    ]
    return "".join(said)


def tuned_text(found: Mapping[str, Beside]) -> str:
    """How the default stands to an Adam that was tuned, the better of two ways, where tried."""
    default, near, far = list(OVERVIEW)[0], [], []
    for name, one in found.items():
        medians = one.training.median().reindex(TUNED_ADAMS).dropna()
        if len(medians):
            own, rival = one.training[default].median(), medians.min()
            # half of its orders of magnitude at least
            close = 2 * math.log(rival) <= math.log(own) < 0
            said = f"{name} ({ratio_text(rival)}, the default {ratio_text(own)})"
            (near if close else far).append(said)
    return (
        "Tuned, by its rate and a cosine decay from the swap on or by rate and schedule from the "
        "start, Adam has half of the default's gain or more, in orders of magnitude, on "
        f"{len(near)} of the {len(near + far)} problems where that was tried. In parts of the "
        f"training loss of Adam at torch's rate, the better of the two ways ends there at: "
        f"{'; '.join(near) or 'none'}. On the others: {'; '.join(far) or 'none'}."
    )


def race_in_validation() -> pd.Series:
    """The race's validation loss over that of Adam alone: medians over the seeds, by problem."""
    table = pd.read_csv(REFERENCE / "switch-regret" / "regret.csv").dropna(subset="validation_loss")
    losses = table.pivot(index=["case", "seed"], columns="rule", values="validation_loss")
    return (losses.race / losses.none).groupby("case").median()


def long_text() -> str:
    """What both second phases do at the paper's length, after passes that all have, and later.

    At fixed passes, so that what the runs add in the meantime changes nothing here.
    """
    runs = table1_findings.long_runs(PROJECT / "reports" / "long")
    first = min(one.passes for one in runs if one.strategy == OWN_LONG)
    said = []
    for passes in (first, LATER):
        there = [one.within(passes) for one in runs if one.passes >= passes]
        said.append(table1_findings.long_in_words(table1_findings.long_beside_adam(there)))
    return (
        "**At the paper's length**, on all 60,000 images, one seed, unfinished "
        "([files](reports/README.md), [notebook 04](notebooks/04-table-1.ipynb)): "
        f"{'; later, '.join(said)}. The first 300 epochs, 900 passes, are Adam's in all of them; "
        "losses are the lowest so far."
    )


def paper_epochs() -> str:
    """The epochs of the paper's Table 1, in words."""
    protocol = table1.PROTOCOLS["paper"]
    return f"{protocol.epochs:,} (vit-mlp: {protocol.mlp_epochs})"


def paper_ratios() -> str:
    """The training losses of both phases over Adam's that the paper prints for MNIST, in words."""
    rows = table1.paper_table().set_index(["dataset", "model", "strategy"]).train_loss.mnist
    both, adam = (rows.xs(name, level="strategy") for name in ("adam+cg", "adam"))
    return f"{(both / adam).min():.2f} to {(both / adam).max():.2f}"


def _folders(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}]({name}/)" for name in names)


def _link(folder: str) -> str:
    return f"[{folder}](reports/reference/{folder}/)"


def cell(ratios: pd.Series, expected: int) -> str:
    """Median and range over runs, and how many they are if not as many as expected."""
    if ratios.empty:
        return "–"
    found = ratio_of(ratios)
    fewer = f"; n = {found.seeds}" if found.seeds != expected else ""
    return found.text.removesuffix(" (one seed)") + fewer


def table1_ratios() -> pd.DataFrame:
    """Losses in the end of a short Table 1, and losses and passes of both phases over Adam's."""
    protocol = table1.protocol("paper", epochs=60, swap_epoch=18, train_examples=2048)
    rows = table1.table(table1.configs(protocol, ["mnist"]), REFERENCE / "table1-mnist-2048")
    rows = rows.set_index(["model", "strategy"])[["train_loss", "passes"]]
    adam, both = (rows.xs(name, level="strategy") for name in ("adam", "adam+cg"))
    ratios = (both / adam).rename(columns={"train_loss": "ratio"})
    return ratios.assign(adam=adam.train_loss, both=both.train_loss)


def table1_table() -> Iterator[str]:
    """The paper's own setting at equal epochs: final training losses of a short Table 1."""
    yield "| network | Adam | Adam, then the paper's CG | ratio | passes / Adam's |"
    yield "|---|---|---|---|---|"
    for model, row in table1_ratios().iterrows():
        yield (
            f"| {model} | {row.adam:.2g} | {row.both:.2g} | {row.ratio:.2f} | {row.passes:.1f} |"
        )


class Map(NamedTuple):
    """The map of when the second phase pays, and what its cells are of, in words."""

    cells: pd.DataFrame
    words: str


def kept_map() -> Map:
    """When the second phase pays: over swaps, mini-batch steps and targets, as in notebook 13."""
    kept = comparison.load(REFERENCE / "payoff-map")
    single = kept[(kept.problem == "digits") & (kept.dtype == "float32")]
    count, most = int(single.train_examples.iloc[0]), int(single.passes.max())
    words = f"{single.model.iloc[0]}, {count} digits, medians over {single.seed.nunique()} seeds"
    return Map(payoff_map.ratios(single, [30, 100, 300, most], count), words)


def map_text() -> str:
    """In how many cells of the map the second phase pays, in words."""
    cells = kept_map().cells
    return (
        f"On these images the second phase pays, by more than the 6 % that the curves leave open, "
        f"in {payoff_map.paying(cells)} cells of the map, by "
        f"the epochs before the swap {payoff_map.paying(cells, 'swap_epoch')}; by the target, in "
        f"passes of Adam, {payoff_map.paying(cells, 'target')}."
    )


def cutest_table() -> Iterator[str]:
    """Unconstrained CUTEst problems solved, and the passes in the median."""
    found = pd.read_csv(REFERENCE / "cutest" / "summary.csv")
    ratio = "passes / scipy's"
    yield f"| method | 30 classical problems: solved | {ratio} | 187 others: solved | {ratio} |"
    yield "|---" * 5 + "|"
    for method, of in found.groupby("method", sort=False):
        cells = [f"{r.solved} | {r[ratio]:.2f}" for _, r in of.iterrows()]
        yield f"| {method} | {' | '.join(cells)} |"


def race_text() -> str:
    """Where the race loses most on a single seed, and on what was set aside."""
    table = pd.read_csv(REFERENCE / "switch-regret" / "regret.csv")
    race = table[table.rule.eq("race")]
    large = race[race.regret > 0.5].sort_values("regret", ascending=False)
    losses = [f"{one.case} by {one.regret:.2g}" for one in large.itertuples()]
    aside = regret_results.summary(table[table.held_out]).loc["race"]
    long = pd.read_csv(REFERENCE / "switch-regret-10000" / "regret.csv")
    long = long[long.rule.eq("race")]
    none, floor = (long.regret < 0.005).sum(), (long.loss <= long.floor * long.start).sum()
    rules = regret_results.summary(table)
    by_case, literal = rules.loc["race"], rules.loc["literal"]
    return (
        f"Regret is log10 of the training loss in the end over the lowest one of swaps after fixed "
        f"epochs and none, at equal passes. Over {by_case.cases:.0f} problems and three seeds each "
        f"the default, a race, has a regret of {by_case.worst:.2f} in the worst case and "
        f"{by_case['median']:.2f} in the median (medians over the seeds), the paper's rule taken "
        f"literally {literal.worst:.2f} and {literal['median']:.2f}. "
        f"With 10,000 passes on {' and '.join(long.case.unique())} it is 0 in {none} of the "
        f"{len(long)} trainings, {floor} of which are at the floor, where losses count as alike. "
        f"On the {aside.cases:.0f} problems that were set aside it has {aside.worst:.2f} and "
        f"{aside['median']:.2f}; {len(regret.UNSEEN)} of them had not been seen before, the others "
        f"under an earlier form. Of its {len(race)} single trainings {len(large)} lost more than "
        f"0.5{': ' * bool(losses)}{', '.join(losses)}."
    )


def regret_table() -> Iterator[str]:
    """Worst, median and worst single regret of some switch rules, in training and validation."""
    table = pd.read_csv(REFERENCE / "switch-regret" / "regret.csv")
    judged = table.dropna(subset=["validation_regret"])
    columns = {"worst": "worst", "median": "median", "worst_seed": "worst single seed"}
    kinds = {
        f"training, {table.case.nunique()} problems": regret_results.summary(table),
        f"validation, {judged.case.nunique()} problems": regret_results.summary(
            judged, "validation_regret"
        ),
    }
    heads = [f"{kind}: {words}" for kind in kinds for words in columns.values()]
    yield f"| switch | {' | '.join(heads)} |"
    yield "|---" * (1 + len(heads)) + "|"
    for rule, name in SWITCHES.items():
        found = [f"{of[column][rule]:.2f}" for of in kinds.values() for column in columns]
        yield f"| {name} | {' | '.join(found)} |"


def generalisation_words() -> str:
    """What Q says of the gap between training and validation, and what the second phase does."""
    table = pd.read_csv(REFERENCE / "generalisation" / "generalisation.csv")
    return f"{generalisation.gap_in_words(table)} {generalisation.phases_in_words(table)}"


def wrapped(text: str) -> str:
    """A paragraph in lines."""
    return textwrap.fill(text, 88, break_long_words=False, break_on_hyphens=False)


def clients_table() -> Iterator[str]:
    """Error, passes and seconds of one problem in every way to train it."""
    table = pd.read_csv(REFERENCE / "clients" / "clients.csv")
    seeds = table.seed.nunique()
    yield f"| way | relative error | range over {seeds} seeds | passes | seconds |"
    yield "|---|---|---|---|---|"
    for way, rows in table.groupby("way", sort=False):
        middle = rows[["error", "passes", "seconds"]].median()
        errors = f"{rows.error.min():.1e} to {rows.error.max():.1e}"
        cost = f"{middle.passes:,.0f} | {middle.seconds:.0f}"
        yield f"| {way} | {middle.error:.1e} | {errors} | {cost} |"


def markdown(table: pd.DataFrame) -> Iterator[str]:
    """A table of texts."""
    yield f"| {' | '.join(table.columns)} |"
    yield "|---" * len(table.columns) + "|"
    for row in table.itertuples(index=False):
        yield f"| {' | '.join(row)} |"


def errors_table(
    physics: physics_results.PhysicsResults, problems: Sequence[str], levels: Sequence[float]
) -> Iterator[str]:
    """Seconds and passes to some levels of the error on some problems."""
    errors = physics_results.to_errors(physics, levels=levels)
    names = {f"{level:.0e}": f"error below {level:.0e}: seconds, passes" for level in levels}
    yield from markdown(errors[errors.problem.isin(problems)].rename(columns=names))


def overview() -> str:
    """README's table and figure, and what the switch costs, between two marks."""
    parts = [
        wrapped(
            "Losses in the end in parts of those of Adam going on, at equal passes, all that a "
            "switch reads and tries charged: training and, where it was looked at, validation loss "
            "of the same weights. Below 1 two-phase training is ahead, above it "
            "behind. Where the switch never switched, the number is that of Adam with fewer epochs "
            "and counts for neither. "
            "Median and range over the seeds, on none of which a rate was tuned; on full-batch "
            "problems first the median over three swaps. The second phase starts after some epochs "
            "of Adam, at torch's rate, that all share, or where the automatic switch decides."
        ),
        *overview_table(),
        f"![When the second phase pays, as a map]({MAP.relative_to(PROJECT)})",
        wrapped(
            "*When it pays. Each cell: passes of the default second phase to a loss of Adam's, "
            "divided by Adam's passes; blue: fewer. By steps per epoch (K examples in batches of "
            f"B), swap and target. {kept_map().words}; {_link('payoff-map')}, explained in "
            "[notebook 13](notebooks/13-when-does-it-pay.ipynb).*"
        ),
        wrapped(map_text()),
        wrapped(against_text()),
        wrapped(long_text()),
        wrapped(f"**The switch** ({_link('switch-regret')}). {race_text()}"),
        wrapped(
            "**More**: passes and seconds, more methods, switch rules, other packages, published "
            "physics-informed problems, what Q says of generalisation: "
            "[results](reports/reference/results.md), with the files and "
            "[the commands](reports/reference/README.md) that made them."
        ),
    ]
    return "\n".join([BEGIN, *_apart(parts), "", END])


def results() -> str:
    """All tables, with what they mean."""
    physics = physics_results.load(REFERENCE / "physics-networks")
    parts = [
        wrapped(
            "Passes over the training set after the swap until a method is as low as Adam is at "
            "the end of its budget, in parts of Adam's passes: below 1 it is better than going on "
            "with Adam. Median and range over the runs, one for each seed and swap; a miss is one "
            "that did not get there; curves cannot tell less than 6 %. 0: the loss was reached "
            "within the epochs before the swap. "
            f"Files: {_folders(folder for folder, *_ in COMPARISONS)}."
        ),
        *costs_table(),
        wrapped(
            "The paper's own setting (CG with golden section) at equal epochs, 60 epochs on 2,048 "
            "images of MNIST, swap after 18, one seed: where the ratio of training losses is above "
            "1, it ends above Adam, for more passes. The paper, with all images and "
            f"{paper_epochs()} epochs, prints ratios of {paper_ratios()}. "
            f"Files: {_folders(['table1-mnist-2048'])}."
        ),
        *table1_table(),
        wrapped(
            "The switch, by its regret: log10 of the training loss in the end, minus log10 of the "
            "lowest one over swaps after fixed epochs and none, at equal passes, with all that a "
            "rule reads, its trials and its failed second phases charged; medians over three "
            "seeds. 1 is a loss ten times as high as it could be. In validation loss swaps lose on "
            "these small problems, unless trials are judged by it, and the weights of the lowest "
            "validation loss are kept; then most trainings never swap. Half of the problems are "
            f"set aside: {len(regret.UNSEEN)} of them were never seen when the race was designed, "
            "the others under an earlier form. Notebook 06 has them all, and all rules. "
            f"Files: {_folders(['switch-regret', 'switch-regret-10000'])}."
        ),
        *regret_table(),
        wrapped(
            "Networks that are not in the paper, on small subsets, three seeds: on how many the "
            "gradient norm of Adam alone has a single clear hill, and the Hessian a clearly "
            "negative eigenvalue where Adam ends; then losses in the end in units of those of Adam "
            "alone, at equal passes, medians: above 1 the second phase loses. All but the race "
            "swap after three tenths of the epochs; never: it did not switch, on any seed. CG has "
            "golden section as in the paper. Notebooks 16 and 17 have the rest. "
            f"Files: {_folders(pattern.KEPT.values())}."
        ),
        *markdown(
            pattern.overview({name: pattern.committed(of) for name, of in pattern.KEPT.items()})
        ),
        wrapped(
            "What the overdetermination Q = K M / P says (notebook 19). The gap is validation "
            "minus training loss, on digits and MNIST, three seeds; the race is the default before "
            f"its trials became shorter. {generalisation_words()} "
            f"Files: {_folders(['generalisation'])}."
        ),
        wrapped(
            "One problem in every way to train it: −u'' = π² sin(πx), 64 + 2 points, 2×32 tanh, "
            "float64, one thread; the relative error of the solution after 1,000 steps or epochs "
            "of `TwoPhase` or `fit`, 300 of Adam with 300 of the second phase, or 3,000 passes; "
            "medians. Each step sees whether the loss is still the same: that takes 3 passes where "
            "the closure calls backward, as is the convention of torch, DeepXDE and Lightning, "
            "else 1. Up to five other processes ran beside these, so that the seconds are too "
            f"long. Files: {_folders(['clients'])}."
        ),
        *clients_table(),
        wrapped(
            "Test functions of CUTEst, to a gradient norm of 1e-6 of the first: how many are "
            "solved, and passes over those of scipy's CG, medians over what both solve. "
            f"Files: {_folders(['cutest'])}."
        ),
        *cutest_table(),
        wrapped(
            "Physics-informed networks of a published table (arXiv 2405.15603) from its own "
            "initial weights and points, in float64 on one CPU core, seed 0: seconds and passes "
            "until the root mean square error is that low. The published line is the best of about "
            "100 tuned runs of energy natural gradient descent of 1,000 s each, on an RTX 6000; "
            "here nothing was tuned, and Adam has torch's default rate. "
            "The default, SSBroyden and ssbroyden-optimistix had 60 seconds, the others 30; "
            "notebook 14 has all six problems. On one of them, a regression with as many residuals "
            "as parameters, the default is behind SSBroyden when 60 seconds are over. "
            f"Files: {_folders(['physics-networks'])}."
        ),
        *errors_table(physics, PHYSICS, physics_results.LEVELS),
        "The same of Burgers' equation, for which there is no published line and which is harder:\n"
        "the error is relative, ‖u − exact‖ / ‖exact‖, and the levels are larger.",
        *errors_table(physics, HARDER, LARGER),
        "Self-scaled Broyden (SSBroyden) here and in the package ssbroyden-optimistix, both from\n"
        "the same weights on the same function, at equal passes; medians over three seeds. Below\n"
        "1 the loss here is lower.",
        *markdown(physics_results.beside_the_peer(physics_results.at_equal_passes(physics))),
    ]
    head = [
        "# Results",
        "Written by `python benchmarks/results.py` from the files in this folder; its README has\n"
        "the commands that made them. A forward pass over the training set counts 1, forward with\n"
        "backward 3.",
    ]
    return "\n".join([*_apart(head + parts), ""]).lstrip()


def _apart(parts: Sequence[str]) -> list[str]:
    """Paragraphs and rows of tables with empty lines where Markdown needs them."""
    lines: list[str] = []
    for part in parts:
        apart = not part.startswith("|") or not (lines and lines[-1].startswith("|"))
        lines += ["", part] if apart else [part]
    return lines


def updated(readme: str) -> str:
    """README with the table of today's files."""
    before, rest = readme.split(BEGIN)
    return before + overview() + rest.split(END)[1]


def main() -> int:
    """Write README and the results, or say whether that is due."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    there = {path: path.read_text(encoding="utf-8") for path in (README, RESULTS) if path.is_file()}
    due = {README: updated(there[README]), RESULTS: results()}
    if options.check:
        print("up to date" if due == there else "out of date: python benchmarks/results.py")
        return int(due != there)
    for path, text in due.items():
        write_atomically(path, text)
    style.use_style()
    figures.payoff_map(kept_map().cells).savefig(MAP, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
