"""What a comparison comes to: costs to a target, performance profiles, verdicts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from twophase.errors import InputError, check_choice
from twophase.experiments.comparison import METHODS
from twophase.experiments.statistics import Ratio, ratio_of
from twophase.objective import GRADIENT_PASSES

# what one problem instance is known by in the tables of `twophase.experiments.comparison`
SETTING = (
    *("problem", "model", "train_examples", "batch_size", "learning_rate"),
    *("dtype", "swap_epoch", "seed"),
)
COSTS = ("passes_spent", "seconds")
REFERENCE = "adam"


def cost_to(curve: pd.DataFrame, target: float, cost: str = "passes_spent") -> float:
    """What a run had spent when its loss was first at or below a target; inf if it never was.

    Args:
        curve: rows of one run in their order, with columns `loss` and `cost`.
        target: a loss.
        cost: one of `COSTS`, both since the shared prefix.

    Returns:
        The cost of the first point of the curve that is low enough. Points lie 2 % apart, in saved
        tables another 4 %, so that it is up to that much too high.
    """
    check_choice("cost", cost, COSTS)
    reached = curve.loss.to_numpy() <= target
    return float(curve[cost].iloc[reached.argmax()]) if reached.any() else np.inf


def loss_at(curve: pd.DataFrame, budget: float, cost: str = "passes_spent") -> float:
    """The lowest loss of a run within a budget of at least 0; the rest is as in `cost_to`."""
    return float(curve.loss[(curve[cost] <= budget).to_numpy()].iloc[-1])


def costs(
    curves: pd.DataFrame, passes: int, cost: str = "passes_spent", budget: int | None = None
) -> pd.DataFrame:
    """What each method spends to reach what Adam at a constant rate reaches in so many passes.

    Args:
        curves: from `comparison`, with runs of method "adam"; runs of other candidates of
            one method must not be in it. Methods with a multiple of the budget are left out.
        passes: since the prefix; they fix the target, the lowest loss of Adam within them.
        cost: in which to count; see `cost_to`.
        budget: passes that the methods have; what they reach later is a miss. Default: `passes`,
            as many as Adam had.

    Returns:
        A row for each setting and method: the columns `SETTING`, `method`; `target`; `cost`, inf
        where the target was missed; `ratio` to Adam's own cost; `loss`, the method's lowest within
        the budget; and `timed_loss`, that within no more than the seconds that Adam took for
        `passes`: a method that is quicker for a pass had its passes in less.

    Raises:
        InputError: a setting lacks Adam, or Adam has not spent the passes.
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
    any τ; a setting that no method solved counts in the denominator.

    Args:
        found: from `costs`.
        factors: τ, at least 1.

    Returns:
        A column for each method, a row for each factor.

    Raises:
        InputError: a factor is below 1, or a method did not run on every setting.

    >>> found = pd.DataFrame({"method": ["a", "b"], "cost": [3.0, 6.0]})
    >>> found = found.assign(**dict.fromkeys(SETTING, 0))
    >>> performance_profile(found, [1, 2]).to_dict("list")
    {'a': [1.0, 1.0], 'b': [0.0, 1.0]}
    """
    if min(factors) < 1:
        raise InputError("factors", min(factors), "factors of at least 1")
    settings = found.groupby(list(SETTING), dropna=False, sort=False).ngroup()
    table = found.assign(setting=settings).pivot(index="setting", columns="method", values="cost")
    partial = table.columns[table.isna().any()].tolist()
    if partial:
        raise InputError("methods", ", ".join(partial), "methods that ran on every setting")
    table = table[list(dict.fromkeys(found.method))]
    lowest = table.min(axis=1).clip(lower=np.finfo(float).tiny)
    solved = table.where(np.isfinite(table))
    shares = [solved.le(factor * lowest, axis=0).mean() for factor in factors]
    index = pd.Index(factors, name="factor")
    return pd.DataFrame(shares, index=index).rename_axis(columns=None)


def ratios(found: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The ratios to Adam's cost over the seeds, for each combination of some columns.

    Args:
        found: from `costs`, or several of them.
        by: columns such as "problem", "model", "method".

    Returns:
        Columns `by`, and the fields and the `text` of the `Ratio`.
    """
    rows = []
    for values, of in found.groupby(list(by), sort=False, dropna=False):
        ratio = ratio_of(of.ratio)
        rows.append(dict(zip(by, values, strict=True)) | ratio._asdict() | {"text": ratio.text})
    return pd.DataFrame(rows)


def as_ratio(row: pd.Series) -> Ratio:
    """The `Ratio` in a row of `ratios`."""
    median, low, high, seeds, missed = row[list(Ratio._fields)]
    return Ratio(float(median), float(low), float(high), int(seeds), int(missed))


def against(
    curves: pd.DataFrame, passes: int, method: str = "default", rival: str = "torch-lbfgs"
) -> Ratio:
    """Passes of a method to the lowest loss of a rival within `passes`, in parts of the rival's.

    Args:
        curves: from `comparison`, with runs of both on every setting.
        passes: within which the rival's lowest loss is the target.
        method, rival: values of the column `method`.

    Returns:
        The ratio over the settings; a target that the method misses counts as infinite.
    """
    found = []
    for _, of in curves.groupby(list(SETTING), dropna=False):
        own, other = (of[of.method == name] for name in (method, rival))
        target = loss_at(other, passes)
        found.append(cost_to(own, target) / max(cost_to(other, target), 1))
    return ratio_of(found)


def overview(curves: pd.DataFrame, passes: int, by: Sequence[str]) -> pd.DataFrame:
    """A comparison as a reader wants it: losses at equal passes and seconds, costs to Adam's loss.

    Args:
        curves, passes: see `costs`.
        by: columns that name a setting but for its seed, and "method".

    Returns:
        Columns `by`; the lowest loss within the passes, and within no more than the seconds that
        Adam took for them, each as the median over the seeds and the range; the ratio of passes and
        of seconds to Adam's, to the loss that Adam ends with.
    """
    found = costs(curves, passes)
    # the same rows in the same order, counted otherwise
    found["seconds_ratio"] = costs(curves, passes, "seconds").ratio
    rows = []
    for values, of in found.groupby(list(by), sort=False, dropna=False):
        rows.append(
            dict(zip(by, values, strict=True))
            | {
                "loss at equal passes": _losses(of.loss),
                "loss in Adam's seconds": _losses(of.timed_loss),
                "passes / Adam's": ratio_of(of.ratio).text,
                "seconds / Adam's": ratio_of(of.seconds_ratio).text,
            }
        )
    return pd.DataFrame(rows)


def verdict(ratio: Ratio, unit: str = "passes") -> str:
    """Whether a method pays, in a sentence's second half, by the ratio of its cost to Adam's.

    >>> verdict(Ratio(0.5, 0.4, 0.6, 3))
    "yes: it needs 0.50 (0.40 to 0.60) times Adam's passes"
    """
    if np.isinf(ratio.low):
        return "no: it does not get there"
    word = {True: "yes" if ratio.high < 1 else "no", False: "not on every seed"}[ratio.decided]
    if np.isinf(ratio.median):
        return f"{word}: {ratio.text}"
    return f"{word}: it needs {ratio.text} times Adam's {unit}"


def _losses(losses: pd.Series) -> str:
    """Median and range."""
    return f"{_short(losses.median())} ({_short(losses.min())} to {_short(losses.max())})"


def _short(value: float) -> str:
    """Two digits, as in 2.1e−5, with a minus at which no line breaks."""
    if value == 0 or 1e-2 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")


def _quotient(spent: float, own: float) -> float:
    """Of two costs; 0 by 0, where the prefix ended at the target, is 1."""
    return spent / own if own > 0 else (1.0 if spent == 0 else np.inf)
