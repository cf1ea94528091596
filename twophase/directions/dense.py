"""Quasi-Newton directions d = −H g with H as a matrix [P, P]: BFGS, self-scaled BFGS, SSBroyden."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twophase.directions.direction import (
    Direction,
    State,
    expected_step,
    gradient_change,
    scaled,
    steepest_descent,
)
from twophase.errors import check_choice
from twophase.objective import Point, dot
from twophase.settings import Settings

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

    H takes 8 P² bytes, and an iteration two products with it and a copy. The first trial is the
    `expected_step`, up to 1. `InputError` for an unknown update.
    """

    update: str = "SSBroyden"

    def __post_init__(self) -> None:
        check_choice("update", self.update, UPDATES)

    def __call__(self, point: Point, last: State, inverse: Tensor | None) -> Direction:
        matrix = self._matrix(point, last, inverse)
        if matrix is None:
            return steepest_descent(point.gradient, inverse)
        vector = -(matrix @ point.gradient.double()).to(point.gradient.dtype)
        slope = dot(vector, point.gradient)
        if not -math.inf < slope < 0:
            return steepest_descent(point.gradient, inverse)
        first_step = min(1.0, expected_step(point, last, slope))
        return Direction(vector, slope, last.age + 1, matrix, first_step)

    def _matrix(self, point: Point, last: State, inverse: Tensor | None) -> Tensor | None:
        """H after the last step; None where there is no curvature to begin with."""
        matrix, pair = last.memory, gradient_change(point, last)
        if pair is None:
            return matrix
        step, change = (part.double() for part in pair)
        curvature = dot(step, change)
        product = scaled(change, inverse) if matrix is None else matrix @ change
        square = dot(change, product)
        if not square > 0:  # lost to underflow or rounding
            return matrix
        b, h = -last.step * dot(step, last.gradient) / curvature, square / curvature
        theta, tau = UPDATES[self.update](max(0.0, b * h - 1), b, h, len(step))
        if matrix is None:
            diagonal = torch.ones_like(step) if inverse is None else inverse.double()
            matrix, product, square = torch.diag(diagonal / h), product / h, square / h
            tau = 1.0
        return _updated(matrix, step, product, curvature, square, theta, tau, b * h - 1)


def _updated(
    matrix: Tensor,
    step: Tensor,
    product: Tensor,
    curvature: float,
    square: float,
    theta: float,
    tau: float,
    a: float,
) -> Tensor:
    """The formula of `BroydenDirection`, a sum H / τ + B C B' with the columns s and H y of B."""
    phi = (1 - theta) / (1 + a * theta)
    mixed = -phi / (curvature * tau)
    both = torch.stack([step, product], dim=1)
    middle = both.new_tensor(
        [
            [phi * square / (curvature**2 * tau) + 1 / curvature, mixed],
            [mixed, (phi - 1) / (square * tau)],
        ]
    )
    return torch.addmm(matrix, both @ middle, both.T, beta=1 / tau)
