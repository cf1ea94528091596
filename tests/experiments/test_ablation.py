"""Ablations: budgets, means and ratios are as defined, failures are named."""

from dataclasses import replace

import pandas as pd
import pytest

import twophase as tp
from twophase.errors import TwoPhaseError
from twophase.experiments import ablation, branches, files, runs
from twophase.experiments.config import RunConfig
from twophase.experiments.statistics import Estimate
from twophase.problems.problem import ImageProblem
from twophase.switching.rules import first_switch

PROBLEM = ImageProblem(train_examples=16, validation_examples=10)
BOTH = RunConfig(PROBLEM, 4, **tp.PAPER | {"switch": tp.FixedEpoch(2)})
ADAM = BOTH.trunk()
MISSING = replace(BOTH, problem=replace(PROBLEM, dataset="mnist"))


def run(rows, tmp_path):
    return ablation.run(rows, tmp_path / "out", root=tmp_path, device="cpu")


def test_a_row_is_its_runs(tmp_path):
    row = run([({"name": "paper"}, BOTH)], tmp_path).iloc[0]
    history, _ = runs.read(tmp_path / "out" / row.folder)
    adam, _ = runs.read(branches.Place(tmp_path / "out").folder(ADAM))
    assert adam.passes.sum() == 3 * ADAM.epochs
    inside = history[history.passes.cumsum() <= 3 * ADAM.epochs]
    timely = history[history.seconds.cumsum() <= adam.seconds.sum()]
    for loss in ablation.LOSSES:
        assert row[f"{loss}_epochs"] == history[loss].iloc[-1]
        assert row[f"{loss}_passes"] == inside[loss].iloc[-1]
        assert row[f"{loss}_seconds"] == timely[loss].iloc[-1]
        assert row[f"adam_{loss}"] == adam[loss].iloc[-1]
    assert row.passes == history.passes.sum() > 3 * ADAM.epochs
    assert row.epochs_within == len(inside) < row.epochs_run == ADAM.epochs
    assert (row["name"], row.seed, row.swapped, row.error) == ("paper", 0, 2, "")


def test_rows_keep_their_labels_where_they_are_one_run(tmp_path):
    literal = [
        ({"factor": f}, replace(BOTH, switch=tp.GradientNormPeak(f))) for f in (0.999, 0.9999)
    ]
    frame = run(literal, tmp_path)
    adam, _ = runs.read(branches.Place(tmp_path / "out").folder(ADAM))
    fired = [first_switch(config.switch, branches.trace(adam)) for _, config in literal]
    assert fired[0] == fired[1] < ADAM.epochs, "an example where both fire together"
    assert frame.swapped.tolist() == fired and frame.folder.nunique() == 1
    assert frame.factor.tolist() == [0.999, 0.9999]


def test_a_rule_that_never_fires_is_adam_alone_but_for_what_it_reads(tmp_path):
    never = replace(BOTH, switch=tp.SmoothedNormPeak(), adam=tp.AdamSettings(batch_size=8))
    frame = run([({}, never)], tmp_path)
    assert frame.swapped.isna().all()
    assert frame.train_loss_epochs[0] == frame.adam_train_loss[0]
    adam, _ = runs.read(branches.Place(tmp_path / "out").folder(never.trunk()))
    assert frame.epochs_within[0] == 2, "the norm costs as much as an epoch"
    assert frame.train_loss_passes[0] == adam.train_loss[1]


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    first = run([({}, ADAM), ({}, BOTH)], tmp_path)
    monkeypatch.setattr(runs, "train", None)
    again = run([({}, BOTH), ({}, ADAM)], tmp_path)
    pd.testing.assert_frame_equal(first[::-1].reset_index(drop=True), again, check_dtype=False)


@pytest.mark.slow
def test_two_processes_make_the_same_table(tmp_path, monkeypatch):
    """But for what is read off at equal seconds."""
    rows = [({"name": seed}, replace(BOTH, seed=seed)) for seed in range(2)]
    rows += [({"name": "missing"}, MISSING)]
    alone = run(rows, tmp_path)
    monkeypatch.setattr(runs, "train", None)  # here, not in other processes
    both = ablation.run(rows, tmp_path / "two", tmp_path, "cpu", executor="Local(2)")
    measured = [name for name in alone if name.endswith("_seconds")]
    assert len(measured) == len(ablation.LOSSES)
    pd.testing.assert_frame_equal(alone.drop(columns=measured), both.drop(columns=measured))


def test_a_folder_is_found_from_the_projects(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "project_folder", lambda: tmp_path)
    ablation.run([({}, ADAM)], "some/folder", device="cpu")
    assert branches.Place(tmp_path / "some" / "folder").folder(ADAM).is_dir()
    ablation.run([({}, ADAM)], "", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


def test_a_run_that_fails_is_in_the_table_and_the_others_run(tmp_path):
    frame = run([({"name": "mnist"}, MISSING), ({"name": "digits"}, BOTH)], tmp_path)
    assert frame.status.tolist() == ["failed", "completed"]
    assert "missing" in frame.error[0] and frame.error[1] == ""
    done, failed = ablation.split(frame)
    assert done.name.tolist() == ["digits"]
    assert failed.to_dict("records") == [{"name": "mnist", "seed": 0, "error": frame.error[0]}]
    compared = ablation.compare(frame, ["name"])
    assert compared.seeds.tolist() == [0, 1] and compared.failed.tolist() == [1, 0]
    assert ablation.as_table(compared, ["name"])["ratio, equal epochs"][0] == "–"


def test_where_all_runs_fail_there_is_a_table_and_an_error(tmp_path):
    frame = run([({"name": "mnist"}, MISSING)], tmp_path)
    shown = ablation.as_table(ablation.compare(frame, ["name"]), ["name"])
    assert shown["Adam alone, 10⁻³"][0] == "–"
    with pytest.raises(TwoPhaseError, match="no run has finished; .*missing"):
        ablation.split(frame)


# -- what is read off


@pytest.mark.parametrize(
    ("budget", "epoch"), [(2, 1), (3, 1), (8, 2), (9, 3), (19, 3), (20, 4), (99, 4)]
)
def test_equal_passes_is_the_last_record_within_the_budget_or_the_first(budget, epoch):
    history = pd.DataFrame({"epoch": [1, 2, 3, 4]})
    assert ablation.within(history, pd.Series([3, 6, 9, 20]), budget).epoch == epoch


def test_costs_are_those_of_the_second_phase():
    frame = pd.DataFrame({"beta": ["FR", "FR", "PR"], "swapped": [2, 2, 2], "error": ""})
    frame = frame.assign(epochs_run=[6, 4, 6], passes=[46, 26, 18], epochs_within=[3, 1, 6])
    frame = frame.assign(status=["completed", "resolution", "completed"])
    assert ablation.costs(frame, ["beta"]).to_dict("list") == {
        "beta": ["FR", "PR"],
        "passes": [10, 3],
        "epochs": [3, 4],
        "within": [0.5, 4],
        "ended": [1, 0],
    }


def test_variants_that_end_alike_are_named_together():
    rows = pd.DataFrame({"CG": ["PR", "PR+", "PR"], "tolerance": [0.1, 0.01, 0.01], "x": 1})
    assert ablation.variants(rows, ["CG", "tolerance"]) == "PR with 0.1 or 0.01 and PR+ with 0.01"
    assert ablation.variants(rows[1:2], ["CG", "x"]) == "PR+ with 1"


def test_one_seed_has_no_interval_in_words():
    assert ablation.in_words(Estimate(0.5, None, None)) == "0.5 times Adam's (one seed)"


@pytest.mark.parametrize(
    ("found", "word"),
    [((0.5, 0.4, 0.9), "lower"), ((2.0, 1.1, 3.0), "higher"), ((1.0, 1.0, 1.0), "no clear")],
)
def test_words_follow_the_interval(found, word):
    assert word in ablation.in_words(Estimate(*found))


@pytest.fixture
def frame():
    frame = pd.DataFrame({"beta": ["FR", "FR", "PR", "PR"], "seed": [0, 1, 0, 1], "error": ""})
    for loss in ablation.LOSSES:
        frame[f"adam_{loss}"] = [1.0, 4.0, 1.0, 4.0]
        frame[f"{loss}_epochs"] = [2.0, 2.0, 3.0, 12.0]
        frame[f"{loss}_passes"] = [1.0, 4.0, 1.0, 1.0]
        frame[f"{loss}_seconds"] = [1.0, 4.0, 2.0, 8.0]
    return frame


def test_comparisons_are_paired_by_seed(frame):
    compared = ablation.compare(frame, ["beta"]).set_index("beta")
    assert compared.train_loss_epochs.tolist() == [2.0, 7.5]
    assert compared.train_loss_epochs_ratio.tolist() == pytest.approx([1.0, 3.0])
    assert compared.validation_loss_passes_ratio.tolist() == pytest.approx([1.0, 0.5])
    assert compared.train_loss_epochs_ratio_low["PR"] == pytest.approx(3.0)
    assert compared.adam_train_loss.tolist() == [2.5, 2.5]


def test_two_settings_are_compared_on_the_seeds_of_both(frame):
    found = ablation.between(frame[::-1], {"beta": "PR"}, {"beta": "FR"}, "train_loss_epochs")
    assert found.mean == pytest.approx((1.5 * 6) ** 0.5)
    found = ablation.between(frame[:3], {"beta": "PR"}, {"beta": "FR"}, "train_loss_epochs")
    assert found == Estimate(pytest.approx(1.5), None, None)


def test_an_estimate_is_a_column_with_its_ends(frame):
    row = ablation.compare(frame, ["beta"]).iloc[0]
    found = ablation.estimate(row, "adam_train_loss")
    assert found == Estimate(2.5, row.adam_train_loss_low, row.adam_train_loss_high)
    one = ablation.compare(frame[:1], ["beta"]).iloc[0]
    assert ablation.estimate(one, "adam_train_loss") == Estimate(1.0, None, None)


def test_a_choice_counts_where_the_others_are_the_same_and_seed_by_seed():
    keys = [(rule, factor, seed) for rule in "ab" for factor in (0.8, 0.9) for seed in (0, 1)]
    frame = pd.DataFrame(keys, columns=["rule", "factor", "seed"]).assign(error="")
    frame["train_loss_epochs"] = [1.0, 100.0, 2.0, 200.0, 10.0, 1000.0, 30.0, 3000.0]
    frame["train_loss_passes"] = [1.0, 1.0, 1.0, 1.0, 8.0, 0.5, 1.0, 1.0]
    frame["train_loss_seconds"] = 1.0
    by = ["rule", "factor"]
    rule, factor = (ablation.folds(frame, by, column) for column in by)
    assert rule["epochs"] == pytest.approx((15, 15, 15))
    assert factor["epochs"] == pytest.approx((3, 3, 3))
    assert rule["passes"] == factor["passes"] == pytest.approx((2, 0.5, 8))
    said = ablation.folds_in_words(rule)
    assert said.startswith("**15-fold** at equal epochs (15 to 15), **2-fold** at equal passes ")
    assert "(0.5 to 8, no clear difference)" in said
    assert ablation.clearly(rule) == "at equal epochs"
    failed = frame.assign(error=["", "", "x", "x", "", "", "", ""])
    assert ablation.folds(failed, by, "factor")["epochs"].mean == pytest.approx(3)
    assert ablation.folds(failed, by, "rule")["epochs"].mean == pytest.approx(10)
    one_seed = ablation.folds(frame[frame.seed == 0], by, "factor")
    assert "**3-fold** at equal epochs (one seed)" in ablation.folds_in_words(one_seed)
    assert ablation.clearly(one_seed) == "not clearly"
    alone = ablation.folds(frame[frame.rule == "a"], by, "rule")
    assert "**1-fold** at equal passes (one seed)" in ablation.folds_in_words(alone)


def test_steps_that_the_passes_leave_are_said():
    found = pd.DataFrame({"within": [0.0, 1.25]})
    assert "rests on 0.0 to 1.2 epochs" in ablation.steps_in_words(found)
    assert "spent before the swap" in ablation.steps_in_words(found)
    assert "before the swap" not in ablation.steps_in_words(found + 1)


def test_validation_is_said_over_all_settings(frame):
    said = ablation.validation_in_words(ablation.compare(frame, ["beta"]))
    assert "both phases end at 1 to 3 times Adam's at equal epochs, 0.5 to 1 times" in said


def test_tables_are_in_thousandths(frame):
    shown = ablation.as_table(ablation.compare(frame, ["beta"]), ["beta"])
    assert shown["Adam alone, 10⁻³"][0].replace("\N{NO-BREAK SPACE}", " ") == "2500 [1000, 4000]"
    assert shown["ratio, equal epochs"][0].startswith("1 [0.5,")
