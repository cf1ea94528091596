"""What stands for the Hessian from the start: nothing, or what Adam knows of the loss's scales."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from twophase.errors import InputError, check_integer, check_number
from twophase.settings import Settings


class Preconditioner(Protocol):
    """What the second phase asks of a preconditioner M when Adam hands over."""

    def inverse(
        self, adam: torch.optim.Optimizer, parameters: Iterable[Tensor], batches: int
    ) -> Tensor | None:
        """The diagonal [P] of M⁻¹, None for 1, after `batches` mini-batches in each Adam epoch."""
        ...


@dataclass(frozen=True)
class Identity(Settings):
    """No preconditioner: M is 1."""

    def inverse(
        self, adam: torch.optim.Optimizer, parameters: Iterable[Tensor], batches: int
    ) -> None:
        """None, which stands for 1."""


@dataclass(frozen=True)
class AdamMoments(Settings):
    """M from the second moments that Adam ends with, where its mini-batches make them meaningful.

    See `from_moments` for the formula. Adam's full-batch moments fall with the gradient instead of
    measuring curvature: they stalled the second phase on Poisson's equation.

    Args:
        damping: see `from_moments`; at least 0.
        min_batches: mini-batches of an Adam epoch from which on the moments are used, at least 1,
            which is always. Default 2: after any mini-batches, not after full batches.
    """

    damping: float = 0.1
    min_batches: int = 2

    def __post_init__(self) -> None:
        check_number("damping", self.damping, minimum=0)
        check_integer("min_batches", self.min_batches, 1)

    def inverse(
        self, adam: torch.optim.Optimizer, parameters: Iterable[Tensor], batches: int
    ) -> Tensor | None:
        """See `from_moments`; None where there are fewer than `min_batches`."""
        if batches < self.min_batches:
            return None
        return from_moments(adam, parameters, self.damping)


@torch.no_grad()
def from_moments(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], damping: float = 0.1
) -> Tensor:
    """The diagonal [P] of M⁻¹, M = sqrt(v̂) + damping · mean(sqrt(v̂)) + ε, from second moments v.

    v̂ = v / (1 − β₂^t) corrects the moments' bias at Adam's step t; ε is Adam's own (Kingma and Ba,
    2015, algorithm 1), which divides its steps by sqrt(v̂) + ε. Parameters that require no gradient
    are left out; one without moments counts as having v = 0.

    Args:
        optimizer: a `torch.optim.Adam`, or another with its second moments.
        parameters: those of the vector that is to be scaled, in its order.
        damping: in parts of the mean over all P parameters, at least 0: how far M trusts small
            moments, which may be those of a parameter whose gradients merely were small of late.
            Default 0.1: of 0 and 0.1 the one that was best, or close to the best, at four swaps of
            two networks.

    Raises `InputError` where the optimizer holds no second moments, has not stepped, or a parameter
    is not among its own.
    """
    check_number("damping", damping, minimum=0)
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


def _root(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """sqrt(v̂) of a parameter."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return torch.zeros_like(parameter)
    correction = 1 - group["betas"][1] ** float(state["step"])
    return (state["exp_avg_sq"] / correction).sqrt()
