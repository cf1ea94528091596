"""Examples to train on: inputs and targets, split for training and validation."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from twophase.errors import InputError, check_type
from twophase.parameters import ParameterVector


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs, such as images [N, channels, 32, 32], and as many targets, such as int64 labels [N].

    Raises `InputError` if the lengths differ or there is no example.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        check_type("inputs", self.inputs, Tensor)
        check_type("targets", self.targets, Tensor)
        if self.inputs.ndim == 0 or len(self.inputs) == 0:
            raise InputError("inputs", list(self.inputs.shape), "at least one example")
        if self.targets.ndim == 0 or len(self.targets) != len(self.inputs):
            allowed = f"one target for each of the {len(self.inputs)} inputs"
            raise InputError("targets", list(self.targets.shape), allowed)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def has_labels(self) -> bool:
        """Whether targets are labels [N], so that there is an accuracy."""
        return not self.targets.is_floating_point() and self.targets.ndim == 1

    def to(
        self, device: torch.device | str, dtype: torch.dtype, non_blocking: bool = False
    ) -> "Examples":
        """The examples on `device`; floating-point tensors also become `dtype`.

        `non_blocking`: what is pinned is copied while this process goes on, which must not write to
        it; what works with the copy comes after it on the device's stream.
        """

        def move(t: Tensor) -> Tensor:
            kind = dtype if t.is_floating_point() else t.dtype
            return t.detach().to(device, kind, non_blocking=non_blocking and t.is_pinned())

        return Examples(move(self.inputs), move(self.targets))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set with training and (unless None) validation examples of `classes` classes."""

    name: str
    train: Examples
    validation: Examples | None
    classes: int

    @property
    def channels(self) -> int:
        """The second dimension of the images [N, channels, height, width]."""
        return self.train.inputs.shape[1]


class Shuffled(ABC):
    """Mini-batches of examples, or points, in memory: their indices, on the parameters' device."""

    vector: ParameterVector

    @property
    @abstractmethod
    def count(self) -> int:
        """Examples, or points."""

    def batch_count(self, size: int | None) -> int:
        """How many mini-batches of `size` there are in an epoch (None: one)."""
        return math.ceil(self.count / (size or self.count))

    def mini_batches(self, size: int | None, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Those of an epoch, indices [B], the last one shorter.

        One permutation is drawn from `generator`, on the CPU, so that CPU and GPU see one order.
        """
        device = self.vector.parameters[0].device
        order = torch.randperm(self.count, generator=generator, pin_memory=device.type == "cuda")
        return order.to(device, non_blocking=True).split(size or self.count)
