"""How far a mini-batch in reduced precision is from the same one in full precision."""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from twophase.precision.mini_batches import Full


@torch.enable_grad()
def deviation(step: Any, batch: Any) -> tuple[float, str]:
    """How far loss or gradient of a `Step` on a mini-batch, relative, are from full precision.

    And why they could not be computed here, if so: in all processes they are infinitely far then.
    Torch draws the same numbers at random both times and afterwards, and buffers are as they were;
    hooks of the user's run twice more.
    """
    vector, own, failed = step.objective.vector, step.share(batch), ""
    device, buffers = vector.parameters[0].device, vector.read_buffers()
    try:
        with undrawn(device):
            loss = step.mean(step.own_loss(batch, own, Full()), own).item()
        gradient = vector.read_gradient()
        vector.write_buffers(buffers)
        with undrawn(device):
            try:
                reduced = step.own_loss(batch, own, step.precision)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                failed = str(error).partition("\n")[0] or type(error).__name__
                reduced = torch.full((), torch.nan, device=device)
            other = step.mean(reduced, own).item()
    finally:
        vector.write_buffers(buffers)
    off = _relative(abs(other - loss), abs(loss))
    change = vector.read_gradient() - gradient
    return max(off, _relative(_norm(change), _norm(gradient))), failed


def undrawn(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside from torch's generators is drawn again afterwards."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _norm(vector: Tensor) -> float:
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item()


def _relative(difference: float, size: float) -> float:
    """0 for equal numbers, infinite for NaN."""
    if difference == 0:
        return 0.0
    return difference / size if size > 0 and difference < math.inf else math.inf
