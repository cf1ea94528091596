"""Table 1: all of the paper's rows, never a number that was not measured, never a run twice."""

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from twophase.__main__ import main
from twophase.errors import InputError, TwoPhaseError
from twophase.experiments import runs, table1
from twophase.experiments.config import RunConfig
from twophase.problems import images

TINY = table1.protocol("smoke", epochs=3, swap_epoch=1, train_examples=16)
NETWORK = ["vit-nomlp-wkewq-wvwo1"]


def chosen(**arguments):
    return table1.pairs(TINY, networks=NETWORK, **arguments)


def test_the_list_has_the_papers_q_to_every_digit(capsys):
    assert main(["table1", "--preset", "paper", "--list"]) == 0
    listing = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert listing.columns.tolist() == ["dataset", "model", "parameters", "q"]
    paper = table1.paper_table().groupby(["dataset", "model"], sort=False).q.first()
    listed = listing.set_index(["dataset", "model"])
    assert len(listing) == 15
    assert listed.q.equals(paper.reindex(listed.index))


def test_the_papers_table_has_its_thirty_rows():
    paper = table1.paper_table()
    assert len(paper) == 30
    assert paper.train_loss.between(0, 0.06).all()
    assert (paper.groupby(["dataset", "model"]).size() == 2).all()


def test_the_papers_protocol_is_the_papers():
    for pair in table1.pairs(table1.PROTOCOLS["paper"]):
        epochs, swap = (700, 210) if pair.model == "vit-mlp" else (1000, 300)
        adam, both = pair.config("adam"), pair.config("adam+cg")
        assert (adam.epochs, both.epochs, both.swap_epoch) == (epochs, epochs, swap)
        assert (adam.batch_size, adam.train_examples, adam.swap_epoch) == (512, None, None)


def test_choices_are_fields_of_a_run_or_said_to_be_none():
    config = chosen()[0].config("adam+cg")
    for name, (value, reason) in table1.CHOICES.items():
        assert len(reason) > 20
        if value is not None:
            assert getattr(config, name) == value


def test_a_table_is_measured_or_not_run(tmp_path):
    two = table1.pairs(TINY, networks=["vit-nomlp", *NETWORK])
    frame = table1.run(two[1:], tmp_path)
    assert frame.seeds.tolist() == [1, 1]
    whole = table1.table(two, tmp_path)
    assert whole.seeds.tolist() == [0, 0, 1, 1]
    assert whole[list(table1.METRICS)].isna().all(axis=1).tolist() == [True, True, False, False]
    assert whole.paper_train_loss.isna().all(), "the paper has no digits"
    assert "not run" in table1.as_text(whole)
    pair = two[1]
    _, summary = runs.read(pair.folder(tmp_path, "adam+cg"))
    row = whole.iloc[3]
    assert row.train_loss == summary["train_loss"]
    assert row.validation_top5_accuracy == summary["validation_top5_accuracy"]
    losses = frame.set_index("strategy").train_loss
    assert row.direction_found == (losses["adam+cg"] < losses["adam"])


def test_finished_rows_are_not_trained_again(tmp_path, monkeypatch):
    first = table1.run(chosen(), tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    monkeypatch.setattr(runs, "train", None)
    again = table1.run(chosen(), tmp_path)
    pd.testing.assert_frame_equal(first, again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == files
    written = pd.read_csv(tmp_path / "table1.csv")
    assert written.train_loss.tolist() == again.train_loss.tolist()


@pytest.mark.parametrize("swap", table1.SWAPS)
def test_both_runs_share_adams_epochs(tmp_path, swap):
    (pair,) = chosen(swap=swap)
    table1.run([pair], tmp_path)
    adam, _ = runs.read(pair.folder(tmp_path, "adam"))
    both, summary = runs.read(pair.folder(tmp_path, "adam+cg"))
    shared = both[both.phase == "adam"]
    # seconds are measured anew in every training: equal ones were not trained twice
    assert shared.seconds.tolist() == adam.seconds[: len(shared)].tolist()
    assert summary["swap_epoch"] == (1 if swap == "fixed" else summary["swap_epoch"])


def test_both_kinds_of_swap_branch_off_one_adam_run(tmp_path):
    table1.run(chosen(swap="fixed"), tmp_path)
    adam = chosen()[0].folder(tmp_path, "adam")
    before = (adam / "summary.json").stat().st_mtime_ns
    table1.run(chosen(swap="rule"), tmp_path)
    assert (adam / "summary.json").stat().st_mtime_ns == before
    assert (adam.parent / "adam+cg-fixed").is_dir() and (adam.parent / "adam+cg-rule").is_dir()


def test_several_seeds_have_a_mean_and_an_interval(tmp_path):
    frame = table1.run(chosen(seeds=3), tmp_path)
    losses = [runs.read(pair.folder(tmp_path, "adam"))[1]["train_loss"] for pair in chosen(seeds=3)]
    row = frame.iloc[0]
    assert row.seeds == 3
    assert row.train_loss == pytest.approx(np.mean(losses), rel=1e-12)
    # the mean of three equal draws is that draw but for rounding
    assert min(losses) * (1 - 1e-12) <= row.train_loss_low < row.train_loss
    assert row.train_loss < row.train_loss_high <= max(losses) * (1 + 1e-12)


def test_a_pair_that_fails_does_not_stop_the_others(tmp_path, caplog):
    pairs = table1.pairs(TINY, datasets=["mnist", "digits"], networks=NETWORK)
    with pytest.raises(TwoPhaseError, match="1 of 2 pairs failed; first mnist .* is missing"):
        table1.run(pairs, tmp_path / "out", root=tmp_path)
    assert table1.table(pairs, tmp_path / "out").seeds.tolist() == [0, 0, 1, 1]
    assert "mnist vit-nomlp-wkewq-wvwo1 seed 0 failed" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "fast"], "preset: 'fast' is not allowed"),
        (["--model", "vit"], "model: 'vit' is not allowed"),
        (["--dataset", "minst"], "dataset: 'minst' is not allowed"),
        (["--seeds", "0"], "seeds: 0 is not allowed"),
        (["--swap", "auto"], "swap: 'auto' is not allowed; use one of fixed, rule"),
        (["--epochs", "0"], "epochs: 0 is not allowed"),
        (["--swap-epoch", "100"], "swap_epoch: 100 is not allowed; use an epoch below"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    code = main(["table1", *arguments, "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err.splitlines()
    assert (code, len(errors)) == (2, 1)
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_sizes_are_those_of_the_data():
    root = os.environ.get("TWOPHASE_DATA")
    known = ["digits"]
    for name, source in images.SOURCES.items():
        if root and source.files and (Path(root) / source.files[0].path).parent.is_dir():
            known.append(name)
    for name in known:
        loaded = images.load(name)
        sizes = table1.TrainingSet(len(loaded.train), loaded.channels, loaded.classes)
        assert sizes == table1.TRAINING_SETS[name]


def test_a_table_needs_the_source_tree(monkeypatch):
    monkeypatch.setattr(table1, "project_folder", lambda: None)
    with pytest.raises(InputError, match="paper's table"):
        table1.paper_table()


def test_configurations_of_a_pair_differ_in_the_strategy_only():
    (pair,) = chosen()
    adam, both = pair.config("adam").to_dict(), pair.config("adam+cg").to_dict()
    assert {name for name in adam if adam[name] != both[name]} == {"strategy", "swap_epoch"}
    assert isinstance(pair.config("adam"), RunConfig)
