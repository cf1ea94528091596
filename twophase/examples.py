"""Examples to train on: inputs and targets, split for training and validation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from twophase.errors import InputError


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets of equal length, at least one.

    `inputs` is a tensor [N, ...], for images [N, channels, 32, 32] and floating point; `targets`
    is a tensor [N, ...], for classification int64 class labels [N]. Raises `InputError` if the
    lengths differ or there is no example.

    >>> len(Examples(torch.zeros(5, 1, 32, 32), torch.zeros(5, dtype=torch.int64)))
    5
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self):
        if self.inputs.ndim == 0 or len(self.inputs) == 0:
            raise InputError("inputs", list(self.inputs.shape), "at least one example")
        if self.targets.ndim == 0 or len(self.targets) != len(self.inputs):
            allowed = f"one target for each of the {len(self.inputs)} inputs"
            raise InputError("targets", list(self.targets.shape), allowed)

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Examples":
        """Return the examples on `device`; floating-point tensors also become `dtype`.

        Args:
            device: where the tensors shall lie.
            dtype: a floating-point type; integers, such as class labels, keep theirs.

        >>> Examples(torch.zeros(2, 3), torch.tensor([0, 1])).to("cpu", torch.float64).targets
        tensor([0, 1])
        """

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype) if t.is_floating_point() else t.to(device)

        return Examples(move(self.inputs), move(self.targets))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set split into training and (unless None) validation examples of `classes` classes.

    Args:
        name: for records.
        train, validation: `Examples`, for images [N, channels, height, width].
        classes: how many, M.

    >>> examples = Examples(torch.zeros(5, 3, 32, 32), torch.arange(5))
    >>> Dataset("mine", train=examples, validation=None, classes=5).channels
    3
    """

    name: str
    train: Examples
    validation: Examples | None
    classes: int

    @property
    def channels(self) -> int:
        """The second dimension of the images [N, channels, height, width]."""
        return self.train.inputs.shape[1]
