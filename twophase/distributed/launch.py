"""Processes that torchrun has started: their group, their devices, and who tells of an error."""

import gc
import hashlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from twophase.device import resolve_device
from twophase.distributed.processes import MOST, explained
from twophase.errors import InputError

# How many seconds a process waits for another in one exchange, a pass over the data or a file's
# writing, where the environment's TWOPHASE_PATIENCE says nothing; and how many it may say.
PATIENCE, LONGEST = 600, 7 * 24 * 3600


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process among others."""
    known = all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return dist.is_available() and known and os.environ["WORLD_SIZE"] != "1"


@contextmanager
def joined(device: str | torch.device = "auto") -> Iterator[torch.device]:
    """In the process group of all that torchrun has started, with this process's device.

    "auto" and "cuda" are a GPU for each process of a machine, with NCCL; on CPUs it is gloo. In an
    exchange a process waits for the others as many seconds as TWOPHASE_PATIENCE says, or 600.
    `InputError` where there are not enough GPUs, or a variable is no number that it can be;
    `ProcessError` where the processes do not find each other. Without torchrun there is no group,
    and one device.
    """
    if not launched():
        yield resolve_device(device)
        return
    count = _number("WORLD_SIZE", 2, MOST)
    for name, most in (("RANK", count - 1), ("LOCAL_RANK", count - 1), ("MASTER_PORT", 2**16 - 1)):
        _number(name, 0, most)
    patience = _number("TWOPHASE_PATIENCE", 1, LONGEST, "in seconds", str(PATIENCE))
    chosen = _own(device)
    on_gpu = chosen.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(chosen)
        # else exchanges return at once, and torch aborts a process that has lost another
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    with explained():
        wait = timedelta(seconds=patience)
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=wait)
    try:
        yield chosen
    finally:
        dist.destroy_process_group()
        # what still refers to the group would end its threads while Python ends, which aborts then
        gc.collect()


def _number(
    name: str, least: int, most: int, kind: str = "as torchrun sets it", usual: str = ""
) -> int:
    given = os.environ.get(name) or usual
    if not given.isdecimal() or not least <= int(given) <= most:
        raise InputError(name, given, f"a whole number from {least} to {most}, {kind}")
    return int(given)


def _own(device: str | torch.device) -> torch.device:
    chosen, number = resolve_device(device), int(os.environ.get("LOCAL_RANK", 0))
    if chosen.type == "cpu":
        return chosen
    count = torch.cuda.device_count()
    if str(device) not in ("auto", "cuda"):
        raise InputError("device", str(device), "auto, cuda or cpu with several processes")
    if number >= count:
        allowed = f"at most {count} processes on a machine with {count} GPUs, or --device cpu"
        raise InputError("nproc-per-node", number + 1, allowed)
    return torch.device("cuda", number)


def first_to_say(text: str) -> bool:
    """Whether no other process of this launch has said the same before; alone always."""
    if not launched():
        return True
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # where there is no store, one would be looked for until the end of the timeout
        socket.create_connection(place, timeout=5).close()
        store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"twophase/said/{digest}", 1) == 1
    except Exception:  # it may be gone with its process, or never have been there
        return True


@contextmanager
def at_sigterm(act: Callable[[], object]) -> Iterator[None]:
    """Act at SIGTERM, which torchrun sends to all others where one of its processes has ended.

    A thread does it: Python calls handlers between two steps of the main thread, which may wait in
    torch for the one that has ended. Nothing is changed without torchrun, in another thread, and
    where the signal has a handler; afterwards it has none again.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or not launched() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    reader, writer = socket.socketpair()

    def watch() -> None:
        with reader:
            while came := reader.recv(1):
                if came[0] == signal.SIGTERM:
                    act()

    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        writer.close()
