"""What a comparison comes to: costs to a target, performance profiles, verdicts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from twophase.errors import InputError, check_choice
from twophase.experiments.methods import METHODS
from twophase.experiments.statistics import Ratio, by_group, ratio_of
from twophase.objective import GRADIENT_PASSES

# what one problem instance is known by in the tables of `twophase.experiments.comparison`
SETTING = (
    *("problem", "model", "train_examples", "batch_size", "learning_rate"),
    *("dtype", "swap_epoch", "seed"),
)
COSTS = ("passes_spent", "seconds")
REFERENCE = "adam"
# Training losses below this are of single numbers that have not quite become 0.
ROUNDING = 1e-30


def cost_to(
    curve: pd.DataFrame, target: float, cost: str = "passes_spent", of: str = "loss"
) -> float:
    """What a run had spent when its loss was first at or below a target; inf if it never was.

    `curve` has the rows of one run in their order; `cost` is one of `COSTS`, both since the shared
    prefix; `of` is "loss" or "validation_loss". Points lie 2 % apart, in saved tables another 4 %:
    so much may the cost be too high.
    """
    check_choice("cost", cost, COSTS)
    reached = curve[of].to_numpy() <= target
    return float(curve[cost].iloc[reached.argmax()]) if reached.any() else np.inf


def loss_at(
    curve: pd.DataFrame, budget: float, cost: str = "passes_spent", of: str = "loss"
) -> float:
    """The lowest loss of a run within a budget of at least 0; the rest is as in `cost_to`.

    Of the validation loss it is that of the weights with the lowest training loss.
    """
    return float(curve[of][(curve[cost] <= budget).to_numpy()].iloc[-1])


def costs(
    curves: pd.DataFrame, passes: int, cost: str = "passes_spent", budget: int | None = None
) -> pd.DataFrame:
    """What each method spends to reach what Adam at a constant rate reaches in so many passes.

    `curves` are from `comparison`, with one candidate of each method; methods with a multiple of
    the budget are left out. The target is the lowest loss of Adam within `passes` since the prefix;
    what the others reach later than `budget` passes, by default as many, is a miss.

    A row for each setting and method has the columns `SETTING`, `method`; `target`; `cost`, inf
    where the target was missed; `ratio` to Adam's own cost; `loss`, the method's lowest within the
    budget; and `timed_loss`, that within no more than the seconds that Adam took for `passes`: a
    method that is quicker for a pass had its passes in less. `InputError` where a setting lacks
    Adam, or Adam has not spent the passes.
    """
    rows = []
    for values, of in curves.groupby(list(SETTING), sort=False, dropna=False):
        runs = dict(list(of.groupby("method", sort=False)))
        # an epoch more would not fit into the passes
        if REFERENCE not in runs or runs[REFERENCE].passes_spent.max() <= passes - GRADIENT_PASSES:
            there = list(runs)
            raise InputError("curves", there, f"curves of adam over {passes} passes and others")
        adam = runs[REFERENCE]
        target = loss_at(adam, passes)
        own = cost_to(adam, target, cost)
        seconds = adam.seconds[adam.passes_spent <= passes].max()
        for name, run in runs.items():
            if name in METHODS and METHODS[name].times != 1:
                continue
            within = run[run.passes_spent <= (budget or passes)]
            spent = cost_to(within, target, cost)
            rows.append(
                dict(zip(SETTING, values, strict=True))
                | {"method": name, "target": target, "cost": spent}
                | {"ratio": _quotient(spent, own), "loss": within.loss.min()}
                | {"timed_loss": loss_at(run, seconds, "seconds")}
            )
    return pd.DataFrame(rows)


def performance_profile(found: pd.DataFrame, factors: Sequence[float]) -> pd.DataFrame:
    """For each method the share of settings that it solves within a factor of the best's cost.

    ρ(τ) = share of settings with cost <= τ · lowest cost of all methods there (Dolan and Moré,
    Benchmarking optimization software with performance profiles, 2002). A miss is no solution at
    any τ; a setting that no method solved counts in the denominator. The lowest cost is 3 passes,
    an epoch of Adam, at least: who starts over may be there when the prefix ends, at a cost of 0.

    `found` is from `costs`, in passes. The result has a column for each method, a row for each
    factor τ. `InputError` for a factor below 1, and where a method did not run on every setting.
    """
    if min(factors) < 1:
        raise InputError("factors", min(factors), "factors of at least 1")
    settings = found.groupby(list(SETTING), dropna=False, sort=False).ngroup()
    table = found.assign(setting=settings).pivot(index="setting", columns="method", values="cost")
    partial = table.columns[table.isna().any()].tolist()
    if partial:
        raise InputError("methods", ", ".join(partial), "methods that ran on every setting")
    table = table[list(dict.fromkeys(found.method))]
    lowest = table.min(axis=1).clip(lower=GRADIENT_PASSES)
    solved = table.where(np.isfinite(table))
    shares = [solved.le(factor * lowest, axis=0).mean() for factor in factors]
    index = pd.Index(factors, name="factor")
    return pd.DataFrame(shares, index=index).rename_axis(columns=None)


def factors(found: pd.DataFrame, count: int = 240) -> np.ndarray:
    """So many factors τ for `performance_profile`, up to the largest that there can be, or 10."""
    most = found.cost[np.isfinite(found.cost)].max() / GRADIENT_PASSES
    return np.geomspace(1, max(10, most), count)


def ratios(found: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The ratios to Adam's cost over the seeds, for each combination of some columns of `costs`.

    A row has the columns `by`, and the fields and the `text` of the `Ratio`.
    """

    def describe(of: pd.DataFrame) -> dict[str, Any]:
        ratio = ratio_of(of.ratio)
        return ratio._asdict() | {"text": ratio.text}

    return by_group(found, by, describe)


def against(
    curves: pd.DataFrame, passes: int, method: str = "default", rival: str = "torch-lbfgs"
) -> Ratio:
    """Passes of a method to the lowest loss of a rival within `passes`, in parts of the rival's.

    `curves` are from `comparison`, with runs of both on every setting, over which the ratio is; a
    target that the method misses counts as infinite.
    """
    found = []
    for _, of in curves.groupby(list(SETTING), dropna=False):
        own, other = (of[of.method == name] for name in (method, rival))
        target = loss_at(other, passes)
        found.append(cost_to(own, target) / max(cost_to(other, target), 1))
    return ratio_of(found)


def overview(curves: pd.DataFrame, passes: int, by: Sequence[str]) -> pd.DataFrame:
    """A comparison as a reader wants it: losses at equal passes and seconds, costs to Adam's loss.

    For `curves` and `passes` see `costs`; the columns `by` name a setting but for its seed, and the
    method. Losses are the lowest within the passes, and within no more than the seconds that Adam
    took for them, as medians over the seeds and ranges; costs are to the loss that Adam ends with.
    """
    found = costs(curves, passes)
    # the same rows in the same order, counted otherwise
    found["seconds_ratio"] = costs(curves, passes, "seconds").ratio

    def describe(of: pd.DataFrame) -> dict[str, str]:
        return {
            "loss at equal passes": _losses(of.loss),
            "loss in Adam's seconds": _losses(of.timed_loss),
            "passes / Adam's": ratio_of(of.ratio).text,
            "seconds / Adam's": ratio_of(of.seconds_ratio).text,
        }

    return by_group(found, by, describe)


def validation(curves: pd.DataFrame, passes: int, by: Sequence[str]) -> pd.DataFrame:
    """A comparison in validation loss and accuracy, at equal passes; args as for `overview`.

    Of the weights with the lowest training loss; the lowest validation loss on the way, for who
    keeps those weights; and the passes to the lowest one of Adam, in parts of Adam's own, where a
    miss is a method that never was there. Medians over the seeds and ranges; without an accuracy
    where there is none.
    """

    def describe(of: pd.DataFrame) -> dict[str, Any]:
        texts = {
            "validation loss": _losses(of.end, digits=3),
            "lowest on the way": _losses(of.lowest, digits=3),
            "accuracy": f"{of.accuracy.median():.3f}" if of.accuracy.notna().any() else None,
            "passes to Adam's lowest": ratio_of(of.ratio).text,
        }
        # a column of its own says how many they are
        texts = {name: text and text.removesuffix(" (one seed)") for name, text in texts.items()}
        return texts | {"seeds": of.seed.nunique()}

    table = by_group(validation_ends(curves, passes), by, describe)
    return table.dropna(axis="columns", how="all")


def validation_ratio(curves: pd.DataFrame, passes: int, method: str) -> str:
    """A method's validation loss over Adam's when so many passes are spent; empty without one."""
    there = curves[curves.validation_loss.notna()]
    if there.empty:
        return ""
    ends = validation_ends(there, passes).pivot(index="seed", columns="method", values="end")
    return ratio_of(ends[method] / ends[REFERENCE]).text


def validation_ends(curves: pd.DataFrame, passes: int) -> pd.DataFrame:
    """What `validation` describes, a row for each setting and method.

    Its columns are `SETTING`, `method`, `end`, `lowest`, `accuracy` and `ratio`.
    """
    rows = []
    for values, of in curves.groupby(list(SETTING), sort=False, dropna=False):
        runs = {
            name: run[run.passes_spent <= passes]
            for name, run in of.groupby("method", sort=False)
            if name not in METHODS or METHODS[name].times == 1
        }
        target = runs[REFERENCE].validation_loss.min()
        own = cost_to(runs[REFERENCE], target, of="validation_loss")
        for name, run in runs.items():
            last = run.iloc[-1]
            row = dict(zip(SETTING, values, strict=True)) | {"method": name}
            row |= {"end": last.validation_loss, "accuracy": last.accuracy}
            row |= {"lowest": run.validation_loss.min()}
            spent = cost_to(run, target, of="validation_loss")
            rows.append(row | {"ratio": _quotient(spent, own)})
    return pd.DataFrame(rows)


def verdict(ratio: Ratio, unit: str = "passes") -> str:
    """Whether a method pays, in a sentence's second half, by the ratio of its cost to Adam's.

    It does where that is below 1 by more than the curves leave open, see `Ratio`.
    """
    if np.isinf(ratio.low):
        return "no: it does not get there"
    word = {True: "yes", False: "no", None: "not on every seed"}[ratio.quicker]
    if np.isinf(ratio.median):
        return f"{word}: {ratio.text}"
    return f"{word}: it needs {ratio.text} times Adam's {unit}"


def _losses(losses: pd.Series, digits: int = 2) -> str:
    middle, *ends = (short(of, digits) for of in (losses.median(), losses.min(), losses.max()))
    if len(losses) == 1:
        return f"{middle} (one seed)"
    return middle if {middle} == {*ends} else f"{middle} ({ends[0]} to {ends[1]})"


def short(value: float, digits: int = 3) -> str:
    """Some digits, as in 2.1e−5 or −0.96, with a minus at which no line breaks."""
    if 0 < value < ROUNDING:
        return "<1e\N{MINUS SIGN}30"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    few = value == 0 or 1e-4 <= abs(value) < 100
    shown = f"{value:.{digits}g}" if few else f"{mantissa}e{int(exponent)}"
    return shown.replace("-", "\N{MINUS SIGN}")


def _quotient(spent: float, own: float) -> float:
    """Of two costs; 0 by 0, where the prefix ended at the target, is 1."""
    return spent / own if own > 0 else (1.0 if spent == 0 else np.inf)
