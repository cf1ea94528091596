"""`torchrun -m twophase run`: one run in several processes, its end, and its errors."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist

from twophase.__main__ import main
from twophase.distributed.launch import at_sigterm, first_to_say, joined, launched
from twophase.errors import InputError
from twophase.experiments import checkpoints, runs

PLAIN = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RUN = ["run", "--model", "mlp-4", "--train-examples", "301", "--validation-examples", "50"]
RUN += ["--batch-size", "64", "--dtype", "float64", "--device", "cpu"]
SHORT = [*RUN, "--epochs", "16", "--switch", "9"]
LONG = [*RUN, "--epochs", "700", "--switch", "650"]
ENDLESS = [*RUN, "--epochs", "70000", "--switch", "65000"]


def start(arguments, launcher, **more):
    command = [sys.executable, *launcher, "-m", "twophase", *map(str, arguments)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=PLAIN | more)


def torchrun(*arguments, **more):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return start(arguments, launcher, **more)


def as_one_of_two(rank, port=None):
    """What torchrun sets for one of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def two(*arguments):
    """Two processes that share a training, without torchrun to watch over them."""
    first = as_one_of_two(0)
    second = as_one_of_two(1, first["MASTER_PORT"])
    return [start(arguments, [], **rank) for rank in (first, second)]


def of_rank(rank, launcher):
    """The number of a process that torchrun has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(children)


def said_in(err):
    return re.findall("^twophase: error: .*$", err, re.MULTILINE)


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


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of one process, short enough for rounding to stay what it is."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert main([*SHORT, "--out", str(folder)]) == 0
    return folder


def finish_in_two(folder, short):
    """End a run in two processes; it must be the one of one process."""
    code, out, err = finish(torchrun(*SHORT, "--out", folder))
    assert code == 0, err
    assert len(re.findall("completed after 16 epochs", out)) == 1
    first, second = histories(short, folder)
    pd.testing.assert_frame_equal(first, second, rtol=1e-11, atol=0)
    weights = [torch.load(one / "weights.pt") for one in (short, folder)]
    for a, b in zip(*(found.values() for found in weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_a_run_by_torchrun_is_that_of_one_process(tmp_path, short):
    finish_in_two(tmp_path / "two", short)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [5, 12])
def test_a_run_of_one_process_goes_on_in_two(epochs, tmp_path, short, monkeypatch):
    """From a checkpoint of Adam, and from one of the second phase."""
    save, folder = checkpoints.save, tmp_path / "run"

    def stopping(kept, epoch, state):
        if epoch > epochs:
            raise KeyboardInterrupt
        save(kept, epoch, state)

    monkeypatch.setattr(checkpoints, "save", stopping)
    monkeypatch.setattr(runs, "TIMES_WRITING", 0)
    assert main([*SHORT, "--out", str(folder)]) == 130
    begun = pd.read_csv(folder / "history.partial.csv")
    finish_in_two(folder, short)
    went_on = pd.read_csv(folder / "history.csv")[: len(begun)]
    assert begun.epoch.iloc[-1] == epochs and went_on.seconds.tolist() == begun.seconds.tolist()


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
    said = said_in(err)
    assert len(said) == 1 and "the connection to another one is lost" in said[0], err
    assert "Traceback" not in err and not (broken / "summary.json").exists()
    assert main([*LONG, "--out", str(broken)]) == 0
    first, second = histories(broken, whole)
    # rounding, which in two processes is another one, has grown over hundreds of epochs
    pd.testing.assert_frame_equal(first, second, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize(
    "blow, patience, seconds, words",
    [
        # torchrun ends the other one, which may notice by itself before
        (signal.SIGKILL, 600, 120, "another one has ended|the connection to another one is lost"),
        # and here it kills, after half a minute, the one that stands still
        (signal.SIGSTOP, 20, 180, "the connection to another one is lost: .*Timed out .* 20000ms"),
    ],
    ids=["killed", "stopped"],
)
def test_torchrun_ends_where_a_process_does(blow, patience, seconds, words, tmp_path):
    folder = tmp_path / "run"
    launcher = torchrun(*ENDLESS, "--out", folder, TWOPHASE_PATIENCE=str(patience))
    wait_for(lambda: list(folder.glob("checkpoints/*.ckpt")))
    os.kill(of_rank(1, launcher), blow)
    code, _, err = finish(launcher, seconds)
    said = said_in(err)
    assert code == 1 and len(said) == 1 and re.search(words, said[0]), err
    assert re.search(r"rank +: 0 .*\n +exitcode +: 2 ", err), err


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, words",
    [
        ({"RANK": "3"}, "^twophase: error: RANK: '3' .* from 0 to 1, as torchrun sets it$"),
        ({"RANK": "x"}, "^twophase: error: RANK: 'x' .* from 0 to 1, as torchrun sets it$"),
        # the other one does not come
        ({"TWOPHASE_PATIENCE": "2"}, "^twophase: error: processes: the connection to another one"),
    ],
)
def test_a_process_that_cannot_be_one_of_two_says_so(more, words, tmp_path):
    process = start([*RUN, "--out", tmp_path / "run"], [], **(as_one_of_two(0) | more))
    code, _, err = finish(process, 60)
    assert code == 2 and re.search(words, err, re.MULTILINE) and "Traceback" not in err


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
    said = said_in(err)
    assert len(said) == 1 and re.search(words, said[0]), err
    assert (foreign / "history.csv").read_text() == "mine"


def test_alone_there_is_no_group_and_everything_is_said():
    assert not launched() and first_to_say("twice") and first_to_say("twice")
    with joined("cpu") as device:
        assert device.type == "cpu" and not torch.distributed.is_initialized()
    with at_sigterm(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    "device, words",
    [
        ("cuda:0", "^device: 'cuda:0' is not allowed; use auto, cuda or cpu with several"),
        ("auto", "^nproc-per-node: 2 is not allowed; use at most 1 processes on a machine with 1"),
    ],
)
def test_each_process_needs_a_gpu_of_its_own(device, words, monkeypatch):
    for name, value in as_one_of_two(1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=words), joined(device):
        pass


@pytest.fixture
def torchruns(monkeypatch):
    """The environment of the second of two processes."""
    for name in ("TWOPHASE_PATIENCE", "TORCH_NCCL_BLOCKING_WAIT"):
        monkeypatch.setenv(name, "")  # so that it is gone afterwards
        monkeypatch.delenv(name)
    for name, value in as_one_of_two(1).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    "name, values",
    [
        ("RANK", ["two", "-1", "2"]),
        ("WORLD_SIZE", ["two", "-1", "0", "9000"]),
        ("LOCAL_RANK", ["two", "-1", "2", None]),
        ("MASTER_PORT", ["two", "-1", "65536", None]),
        ("TWOPHASE_PATIENCE", ["two", "-1", "0", "1e3", "9999999"]),
    ],
)
def test_what_torchrun_sets_must_be_numbers_that_it_can_set(name, values, torchruns):
    kind = "in seconds" if name == "TWOPHASE_PATIENCE" else "as torchrun sets it"
    for value in values:
        torchruns.setenv(name, value or "")
        said = f"^{name}: '{value or ''}' is not allowed; use a whole number from .* to .*, {kind}$"
        with pytest.raises(InputError, match=said), joined("cpu"):
            pass
        assert name != "MASTER_PORT" or first_to_say("that it is no number")


@pytest.mark.parametrize(
    "device, given, expected",
    [
        ("cuda", None, ("nccl", "1")),
        ("cuda", "0", ("nccl", "0")),  # who prefers torch's own way has it
        ("cpu", None, ("gloo", None)),
    ],
)
def test_with_nccl_an_exchange_waits_for_what_became_of_it(device, given, expected, torchruns):
    """Else it returns at once, and where another process is lost torch aborts this one."""
    found = []

    def begin(backend, timeout):
        found.append((backend, os.environ.get("TORCH_NCCL_BLOCKING_WAIT")))
        assert timeout == timedelta(seconds=77)

    torchruns.setenv("TWOPHASE_PATIENCE", "77")
    if given is not None:
        torchruns.setenv("TORCH_NCCL_BLOCKING_WAIT", given)
    torchruns.setattr(torch.cuda, "device_count", lambda: 2)
    torchruns.setattr(torch.cuda, "set_device", lambda device: None)
    torchruns.setattr(dist, "init_process_group", begin)
    torchruns.setattr(dist, "destroy_process_group", lambda: None)
    with joined(device) as chosen:
        assert chosen.type == device
    assert found == [expected]


def test_sigterm_is_acted_upon_while_torch_waits(torchruns):
    """The main thread waits for a key of a store that only the action writes."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))
    other = dist.TCPStore("127.0.0.1", store.port, timeout=timedelta(seconds=20))
    later = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    with at_sigterm(lambda: other.set("key", "written")):
        assert callable(signal.getsignal(signal.SIGTERM))
        later.start()
        assert store.get("key") == b"written"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_ones_own_stays(torchruns):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        with at_sigterm(lambda: seen.append("ours")):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["mine"]
