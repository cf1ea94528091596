"""`torchrun -m twophase run`: one run in several processes, its end, and its errors."""

import os
import re
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from twophase.__main__ import main
from twophase.distributed.launch import first_to_say, joined, launched
from twophase.errors import InputError

PLAIN = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RUN = ["run", "--model", "mlp-4", "--train-examples", "301", "--validation-examples", "50"]
RUN += ["--batch-size", "64", "--dtype", "float64", "--device", "cpu"]
LONG = [*RUN, "--epochs", "700", "--switch", "650"]


def start(arguments, launcher, **more):
    command = [sys.executable, *launcher, "-m", "twophase", *map(str, arguments)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=PLAIN | more)


def torchrun(*arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return start(arguments, launcher)


def two(*arguments):
    """Two processes that share a training, without torchrun to watch over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    return [start(arguments, [], **shared, **rank) for rank in ranks]


def finish(process, seconds=300):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def histories(*folders):
    return [pd.read_csv(folder / "history.csv").drop(columns=["seconds"]) for folder in folders]


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process, in one piece."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*LONG, "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_run_by_torchrun_is_that_of_one_process(tmp_path):
    one, by_two = tmp_path / "one", tmp_path / "two"
    settings = [*RUN, "--epochs", "16", "--switch", "9"]
    code, out, err = finish(torchrun(*settings, "--out", by_two))
    assert code == 0, err
    assert len(re.findall("completed after 16 epochs", out)) == 1
    assert main([*settings, "--out", str(one)]) == 0
    first, second = histories(one, by_two)
    pd.testing.assert_frame_equal(first, second, rtol=1e-11, atol=0)
    weights = [torch.load(folder / "weights.pt") for folder in (one, by_two)]
    for a, b in zip(*(found.values() for found in weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_a_process_is_killed_the_run_goes_on_with_another_number(victim, tmp_path, whole):
    broken = tmp_path / "broken"
    ranks = two(*LONG, "--out", broken)
    wait_for(lambda: list(broken.glob("checkpoints/*.ckpt")))
    ranks[victim].kill()
    began = time.monotonic()
    code, _, err = finish(ranks[1 - victim])
    finish(ranks[victim])
    assert code == 2 and time.monotonic() - began < 60
    said = re.findall("^twophase: error: .*$", err, re.MULTILINE)
    assert len(said) == 1 and "the connection to another one is lost" in said[0], err
    assert "Traceback" not in err and not (broken / "summary.json").exists()
    assert main([*LONG, "--out", str(broken)]) == 0
    first, second = histories(broken, whole)
    pd.testing.assert_frame_equal(first, second, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*RUN, "--epochs", "3", "--out", "FOREIGN"], "out: .* a folder without a foreign"),
        (["regret", "--out", "NEW"], "torchrun -m twophase: 'regret' is not allowed; use run"),
    ],
)
def test_an_error_is_said_once(arguments, words, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "history.csv").write_text("mine")
    folders = {"FOREIGN": foreign, "NEW": tmp_path / "new"}
    code, _, err = finish(torchrun(*(folders.get(one, one) for one in arguments)))
    assert code != 0
    said = re.findall("^twophase: error: .*$", err, re.MULTILINE)
    assert len(said) == 1 and re.search(words, said[0]), err
    assert (foreign / "history.csv").read_text() == "mine"


def test_alone_there_is_no_group_and_everything_is_said():
    assert not launched() and first_to_say("twice") and first_to_say("twice")
    with joined("cpu") as device:
        assert device.type == "cpu" and not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "device, words",
    [
        ("cuda:0", "^device: 'cuda:0' is not allowed; use auto, cuda or cpu with several"),
        ("auto", "^nproc-per-node: 2 is not allowed; use at most 1 processes on a machine with 1"),
    ],
)
def test_each_process_needs_a_gpu_of_its_own(device, words, monkeypatch):
    for name, value in (
        ("RANK", "1"),
        ("LOCAL_RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "x"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=words), joined(device):
        pass


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["two", "-1", None])
def test_what_torchrun_sets_must_be_numbers(name, value, monkeypatch, capsys):
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1", name: value}
    if value is None and name in ("RANK", "WORLD_SIZE"):
        pytest.skip("then it is not torchrun that has started the process")
    for variable, one in (given | {"MASTER_ADDR": "x"}).items():
        monkeypatch.delenv(variable, raising=False)
        if one is not None:
            monkeypatch.setenv(variable, one)
    with pytest.raises(InputError, match=f"^{name}: .* as torchrun sets it$"), joined("cpu"):
        pass
    if name == "MASTER_PORT":
        assert first_to_say("that it is no number")
