"""What Adam knows of the loss's scales when it hands over: a diagonal preconditioner."""

from collections.abc import Iterable

import torch
from torch import Tensor

from twophase.errors import InputError


@torch.no_grad()
def from_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> Tensor:
    """The diagonal [P] of M⁻¹ = 1 / (sqrt(v̂) + ε) from Adam's second moments v of the parameters.

    v̂ = v / (1 − β₂^t) corrects the moments' bias at Adam's step t; ε is Adam's own (Kingma and Ba,
    2015, algorithm 1). Adam's step is −rate · M⁻¹ m: M is what it scales its directions with.
    Parameters that require no gradient are left out, those that never had one get 1 / ε.

    Raises:
        InputError: the optimizer holds no second moments, has not stepped, or a parameter is not
            among its own.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> adam = torch.optim.Adam([weight])
    >>> (weight * torch.tensor([2.0, 10.0])).sum().backward()
    >>> adam.step()
    >>> from_moments(adam, [weight])
    tensor([0.5000, 0.1000])
    """
    settings = {p: group for group in optimizer.param_groups for p in group["params"]}
    parts = []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter not in settings or "betas" not in settings[parameter]:
            raise InputError(
                "preconditioner",
                type(optimizer).__name__,
                "an Adam that has trained the same parameters",
            )
        parts.append(_diagonal(optimizer, parameter, settings[parameter]).reshape(-1))
    return torch.cat(parts)


def _diagonal(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict) -> Tensor:
    state = optimizer.state.get(parameter, {})
    if not optimizer.state:
        raise InputError("preconditioner", "an Adam without a step", "one that has trained")
    if "exp_avg_sq" not in state:
        return torch.full_like(parameter, 1 / group["eps"])
    correction = 1 - group["betas"][1] ** float(state["step"])
    return 1 / ((state["exp_avg_sq"] / correction).sqrt() + group["eps"])
