"""What every direction rule shares: what it sees, what it returns, and the steepest descent."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from twophase.objective import Point, dot, fetch, inner

# The last line's step is corrected by this factor at most, either way.
CORRECTION = 10.0
# There is curvature where the cosine of the angle between step and gradient change is above this.
SMALLEST_COSINE = 1e-10


class State(NamedTuple):
    """What one iteration leaves to the next.

    `x` [P] is the new vector; `gradient` [P], `direction` [P] and their inner product `slope`
    belong to the vector before it. `memory` is what the rule knows of the loss's curvature, in
    tensors, numbers, tuples and dictionaries only, so that it can be saved. The loss `mark` and the
    norm `mark_norm` are those at the last clear progress, `stalled` iterations ago.
    """

    x: Tensor
    gradient: Tensor
    direction: Tensor
    step: float
    slope: float
    age: int = 0  # iterations since the last steepest descent
    scale: float = 0.0  # the largest absolute loss at an iterate
    memory: Any = None
    mark: float = math.inf
    mark_norm: float = math.inf
    stalled: int = 0


class Direction(NamedTuple):
    """A descent direction [P], the loss's slope along it, and its age since steepest descent.

    `memory` is what the next call of the rule finds in its `State`; a steepest descent has none.
    `first_step` is where a line search should try first; None: it is to follow from the last step.
    """

    vector: Tensor
    slope: float
    age: int = 0
    memory: Any = None
    first_step: float | None = None


# A direction with a slope below 0 from a point, what the last iteration left, and the diagonal [P]
# of M⁻¹, of a preconditioner M like the Hessian (None: M is 1).
DirectionRule = Callable[[Point, State, Tensor | None], Direction]


def steepest_descent(gradient: Tensor, inverse: Tensor | None) -> Direction:
    """d = −M⁻¹ g for a gradient g [P] and the diagonal [P] of M⁻¹ (None: 1)."""
    vector = -scaled(gradient, inverse)
    return Direction(vector, dot(vector, gradient))


def scaled(vector: Tensor, inverse: Tensor | None) -> Tensor:
    """M⁻¹ v for a vector [P] and the diagonal [P] of M⁻¹ (None: 1)."""
    return vector if inverse is None else inverse * vector


def expected_step(last: State, slope: float, end: float) -> float:
    """The step t = t* · last slope / slope that changes the loss as much as the last line's best.

    The slopes at both ends of the last step, of which `end` is the later one, place the minimum t*
    of that line (Nocedal and Wright, section 3.5, initial step length).
    """
    factor = last.slope / (last.slope - end) if end > last.slope else 1.0
    return last.step * min(max(factor, 1 / CORRECTION), CORRECTION) * last.slope / slope


def quasi_newton(
    product: Tensor,
    point: Point,
    last: State,
    inverse: Tensor | None,
    memory: Any,
    first_step: Callable[[State, float, float], float],
) -> Direction:
    """d = −H g for the product H g [P] in float64; the steepest descent where d does not descend.

    `first_step` is where to try first, by last state, slope and `end` as in `expected_step`.
    """
    vector = -product.to(point.gradient.dtype)
    slope, end = fetch(*(inner(point.gradient, along) for along in (vector, last.direction)))
    if not -math.inf < slope < 0:
        return steepest_descent(point.gradient, inverse)
    return Direction(vector, slope, last.age + 1, memory, first_step(last, slope, end))


def at_most_one(last: State, slope: float, end: float) -> float:
    """The `expected_step`, up to 1: for an H that is large where nothing is known yet."""
    return min(1.0, expected_step(last, slope, end))


def gradient_change(
    point: Point, last: State, inverse: Tensor | None
) -> tuple[Tensor, Tensor, float, float] | None:
    """The last step s, the difference y of the gradients at its ends, [P] each, s'y and y'M⁻¹y.

    None where the curvature s'y along the step is negative, or lost in rounding errors.
    """
    step, difference = last.step * last.direction, point.gradient - last.gradient
    pairs = (step, difference), (step, step), (difference, difference)
    products = [inner(*pair) for pair in pairs]
    weighted = products[2] if inverse is None else inner(difference, scaled(difference, inverse))
    curvature, length, change, square = fetch(*products, weighted)
    if curvature > SMALLEST_COSINE * length**0.5 * change**0.5:
        return step, difference, curvature, square
    return None
