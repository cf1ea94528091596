"""Levenberg–Marquardt with geodesic acceleration: the second phase for sums of squares."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from twophase.directions import State
from twophase.errors import InputError, check_number
from twophase.least_squares.linearization import Linearization
from twophase.least_squares.mean_squares import squares_of
from twophase.least_squares.normal_equations import NormalEquations, normal_equations
from twophase.least_squares.problem import LeastSquares
from twophase.objective import Objective, Point, dot, fetch, inner
from twophase.second_phase import PATIENCE, Iteration, Minimizer, Prepared, Status, progress_marks

# Damping is kept within these factors of the largest squared norm of a column of J.
BOUNDS = 1e-16, 1e16


class Step(NamedTuple):
    """A step [P], what the linear model gains by it, and the damping that made it."""

    vector: Tensor
    gain: float
    damping: float


@dataclass(frozen=True)
class LevenbergMarquardt(Minimizer):
    """A second phase for a `LeastSquares` ‖ρ‖², by damped linear models of the residuals ρ.

        s = −(J'J + λ)⁻¹ J'ρ,  a = −(J'J + λ)⁻¹ J'ρ''(s) / 2,  x ← x + s + a

    with the Jacobian J [R, P], the second derivative ρ''(s) of the residuals along s by a
    difference, and normal equations in the smaller of R and P. Where these take too much memory or
    time (see `LeastSquares.direct`), they are solved by conjugate gradient, and a is left out. The
    term a follows the curved path on which the residuals shrink evenly, and lets λ be far smaller
    (Transtrum and Sethna, Geodesic acceleration and the small-curvature approximation for nonlinear
    least squares, 2012). λ falls by how well the linear model foretold the gain, and grows where a
    step would raise the loss or 2 ‖a‖ > `acceleration` ‖s‖ (Nielsen's rule: Madsen, Nielsen and
    Tingleff, Methods for non-linear least squares problems, 2004, section 3.2). No step raises the
    loss.

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

    def prepare(self, objective: Objective, size: int) -> Prepared:
        squares = self._squares(objective)
        if squares.direct:
            squares.check_jacobian()
        return Prepared(self, squares)

    def check_state(self, state: State, inverse: Tensor | None = None) -> None:
        check_number("damping", state.memory, above=0)

    def iterate(
        self,
        objective: Objective,
        point: Point,
        state: State | None,
        inverse: Tensor | None = None,
    ) -> Iteration:
        """One iteration; the `inverse` preconditions the systems that are solved by products."""
        squares = self._squares(objective)
        # what the last iteration has made is counted, even if it must be made again
        normal = normal_equations(squares, point.x, inverse, counted=state is None)
        # loss and gradient of the same arithmetic at each iteration, also at one that is resumed
        at = normal.at
        point = replace(point, value=at.value, gradient=at.gradient.to(point.x.dtype))
        marks = progress_marks(point, state)
        if point.gradient_norm <= self.tolerance_grad:
            return _stay(point, 0, Status.CONVERGED, state)
        if marks["stalled"] > PATIENCE:
            return _stay(point, 0, Status.RESOLUTION, state)
        damping = state.memory if state else self.damping * normal.largest
        growth, trials, finite = 2.0, 0, False
        while damping <= BOUNDS[1] * normal.largest:
            damping = max(damping, BOUNDS[0] * normal.largest)
            step = self._step(normal, damping)
            if step is not None:
                x = point.x + step.vector.to(point.x.dtype)
                value = squares.value(x)
                trials, finite = trials + 1, finite or math.isfinite(value)
                found = squares.linearize(x) if value < point.value else None
                if found is not None and found.finite and found.value <= point.value:
                    return _moved(found, point, step, trials, marks)
            damping, growth = damping * growth, 2 * growth
        return _stay(point, trials, Status.RESOLUTION if finite else Status.NOT_FINITE, state)

    def _squares(self, objective: Objective) -> LeastSquares:
        squares = squares_of(objective)
        if squares is None:
            raise InputError("second", self, "a Descent: this loss is no sum of squares")
        return squares

    def _step(self, normal: NormalEquations, damping: float) -> Step | None:
        """A step with acceleration, None where it is not to be trusted."""
        found = normal.step(damping)
        if found is None or self.acceleration == 0:
            return found and Step(*found, damping)
        first, gain = found
        second = normal.correction(first, damping)
        if second is None:
            return None
        long, whole = fetch(inner(second, second), inner(first, first))
        if not long**0.5 <= self.acceleration * whole**0.5:
            return None
        return Step(first + second / 2, gain, damping)


def _stay(point: Point, trials: int, status: Status, state: State | None) -> Iteration:
    return Iteration(point.x, point.value, 0.0, trials, status, state)


def _moved(
    found: Linearization, point: Point, step: Step, trials: int, marks: dict[str, Any]
) -> Iteration:
    ratio = (point.value - found.value) / step.gain
    damping = step.damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3)
    vector = step.vector.to(point.x.dtype)
    slope = dot(vector, point.gradient)
    left = State(found.x, point.gradient, vector, 1.0, slope, memory=damping, **marks)
    handed = Point(found.x, found.value, found.gradient.to(point.x.dtype), point.resolution)
    return Iteration(found.x, found.value, 1.0, trials, Status.MOVED, left, handed)
