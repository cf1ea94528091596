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
from twophase.experiments import branches, pattern, profiles, reached, runs
from twophase.experiments.config import MOST_SEEDS, RunConfig
from twophase.experiments.executors import ALONE as ONE_BY_ONE
from twophase.experiments.executors import Executor
from twophase.experiments.statistics import ratio_text
from twophase.problems.problem import ImageProblem

ADAM, SWAP, RACE = "Adam alone", "swap at three tenths", "race"
STRATEGIES = (ADAM, SWAP, RACE)
SETTING = ["dataset", "model", "examples", "q", "seed"]
# Digits that a network is trained on, and images of MNIST; Q from 0.003 to 100 in all.
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
    found, said, ranks = with_gap(table), [], []
    for strategy in STRATEGIES:
        rows = found[found.strategy == strategy]
        medians = {name: rows.gap[chosen].median() for name, chosen in _by_q(rows.q).items()}
        words = ", ".join(f"{profiles.short(gap, 2)} at Q {name}" for name, gap in medians.items())
        ranks.append(spearmanr(rows.q, rows.gap).statistic)
        said.append(f"for *{strategy}* **{profiles.short(ranks[-1], 2)}** (median gap {words})")
    most = max(ranks)
    often = "nearly always" if most < -0.8 else "more often than not" if most < -0.3 else "hardly"
    large = table.model[table.q >= 10].unique()
    one = f" All trainings with Q of 10 or more are of one network, {', '.join(large)}."
    return (
        f"A larger Q goes with a smaller gap **{often}**: the rank correlation of gap and Q is "
        f"{'; '.join(said)}.{one * (len(large) == 1)}"
    )


def beside_adam(table: pd.DataFrame) -> pd.DataFrame:
    """Losses over those of Adam alone, a row for each problem, seed and other strategy."""
    losses = ["loss", "validation_loss"]
    alone = table[table.strategy == ADAM].set_index(SETTING)[losses]
    others = table[table.strategy != ADAM].set_index([*SETTING, "strategy"])[losses]
    return (others / alone).reset_index()


def by_setting(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Medians of a loss over the seeds, to read; a row for each network and subset, by Q."""
    wide = table.pivot_table(column, SETTING[:-1], "strategy", "median").sort_index(level="q")
    names = [f"{model}, {n:,} {dataset}" for dataset, model, n, _ in wide.index]
    q = [f"{q:.3g}" for q in wide.index.get_level_values("q")]
    losses = {name: [profiles.short(loss) for loss in wide[name]] for name in STRATEGIES}
    return pd.DataFrame({"network and examples": names, "Q": q} | losses)


def by_q(table: pd.DataFrame) -> pd.DataFrame:
    """To read: for each range of Q and strategy its gaps and losses, and counts beside Adam."""
    found, rows = with_gap(table).set_index(SETTING), []
    alone = found[found.strategy == ADAM]
    for name, chosen in _by_q(found.index.get_level_values("q").to_series(found.index)).items():
        for strategy in STRATEGIES:
            of = found[chosen & (found.strategy == strategy)]
            adam = alone.loc[of.index]
            beside = {
                "gap above Adam's": of.gap > adam.gap,
                "training loss below": of.loss < adam.loss,
                "validation loss below": of.validation_loss < adam.validation_loss,
            }
            row = {"Q": name, "strategy": strategy, "median gap": f"{of.gap.median():.3g}"}
            row |= {"training loss: median": profiles.short(of.loss.median())}
            row |= {"highest": profiles.short(of.loss.max())}
            counts = {words: f"{true.sum()} of {len(of)}" for words, true in beside.items()}
            rows.append(row | (dict.fromkeys(counts, "–") if strategy == ADAM else counts))
    return pd.DataFrame(rows)


def widened_in_words(table: pd.DataFrame) -> str:
    """How often the gap is larger than Adam's where both phases train, and by what factor."""
    gaps = with_gap(table).pivot(index=SETTING, columns="strategy", values="gap")
    wider = {name: gaps[name] > gaps[ADAM] for name in (SWAP, RACE)}
    said = [
        f"by *{name}* in **{true.sum()} of {len(true)}** trainings (median of the ratio: "
        f"{(gaps[name] / gaps[ADAM]).median():.2g})"
        for name, true in wider.items()
    ]
    share = pd.concat(wider.values()).mean()
    plain = (
        "It widens it" if share > 0.9 else "It does not widen it" if share < 0.1 else "It depends"
    )
    return f"{plain}: at equal passes the gap is larger than Adam's {', '.join(said)}."


def fits_in_words(table: pd.DataFrame) -> str:
    """How exactly both phases fit the examples where Q is below 1."""
    below = table[table.q < 1]
    ratios = beside_adam(below).groupby("strategy").loss.max()
    losses = below.groupby("strategy").loss
    said = [
        f"*{name}* comes to {profiles.short(losses.median()[name])} in the median and "
        f"{profiles.short(losses.max()[name])} at worst, and in its worst training beside Adam to "
        f"{ratio_text(ratios[name])} times Adam's loss"
        for name in (SWAP, RACE)
    ]
    return f"Training losses where Q is below 1: {'; '.join(said)}."


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
