"""What a training minimises and watches, from a model and its data."""

import torch
from torch import nn

from twophase.device import resolve_device
from twophase.errors import InputError
from twophase.examples import Data, Examples, splits
from twophase.full_batch import FullBatch
from twophase.least_squares import LeastSquares
from twophase.losses import Loss
from twophase.parameters import ParameterVector


def data_objectives(
    model: nn.Module | LeastSquares,
    data: Data | None,
    loss: Loss,
    device: str | torch.device,
    chunk_size: int | None,
) -> tuple[FullBatch | LeastSquares, FullBatch | None]:
    """The mean losses over the training and, where there are any, the validation examples.

    A `LeastSquares` is one by itself. `InputError` for data beside it, or for none without it.
    """
    if isinstance(model, LeastSquares):
        if data is not None:
            raise InputError("data", type(data).__name__, "None: a LeastSquares has its own")
        return model, None
    if data is None:
        raise InputError("data", None, "a Dataset or tensors (inputs, targets)")
    vector = ParameterVector(model.to(resolve_device(device)).parameters())

    def over(examples: Examples) -> FullBatch:
        there = examples.to(vector.parameters[0].device, vector.dtype)
        return FullBatch(model, loss, there.inputs, there.targets, chunk_size)

    train, validation = splits(data)
    return over(train), None if validation is None else over(validation)
