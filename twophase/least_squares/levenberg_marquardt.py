"""Levenberg–Marquardt with geodesic acceleration: the second phase for sums of squares."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from twophase.directions import State
from twophase.errors import InputError, check_number
from twophase.least_squares.problem import LeastSquares, Linearization, squares_of
from twophase.objective import Objective, Point, dot, norm
from twophase.second_phase import PATIENCE, Iteration, Status, progress_marks, stalled
from twophase.settings import Settings

# The second derivative of the residuals along a step is a difference over this part of it.
PROBE = 0.1
# Multiplications that normal equations of R residuals and P parameters may take, min(R, P)² times
# max(R, P): a few seconds on one core.
NORMAL_WORK = 5e10
# Damping is kept within these factors of the largest squared norm of a column of J.
BOUNDS = 1e-16, 1e16


class Step(NamedTuple):
    """A step [P], what the linear model gains by it, and the damping that made it."""

    vector: Tensor
    gain: float
    damping: float


@dataclass(frozen=True)
class LevenbergMarquardt(Settings):
    """A second phase for a `LeastSquares` ‖ρ‖², by damped linear models of the residuals ρ.

        s = −(J'J + λ)⁻¹ J'ρ,  a = −(J'J + λ)⁻¹ J'ρ''(s) / 2,  x ← x + s + a

    with the Jacobian J [R, P], the second derivative ρ''(s) of the residuals along s by a
    difference, and normal equations in the smaller of R and P. The term a follows the curved path
    on which the residuals shrink evenly, and lets λ be far smaller (Transtrum and Sethna, Geodesic
    acceleration and the small-curvature approximation for nonlinear least squares, 2012). λ falls
    by how well the linear model foretold the gain, and grows where a step would raise the loss or
    2 ‖a‖ > `acceleration` ‖s‖ (Nielsen's rule: Madsen, Nielsen and Tingleff, Methods for
    non-linear least squares problems, 2004, section 3.2). No step raises the loss.

    The first λ is `damping` times the largest squared norm of a column of J. Defaults: 1e-3 is that
    source's for starts that are not close, 0.75 the first one's. The phase has converged where the
    gradient norm is at or below `tolerance_grad`. An iteration takes 5 passes where its first step
    is good: Jacobian, difference, loss. `InputError` for a value out of range.
    """

    damping: float = 1e-3
    acceleration: float = 0.75
    tolerance_grad: float = 0.0

    def __post_init__(self) -> None:
        check_number("damping", self.damping, above=0)
        check_number("acceleration", self.acceleration, minimum=0)
        check_number("tolerance_grad", self.tolerance_grad, minimum=0)

    @staticmethod
    def suits(problem: Objective) -> bool:
        """Whether it can minimise a problem, with normal equations made in a few seconds each."""
        squares = squares_of(problem)
        if squares is None:
            return False
        few, many = sorted(squares.size)
        fits = squares.keeps_jacobian or few == squares.size[1]
        return fits and few**2 * many <= NORMAL_WORK

    def iterate(
        self,
        objective: Objective,
        point: Point,
        state: State | None,
        inverse: Tensor | None = None,
    ) -> Iteration:
        """One iteration from a point and what the previous one left; see `Descent.iterate`.

        `InputError` where the objective is no `LeastSquares`. There is no use for an `inverse`.
        """
        if not isinstance(objective, LeastSquares):
            raise InputError("second", self, "a Descent: this loss is no LeastSquares")
        gradient_norm = norm(point.gradient)
        waiting = stalled(point, gradient_norm, state)
        if gradient_norm <= self.tolerance_grad:
            return _stay(point, 0, Status.CONVERGED, state)
        if waiting > PATIENCE:
            return _stay(point, 0, Status.RESOLUTION, state)
        # what the last iteration has made is counted, even if it must be made again
        normal = _Normal(objective, objective.linearize(point.x, counted=state is None))
        damping = state.memory if state else self.damping * normal.largest
        growth, trials, finite = 2.0, 0, False
        while damping <= BOUNDS[1] * normal.largest:
            damping = max(damping, BOUNDS[0] * normal.largest)
            step, spent = self._step(normal, damping)
            trials += spent
            if step is not None:
                x = point.x + step.vector.to(point.x.dtype)
                value = objective.value(x)
                trials, finite = trials + 1, finite or math.isfinite(value)
                found = objective.linearize(x) if value < point.value else None
                if found is not None and found.finite:
                    gain = (point.value - value) / step.gain
                    return _moved(found, value, point, step, gain, trials, waiting, state)
            damping, growth = damping * growth, 2 * growth
        return _stay(point, trials, Status.RESOLUTION if finite else Status.NOT_FINITE, state)

    def _step(self, normal: "_Normal", damping: float) -> tuple[Step | None, int]:
        """A step with acceleration, None where it is not to be trusted; forward passes spent."""
        first = normal.solve(normal.at.residuals, damping)
        gain = 0.0 if first is None else normal.gain(first)
        if first is None or not gain > 0:
            return None, 0
        if self.acceleration == 0:
            return Step(first, gain, damping), 0
        bend, spent = normal.bend(first)
        second = normal.solve(bend, damping)
        if second is None or not norm(second) <= self.acceleration * norm(first):
            return None, spent
        return Step(first + second / 2, gain, damping), spent


class _Normal:
    """The normal equations of a linearization, in the smaller of the dimensions R and P."""

    def __init__(self, objective: LeastSquares, at: Linearization):
        self.objective, self.at = objective, at
        jacobian = at.jacobian
        if jacobian is None:
            assert at.squared is not None
            self.wide, self.matrix = False, at.squared
            self.largest = at.squared.diagonal().max().item()
        else:
            self.wide = jacobian.shape[0] < jacobian.shape[1]
            self.matrix = jacobian @ jacobian.T if self.wide else jacobian.T @ jacobian
            self.largest = jacobian.square().sum(dim=0).max().item()

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

    def bend(self, step: Tensor) -> tuple[Tensor, int]:
        """The residuals' second derivative [R] along a step, by differences; passes spent."""
        x, residuals = self.at.x, self.at.residuals
        part = (PROBE * step).to(x.dtype)
        above = self.objective.residuals(x + part)
        if self.at.jacobian is not None:
            change = self.at.jacobian @ step
            return (2 / PROBE) * ((above - residuals) / PROBE - change), 1
        below = self.objective.residuals(x - part)
        return (above - 2 * residuals + below) / PROBE**2, 2

    def _pull(self, rows: Tensor) -> Tensor:
        """J'u [P] for u [R]."""
        if self.at.jacobian is not None:
            return self.at.jacobian.T @ rows
        if rows is self.at.residuals:
            return self.at.gradient / 2
        return self.objective.pull(self.at.x, rows)


def _stay(point: Point, trials: int, status: Status, state: State | None) -> Iteration:
    return Iteration(point.x, point.value, 0.0, trials, status, state)


def _moved(
    found: Linearization,
    value: float,
    point: Point,
    step: Step,
    ratio: float,
    trials: int,
    waiting: int,
    before: State | None,
) -> Iteration:
    damping = step.damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3)
    gradient = found.gradient.to(point.x.dtype)
    vector = step.vector.to(point.x.dtype)
    slope = dot(vector, point.gradient)
    marks = progress_marks(point, waiting, before)
    left = State(found.x, point.gradient, vector, 1.0, slope, memory=damping, **marks)
    handed = Point(found.x, value, gradient, point.resolution)
    return Iteration(found.x, value, 1.0, trials, Status.MOVED, left, handed)
