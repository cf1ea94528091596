"""Modules in training mode: what makes a loss differ from one evaluation to the next."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from twophase.errors import InputError


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


@contextmanager
def reject_unrepeatable_modules() -> Iterator[None]:
    """While active, raise `InputError` when dropout or BatchNorm runs in training mode."""
    # a hook on all modules sees what a closure calls, where no model is at hand to inspect
    handle = nn.modules.module.register_module_forward_pre_hook(_reject_if_unrepeatable)
    try:
        yield
    finally:
        handle.remove()


def check_modules(model: nn.Module) -> None:
    """Raise `InputError` when a module of the model is dropout or BatchNorm in training mode."""
    for module in model.modules():
        _reject_if_unrepeatable(module)


def repeats_itself(model: nn.Module) -> bool:
    """Whether no module of the model is dropout or BatchNorm in training mode."""
    try:
        check_modules(model)
    except InputError:
        return False
    return True


def _reject_if_unrepeatable(module: nn.Module, _inputs: object = None) -> None:
    drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.training and (drops or batch_norm):
        found = f"{type(module).__name__} in training mode"
        allowed = "a model without dropout and BatchNorm in training mode in the second phase"
        raise InputError("model", found, f"{allowed} (call model.eval(), or freeze=True in `fit`)")
