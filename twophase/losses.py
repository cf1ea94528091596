"""Training losses: functions of a batch's outputs and targets, averaged over the batch."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from twophase.errors import InputError

# of outputs and targets, averaged over the examples of a batch
Loss = Callable[[Tensor, Tensor], Tensor]


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error against one-hot targets, averaged over examples and classes.

    L = (1/(B·M)) Σ_b Σ_m (outputs[b, m] − [targets[b] = m])², the loss of all the paper's
    experiments (section 5); with softmax outputs it lies between 0 and 2/M.

    Args:
        outputs: [B, M], for example softmax probabilities.
        targets: class labels [B] (int64), or real targets [B, M].

    Returns:
        A scalar tensor of the outputs' dtype.

    Raises:
        InputError: real targets have another shape than the outputs.

    >>> import torch
    >>> mse(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    tensor(1.)
    """
    if not targets.is_floating_point():
        targets = functional.one_hot(targets.long(), outputs.shape[1]).to(outputs.dtype)
    if targets.shape != outputs.shape:
        raise InputError(
            "targets", list(targets.shape), f"the outputs' shape {list(outputs.shape)}"
        )
    return functional.mse_loss(outputs, targets)
