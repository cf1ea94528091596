"""Truncated Gauss–Newton: matrix-free Levenberg–Marquardt for losses of squared errors.

A step solves (G + λ M) s = −g by conjugate gradient, which sees the Gauss–Newton matrix G of the
squared errors only by products G v (Martens, Deep learning via Hessian-free optimization, 2010).
"""

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from twophase import StrongWolfe, Trainer
from twophase.experiments.competitors import Competitor, Journal
from twophase.line_search import Line
from twophase.objective import Point, dot, evaluate
from twophase.objectives.full_batch import FullBatch
from twophase.parameters import ParameterVector
from twophase.preconditioner import from_moments
from twophase.record import ADAM

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
    """A step s [P], the quadratic's slope g's and curvature s'G s along it, and the products."""

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
class TruncatedGaussNewton(Competitor):
    """Truncated Gauss–Newton steps, damped by the ratio of the gain to the promised one.

    Losses are means of squared errors, and M⁻¹ is the preconditioner that Adam leaves. Steps are
    those of the second phase's own line search from the whole step on, 3 passes where that is
    accepted. λ follows Nielsen's rule (Madsen, Nielsen and Tingleff, Methods for non-linear least
    squares problems, 2004, section 3.2), times max(1/3, 1 − (2 ρ − 1)³) after a whole step with the
    gain ratio ρ; it grows where the search refuses the whole step.

    Args:
        examples: of the curvature, drawn anew for every step; None: all.
        products: bound on the products of a step.
        residual: relative, at which a solve is cut short.
        damping: the first λ, in parts of the mean curvature along the preconditioned gradient.
        seed: of the examples drawn.
    """

    examples: int | None = None
    products: int = 100
    residual: float = 0.1
    damping: float = 0.1
    seed: int = 0

    def run(self, trainer: Trainer, journal: Journal) -> None:
        """Steps from the trainer's weights, until no damping gives a lower loss."""
        objective, generator = trainer.objective, torch.Generator().manual_seed(self.seed)
        first, curved, damping = objective.passes.total, 0.0, None
        metric = 1 / left_by_adam(trainer).double()
        point = evaluate(objective, objective.vector.read())
        while damping is None or damping <= LARGEST_DAMPING:
            journal.saw(objective.passes.total - first + curved, point.value, point.x)
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
            point = moved or point
            damping *= factor

    def _draw(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        """The examples of the curvature, and their share in all."""
        if self.examples is None or self.examples >= len(inputs):
            return inputs, 1.0
        chosen = torch.randperm(len(inputs), generator=generator)[: self.examples]
        return inputs[chosen.to(inputs.device)], self.examples / len(inputs)


def left_by_adam(trainer: Trainer) -> Tensor:
    """The diagonal [P] of M⁻¹ by the moments that a trainer's Adam has now."""
    optimizer = trainer.phases[ADAM].adam.optimizer
    return from_moments(optimizer, trainer.objective.vector.parameters)


def cost_of_products(objective: FullBatch) -> dict[str, float]:
    """Seconds for the graph and for a product of all examples, over a third of a gradient's."""
    x = objective.vector.read()
    graph = partial(GaussNewton, objective.model, objective.vector, objective.inputs)
    third = _seconds(lambda: objective.value_and_gradient(x)) / 3
    costs = {"graph": _seconds(graph), "product": _seconds(partial(graph(), x))}
    return {name: round(seconds / third, 2) for name, seconds in costs.items()}


def _seconds(work: Callable[[], object]) -> float:
    return min(timeit.repeat(work, number=1, repeat=4))


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
    found = StrongWolfe()(line, 1.0)
    if not found.descended:
        return None, MUCH_MORE_DAMPING
    if found.step < 1:
        return found.point, MORE_DAMPING
    ratio = (point.value - found.value) / solution.gain(found.step)
    return found.point, max(1 / 3, 1 - (2 * ratio - 1) ** 3)
