"""How the loss and the gradient norm of an epoch of mini-batches become known."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from twophase.errors import InputError
from twophase.objective import Way
from twophase.settings import Settings


class Measured(NamedTuple):
    """What is known at the end of an epoch, and the passes that it took beyond the epoch's own.

    `way` is that of the epoch, where the gradients before and after it are known.
    """

    loss: float
    accuracy: float | None
    grad_norm: float
    passes: int
    way: Way | None = None


class Monitor(Settings):
    """Base of the ways to know loss and gradient norm after an epoch of mini-batches.

    `exact` says whether they are those of the full training set, which takes passes.
    """

    exact = True

    def means(self, parameters: Iterable[Tensor], count: int) -> "EpochMeans | None":
        """What shall watch an epoch over `count` examples; None: nothing, both are measured."""
        return None


@dataclass(frozen=True)
class Exact(Monitor):
    """Of the full training set, at the weights after the epoch: 3 passes, as many as Adam's own."""


@dataclass(frozen=True)
class FromBatches(Monitor):
    """Means over the epoch's mini-batches, as they were met: no passes, and one wait for a device.

    The loss is Σ_b (B_b / K) L_b and the norm that of Σ_b (B_b / K) ∇L_b, each at the weights of
    its batch b of B_b of K examples. So they lag behind `Exact` by about half an epoch, and the
    norm is below it where the gradient turns within an epoch. Where a rule must know a loss
    exactly (`Race`, three times a trial), it is measured.
    """

    exact = False

    def means(self, parameters: Iterable[Tensor], count: int) -> "EpochMeans":
        return EpochMeans(parameters, count)


class EpochMeans:
    """Sums over the batches of an epoch, on the device."""

    def __init__(self, parameters: Iterable[Tensor], count: int):
        self.parameters, self.count = list(parameters), count
        self.gradient = [torch.zeros_like(p) for p in self.parameters]
        self.loss = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)

    @torch.no_grad()
    def add(self, loss: Tensor, size: int) -> None:
        """Take the loss of a batch of so many examples, after its backward pass."""
        share = size / self.count
        self.loss += share * loss.detach().double()
        for total, parameter in zip(self.gradient, self.parameters, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad, alpha=share)

    def read(self) -> tuple[float, float]:
        """The mean loss and the norm of the mean gradient."""
        squares = torch.stack([total.double().square().sum() for total in self.gradient])
        return self.loss.item(), squares.sum().sqrt().item()

    def read_state(self, loss: Tensor, *gradient: Tensor) -> None:
        """Go on from sums of a state; `InputError` where they are not of these parameters."""
        for given, own in zip((loss, *gradient), (self.loss, *self.gradient), strict=True):
            if (given.dtype, given.shape) != (own.dtype, own.shape):
                raise InputError("means", list(given.shape), f"{own.dtype} {list(own.shape)}")
            own.copy_(given)
