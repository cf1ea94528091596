"""Examples to train on: inputs and targets, split for training and validation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from twophase.errors import InputError


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs, such as images [N, channels, 32, 32], and as many targets, such as int64 labels [N].

    Raises `InputError` if the lengths differ or there is no example.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.inputs.ndim == 0 or len(self.inputs) == 0:
            raise InputError("inputs", list(self.inputs.shape), "at least one example")
        if self.targets.ndim == 0 or len(self.targets) != len(self.inputs):
            allowed = f"one target for each of the {len(self.inputs)} inputs"
            raise InputError("targets", list(self.targets.shape), allowed)

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Examples":
        """The examples on `device`; floating-point tensors also become `dtype`."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype) if t.is_floating_point() else t.to(device)

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


# What a model is trained on: examples, also as two tensors, with or without others for validation.
Data = Dataset | Examples | tuple[Tensor, Tensor]


def splits(data: Data) -> tuple[Examples, Examples | None]:
    """Training and validation examples; `InputError` where the data are neither."""
    if isinstance(data, Dataset):
        return data.train, data.validation
    if isinstance(data, Examples):
        return data, None
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        return Examples(*data), None
    raise InputError("data", type(data).__name__, "a Dataset or tensors (inputs, targets)")
