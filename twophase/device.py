"""Where tensors live: the choice of a device, its name for records, and its clock."""

import platform
import time

import torch

from twophase.errors import InputError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is the current CUDA device, else the CPU.

    Args:
        device: auto, cpu, cuda or cuda:N, or a device of one of these.

    Returns:
        The device.

    Raises:
        InputError: the name is none of auto, cpu, cuda, cuda:N, or that device is not there.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    count = torch.cuda.device_count()
    present = chosen is not None and (
        chosen.type == "cpu" or (chosen.type == "cuda" and (chosen.index or 0) < count)
    )
    if not present:
        there = ", ".join(f"cuda:{i}" for i in range(count)) or "no CUDA device"
        raise InputError("device", str(device), f"auto, cpu or cuda (here: {there})")
    return chosen


def device_name(device: torch.device) -> str:
    """The device in words, for records: the GPU's name, or the processor and its threads.

    Args:
        device: from `resolve_device`.

    Returns:
        The name; for a CPU its architecture and the number of threads that torch uses.

    >>> device_name(torch.device("cpu")).startswith("cpu (")
    True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def clock(device: torch.device) -> float:
    """Seconds on a monotonic clock, once all work queued on the device is done.

    Args:
        device: whose work to wait for; on the CPU there is none to wait for.

    Returns:
        Seconds since an arbitrary moment: only differences have a meaning.

    >>> began = clock(torch.device("cpu"))
    >>> clock(torch.device("cpu")) >= began
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
