"""The strategies of Figure 6: which runs they are, and what is read off, by hand on small cases."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import twophase as tp
from twophase.errors import TwoPhaseError
from twophase.experiments import branches, runs, strategies
from twophase.experiments.config import RunConfig
from twophase.experiments.strategies import ADAM, BOTH, CG, WITH_DEFAULT, Outcome
from twophase.problems.problem import ImageProblem

PROBLEM = ImageProblem(train_examples=16, validation_examples=10)
PAPER = RunConfig(PROBLEM, 4, **tp.PAPER | {"switch": tp.FixedEpoch(2)})


def run(paper, out):
    return strategies.run(strategies.configs(paper), branches.Place(out, root=out, device="cpu"))


def outcome(losses, passes, adam_epochs, swap=None):
    """A run with those losses, as many seconds as passes, and Adam in its first epochs."""
    phases = ["adam"] * adam_epochs + ["second"] * (len(losses) - adam_epochs)
    history = pd.DataFrame({"phase": phases, "train_loss": losses, "passes": passes})
    history = history.assign(epoch=history.index + 1, seconds=history.passes * 1.0)
    trials = [0 if phase == "adam" else n - 3 for phase, n in zip(phases, passes, strict=True)]
    spent = history[["passes", "seconds"]].cumsum()
    summary = {"swap_epoch": swap, "status": "completed"}
    return Outcome(history.assign(evaluations=trials), summary, spent)


@pytest.fixture
def outcomes():
    return {
        ADAM: outcome([0.9, 0.5, 0.2, 0.3], [3, 3, 3, 3], 4),
        BOTH: outcome([0.9, 0.5, 0.4, 0.1], [3, 3, 6, 10], 2, swap=2),
        WITH_DEFAULT: outcome([0.9, 0.5, 0.1], [3, 3, 4], 2, swap=2),
        CG: outcome([0.8], [14], 0),
    }


def test_one_configuration_of_both_phases_gives_all():
    chosen = strategies.configs(PAPER)
    assert chosen[BOTH] == PAPER and chosen[ADAM] == PAPER.trunk()
    assert chosen[WITH_DEFAULT] == replace(PAPER, second=tp.DEFAULT)
    assert chosen[CG].strategy == "second" and chosen[CG].second == PAPER.second
    other = strategies.configs(replace(PAPER, switch=tp.FixedEpoch(3)))
    assert [chosen[name] == other[name] for name in chosen] == [True, False, False, True]


@pytest.mark.slow
def test_all_start_from_one_point_and_share_adams_epochs(tmp_path, monkeypatch):
    found = run(PAPER, tmp_path)
    adam = found[ADAM].history
    for name in (BOTH, WITH_DEFAULT):
        history, summary, _ = found[name]
        assert summary["swap_epoch"] == 2
        # seconds are measured: equal ones were not trained twice
        assert history.seconds[:2].equals(adam.seconds[:2])
        assert history.phase.tolist() == ["adam"] * 2 + ["second"] * (len(history) - 2)
    task = PROBLEM.load(0, "float32", "cpu", None)
    alone = tp.fit(task.model, task.data, epochs=4, adam=None, second=PAPER.second, device="cpu")
    assert found[CG].history.train_loss.tolist() == [r.train_loss for r in alone.records]
    ends = strategies.ends(found).set_index("strategy")
    assert ends["val. loss"][ADAM] == adam.validation_loss.iloc[-1]
    assert ends["train acc."][CG] == alone.final.train_accuracy
    monkeypatch.setattr(runs, "train", None)
    again = run(PAPER, tmp_path)
    assert all(again[name].history.equals(found[name].history) for name in found)


def test_a_rule_that_never_switches_leaves_adam_alone(tmp_path):
    found = run(replace(PAPER, switch=tp.GradientNormPeak(1e-9)), tmp_path)
    assert found[BOTH].history.equals(found[ADAM].history)
    assert strategies.lines(found) == {name: (name, slice(None)) for name in (ADAM, CG)}


def test_a_strategy_that_fails_is_named(tmp_path):
    with pytest.raises(TwoPhaseError, match="4 of 4 runs failed; first mnist"):
        run(replace(PAPER, problem=replace(PROBLEM, dataset="mnist")), tmp_path)


def test_second_halves_begin_where_first_halves_end(outcomes):
    lines = strategies.lines(outcomes)
    assert lines == {
        ADAM: (ADAM, slice(0, 2)),
        CG: (CG, slice(0, 2)),
        "Adam goes on": (ADAM, slice(1, None)),
        # and no "CG goes on": it ended before the swap
        BOTH: (BOTH, slice(1, None)),
        WITH_DEFAULT: (WITH_DEFAULT, slice(1, None)),
    }
    longer = outcomes | {CG: outcome([0.8, 0.7, 0.6], [14, 14, 14], 0)}
    assert strategies.lines(longer)["CG goes on"] == (CG, slice(1, None))


def test_costs_per_iteration_are_those_of_the_second_phase(outcomes):
    found = strategies.course(outcomes).set_index("strategy")
    assert found["swap after"].tolist() == ["–", "2", "2", "–"]
    assert found.epochs.tolist() == [4, 4, 3, 1]
    assert found.passes.tolist() == [12, 22, 10, 14]
    assert found["passes per iteration"].tolist() == [pytest.approx(np.nan, nan_ok=True), 8, 4, 14]
    assert found["trials per iteration"][BOTH] == 5


def test_ends_are_of_the_final_weights_and_say_what_they_took(outcomes):
    losses = dict.fromkeys(("train_loss", "validation_loss"), 0.25)
    accuracies = dict.fromkeys(("train_accuracy", "validation_accuracy"), 0.5)
    ended = {
        name: one._replace(summary=one.summary | losses | accuracies)
        for name, one in outcomes.items()
    }
    found = strategies.ends(ended).set_index("strategy")
    assert found.passes.tolist() == [12, 22, 10, 14]
    assert found.loc[BOTH, "train loss"] == 0.25 and found.loc[CG, "val. acc."] == 0.5


def test_validation_at_equal_passes_is_of_the_lowest_training_loss_by_then(outcomes):
    measured = {
        name: one._replace(
            history=one.history.assign(validation_loss=one.history.train_loss * 2),
            summary=one.summary
            | dict.fromkeys(("train_accuracy", "validation_accuracy"), 0.5)
            | dict.fromkeys(("train_loss", "validation_loss"), 0.25),
        )
        for name, one in outcomes.items()
    }
    found = strategies.ends_beside_cost(measured).set_index("strategy")
    assert found["val. loss, equal passes"].tolist()[:3] == [0.4, 0.8, 0.2]
    assert np.isnan(found["val. loss, equal passes"][CG]), "its first iteration took more"
    assert found.seconds.tolist() == found.passes.tolist() == [12, 22, 10, 14]


def test_a_run_that_its_passes_ended_is_beside_adam_by_what_it_was_charged(outcomes):
    cut = outcomes[BOTH]._replace(spent=outcomes[BOTH].spent.iloc[:-1])
    assert "at equal seconds" in strategies.beside_adam(outcomes | {BOTH: cut}, BOTH)


def test_equal_cost_is_what_adam_spent(outcomes):
    lowest = strategies.at_equal_cost(outcomes)
    assert lowest.epochs.tolist() == [0.2, 0.1, 0.1, 0.8]
    # 12 passes: those of Adam and one iteration of CG; the first of CG alone cost more
    assert lowest.passes.tolist()[:3] == lowest.seconds.tolist()[:3] == [0.2, 0.4, 0.1]
    assert np.isnan(lowest.passes[CG])
    assert strategies.beside_adam(outcomes, BOTH) == (
        "Its training loss is at equal epochs 0.5 times Adam's, lower; at equal passes 2 times "
        "Adam's, higher; at equal seconds 2 times Adam's, higher"
    )
    assert strategies.beside_adam(outcomes, WITH_DEFAULT) == (
        "Its training loss is at equal passes 0.5 times Adam's, lower; at equal seconds 0.5 times "
        "Adam's, lower"
    )
    # its passes are spent after 7 seconds, when Adam had 0.5
    sooner = strategies.beside_adam(
        outcomes | {WITH_DEFAULT: outcome([0.9, 0.4], [3, 4], 1, 1)}, WITH_DEFAULT
    )
    assert sooner.endswith(
        "passes 2 times Adam's, higher; at equal seconds 0.8 times Adam's, lower"
    )
    converged = outcomes[WITH_DEFAULT]._replace(summary={"swap_epoch": 2, "status": "converged"})
    said = strategies.beside_adam(outcomes | {WITH_DEFAULT: converged}, WITH_DEFAULT)
    assert "at equal epochs 0.5 times" in said
    assert "no swap" in strategies.beside_adam(outcomes, ADAM)


def test_a_toy_with_a_way_back_is_beside_adam_alone():
    rows = [(c, name, c / 100, x) for c, xs in TOYS.items() for name, x in xs.items()]
    ends = pd.DataFrame(rows, columns=["C", "strategy", "final loss", "x"])
    said = strategies.beside_alone(ends, "alone", ["one", "two"])
    assert said == (
        "With the way back all end where alone does for $C = 0.40$, $C = 0.60$. For $C = 0.50$ not "
        "all do: they end with a loss of 0.005, alone with one of 0.005."
    )
    ends.loc[(ends.C == 0.5) & (ends.strategy == "two"), "final loss"] = 0.001
    said = strategies.beside_alone(ends, "alone", ["one", "two"])
    assert said.endswith("they end with a loss of 0.001 and 0.005, alone with one of 0.005.")
    assert "for no $C$." in strategies.beside_alone(ends[ends.C == 0.5], "alone", ["one", "two"])


def test_results_are_beside_one_of_them_at_the_end_and_at_its_passes():
    def result(kept, validation, losses, passes):
        history = pd.DataFrame({"train_loss": losses, "passes": passes, "seconds": 0.5})
        final = SimpleNamespace(train_loss=kept, validation_loss=validation)
        return SimpleNamespace(final=final, history=history)

    alone = result(2.0, 4.0, [4.0, 2.0], [3, 3])
    both = result(1.0, 5.0, [4.0, 3.0, 1.0], [3, 3, 4])
    found = strategies.results_beside({"alone": alone, "both": both}, "alone")
    assert found.iloc[1].to_dict() == {
        **{"strategy": "both", "training": "0.50", "training, equal passes": "1.50"},
        **{"validation": "1.25", "passes": 10, "seconds": 1.5},
    }
    assert found.validation[0] == found.training[0] == "1.00"


TOYS = {
    0.4: {"alone": 0.38, "one": 0.38, "two": 0.40, "no way back": 9.0},
    0.5: {"alone": 0.0, "one": 0.01, "two": 0.6, "no way back": 0.0},
    0.6: {"alone": -0.2, "one": -0.2, "two": -0.25, "no way back": 9.0},
}


@pytest.mark.parametrize(
    ("norms", "words"),
    [
        ([2, 1, 3, 2.5, 2.6], "falls in 1 of the 2 epochs up to the largest value and rises in 1 "),
        ([2, 1, 3, 2.5, 2.6], "of the 2 epochs after it."),
        ([2, 1, 3, 2.5, 2.6], "switches after epoch **2**, 1 epoch before the largest value."),
        (
            [2, 3, 2],
            "falls in 0 of the 1 epoch up to the largest value and rises in 0 of the 1 epoch ",
        ),
        ([2, 3, 2], "switches after epoch **3**, 1 epoch after the largest value."),
        ([1, 2, 4, 3.9, 3.8, 3], "switches after epoch **6**, 3 epochs after the largest value."),
        ([1, 2, 4], "`GradientNormPeak(factor=0.9)` never switches."),
        ([1, 2, 4], "largest after epoch **3** of 3 with 4, and 4 at the end"),
        ([1, 2, 4], "no fall behind a peak can be seen. It falls in 0 of the 2 epochs up to the "),
        (
            [4, 2, 3],
            "not rise to a peak. It rises in 1 of the 2 epochs after it. The rule",
        ),
    ],
)
def test_the_norm_in_words(norms, words):
    history = pd.DataFrame({"train_loss": np.linspace(1, 0.1, len(norms)), "grad_norm": norms})
    said = strategies.norm_in_words(history, tp.GradientNormPeak(0.9))
    assert words in said and "of the 0" not in said


def test_a_batch_of_all_examples_is_full_batch_adam():
    assert strategies.batches_in_words(8, 17) == "Batches of 8 make 3 steps of Adam an epoch."
    for size in (17, 32):
        assert "holds all 17 examples: here Adam is full-batch" in strategies.batches_in_words(
            size, 17
        )
