"""What the overdetermination Q = K M / P says of the gap between training and validation.

The paper (section 4) expects a small gap where there are many constraints per parameter. Networks
of many sizes are trained on subsets of many sizes, by Adam alone and by both phases, at equal
passes; the gap is the validation loss minus the training loss of the weights that are kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
from scipy.stats import spearmanr

from twophase.adam import AdamSettings
from twophase.errors import check_integer
from twophase.experiments import branches, pattern, reached, runs
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.executors import ALONE as ONE_BY_ONE
from twophase.experiments.executors import Executor
from twophase.problems.problem import ImageProblem

ADAM, SWAP, RACE = "Adam alone", "swap at three tenths", "race"
STRATEGIES = (ADAM, SWAP, RACE)
# Digits that a network is trained on, and images of MNIST; Q from 0.1 to 100 in all.
SIZES = {
    "digits": {
        "mlp-4": (4, 16, 64, 256, 1024),
        "mlp-16": (12, 48, 192, 768),
        "vit-nomlp-wkewq-wvwo1": (48, 192),
        "vit-nomlp-wkewq": (48, 192),
        "vit-nomlp": (48, 192),
        "vit-mlp": (48, 192),
        "vgg5-max-relu": (48, 192),
    },
    "mnist": {"mlp-4": (1024, 3200), "mlp-16": (1024,)},
}


def problems(
    datasets: Iterable[str], models: Sequence[str] | None = None, most: int | None = None
) -> list[ImageProblem]:
    """The problems of `SIZES`, those of some data sets, networks, and at most so many examples."""
    return [
        ImageProblem(dataset, model, examples)
        for dataset in datasets
        for model, sizes in SIZES[dataset].items()
        for examples in sizes
        if (models is None or model in models) and (most is None or examples <= most)
    ]


def strategies(config: RunConfig) -> dict[str, RunConfig]:
    """Adam alone, both phases after a fixed share of the epochs, and the library's default."""
    swapped = replace(config, switch=pattern.at_share(config), fallback=None)
    return dict(zip(STRATEGIES, (config.trunk(), swapped, config), strict=True))


def run(
    chosen: Sequence[ImageProblem],
    passes: int,
    seeds: int,
    place: branches.Place,
    executor: Executor = ONE_BY_ONE,
) -> pd.DataFrame:
    """Train what is not finished, in so many passes each.

    Adam's batches have 64 examples, or an eighth of a small subset, so that it takes some steps in
    an epoch.
    A row for each problem, seed and strategy: dataset, model, examples, q, loss and
    validation_loss of the weights that are kept. `TwoPhaseError` if a run failed.
    """
    check_integer("passes", passes, 30)
    named = [
        (strategy, config)
        for problem, seed in product(chosen, range(check_integer("seeds", seeds, 1, MOST_SEEDS)))
        for strategy, config in strategies(_config(problem, passes, seed)).items()
    ]
    done = branches.run([config for _, config in named], place, executor)
    branches.check(done)
    rows = []
    for (strategy, config), one in zip(named, done, strict=True):
        history, summary = runs.read(one.folder)
        end, problem = reached.end(history, config), config.problem
        key = problem.dataset, problem.model, problem.train_examples, summary["q"]
        rows.append((*key, config.seed, strategy, end.loss, end.validation_loss))
    columns = ["dataset", "model", "examples", "q", "seed", "strategy", "loss", "validation_loss"]
    return pd.DataFrame(rows, columns=columns)


def _config(problem: ImageProblem, passes: int, seed: int) -> RunConfig:
    adam = AdamSettings(batch_size=max(1, min(64, problem.train_examples // 8)))
    return replace(pattern.config(problem, passes, adam), seed=seed)


def with_gap(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column gap: validation loss minus training loss."""
    return table.assign(gap=table.validation_loss - table.loss)


def _by_q(q: pd.Series | pd.Index) -> dict[str, pd.Series]:
    parts = {"below 1": q < 1, "from 1 to 10": (q >= 1) & (q < 10), "of 10 or more": q >= 10}
    return {name: chosen for name, chosen in parts.items() if chosen.any()}


def gap_in_words(table: pd.DataFrame) -> str:
    """For each strategy how the gap goes with Q: rank correlation, and medians by decades of Q."""
    found = with_gap(table)
    said = []
    for strategy in STRATEGIES:
        rows = found[found.strategy == strategy]
        medians = {name: rows.gap[chosen].median() for name, chosen in _by_q(rows.q).items()}
        words = ", ".join(f"{gap:.2g} at Q {name}" for name, gap in medians.items())
        rank = spearmanr(rows.q, rows.gap).statistic
        said.append(f"of *{strategy}* **{rank:.2f}** (median gap {words})")
    return f"The rank correlation of gap and Q is {'; '.join(said)}."


def beside_adam(table: pd.DataFrame) -> pd.DataFrame:
    """Losses over those of Adam alone, a row for each problem, seed and other strategy."""
    index = ["dataset", "model", "examples", "q", "seed"]
    losses = ["loss", "validation_loss"]
    alone = table[table.strategy == ADAM].set_index(index)[losses]
    others = table[table.strategy != ADAM].set_index([*index, "strategy"])[losses]
    return (others / alone).reset_index()


def by_setting(table: pd.DataFrame) -> pd.DataFrame:
    """Medians over the seeds, a row for each network and subset in the order of Q."""
    key = ["dataset", "model", "examples", "q"]
    losses = ["loss", "validation_loss"]
    rows = table[table.strategy.isin([ADAM, SWAP])]
    wide = rows.pivot_table(losses, key, "strategy", "median")[losses]
    names = {"loss": "training", "validation_loss": "validation"}
    wide.columns = [f"{names[of]}, {strategy}" for of, strategy in wide.columns]
    return wide.reset_index().rename(columns={"q": "Q"}).sort_values("Q", ignore_index=True)


def phases_in_words(table: pd.DataFrame) -> str:
    """How often both phases end lower than Adam alone, in training and validation, by Q."""
    said = []
    for strategy, rows in beside_adam(table).groupby("strategy", sort=False):
        words = [
            f"{(rows.loss[of] < 1).sum()} and {(rows.validation_loss[of] < 1).sum()} of {of.sum()} "
            f"at Q {name}"
            for name, of in _by_q(rows.q).items()
        ]
        said.append(f"*{strategy}* in {', '.join(words)}")
    how = "in training loss and in validation loss"
    return f"At equal passes they end below Adam alone, {how}: {'; '.join(said)}."
