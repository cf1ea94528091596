"""Table 1: all of the paper's rows, never a number that was not measured, never a run twice."""

import io
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from twophase import PAPER
from twophase.__main__ import main
from twophase.errors import InputError, TwoPhaseError
from twophase.experiments import files, provenance, runs, table1
from twophase.experiments.executors import ALONE, Local
from twophase.problems import image_files, images

TINY = table1.protocol("smoke", epochs=3, swap_epoch=1, train_examples=16)
NETWORK = ["vit-nomlp-wkewq-wvwo1"]


def chosen(**arguments):
    return table1.configs(TINY, models=NETWORK, **arguments)


def run(configs, out, root=None, executor=ALONE):
    return table1.run(configs, table1.place(out, root, "cpu"), executor)


def command(out, *more):
    """Of `TINY` and its network."""
    sizes = "--preset smoke --epochs 3 --swap-epoch 1 --train-examples 16".split()
    return ["table1", *sizes, "--model", *NETWORK, "--device", "cpu", "--out", str(out), *more]


def folders(out, config):
    """Of Adam alone, and of Adam, then CG."""
    return out / table1.folder_name(config.trunk()), out / table1.folder_name(config)


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
    for config in table1.configs(table1.PROTOCOLS["paper"]):
        epochs, swap = (700, 210) if config.problem.model == "vit-mlp" else (1000, 300)
        assert (config.epochs, config.swap_epoch) == (epochs, swap)
        assert (config.adam.batch_size, config.problem.train_examples) == (512, None)
        assert (config.second, config.fallback) == (PAPER["second"], None)
        assert config.trunk().epochs == epochs


def test_by_the_rule_it_is_the_papers():
    assert chosen(swap="rule")[0].switch == PAPER["switch"]


def test_choices_are_those_of_the_runs_and_have_a_reason():
    config = chosen()[0]
    assert table1.CHOICES["learning rate"][0] == config.adam.learning_rate
    assert table1.CHOICES["direction"][0] == config.second.direction
    assert table1.CHOICES["line search"][0] == config.second.line_search
    assert all(len(reason) > 20 for _, reason in table1.CHOICES.values())


def test_a_table_is_measured_or_not_run(tmp_path):
    two = table1.configs(TINY, models=["vit-nomlp", *NETWORK])
    frame = run(two[1:], tmp_path)
    assert frame.seeds.tolist() == [1, 1]
    whole = table1.table(two, tmp_path)
    assert whole.seeds.tolist() == [0, 0, 1, 1]
    assert whole[list(table1.METRICS)].isna().all(axis=1).tolist() == [True, True, False, False]
    assert whole.paper_train_loss.isna().all(), "the paper has no digits"
    assert "not run" in table1.as_text(whole)
    _, summary = runs.read(folders(tmp_path, two[1])[1])
    row = whole.iloc[3]
    assert row.train_loss == summary["train_loss"]
    assert row.validation_top5_accuracy == summary["validation_top5_accuracy"]
    losses = frame.set_index("strategy").train_loss
    assert row.direction_found == (losses["adam+cg"] < losses["adam"])


def test_finished_rows_are_not_trained_again(tmp_path, monkeypatch):
    first = run(chosen(), tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    monkeypatch.setattr(runs, "train", None)
    again = run(chosen(), tmp_path)
    pd.testing.assert_frame_equal(first, again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == files
    written = pd.read_csv(tmp_path / "table1.csv")
    assert written.train_loss.tolist() == again.train_loss.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("swap", table1.SWAPS)
def test_both_runs_share_adams_epochs(tmp_path, swap):
    (config,) = chosen(swap=swap)
    run([config], tmp_path)
    (adam, _), (both, summary) = map(runs.read, folders(tmp_path, config))
    shared = both[both.phase == "adam"]
    # seconds are measured anew in every training: equal ones were not trained twice
    assert shared.seconds.tolist() == adam.seconds[: len(shared)].tolist()
    if swap == "fixed":
        assert summary["swap_epoch"] == 1


@pytest.mark.slow
def test_two_processes_make_the_same_table(tmp_path, monkeypatch):
    alone = run(chosen(seeds=2), tmp_path / "one")
    monkeypatch.setattr(runs, "train", None)  # here, not in other processes
    both = run(chosen(seeds=2), tmp_path / "two", executor=Local(2))
    pd.testing.assert_frame_equal(alone.drop(columns="seconds"), both.drop(columns="seconds"))


@pytest.mark.slow
def test_on_slurm_it_is_the_same_table(tmp_path, slurm, capsys):
    assert main(command(tmp_path / "out", "--executor", str(slurm))) == 0
    table = pd.read_csv(tmp_path / "out" / "table1.csv")
    assert table.strategy.tolist() == list(table1.STRATEGIES) and table.seeds.tolist() == [1, 1]
    here = run(chosen(), tmp_path / "here").reset_index(drop=True)
    for name in table1.METRICS:
        assert table[name].tolist() == pytest.approx(here[name].tolist(), rel=1e-5)
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["executor"] == str(slurm) and facts["device"] == "cpu of the cluster's nodes"


def test_a_table_says_where_it_comes_from(tmp_path, capsys):
    assert main(command(tmp_path, "--executor", "Local(1)")) == 0
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert facts["command"] == shlex.join(
        ["python", "-m", "twophase", *command(tmp_path, "--executor", "Local(1)")]
    )
    assert facts["revision"] == provenance.git_revision()
    assert facts["versions"] == provenance.versions()
    assert facts["device"].startswith("cpu (") and facts["executor"] == str(ALONE)
    assert 0 <= facts["wall_seconds"] < 600


def test_so_does_one_of_which_rows_have_failed(tmp_path, capsys):
    out = tmp_path / "out"
    given = command(out, "--dataset", "mnist", "digits", "--data", str(tmp_path))
    assert main(given) == 1
    assert "1 of 2 runs failed; first mnist" in capsys.readouterr().err
    assert pd.read_csv(out / "table1.csv").seeds.tolist() == [0, 0, 1, 1]
    kept = (out / "provenance.json").read_text()
    assert "mnist digits" in json.loads(kept)["command"]
    # a command that makes nothing leaves what is there
    assert main([*given, "--epochs", "0"]) == 2
    assert (out / "provenance.json").read_text() == kept


@pytest.mark.slow
def test_rows_of_other_networks_stay_with_what_is_said_of_them(tmp_path, capsys, monkeypatch):
    assert main(command(tmp_path)) == 0
    table, note = (tmp_path / name for name in ("table1.csv", "provenance.json"))
    first, said = table.read_text(), json.loads(note.read_text())
    # all is there
    monkeypatch.setattr(provenance, "git_revision", lambda: "another")
    assert main(command(tmp_path)) == 0
    assert json.loads(note.read_text()) == said
    other = command(tmp_path, "--model", "vit-nomlp")
    assert main(other) == 0
    assert "vit-nomlp-wkewq" not in capsys.readouterr().out.rpartition("dataset")[2]
    assert table.read_text().startswith(first)
    assert pd.read_csv(table).model.tolist() == [*NETWORK * 2, *["vit-nomlp"] * 2]
    now = json.loads(note.read_text())
    assert now["revision"] == "another" and now["earlier"] == [said]
    assert main(command(tmp_path)) == 0
    assert json.loads(note.read_text()) == now


def test_both_kinds_of_swap_branch_off_one_adam_run(tmp_path):
    run(chosen(swap="fixed"), tmp_path)
    adam, _ = folders(tmp_path, chosen()[0])
    before = (adam / "summary.json").stat().st_mtime_ns
    run(chosen(swap="rule"), tmp_path)
    assert (adam / "summary.json").stat().st_mtime_ns == before
    assert (adam.parent / "adam+cg-fixed").is_dir() and (adam.parent / "adam+cg-rule").is_dir()


@pytest.mark.slow
def test_several_seeds_have_a_mean_and_an_interval(tmp_path):
    frame = run(chosen(seeds=3), tmp_path)
    losses = [
        runs.read(folders(tmp_path, config)[0])[1]["train_loss"] for config in chosen(seeds=3)
    ]
    row = frame.iloc[0]
    assert row.seeds == 3
    assert row.train_loss == pytest.approx(np.mean(losses), rel=1e-12)
    # the mean of three equal draws is that draw but for rounding
    assert min(losses) * (1 - 1e-12) <= row.train_loss_low < row.train_loss
    assert row.train_loss < row.train_loss_high <= max(losses) * (1 + 1e-12)


def test_a_row_that_fails_does_not_stop_the_others(tmp_path, caplog):
    two = table1.configs(TINY, datasets=["mnist", "digits"], models=NETWORK)
    with pytest.raises(TwoPhaseError, match="1 of 2 runs failed; first mnist .* is missing"):
        run(two, tmp_path / "out", root=tmp_path)
    assert table1.table(two, tmp_path / "out").seeds.tolist() == [0, 0, 1, 1]
    assert "mnist vit-nomlp-wkewq-wvwo1 adam+second seed 0 failed" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "fast"], "preset: 'fast' is not allowed"),
        (["--model", "vit"], "model: 'vit' is not allowed"),
        (["--dataset", "minst"], "dataset: 'minst' is not allowed"),
        (["--seeds", "0"], "seeds: 0 is not allowed"),
        (["--swap", "auto"], "swap: 'auto' is not allowed; use one of fixed, rule"),
        (["--epochs", "0"], "epochs: 0 is not allowed"),
        (["--swap-epoch", "100"], "switch: 100 is not allowed; use an epoch below"),
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
    for name, source in image_files.SOURCES.items():
        if root and source.files and (Path(root) / source.files[0].path).parent.is_dir():
            known.append(name)
    for name in known:
        loaded, source = images.load(name), image_files.SOURCES[name]
        sizes = (len(loaded.train), loaded.channels, loaded.classes)
        assert sizes == (source.examples, source.channels, source.classes)


def test_a_table_needs_the_source_tree(monkeypatch):
    monkeypatch.setattr(files, "project_folder", lambda: None)
    with pytest.raises(InputError, match="paper_table1.csv: .* use the source tree"):
        table1.paper_table()


def test_the_committed_rows_on_mnist_are_read():
    """They were written when configurations were texts; their results are as good as today's."""
    out = Path(__file__).parents[2] / "reports" / "reference" / "table1-mnist-2048"
    protocol = table1.protocol("paper", epochs=60, swap_epoch=18, train_examples=2048)
    table = table1.table(table1.configs(protocol, ["mnist"]), out)
    assert table.seeds.tolist() == [1] * 10
    assert table.paper_train_loss.notna().all()
