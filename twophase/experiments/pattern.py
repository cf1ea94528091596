"""Whether the paper's pattern holds on a problem: one peak of the norm, and convexity behind it.

Adam's trajectory of each seed is looked at from all sides: how many hills its gradient norm has,
where each rule switches, what the Hessian says there, and who is ahead in the end at equal passes,
in training and in validation loss. Every problem with validation examples may be asked.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.errors import InputError, check_integer
from twophase.experiments import branches, profiles, reached, runs, traces
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.convexity_audit import clearly_negative
from twophase.experiments.executors import ALONE as ONE_BY_ONE
from twophase.experiments.executors import Executor
from twophase.experiments.files import committed_table, write_atomically
from twophase.experiments.hessian import Convexity, Hessian
from twophase.experiments.methods import METHODS
from twophase.experiments.statistics import ratio_text, span
from twophase.objective import GRADIENT_PASSES
from twophase.problems.problem import Problem
from twophase.switching import (
    Fallback,
    FixedEpoch,
    GradientNormPeak,
    Plateau,
    Race,
    SmoothedNormPeak,
    SwitchRule,
)
from twophase.training import PAPER

log = logging.getLogger("twophase")

ALONE, RACE, CG = "Adam alone", "race", "three tenths, then CG"
BY_VALIDATION, DEFAULT_AT_SHARE = "race by validation", "three tenths"
# rules of the norm or the loss that are asked where they switch
RULES: dict[str, SwitchRule] = {
    "literal": GradientNormPeak(),
    "smoothed": SmoothedNormPeak(),
    "plateau": Plateau(),
}
# Of all epochs, as the paper's Table 1 swaps.
SHARE = 0.3
# Folders of the source tree's reference results, by what was run there.
KEPT = {
    "gpt-50k, text, 128 windows": "pattern-gpt-50k",
    "resnet8, GroupNorm, 96 digits": "pattern-resnet8-groupnorm",
    "resnet8, BatchNorm frozen, 96 digits": "pattern-resnet8",
    "resnet8, GroupNorm, 256 images of CIFAR-10": "pattern-resnet8-cifar10",
    "resnet8, GroupNorm, 256 images of Fashion-MNIST": "pattern-resnet8-fashion",
    "resnet18, GroupNorm, 40 digits": "pattern-resnet18",
}
# columns of a table of ends, and what they are called
LOSSES = {"loss": "training loss", "validation_loss": "validation loss"}
COSTS = {
    "spent": "passes",
    "trials": "of these in lost trials",
    "reading": "more for reading the norm",
}
NEVER = "never"
# A peak after this share of the epochs is not left behind.
LATE = 0.9
# Adam is slightly overfitted, or more, where its lowest validation loss is below this of its last.
SLIGHTLY, MORE = 0.99, 0.9


class Pattern(NamedTuple):
    """What was found on one problem, as tables.

    ends: a row for each seed and strategy; see `reached.End`.
    traces: of Adam alone, with the columns `traces.COLUMNS`: as "dataset" the problem, as "model"
        the seed in words.
    audits: a row for each seed and place of Adam's trajectory; `hessian.Curvature` and `at`, which
        is a rule's name or "end".
    """

    ends: pd.DataFrame
    traces: pd.DataFrame
    audits: pd.DataFrame


def config(
    problem: Problem,
    passes: int,
    adam: AdamSettings | None = None,
    freeze: bool = False,
) -> RunConfig:
    """The training that is asked about, by the library's defaults, in so many passes.

    At least 30 passes, so that there are epochs to look at; batches of 64 unless `adam` says else.
    `InputError` for fewer, and for a problem without validation examples.
    """
    if not problem.validates:
        raise InputError("problem", problem.name, "one with validation examples")
    check_integer("passes", passes, 30)
    adam = adam or AdamSettings(batch_size=64)
    return RunConfig(problem, passes // GRADIENT_PASSES, adam, budget=passes, freeze=freeze)


def at_share(config: RunConfig) -> FixedEpoch:
    """The swap of the paper's Table 1: after `SHARE` of the epochs."""
    return FixedEpoch(max(1, round(SHARE * config.epochs)))


def strategies(config: RunConfig) -> dict[str, RunConfig]:
    """The trainings that are compared at equal passes, by name; all begin with the same Adam."""
    share = at_share(config)
    by_rule = {name: replace(config, switch=rule, fallback=None) for name, rule in RULES.items()}
    raced = replace(config, switch=Race(), fallback=Fallback())
    return {
        ALONE: config.trunk(),
        RACE: raced,
        BY_VALIDATION: replace(raced, keep="validation"),
        **by_rule,
        DEFAULT_AT_SHARE: replace(config, switch=share, fallback=None),
        CG: replace(config, **PAPER | {"switch": share}),
    }


def run(
    chosen: RunConfig, seeds: int, place: branches.Place, executor: Executor = ONE_BY_ONE
) -> Pattern:
    """Train what is not finished, seed by seed, and look; `TwoPhaseError` if a run failed."""
    check_integer("seeds", seeds, 1, MOST_SEEDS)
    found = []
    for seed in range(seeds):
        named = strategies(replace(chosen, seed=seed))
        done = branches.run(list(named.values()), place, executor)
        branches.check(done)
        found.append(_look(dict(zip(named, done, strict=True)), place))
    return Pattern(*(pd.concat(parts, ignore_index=True) for parts in zip(*found, strict=True)))


def _look(done: dict[str, branches.Done], place: branches.Place) -> Pattern:
    """What the finished trainings of one seed show."""
    alone, seed = done[ALONE].config, done[ALONE].config.seed
    ends = pd.DataFrame([_end(name, one) for name, one in done.items()])
    history, _ = runs.read(done[ALONE].folder)
    key = {"dataset": alone.problem.name, "model": f"seed {seed}", "seed": seed}
    seen = history[["epoch", "train_loss", "grad_norm"]].rename(columns={"train_loss": "loss"})
    swaps = ends.set_index("strategy").swap_epoch.dropna()
    places = {name: int(swaps[name]) for name in (*RULES, RACE) if name in swaps}
    audits = _audits(alone, places | {"end": alone.epochs}, place)
    return Pattern(ends, seen.assign(**key)[list(traces.COLUMNS)], audits)


def _end(strategy: str, done: branches.Done) -> dict[str, object]:
    history, _ = runs.read(done.folder)
    named = {"seed": done.config.seed, "strategy": strategy}
    return named | reached.end(history, done.config)._asdict()


def _audits(alone: RunConfig, places: dict[str, int], place: branches.Place) -> pd.DataFrame:
    """Curvature after some epochs of Adam; each epoch is looked at once, and kept in a file."""
    written = place.folder(alone) / "audits.csv"
    known = pd.read_csv(written).to_dict("records") if written.exists() else []
    by_epoch = {row["epoch"]: row for row in known}
    for epoch in sorted({*places.values()} - {*by_epoch}):
        log.warning("%s seed %d: Hessian after epoch %d", alone.name, alone.seed, epoch)
        by_epoch[epoch] = {"epoch": epoch} | _curvature(alone, epoch, place)
        write_atomically(written, pd.DataFrame(by_epoch.values()).to_csv(index=False))
    rows = [{"seed": alone.seed, "at": at} | by_epoch[epoch] for at, epoch in places.items()]
    return pd.DataFrame(rows)


def _curvature(alone: RunConfig, epoch: int, place: branches.Place) -> dict[str, object]:
    leaving = {"passes": GRADIENT_PASSES}
    if epoch < alone.epochs:
        leaving = {"switch": FixedEpoch(epoch), "fallback": None}
    state = branches.state_for(replace(alone, second=DEFAULT, **leaving), place)
    trainer = runs.restore(alone, state, place.root, place.device)
    trainer.model.eval()
    objective = trainer.objective
    found = Hessian(objective, objective.vector.read()).audit(seed=alone.seed)
    row = found._asdict()
    del row["along"]
    return row | {"convexity": str(found.convexity())}


def save(found: Pattern, out: Path) -> None:
    """Write a CSV file for each table."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in found._asdict().items():
        write_atomically(out / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))


def committed(name: str) -> Pattern:
    """What was found on a problem in a folder of the source tree's reference results."""
    return Pattern(
        *(committed_table(f"reports/reference/{name}/{of}.csv") for of in Pattern._fields)
    )


def overview(found: Mapping[str, Pattern]) -> pd.DataFrame:
    """Two rows for each problem, by its name: one hill or more, what is convex, and who is ahead.

    On how many seeds the norm of Adam alone has a single clear hill, and the Hessian a clearly
    negative eigenvalue where Adam ends; then losses in the end, training and validation, in units
    of those of Adam alone at equal passes, medians over the seeds; or who never switched.
    """
    shown = RACE, DEFAULT_AT_SHARE, CG
    rows = []
    for name, one in found.items():
        seeds, hills = one.ends.seed.nunique(), peaks(one).hills
        convex = clearly_negative(one.audits[one.audits["at"] == "end"])
        row = {"problem": name, "single hill": f"{(hills == 1).sum()} of {seeds}"}
        row["clearly non-convex in the end"] = f"{convex.sum()} of {seeds}"
        by = beside_adam(one).groupby("strategy")
        middle, switched = by[[*LOSSES]].median(), by.switched.any()
        for column, words in LOSSES.items():
            ratios = {
                strategy: ratio_text(middle[column][strategy]) if switched[strategy] else NEVER
                for strategy in shown
            }
            rows.append(row | {"loss": words.removesuffix(" loss")} | ratios)
    return pd.DataFrame(rows)


def ends(found: Pattern, seed: int) -> pd.DataFrame:
    """What each strategy of a seed has come to, in a table to read."""
    rows = found.ends[found.ends.seed == seed].dropna(axis="columns", how="all")
    swaps = rows.swap_epoch.astype("Int64").astype(object)
    never = rows.strategy.map({ALONE: "–"}).fillna(NEVER)
    rows = rows.assign(swap_epoch=swaps.where(swaps.notna(), never))
    names = {"strategy": "strategy", "swap_epoch": "swap after epoch"} | LOSSES | COSTS
    return rows[[name for name in names if name in rows]].rename(columns=names)


def medians(found: Pattern) -> pd.DataFrame:
    """For each strategy the medians of its losses in the end, and of their ratios to Adam's.

    The ratios are those of the seeds on which it switched, whose number is there, too; the index is
    the strategy.
    """
    losses = found.ends.groupby("strategy", sort=False)[[*LOSSES]].median().rename(columns=LOSSES)
    ratios = beside_adam(found)
    switched = ratios.groupby("strategy").switched.agg(
        lambda of: f"{of.sum()} of {len(of)}" if of.any() else NEVER
    )
    middle = ratios[ratios.switched].groupby("strategy")[[*LOSSES]].median().map(ratio_text)
    middle = middle.rename(
        columns={column: f"{words} / Adam's" for column, words in LOSSES.items()}
    )
    return losses.join(middle).join(switched.rename("switched, seeds")).fillna("–")


def peaks(found: Pattern) -> pd.DataFrame:
    """For each seed the hills of Adam's norm, its peak, and the epochs at which rules switch.

    A hill rises by half from what is before it, and falls again by a third; see `traces.hills`.
    All of it is of the smoothed norm; `end` is its last value, in parts of the largest.
    """
    rows = []
    for seed, trace in found.traces.groupby("seed"):
        swaps = found.ends[found.ends.seed == seed].set_index("strategy").swap_epoch
        norms, curve = trace.grad_norm, traces.smoothed(trace.grad_norm)
        rows.append(
            {"seed": seed, "epochs": len(trace), "hills": len(traces.hills(norms))}
            | {"peak": traces.peak_epoch(norms), "end": curve[-1] / curve.max()}
            | {name: swaps[name] for name in (*RULES, RACE)}
        )
    return pd.DataFrame(rows).astype(dict.fromkeys([*RULES, RACE], "Int64"))


def peaks_to_read(found: Pattern) -> pd.DataFrame:
    """`peaks` with headings to read."""
    table = peaks(found)
    names = {"peak": "epoch of the largest smoothed norm"}
    names |= {"end": "norm in the end / largest"}
    for rule in (*RULES, RACE):
        swaps = table[rule].astype(object)
        table[rule] = swaps.where(swaps.notna(), NEVER)
        names[rule] = f"swap: {rule}"
    return table.rename(columns=names)


def switches(found: Pattern) -> pd.DataFrame:
    """Where each rule and the race switch on each seed, with columns as of `traces.outcomes`."""
    keys = found.traces[traces.KEY].drop_duplicates()
    rows = found.ends[found.ends.strategy.isin([*RULES, RACE])]
    names = {"strategy": "rule", "swap_epoch": "fired"}
    return keys.merge(rows, on="seed").rename(columns=names)[[*traces.KEY, *names.values()]]


def beside_adam(found: Pattern) -> pd.DataFrame:
    """Losses in the end over those of Adam alone at equal passes, a row for a seed and strategy.

    `switched` says whether it ever did. If not, it is Adam with fewer epochs, as what it reads and
    tries is charged.
    """
    ends = found.ends.set_index(["strategy", "seed"])
    losses = ends[[*LOSSES]]
    ratios = losses / losses.loc[ALONE].reindex(losses.index, level="seed")
    ratios = ratios.dropna(axis="columns", how="all").assign(switched=ends.swap_epoch.notna())
    return ratios.reset_index().query("strategy != @ALONE")


def single_peak(found: Pattern) -> str:
    """In words: whether the norm has one hill and comes down again, and where the rules switch."""
    table = peaks(found)
    single, late = table.hills.eq(1), table.peak.gt(LATE * table.epochs)
    others = table.hills[~single].astype(object).replace(0, "no").value_counts(sort=False)
    counts = ", ".join(f"{hills} hills on {seeds}" for hills, seeds in others.items())
    said = f"a single clear hill on {_of(single)} seeds{f' ({counts})' if counts else ''}. In the "
    said += f"end it is at {span(table.end, ratio_text)} of its largest smoothed value"
    if late.any():
        said += f", which on {_of(late)} seeds is in the last tenth of the epochs: it hardly falls"
    when = "; ".join(f"*{name}* {_epochs(table[name])}" for name in (*RULES, RACE))
    return f"{_plainly(single & ~late)} The norm of Adam alone has {said}. Switches: {when}."


def _of(true: pd.Series) -> str:
    return f"**{true.sum()} of {len(true)}**"


def _plainly(true: pd.Series) -> str:
    """An answer in a word or so, by what is true of each seed."""
    if true.any() and not true.all():
        return f"**On {true.sum()} of {len(true)} seeds.**"
    return "**Yes.**" if true.all() else "**No.**"


def _epochs(fired: pd.Series) -> str:
    """The epochs of each seed, missing where a rule never switched."""
    if fired.isna().all():
        return NEVER
    epochs = sorted(fired.dropna())
    every = epochs[:1] if len({*epochs}) == 1 else epochs
    return f"after epoch {', '.join(map(str, every))}" + (
        f", never on {fired.isna().sum()}" if fired.hasnans else ""
    )


def adams_lowest(found: Pattern) -> pd.DataFrame:
    """The lowest validation loss of Adam alone that is known, and its epoch; the index is the seed.

    Known are that of its last weights, and those of strategies that never switched, if the training
    loss says that their weights, too, are on Adam's way, and after which epoch. `of_last` is the
    loss over that of the last weights.
    """
    never = found.ends[found.ends.swap_epoch.isna()].drop(columns="epoch")
    same = never.merge(found.traces[["seed", "epoch", "loss"]], on="seed", suffixes=("", "_seen"))
    same = same[np.isclose(same.loss, same.loss_seen, rtol=1e-5, atol=0)]
    lowest = same.loc[same.groupby("seed").validation_loss.idxmin()].set_index("seed")
    last = found.ends[found.ends.strategy == ALONE].set_index("seed").validation_loss
    of_last = lowest.validation_loss / last.loc[lowest.index]
    return lowest[["epoch", "validation_loss"]].assign(of_last=of_last)


def who_is_ahead(found: Pattern) -> str:
    """In words: which strategies end below Adam alone, in training and in validation loss.

    On seeds on which a strategy never switched it is not counted. Nor is the validation loss of the
    race by validation: it keeps the weights at which that was lowest, and Adam here does not.
    """
    ratios = beside_adam(found)
    counted = ratios[ratios.switched]
    fair = {"loss": counted, "validation_loss": counted[counted.strategy != BY_VALIDATION]}
    said = [
        "Losses in the end are in parts of those of Adam alone at equal passes, not seconds: "
        "medians over the seeds on which a strategy switched, in brackets on how many it is below."
    ]
    said += [_below(fair[column], column) for column in LOSSES if column in ratios]
    if "validation_loss" in ratios:
        said += _overfitted(found, fair["validation_loss"])
    never = ~ratios.groupby("strategy", sort=False).switched.any()
    if never.any():
        names = ", ".join(f"*{name}*" for name in never.index[never])
        said.append(f"Never switched, and so are Adam with fewer epochs: {names}.")
    # by validation Adam without a swap, too, has other weights than its last
    kept = (counted if (counted.strategy == BY_VALIDATION).any() else ratios).query(
        "strategy == @BY_VALIDATION"
    )
    if "validation_loss" in kept and len(kept):
        said.append(
            "Validation losses are those of the last weights. "
            f"*{BY_VALIDATION}* keeps those at which its own is lowest, and so comes to "
            f"{ratio_text(kept.validation_loss.median())} of Adam's last; it is not counted there, "
            "since Adam alone keeps its last ones."
        )
    return " ".join(said)


def _overfitted(found: Pattern, counted: pd.DataFrame) -> list[str]:
    """Where Adam had a lower validation loss before its end, and who is below that; or nothing."""
    lowest = adams_lowest(found)
    ratio, before = lowest.of_last, lowest.of_last < SLIGHTLY
    if not before.any():
        return []
    epochs, middle = lowest.epoch[before], ratio[before].median()
    below = counted.validation_loss < counted.seed.map(ratio)
    every = below.groupby(counted.strategy).all()
    when = " to ".join(map(str, dict.fromkeys((epochs.min(), epochs.max()))))
    how = "overfitted" if middle < MORE else "slightly overfitted"
    return [
        f"But **the last weights of Adam are {how}** on {_of(before)} seeds: after epoch {when} it "
        f"had {ratio_text(middle)} of its last validation loss (median of the lowest that is "
        "known), so that whoever has trained less looks better beside them. On every seed "
        f"{_of(every)} strategies that switched end below this lowest loss of Adam."
    ]


def _below(ratios: pd.DataFrame, column: str) -> str:
    """How many strategies are below Adam on every seed, and the medians of all of them."""
    by = ratios.groupby("strategy")[column]
    below, seeds = by.agg(lambda of: (of < 1).sum()), by.size()
    text = [
        f"*{name}* {ratio_text(middle)} ({below[name]} of {seeds[name]})"
        for name, middle in by.median().sort_values().items()
    ]
    ahead = f"{_of(below == seeds)} strategies that switched end below Adam alone on every seed"
    return f"In {LOSSES[column]} {ahead}. All that switched: {'; '.join(text)}."


def in_validation(curves: pd.DataFrame, passes: int) -> pd.DataFrame:
    """`profiles.validation_ends` of curves of one setting, a row for each method, to read."""
    names = {"end": "validation loss", "lowest": "lowest on the way", "accuracy": "accuracy"}
    names["ratio"] = "passes / Adam's"
    ends = profiles.validation_ends(curves, passes).dropna(axis="columns", how="all")
    ends["ratio"] = ends.ratio.astype(object).where(np.isfinite(ends.ratio), "missed")
    ends["method"] = [METHODS[name].label for name in ends.method]
    return ends[["method", *(name for name in names if name in ends)]].rename(columns=names)


def beside_guessing(validated: pd.DataFrame, classes: int) -> str:
    """A sentence on how far the accuracies of `in_validation` are from those of guessing."""
    low, high = validated.accuracy.min(), validated.accuracy.max()
    ahead = "who is ahead may be chance"
    if high < 2 / classes:
        ahead = "nothing has learned to generalise here, and who is ahead is chance"
    return (
        f"Validation accuracies are {low:.2f} to {high:.2f}, and guessing among {classes} classes "
        f"has {1 / classes:.2f}: {ahead}."
    )


def curvature(found: Pattern) -> pd.DataFrame:
    """The audits in a table to read: a row for each seed and place."""
    names = {"smallest": "λmin", "largest": "λmax", "negative_share": "negative share"}
    columns = ["seed", "at", "epoch", "loss", *names, "convexity"]
    table = found.audits.assign(negative_share=_shares)[columns].rename(columns=names)
    return table.assign(
        at=table["at"].replace("end", "end of Adam"),
        convexity=table.convexity.str.replace("negative", "non-convex"),
    )


def _shares(audits: pd.DataFrame) -> pd.Series:
    shares = audits[["negative_share", "negative_share_error"]].map("{:.2g}".format)
    return shares.agg(" ± ".join, axis=1)


def how_convex(found: Pattern, level: float = 1e-2) -> str:
    """In words: on how many seeds the loss is clearly non-convex at each swap and in the end."""
    said, calm = [], {}
    for at, audits in found.audits.groupby("at", sort=False):
        negative = clearly_negative(audits, level)
        ratio = (audits.smallest / audits[["smallest", "largest"]].abs().max(axis=1)).median()
        where = "where Adam ends" if at == "end" else f"where *{at}* switches"
        if not negative.any():
            calm[where] = audits
        seeds = ", ".join(map(str, audits.seed[audits.convexity == Convexity.UNDECIDED]))
        more = f"undecided: seed {seeds}; " * bool(seeds) + "median of λmin/λmax: "
        said.append(f"{where} on {_of(negative)} seeds ({more}{profiles.short(ratio, 2)})")
    where = "At all places" if len(calm) == len(said) else f"Only {' and '.join(calm)}"
    text = (
        f"**{f'{where} no seed is clearly non-convex' if calm else 'No'}.** The loss is clearly "
        f"non-convex, which is to say that λmin is below \N{MINUS SIGN}{level:g} times the largest "
        f"|λ|, {'; '.join(said)}."
    )
    if not calm:
        return text
    audits = pd.concat(calm.values())
    return (
        f"{text} Where it is not clearly so, it is not shown to be convex: λmin is negative in "
        f"{_of(audits.smallest < 0)} audits there, and the negative eigenvalues are up to "
        f"{_shares(audits)[audits.negative_share.idxmax()]} of the sum of all |λ|."
    )


def rate_in_words(adam: AdamSettings) -> str:
    """A sentence on Adam's learning rate in a notebook's own runs and in `KEPT` ones."""
    here, kept = adam.learning_rate, AdamSettings().learning_rate
    where = "these and the kept runs"
    if here != kept:
        where = f"the kept runs, {here:g} in these"
    return (
        f"Adam's learning rate is {kept:g}, torch's default, in {where}. It was not tuned: a tuned "
        "Adam may end lower."
    )


def answers(found: Pattern) -> str:
    """All that is asked of a problem, answered in words, in Markdown."""
    asked = {
        "One peak?": single_peak,
        "A convex region?": how_convex,
        "Is the second phase ahead?": who_is_ahead,
    }
    return "\n\n".join(f"**{question}** {answer(found)}" for question, answer in asked.items())
