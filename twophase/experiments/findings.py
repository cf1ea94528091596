"""A comparison in tables for readers: what tuning chose, losses and costs, and who pays."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from twophase.experiments import profiles
from twophase.experiments.comparison import METHODS, TUNING_SEED, chosen, in_words

NAME = ["problem", "model"]


class Parts(NamedTuple):
    """The curves of a comparison, those of its tuning, and the passes that each method had."""

    curves: pd.DataFrame
    tuning: pd.DataFrame
    passes: int


def parts(curves: pd.DataFrame) -> Parts:
    """What `comparison.compare` returned or `comparison.load` read, the tuning apart."""
    tuned = curves.seed == TUNING_SEED
    return Parts(curves[~tuned], curves[tuned], int(curves.passes.max()))


def tuned(tuning: pd.DataFrame) -> pd.DataFrame:
    """For each method that was tuned: its candidates, the chosen one, and its and the worst loss.

    A row for each method, none if `tuning` is empty.
    """
    picked = chosen(tuning)
    lowest = tuning.groupby(["method", "candidate"]).loss.min()
    rows = [
        {
            "method": METHODS[name].label,
            "candidates": "; ".join(map(in_words, METHODS[name].candidates)),
            "chosen": in_words(METHODS[name].candidates[picked[name]]),
            "its loss": lowest[name, picked[name]],
            "the worst's": lowest[name].max(),
        }
        for name in METHODS
        if name in picked
    ]
    return pd.DataFrame(rows)


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
                | {"default second phase": ends["default"].median()}
                | {"lower than Adam, twice": f"{lower} of {len(ends)} seeds"}
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


def verdicts(curves: pd.DataFrame, passes: int, method: str = "default") -> pd.DataFrame:
    """For each problem and network: whether a method pays, by both costs, and who is quickest.

    A method pays where it gets to the loss that Adam ends with at less than Adam's cost.
    """
    ratios = [
        profiles.ratios(profiles.costs(curves, passes, cost), [*NAME, "method"])
        for cost in profiles.COSTS
    ]
    rows = []
    for values, of in ratios[0].groupby(NAME, sort=False):
        best = of.loc[of["median"].idxmin()]
        own, timed = (
            rows_of[(rows_of[NAME] == values).all(axis=1) & (rows_of.method == method)].iloc[0]
            for rows_of in ratios
        )
        rows.append(
            dict(zip(NAME, values, strict=True))
            | {"pays by passes": profiles.verdict(profiles.as_ratio(own))}
            | {"pays by seconds": profiles.verdict(profiles.as_ratio(timed), "seconds")}
            | {"quickest by passes": f"{METHODS[best.method].label}, {best.text}"}
        )
    return _readable(pd.DataFrame(rows), always=True)


def _readable(table: pd.DataFrame, always: bool = False) -> pd.DataFrame:
    """A model is a network; names that are the same in all rows are left out."""
    fixed = [name for name in NAME if name in table and table[name].nunique() == 1]
    return table.drop(columns=[] if always else fixed).rename(columns={"model": "network"})
