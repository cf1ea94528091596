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
    experiments (section 5); with softmax outputs [B, M] it lies between 0 and 2/M. Targets are
    class labels [B] (int64), or real [B, M]; of another shape they raise `InputError`.
    """
    if not targets.is_floating_point():
        targets = functional.one_hot(targets.long(), outputs.shape[1]).to(outputs.dtype)
    if targets.shape != outputs.shape:
        shape = f"the outputs' shape {list(outputs.shape)}"
        raise InputError("targets", list(targets.shape), shape)
    return functional.mse_loss(outputs, targets)
