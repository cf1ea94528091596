"""Write README's table and figure, and all results, from the files under reports/reference.

python benchmarks/results.py           # writes README, results.md and the map of when it pays
python benchmarks/results.py --check   # says whether they are up to date, as a test does
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

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
)
from twophase.experiments.files import write_atomically
from twophase.experiments.statistics import ratio_of, ratio_text
from twophase.figures import comparison as figures
from twophase.figures import style

PROJECT = Path(__file__).resolve().parent.parent
REFERENCE = PROJECT / "reports" / "reference"
# Of the physics-informed networks, what README shows.
PHYSICS = ["1: Poisson 2D", "3: heat 1+1D", "Burgers, 0.01/π"]
# Of the switch rules of `twophase.experiments.regret`, what README shows, and how it calls them.
SWITCHES = {
    "race": "the race, the default",
    "race by validation": 'the race, `keep="validation"`',
    "two thirds": "after two thirds of the epochs",
    "a tenth": "after a tenth of the epochs",
    "literal": "the paper's rule, literally",
    "smoothed": "the paper's rule, smoothed",
    "none": "Adam alone",
}
README, RESULTS = PROJECT / "README.md", REFERENCE / "results.md"
MAP = REFERENCE / "payoff_map.png"
BEGIN, END = "<!-- results: written by benchmarks/results.py -->", "<!-- end of results -->"

METHODS = {
    "default": "default second phase",
    "torch-lbfgs": "torch's L-BFGS",
    "golden": "the paper's CG, golden section",
    "adam-tuned": "Adam, tuned rate",
}
# folder under reports/reference, passes of the comparison, what was compared
COMPARISONS = (
    ("fair-comparison", 1000, "1,437 images"),
    ("fair-comparison-networks", 1000, "1,437 images"),
    ("fair-comparison-mnist-cifar", 600, "2,048 images"),
    ("payoff-map", 3000, "full batch, by self-scaled BFGS"),
)


def compared() -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Each problem of the comparisons: its name, its folder, and what its methods came to.

    These are the rows of `profiles.costs` and of `profiles.validation_ends`.
    """
    for folder, passes, kind in COMPARISONS:
        curves = comparison.load(REFERENCE / folder)
        curves = curves[(curves.seed != comparison.TUNING_SEED) & (curves.method != "adam-twice")]
        if folder == "payoff-map":
            curves = curves[(curves.model == "") & (curves.dtype == "float64")]
        for (problem, model), of in curves.groupby(["problem", "model"], sort=False):
            name = ", ".join(part for part in (problem, model, kind) if part)
            ends = profiles.validation_ends(of, passes)
            yield name, folder, profiles.costs(of, passes), ends


def costs_table() -> Iterator[str]:
    """Passes to the loss that Adam has at the end, in parts of Adam's: a row per problem."""
    yield f"| problem | {' | '.join(METHODS.values())} |"
    yield "|---" * (len(METHODS) + 1) + "|"
    for name, _, found, _ in compared():
        cells = [cell(found[found.method == method].ratio) for method in METHODS]
        yield f"| {name} | {' | '.join(cells)} |"


# The columns of README's table, and where they are in a comparison and in a pattern.
OVERVIEW = {
    "default second phase": ("default", pattern.DEFAULT_AT_SHARE),
    "default, automatic switch": ("race", pattern.RACE),
    "the paper's CG": ("golden", pattern.CG),
    "Adam, tuned from the start": ("adam-from-start", ""),
}
EQUAL_EPOCHS = "the paper's CG, equal epochs"
# Ratios of losses below this are shown as this: there rounding and luck decide.
LEAST = 1e-6


def overview_table() -> Iterator[str]:
    """Losses in the end over Adam's at equal passes, training and validation: a row per problem."""
    columns = [*OVERVIEW, EQUAL_EPOCHS, "files"]
    yield f"| problem | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    rows = _compared_cells()
    rows |= {name: cells for name, cells in _table1_cells().items() if name not in rows}
    for name, cells in (rows | _pattern_cells()).items():
        yield f"| {name} | {' | '.join(cells.get(column, '–') for column in columns)} |"


def _compared_cells() -> dict[str, dict[str, str]]:
    table1 = _table1_cells()
    rows = {}
    for name, folder, found, ends in compared():
        losses = found.pivot_table("loss", "seed", "method", aggfunc="median")
        validation = ends.pivot_table("end", "seed", "method", aggfunc="median")
        cells = {
            column: _pair(*(_over_adam(table, method, "adam") for table in (losses, validation)))
            for column, (method, _) in OVERVIEW.items()
            if method in losses
        }
        short = table1.get(name, {})
        links = ", ".join([_link(folder), *([short["files"]] if short else [])])
        rows[name] = short | cells | {"files": links}
    return rows


def _pattern_cells() -> dict[str, dict[str, str]]:
    rows = {}
    for name, folder in pattern.KEPT.items():
        found = pattern.committed(folder).ends
        losses, validation = (
            found.pivot(index="seed", columns="strategy", values=of)
            for of in ("loss", "validation_loss")
        )
        cells = {
            column: _pair(
                *(_over_adam(table, strategy, pattern.ALONE) for table in (losses, validation))
            )
            for column, (_, strategy) in OVERVIEW.items()
            if strategy
        }
        rows[name] = cells | {"files": _link(folder)}
    return rows


def _table1_cells() -> dict[str, dict[str, str]]:
    files = {"files": _link("table1-mnist-2048")}
    return {
        f"mnist, {model}, 2,048 images": files
        | {EQUAL_EPOCHS: f"{ratio_text(row.ratio)} for {row.passes:.1f} times the passes; n = 1"}
        for model, row in table1_ratios().iterrows()
    }


def against_text() -> str:
    """What the numbers say against two-phase training, in words."""
    validation = [
        _over_adam(ends.pivot_table("end", "seed", "method"), "default", "adam").median()
        for *_, ends in compared()
    ]
    for folder in pattern.KEPT.values():
        beside = pattern.beside_adam(pattern.committed(folder))
        chosen = beside[beside.strategy == pattern.DEFAULT_AT_SHARE]
        validation.append(chosen.validation_loss.median())
    seen = pd.Series(validation).dropna()
    name, _, found, _ = next(compared())
    losses = found.pivot_table("loss", "seed", "method")
    default, tuned = (
        _over_adam(losses, method, "adam").median() for method in ("default", "adam-from-start")
    )
    so = ": most of the gain can be had by tuning Adam" if tuned < 2 * default < 2 else ""
    short = table1_ratios().ratio
    return (
        "**What speaks against it.** In validation loss the default second phase ends above Adam "
        f"on {(seen > 1).sum()} of the {len(seen)} problems on which it was looked at (medians). "
        f"On {name}, Adam with rate and schedule tuned from the start ends at {ratio_text(tuned)} "
        f"of the loss of Adam at torch's rate, the default second phase at {ratio_text(default)}"
        f"{so}. By the paper's setting, at equal epochs, two-phase training ends above Adam in "
        f"{(short > 1).sum()} of {len(short)} short rows."
    )


def _link(folder: str) -> str:
    return f"[{folder}](reports/reference/{folder}/)"


def _over_adam(table: pd.DataFrame, method: str, adam: str) -> pd.Series:
    return (table[method] / table[adam]).dropna() if method in table else pd.Series(dtype=float)


def _pair(training: pd.Series, validation: pd.Series) -> str:
    """Training and, where there is one, validation, each over Adam's, and the number of seeds."""
    shown = [ratios.clip(lower=LEAST) for ratios in (training, validation) if len(ratios)]
    words = [ratio_of(ratios).text.replace(" (one seed)", "") for ratios in shown]
    said = ", ".join(words).replace(f"{LEAST:.2g}", f"<{LEAST:.0e}")
    return f"{said}; n = {len(training)}"


def cell(ratios: pd.Series) -> str:
    """Median and range over seeds and swaps, and how many they are."""
    if ratios.empty:
        return "–"
    found = ratio_of(ratios)
    return f"{found.text.replace(' (one seed)', '')}; n = {found.seeds}"


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


def draw_map() -> Figure:
    """When the second phase pays: over swaps, mini-batch steps and targets, as in notebook 13."""
    kept = comparison.load(REFERENCE / "payoff-map")
    single = kept[(kept.problem == "digits") & (kept.dtype == "float32")]
    count, most = int(single.train_examples.iloc[0]), int(single.passes.max())
    return figures.payoff_map(payoff_map.ratios(single, [30, 100, 300, most], count))


def cutest_table() -> Iterator[str]:
    """Unconstrained CUTEst problems solved, and the passes in the median."""
    found = pd.read_csv(REFERENCE / "cutest" / "summary.csv")
    ratio = "passes / scipy's"
    yield "| method | 30 classical problems: solved, passes / scipy's | 187 others: the same |"
    yield "|---|---|---|"
    for method, of in found.groupby("method", sort=False):
        cells = [f"{r.solved}, {r[ratio]:.2f}" for _, r in of.iterrows()]
        yield f"| {method} | {' | '.join(cells)} |"


def race_text() -> str:
    """Where the race loses most on a single seed, and on what was set aside."""
    table = pd.read_csv(REFERENCE / "switch-regret" / "regret.csv")
    race = table[table.rule.eq("race")]
    large = race[race.regret > 0.5].sort_values("regret", ascending=False)
    losses = [f"{one.case} by {one.regret:.1f}" for one in large.itertuples()]
    aside = regret_results.summary(table[table.held_out]).loc["race"]
    long = pd.read_csv(REFERENCE / "switch-regret-10000" / "regret.csv")
    longer = regret_results.summary(long).loc["race"]
    rules = regret_results.summary(table)
    by_case, literal = rules.loc["race"], rules.loc["literal"]
    return (
        f"Regret is log10 of the training loss in the end over the lowest one of swaps after fixed "
        f"epochs and none, at equal passes. Over {by_case.cases:.0f} problems and three seeds each "
        f"the default, a race, has a regret of {by_case.worst:.2f} in the worst case and "
        f"{by_case['median']:.2f} in the median (medians over the seeds), the paper's rule taken "
        f"literally {literal.worst:.2f} and {literal['median']:.2f}. "
        f"With 10,000 passes on {' and '.join(long.case.unique())} it is at most "
        f"{longer.worst:.2f}. "
        f"On the {aside.cases:.0f} problems that were set aside it has {aside.worst:.2f} and "
        f"{aside['median']:.2f}. Of its {len(race)} single trainings {len(large)} lost more than "
        f"0.5{': ' * bool(losses)}{', '.join(losses)}."
    )


def regret_table() -> Iterator[str]:
    """Worst, median and worst single regret of some switch rules, in training and validation."""
    table = pd.read_csv(REFERENCE / "switch-regret" / "regret.csv")
    judged = table.dropna(subset=["validation_regret"])
    training, validation = (
        regret_results.summary(table),
        regret_results.summary(judged, "validation_regret"),
    )
    cases = f"{table.case.nunique()} problems", f"{judged.case.nunique()} with validation examples"
    seen = "worst, median; worst single seed"
    yield f"| switch | training loss, {cases[0]}: {seen} | validation loss, {cases[1]} |"
    yield "|---|---|---|"
    for rule, name in SWITCHES.items():
        found = [
            f"{of.worst[rule]:.2f}, {of['median'][rule]:.2f}; {of.worst_seed[rule]:.2f}"
            for of in (training, validation)
        ]
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
    yield f"| way | relative error | passes | seconds | n = {table.seed.nunique()} seeds: errors |"
    yield "|---|---|---|---|---|"
    for way, rows in table.groupby("way", sort=False):
        middle = rows[["error", "passes", "seconds"]].median()
        errors = f"{rows.error.min():.1e} to {rows.error.max():.1e}"
        cost = f"{middle.passes:,.0f} | {middle.seconds:.0f}"
        yield f"| {way} | {middle.error:.1e} | {cost} | {errors} |"


def markdown(table: pd.DataFrame) -> Iterator[str]:
    """A table of texts."""
    yield f"| {' | '.join(table.columns)} |"
    yield "|---" * len(table.columns) + "|"
    for row in table.itertuples(index=False):
        yield f"| {' | '.join(row)} |"


def overview() -> str:
    """README's table and figure, and what the switch costs, between two marks."""
    kept = comparison.load(REFERENCE / "payoff-map")
    digits = kept[kept.problem == "digits"]
    (model,), (count,) = digits.model.unique(), digits.train_examples.unique()
    parts = [
        wrapped(
            "Losses in the end in parts of those of Adam going on, at equal passes, all that a "
            "switch reads and tries charged: training loss, then validation loss of the same "
            "weights. Below 1 two-phase training is ahead, above it behind. Median and range over "
            "n seeds; no seed was tuned on. The second phase starts after a prefix of Adam, or "
            "where the automatic switch decides. In the last but one column both have the same "
            "epochs, as in the paper."
        ),
        *overview_table(),
        f"![When the second phase pays, as a map]({MAP.relative_to(PROJECT)})",
        wrapped(
            "*When it pays: passes of the default second phase to a loss that Adam reaches, in "
            "parts of Adam's, over steps per epoch (K examples in batches of B), swap and target; "
            f"blue pays. {model}, {count} digits, medians over {digits.seed.nunique()} seeds; "
            "[notebook 13](notebooks/13-when-does-it-pay.ipynb) explains it.*"
        ),
        wrapped(against_text()),
        wrapped(f"**The switch.** {race_text()}"),
        wrapped(
            "**More**: passes and seconds, all methods, switch rules, other packages, published "
            "physics-informed problems, what Q says of generalisation: "
            "[results](reports/reference/results.md), with the files and "
            "[the commands](reports/reference/README.md) that made them."
        ),
    ]
    return "\n".join([BEGIN, *_apart(parts), "", END])


def results() -> str:
    """All tables, with what they mean."""
    physics = physics_results.load(REFERENCE / "physics-networks")
    errors = physics_results.to_errors(physics)
    parts = [
        "Passes over the training set after the swap until a method is as low as Adam is at the\n"
        "end of its budget, in parts of Adam's passes: below 1 it is better than going on with\n"
        "Adam. Median and range over n runs; a miss is one that did not get there.",
        *costs_table(),
        "The paper's own setting (CG with golden section) at equal epochs, 60 epochs on 2,048\n"
        "images of MNIST, swap after 18, one seed: where the ratio of training losses is above 1,\n"
        "it ends above Adam, for more passes. The paper, with 1,000 epochs on all images, has it\n"
        "below.",
        *table1_table(),
        wrapped(
            "The switch, by its regret: log10 of the training loss in the end, minus log10 of the "
            "lowest one over swaps after fixed epochs and none, at equal passes, with all that a "
            "rule reads, its trials and its failed second phases charged; medians over three "
            "seeds. 1 is a loss ten times as high as it could be. In validation loss swaps lose on "
            "these small problems, unless trials are judged by it. Half of the problems were set "
            f"aside when the race was designed, all but {len(regret.UNSEEN)} of them seen under an "
            "earlier form; "
            "notebook 06 has them all, and all rules."
        ),
        *regret_table(),
        "Networks that the paper has not, on small subsets, three seeds: on how many the gradient\n"
        "norm of Adam alone has a single clear hill, and the Hessian a clearly negative\n"
        "eigenvalue where Adam ends; then losses in the end in units of those of Adam alone, at\n"
        "equal passes, medians: above 1 the second phase loses. But for the race (on all but\n"
        "CIFAR-10 before its late trial changed) the swap is at three tenths of the epochs, CG\n"
        "has golden section as in the paper. Notebooks 16 and 17 have the rest.",
        *markdown(
            pattern.overview({name: pattern.committed(of) for name, of in pattern.KEPT.items()})
        ),
        wrapped(
            "What the overdetermination Q = K M / P says (notebook 19). The gap is validation "
            "minus training loss, on digits and MNIST, three seeds; the race is the default before "
            "its trials became shorter. " + generalisation_words()
        ),
        "One problem in every way to train it: −u'' = π² sin(πx), 64 + 2 points, 2×32 tanh,\n"
        "float64, one thread; the relative error of the solution after 1,000 steps or epochs of\n"
        "`TwoPhase` or `fit`, 300 of Adam with 300 of the second phase, or 3,000 passes; medians.\n"
        "A closure with backward, the convention of torch, DeepXDE and Lightning, pays 3 passes a\n"
        "step to see that the loss is still the same, one without pays 1.",
        *clients_table(),
        "Test functions of CUTEst, to a gradient norm of 1e-6 of the first:",
        *cutest_table(),
        "Physics-informed networks of a published table (arXiv 2405.15603) from its own initial\n"
        "weights and points, in float64 on one CPU core: seconds and passes until the root mean\n"
        "square error is that low. The published line is the best of about 100 tuned runs of\n"
        "energy natural gradient descent of 1,000 s each, on an RTX 6000; here nothing was tuned,\n"
        "and Adam has torch's default rate. Of the problems without a published line the error is\n"
        "relative, ‖u − exact‖ / ‖exact‖. The first two of this library and its peer had 60\n"
        "seconds, the others 30; notebook 14 has all six problems. On one of them, a regression\n"
        "with as many residuals as parameters, the default is behind SSBroyden.",
        *markdown(errors[errors.problem.isin(PHYSICS)]),
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
    draw_map().savefig(MAP, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
