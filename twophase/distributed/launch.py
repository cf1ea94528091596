"""Processes that torchrun has started: their group, their devices, and who tells of an error."""

import gc
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from twophase.device import resolve_device
from twophase.errors import InputError

# How long a process waits for another in one exchange: a pass over the data, or a file's writing.
PATIENCE = timedelta(minutes=10)
# The numbers among what torchrun sets.
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process among others."""
    known = all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return dist.is_available() and known and os.environ["WORLD_SIZE"] != "1"


@contextmanager
def joined(device: str | torch.device = "auto") -> Iterator[torch.device]:
    """In the process group of all that torchrun has started, with this process's device.

    "auto" and "cuda" are a GPU for each process of a machine, with NCCL; on CPUs it is gloo.
    `InputError` where there are not enough GPUs, or a variable that torchrun sets is no number.
    Else there is no group, and one device.
    """
    if not launched():
        yield resolve_device(device)
        return
    for name in NUMBERS:
        if not os.environ.get(name, "").isdecimal():
            raise InputError(name, os.environ.get(name), "a whole number, as torchrun sets it")
    chosen = _own(device)
    on_gpu = chosen.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield chosen
    finally:
        dist.destroy_process_group()
        # what still refers to the group would end its threads while Python ends, which aborts then
        gc.collect()


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
        store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"twophase/said/{digest}", 1) == 1
    except Exception:  # it may be gone with its process, or never have been there
        return True
