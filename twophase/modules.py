"""Modules in training mode: what makes a loss differ from one evaluation to the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from twophase.errors import InputError

ALLOWED = (
    "a model without dropout and BatchNorm in training mode in the second phase "
    "(call model.eval(), or freeze=True in `fit`)"
)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for the time of a measurement; each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class RejectBatchStatistics(TorchDispatchMode):
    """While active, in this thread, raise `InputError` where BatchNorm gathers its statistics.

    The loss repeats itself meanwhile, but it is not that of eval mode, and each evaluation counts
    in the statistics. Operations are seen where no model is at hand to inspect, as in a closure;
    what was compiled runs, this once, as it is written.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.name()
        # input, weight, bias, running mean and variance, training
        if "batch_norm" in name and "backward" not in name and args[3] is not None:
            if args[5] is True or "with_update" in name:
                raise InputError("model", "BatchNorm in training mode", ALLOWED)
        return op(*args, **(kwargs or {}))


def check_modules(model: nn.Module) -> None:
    """Raise `InputError` when a module of the model is dropout or BatchNorm in training mode."""
    for module in model.modules():
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        inside = isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (drops or inside or batch_norm):
            found = f"{type(module).__name__}{' with dropout' * inside} in training mode"
            raise InputError("model", found, ALLOWED)


def repeats_itself(model: nn.Module) -> bool:
    """Whether no module of the model is dropout or BatchNorm in training mode."""
    try:
        check_modules(model)
    except InputError:
        return False
    return True
