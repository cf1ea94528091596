"""Sweeps: Adam's epochs are trained once, budgets and ratios are as defined, failures are named."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from twophase.errors import InputError
from twophase.experiments import branches, runs
from twophase.experiments.config import RunConfig
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


def test_a_damaged_branch_fails_alone(tmp_path):
    branches.run([ADAM, BOTH], tmp_path, device="cpu")
    kept = runs.branch_file(branches.folder_of(branches.trunk(BOTH), tmp_path), "epoch-2")
    kept.write_bytes(b"damaged")
    frame = branches.run([replace(BOTH, beta="FR"), BOTH], tmp_path, device="cpu")
    assert frame.status.tolist() == ["failed", "completed"]


def test_strategies_without_adam_are_refused(tmp_path):
    with pytest.raises(InputError, match="^strategy: 'cg'"):
        branches.run([replace(ADAM, strategy="cg")], tmp_path)
