"""A comparison in tables for readers: what tuning chose, losses and costs, and who pays."""

from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from twophase.experiments import profiles
from twophase.experiments.comparison import METHODS, TUNING_SEED, chosen
from twophase.experiments.statistics import ratio_of
from twophase.settings import Settings

NAME = ["problem", "model"]
NETWORK = {"model": "network"}


class Parts(NamedTuple):
    """The curves of a comparison, those of its tuning, and the passes that each method had."""

    curves: pd.DataFrame
    tuning: pd.DataFrame
    passes: int


def parts(curves: pd.DataFrame) -> Parts:
    """What `comparison.compare` returned or `comparison.load` read, the tuning apart."""
    tuned = curves.seed == TUNING_SEED
    return Parts(curves[~tuned], curves[tuned], int(curves.passes.max()))


def setting(curves: pd.DataFrame) -> str:
    """What curves of one setting, but for the seed, were made on, for captions.

    >>> row = {"problem": "mnist", "model": "vit-mlp", "train_examples": 2048, "batch_size": 64}
    >>> setting(pd.DataFrame([row | {"swap_epoch": 100, "seed": seed} for seed in range(3)]))
    'mnist vit-mlp, 2048 examples in batches of 64, after 100 epochs of Adam, 3 seeds'
    """
    first, seeds = curves.iloc[0], curves.seed.nunique()
    name = f"{first.problem} {first.model}".strip()
    part, batch = first.train_examples, first.batch_size
    examples = "all examples" if pd.isna(part) else f"{part:.0f} examples"
    batches = "in one batch" if pd.isna(batch) else f"in batches of {batch:.0f}"
    epochs = f"after {first.swap_epoch} epochs of Adam"
    return f"{name}, {examples} {batches}, {epochs}, {seeds} seed{'s' * (seeds > 1)}"


def tuned(tuning: pd.DataFrame) -> pd.DataFrame:
    """For each method that was tuned: its candidates, the chosen one, and its and the worst loss.

    A row for each method, none if `tuning` is empty.
    """
    picked = chosen(tuning)
    lowest = tuning.groupby(["method", "candidate"]).loss.min()
    rows = [
        {
            "method": METHODS[name].label,
            "candidates": "; ".join(candidates(name)),
            "chosen": candidates(name)[picked[name]],
            "its loss": lowest[name, picked[name]],
            "the worst's": lowest[name].max(),
        }
        for name in METHODS
        if name in picked
    ]
    return pd.DataFrame(rows)


def candidates(method: str) -> list[str]:
    """The candidates of a method in words: what differs from the first, which is as shipped.

    >>> candidates("cg"), candidates("default-tuned")
    (['beta PR+', 'beta HS-DY', 'beta HZ'], ['as shipped', 'c2 0.5', 'preconditioner Identity()'])
    """
    first, *others = METHODS[method].candidates
    if not others:
        return ["as shipped"]
    changes = [_changes(one, first) for one in others]
    words = [", ".join(f"{name} {value}" for name, value in change.items()) for change in changes]
    names = {name for change in changes for name in change}
    shipped = [f"{name} {value}" for name, value in _changes(first, others[0]).items()]
    return [shipped[0] if len(names) == 1 else "as shipped", *words]


def by_method(curves: pd.DataFrame, passes: int) -> pd.DataFrame:
    """`profiles.overview` of each problem, network and method, with the methods' labels.

    Problem and network are left out where there is only one.
    """
    shown = profiles.overview(curves, passes, [*NAME, "method"])
    shown["method"] = [METHODS[name].label for name in shown.method]
    return _readable(shown)


def twice(curves: pd.DataFrame) -> pd.DataFrame:
    """What Adam makes of twice the passes, beside the default second phase with the simple ones.

    A row for each problem and network on which both ran, with the median losses, and the seeds on
    which the second phase is lower than Adam with twice the passes.
    """
    rows = []
    for values, of in curves.groupby(NAME, sort=False):
        if {"adam-twice", "default"} <= set(of.method):
            ends = of.pivot_table(index="seed", columns="method", values="loss", aggfunc="min")
            lower = int((ends["default"] < ends["adam-twice"]).sum())
            rows.append(
                dict(zip(NAME, values, strict=True))
                | {"Adam": ends["adam"].median(), "Adam, twice": ends["adam-twice"].median()}
                | {"twice / Adam": (ends["adam-twice"] / ends["adam"]).median()}
                | {"default second phase": ends["default"].median()}
                | {"second phase lower than Adam, twice": f"{lower} of {len(ends)} seeds"}
            )
    return _readable(pd.DataFrame(rows))


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

    `found` is from `profiles.costs`, of methods that ran on every setting; the shares are the ends
    of `profiles.performance_profile`.
    """
    ends = profiles.performance_profile(found, [1, np.inf])
    columns = {"quickest": ends.iloc[0], "gets there": ends.iloc[1]}
    shown = pd.DataFrame(columns).map("{:.0%}".format)
    shown.insert(0, "method", [METHODS[name].label for name in shown.index])
    return shown.reset_index(drop=True)


def standing(found: pd.DataFrame) -> pd.DataFrame:
    """In how many of its settings, but for the seed, each method is quicker than Adam.

    A row for each method but Adam, from `profiles.costs`: quicker on every seed, on some, on none;
    and how many runs, a setting and a seed each, do not get to Adam's last loss.
    """
    ratios = profiles.ratios(found, [*NAME, "method"])
    rows = []
    for method, of in ratios[ratios.method != "adam"].groupby("method", sort=False):
        every, none = int((of.high < 1).sum()), int((of.low >= 1).sum())
        rows.append(
            {"method": METHODS[method].label, "settings": len(of), "quicker on every seed": every}
            | {"on some": len(of) - every - none, "on none": none}
            | {"runs that miss": f"{of.missed.sum()} of {of.seeds.sum()}"}
        )
    return pd.DataFrame(rows)


def answer(found: pd.DataFrame, method: str = "default") -> str:
    """Where a method is quicker than Adam, as a list in Markdown, from `profiles.costs`.

    An item for the problems and networks where it is on every seed, on some, on none, each with its
    ratio of costs to Adam's.
    """
    ratios = profiles.ratios(found[found.method == method], NAME)
    names = (ratios.problem + " " + ratios.model).str.strip() + " " + ratios.text
    groups = {
        "on every seed": ratios.high < 1,
        "on some seeds only": (ratios.low < 1) & (ratios.high >= 1),
        "on no seed": ratios.low >= 1,
    }
    return "\n".join(
        f"- {where} ({there.sum()} of {len(names)}): {'; '.join(names[there])}"
        for where, there in groups.items()
        if there.any()
    )


def ahead(found: pd.DataFrame, method: str = "default", rival: str = "torch-lbfgs") -> str:
    """How often a method is quicker than a rival, in words, from `profiles.costs`."""
    own, other = (found[found.method == name] for name in (method, rival))
    runs = own.merge(other, on=list(profiles.SETTING), suffixes=("", "_rival"))
    medians = runs.groupby(NAME)[["ratio", "ratio_rival"]].agg(lambda of: ratio_of(of).median)
    counts = [(of.ratio < of.ratio_rival).sum() for of in (medians, runs)]
    return (
        f"in the median on {counts[0]} of {len(medians)} problems and networks, in {counts[1]} of "
        f"{len(runs)} runs"
    )


def verdicts(curves: pd.DataFrame, passes: int, method: str = "default") -> pd.DataFrame:
    """For each problem and network: whether a method pays, by both costs, and who is quickest.

    A method pays where it gets to the loss that Adam ends with at less than Adam's cost.
    """
    by_passes, by_seconds = (
        profiles.ratios(profiles.costs(curves, passes, cost), [*NAME, "method"]).groupby(
            NAME, sort=False
        )
        for cost in profiles.COSTS
    )
    rows = []
    for (values, of), (_, timed) in zip(by_passes, by_seconds, strict=True):
        own, own_timed = (
            profiles.as_ratio(ratios[ratios.method == method].iloc[0]) for ratios in (of, timed)
        )
        best = of.loc[of["median"].idxmin()]
        rows.append(
            dict(zip(NAME, values, strict=True))
            | {"pays by passes": profiles.verdict(own)}
            | {"pays by seconds": profiles.verdict(own_timed, "seconds")}
            | {"quickest by passes": f"{METHODS[best.method].label}, {best.text}"}
        )
    return pd.DataFrame(rows).rename(columns=NETWORK)


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
