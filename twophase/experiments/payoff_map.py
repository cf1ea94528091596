"""When a second phase pays: maps over mini-batch steps, swap, target and precision, in tables."""

from collections.abc import Mapping, Sequence

import pandas as pd

from twophase.experiments import profiles, statistics
from twophase.experiments.comparison import METHODS
from twophase.experiments.config import RunConfig
from twophase.payoff import forecast

AXES = ["steps", "swap_epoch"]


def ratios(curves: pd.DataFrame, targets: Sequence[int], examples: int) -> pd.DataFrame:
    """Median over the seeds of the default second phase's passes to a target, divided by Adam's.

    `curves` are from `comparison`, of methods "adam" and "default", one network and precision;
    `targets` are passes of Adam whose losses are to be reached, and the largest is the budget;
    `examples` is K, the number of training examples. There is a column for each target, inf where
    the median is a miss. The index has `steps`, the mini-batch steps per epoch K/B with the batch
    size B, falling, and `swap_epoch`, rising.
    """
    columns = {}
    for target in targets:
        found = profiles.costs(curves, target, budget=max(targets))
        medians = profiles.ratios(found[found.method == "default"], ["batch_size", "swap_epoch"])
        columns[target] = medians.set_index(["batch_size", "swap_epoch"])["median"]
    table = pd.DataFrame(columns).sort_index()
    steps = [f"{examples / size:.3g}" for size in table.index.get_level_values("batch_size")]
    swaps = table.index.get_level_values("swap_epoch")
    return table.set_index(pd.MultiIndex.from_arrays([steps, swaps], names=AXES))


def paying(table: pd.DataFrame, axis: str | None = None) -> str:
    """In how many cells of a map the second phase pays, in words.

    `axis` is one of `AXES`, for each of whose values it is said, "target" for each column, or None
    for the whole map.

    >>> steps = pd.Index([8, 32], name="steps")
    >>> cells = pd.DataFrame({30: [1.5, 0.5], 100: [0.7, 0.2]}, index=steps)
    >>> paying(cells), paying(cells, "steps"), paying(cells, "target")
    ('3 of 4', '8: 1 of 2; 32: 2 of 2', '30: 1 of 2; 100: 2 of 2')
    """
    if axis is None:
        return f"{(table < 1).to_numpy().sum()} of {table.size}"
    parts = table.items() if axis == "target" else table.groupby(level=axis, sort=False)
    return "; ".join(f"{value}: {paying(pd.DataFrame(cells))}" for value, cells in parts)


def summary(table: pd.DataFrame) -> str:
    """In how many cells of a map the second phase pays, by each of its axes: a list in Markdown."""
    swaps = (table < 1).all(axis=1).groupby(level="swap_epoch").all()
    always = ", ".join(map(str, swaps.index[swaps])) or "none"
    return "\n".join(
        [
            f"the second phase pays in **{paying(table)}** cells.\n",
            f"- By swap epoch: {paying(table, 'swap_epoch')}.",
            f"- By target, in passes of Adam: {paying(table, 'target')}.",
            f"- By mini-batch steps per epoch, K/B: {paying(table, 'steps')}.",
            f"- Swaps after which it pays for every target and every K/B: {always}.",
        ]
    )


def foretold(
    curves: pd.DataFrame, histories: Mapping[RunConfig, pd.DataFrame], targets: Sequence[int]
) -> pd.DataFrame:
    """What `twophase.payoff.forecast` says of the second phase, beside the Adam that went on.

    `curves` are from `comparison`, of methods "adam" and "default" from all the prefixes, whose
    histories are given; `targets` are passes since the prefix at which both are compared. A row for
    each prefix and target has `passes`; `says`, whether the second phase is below the forecast of
    Adam; `is`, whether it is below Adam; and `off`, the forecast divided by Adam's loss.
    """
    rows = []
    for start, history in histories.items():
        own = curves[
            (curves.batch_size == start.adam.batch_size)
            & (curves.swap_epoch == start.epochs)
            & (curves.seed == start.seed)
        ]
        for passes in targets:
            adam, second = (
                profiles.loss_at(own[own.method == name], passes) for name in ("adam", "default")
            )
            foreseen = forecast(history.itertuples(), passes)
            says, pays = second < foreseen, second < adam
            rows.append({"passes": passes, "says": says, "is": pays, "off": foreseen / adam})
    return pd.DataFrame(rows)


def confusion(said: pd.DataFrame) -> pd.DataFrame:
    """The rows of `foretold` counted, for each number of passes."""
    rows = []
    for passes, of in said.groupby("passes"):
        says, pays = of["says"], of["is"]
        rows.append(
            {
                "passes": passes,
                "says it pays, it does": int((says & pays).sum()),
                "says it pays, it does not": int((says & ~pays).sum()),
                "says it does not, it does": int((~says & pays).sum()),
                "says it does not, it does not": int((~says & ~pays).sum()),
                "forecast / Adam's loss, median": of["off"].median(),
            }
        )
    return pd.DataFrame(rows)


def precisions(curves: pd.DataFrame, targets: Sequence[int], examples: int) -> pd.DataFrame:
    """The maps of `ratios` of several precisions, side by side on the cells that all of them have.

    The columns are pairs of precision and target, target by target.
    """
    maps = {dtype: ratios(of, targets, examples) for dtype, of in curves.groupby("dtype")}
    table = pd.concat(maps, axis=1, join="inner")
    return table[sorted(table.columns, key=lambda pair: pair[::-1])]


def full_batch(curves: pd.DataFrame, targets: Sequence[int]) -> pd.DataFrame:
    """Full-batch problems: passes to Adam's losses and to the lowest of torch's L-BFGS.

    `curves` have methods "adam", "default" and "torch-lbfgs"; `targets` are those of `ratios`. A
    row for each problem, swap and precision: the default's passes to each target, those of the
    other methods to the largest, all in parts of Adam's; the default's passes to the lowest loss of
    torch's L-BFGS in parts of torch's; and the median ratio of their last losses.
    """
    rows = []
    budget = max(targets)
    for (name, swap, dtype), of in curves.groupby(["problem", "swap_epoch", "dtype"], sort=False):
        row = {"problem": name, "swap after": swap, "dtype": dtype}
        found = {target: profiles.costs(of, target, budget=budget) for target in targets}
        row |= {f"default to Adam's {n}": _text(found[n], "default") for n in targets}
        last = found[budget]
        others = [method for method in last.method.unique() if method not in ("adam", "default")]
        row |= {f"{METHODS[m].label} to Adam's {budget}": _text(last, m) for m in others}
        row["default to torch's lowest"] = profiles.against(of, budget).text
        ends = last.pivot(index="seed", columns="method", values="loss")
        row["last loss / torch's"] = (ends["default"] / ends["torch-lbfgs"]).median()
        rows.append(row)
    return pd.DataFrame(rows)


def verdicts(curves: pd.DataFrame, passes: int) -> pd.DataFrame:
    """For each full-batch problem, whether the default second phase pays, over swaps and seeds.

    `curves` are of one precision, from `comparison`, with methods "adam", "default", "torch-lbfgs".
    """
    rows = []
    for name, of in curves.groupby("problem", sort=False):
        found = profiles.costs(of, passes)
        ratio = statistics.ratio_of(found.ratio[found.method == "default"])
        rows.append(
            {"problem": name, "pays": profiles.verdict(ratio)}
            | {"passes to torch's lowest loss": profiles.against(of, passes).text}
        )
    return pd.DataFrame(rows)


def beside_torch(curves: pd.DataFrame, rivals: pd.DataFrame) -> pd.DataFrame:
    """The lowest losses of second phases, also in parts of those of torch's L-BFGS.

    `curves` are of `comparison.variants`, from the prefixes of `rivals`, among which is method
    "torch-lbfgs". A row for each problem and label has the median loss and the ratio over seeds.
    """
    seeds = ["problem", "seed"]
    lowest = rivals[rivals.method == "torch-lbfgs"].groupby(seeds).loss.min()
    rows = []
    for (name, label), of in curves.groupby(["problem", "method"], sort=False):
        if label != "adam":
            ends = of.groupby(seeds).loss.min()
            ratio = statistics.ratio_of(ends / lowest[ends.index])
            row = {"problem": name, "second phase": label, "loss": ends.median()}
            rows.append(row | {"loss / torch's": ratio.text})
    return pd.DataFrame(rows)


def _text(found: pd.DataFrame, method: str) -> str:
    return statistics.ratio_of(found.ratio[found.method == method]).text
