"""Runs on toys: how optimizers come close to a known minimum, and what it costs."""

from collections.abc import Callable

import pandas as pd
from torch import Tensor, nn
from torch.optim import Optimizer

from twophase.objective import GRADIENT_PASSES
from twophase.optimizers import SecondPhase
from twophase.problems.toys import Problem, Quadratic


def descend(
    problem: Problem | Quadratic, optimizer: Callable[[list[nn.Parameter]], Optimizer], steps: int
) -> pd.DataFrame:
    """Follow an optimizer, made for a list of parameters, from a problem's start.

    A row, "iteration", for the start and after each step: distance from the minimizer, gradient
    norm, and passes so far, 3 a step, or what a `SecondPhase` counts.
    """
    x = nn.Parameter(problem.start.clone())
    made = optimizer([x])
    second = made if isinstance(made, SecondPhase) else None

    def closure() -> Tensor:
        made.zero_grad()
        loss = problem(x)
        if second is None:
            loss.backward()
        return loss

    rows, passes = [], 0
    for _ in range(steps + 1):
        distance = (x.detach() - problem.minimizer).norm().item()
        made.step(closure)
        # a step has met the gradient where it began
        norm = second.result.gradient_norm if second else x.grad.norm().item()
        rows.append((distance, norm, passes))
        passes += second.result.passes if second else GRADIENT_PASSES
    return pd.DataFrame(rows, columns=["distance", "grad_norm", "passes"]).rename_axis("iteration")
