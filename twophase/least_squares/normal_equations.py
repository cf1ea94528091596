"""The linear systems of Levenberg–Marquardt, (J'J + λ) s = −J'r, solved directly or by products."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from twophase.directions.direction import scaled
from twophase.least_squares.linearization import Linearization
from twophase.least_squares.problem import LeastSquares
from twophase.objective import dot, norm

# The second derivative of the residuals along a step is a difference over this part of it.
PROBE = 0.1
# Where systems are solved by products: steps of conjugate gradient, and the part of the right side
# that may remain. A tenth is enough for a step that is damped anyway.
CG_STEPS, CG_TOLERANCE = 50, 0.1


def normal_equations(
    objective: LeastSquares, x: Tensor, inverse: Tensor | None, counted: bool = True
) -> "NormalEquations":
    """The systems at x [P], in the form that suits their size; `inverse` preconditions products."""
    at = objective.linearize(x, counted)
    if at.jacobian is None and at.squared is None:
        return ByProducts(objective, at, inverse)
    return Direct(objective, at)


class NormalEquations(ABC):
    """Damped linear systems at a linearization of the residuals.

    `largest` is the largest squared norm of a column of J, or an estimate of it.
    """

    largest: float

    def __init__(self, objective: LeastSquares, at: Linearization):
        self.objective, self.at = objective, at

    @abstractmethod
    def step(self, damping: float) -> tuple[Tensor, float] | None:
        """−(J'J + λ)⁻¹ J'ρ [P], and what the linear model of the loss gains by it.

        None where rounding leaves no positive matrix or no gain.
        """

    def correction(self, step: Tensor, damping: float) -> Tensor | None:
        """−(J'J + λ)⁻¹ J'ρ''(s) [P] for a step s; None where it cannot be had."""
        return torch.zeros_like(step)


class Direct(NormalEquations):
    """By a Cholesky factor of J'J + λ, or of JJ' + λ where there are fewer residuals.

    Several processes share the products; each makes the factor.
    """

    def __init__(self, objective: LeastSquares, at: Linearization):
        super().__init__(objective, at)
        self.wide = at.squared is None
        if at.squared is None:
            assert at.jacobian is not None
            own = at.jacobian[:, objective.processes.share(at.jacobian.shape[1])]
            self.matrix = objective.processes.sums([own @ own.T], at.x)[0]
            self.largest = at.jacobian.square().sum(dim=0).max().item()
        else:
            self.matrix = at.squared
            self.largest = at.squared.diagonal().max().item()

    def step(self, damping: float) -> tuple[Tensor, float] | None:
        found = self.solve(self.at.residuals, damping)
        gain = 0.0 if found is None else self.gain(found)
        return (found, gain) if found is not None and gain > 0 else None

    def correction(self, step: Tensor, damping: float) -> Tensor | None:
        return self.solve(self.bend(step), damping)

    def solve(self, rows: Tensor, damping: float) -> Tensor | None:
        """−(J'J + λ)⁻¹ J'r [P] for r [R]; None where rounding leaves no positive matrix."""
        damped = self.matrix.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            return None
        if self.wide:
            return -self._pull(torch.cholesky_solve(rows[:, None], factor)[:, 0])
        return -torch.cholesky_solve(self._pull(rows)[:, None], factor)[:, 0]

    def gain(self, step: Tensor) -> float:
        """What the linear model of the residuals loses by a step s: −(g's + ‖J s‖²)."""
        if self.wide:
            assert self.at.jacobian is not None
            change = self.at.jacobian @ step
            return -dot(self.at.gradient, step) - dot(change, change)
        return -dot(self.at.gradient, step) - dot(step, self.matrix @ step)

    def bend(self, step: Tensor) -> Tensor:
        """The residuals' second derivative along a step, by differences: 1 or 2 passes.

        It has the rows of ρ that J has in this process, or all [R] without J; so has r in `solve`.
        """
        x, residuals = self.at.x, self.at.residuals
        part = (PROBE * step).to(x.dtype)
        above = self.objective.residuals(x + part)
        if self.at.jacobian is not None:
            change, slope = self.at.jacobian @ step, (above - residuals) / PROBE
            return (2 / PROBE) * ((slope if self.wide else slope[self.at.own]) - change)
        below = self.objective.residuals(x - part)
        return (above - 2 * residuals + below) / PROBE**2

    def _pull(self, rows: Tensor) -> Tensor:
        """J'u [P] for u [R], or those of its rows that J has."""
        if rows is self.at.residuals:
            return self.at.gradient / 2
        if self.at.jacobian is None:
            return self.objective.pull(self.at.x, rows)
        pulled = self.at.jacobian.T @ rows
        return pulled if self.wide else self.objective.processes.sums([pulled], self.at.x)[0]


class ByProducts(NormalEquations):
    """By conjugate gradient on products with J and J', each a pass forward and backward.

    It ends after 50 steps, or with a tenth of the right side left; from 0 on each of its steps
    lowers the linear model. Steps have no correction, which would cost as much again. M⁻¹ [P] is
    the diagonal `inverse` of a preconditioner (None: 1).
    """

    def __init__(self, objective: LeastSquares, at: Linearization, inverse: Tensor | None):
        super().__init__(objective, at)
        self.inverse = None if inverse is None else inverse.double()
        # a random sign for each residual: on average its square is the squared norm of each column
        signs = torch.randint(0, 2, at.residuals.shape, generator=torch.Generator().manual_seed(0))
        pulled = objective.pull(at.x, (2 * signs - 1).to(at.residuals))
        self.largest = pulled.square().max().item()

    def step(self, damping: float) -> tuple[Tensor, float] | None:
        right = -self.at.gradient / 2
        found, left, length = torch.zeros_like(right), right, norm(right)
        direction = scaled(left, self.inverse)
        square = dot(left, direction)
        for _ in range(CG_STEPS):
            product = self._product(direction, damping)
            curvature = dot(direction, product)
            if not curvature > 0:
                break
            found = found + (square / curvature) * direction
            left = left - (square / curvature) * product
            if norm(left) <= CG_TOLERANCE * length:
                break
            steepest = scaled(left, self.inverse)
            before, square = square, dot(left, steepest)
            direction = steepest + (square / before) * direction
        # ‖J s‖² = s'(b − left) − λ‖s‖² with b the right side
        bent = dot(found, right - left) - damping * dot(found, found)
        gain = 2 * dot(found, right) - bent
        return (found, gain) if gain > 0 else None

    def _product(self, vector: Tensor, damping: float) -> Tensor:
        """(J'J + λ) v [P]."""
        x = self.at.x
        return self.objective.pull(x, self.objective.push(x, vector)) + damping * vector
