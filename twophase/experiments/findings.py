"""A comparison in tables for readers: what tuning chose, losses and costs, and who pays."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from twophase.experiments import profiles
from twophase.experiments.comparison import TUNING_SEED, chosen
from twophase.experiments.methods import METHODS
from twophase.experiments.statistics import QUICKER, Ratio, by_group, ratio_of
from twophase.objective import GRADIENT_PASSES
from twophase.settings import Settings

NAME = ["problem", "model"]
NETWORK = {"model": "network"}


class Parts(NamedTuple):
    """The curves of a comparison, those of its tuning, and the passes that each method had."""

    curves: pd.DataFrame
    tuning: pd.DataFrame
    passes: int


def parts(curves: pd.DataFrame) -> Parts:
    """What `comparison.compare` or `comparison.load` returned, the tuning apart."""
    tuned = curves.seed == TUNING_SEED
    return Parts(curves[~tuned], curves[tuned], int(curves.passes.max()))


def one_start(curves: pd.DataFrame) -> bool:
    """Whether all methods that go on from a prefix start with the same loss."""
    starts = curves[curves.passes_spent == 0]
    after = starts[[not METHODS[name].starts_over for name in starts.method]]
    return bool(after.groupby(list(profiles.SETTING), dropna=False).loss.nunique().eq(1).all())


def setting(curves: pd.DataFrame) -> str:
    """What curves of one setting, but for the seed, were made on, for captions."""
    first, seeds = curves.iloc[0], curves.seed.nunique()
    name = f"{first.problem} {first.model}".strip()
    part, batch = first.train_examples, first.batch_size
    examples = "all examples" if pd.isna(part) else f"{part:.0f} examples"
    batches = "in one batch" if pd.isna(batch) else f"in batches of {batch:.0f}"
    epochs = f"after {first.swap_epoch} epochs of Adam"
    return f"{name}, {examples} {batches}, {epochs}, {seeds} seed{'s' * (seeds > 1)}"


def tuned(tuning: pd.DataFrame) -> pd.DataFrame:
    """For each tuned method: its candidates, the chosen one, its loss and the worst."""
    picked = chosen(tuning)
    lowest = tuning.groupby(["method", "candidate"]).loss.min()
    rows = []
    for name in (name for name in METHODS if name in picked):
        words = candidates(name, sorted(lowest[name].index))
        row = {"method": METHODS[name].label, "candidates": "; ".join(words.values())}
        row |= {"chosen": words[picked[name]], "its loss": lowest[name, picked[name]]}
        rows.append(row | {"the worst's": lowest[name].max()})
    return pd.DataFrame(rows)


def candidates(method: str, numbers: Sequence[int] | None = None) -> dict[int, str]:
    """Candidates of a method in words: what differs from the first, which is as shipped.

    By number; None: those that tuning begins with.
    """
    known = METHODS[method].candidates
    numbers = list(known.first if numbers is None else numbers)
    first, others = known[0], [known[number] for number in numbers if number]
    names = {name for other in others for name in _changes(other, first)}

    def words(number: int) -> str:
        # a single field is named for the first one, too
        other = others[0] if number == 0 and len(names) == 1 else first
        changes = _changes(known[number], other).items()
        return ", ".join(f"{name} {value}" for name, value in changes) or "as shipped"

    return {number: words(number) for number in numbers}


def by_method(curves: pd.DataFrame, passes: int) -> pd.DataFrame:
    """`profiles.overview` of each problem and network; left out where there is only one."""
    return _readable(_labelled(profiles.overview(curves, passes, [*NAME, "method"])))


def in_validation(curves: pd.DataFrame, passes: int) -> pd.DataFrame:
    """`profiles.validation` where there are validation examples; see `by_method`."""
    there = curves[curves.validation_loss.notna()]
    if there.empty:
        return pd.DataFrame()
    return _readable(_labelled(profiles.validation(there, passes, [*NAME, "method"])))


def twice(curves: pd.DataFrame) -> pd.DataFrame:
    """Median losses of Adam, of Adam with twice the passes and of the default, where all ran."""

    def describe(of: pd.DataFrame) -> dict[str, Any]:
        ends = of.pivot_table(index="seed", columns="method", values="loss", aggfunc="min")
        adam, longer, default = (ends[name] for name in ("adam", "adam-twice", "default"))
        lower = (default < longer).sum()
        return {
            "Adam": adam.median(),
            "Adam, twice": longer.median(),
            "twice / Adam": (longer / adam).median(),
            "default second phase": default.median(),
            "second phase lower than Adam, twice": f"{lower} of {len(ends)} seeds",
        }

    both = curves.groupby(NAME).method.transform(
        lambda names: {"adam-twice", "default"} <= set(names)
    )
    return _readable(by_group(curves[both], NAME, describe))


def everywhere(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of `profiles.costs` of those methods that ran on the most settings."""
    settings = found.groupby("method").method.transform("size")
    return found[settings == settings.max()]


def where_ran(found: pd.DataFrame, method: str) -> pd.DataFrame:
    """The rows of `profiles.costs` on those settings on which a method ran."""
    groups = found.groupby(list(profiles.SETTING), dropna=False).method
    return found[groups.transform(lambda names: method in set(names))]


def solved(found: pd.DataFrame) -> pd.DataFrame:
    """How often each method is the quickest, and how often it gets to Adam's last loss at all.

    The shares are the ends of the `profiles.performance_profile` of what `profiles.costs` found.
    """
    ends = profiles.performance_profile(found, [1, np.inf])
    ends = ends.set_axis(["quickest", "gets there"]).T.map("{:.0%}".format)
    return _labelled(ends.rename_axis("method").reset_index())


def standing(found: pd.DataFrame) -> pd.DataFrame:
    """On how many of its problems and networks each method is quicker than Adam.

    A row for each method but Adam, from `profiles.costs`: quicker on every seed, on some, on none,
    by more than the curves leave open (6 %); and how many runs, one for each seed, do not get to
    Adam's last loss.
    """
    ratios = profiles.ratios(found, [*NAME, "method"])

    def describe(of: pd.DataFrame) -> dict[str, Any]:
        every, none = int((of.high < QUICKER).sum()), int((of.low >= QUICKER).sum())
        return {
            **{"problems and networks": len(of), "quicker on every seed": every},
            **{"on some": len(of) - every - none, "on none": none},
            "runs that miss": f"{of.missed.sum()} of {of.seeds.sum()}",
        }

    return _labelled(by_group(ratios[ratios.method != "adam"], ["method"], describe))


def answer(found: pd.DataFrame, method: str = "default") -> str:
    """Where a method is quicker than Adam, with its ratios of `profiles.costs`, in Markdown."""
    ratios = profiles.ratios(found[found.method == method], NAME)
    names = (ratios.problem + " " + ratios.model).str.strip() + " " + ratios.text
    groups = {
        "on every seed": ratios.high < QUICKER,
        "on some seeds only": (ratios.low < QUICKER) & (ratios.high >= QUICKER),
        "on no seed": ratios.low >= QUICKER,
    }
    return "\n".join(
        f"- {where} ({there.sum()} of {len(names)}): {'; '.join(names[there])}"
        for where, there in groups.items()
        if there.any()
    )


def answers(found: pd.DataFrame, compared: Sequence[Parts]) -> str:
    """What comparisons say of two-phase training, for and against it, in Markdown.

    `found` are the rows of `profiles.costs` of all of them.
    """
    ratios = found.ratio[found.method == "default"]
    late, missed = ((ratios > 1) & (ratios < np.inf)).sum(), np.isinf(ratios).sum()
    where = {
        "Where does the default second phase get to Adam's last loss in fewer passes?": "default",
        "And with the automatic switch, which is charged all that it tries?": "race",
        "And the paper's, CG with a golden section?": "golden",
        "And Adam, with rate and schedule tuned from the start?": "adam-from-start",
    }
    ran = set(found.method)
    said = [
        f"**{question}**\n\n{answer(found, method)}"
        for question, method in where.items()
        if method in ran
    ]
    said[0] = said[0].replace("**\n", "** (In parts of Adam's passes, median and range.)\n", 1)
    said += [
        f"**What else speaks against it?** Single runs in which the default misses Adam's last "
        f"loss: {missed} of {len(ratios)}; in which it gets there later than Adam: {late}.",
    ]
    said += [f"**{RIVALS[one]}** {_beside(found, one)}" for one in RIVALS if one in ran]
    if validated := "; ".join(_in_validation(one) for one in compared if _in_validation(one)):
        text = "Of the weights with the lowest training loss, in parts of Adam's, at equal passes"
        said.append(f"**And in validation loss?** {text}: {validated}.")
    return "\n\n".join(said)


RIVALS = {
    "torch-lbfgs": "And beside a simple rival? torch's L-BFGS knows nothing of Adam.",
    "adam-cosine": "And beside Adam with a tuned cosine decay after the prefix?",
    "adam-from-start": "And beside Adam with rate and schedule tuned from the start?",
}


def _beside(found: pd.DataFrame, rival: str) -> str:
    """How the default stands to a rival where both ran, in words; `ahead` and losses in the end."""
    runs = _both(found, "default", rival)
    networks, every = (len(of.drop_duplicates(list(NAME))) for of in (runs, found))
    lower = (runs.loss < runs.loss_rival).sum()
    return (
        f"It ran on {networks} of {every} problems and networks. There the default needs fewer "
        f"passes than it {ahead(found, rival=rival)}, and ends lower at equal passes in {lower}."
    )


def _in_validation(compared: Parts, method: str = "default") -> str:
    """A method's validation loss over Adam's, for each problem and network that has one."""
    ratios = {
        f"{problem} {model}".strip(): profiles.validation_ratio(of, compared.passes, method)
        for (problem, model), of in compared.curves.groupby(NAME, sort=False)
        if method in set(of.method)
    }
    return "; ".join(f"{name} {ratio}" for name, ratio in ratios.items() if ratio)


def whole(compared: Parts) -> bool:
    """Whether on every setting a method had the whole budget."""
    lasts = compared.curves.groupby(list(profiles.SETTING), dropna=False).passes_spent.max()
    return bool((lasts > compared.passes - GRADIENT_PASSES).all())


def ahead(found: pd.DataFrame, method: str = "default", rival: str = "torch-lbfgs") -> str:
    """How often a method is quicker than a rival, by more than 6 %, from `profiles.costs`."""
    runs = _both(found, method, rival)
    medians = runs.groupby(NAME)[["ratio", "ratio_rival"]].agg(lambda of: ratio_of(of).median)
    counts = [(of.ratio < QUICKER * of.ratio_rival).sum() for of in (medians, runs)]
    return (
        f"in the median on {counts[0]} of {len(medians)} problems and networks, in {counts[1]} of "
        f"{len(runs)} runs"
    )


def _both(found: pd.DataFrame, method: str, rival: str) -> pd.DataFrame:
    """A row for each setting on which both ran; the rival's columns end in `_rival`."""
    own, other = (found[found.method == name] for name in (method, rival))
    return own.merge(other, on=list(profiles.SETTING), suffixes=("", "_rival"))


def verdicts(curves: pd.DataFrame, passes: int, method: str = "default") -> pd.DataFrame:
    """For each problem and network: whether a method pays, by both costs, and who is quickest.

    A method pays where it gets to the loss that Adam ends with at less than Adam's cost.
    """

    def describe(of: pd.DataFrame) -> dict[str, str]:
        by_passes, by_seconds = (
            {name: ratio_of(ratios) for name, ratios in costs.groupby("method", sort=False).ratio}
            for costs in (profiles.costs(of, passes, cost) for cost in profiles.COSTS)
        )
        best = min(by_passes, key=lambda name: by_passes[name].median)
        return {
            "pays by passes": profiles.verdict(by_passes[method]),
            "pays by seconds": profiles.verdict(by_seconds[method], "seconds"),
            "quickest by passes": f"{METHODS[best].label}, {by_passes[best].text}",
            "validation loss / Adam's": profiles.validation_ratio(of, passes, method)
            or "not measured",
        }

    return by_group(curves, NAME, describe).rename(columns=NETWORK)


def at_levels(curves: pd.DataFrame, levels: Sequence[int]) -> pd.DataFrame:
    """Lowest losses within so many passes, a row for each method.

    `curves` are of one problem, with columns method, seed, passes and loss; a run that has not come
    to 0.9 of a level has no loss there. The columns are the losses of seed 0, which all methods
    have, at each level; and where some have more seeds, their number and the median over them at
    the highest level that all of these runs have reached. Methods whose runs are the same have one
    row.
    """

    def lowest(run: pd.DataFrame) -> dict[int, float]:
        reached = [level for level in levels if run.passes.max() > 0.9 * level]
        return {level: run.loss[run.passes <= level].min() for level in reached}

    found = pd.DataFrame(
        {keys: lowest(run) for keys, run in curves.groupby(["method", "seed"], sort=False)},
        index=list(levels),
    ).T
    first = found.xs(0, level=1)
    table = first.dropna(axis="columns", how="all").add_prefix("loss at ")
    seeds = found.groupby(level=0).size()
    more = found[found.index.get_level_values(0).map(seeds) > 1]
    if len(more):
        shared = more.columns[more.notna().all()][-1]
        middle = more[shared].groupby(level=0).median()
        table = table.assign(seeds=seeds, **{f"median at {shared}": middle})
    alike = table.groupby([*table], dropna=False, sort=False)
    return (
        alike.apply(lambda of: " = ".join(of.index))
        .rename("method")
        .reset_index()[["method", *table]]
    )


def changes(losses: pd.DataFrame, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """By which factor changes of one thing lower the loss, a row for each.

    `losses` has a row for each seed and a column for each method; `pairs` name for each change the
    method with it and the one without. It helps or hurts where all seeds agree.
    """

    def verdict(ratio: Ratio) -> str:
        if ratio.seeds == 1:
            return "one seed says little"
        return "helps" if ratio.low > 1 else "hurts" if ratio.high < 1 else "no clear difference"

    rows = []
    for change, (after, before) in pairs.items():
        ratio = ratio_of(losses[before] / losses[after])
        rows.append((change, ratio.median, ratio.low, ratio.high, verdict(ratio)))
    return pd.DataFrame(rows, columns=["change", "factor (median)", "lowest", "highest", "verdict"])


def by_chance(rows: int, seeds: int) -> str:
    """How many of the verdicts of `changes` mean nothing, in words."""
    expected = rows * 2.0 ** (1 - seeds)
    return (
        f"By chance alone {seeds} seeds agree on one side in one row of {2 ** (seeds - 1)}: if no "
        f"change made a difference, about {expected:.0f} of these {rows} rows would say that it "
        "helps or hurts."
    )


def standing_in_words(losses: pd.DataFrame, named: Mapping[str, str]) -> str:
    """Which method has the lowest median loss over the seeds, and how some named ones stand.

    `losses` has columns method and loss; `named` has the words for those that are told.
    """
    order = losses.groupby("method").loss.median().sort_values()
    place = {name: number for number, name in enumerate(order.index, 1)}
    said = [f"{words} {order[name]:.2g}, number {place[name]}" for name, words in named.items()]
    return f"{order.iloc[0]:.2g}, of {order.index[0]}. Of {len(order)} methods {'; '.join(said)}"


def missing(methods: Sequence[str]) -> str:
    """A sentence that names the methods whose package is not installed; empty if there is none."""
    names = [METHODS[name].label for name in methods if not METHODS[name].installed]
    return (
        f"Left out, because its package is not installed here: {', '.join(names)}." if names else ""
    )


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(method=[METHODS[name].label for name in table.method])


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Without the names that are the same in all rows."""
    fixed = [name for name in NAME if name in table and table[name].nunique() == 1]
    return table.drop(columns=fixed).rename(columns=NETWORK)


def _changes(settings: Any, first: Any) -> dict[str, Any]:
    """The fields in which settings differ from others of their kind, down to the innermost."""
    found = {}
    for name in (field.name for field in fields(settings)):
        value, before = getattr(settings, name), getattr(first, name)
        if isinstance(value, Settings) and type(value) is type(before):
            found |= _changes(value, before)
        elif value != before:
            found[name.replace("_", " ")] = value
    return found
