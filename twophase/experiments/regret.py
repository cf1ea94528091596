"""Regret of switch rules: what a rule loses against the best fixed swap, at equal passes.

For a case (problem, Adam, passes) and a seed, all swaps leave one trajectory of Adam. The regret of
a rule is

    log10 max(L, floor) − log10 max(L*, floor)

with L the loss of the weights that its training ends with when the passes are spent, what it reads,
its trials and its failed second phases included; L* the lowest one over fixed swaps after the
epochs of `GRID` and over Adam alone; and `FLOORS` times the loss after the first epoch of Adam as
the floor, below which all losses are alike: there rounding and luck decide. Float32 resolves losses
of order one to 6e-8. A regret can be below 0, where a rule finds a better epoch than the grid has,
or goes back in time.

Half of the cases are set aside (`held_out`). The race was designed on `mlp-16`, `mlp-4`, `vit 256`,
`regression` and the two with cross-entropy; when its late trial is won, and what a stall near the
end means, on `vit-mlp 192`, `fashion mlp-8` and `gpt-10k 64`, too, which had been set aside until
then; that a second phase which has converged near Adam's loss may be on a plateau, on `toy 0.4`.
Of those that still are, all but `UNSEEN` had been seen under an earlier form.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from twophase.adam import AdamSettings
from twophase.errors import check_choice, check_integer
from twophase.experiments import branches, reached, runs
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.executors import ALONE, Executor
from twophase.experiments.traces import peak_epoch
from twophase.monitor import Exact, FromBatches, Monitor
from twophase.objective import GRADIENT_PASSES
from twophase.problems.problem import (
    ImageProblem,
    PhysicsProblem,
    Problem,
    TextProblem,
    ToyProblem,
)
from twophase.switching import (
    Fallback,
    FixedEpoch,
    GradientNormPeak,
    GradientThreshold,
    LossVariance,
    NormVersusLoss,
    Plateau,
    PositiveCurvature,
    ProjectedRate,
    Race,
    RelativeImprovement,
    SignalToNoise,
    SmoothedNormPeak,
    SwitchRule,
)

GRID = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
FLOORS = {"float32": 1e-8, "float64": 1e-12}
UNSEEN = (
    "vit-nomlp-wkewq 256",
    "cifar10 vit 512",
    "resnet8 96",
    "fashion mlp-4",
    "poisson float32",
)
NONE, FIXED, BATCHES = "none", "swap at ", " from batches"


@dataclass(frozen=True)
class Case:
    """A problem, how Adam trains it, and the passes over the data that a training may spend."""

    problem: Problem
    passes: int = 900
    adam: AdamSettings = field(default_factory=lambda: AdamSettings(batch_size=64))
    dtype: str = "float32"
    held_out: bool = False

    def config(self, seed: int) -> RunConfig:
        """The training of a seed, with the library's defaults."""
        return RunConfig(
            self.problem,
            self.passes // GRADIENT_PASSES,
            self.adam,
            budget=self.passes,
            seed=seed,
            dtype=self.dtype,
        )

    @property
    def grid(self) -> list[int]:
        """The epochs of the fixed swaps."""
        return [epoch for epoch in GRID if epoch * GRADIENT_PASSES < 0.9 * self.passes]


def _images(model: str, examples: int | None = None, loss: str = "mse", data: str = "digits"):
    return ImageProblem(data, model, examples, loss=loss)


def _adam(batch_size: int | None, rate: float = 1e-3) -> AdamSettings:
    return AdamSettings(rate, batch_size)


_SMALL = "vit-nomlp-wkewq-wvwo1"
CASES: dict[str, Case] = {
    # not set aside
    "vit 256": Case(_images(_SMALL, 256)),
    "vit-nomlp 384": Case(_images("vit-nomlp", 384), 600, _adam(32)),
    "vgg5 192": Case(_images("vgg5-max-relu", 192), 600),
    "mlp-16": Case(_images("mlp-16")),
    "mlp-16 entropy": Case(_images("mlp-16", loss="cross-entropy"), 900, _adam(256, 3e-3)),
    "mlp-4": Case(_images("mlp-4")),
    "mlp-4 entropy": Case(_images("mlp-4", loss="cross-entropy"), 900, _adam(128)),
    "regression": Case(PhysicsProblem("regression"), 900, _adam(64), "float64"),
    "poisson": Case(PhysicsProblem("poisson"), 3000, _adam(None), "float64"),
    "toy 0.55": Case(ToyProblem(0.55), 600, _adam(None, 0.02), "float64"),
    "toy 0.4": Case(ToyProblem(0.4), 600, _adam(None, 0.02), "float64"),
    "vit-mlp 192": Case(_images("vit-mlp", 192), 600, _adam(64)),
    "fashion mlp-8": Case(
        ImageProblem("fashion-mnist", "mlp-8", 2048, 1000, "cross-entropy"), 900, _adam(128, 3e-3)
    ),
    "gpt-10k 64": Case(
        TextProblem(model="gpt-10k", context=32, train_examples=64, validation_examples=64),
        600,
        _adam(16),
    ),
    # set aside
    "vit entropy 384": Case(
        _images(_SMALL, 384, "cross-entropy"), 900, _adam(128, 3e-3), held_out=True
    ),
    "vit-nomlp-wkewq 256": Case(_images("vit-nomlp-wkewq", 256), 600, held_out=True),
    "vgg5 entropy 192": Case(
        _images("vgg5-max-relu", 192, "cross-entropy"), 600, _adam(32), held_out=True
    ),
    "mlp-8 slow": Case(_images("mlp-8"), 1500, _adam(32, 3e-4), held_out=True),
    "mlp-8 entropy": Case(
        _images("mlp-8", loss="cross-entropy"), 900, _adam(512, 1e-2), held_out=True
    ),
    "mnist mlp-4": Case(_images("mlp-4", 4096, data="mnist"), 900, _adam(256), held_out=True),
    "mnist mlp-16": Case(
        _images("mlp-16", 2048, "cross-entropy", "mnist"), 900, _adam(128), held_out=True
    ),
    "regression float32": Case(PhysicsProblem("regression"), 900, _adam(None), held_out=True),
    "burgers": Case(PhysicsProblem("burgers"), 1200, _adam(None), "float64", held_out=True),
    "fashion mlp-4": Case(
        ImageProblem("fashion-mnist", "mlp-4", 1024, 1000), 900, _adam(32), held_out=True
    ),
    "poisson float32": Case(PhysicsProblem("poisson"), 900, _adam(None), held_out=True),
    "mlp-16 128": Case(_images("mlp-16", 128), held_out=True),
    "mlp-16 512": Case(_images("mlp-16", 512), held_out=True),
    "cifar10 vit 512": Case(
        ImageProblem("cifar10", _SMALL, 512, 1000), 600, _adam(32), held_out=True
    ),
    "resnet8 96": Case(
        ImageProblem("digits", "resnet8-groupnorm", 96, 96), 450, _adam(16), held_out=True
    ),
}


class Rule(NamedTuple):
    """A rule under test, made for a case: what it does in words, the way back, and what is kept."""

    of: Callable[[Case], SwitchRule | Race]
    words: str
    fallback: Fallback | None = None
    keep: str = "train"  # by which loss weights are kept
    # whether it decides by losses and norms alone, without a trial, and not knowing the length
    looks: bool = False
    monitor: Monitor = Exact()  # how it knows loss and norm

    def suits(self, case: Case) -> bool:
        """Whether the case has what the rule looks at: validation examples, mini-batches."""
        batches = case.adam.batch_size is not None
        return (self.keep == "train" or case.problem.validates) and (self.monitor.exact or batches)


def _looking(rule: Callable[[], SwitchRule], words: str, fallback: Fallback | None = None) -> Rule:
    return Rule(lambda case: rule(), words, fallback, looks=True)


def _from_batches(name: str, rule: Rule) -> Rule:
    words = f"as {name}, by the means of the mini-batches, which cost no passes"
    return rule._replace(words=words, monitor=FromBatches())


def _share(share: float, name: str) -> Rule:
    return Rule(
        lambda case: FixedEpoch(max(1, round(share * case.passes / GRADIENT_PASSES))),
        f"after {name} of the epochs that Adam alone would have",
    )


_LITERAL = f"at the first norm of {GradientNormPeak.factor:g} of the largest so far (Algorithm 1)"
_SMOOTHED = "after a clear rise and fall of the smoothed norm"
RULES: dict[str, Rule] = {
    "race": Rule(lambda case: Race(), "trials from Adam's weights, with the way back", Fallback()),
    "race without way back": Rule(lambda case: Race(), "as race, without the way back"),
    "race by validation": Rule(
        lambda case: Race(), "as race, judged by the validation loss", Fallback(), "validation"
    ),
    "literal": _looking(GradientNormPeak, _LITERAL),
    "literal with way back": _looking(
        GradientNormPeak, "as literal, with the way back", Fallback()
    ),
    "smoothed": _looking(SmoothedNormPeak, _SMOOTHED),
    "smoothed with way back": _looking(
        SmoothedNormPeak, "as smoothed, with the way back", Fallback()
    ),
    "norm over loss": _looking(NormVersusLoss, f"{_SMOOTHED}, in the order of falling losses"),
    "a tenth": _share(0.1, "a tenth"),
    "a third": _share(1 / 3, "a third"),
    "two thirds": _share(2 / 3, "two thirds"),
    "plateau": _looking(
        Plateau, f"no lower loss for {Plateau.patience} epochs (as torch's ReduceLROnPlateau)"
    ),
    "loss variance": _looking(
        LossVariance,
        f"the variance of the last {LossVariance.window} losses is below "
        f"{LossVariance.threshold:g} (as the library opifex)",
    ),
    "relative improvement": _looking(
        RelativeImprovement,
        f"the mean loss of {RelativeImprovement.window} epochs is less than "
        f"{100 * RelativeImprovement.threshold:g} % below that of as many before (as opifex)",
    ),
    "positive curvature": _looking(
        PositiveCurvature,
        f"the curvature along the last {PositiveCurvature.window} epochs was positive",
    ),
    "projected rate": _looking(
        ProjectedRate, "the rate that gradient descent would need has settled (SWATS)"
    ),
    "signal to noise": _looking(
        SignalToNoise,
        f"the gradients' ratio of signal to noise is {SignalToNoise.rise:g} times its lowest",
    ),
    "gradient threshold": _looking(
        GradientThreshold, f"the norm is below {GradientThreshold.threshold:g} (as opifex)"
    ),
}
RULES |= {
    f"{name}{BATCHES}": _from_batches(name, RULES[name]) for name in ("race", "literal", "smoothed")
}


def entries(case: Case, seed: int, rules: Iterable[str]) -> dict[str, RunConfig]:
    """The trainings of a case and a seed: fixed swaps, Adam alone, and rules, by their names."""
    config = case.config(seed)
    fixed = {
        f"{FIXED}{epoch}": {"switch": FixedEpoch(epoch), "fallback": None} for epoch in case.grid
    }
    by_rule: dict[str, dict[str, Any]] = {}
    for name in rules:
        rule = RULES[check_choice("rule", name, RULES)]
        if rule.suits(case):
            by_rule[name] = {"switch": rule.of(case), "fallback": rule.fallback}
            by_rule[name] |= {"keep": rule.keep, "monitor": rule.monitor}
    trained = {name: replace(config, **changes) for name, changes in (fixed | by_rule).items()}
    return {NONE: config.trunk()} | trained


def run(
    names: Sequence[str] | None,
    rules: Sequence[str] | None,
    seeds: int,
    place: branches.Place,
    executor: Executor = ALONE,
    passes: int | None = None,
    write: Callable[[pd.DataFrame], object] = lambda table: None,
) -> pd.DataFrame:
    """Train what is not finished; a row for each case, seed and training, with its regret.

    `write` is given the table, if it has rows, before `RunsFailed` is raised where some failed.
    `names` are of `CASES` and `rules` of `RULES`, None: all; a training may spend so many `passes`,
    at least 30 (None: those of its case). `InputError` for others. Columns:
    case, held_out, seed, rule (or the fixed swap), q, swap_epoch, epoch, loss, validation_loss,
    spent, reading, trials and returned (passes), peak (of Adam alone, the epoch of the largest
    smoothed norm), regret and validation_regret. A training that failed has none.
    """
    check_integer("seeds", seeds, 1, MOST_SEEDS)
    chosen = {name: CASES[check_choice("case", name, CASES)] for name in names or CASES}
    if passes is not None:
        check_integer("passes", passes, 30)
        chosen = {name: replace(case, passes=passes) for name, case in chosen.items()}
    todo: dict[tuple[str, int, str], RunConfig] = {}
    for (name, case), seed in product(chosen.items(), range(seeds)):
        for rule, config in entries(case, seed, RULES if rules is None else rules).items():
            todo[name, seed, rule] = config
    done = branches.run(list(todo.values()), place, executor)
    rows = [
        {"case": name, "held_out": chosen[name].held_out, "seed": seed, "rule": rule}
        | {"floor": FLOORS[chosen[name].dtype]}
        | _outcome(one, todo[name, seed, rule])
        for (name, seed, rule), one in zip(todo, done, strict=True)
        if not one.error
    ]
    table = with_regret(pd.DataFrame(rows))
    if len(table):
        write(table)
    branches.check(done)
    return table


def _outcome(done: branches.Done, config: RunConfig) -> dict[str, Any]:
    history, summary = runs.read(done.folder)
    end = reached.end(history, config)
    found = {"q": summary["q"], "swap_epoch": end.swap_epoch, "start": history.train_loss.iloc[0]}
    found |= end._asdict()
    return found | {"peak": peak_epoch(history.grad_norm)} if config.second is None else found


def with_regret(table: pd.DataFrame) -> pd.DataFrame:
    """The table with regrets in training and in validation loss."""

    def regrets(group: pd.DataFrame, column: str) -> pd.Series:
        fixed = group.rule.eq(NONE) | group.rule.str.startswith(FIXED)
        floor = group.floor.iloc[0] * group.start.iloc[0]
        values = group[column].clip(lower=floor)
        return values.map(math.log10) - math.log10(values[fixed].min())

    if table.empty:
        return table
    parts = []
    for _, group in table.groupby(["case", "seed"], sort=False):
        group = group.assign(regret=regrets(group, "loss"))
        if group.validation_loss.notna().all():
            group = group.assign(validation_regret=regrets(group, "validation_loss"))
        parts.append(group)
    return pd.concat(parts, ignore_index=True)
