"""Runs that are stopped, killed, branched, damaged or crowded: what is finished is never lost."""

import multiprocessing
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from filelock import FileLock

from twophase.__main__ import main
from twophase.adam import AdamSettings
from twophase.errors import DataError, InputError
from twophase.experiments import checkpoints, runs
from twophase.experiments.config import RunConfig
from twophase.experiments.runs import CHECKPOINTS, branch_file, run
from twophase.problems.problem import ImageProblem, TextProblem
from twophase.switching.fallback import Fallback
from twophase.switching.rules import FixedEpoch, GradientNormPeak
from twophase.trainer import Trainer
from twophase.training import PAPER

pytestmark = pytest.mark.slow

CONFIG = RunConfig(
    ImageProblem(train_examples=48),
    10,
    AdamSettings(batch_size=16),
    **PAPER | {"switch": FixedEpoch(5)},
)
COMMAND = [
    *(sys.executable, "-m", "twophase", "run", "--second", "paper", "--switch", "5"),
    *("--epochs", "10", "--train-examples", "48", "--batch-size", "16"),
]


@pytest.fixture(autouse=True)
def a_checkpoint_after_every_epoch(monkeypatch):
    monkeypatch.setattr(runs, "TIMES_WRITING", 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in one piece."""
    out = tmp_path_factory.mktemp("whole")
    run(CONFIG, out, device="cpu")
    return out


def history(folder):
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


def same(first, second):
    """Equal histories but for the seconds, and equal weights, to the last bit."""
    pd.testing.assert_frame_equal(history(first), history(second), check_exact=True)
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (first, second)]
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Stopped(Exception):
    pass


def latest(folder):
    """The newest state that is whole."""
    return next(state for _, state in checkpoints.whole(folder))


def stop_after(monkeypatch, epochs):
    """Make training stop, as a crash would, at the start of the epoch after `epochs`."""
    go_on = Trainer.epoch

    def epoch(self):
        if len(self.history) == epochs:
            raise Stopped
        return go_on(self)

    monkeypatch.setattr(Trainer, "epoch", epoch)


@pytest.mark.parametrize("epochs", [0, 1, 4, 5, 6, 9])
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, monkeypatch, whole, epochs):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, epochs)
        run(CONFIG, tmp_path, device="cpu")
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "history.csv").exists()
    run(CONFIG, tmp_path, device="cpu")
    assert same(tmp_path, whole)
    assert not (tmp_path / CHECKPOINTS).exists()
    assert not (tmp_path / "history.partial.csv").exists()


def test_a_run_with_ways_back_is_stopped_anywhere(tmp_path, monkeypatch):
    """Weights and moments of the swap are in the checkpoints, and so are the best weights."""
    config = replace(CONFIG, epochs=16, switch=FixedEpoch(4), fallback=Fallback())
    summary = run(config, tmp_path / "whole", device="cpu")
    assert [change["phase"] for change in summary["changes"]][:2] == ["adam", "second"]
    for epochs in (4, 8, 12):
        out = tmp_path / str(epochs)
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(patch, epochs)
            run(config, out, device="cpu")
        assert run(config, out, device="cpu")["weights_epoch"] == summary["weights_epoch"]
        assert same(out, tmp_path / "whole")


def test_a_run_killed_at_twenty_moments_reaches_the_same_end(tmp_path):
    """kill -9 at random moments of training; each attempt goes on where the last one was."""
    long = replace(CONFIG, epochs=90, switch=FixedEpoch(30))
    moments, out = random.Random(0), tmp_path / "killed"
    # forks of a process that has loaded torch and what it imports at first use start at once
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([run.__module__, "torch._dynamo", "sklearn.datasets"])
    for _ in range(20):
        started = written(out / "config.json")
        process = server.Process(target=run, args=(long, out), kwargs={"device": "cpu"})
        process.start()
        while written(out / "config.json") == started:
            assert process.is_alive(), "it ended before it trained"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "summary.json").exists()
    assert latest(out / CHECKPOINTS)["history"], "the attempts came nowhere"
    run(long, out, device="cpu")
    run(long, tmp_path / "whole", device="cpu")
    assert same(out, tmp_path / "whole")


def written(path):
    """When a file was last written; None if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.mark.parametrize("rule", [FixedEpoch(5), GradientNormPeak(0.999)], ids=["fixed", "rule"])
def test_a_branch_equals_the_run_in_one_piece(tmp_path, rule):
    """Adam keeps its state where the rule fires; the second phase goes on from there."""
    both = replace(CONFIG, switch=rule)
    adam = both.trunk()
    run(adam, tmp_path / "adam", device="cpu", branches={"swap": rule})
    run(both, tmp_path / "both", device="cpu", branch_from=branch_file(tmp_path / "adam", "swap"))
    run(both, tmp_path / "whole", device="cpu")
    assert same(tmp_path / "both", tmp_path / "whole")
    shared = history(tmp_path / "both").query("phase == 'adam'").train_loss
    assert shared.tolist() == history(tmp_path / "adam").train_loss[: len(shared)].tolist()
    assert 1 <= len(shared) < 10


def test_a_branch_survives_a_stop_of_the_run_that_keeps_it(tmp_path, monkeypatch, whole):
    adam = CONFIG.trunk()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 8)
        run(adam, tmp_path / "adam", device="cpu", branches={"swap": FixedEpoch(5)})
    run(adam, tmp_path / "adam", device="cpu", branches={"swap": FixedEpoch(5)})
    run(CONFIG, tmp_path / "both", device="cpu", branch_from=branch_file(tmp_path / "adam", "swap"))
    assert same(tmp_path / "both", whole)


def stopped(folder, monkeypatch, epochs=7):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, epochs)
        run(CONFIG, folder, device="cpu")
    return sorted((folder / CHECKPOINTS).iterdir())


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "another version"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path, monkeypatch, caplog, whole, damage
):
    older, newest = stopped(tmp_path, monkeypatch)
    content = newest.read_bytes()
    newest.write_bytes(
        {
            "truncated": content[:-100],
            "altered": content[:500] + bytes([content[500] ^ 1]) + content[501:],
            "empty": b"",
            "another version": content.replace(b"checkpoint 1", b"checkpoint 9", 1),
        }[damage]
    )
    with pytest.raises(DataError, match="damaged"):
        checkpoints.load(newest)
    assert len(latest(newest.parent)["history"]) == 6
    assert str(newest) in caplog.text
    run(CONFIG, tmp_path, device="cpu")
    assert same(tmp_path, whole)


def test_a_checkpoint_never_runs_code(tmp_path):
    """Even one with the right digest: it is read as weights only."""

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it went off')",))

    checkpoints.write(tmp_path / "bomb.ckpt", {"x": Bomb()})
    with pytest.raises(Exception, match="(?i)weights.only"):
        checkpoints.load(tmp_path / "bomb.ckpt")


def test_a_second_process_says_that_the_first_is_there(tmp_path):
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(InputError, match="^out: .* no other process is training in"):
            run(CONFIG, tmp_path, device="cpu")
    assert not (tmp_path / "config.json").exists()


def test_a_folder_of_another_format_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="^out: .*there format is 99, here 7"):
        run(CONFIG, tmp_path, device="cpu")
    assert (tmp_path / "config.json").read_text() == '{"format": 99}'


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch, whole):
    """A limit on the size of files stands for the full disk: no checkpoint can be written."""
    resource = pytest.importorskip("resource")
    stopped(tmp_path, monkeypatch, epochs=3)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [*COMMAND, "--device", "cpu", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        preexec_fn=small_files,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("twophase: error: ")
    assert done.stderr.count("\n") == 1
    assert len(latest(tmp_path / CHECKPOINTS)["history"]) == 3
    assert not list(tmp_path.rglob("*.tmp"))
    run(CONFIG, tmp_path, device="cpu")
    assert same(tmp_path, whole)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder nobody may write")
def test_a_folder_that_cannot_be_written_is_one_line(capsys):
    assert main([*COMMAND[3:], "--out", "/proc/twophase"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("twophase: error: ")
    assert "/proc/twophase" in error
    assert error.count("\n") == 1


def test_only_the_newest_two_checkpoints_are_kept(tmp_path, monkeypatch):
    names = [path.name for path in stopped(tmp_path, monkeypatch)]
    assert names == ["epoch-000006.ckpt", "epoch-000007.ckpt"]


def test_where_epochs_are_short_writing_takes_a_part_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "TIMES_WRITING", 10**9)
    assert [path.name for path in stopped(tmp_path, monkeypatch)] == ["epoch-000001.ckpt"]


def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    """A file of the same name and length may hold another text by now."""
    path, out = tmp_path / "notes.txt", tmp_path / "run"
    path.write_text("the cat sat on the mat " * 40, encoding="utf-8")
    problem = TextProblem(str(path), "gpt-10k", 16, 12, 4)
    config = RunConfig(problem, 6, AdamSettings(batch_size=4), switch=FixedEpoch(3), fallback=None)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 2)
        run(config, out, device="cpu")
    before = {kept: kept.read_bytes() for kept in (out / CHECKPOINTS).iterdir()}
    path.write_text("tam eht no tas tac eht " * 40, encoding="utf-8")
    with pytest.raises(InputError, match="^out: .* use a new folder: this run began with other da"):
        run(config, out, device="cpu")
    assert {kept: kept.read_bytes() for kept in (out / CHECKPOINTS).iterdir()} == before
    path.write_text("the cat sat on the mat " * 40, encoding="utf-8")
    assert run(config, out, device="cpu")["epochs"] == 6
    assert run(config, out, device="cpu")["epochs"] == 6, "finished"
    path.write_text("tam eht no tas tac eht " * 40, encoding="utf-8")
    with pytest.raises(InputError, match="^out: .* this run began with other data"):
        run(config, out, device="cpu")
