"""What stands for the Hessian from the start: nothing, or what Adam knows of the loss's scales."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from twophase.errors import InputError, check_integer, check_number, check_type
from twophase.settings import Settings


class Preconditioner(Protocol):
    """What the second phase asks of a preconditioner M when Adam hands over."""

    def inverse(self, adam: Optimizer, parameters: Iterable[Tensor], batches: int) -> Tensor | None:
        """The diagonal [P] of M⁻¹, None for 1, after `batches` mini-batches in each Adam epoch."""


def check_preconditioner(value: object) -> None:
    """Raise `InputError` unless a value is a preconditioner."""
    if isinstance(value, Tensor) or not callable(getattr(value, "inverse", None)):
        raise InputError("preconditioner", value, "AdamMoments() or Identity()")


@dataclass(frozen=True)
class Identity(Settings):
    """No preconditioner: M is 1."""

    def inverse(self, adam: Optimizer, parameters: Iterable[Tensor], batches: int) -> None:
        return


@dataclass(frozen=True)
class AdamMoments(Settings):
    """M from the second moments that Adam ends with, where its mini-batches make them meaningful.

    See `from_moments` for the formula and `damping`. The moments are used if an Adam epoch has at
    least `min_batches`: those of full batches (1) fall with the gradient instead of measuring
    curvature, and stalled the second phase on Poisson's equation. After an optimizer without second
    moments, such as SGD, M is 1.
    """

    damping: float = 0.1
    min_batches: int = 2

    def __post_init__(self) -> None:
        check_number("damping", self.damping, minimum=0)
        check_integer("min_batches", self.min_batches, 1)

    def inverse(self, adam: Optimizer, parameters: Iterable[Tensor], batches: int) -> Tensor | None:
        moments = any("exp_avg_sq" in held for held in adam.state.values())
        if batches < self.min_batches or not moments:
            return None
        return from_moments(adam, parameters, self.damping)


@torch.no_grad()
def from_moments(
    optimizer: Optimizer, parameters: Iterable[Tensor], damping: float = 0.1
) -> Tensor:
    """The diagonal [P] of M⁻¹, M = sqrt(v̂) + damping · mean(sqrt(v̂)) + ε, from second moments v.

    v̂ = v / (1 − β₂^t) corrects the moments' bias at Adam's step t; ε is Adam's own (Kingma and Ba,
    2015, algorithm 1). Of the `parameters`, in the vector's order, those that require no gradient
    are left out, and one without moments has v = 0.

    `damping` >= 0 says how little M trusts small moments, which may be those of a parameter whose
    gradients merely were small of late. Default 0.1: of 0 and 0.1 the one that was best, or close
    to the best, at four swaps of two networks. Raises `InputError` where the optimizer holds no
    second moments, has not stepped, or a parameter is not among its own.
    """
    check_number("damping", damping, minimum=0)
    check_type("preconditioner", optimizer, Optimizer)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not all("betas" in groups.get(parameter, {}) for parameter in wanted):
        allowed = "an Adam that has trained the same parameters"
        raise InputError("preconditioner", type(optimizer).__name__, allowed)
    if not optimizer.state:
        raise InputError("preconditioner", "an Adam without a step", "one that has trained")
    roots = torch.cat([_root(optimizer, p, groups[p]).reshape(-1) for p in wanted])
    epsilon = max(groups[p]["eps"] for p in wanted)
    return 1 / (roots + damping * roots.mean() + epsilon)


def _root(optimizer: Optimizer, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """sqrt(v̂) of a parameter."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return torch.zeros_like(parameter)
    correction = 1 - group["betas"][1] ** float(state["step"])
    return (state["exp_avg_sq"] / correction).sqrt()
