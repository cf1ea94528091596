"""What a training would stumble over later on, found at its start with a few examples."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from twophase.errors import InputError, TwoPhaseError
from twophase.losses import Loss
from twophase.modules import evaluating
from twophase.objective import check_same
from twophase.objectives.mean_loss import MeanLoss
from twophase.precision import full_precision

LOSS = "a function of outputs and targets that returns their mean loss, a real scalar with a graph"


@full_precision()
def rehearse(objective: Any, second: bool, eval_mode: bool) -> None:
    """Raise `InputError` where model, loss and examples do not go together.

    That is a loss that is no scalar, has no graph, is no mean over examples or does not take such
    targets, shapes that would be broadcast, inputs of a kind that the model does not take, sparse
    gradients, and a loss that does not repeat itself where there is a `second` phase. It takes
    three passes over up to 4 examples; the model's mode and random numbers are afterwards as
    before. Closures and sums of squares are looked at by what evaluates them.
    """
    if not isinstance(objective, MeanLoss):
        return
    inputs, targets = objective.sample()
    cuda = [inputs.device] if inputs.device.type == "cuda" else []
    mode = evaluating(objective.model) if eval_mode else nullcontext()
    with mode, torch.random.fork_rng(cuda), torch.enable_grad():
        outputs = _outputs(objective.model, inputs, objective.vector.dtype)
        _check_shapes(objective.loss, outputs, targets)
        with _explained(outputs, targets):
            loss = objective.loss(outputs, targets)
        _check_loss(loss)
        parameters = objective.vector.parameters
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        if any(g is not None and g.is_sparse for g in gradients):
            raise InputError("model", "one with sparse gradients", "dense ones (sparse=False)")
        with _explained(outputs, targets):
            first, again = (objective.part(inputs, targets)[0].item() for _ in range(2))
        _check_mean(objective.loss, loss.item(), outputs, targets)
    if second:
        check_same(first, again, objective.resolution)


def _outputs(model: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Any:
    try:
        return model(inputs)
    except RuntimeError as error:
        if inputs.is_floating_point():
            reason = str(error).partition("\n")[0]
            found = f"{inputs.dtype} {list(inputs.shape)}"
            raise InputError("inputs", found, f"what the model takes ({reason})") from error
        try:
            model(inputs.to(dtype))
        except RuntimeError:
            raise error from None
        allowed = f"real numbers for this model, such as inputs.to({dtype})"
        raise InputError("inputs", str(inputs.dtype), allowed) from error


def _check_shapes(loss: Loss, outputs: Any, targets: Tensor) -> None:
    """Raise `InputError` where the loss would broadcast outputs against targets."""
    real = isinstance(outputs, Tensor) and targets.is_floating_point()
    if not real or outputs.shape == targets.shape or outputs.numel() != targets.numel():
        return
    with warnings.catch_warnings(), _explained(outputs, targets):
        warnings.simplefilter("ignore")  # the one that torch's own losses give
        found, wanted = loss(outputs, targets), loss(outputs.view_as(targets), targets)
    if not isinstance(found, Tensor) or not torch.equal(found, wanted):
        allowed = f"the outputs' shape {list(outputs.shape)}"
        raise InputError("targets", list(targets.shape), allowed)


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise InputError("loss", f"one that returns {type(loss).__name__}", LOSS)
    if loss.numel() != 1 or not loss.is_floating_point():
        raise InputError("loss", f"one that returns {loss.dtype} {list(loss.shape)}", LOSS)
    if not loss.requires_grad:
        raise InputError("loss", "one that returns a loss without a graph", LOSS)


def _check_mean(loss: Loss, whole: float, outputs: Any, targets: Tensor) -> None:
    """Raise `InputError` for a loss that is no mean over examples, and chunks would make another.

    Such are sums, and means over weights of classes or over targets that are not ignored.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(targets):
        return
    if loss(outputs, targets).item() != whole:
        return  # it has noise of its own, which is told as such
    each = zip(outputs.split(1), targets.split(1), strict=True)
    mean = fmean(loss(*one).item() for one in each)
    if math.isfinite(whole) and not math.isclose(whole, mean, rel_tol=1e-3, abs_tol=1e-6):
        found = f"{whole:.4g} over {len(targets)} examples, {mean:.4g} in the mean of their losses"
        plain = "cross_entropy(outputs, targets, reduction='none').mean(), perhaps with weights"
        raise InputError("loss", found, f"a mean over the examples, such as {plain}")


@contextmanager
def _explained(outputs: Any, targets: Tensor) -> Iterator[None]:
    """`InputError` for what a loss says of targets that it does not take."""
    try:
        yield
    except TwoPhaseError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        found = f"{targets.dtype} {list(targets.shape)}"
        if not targets.is_floating_point() and not targets.is_complex():
            found += f" from {targets.min().item()} to {targets.max().item()}"
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        reason = str(error).partition("\n")[0]
        allowed = f"what the loss takes with outputs {shape} ({reason})"
        raise InputError("targets", found, allowed) from error
