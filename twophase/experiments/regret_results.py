"""What regrets say: kept tables, summaries, and answers in words."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from twophase.experiments.files import committed_table
from twophase.experiments.regret import BATCHES, CASES, FIXED, NONE, RULES
from twophase.objective import GRADIENT_PASSES

# columns of passes, and what they are called
COSTS = {"reading": "reading", "trials": "lost trials", "returned": "left second phases"}
SHARES = ("a tenth", "a third", "two thirds")
# smaller differences of regrets, in orders of magnitude, are none
_NEAR = 0.005


class Kept(NamedTuple):
    """The source tree's reference results: all rows, and two parts without the fixed swaps.

    `complete` has the rules that were measured on all cases, `shared` the cases on which all rules
    were that suit every case. `earlier` are rows of trainings that were made twice.
    """

    table: pd.DataFrame
    complete: pd.DataFrame
    shared: pd.DataFrame
    earlier: pd.DataFrame

    @property
    def judged(self) -> pd.DataFrame:
        """Rules that were measured on all cases with validation examples, on these."""
        return measured_everywhere(_of_rules(self.table).dropna(subset=["validation_regret"]))


def committed() -> Kept:
    """The kept runs."""
    table = committed_table("reports/reference/switch-regret/regret.csv")
    rules = _of_rules(table)
    everywhere = {NONE} | {
        name for name, rule in RULES.items() if all(map(rule.suits, CASES.values()))
    }
    suits_all = rules[rules.rule.isin(everywhere)]
    earlier = committed_table("reports/reference/switch-regret/earlier.csv")
    return Kept(table, measured_everywhere(rules), with_all_rules(suits_all), earlier)


def _of_rules(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of rules and of Adam alone, without those of fixed swaps."""
    return table[~table.rule.str.startswith(FIXED)]


def measured_everywhere(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the rules that were measured on all cases of the table."""
    cases = table.groupby("rule").case.nunique()
    return table[table.rule.map(cases).eq(table.case.nunique())]


def with_all_rules(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cases on which all rules of the table were measured."""
    rules = table.groupby("case").rule.nunique()
    return table[table.case.map(rules).eq(table.rule.nunique())]


def summary(table: pd.DataFrame, column: str = "regret") -> pd.DataFrame:
    """For each rule over the cases (medians over the seeds): worst and median regret, and costs.

    Sorted by the worst. `COSTS` are shares of all passes, the largest of any training.
    """
    rules = _with_shares(_of_rules(table))
    rules = rules.assign(worst=rules[column])
    by_case = rules.groupby(["rule", "case"]).agg(
        {column: "median", "worst": "max"} | dict.fromkeys(COSTS, "max")
    )
    found = by_case.groupby("rule").agg(
        worst=(column, "max"),
        median=(column, "median"),
        worst_seed=("worst", "max"),
        **{name: (name, "max") for name in COSTS},
        cases=(column, "count"),
    )
    return found.sort_values(["worst", "median"])


def _with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its costs in parts of all passes of a training."""
    passes = table.spent + table.reading
    return table.assign(**{name: table[name] / passes for name in COSTS})


def costs(table: pd.DataFrame, rule: str = "race") -> pd.DataFrame:
    """What a rule costs on each problem, in parts of all passes: the largest over the seeds.

    `both in one training` are lost trials and left second phases, what was tried in vain. With the
    regret, the median over the seeds, to which all of it is charged.
    """
    rows = _with_shares(table[table.rule.eq(rule)])
    rows["both in one training"] = rows.trials + rows.returned
    found = rows.groupby("case", sort=False)
    shares = found[[*COSTS, "both in one training"]].max().rename(columns=COSTS)
    return shares.assign(regret=found.regret.median()).reset_index()


def from_batches(table: pd.DataFrame) -> pd.DataFrame:
    """What becomes of decisions if loss and norm are means over mini-batches, rule by rule.

    On the trainings that were made both ways: how many switch after the same epoch, how far apart
    the others are, worst and median regret, and the largest share of passes for reading.
    """
    rows, key = [], ["case", "seed"]
    by_rule = {rule: of.set_index(key) for rule, of in _with_shares(table).groupby("rule")}
    for name in (name for name in RULES if f"{name}{BATCHES}" in by_rule):
        batches = by_rule[f"{name}{BATCHES}"]
        ways = {"exact": by_rule[name].loc[batches.index], "from batches": batches}
        # without a swap: as if after the epochs of Adam alone
        last = [CASES[case].passes // GRADIENT_PASSES for case, _ in batches.index]
        swaps = [way.swap_epoch.fillna(pd.Series(last, way.index)) for way in ways.values()]
        apart = (swaps[0] - swaps[1]).abs()
        row = {"rule": name, "trainings": len(apart), "same swap": int(apart.eq(0).sum())}
        row["furthest apart"] = f"{apart.max():.0f} epochs"
        for words, way in ways.items():
            row[f"regret, {words}"] = f"{way.regret.max():.2f}, {way.regret.median():.2f}"
            row[f"reading, {words}"] = f"{way.reading.max():.1%}"
        rows.append(row)
    return pd.DataFrame(rows)


def short(table: pd.DataFrame, column: str = "regret") -> pd.DataFrame:
    """Worst and median of `summary`, and the number of cases, to be shown."""
    return (summary(table, column)[["worst", "median", "cases"]].round(2) + 0).reset_index()


def parts(table: pd.DataFrame) -> pd.DataFrame:
    """`summary` for the cases that were not set aside, those that were, and all of them."""
    order, columns = summary(table).index, ["worst", "median"]
    chosen = {"not set aside": table[~table.held_out], "set aside": table[table.held_out]}
    found = [
        summary(rows)[columns].reindex(order).add_suffix(f", {name} ({rows.case.nunique()})")
        for name, rows in (chosen | {"all": table}).items()
        if len(rows)
    ]
    return pd.concat(found, axis=1)


def by_q(table: pd.DataFrame) -> pd.DataFrame:
    """Validation regret of each rule (columns), the median over the seeds, in the order of Q.

    A case is a row, with its overdetermination Q = K M / P.
    """
    found = table.pivot_table("validation_regret", ["q", "case"], "rule", "median")
    order = summary(table, "validation_regret").index
    found = found[list(order)].round(2) + 0.0  # no −0
    return found.rename_axis(index={"q": "Q"}, columns=None).reset_index()


def rules_in_words(names: Iterable[str]) -> pd.DataFrame:
    """When some rules of `RULES` switch, in words; also of `NONE`."""
    words = {name: rule.words for name, rule in RULES.items()} | {NONE: "never: Adam alone"}
    rows = [(name, words[name]) for name in names]
    return pd.DataFrame(rows, columns=["rule", "switches"])


def cases_in_words(names: Iterable[str]) -> pd.DataFrame:
    """What some cases of `CASES` train, from the problem to the precision."""
    rows = []
    for name in names:
        case, batch = CASES[name], CASES[name].adam.batch_size
        rows.append(
            {"case": name, "problem": case.problem.name}
            | {"examples": str(getattr(case.problem, "train_examples", None) or "all")}
            | {"passes": case.passes}
            | {"batch": "all" if batch is None else str(batch), "rate": case.adam.learning_rate}
            | {"precision": case.dtype, "set aside": "yes" if case.held_out else "no"}
        )
    return pd.DataFrame(rows)


def sentence(table: pd.DataFrame, column: str = "regret", rule: str = "race") -> str:
    """A rule's worst and median regret, beside the best of the others, in Markdown."""
    table = table.dropna(subset=[column])
    found = summary(table, column)
    mine, best = found.loc[rule], found.drop(rule).iloc[0]
    single = table[table.rule.eq(rule)].sort_values(column).iloc[-1]
    alone = f"on a single seed up to **{mine.worst_seed:.2f}**, *{single.case}*"
    return (
        f"The {rule} has a regret of **{mine.worst:.2f}** in the worst of {mine.cases:.0f} cases "
        f"(medians over the seeds; {alone}) and **{mine['median']:.2f}** in the median; of the "
        f"others *{best.name}* has the best worst case, **{best.worst:.2f}**, and a median of "
        f"**{best['median']:.2f}**"
    ).replace("**-", "**−")


def at_the_peak(table: pd.DataFrame) -> str:
    """Whether the norm's peak, as if it were known, tells when to swap, in Markdown."""
    found = []
    for _, rows in table.groupby(["case", "seed"]):
        fixed = rows[rows.rule.str.startswith(FIXED)].sort_values("swap_epoch")
        alone = rows[rows.rule.eq(NONE)].iloc[0]
        later = fixed[fixed.swap_epoch.ge(alone.peak)]
        found.append(later.regret.iloc[0] if len(later) else alone.regret)
    regrets = pd.Series(found)
    return (
        "Would the norm tell when a trial is worth it? If its peak were known in advance, the "
        "first of the fixed swaps that is not before it has a median regret of "
        f"**{regrets.median():.2f}** and a worst one of **{regrets.max():.1f}**, over "
        f"{len(regrets)} trainings."
    )


def made_twice(table: pd.DataFrame, earlier: pd.DataFrame) -> str:
    """How far apart trainings end that differ by rounding alone, in Markdown.

    `earlier` has `case`, `seed`, `rule` and the `loss` of before; losses below the floor are alike.
    """
    both = table.merge(earlier, on=["case", "seed", "rule"], suffixes=("", "_before"))
    floor = both.floor * both.start
    ends = (both[name].clip(lower=floor) for name in ("loss", "loss_before"))
    now, before = (np.log10(of) for of in ends)
    apart = (now - before).abs()
    case = both.case[apart.idxmax()]
    there = apart[both.case.eq(case)]
    return (
        f"**A single training is partly luck.** Swaps after fixed epochs, and Adam alone, on "
        f"{', '.join(both.case.unique())} were made twice, by two revisions that differ in "
        f"rounding: **{(apart > 0.5).sum()} of {len(both)}** trainings end more than half an "
        f"order of magnitude apart, of those on {case} {(there > 0.5).sum()} of {len(there)}, by "
        f"up to **{apart.max():.1f}** orders. Rounding grows, and can decide which minimum is met; "
        "so regrets are medians over the seeds."
    )


def answer(traces: int, early: Mapping[str, int], kept: Kept) -> str:
    """Whether the norm tells when to switch, or a rule must try, in Markdown.

    `early` says on how many of so many recorded traces a rule fires before the peak.
    """
    found = summary(kept.complete)
    worst, problems = found.worst, found.cases.max()
    return (
        f"**Can a rule see it?** Not in the norm: of {traces} traces the literal rule is early on "
        f"{early['literal']}, and the smoothed one fires before a higher peak on "
        f"{early['smoothed']}; on the {problems} problems of Table 7 their worst regrets are "
        f"{worst['literal']:.1f} and {worst['smoothed']:.1f} orders of magnitude. **Does it have "
        f"to try?** {does_it_have_to_try(kept)} {by_validation(kept.judged)}"
    )


def does_it_have_to_try(kept: Kept, rule: str = "race") -> str:
    """Whether a rule that tries is better than those that look, and than a fixed share, in words.

    The former on the shared cases, by the worst regret; the latter on all, by that and by the
    number of cases where the regret is the lower one; with what was tried in vain.
    """
    few, found = summary(kept.shared), summary(kept.complete)
    looking = few.worst[[name for name in few.index if name in RULES and RULES[name].looks]]
    share = found.worst[found.index.isin(SHARES)].idxmin()
    regrets = kept.complete.pivot_table("regret", "case", "rule", "median")
    ahead, vain = regrets[share] - regrets[rule], costs(kept.table, rule)["both in one training"]
    lower, higher = (ahead > _NEAR).sum(), (ahead < -_NEAR).sum()
    verdict = {
        (True, True): "better than that, too",
        (True, False): "not shown to be better than that, except in the worst case",
        (False, True): "better than that on more problems, but not in the worst case",
        (False, False): "not shown to be better than that",
    }[bool(found.worst[rule] < found.worst[share]), bool(lower > higher)]
    return (
        f"Trying is {'' if few.worst[rule] < looking.min() else 'not '}better than looking: on the "
        f"{few.cases.max()} problems of Table 8 the worst regret of the {rule} is "
        f"**{few.worst[rule]:.2f}**, the lowest of the rules that look at norm or loss "
        f"**{looking.min():.2f}**, of *{looking.idxmin()}*. A swap at a fixed share neither looks "
        f"nor tries, and the {rule} is {verdict}: on the {found.cases.max()} problems of Table 7 "
        f"it has at worst **{found.worst[rule]:.2f}** (on a single seed "
        f"{found.worst_seed[rule]:.2f}), *{share}* **{found.worst[share]:.2f}** (on a single seed "
        f"{found.worst_seed[share]:.2f}){_aside(kept.complete, rule, share)}; the median over the "
        f"seeds is lower with the {rule} on {lower} problems, with *{share}* on {higher}, and else "
        f"the same within {_NEAR:g}. Lost trials and left second phases together take up to "
        f"**{vain.max():.0%}** of the passes of a training, more than half on "
        f"{(vain > 0.5).sum()} problems."
    )


def _aside(table: pd.DataFrame, *rules: str) -> str:
    """The worst cases of two rules among the problems that were set aside, in words."""
    if not table.held_out.any():
        return ""
    chosen = table[table.held_out]
    one, other = summary(chosen).worst[list(rules)]
    return f", and on the {chosen.case.nunique()} of these set aside {one:.2f} and {other:.2f}"


def by_validation(table: pd.DataFrame, rule: str = "race") -> str:
    """How a rule and Adam alone compare by the validation loss, in Markdown; `Kept.judged`."""
    worst = summary(table, "validation_regret").worst
    alone = table[table.rule.eq(NONE)].groupby("case").validation_regret.median()
    return (
        f"All that is training loss. By validation loss, the worst regret is "
        f"**{worst[NONE]:.2f}** of never switching and **{worst[rule]:.2f}** of the {rule}; no "
        f"fixed swap is better than Adam alone on {(alone < _NEAR).sum()} of the {len(alone)} "
        "problems that have one."
    )
