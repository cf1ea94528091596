"""The strategies of the paper's Figure 6: Adam, CG, and one after the other, from one seed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from twophase.automatic import DEFAULT
from twophase.experiments import branches, reached, runs
from twophase.experiments.config import RunConfig
from twophase.experiments.statistics import ratio_text
from twophase.record import SECOND
from twophase.switching.rules import SwitchRule, first_switch
from twophase.training import Fit

ADAM, CG = "Adam", "CG"
BOTH, WITH_DEFAULT = "Adam, then CG", "Adam, then default"


class Outcome(NamedTuple):
    """The history of a strategy's run, a row per epoch, and its summary; see `runs.read`.

    `spent` has what it took up to each epoch, see `reached.charged`.
    """

    history: pd.DataFrame
    summary: dict[str, Any]
    spent: pd.DataFrame


def configs(paper: RunConfig) -> dict[str, RunConfig]:
    """The runs of the strategies, by their names.

    `paper` is the run of Adam, then CG. The others are Adam alone, CG alone, and Adam with the
    library's default second phase after the same swap. All start from the same weights.
    """
    return {
        ADAM: paper.trunk(),
        BOTH: paper,
        WITH_DEFAULT: replace(paper, second=DEFAULT),
        # the same run whatever the swap of the others
        CG: replace(paper, adam=None, switch=RunConfig().switch),
    }


def run(chosen: Mapping[str, RunConfig], place: branches.Place) -> dict[str, Outcome]:
    """Run what is not finished of the strategies; then `TwoPhaseError` if one of them failed."""
    done = branches.run(list(chosen.values()), place)
    branches.check(done)
    found = {}
    for name, one in zip(chosen, done, strict=True):
        history, summary = runs.read(one.folder)
        found[name] = Outcome(history, summary, reached.charged(history, one.config))
    return found


def lines(outcomes: Mapping[str, Outcome]) -> dict[str, tuple[str, slice]]:
    """The lines of Figure 6: for each name the strategy that it belongs to, and its epochs.

    The second halves begin with the last epoch before the swap, where the first halves end. Without
    a swap there are only Adam and CG; a run that ended before the swap has no second half.
    """
    swap = outcomes[BOTH].summary["swap_epoch"]
    if swap is None:
        return {name: (name, slice(None)) for name in (ADAM, CG)}
    second = {f"{ADAM} goes on": ADAM, f"{CG} goes on": CG}
    second |= {name: name for name in (BOTH, WITH_DEFAULT)}
    found = {name: (name, slice(0, swap)) for name in (ADAM, CG)}
    return found | {
        line: (name, slice(swap - 1, None))
        for line, name in second.items()
        if len(outcomes[name].history) > swap
    }


def course(outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """How each run went and what it cost; the last columns are medians over the second phase."""
    rows = []
    for name, (history, summary, _) in outcomes.items():
        second = history[history.phase == SECOND]
        rows.append(
            {"strategy": name, "ended": summary["status"]}
            | {"swap after": str(summary["swap_epoch"] or "–"), "epochs": len(history)}
            | {"passes": history.passes.sum(), "seconds": history.seconds.sum()}
            | {"passes per iteration": second.passes.median()}
            | {"trials per iteration": second.evaluations.median()}
        )
    return pd.DataFrame(rows)


def ends(outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """Losses and accuracies of each run's final weights, see `twophase.Record`, and its passes."""
    columns = {
        **{"train loss": "train_loss", "train acc.": "train_accuracy"},
        **{"val. loss": "validation_loss", "val. acc.": "validation_accuracy"},
    }
    rows = [
        {"strategy": name, "passes": one.history.passes.sum()}
        | {label: one.summary[of] for label, of in columns.items()}
        for name, one in outcomes.items()
    ]
    return pd.DataFrame(rows)


def ends_beside_cost(outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """`ends` with the seconds, and the validation loss at the passes of Adam alone.

    The latter is of the weights with the lowest training loss by then, see `at_equal_cost`.
    """
    budget = outcomes[ADAM].spent.passes.iloc[-1]
    inside = [one.history[one.spent.passes <= budget] for one in outcomes.values()]
    lowest = [of.sort_values("train_loss").validation_loss.head(1) for of in inside]
    found = ends(outcomes)
    found.insert(2, "seconds", [one.history.seconds.sum() for one in outcomes.values()])
    return found.assign(**{"val. loss, equal passes": [of.min() for of in lowest]})


def at_equal_cost(outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """The lowest training loss within the epochs, passes and seconds that Adam alone spent.

    A row for each strategy, by its name. What its switch reads is charged. A run that ended before
    counts with what it had reached; NaN where its first epoch alone cost more.
    """
    spent = {
        name: one.spent.assign(epochs=one.history.epoch, train_loss=one.history.train_loss)
        for name, one in outcomes.items()
    }
    budget = spent[ADAM].iloc[-1]
    lowest = {
        cost: {name: of.train_loss[of[cost] <= budget[cost]].min() for name, of in spent.items()}
        for cost in ("epochs", "passes", "seconds")
    }
    return pd.DataFrame(lowest)


def beside_adam(outcomes: Mapping[str, Outcome], name: str) -> str:
    """A sentence on how low a strategy that begins with Adam comes, beside Adam at equal cost.

    Not at equal epochs where its passes were spent before; at the seconds of who ended sooner.
    """
    history, summary, _ = outcomes[name]
    if summary["swap_epoch"] is None:
        return "There was no swap, so that this is the run of Adam alone"
    lowest = at_equal_cost(outcomes)
    if len(history) < len(outcomes[ADAM].history) and summary["status"] == "completed":
        lowest = lowest.drop(columns="epochs")
    both = [one.spent.join(one.history.train_loss) for one in (outcomes[name], outcomes[ADAM])]
    sooner = min(one.seconds.iloc[-1] for one in both)
    by_then = [one.train_loss[one.seconds <= sooner].min() for one in both]
    lowest.loc[[name, ADAM], "seconds"] = by_then
    parts = []
    for cost, ratio in (lowest.loc[name] / lowest.loc[ADAM]).items():
        word = "lower" if ratio < 1 else "higher" if ratio > 1 else "equal"
        parts.append(f"at equal {cost} {ratio:.3g} times Adam's, {word}")
    return f"Its training loss is {'; '.join(parts)}"


def beside_alone(ends: pd.DataFrame, alone: str, others: Sequence[str], apart: float = 0.1) -> str:
    """Whether trainings of a toy with a way back end where Adam alone does, in words.

    `ends` has columns C, strategy, x and "final loss", a row for each training; x within `apart`
    are the same place.
    """
    x, loss = (ends.pivot(index="C", columns="strategy", values=of) for of in ("x", "final loss"))
    same = x[list(others)].sub(x[alone], axis=0).abs().lt(apart).all(axis=1)
    said = [f"$C = {c:.2f}$" for c in x.index[same]]
    text = f"With the way back all end where {alone} does for {', '.join(said) or 'no $C$'}."
    for c in x.index[~same]:
        losses = dict.fromkeys(f"{of:.2g}" for of in loss.loc[c, list(others)].sort_values())
        text += (
            f" For $C = {c:.2f}$ not all do: they end with a loss of {' and '.join(losses)}, "
            f"{alone} with one of {loss.loc[c, alone]:.2g}."
        )
    return text


def results_beside(results: Mapping[str, Fit], alone: str) -> pd.DataFrame:
    """Trainings by `fit` beside one of them, in parts of its losses, with passes and seconds.

    Training and validation losses of the weights that are kept, and the lowest training loss within
    the passes of `alone`.
    """
    reference = results[alone]
    budget = reference.history.passes.sum()
    rows = []
    for name, one in results.items():
        inside = one.history.train_loss[one.history.passes.cumsum() <= budget].min()
        ratios = {
            "training": one.final.train_loss / reference.final.train_loss,
            "training, equal passes": inside / reference.history.train_loss.min(),
            "validation": one.final.validation_loss / reference.final.validation_loss,
        }
        costs = {"passes": one.history.passes.sum(), "seconds": one.history.seconds.sum()}
        texts = {kind: ratio_text(ratio) for kind, ratio in ratios.items()}
        rows.append({"strategy": name} | texts | costs)
    return pd.DataFrame(rows)


def norm_in_words(history: pd.DataFrame, rule: SwitchRule) -> str:
    """Sentences about the gradient norm of a run of Adam alone: its peak, its zigzag, the rule.

    `history` has columns train_loss and grad_norm, a row per epoch, and a plain index.
    """
    norms, top = history.grad_norm, int(history.grad_norm.idxmax())
    change = norms.diff()
    early, late = change[1 : top + 1], change[top + 1 :]
    zigzag = [
        f"{word} in {count} of the {len(epochs)} epoch{'s' * (len(epochs) > 1)} {where}"
        for word, count, epochs, where in (
            ("falls", (early < 0).sum(), early, "up to the largest value"),
            ("rises", (late > 0).sum(), late, "after it"),
        )
        if len(epochs)
    ]
    fired = first_switch(rule, branches.trace(history))
    firing = "never switches"
    if fired is not None:
        away = fired - (top + 1)
        epochs = f"{abs(away)} epoch{'s' * (abs(away) != 1)} {'before' if away < 0 else 'after'}"
        firing = f"switches after epoch **{fired}**, {epochs if away else 'at'} the largest value"
    shape = ""
    if top == 0:
        shape = " It is largest at the start, so that it does not rise to a peak."
    elif len(late) < 0.1 * len(norms):
        shape = " It is largest near the end, so that no fall behind a peak can be seen."
    return (
        f"Under Adam alone the norm is {norms[0]:.3g} after the first epoch, largest after epoch "
        f"**{top + 1}** of {len(norms)} with {norms[top]:.3g}, and {norms.iloc[-1]:.3g} at the "
        f"end.{shape} It {' and '.join(zigzag)}. The rule `{rule}` {firing}."
    )


def batches_in_words(batch_size: int, examples: int) -> str:
    """A sentence on how many steps Adam makes in an epoch."""
    if batch_size < examples:
        return f"Batches of {batch_size} make {-(-examples // batch_size)} steps of Adam an epoch."
    return (
        f"A batch of {batch_size} holds all {examples} examples: here Adam is full-batch Adam, "
        "with one step an epoch and none of the noise of mini-batches."
    )
