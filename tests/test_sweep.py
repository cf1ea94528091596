"""Sweeps: Adam's epochs are trained once, budgets and ratios are as defined, failures are named."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from twophase.errors import InputError
from twophase.experiments import branches, runs
from twophase.experiments.config import RunConfig
from twophase.experiments.statistics import Estimate
from twophase.switch import first_switch

ADAM = RunConfig(strategy="adam", epochs=4, train_examples=16, validation_examples=10)
BOTH = replace(ADAM, strategy="adam+cg", swap_epoch=2, fallback="off")


@pytest.fixture
def trained(monkeypatch):
    """The epochs that were trained, by phase."""
    epochs = []
    step = runs.train

    def counting(trainer, *args):
        before = len(trainer.history)
        outcome = step(trainer, *args)
        epochs.extend(record.phase for record in outcome.records[before:])
        return outcome

    monkeypatch.setattr(runs, "train", counting)
    return epochs


def histories(out):
    # seconds are measured, all else is determined
    return {
        path.parent.name: pd.read_csv(path).drop(columns="seconds")
        for path in Path(out).glob("*/history.csv")
    }


# -- what is shared


def test_adams_epochs_are_trained_once(tmp_path, trained):
    variants = [replace(BOTH, beta=beta) for beta in ("FR", "PR", "PR+")]
    branches.run([ADAM, *variants, replace(BOTH, swap_epoch=3)], tmp_path, device="cpu")
    assert trained.count("adam") == ADAM.epochs
    assert trained.count("cg") == 3 * 2 + 1


@pytest.mark.parametrize(
    "config",
    [BOTH, replace(BOTH, swap_epoch=None, rule="norm-peak"), replace(BOTH, beta="FR")],
    ids=["fixed", "literal rule", "other CG"],
)
def test_a_branch_is_the_unshared_run_bit_for_bit(tmp_path, config):
    branches.run([config], tmp_path / "sweep", device="cpu")
    runs.run(config, tmp_path / "alone", device="cpu")
    alone, _ = runs.read(tmp_path / "alone")
    same = branches.settled(config, list(zip(alone.train_loss, alone.grad_norm, strict=True)))
    folder = branches.folder_of(same, tmp_path / "sweep")
    shared, _ = runs.read(folder)
    numbers = [name for name in alone if name not in ("seconds", "note")]
    pd.testing.assert_frame_equal(shared[numbers], alone[numbers], check_exact=True)
    weights = [f / "weights.pt" for f in (folder, tmp_path / "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_rules_that_choose_the_same_epoch_are_one_run(tmp_path, trained):
    literal = replace(BOTH, swap_epoch=None, rule="norm-peak")
    configs = [replace(literal, factor=factor) for factor in (0.999, 0.9999)]
    frame = branches.run(configs, tmp_path, device="cpu")
    adam, _ = runs.read(branches.folder_of(branches.trunk(BOTH), tmp_path))
    trace = list(zip(adam.train_loss, adam.grad_norm, strict=True))
    fired = [first_switch(config.switch(), trace) for config in configs]
    assert fired[0] == fired[1] < ADAM.epochs, "an example where both fire together"
    assert frame.swapped.tolist() == fired and frame.folder.nunique() == 1
    assert frame.factor.tolist() == [0.999, 0.9999]
    assert trained.count("cg") == ADAM.epochs - fired[0]


def test_a_rule_that_never_fires_is_adam_alone(tmp_path, trained):
    frame = branches.run([replace(BOTH, swap_epoch=None)], tmp_path, device="cpu")
    assert frame.swapped.isna().all() and len(trained) == ADAM.epochs
    assert frame.train_loss_epochs[0] == frame.train_loss_passes[0] == frame.adam_train_loss[0]


def test_a_rule_that_fires_at_the_end_is_adam_alone():
    literal = replace(BOTH, swap_epoch=None, rule="norm-peak")
    rising = [(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]
    assert branches.settled(literal, [*rising, (1.0, 1.0)]) == branches.trunk(BOTH)
    assert branches.settled(literal, [*rising[:2], (1.0, 1.0), (1.0, 1.0)]).swap_epoch == 3


# -- many sittings


def test_what_is_finished_is_not_trained_again(tmp_path, trained):
    first = branches.run([ADAM, BOTH], tmp_path, device="cpu")
    trained.clear()
    again = branches.run([BOTH, ADAM], tmp_path, device="cpu")
    assert trained == []
    pd.testing.assert_frame_equal(first[::-1].reset_index(drop=True), again, check_dtype=False)


def test_a_swap_asked_for_later_trains_the_first_epochs_once_more(tmp_path, trained):
    branches.run([BOTH], tmp_path / "a", device="cpu")
    trained.clear()
    later = [replace(BOTH, swap_epoch=3, beta=beta) for beta in ("FR", "PR")]
    branches.run(later, tmp_path / "a", device="cpu")
    assert (trained.count("adam"), trained.count("cg")) == (3, 2)
    branches.run([BOTH, *later], tmp_path / "b", device="cpu")
    found = histories(tmp_path / "a")
    for name, history in histories(tmp_path / "b").items():
        pd.testing.assert_frame_equal(history, found[name], check_exact=True)


def test_a_sweep_that_was_stopped_goes_on(tmp_path, trained, monkeypatch):
    step = runs.train

    def stopped(trainer, *args):
        if trainer.history:  # of the trunk that it branches off
            raise KeyboardInterrupt
        return step(trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "train", stopped)
        branches.run([ADAM, BOTH], tmp_path, device="cpu")
    assert trained == ["adam"] * ADAM.epochs
    frame = branches.run([ADAM, BOTH], tmp_path, device="cpu")
    assert trained == ["adam"] * ADAM.epochs + ["cg"] * 2
    assert (frame.error == "").all()


def test_a_run_that_fails_is_named_and_the_others_run(tmp_path, caplog):
    missing = replace(BOTH, dataset="mnist")
    frame = branches.run([missing, BOTH], tmp_path / "out", root=tmp_path, device="cpu")
    assert frame.status.tolist() == ["failed", "completed"]
    assert "missing" in frame.error[0] and frame.error[1] == ""
    assert "mnist vit-nomlp-wkewq-wvwo1 adam+cg" in caplog.text
    compared = branches.compare(frame, ["dataset"])
    assert compared.seeds.tolist() == [0, 1] and compared.failed.tolist() == [1, 0]
    assert branches.as_table(compared, ["dataset"])["equal epochs, 10⁻³"][0] == "–"


def test_a_sweep_in_which_all_fails_has_a_table(tmp_path):
    frame = branches.run([replace(ADAM, dataset="mnist")], tmp_path, root=tmp_path, device="cpu")
    assert (
        branches.as_table(branches.compare(frame, ["dataset"]), ["dataset"])["Adam alone, 10⁻³"][0]
        == "–"
    )


def test_a_damaged_branch_fails_alone(tmp_path):
    branches.run([ADAM, BOTH], tmp_path, device="cpu")
    kept = runs.branch_file(branches.folder_of(branches.trunk(BOTH), tmp_path), "epoch-2")
    kept.write_bytes(b"damaged")
    frame = branches.run([replace(BOTH, beta="FR"), BOTH], tmp_path, device="cpu")
    assert frame.status.tolist() == ["failed", "completed"]


def test_strategies_without_adam_are_refused(tmp_path):
    with pytest.raises(InputError, match="^strategy: 'cg'"):
        branches.run([replace(ADAM, strategy="cg")], tmp_path)


# -- what is read off


@pytest.mark.parametrize(("budget", "epoch"), [(3, 1), (8, 2), (9, 3), (19, 3), (20, 4), (99, 4)])
def test_equal_passes_is_the_last_record_within_the_budget(budget, epoch):
    history = pd.DataFrame(
        {"epoch": [1, 2, 3, 4], "passes": [3, 3, 3, 11], "monitor_passes": [100] * 4}
    )
    assert branches.within(history, budget).epoch == epoch


def test_a_budget_below_the_first_epoch_is_refused():
    with pytest.raises(InputError, match="^passes: 2 .* at least the first epoch's 3"):
        branches.within(pd.DataFrame({"epoch": [1], "passes": [3]}), 2)


def test_a_row_is_its_runs(tmp_path):
    row = branches.run([BOTH], tmp_path, device="cpu").iloc[0]
    history, _ = runs.read(tmp_path / row.folder)
    adam, _ = runs.read(branches.folder_of(branches.trunk(BOTH), tmp_path))
    assert adam.passes.sum() == 3 * ADAM.epochs
    inside = history[history.passes.cumsum() <= 3 * ADAM.epochs]
    for loss in branches.LOSSES:
        assert row[f"{loss}_epochs"] == history[loss].iloc[-1]
        assert row[f"{loss}_passes"] == inside[loss].iloc[-1]
        assert row[f"adam_{loss}"] == adam[loss].iloc[-1]
    assert row.passes == history.passes.sum() > 3 * ADAM.epochs
    assert row.epochs_within == len(inside) < row.epochs_run == ADAM.epochs


def test_one_seed_has_no_interval_in_words():
    assert "no interval" in branches.in_words(Estimate(0.5, None, None))


@pytest.mark.parametrize(
    ("found", "word"),
    [((0.5, 0.4, 0.9), "lower"), ((2.0, 1.1, 3.0), "higher"), ((1.0, 1.0, 1.0), "no clear")],
)
def test_words_follow_the_interval(found, word):
    assert word in branches.in_words(Estimate(*found))


def test_comparisons_are_paired_by_seed():
    frame = pd.DataFrame({"beta": ["FR", "FR", "PR", "PR"], "seed": [0, 1, 0, 1], "error": ""})
    for loss in branches.LOSSES:
        frame[f"adam_{loss}"] = [1.0, 4.0, 1.0, 4.0]
        frame[f"{loss}_epochs"] = [2.0, 2.0, 3.0, 12.0]
        frame[f"{loss}_passes"] = [1.0, 4.0, 1.0, 1.0]
    compared = branches.compare(frame, ["beta"]).set_index("beta")
    assert compared.train_loss_epochs.tolist() == [2.0, 7.5]
    assert compared.train_loss_epochs_ratio.tolist() == pytest.approx([1.0, 3.0])
    assert compared.validation_loss_passes_ratio.tolist() == pytest.approx([1.0, 0.5])
    assert compared.train_loss_epochs_ratio_low["PR"] == pytest.approx(3.0)
    assert compared.adam_train_loss.tolist() == [2.5, 2.5]
