"""A closure, as torch's optimizers take it, as an objective."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from twophase.errors import InputError
from twophase.objective import Passes, round_off
from twophase.parameters import ParameterVector

Closure = Callable[[], Tensor]


class ClosureObjective:
    """An `Objective` from a torch closure that returns the loss, and does NOT call backward.

    Its resolution is that of the loss's dtype, at best that of the parameters'. Every evaluation
    calls the closure once, leaves its `x` in the parameters, and raises `InputError` where the
    closure calls backward or returns no real scalar, or, for a gradient, one without a graph.
    """

    def __init__(self, vector: ParameterVector, closure: Closure):
        self.vector, self.closure = vector, closure
        self.passes = Passes()
        self.resolution = round_off(vector.dtype)

    @torch.no_grad()
    def value(self, x: Tensor) -> float:
        self.passes.forward += 1
        self.vector.write(x)
        with _explained():
            return self._loss().item()

    @torch.enable_grad()
    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        self.passes.forward += 1
        self.passes.backward += 1
        self.vector.write(x)
        loss = self._loss()
        if not loss.requires_grad:
            allowed = "a loss computed from the parameters"
            raise InputError("closure", "a loss without a graph", allowed)
        with _explained():
            return loss.item(), self.vector.gradient(loss)

    def _loss(self) -> Tensor:
        loss = self.closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            kind = type(loss).__name__
            if isinstance(loss, Tensor):
                kind = f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
            raise InputError("closure", kind, "a closure that returns the loss as a real scalar")
        self.resolution = max(round_off(loss.dtype), round_off(self.vector.dtype))
        return loss.reshape(())


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what torch says of a closure that calls backward into one clear line."""
    try:
        yield
    except RuntimeError as error:
        if "second time" not in str(error) and "does not require grad" not in str(error):
            raise
        allowed = "one that only returns the loss"
        raise InputError("closure", "one that calls backward", allowed) from error
