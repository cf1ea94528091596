"""Truncated Gauss–Newton: matrix-free Levenberg–Marquardt for losses of squared errors.

A step solves (G + λ M) s = −g by conjugate gradient, which sees the Gauss–Newton matrix G of the
squared errors only by products G v (Martens, Deep learning via Hessian-free optimization, 2010).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from twophase.line_search.golden_section import LINE_SEARCHES
from twophase.line_search.line import Line
from twophase.objective import FullBatch, ParameterVector, Point, dot, evaluate

# Sweeps over the examples of the curvature, each as long as a third of a gradient: what the graph
# of J'u costs once per point, and a product G v after it. On one CPU core the two vision
# transformers took 2.8 to 3.5 for the first and 3.6 to 4.6 for the second, the core being busy.
GRAPH_PASSES = 3.5
PRODUCT_PASSES = 4.5

# λ where the search along the step refused its whole length, and where it found none at all.
MORE_DAMPING, MUCH_MORE_DAMPING = 2.0, 8.0
LARGEST_DAMPING = 1e30

Product = Callable[[Tensor], Tensor]


class GaussNewton:
    """Products with G = 2/(K C) J'J at one point, J [K C, P] the derivatives of K · C outputs.

    G is the Hessian of the mean of squared errors but for the outputs' own curvature. J'u is linear
    in u: its derivative by u is J', along v it is J v (two backward passes instead of a forward
    derivative), and one more backward pass makes J'(J v). The graphs of all chunks are kept, until
    the object goes; the parameters must not change before.

    Args:
        model: maps inputs [K, ...] to outputs [K, C].
        vector: the parameters [P].
        inputs: the examples of the curvature, [K, ...].
        chunk_size: examples per graph; changes results by rounding only.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> vector = ParameterVector(model.parameters())
    >>> GaussNewton(model, vector, torch.eye(2))(torch.tensor([1.0, 3.0]))
    tensor([1., 3.])
    """

    def __init__(
        self, model: nn.Module, vector: ParameterVector, inputs: Tensor, chunk_size: int = 128
    ):
        self.vector = vector
        self.graphs = []
        count = 0
        # the fast kernels of attention have no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for chunk in inputs.split(chunk_size):
                outputs = model(chunk)
                probe = torch.zeros_like(outputs, requires_grad=True)
                pulled = torch.autograd.grad(
                    outputs, vector.parameters, probe, create_graph=True, materialize_grads=True
                )
                self.graphs.append((outputs, probe, pulled))
                count += outputs.numel()
        self.scale = 2 / count

    def __call__(self, v: Tensor) -> Tensor:
        """G v [P] for a vector [P]."""
        product = torch.zeros_like(v)
        sizes = [p.numel() for p in self.vector.parameters]
        parts = [
            part.view_as(p) for part, p in zip(v.split(sizes), self.vector.parameters, strict=True)
        ]
        for outputs, probe, pulled in self.graphs:
            (change,) = torch.autograd.grad(pulled, probe, parts, retain_graph=True)
            back = torch.autograd.grad(
                outputs,
                self.vector.parameters,
                change,
                retain_graph=True,
                materialize_grads=True,
            )
            product += torch.cat([part.reshape(-1) for part in back])
        return self.scale * product


class Solution(NamedTuple):
    """A step s [P], the quadratic's slope g's and curvature s'G s along it, and the products spent.

    >>> Solution(torch.ones(1), -2.0, 2.0, 1).gain(1.0)
    1.0
    """

    step: Tensor
    slope: float
    curvature: float
    products: int

    def gain(self, part: float) -> float:
        """What the quadratic without damping loses over a part of the step."""
        return -part * (self.slope + part * self.curvature / 2)


def solve(
    product: Product,
    gradient: Tensor,
    metric: Tensor,
    damping: float,
    residual: float,
    products: int,
) -> Solution:
    """Minimise g's + s'(G + λ M)s / 2 by preconditioned conjugate gradient from 0, cut short.

    It ends where r'M⁻¹r <= residual² · g'M⁻¹g with r = −g − (G + λ M) s, after `products` products,
    or where rounding leaves no curvature (Nocedal and Wright, algorithms 5.3 and 7.1).

    Args:
        product: v -> G v, G positive semidefinite.
        gradient: g [P].
        metric: the diagonal [P] of M, above 0, which preconditions, too.
        damping: λ, at least 0.
        residual: relative, at which to end.
        products: bound on the products.

    >>> solve(lambda v: 2 * v, torch.ones(2), torch.ones(2), 0.0, 1e-6, 9)
    Solution(step=tensor([-0.5000, -0.5000], ...), slope=-1.0, curvature=1.0, products=1)
    """
    dtype = gradient.dtype
    gradient, metric = gradient.double(), metric.double()
    step, left, spent = torch.zeros_like(gradient), -gradient, 0
    scaled = left / metric
    direction, square = scaled, dot(left, scaled)
    enough = residual**2 * square
    while square > enough and spent < products:
        applied = product(direction.to(dtype)).double() + damping * metric * direction
        spent += 1
        curvature = dot(direction, applied)
        if not curvature > 0:
            break
        length = square / curvature
        step = step + length * direction
        left = left - length * applied
        scaled = left / metric
        square, last = dot(left, scaled), square
        direction = scaled + square / last * direction
    slope = dot(gradient, step)
    # from 0, the residual is orthogonal to the step: s'(G + λ M)s = −g's
    bent = -slope - damping * dot(step, metric * step)
    return Solution(step, slope, bent, spent)


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Truncated Gauss–Newton steps, damped by the ratio of the gain to the promised one.

    Steps are those of the second phase's own line search from the whole step on, 3 passes where
    that is accepted. λ follows Nielsen's rule (Madsen, Nielsen and Tingleff, Methods for non-linear
    least squares problems, 2004, section 3.2), times max(1/3, 1 − (2 ρ − 1)³) after a whole step
    with the gain ratio ρ; it grows where the search refuses the whole step.

    Args:
        examples: of the curvature, drawn anew for every step; None: all.
        products: bound on the products of a step.
        residual: relative, at which a solve is cut short.
        damping: the first λ, in parts of the mean curvature along the preconditioned gradient.
    """

    examples: int | None = None
    products: int = 100
    residual: float = 0.1
    damping: float = 0.1

    def __call__(
        self, objective: FullBatch, inverse: Tensor, budget: float, seed: int
    ) -> Iterator[tuple[float, Point]]:
        """Passes spent and the point, at the model's own weights and after every step.

        Args:
            objective: a mean of squared errors, `twophase.losses.mse`.
            inverse: the diagonal [P] of M⁻¹.
            budget: passes after which no step begins.
            seed: of the examples drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        metric, damping = 1 / inverse.double(), None
        first, curved = objective.passes.total, 0.0
        point = evaluate(objective, objective.vector.read())
        spent = objective.passes.total - first
        yield spent, point
        while spent < budget:
            objective.vector.write(point.x)
            inputs, share = self._draw(objective.inputs, generator)
            product = GaussNewton(
                objective.model, objective.vector, inputs, max(1, objective.chunk_size // 4)
            )
            curved += GRAPH_PASSES * share
            if damping is None:
                damping = self.damping * _mean_curvature(product, point.gradient, metric)
                curved += PRODUCT_PASSES * share
            solution = solve(product, point.gradient, metric, damping, self.residual, self.products)
            curved += PRODUCT_PASSES * share * solution.products
            moved, factor = _advance(objective, point, solution)
            spent = objective.passes.total - first + curved
            damping *= factor
            if moved is not None:
                point = moved
                yield spent, point
            elif damping > LARGEST_DAMPING:
                return

    def _draw(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        """The examples of the curvature, and their share in all."""
        if self.examples is None or self.examples >= len(inputs):
            return inputs, 1.0
        chosen = torch.randperm(len(inputs), generator=generator)[: self.examples]
        return inputs[chosen.to(inputs.device)], self.examples / len(inputs)


def _mean_curvature(product: Product, gradient: Tensor, metric: Tensor) -> float:
    """d'G d / d'M d along d = −M⁻¹ g."""
    step = solve(product, gradient, metric, 0.0, 0.0, 1).step
    return -dot(step, gradient) / dot(step, metric * step)


def _advance(objective: FullBatch, point: Point, solution: Solution) -> tuple[Point | None, float]:
    """The point that a search along the step finds (None: none), and the factor of the damping."""
    direction = solution.step.to(point.x.dtype)
    line = Line(
        objective,
        point.x,
        direction,
        point.value,
        dot(point.gradient, direction),
        relative_resolution=point.resolution,
    )
    found = LINE_SEARCHES["wolfe"](line, 1.0)
    if not found.descended:
        return None, MUCH_MORE_DAMPING
    if found.step < 1:
        return found.point, MORE_DAMPING
    ratio = (point.value - found.value) / solution.gain(found.step)
    return found.point, max(1 / 3, 1 - (2 * ratio - 1) ** 3)
