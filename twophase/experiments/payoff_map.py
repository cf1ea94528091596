"""When a second phase pays: maps over mini-batch steps, swap, target and precision, in tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from twophase.experiments import profiles, statistics
from twophase.experiments.config import RunConfig
from twophase.experiments.methods import METHODS
from twophase.payoff import forecast, payoffs
from twophase.record import Record

AXES = ["steps", "swap_epoch"]


def ratios(
    curves: pd.DataFrame, targets: Sequence[int], examples: int, cost: str = "passes_spent"
) -> pd.DataFrame:
    """Median over the seeds of the default second phase's cost to a target, divided by Adam's.

    `curves` are from `comparison`, of methods "adam" and "default", one network and precision;
    `targets` are passes of Adam whose losses are to be reached, and the largest is the budget;
    `examples` is K, the number of training examples; `cost` is one of `profiles.COSTS`. There is a
    column for each target, inf where the median is a miss. The index has `steps`, the mini-batch
    steps per epoch K/B with the batch size B, falling, and `swap_epoch`, rising.
    """
    columns = {}
    for target in targets:
        found = profiles.costs(curves, target, cost, max(targets))
        cells = found[found.method == "default"].groupby(["batch_size", "swap_epoch"])
        columns[target] = cells.ratio.agg(lambda of: statistics.ratio_of(of).median)
    return _by_steps(pd.DataFrame(columns).sort_index(), examples)


def _by_steps(table: pd.DataFrame, examples: int) -> pd.DataFrame:
    """A table by batch size and swap with K/B in place of the batch size."""
    steps = [f"{examples / size:.3g}" for size in table.index.get_level_values("batch_size")]
    swaps = table.index.get_level_values("swap_epoch")
    return table.set_index(pd.MultiIndex.from_arrays([steps, swaps], names=AXES))


def losses(curves: pd.DataFrame, passes: int, examples: int) -> pd.DataFrame:
    """The losses behind a map after so many passes, medians over the seeds; args as for `ratios`.

    The lowest training loss of Adam and of the second phase, and the validation loss there.
    """
    spent = curves[curves.passes_spent <= passes]
    last = spent.groupby([*profiles.SETTING, "method"], dropna=False, sort=False).tail(1)
    values, methods = ["loss", "validation_loss"], ["adam", "default"]
    table = last.pivot_table(values, ["batch_size", "swap_epoch"], "method", aggfunc="median")
    heads = [f"{loss}, {who}" for loss in ("training", "validation") for who in ("Adam", "second")]
    found = table[[(value, name) for value in values for name in methods]].set_axis(heads, axis=1)
    return _by_steps(found, examples).rename_axis(["K/B", "epochs before the swap"])


def paying(table: pd.DataFrame, axis: str | None = None) -> str:
    """In how many cells of a map the second phase pays, in words, such as "3 of 4".

    It does where the ratio is below 1 by more than the curves leave open, see `statistics.QUICKER`.
    `axis` is one of `AXES`, for each of whose values it is said, "target" for each column, or None
    for the whole map.
    """
    if axis is None:
        return f"{(table < statistics.QUICKER).to_numpy().sum()} of {table.size}"
    parts = table.items() if axis == "target" else table.groupby(level=axis, sort=False)
    return "; ".join(f"{value}: {paying(pd.DataFrame(cells))}" for value, cells in parts)


def summary(table: pd.DataFrame) -> str:
    """In how many cells of a map the second phase pays, by each of its axes: a list in Markdown."""
    swaps = (table < statistics.QUICKER).all(axis=1).groupby(level="swap_epoch").all()
    always = ", ".join(map(str, swaps.index[swaps])) or "none"
    return (
        f"the second phase pays in **{paying(table)}** cells.\n\n"
        f"- By epochs before the swap: {paying(table, 'swap_epoch')}.\n"
        f"- By target, in passes of Adam: {paying(table, 'target')}.\n"
        f"- By mini-batch steps per epoch, K/B: {paying(table, 'steps')}.\n"
        f"- Swaps after which it pays for every target and every K/B: {always}."
    )


def harder(table: pd.DataFrame) -> str:
    """Whether Adam is harder to beat the more steps it makes in an epoch, by a map, in words.

    Cells of the largest and of the smallest K/B are compared, of the same swap and target.
    """
    steps = table.index.unique("steps")
    most, fewest = (table.xs(steps[place], level="steps") for place in (0, -1))
    both = most.index.intersection(fewest.index)
    higher = (statistics.QUICKER * most.loc[both] > fewest.loc[both]).to_numpy()
    if len(steps) < 2 or not higher.size:
        return "Whether a larger K/B is harder to beat, a map with one K/B cannot say."
    plain = "Yes" if higher.all() else "Not always" if higher.any() else "No"
    return (
        f"Is Adam harder to beat the larger K/B is? **{plain}**: the second phase needs a larger "
        f"part of Adam's passes, by more than 6 %, at K/B = {steps[0]} than at K/B = {steps[-1]} "
        f"in {higher.sum()} of {higher.size} pairs of cells of the same swap and target."
    )


def in_validation(curves: pd.DataFrame, passes: int) -> str:
    """In how many runs the default ends below Adam in validation loss, in words for Markdown.

    `curves` as for `ratios`, with validation examples.
    """
    ends = profiles.validation_ends(curves, passes)
    own, adam = (ends[ends.method == name] for name in ("default", "adam"))
    both = own.merge(adam, on=list(profiles.SETTING), suffixes=("", "_adam"))
    ratio = both.end / both.end_adam
    return (
        f"After {passes} passes the validation loss of the second phase, of the weights with its "
        f"lowest training loss, is below Adam's in **{(ratio < 1).sum()} of {len(ratio)}** runs, "
        f"in the median {statistics.ratio_text(ratio.median())} times Adam's"
    )


def foretold(
    curves: pd.DataFrame, histories: Mapping[RunConfig, pd.DataFrame], targets: Sequence[int]
) -> pd.DataFrame:
    """What `twophase.payoff.forecast` says of the second phase, beside the Adam that went on.

    `curves` are of methods "adam" and "default" from all the prefixes, whose histories are given;
    both are compared at the passes `targets` since the prefix. A row for each prefix and target has
    `passes`; `says`, whether the second phase is below the forecast of Adam; `is`, whether it is
    below Adam; and `off`, the forecast divided by Adam's loss.
    """
    runs = dict(list(curves.groupby(["batch_size", "swap_epoch", "seed", "method"])))
    rows = []
    for start, history in histories.items():
        key = start.adam.batch_size, start.epochs, start.seed
        for passes in targets:
            adam, second = (
                profiles.loss_at(runs[*key, name], passes) for name in ("adam", "default")
            )
            foreseen = forecast(history.itertuples(), passes)
            says, pays = second < foreseen, second < adam
            rows.append({"passes": passes, "says": says, "is": pays, "off": foreseen / adam})
    return pd.DataFrame(rows)


def confusion(said: pd.DataFrame) -> pd.DataFrame:
    """The rows of `foretold` counted, for each number of passes."""

    def describe(of: pd.DataFrame) -> dict[str, float]:
        says, pays = of["says"], of["is"]
        return {
            "says it pays, it does": int((says & pays).sum()),
            "says it pays, it does not": int((says & ~pays).sum()),
            "says it does not, it does": int((~says & pays).sum()),
            "says it does not, it does not": int((~says & ~pays).sum()),
            "forecast / Adam's loss, median": of["off"].median(),
        }

    return statistics.by_group(said.sort_values("passes", kind="stable"), ["passes"], describe)


def right_in_words(said: pd.DataFrame) -> str:
    """How often what `foretold` says is right, and how often the same word each time would be."""
    right, pays = int((said["says"] == said["is"]).sum()), int(said["is"].sum())
    word = "pays" if 2 * pays >= len(said) else "does not pay"
    return (
        f"Its word is right in **{right} of {len(said)}** cases; to say each time that it {word} "
        f"would be right in {max(pays, len(said) - pays)}."
    )


def trend_in_words(records: Iterable[Record], adam: float) -> str:
    """How far Adam's trend at a run's last second phase is from the loss of an Adam that went on.

    `adam` is its loss after as many passes.
    """
    foreseen = payoffs(records)[-1].foreseen
    return (
        f"The Adam that did go on has {adam:.3g} after as many passes; its trend is "
        f"{statistics.ratio_text(foreseen / adam)} times that."
    )


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
    row for each problem, swap and precision, of which those that are everywhere the same are left
    out: the default's passes to each target, those of the others to the largest, in parts of
    Adam's; the default's passes to the lowest loss of torch's L-BFGS in parts of torch's; and the
    median ratio of their last losses.
    """
    budget = max(targets)

    def describe(of: pd.DataFrame) -> dict[str, Any]:
        found = {target: profiles.costs(of, target, budget=budget) for target in targets}
        last = found[budget]
        others = [method for method in last.method.unique() if method not in ("adam", "default")]
        ends = last.pivot(index="seed", columns="method", values="loss")
        return {
            **{f"default: to Adam at {n}": _ratio(found[n], "default").text for n in targets},
            **{f"{METHODS[m].label}: to Adam at {budget}": _ratio(last, m).text for m in others},
            "default: to torch's lowest": profiles.against(of, budget).text,
            "last loss / torch's": statistics.ratio_text(
                (ends["default"] / ends["torch-lbfgs"]).median()
            ),
        }

    table = statistics.by_group(curves, ["problem", "dtype", "swap_epoch"], describe)
    if table.dtype.nunique() > 1:
        table["problem"] += ", " + table.dtype
    if table.swap_epoch.nunique() == 1:
        table = table.drop(columns="swap_epoch")
    return table.drop(columns="dtype").rename(columns={"swap_epoch": "epochs before the swap"})


def verdicts(curves: pd.DataFrame, passes: int) -> pd.DataFrame:
    """Whether the default pays over swaps and seeds; `curves` of one dtype as for `full_batch`."""

    def describe(of: pd.DataFrame) -> dict[str, str]:
        return {
            "pays": profiles.verdict(_ratio(profiles.costs(of, passes), "default")),
            "passes to torch's lowest loss": profiles.against(of, passes).text,
        }

    return statistics.by_group(curves, ["problem"], describe)


def beside_torch(curves: pd.DataFrame, rivals: pd.DataFrame) -> pd.DataFrame:
    """The lowest losses of second phases, also in parts of those of torch's L-BFGS.

    `curves` are of `comparison.variants`, from the prefixes of `rivals`, among which is method
    "torch-lbfgs", and all but the default have rows, too. A row for each problem and label has the
    median loss, the ratio over seeds and the median seconds of the runs.
    """
    seeds = ["problem", "seed"]
    lowest = rivals[rivals.method == "torch-lbfgs"].groupby(seeds).loss.min()

    def describe(of: pd.DataFrame) -> dict[str, Any]:
        ends = of.groupby(seeds).loss.min()
        ratio = statistics.ratio_of(ends / lowest[ends.index])
        seconds = of.groupby(seeds).seconds.max().median()
        return {"loss": ends.median(), "loss / torch's": ratio.text, "seconds": seconds}

    more = rivals[rivals.method != "default"]
    more = more.assign(method=[METHODS[name].label for name in more.method])
    others = pd.concat([curves[curves.method != "adam"], more])
    others = others.sort_values("problem", kind="stable").rename(columns={"method": "second phase"})
    return statistics.by_group(others, ["problem", "second phase"], describe)


def _ratio(found: pd.DataFrame, method: str) -> statistics.Ratio:
    return statistics.ratio_of(found.ratio[found.method == method])
