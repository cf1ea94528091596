"""What a training minimises and watches, from a model and its data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from twophase.device import resolve_device
from twophase.distributed import bare
from twophase.errors import InputError, check_type
from twophase.examples import Dataset, Examples
from twophase.least_squares import LeastSquares
from twophase.losses import Loss
from twophase.objectives.closure import UNKNOWN, ClosureObjective, Habits, check_closure
from twophase.objectives.full_batch import FullBatch
from twophase.objectives.mean_loss import MeanLoss
from twophase.objectives.streamed import Source, Streamed
from twophase.parameters import ParameterVector, check_held

# What a model is trained on: examples in memory, also as two tensors; a torch `DataLoader` or
# `Dataset`, read in passes; or a function without arguments that returns the loss of all of it.
Data = Dataset | Examples | tuple[Tensor, Tensor] | Source | Callable[[], Any]
ALLOWED = "tensors (inputs, targets), a Dataset, a DataLoader, or a closure that returns the loss"
# What the trainer minimises.
TrainingLoss = MeanLoss | LeastSquares | ClosureObjective


def data_objectives(
    model: nn.Module | LeastSquares,
    data: Data | None,
    validation: Data | None,
    loss: Loss,
    device: str | torch.device,
    chunk_size: int | None,
) -> tuple[TrainingLoss, TrainingLoss | None]:
    """The mean losses over the training and, where there are any, the validation examples.

    A `LeastSquares` is one by itself. `InputError` for data beside it, or for none without it.
    """
    if isinstance(model, LeastSquares):
        if data is not None:
            raise InputError("data", type(data).__name__, "None: a LeastSquares has its own")
        there = model.vector.parameters[0].device
        asked = there if str(device) == "auto" else resolve_device(device)
        if asked.type != there.type or asked.index not in (None, there.index):
            raise InputError("device", str(device), f"that of the LeastSquares, {there}, or auto")
        return model, _over(model.model, validation, loss, chunk_size, "validation")
    check_type("model", model, nn.Module, " or a LeastSquares")
    if data is None:
        raise InputError("data", None, ALLOWED)
    check_held(p for p in model.parameters() if p.requires_grad)
    model.to(resolve_device(device))
    if isinstance(data, Dataset):
        if validation is not None and data.validation is not None:
            raise InputError("validation", type(validation).__name__, "None: the data have theirs")
        validation = data.validation if validation is None else validation
        data = data.train
    found = _over(model, data, loss, chunk_size)
    assert found is not None
    return found, _over(model, validation, loss, chunk_size, "validation")


def _over(
    model: nn.Module,
    data: Data | LeastSquares | None,
    loss: Loss,
    chunk_size: int | None,
    field: str = "data",
) -> TrainingLoss | None:
    if isinstance(data, LeastSquares) and data.model is not bare(model):
        raise InputError(field, "a LeastSquares of another model", "one of the model that trains")
    if data is None or isinstance(data, LeastSquares):
        return data
    if isinstance(data, DataLoader | TorchDataset):
        return Streamed(model, loss, data, chunk_size)
    if callable(data) and not isinstance(data, type):
        vector = ParameterVector(model.parameters(), model.buffers())
        # a validation closure is asked for values only, and may have no graph
        known = Habits(calls_backward=False) if field == "validation" else UNKNOWN
        return ClosureObjective(vector, check_closure(data), known)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        data = Examples(*data)
    if not isinstance(data, Examples):
        raise InputError(field, type(data).__name__, ALLOWED)
    if data.inputs.is_meta or data.targets.is_meta:
        raise InputError(field, "tensors on meta", "tensors with values")
    vector = ParameterVector(model.parameters(), model.buffers())
    there = data.to(vector.parameters[0].device, vector.dtype)
    return FullBatch(model, loss, there.inputs, there.targets, chunk_size)
