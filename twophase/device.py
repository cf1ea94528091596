"""Where tensors live: the choice of a device, its name for records, and its clock."""

import platform
import time

import torch

from twophase.errors import InputError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name: cpu, cuda, cuda:N, or auto, the current CUDA device or else the CPU.

    Raises `InputError` for any other name and for a device that is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count()
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError):  # the last for numbers beyond 64 bits
        pass
    else:
        if chosen.type == "cpu" or (chosen.type == "cuda" and (chosen.index or 0) < count):
            return chosen
    there = ", ".join(f"cuda:{i}" for i in range(count)) or "no CUDA device"
    raise InputError("device", str(device), f"auto, cpu or cuda (here: {there})")


def device_name(device: torch.device, threads: int | None = None) -> str:
    """The GPU's name, or the CPU's architecture and its `threads`, by default those torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = threads or torch.get_num_threads()
    return f"cpu ({platform.machine()}, {count} thread{'' if count == 1 else 's'})"


def clock(device: torch.device) -> float:
    """Seconds since an arbitrary moment, once all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
