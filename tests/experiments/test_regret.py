"""Regret: by hand on made-up tables, and by real runs on a small case."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from twophase import AdamSettings, FromBatches, Race
from twophase.__main__ import main
from twophase.errors import InputError
from twophase.experiments import branches, reached, regret, regret_results, runs
from twophase.experiments.regret import Case
from twophase.problems.problem import ImageProblem
from twophase.switching import Fallback, FixedEpoch, GradientNormPeak

SMALL = Case(ImageProblem("digits", "mlp-4", 64, 20), 60, AdamSettings(batch_size=32))


def rows(*losses, validation=None, start=1.0, floor=1e-8):
    """A table of one case and seed: swaps at 1 and 2, never, and a rule."""
    names = ["swap at 1", "swap at 2", regret.NONE, "rule"]
    table = pd.DataFrame({"case": "c", "seed": 0, "rule": names, "loss": losses})
    table = table.assign(start=start, floor=floor, held_out=False, validation_loss=validation)
    return table.assign(spent=100, reading=[0, 0, 0, 20], trials=[0, 0, 0, 10], returned=0)


def test_regret_is_the_distance_to_the_best_fixed_swap():
    found = regret.with_regret(rows(1e-2, 1e-3, 1e-1, 5e-3))
    assert found.regret.tolist() == pytest.approx([1, 0, 2, math.log10(5)])
    assert "validation_regret" not in found


def test_a_rule_may_be_better_than_every_fixed_swap():
    assert regret.with_regret(rows(1e-2, 1e-2, 1e-1, 1e-3)).regret.iloc[-1] == pytest.approx(-1)


def test_below_the_floor_all_losses_are_alike():
    found = regret.with_regret(rows(1e-12, 1e-9, 0.0, 1e-7, start=10.0))
    assert found.regret.tolist() == pytest.approx([0, 0, 0, 0], abs=1e-12)
    found = regret.with_regret(rows(1e-12, 1e-9, 0.0, 1e-6, start=10.0))
    assert found.regret.iloc[-1] == pytest.approx(1)


def test_validation_has_its_own_best_swap():
    found = regret.with_regret(rows(1, 0.1, 1, 1, validation=[0.1, 1.0, 1.0, 1.0]))
    assert found.validation_regret.tolist() == pytest.approx([0, 1, 1, 1])


def test_the_summary_has_worst_median_and_costs():
    """The median over the seeds for each case, then the worst of the cases."""
    parts = []
    for case, seeds in {"a": (1e-1, 1e-2, 1e-3), "b": (1e-3, 1e-3, 1e-3)}.items():
        for seed, loss in enumerate(seeds):
            parts.append(rows(1e-3, 1e-3, 1e-3, loss).assign(case=case, seed=seed))
    found = regret_results.summary(regret.with_regret(pd.concat(parts))).loc["rule"]
    assert (found.worst, found["median"], found.worst_seed) == pytest.approx((1, 0.5, 2))
    assert (found.reading, found.trials, found.cases) == (20 / 120, 10 / 120, 2)
    said = regret_results.sentence(regret.with_regret(pd.concat(parts)), rule="rule")
    alone = "(medians over the seeds; on a single seed up to **2.00**, *a*)"
    assert f"**1.00** in the worst of 2 cases {alone} and **0.50**" in said and "*none*" in said


def test_costs_are_shares_of_all_passes_the_largest_over_the_seeds():
    made = regret.with_regret(rows(1e-3, 1e-3, 1e-3, 1e-2))
    later = made.assign(seed=1, returned=made.trials * 3, trials=made.trials / 2)
    found = regret_results.costs(pd.concat([made, later]), "rule").iloc[0]
    expected = {"case": "c", "reading": 20 / 120, "lost trials": 10 / 120}
    expected |= {"left second phases": 30 / 120, "both in one training": 35 / 120, "regret": 1}
    assert found.to_dict() == expected


def test_decisions_from_batches_are_laid_beside_exact_ones():
    """A rule that never switches counts as one that does after the epochs of Adam alone."""
    exact = pd.DataFrame({"case": "mlp-4", "seed": [0, 1, 2], "swap_epoch": [5, 9, None]})
    exact = exact.assign(rule="literal", epoch=20, regret=[0.0, 0.25, 1.0], reading=[10, 0, 0])
    exact = exact.assign(spent=90, trials=0, returned=0)
    batches = exact.assign(rule="literal from batches", reading=0, regret=0.5, epoch=300)
    batches = batches.assign(swap_epoch=[5, None, None])
    other = exact.assign(seed=7, regret=9.0)  # not measured from batches
    (found,) = regret_results.from_batches(pd.concat([exact, other, batches])).to_dict("records")
    assert found == {
        **{"rule": "literal", "trainings": 3, "same swap": 2, "furthest apart": "291 epochs"},
        **{"regret, exact": "1.00, 0.25", "reading, exact": "10.0%"},
        **{"regret, from batches": "0.50, 0.50", "reading, from batches": "0.0%"},
    }


def test_validation_regret_is_shown_in_the_order_of_q():
    parts = []
    for case, q in {"many examples": 20.0, "few": 0.1}.items():
        for seed, found in enumerate((0.2, 0.1, 0.4)):
            validation = [0.1, 0.1, 0.1, found]
            made = rows(1, 1, 1, 1, validation=validation).assign(case=case, q=q, seed=seed)
            parts.append(regret.with_regret(made))
    made = pd.concat(parts)
    made.loc[made.rule == "none", "validation_regret"] = -1e-3
    table = regret_results.by_q(made)
    assert table.case.tolist() == ["few", "many examples"] and table.Q.tolist() == [0.1, 20.0]
    assert table.rule.tolist() == [0.3, 0.3], "log10 of 2"
    assert not np.signbit(table.none).any(), "0, not −0"
    assert list(table) == ["Q", "case", "none", "rule"], "without fixed swaps, the best one first"


def test_rules_and_cases_are_in_words():
    said = regret_results.rules_in_words([*regret.RULES, regret.NONE]).set_index("rule").switches
    assert said.map(len).min() > 10 and len(said) == len(regret.RULES) + 1
    assert "10 epochs" in said["plateau"] and "0.9 of the largest" in said["literal"]
    cases = regret_results.cases_in_words(regret.CASES).set_index("case")
    assert list(cases.index) == list(regret.CASES)
    assert cases.loc["mlp-8 entropy"].to_dict() == {
        **{"problem": "digits mlp-8 cross-entropy", "examples": "all", "passes": 900},
        **{"batch": "512", "rate": 0.01, "precision": "float32", "set aside": "yes"},
    }
    assert cases.loc["poisson", "batch"] == "all"


def made_up_regrets(**second):
    """A table of two cases; on the second one, regrets that differ from those on the first."""
    columns = {"held_out": False, "seed": 0, "spent": 10, "reading": 0, "trials": 1, "returned": 2}
    regrets = {"race": 0.3, "literal": 0.9, "smoothed": 0.5, "a third": 0.0, "none": 0.1}
    parts = [
        pd.DataFrame({"rule": list(of), "regret": list(of.values()), "case": case, **columns})
        for case, of in {"a": regrets, "b": regrets | second}.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(validation_regret=table.regret * 2)


def tried(table):
    return regret_results.does_it_have_to_try(regret_results.Kept(table, table, table, table))


def test_who_tries_has_to_be_below_all_who_look():
    table = made_up_regrets()
    said = tried(table)
    assert said.startswith("Trying is better than looking: on the 2 problems of Table 8 the worst ")
    assert (
        "race is **0.30**, the lowest of the rules that look at norm or loss **0.50**, of" in said
    )
    table.loc[table.rule == "literal", "regret"] = 0.2
    assert tried(table).startswith("Trying is not better than looking")
    (name,) = [name for name in regret_results.parts(table) if name.startswith("worst, all")]
    assert name == "worst, all (2)"


@pytest.mark.parametrize(
    ("second", "words", "counts"),
    [
        ({}, "not shown to be better than that:", (0, 2)),
        ({"a third": 0.4}, "not shown to be better than that, except in the worst case:", (1, 1)),
        ({"race": 0.004, "a third": 0.0}, "not shown to be better than that:", (0, 1)),
    ],
)
def test_who_tries_is_compared_with_a_share_that_does_not(second, words, counts):
    said = tried(made_up_regrets(**second))
    assert f"the race is {words} on the 2 problems of Table 7" in said
    assert f"with the race on {counts[0]} problems, with *a third* on {counts[1]}, and" in said
    assert said.endswith(
        "take up to **30%** of the passes of a training, more than half on 0 problems."
    )


def test_what_was_set_aside_is_said_beside_all():
    assert "set aside" not in tried(made_up_regrets())
    table = made_up_regrets(race=0.8)
    table["held_out"] = table.case.eq("b")
    said = "on a single seed 0.00), and on the 1 of these set aside 0.80 and 0.00; the median"
    assert said in tried(table)


def test_the_answer_names_its_problems_and_the_validation_loss():
    table = made_up_regrets(none=0.0, race=0.7)
    kept = regret_results.Kept(table, table, table, table)
    said = regret_results.answer(30, {"literal": 25, "smoothed": 2}, kept)
    assert "early on 25, and the smoothed one fires before a higher peak on 2; on the 2" in said
    assert "problems of Table 7 their worst regrets are 0.9 and 0.5 orders" in said
    assert "is **0.20** of never switching and **1.40** of the race; no fixed swap is" in said
    assert said.endswith("better than Adam alone on 1 of the 2 problems that have one.")


# -- what a history has reached


def history(*epochs):
    """Of (phase, training loss, passes) with the monitoring of mini-batches."""
    table = pd.DataFrame(epochs, columns=["phase", "train_loss", "passes"])
    table = table.assign(epoch=range(1, len(table) + 1), grad_norm=1.0, status="moved")
    return table.assign(monitor_passes=3, validation_loss=table.train_loss * 2)


def config(switch, budget, fallback=None):
    return SMALL.config(0).__class__(
        SMALL.problem, 20, SMALL.adam, switch=switch, fallback=fallback, budget=budget
    )


def test_the_end_is_where_the_passes_are_spent():
    seen = history(("adam", 4.0, 3), ("adam", 3.0, 3), ("second", 2.0, 3), ("second", 1.0, 3))
    found = reached.end(seen, config(FixedEpoch(2), 10))
    assert (found.epoch, found.loss, found.validation_loss) == (3, 2.0, 4.0)
    assert (found.spent, found.reading) == (9, 0)


def test_what_the_rule_reads_is_charged_unless_adam_has_it_at_hand():
    seen = history(("adam", 4.0, 3), ("adam", 3.0, 3), ("second", 2.0, 3), ("second", 1.0, 3))
    rule = GradientNormPeak()
    found = reached.end(seen, config(rule, 16))
    assert (found.loss, found.spent, found.reading) == (2.0, 9, 6)
    assert reached.end(seen.assign(monitor_passes=0), config(rule, 16)).loss == 1.0


def test_the_lowest_of_the_second_phase_is_kept_while_adam_is_above_it():
    seen = history(("adam", 4.0, 3), ("second", 2.0, 3), ("adam", 3.0, 3), ("adam", 1.5, 3))
    planned = config(FixedEpoch(1), 9, Fallback())
    seen.loc[1, "status"] = "converged"
    assert reached.end(seen, planned).epoch == 2
    assert reached.end(seen, config(FixedEpoch(1), 12, Fallback())).epoch == 4


def test_a_second_phase_that_is_left_for_adam_is_counted_with_its_trial():
    epochs = [("adam", 4.0 / n, 3) for n in range(1, 5)]
    seen = history(*epochs, ("second", 0.9, 3), ("second", 0.95, 4), ("adam", 0.9, 3))
    seen.loc[5, "status"] = "converged"
    found = reached.end(seen, config(FixedEpoch(4), 60, Fallback()))
    assert (found.returned, found.trials) == (7, 0)
    assert reached.end(seen.iloc[:6], config(FixedEpoch(4), 60, Fallback())).returned == 0
    trial = [("trial", 0.5, 3), ("trial", 1e-2, 3), ("trial", 1e-3, 3), ("trial", 1e-4, 3)]
    seen = history(*epochs, *trial, ("second", 1e-4, 3), ("adam", 0.9, 3))
    found = reached.end(seen, config(Race(passes=12), 90, Fallback()))
    assert (found.returned, found.trials) == (15, 0)


def test_what_batches_tell_is_not_charged():
    seen = history(("adam", 4.0, 3), ("adam", 3.0, 3), ("second", 2.0, 3), ("second", 1.0, 3))
    told = replace(config(GradientNormPeak(), 16), monitor=FromBatches())
    found = reached.end(seen.assign(monitor_passes=0), told)
    assert (found.spent, found.reading) == (12, 0)
    # but what a race measures is
    epochs = [("adam", 4.0 / n, 3) for n in range(1, 6)]
    raced = replace(config(Race(passes=12), 30), monitor=FromBatches())
    found = reached.end(history(*epochs).assign(monitor_passes=[0, 0, 1, 1, 1]), raced)
    assert found.reading > 0


def test_by_validation_the_lowest_validation_loss_is_kept():
    seen = history(("adam", 4.0, 3), ("adam", 3.0, 3), ("second", 2.0, 3), ("second", 1.0, 3))
    seen.loc[1, "validation_loss"] = 0.5
    planned = replace(config(FixedEpoch(2), 30), keep="validation")
    found = reached.end(seen, planned)
    assert (found.epoch, found.loss, found.validation_loss) == (2, 3.0, 0.5)


def test_a_trial_that_is_won_as_it_ends_costs_nothing():
    """It has converged, and with it the training."""
    seen = history(*[("adam", 4.0 / n, 3) for n in range(1, 5)], ("trial", 1e-9, 3))
    seen.loc[4, "status"] = "converged"
    found = reached.end(seen, config(Race(passes=12), 30))
    assert (found.epoch, found.trials) == (5, 0)
    seen.loc[4, "train_loss"] = 0.99  # behind
    assert reached.end(seen, config(Race(passes=12), 30)).trials == 3


def test_in_a_trial_adams_weights_before_it_are_at_hand():
    seen = history(*[("adam", 4.0 / n, 3) for n in range(1, 5)], ("trial", 3.5, 3))
    found = reached.end(seen, config(Race(passes=12), 15))
    assert (found.epoch, found.loss) == (4, 1.0)


def test_a_swap_counts_where_its_second_phase_is_paid_for():
    seen = history(("adam", 4.0, 3), ("adam", 3.0, 3), ("second", 2.0, 3), ("second", 1.0, 3))
    assert reached.end(seen, config(FixedEpoch(2), 12)).swap_epoch == 2
    assert reached.end(seen, config(FixedEpoch(2), 8)).swap_epoch is None
    rule = GradientNormPeak()  # which reads as much as Adam takes
    assert [reached.end(seen, config(rule, spent)).swap_epoch for spent in (14, 15)] == [None, 2]
    epochs = [("adam", 4.0 / n, 3) for n in range(1, 5)]
    trial = [("trial", 0.5, 3), ("trial", 1e-2, 3), ("trial", 1e-3, 3), ("trial", 1e-4, 3)]
    raced = config(Race(passes=12), 90, Fallback())
    assert reached.end(history(*epochs, *trial[:3]), raced).swap_epoch is None
    assert reached.end(history(*epochs, *trial, ("second", 1e-4, 3)), raced).swap_epoch == 4


# -- runs


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(regret, "CASES", {"small": SMALL})


@pytest.mark.slow
def test_a_case_is_trained_once_and_resumed(tmp_path, small, monkeypatch):
    place = branches.Place(tmp_path, device="cpu")
    names = ["race", "literal", "a third"]
    table = regret.run(None, names, 2, place)
    assert set(table.rule) == {regret.NONE, "swap at 1", "swap at 2", "swap at 5", "swap at 10"} | {
        *names
    }
    assert table.groupby("rule").seed.nunique().eq(2).all()
    fixed = table[~table.rule.isin(names)]
    assert fixed.groupby("seed").regret.min().tolist() == pytest.approx([0, 0])
    assert (table.spent + table.reading <= 60).all()
    # 20 epochs of Adam, a third of them: the same run as a fixed swap there
    third = table[table.rule == "a third"]
    assert third.swap_epoch.tolist() == [7, 7]

    def trained(*_, **__):
        raise AssertionError("everything is there")

    monkeypatch.setattr(runs, "train", trained)
    pd.testing.assert_frame_equal(regret.run(None, names, 2, place), table)


@pytest.mark.slow
def test_a_case_may_be_given_other_passes(tmp_path, small):
    place = branches.Place(tmp_path, device="cpu")
    table = regret.run(None, ["a third"], 1, place, passes=36)
    assert (table.spent <= 36).all() and table.spent.max() > 30
    assert table[table.rule == "a third"].swap_epoch.tolist() == [4]
    with pytest.raises(InputError, match="passes"):
        regret.run(None, ["a third"], 1, place, passes=29)


@pytest.mark.slow
def test_the_command_leaves_a_table_and_where_it_comes_from(tmp_path, small, capsys):
    assert main(["regret", "--rule", "literal", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert {"regret.csv", "provenance.json", "runs"} <= {path.name for path in tmp_path.iterdir()}
    assert "literal" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "regret.csv").rule.eq("literal").any()


@pytest.mark.slow
def test_a_case_that_fails_is_told_and_no_row_is_lost(tmp_path, monkeypatch, capsys):
    mnist = replace(SMALL, problem=ImageProblem("mnist", "mlp-4", 24, 12))
    monkeypatch.setattr(regret, "CASES", {"small": SMALL, "mnist": mnist})
    given = ["regret", "--rule", "a third", "--seeds", "1", "--out", str(tmp_path / "out")]
    given += ["--data", str(tmp_path), "--case"]
    table = tmp_path / "out" / "regret.csv"
    assert main([*given, "mnist"]) == 1
    assert not table.exists() and not (tmp_path / "out" / "provenance.json").exists()
    error = capsys.readouterr().err
    assert (
        error.startswith("twophase: error: 6 of 6 runs failed; first mnist")
        and error.count("\n") == 1
    )
    assert main([*given, "small", "mnist"]) == 1
    assert "6 of 12 runs failed; first mnist" in capsys.readouterr().err
    assert set(pd.read_csv(table).case) == {"small"}
    before = {path: path.read_bytes() for path in table.parent.glob("*.*")}
    assert len(before) == 2
    assert main([*given, "mnist"]) == 1
    assert {path: path.read_bytes() for path in table.parent.glob("*.*")} == before


def test_what_is_not_there_is_named(tmp_path):
    place = branches.Place(tmp_path)
    with pytest.raises(InputError, match="^case: 'mlp' is not allowed"):
        regret.run(["mlp"], None, 1, place)
    with pytest.raises(InputError, match="^rule: 'rase' is not allowed.*did you mean 'race'"):
        regret.run(["mlp-4"], ["rase"], 1, place)
    with pytest.raises(InputError, match="^seeds: 0"):
        regret.run(None, None, 0, place)


def test_half_of_the_cases_or_more_are_set_aside_and_all_can_be_made():
    aside = [case for case in regret.CASES.values() if case.held_out]
    assert len(regret.CASES) >= 16 and len(aside) * 2 >= len(regret.CASES)
    for name, case in regret.CASES.items():
        for rule, config in regret.entries(case, 0, regret.RULES).items():
            assert config.budget == (None if rule == regret.NONE else case.passes), name
    assert isinstance(regret.entries(SMALL, 0, ["race"])["race"].switch, Race)


def test_a_swap_at_the_peak_is_the_first_fixed_one_that_is_not_before_it():
    rows = [("none", None, 1.5, 4), ("swap at 2", 2, 0.0, None), ("swap at 5", 5, 0.7, None)]
    columns = ["rule", "swap_epoch", "regret", "peak"]
    table = pd.DataFrame(rows, columns=columns).assign(case="a", seed=0)
    late = table.assign(seed=1, peak=[9, None, None])
    said = regret_results.at_the_peak(pd.concat([table, late]))
    assert "a median regret of **1.10** and a worst one of **1.5**, over 2 trainings" in said


def test_trainings_that_were_made_twice_are_compared_above_the_floor():
    key = {"case": ["a", "a", "b"], "seed": [0, 1, 0], "rule": "swap at 2"}
    now = pd.DataFrame(key | {"loss": [1e-3, 1e-20, 2.0], "floor": 1e-8, "start": 10.0})
    before = pd.DataFrame(key | {"loss": [1e-3, 1e-9, 2e-3]})
    unlike = pd.DataFrame({"case": ["c"], "seed": 0, "rule": "none", "loss": 1.0})
    said = regret_results.made_twice(now, pd.concat([before, unlike]))
    assert "on a, b were made twice" in said and "**1 of 3** trainings end" in said
    assert "of those on b 1 of 1, by up to **3.0** orders" in said


def test_rules_are_compared_where_all_of_them_were_measured():
    rows = [("a", "race"), ("a", "literal"), ("b", "race")]
    table = pd.DataFrame(rows, columns=["case", "rule"])
    assert regret_results.measured_everywhere(table).rule.unique().tolist() == ["race"]
    assert regret_results.with_all_rules(table).case.unique().tolist() == ["a"]
