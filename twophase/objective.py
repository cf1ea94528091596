"""A loss as a function of ONE flat parameter vector: all that directions and searches ever see."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from twophase.errors import InputError, NonFiniteError
from twophase.modules import RejectBatchStatistics
from twophase.parameters import ParameterVector
from twophase.precision import full_precision

# Full-batch loss and gradient: a forward pass counts 1, a backward pass 2.
GRADIENT_PASSES = 3
# In how many parts long vectors are copied to float64, and the least numbers in one.
BLOCKS, SMALLEST_BLOCK = 64, 2**15


@dataclass
class Passes:
    """Work done, in sweeps over the training set: a forward pass is 1, a backward pass 2 more.

    A Hessian–vector product is 9: its second backward pass runs through a forward and a backward
    pass, 3 sweeps, and takes twice as long. Measured are 9.5 to 10 for the paper's networks.
    """

    forward: int = 0
    backward: int = 0
    hessian_vector: int = 0

    @property
    def total(self) -> int:
        """All work, in sweeps."""
        return self.forward + 2 * self.backward + 9 * self.hessian_vector


@dataclass(frozen=True, eq=False)
class Point:
    """A parameter vector [P] with the loss, the gradient [P] and the loss's resolution there."""

    x: Tensor
    value: float
    gradient: Tensor
    resolution: float

    @cached_property
    def gradient_norm(self) -> float:
        """The gradient's Euclidean norm, read once."""
        return norm(self.gradient)


class Way(NamedTuple):
    """From a point x₀ to a later one x₁ = x₀ + s: what the gradients g₀ and g₁ there say along it.

    `step_norm` is ‖s‖ and `slope` s'g₀ / ‖s‖ (loss per unit of parameter); `curvature` is
    s'(g₁ − g₀) / s's (loss per squared unit), the mean curvature between the points, below 0 only
    where the loss is not convex; `alignment` is the cosine g₀'g₁ / (‖g₀‖ ‖g₁‖).
    """

    step_norm: float
    slope: float
    curvature: float
    alignment: float


class Objective(Protocol):
    """What the second phase minimises; toys, closures and data sets differ only behind it.

    `resolution` is the relative change of the value that cannot be told from none.
    """

    passes: Passes
    resolution: float

    def value(self, x: Tensor) -> float:
        """Value at `x` [P]: one forward pass."""

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient [P] at `x` [P]: one forward and backward pass."""


class TwiceDifferentiable(Objective, Protocol):
    """An objective with second derivatives, for what looks at its curvature."""

    def hessian_vector(self, x: Tensor, vector: Tensor) -> Tensor:
        """Product [P] of the Hessian at `x` [P] and a vector [P]: one Hessian–vector product."""


class FunctionObjective:
    """A differentiable function of a vector, such as the toys, as a `TwiceDifferentiable`."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function
        self.passes = Passes()
        self.resolution = round_off(torch.float64)

    @full_precision()
    @torch.no_grad()
    def value(self, x: Tensor) -> float:
        self.passes.forward += 1
        return self.function(x).item()

    @full_precision()
    @torch.enable_grad()
    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        self.passes.forward += 1
        self.passes.backward += 1
        leaf = x.detach().requires_grad_()
        value = self.function(leaf)
        self.resolution = round_off(value.dtype)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient

    @full_precision()
    @torch.enable_grad()
    def hessian_vector(self, x: Tensor, vector: Tensor) -> Tensor:
        self.passes.hessian_vector += 1
        leaf = nn.Parameter(x.detach())
        return ParameterVector([leaf]).hessian_vector(self.function(leaf), vector)


def dot(a: Tensor, b: Tensor) -> float:
    """The `inner` product of two flat vectors, as a number."""
    return inner(a, b).item()


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two flat vectors, in float64 so that small float32 gradients keep theirs."""
    parts = [torch.dot(x, y) for x, y in blocks(a, b)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def fetch(*scalars: Tensor) -> list[float]:
    """Scalars of one dtype as numbers, with a single wait for their device."""
    return torch.stack(scalars).tolist()


def blocks(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Vectors [P] in float64, a part of all of them at a time: copies of them stay small."""
    for parts in split(*vectors):
        yield tuple(part.double() for part in parts)


def split(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Vectors [P] in at most `BLOCKS` parts, the same of all of them at a time."""
    size = max(SMALLEST_BLOCK, -(-len(vectors[0]) // BLOCKS))
    return zip(*(vector.split(size) for vector in vectors), strict=True)


def norm(a: Tensor) -> float:
    """Euclidean norm of a flat vector, in float64."""
    return dot(a, a) ** 0.5


def way(before: Point, after: Point) -> Way | None:
    """The way between two points; None where they are one, or a gradient is zero."""
    sums = torch.zeros(6, dtype=torch.float64, device=before.x.device)
    for x0, x1, g0, g1 in blocks(before.x, after.x, before.gradient, after.gradient):
        step = x1 - x0
        pairs = (step, step), (step, g0), (step, g1), (g0, g1), (g0, g0), (g1, g1)
        sums += torch.stack([torch.dot(*pair) for pair in pairs])
    square, first, last, both, *squares = sums.tolist()
    if not square > 0 or not min(squares) > 0:
        return None
    sizes = (squares[0] * squares[1]) ** 0.5
    return Way(square**0.5, first / square**0.5, (last - first) / square, both / sizes)


def round_off(dtype: torch.dtype) -> float:
    """Relative change that a value computed and returned in `dtype` can resolve (4 ulp)."""
    return 4 * torch.finfo(dtype).eps


def start(objective: Objective, x: Tensor) -> Point:
    """The first point of a second phase: `evaluate` and `check_repeats`."""
    point = evaluate(objective, x)
    check_repeats(objective, point)
    return point


def check_repeats(objective: Objective, point: Point) -> None:
    """Raise `InputError` when a second evaluation at a point disagrees; one forward pass.

    It is found by comparison, and BatchNorm in training mode by its operations: hooks on modules
    would be those of the whole process, and make what is compiled compile again.
    """
    with RejectBatchStatistics():
        again = objective.value(point.x)
    check_same(point.value, again, objective.resolution)


def check_same(first: float, again: float, resolution: float) -> None:
    """Raise `InputError` unless two losses of the same data and parameters agree."""
    both_nan = first != first and again != again
    if first != again and not both_nan and not agree(first, again, resolution):
        found = f"one with the losses {first:.9g} and {again:.9g} at the same parameters"
        allowed = "one that repeats itself: no dropout, no augmentation (call model.eval())"
        raise InputError("model", found, allowed)


def agree(before: float, now: float, resolution: float) -> bool:
    """Whether two losses at the same parameters can be those of the same data."""
    return abs(now - before) <= 100 * resolution * abs(before)


def evaluate(objective: Objective, x: Tensor) -> Point:
    """Loss and gradient at `x` [P]; `NonFiniteError` where one is not finite."""
    value, gradient = objective.value_and_gradient(x)
    point = Point(x, value, gradient, objective.resolution)
    check_finite(point.value, point.gradient_norm)
    return point


def check_finite(loss: float, grad_norm: float, where: str = "") -> None:
    """Raise `NonFiniteError` unless both numbers are finite; `where` says when, in words."""
    for field, number in (("loss", loss), ("gradient norm", grad_norm)):
        if not abs(number) < float("inf"):
            mend = "use data, initial weights and a learning rate that keep it finite"
            raise NonFiniteError(f"{field}: {number} is not allowed{where}; {mend}")
