"""Phase 1: mini-batch Adam over data that stays on the device."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from twophase.errors import InputError, check_integer, check_number
from twophase.monitor import EpochMeans
from twophase.settings import Settings


@dataclass(frozen=True)
class AdamSettings(Settings):
    """Settings of the Adam phase (Kingma and Ba, 2015); `InputError` for a value out of range.

    The defaults are torch's, since the paper does not print its learning rate, and the paper's
    batch size (section 4). A `batch_size` of None: all examples in one batch.
    """

    learning_rate: float = 1e-3
    batch_size: int | None = 512
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        # at most what torch, which divides it by 1 - beta1, can hold in float32
        check_number("learning_rate", self.learning_rate, above=0, maximum=1e30)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise InputError("betas", self.betas, "two numbers of at least 0 and below 1")
        for beta in self.betas:
            check_number("betas", beta, minimum=0, below=1)
        check_number("eps", self.eps, above=0)


class Trainable(Protocol):
    """What Adam asks of an objective: a model, and the loss of some of its examples."""

    model: nn.Module

    @property
    def count(self) -> int:
        """Examples, or points."""

    def batch_loss(self, batch: Tensor) -> Tensor:
        """The loss over examples, given by their indices [B] on the device, with its graph."""


class Adam:
    """torch's Adam (fused on CUDA) and the shuffled epochs that it trains on.

    Each epoch draws one permutation of the examples from `generator` (on the CPU, so that CPU and
    GPU see the same order) and takes consecutive batches of it, the last one shorter. Nothing waits
    for the device inside an epoch: the data are there already, the order is copied from pinned
    memory, fused Adam counts its steps on the device, and no loss is read.
    """

    def __init__(self, model: nn.Module, settings: AdamSettings, generator: torch.Generator):
        self.generator = generator
        self.batch_size = settings.batch_size
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            fused=parameters[0].device.type == "cuda",
        )

    def epoch(self, objective: Trainable, means: EpochMeans | None = None) -> None:
        """One pass over the examples of an objective, whose model this Adam trains."""
        device = self.optimizer.param_groups[0]["params"][0].device
        sweep(objective, self.optimizer, self.batches(objective.count, device), means)

    def batches(self, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """The mini-batches of the next epoch over `count` examples: indices on the device."""
        order = torch.randperm(count, generator=self.generator, pin_memory=device.type == "cuda")
        return order.to(device, non_blocking=True).split(self.batch_size or count)

    def batch_count(self, count: int) -> int:
        """How many mini-batches an epoch over `count` examples has."""
        return math.ceil(count / (self.batch_size or count))

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments, which further epochs change, and the generator's state."""
        return {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())


@torch.enable_grad()
def sweep(
    objective: Trainable,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    means: EpochMeans | None = None,
) -> None:
    """A step of any first-order optimizer for each mini-batch, given by its indices [B]."""
    for batch in batches:
        optimizer.zero_grad()
        loss = objective.batch_loss(batch)
        loss.backward()
        if means is not None:
            means.add(loss, len(batch))
        optimizer.step()
