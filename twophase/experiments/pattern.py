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

import pandas as pd

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.errors import InputError, check_integer
from twophase.experiments import branches, reached, runs, traces
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.convexity_audit import clearly_negative
from twophase.experiments.executors import ALONE as ONE_BY_ONE
from twophase.experiments.executors import Executor
from twophase.experiments.files import committed_table, write_atomically
from twophase.experiments.hessian import Hessian
from twophase.experiments.statistics import ratio_text
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
DEFAULT_AT_SHARE = "three tenths"
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
}
# columns of a table of ends, and what they are called
LOSSES = {"loss": "training loss", "validation_loss": "validation loss"}


class Pattern(NamedTuple):
    """What was found on one problem, as tables.

    ends: a row for each seed and strategy; see `reached.End`, and `swap_epoch`.
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
        "race by validation": replace(raced, keep="validation"),
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
    history, summary = runs.read(done.folder)
    named = {"seed": done.config.seed, "strategy": strategy, "swap_epoch": summary["swap_epoch"]}
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
    """A row for each problem, by its name: one hill or more, what is convex, and who is ahead.

    On how many seeds the norm of Adam alone has a single clear hill, and the Hessian a clearly
    negative eigenvalue where Adam ends; then losses in the end, training and validation, in units
    of those of Adam alone at equal passes, medians over the seeds.
    """
    shown = {
        RACE: "the race",
        DEFAULT_AT_SHARE: "default second phase",
        CG: "CG",
    }
    rows = []
    for name, one in found.items():
        seeds, hills = one.ends.seed.nunique(), peaks(one).hills
        convex = clearly_negative(one.audits[one.audits["at"] == "end"])
        row = {"problem": name, "single hill": f"{(hills == 1).sum()} of {seeds}"}
        row["clearly non-convex in the end"] = f"{convex.sum()} of {seeds}"
        medians = beside_adam(one).groupby("strategy")[[*LOSSES]].median()
        rows.append(
            row
            | {
                f"{words}: training, validation": ", ".join(map(ratio_text, medians.loc[strategy]))
                for strategy, words in shown.items()
            }
        )
    return pd.DataFrame(rows)


def ends(found: Pattern, seed: int) -> pd.DataFrame:
    """What each strategy of a seed has come to, in a table to read."""
    columns = ["strategy", "swap_epoch", "loss", "validation_loss", "spent", "reading", "trials"]
    rows = found.ends[found.ends.seed == seed][columns].astype({"swap_epoch": "Int64"})
    rows = rows.dropna(axis="columns", how="all").reset_index(drop=True)
    return rows.rename(columns=lambda name: name.replace("_", " "))


def medians(found: Pattern) -> pd.DataFrame:
    """For each strategy the medians over the seeds of the losses in the end."""
    return found.ends.groupby("strategy", sort=False)[[*LOSSES]].median().rename(columns=LOSSES)


def peaks(found: Pattern) -> pd.DataFrame:
    """For each seed the hills of Adam's norm, its peak, and the epochs at which rules switch.

    A hill rises from what is before it by half, and falls again by as much; see `traces.hills`.
    """
    rows = []
    for seed, trace in found.traces.groupby("seed"):
        swaps = found.ends[found.ends.seed == seed].set_index("strategy").swap_epoch
        rows.append(
            {"seed": seed, "epochs": len(trace), "hills": len(traces.hills(trace.grad_norm))}
            | {"largest norm": traces.peak_epoch(trace.grad_norm)}
            | {name: swaps[name] for name in (*RULES, RACE)}
        )
    return pd.DataFrame(rows).astype(dict.fromkeys([*RULES, RACE], "Int64"))


def beside_adam(found: Pattern) -> pd.DataFrame:
    """Losses in the end over those of Adam alone at equal passes, a row for a seed and strategy."""
    ends = found.ends.set_index(["strategy", "seed"])[["loss", "validation_loss"]]
    ratios = ends / ends.loc[ALONE].reindex(ends.index, level="seed")
    return ratios.dropna(axis="columns", how="all").reset_index().query("strategy != @ALONE")


def single_peak(found: Pattern) -> str:
    """In words: whether the norm has one hill, and where the rules switch."""
    table = peaks(found)
    others = sorted(table.hills[table.hills != 1])
    said = f"a single hill on **{(table.hills == 1).sum()} of {len(table)}** seeds"
    said += f" ({', '.join(map(str, others))} on the others)" if others else ""
    when = [f"*{name}* {_epochs(table[name])}" for name in (*RULES, RACE)]
    return f"The norm of Adam alone has {said}. Switches: {'; '.join(when)}."


def _epochs(fired: pd.Series) -> str:
    """The epochs of each seed, missing where a rule never switched."""
    if fired.isna().all():
        return "never"
    epochs = ", ".join(map(str, sorted(fired.dropna())))
    return f"after epoch {epochs}" + (f", never on {fired.isna().sum()}" if fired.hasnans else "")


def who_is_ahead(found: Pattern) -> str:
    """In words: which strategies end below Adam alone, in training and in validation loss."""
    ratios = beside_adam(found)
    said = []
    for column, name in (("loss", "training"), ("validation_loss", "validation")):
        if column not in ratios:
            continue
        by = ratios.groupby("strategy", sort=False)[column]
        best = by.median().idxmin()
        of = {chosen: by.get_group(chosen) for chosen in (best, RACE, CG)}
        words = [
            f"*{of}* **{r.median():.2g}** ({(r < 1).sum()} of {len(r)})" for of, r in of.items()
        ]
        said.append(f"in {name} loss the lowest is {words[0]}; {'; '.join(words[1:])}")
    ends = ". ".join(one[0].upper() + one[1:] for one in said)
    return (
        f"{ends}: in units of Adam's alone at equal passes, in brackets on how many seeds below it."
    )


def curvature(found: Pattern) -> pd.DataFrame:
    """The audits in a table to read: a row for each seed and place."""
    names = {"smallest": "λmin", "largest": "λmax", "negative_share": "share of negative curvature"}
    columns = ["seed", "at", "epoch", "loss", *names, "convexity"]
    return found.audits[columns].rename(columns=names)


def how_convex(found: Pattern, level: float = 1e-2) -> str:
    """In words: on how many seeds the loss is clearly non-convex at each swap and in the end."""
    said = []
    for at, audits in found.audits.groupby("at", sort=False):
        negative = int(clearly_negative(audits, level).sum())
        ratio = (audits.smallest / audits[["smallest", "largest"]].abs().max(axis=1)).median()
        where = "where Adam ends" if at == "end" else f"where *{at}* switches"
        said.append(
            f"{where} on **{negative} of {len(audits)}** seeds (median of λmin/λmax: {ratio:.2g})"
        )
    return f"The smallest eigenvalue is clearly negative {'; '.join(said)}."
