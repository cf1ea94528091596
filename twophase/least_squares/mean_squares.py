"""Mean squared errors over examples as the sums of squares that they are."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twophase.least_squares.problem import LeastSquares
from twophase.least_squares.term import Term
from twophase.losses import mse
from twophase.objective import Objective
from twophase.objectives.full_batch import FullBatch


def squares_of(objective: Objective) -> LeastSquares | None:
    """An objective as the `LeastSquares` that it is, sharing its passes; None if it is none.

    A `FullBatch` is one by itself where its loss is a mean squared error: `twophase.mse`, torch's
    `mse_loss`, or `MSELoss` with its default reduction.
    """
    if isinstance(objective, LeastSquares):
        return objective
    if not isinstance(objective, FullBatch) or not _is_mean_square(objective.loss):
        return None
    examples = objective.inputs, objective.targets
    squares = LeastSquares(objective.model, [Term(_errors, examples)], objective.chunk_size)
    squares.passes = objective.passes
    return squares


def _is_mean_square(loss: Any) -> bool:
    if isinstance(loss, nn.MSELoss):
        return loss.reduction == "mean"
    return loss in (mse, functional.mse_loss)


def _errors(model: Any, examples: tuple[Tensor, Tensor]) -> Tensor:
    """Outputs [N, ...] minus targets, or minus the one-hot vectors of classes [N], as [N, k]."""
    outputs, targets = model(examples[0]), examples[1]
    if not targets.is_floating_point() and targets.ndim == 1:
        targets = targets[:, None] == torch.arange(outputs.shape[1], device=targets.device)
    return (outputs - targets.to(outputs.dtype)).flatten(1)
