"""Quasi-Newton directions d = −H g with H as a matrix [P, P]: BFGS, self-scaled BFGS, SSBroyden."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from twophase.directions.direction import (
    Direction,
    State,
    at_most_one,
    gradient_change,
    quasi_newton,
    steepest_descent,
)
from twophase.errors import check_choice
from twophase.objective import Point, fetch, inner
from twophase.settings import Settings

# Updates that are gathered before they are added to the matrix: a product with their columns is far
# quicker than one with the matrix, whatever P.
GATHERED = 16
# θ and τ for a = b h − 1 >= 0, b = s'H⁻¹s / s'y, h = y'Hy / s'y and the number of parameters
Update = Callable[[float, float, float, int], tuple[float, float]]


def _bfgs(a: float, b: float, h: float, size: int) -> tuple[float, float]:
    return 0.0, 1.0


def _self_scaled_bfgs(a: float, b: float, h: float, size: int) -> tuple[float, float]:
    return 0.0, min(1.0, 1 / b)


def _self_scaled_broyden(a: float, b: float, h: float, size: int) -> tuple[float, float]:
    narrow = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
    if a == 0 or narrow == 0:
        return _self_scaled_bfgs(a, b, h, size)
    theta = max((narrow - 1) / a, min(1 / narrow, (1 - b) / b))
    sigma = 1 + theta * a
    spread = sigma ** (1 / (1 - size)) if size > 1 else 1.0
    if theta <= 0:
        return theta, min(min(1.0, 1 / b) * spread, sigma)
    return theta, min(1.0, 1 / b) * min(spread, 1 / theta)


UPDATES: dict[str, Update] = {
    "BFGS": _bfgs,
    "SSBFGS": _self_scaled_bfgs,
    "SSBroyden": _self_scaled_broyden,
}


class Matrix(NamedTuple):
    """H = scale · base + B C B', in float64: a matrix and the updates that it lacks.

    `base` is [P, P], or the diagonal [P] that H began with; B [P, 2k] are the `columns` of up to 16
    updates and C [2k, 2k] is `middle`.
    """

    base: Tensor
    scale: float
    columns: Tensor
    middle: Tensor

    @classmethod
    def diagonal(cls, diagonal: Tensor) -> Self:
        """A diagonal matrix [P]."""
        none = diagonal.new_zeros(len(diagonal), 0)
        return cls(diagonal, 1.0, none, none[:0])

    def multiply(self, vectors: Tensor) -> Tensor:
        """H V for V [P, n]."""
        whole = self.base @ vectors if self.base.ndim == 2 else self.base[:, None] * vectors
        return self.scale * whole + self.columns @ (self.middle @ (self.columns.T @ vectors))

    def updated(self, tau: float, columns: Tensor, middle: Tensor) -> Self:
        """H / τ + B C B' for B [P, 2] and C [2, 2]."""
        together = torch.cat([self.columns, columns], dim=1)
        block = torch.block_diag(self.middle / tau, middle)
        scale = self.scale / tau
        if together.shape[1] < 2 * GATHERED:
            return type(self)(self.base, scale, together, block)
        base = self.base if self.base.ndim == 2 else torch.diag(self.base)
        base = torch.addmm(base, together @ block, together.T, beta=scale)
        return type(self)(base, 1.0, together[:, :0], block[:0, :0])


@dataclass(frozen=True)
class BroydenDirection(Settings):
    """d = −H g with a matrix H [P, P] of Broyden's family, for up to a few thousand parameters.

    After a step s with the change y of gradients

        H ← (H − H y y'H / y'Hy + φ y'Hy v v') / τ + s s' / s'y,  v = s / s'y − H y / y'Hy,
        φ = (1 − θ) / (1 + a θ),  a = b h − 1,  b = s'H⁻¹s / s'y,  h = y'Hy / s'y.

    `update` is "BFGS" (θ = 0, τ = 1), "SSBFGS" (θ = 0, τ = min(1, 1/b)), or "SSBroyden", the
    default, which chooses both anew at each step (Al-Baali, Global and superlinear convergence of
    a restricted class of self-scaling methods, 1998; for physics-informed networks Urbán, Stefanou
    and Pons, 2025, section 2). H begins as γ M⁻¹ with γ = s'y / y'M⁻¹y of the first step. Steps
    without positive curvature s'y are left out; s'H⁻¹s = −t g's is known from the step s = −t H g.

    H takes 8 P² bytes and an iteration reads it once (see `Matrix`). The first trial is the
    `expected_step`, up to 1. `InputError` for an unknown update.
    """

    update: str = "SSBroyden"

    def __post_init__(self) -> None:
        check_choice("update", self.update, UPDATES)

    def __call__(self, point: Point, last: State, inverse: Tensor | None) -> Direction:
        matrix, product = self._after(point, last, inverse)
        if matrix is None:
            return steepest_descent(point.gradient, inverse)
        return quasi_newton(product, point, last, inverse, matrix._asdict(), at_most_one)

    def _after(
        self, point: Point, last: State, inverse: Tensor | None
    ) -> tuple[Matrix | None, Tensor]:
        """H after the last step, None where no curvature was seen yet, and H g."""
        gradient, pair = point.gradient.double(), gradient_change(point, last, inverse)
        matrix = Matrix(**last.memory) if last.memory else None
        if pair is None:
            return matrix, gradient if matrix is None else matrix.multiply(gradient[:, None])[:, 0]
        step, change, (curvature, weighted) = pair[0].double(), pair[1].double(), pair[2:]
        first = matrix is None
        if matrix is None:
            if not weighted > 0:  # lost to underflow
                return None, gradient
            diagonal = torch.ones_like(step) if inverse is None else inverse.double()
            matrix = Matrix.diagonal(curvature / weighted * diagonal)
        on_gradient, product = matrix.multiply(torch.stack([gradient, change], dim=1)).T
        square, along = fetch(inner(change, product), inner(step, last.gradient))
        if not square > 0:  # lost to rounding
            return matrix, on_gradient
        # the first step is along M⁻¹ g, while H is γ M⁻¹ by now, with h = 1
        b, h = -last.step * along / curvature, square / curvature
        b = b * weighted / curvature if first else b
        a = max(0.0, b * h - 1)
        theta, tau = UPDATES[self.update](a, b, h, len(step))
        tau, phi = 1.0 if first else tau, (1 - theta) / (1 + a * theta)
        if not (curvature**2 * tau > 0 and square * tau > 0):  # lost to underflow
            return matrix, on_gradient
        mixed = -phi / (curvature * tau)
        own = phi * square / (curvature**2 * tau) + 1 / curvature
        middle = step.new_tensor([[own, mixed], [mixed, (phi - 1) / (square * tau)]])
        columns = torch.stack([step, product], dim=1)
        after = matrix.updated(tau, columns, middle)
        return after, on_gradient / tau + columns @ (middle @ (columns.T @ gradient))
