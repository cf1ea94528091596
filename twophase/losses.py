"""Training losses: functions of a batch's outputs and targets, averaged over the batch."""

from collections.abc import Callable

import torch
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
        try:
            targets = functional.one_hot(targets.long(), outputs.shape[1]).to(outputs.dtype)
        except RuntimeError as error:
            found = f"labels from {targets.min().item()} to {targets.max().item()}"
            raise InputError("targets", found, f"0 to {outputs.shape[1] - 1}") from error
    if targets.shape != outputs.shape:
        shape = f"the outputs' shape {list(outputs.shape)}"
        raise InputError("targets", list(targets.shape), shape)
    return functional.mse_loss(outputs, targets)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities, averaged over the examples.

    L = −(1/B) Σ_b ln outputs[b, targets[b]], for networks that end in a softmax, such as the
    paper's; `outputs` are its [B, M], targets class labels [B] (int64). A probability that has
    become 0 counts as the smallest number above it.
    """
    chosen = outputs.gather(1, targets.long().unsqueeze(1))
    return -chosen.clamp_min(torch.finfo(outputs.dtype).tiny).log().mean()


def next_character(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [B, T, classes] and targets [B, T] (int64), in nats a position.

    L = −(1/(B·T)) Σ ln softmax(outputs[b, t])[targets[b, t]]
    """
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
