"""Small full-batch problems in float64 with known solutions, solved by tanh networks.

Two physics-informed networks and a regression: smooth losses without noise, for which Adam followed
by a second-order method is common practice (Raissi, Perdikaris and Karniadakis, Physics-informed
neural networks, J. Comput. Phys. 378, 2019).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.special import roots_hermite
from torch import Tensor, nn

from twophase.errors import check_integer, check_number
from twophase.problems.networks import seeded

# Terms a · sin(k π x) of the solution of Poisson's equation, as (a, k). Their shares in the source,
# a k², are close, so that neither frequency can be left for later.
MODES = ((1.0, 2), (0.1, 6))
# Nodes of the quadrature in the solution of Burgers' equation, and the smallest viscosity for which
# they are known to suffice: errors below 1e-13.
NODES = 100
SMALLEST_VISCOSITY = 0.01 / math.pi


class Jet(NamedTuple):
    """A function at K points: its value [K, 1] and its derivatives by the d coordinates.

    The first ones are [d, K, 1], `second` [K, 1] is that by the first coordinate.
    """

    value: Tensor
    first: Tensor
    second: Tensor

    def times(self, other: "Jet") -> "Jet":
        """(a b)' = a' b + a b', (a b)'' = a'' b + 2 a' b' + a b''."""
        return Jet(
            self.value * other.value,
            self.first * other.value + self.value * other.first,
            self.second * other.value
            + 2 * self.first[0] * other.first[0]
            + self.value * other.second,
        )

    def plus(self, other: "Jet") -> "Jet":
        return Jet(*(mine + others for mine, others in zip(self, other, strict=True)))


class TanhNetwork(nn.Module):
    """A fully connected tanh network in float64 that knows its derivatives by its inputs.

    It maps points [K, inputs] to [K, 1] by `depth` hidden layers of `width` units and a linear one.
    Weights follow PyTorch's defaults and the `seed`. Fewer than one of anything, or a negative
    seed, raises `InputError`.
    """

    def __init__(self, inputs: int, width: int, depth: int, seed: int):
        super().__init__()
        check_integer("inputs", inputs, 1)
        check_integer("width", width, 1)
        check_integer("depth", depth, 1)
        sizes = [inputs, *[width] * depth]
        with seeded(seed):
            self.hidden = nn.ModuleList(
                nn.Linear(*pair, dtype=torch.float64)
                for pair in zip(sizes, sizes[1:], strict=False)
            )
            self.output = nn.Linear(width, 1, dtype=torch.float64)

    def forward(self, points: Tensor) -> Tensor:
        for layer in self.hidden:
            points = torch.tanh(layer(points))
        return self.output(points)

    solution = forward

    def jet(self, points: Tensor) -> Jet:
        """Values and derivatives at points [K, d], layer by layer in closed form (Taylor mode).

        For h = tanh(z) along a coordinate: h' = (1 − h²) z', h'' = (1 − h²) z'' − 2 h h' z'
        (Griewank and Walther, Evaluating Derivatives, 2nd ed., chapter 13). So the derivatives are
        there without a graph, and a gradient takes one backward pass.
        """
        count, size = points.shape
        axes = torch.eye(size, dtype=points.dtype, device=points.device)
        first = axes[:, None].expand(size, count, size)
        # one product with the weights for value, second and first derivatives together
        parts = torch.cat([points[None], torch.zeros_like(points)[None], first])
        for layer in self.hidden:
            z = parts @ layer.weight.T
            h = torch.tanh(z[0] + layer.bias)
            first = (1 - h * h) * z[2:]
            second = (1 - h * h) * z[1] - 2 * h * first[0] * z[2]
            parts = torch.cat([h[None], second[None], first])
        value, second, *first = parts @ self.output.weight.T
        return Jet(value + self.output.bias, torch.stack(first), second)


class PoissonNetwork(nn.Module):
    """A network u(x) = x (1 − x) N(x) for −u'' = f on (0, 1) with u(0) = u(1) = 0.

    Calling it with points x [K, 1] returns the equation's left side −u'' [K, 1], so that its mean
    squared distance from f is the physics-informed loss; `solution` returns u, and `jet` u, u' and
    u''. The boundary conditions hold exactly, for whatever weights (Lagaris, Likas and Fotiadis,
    Artificial neural networks for solving ordinary and partial differential equations, 1998).
    """

    def __init__(self, network: TanhNetwork):
        super().__init__()
        self.network = network

    def forward(self, points: Tensor) -> Tensor:
        return -self.jet(points).second

    def solution(self, points: Tensor) -> Tensor:
        return self.jet(points).value

    def jet(self, x: Tensor) -> Jet:
        factor = Jet(x * (1 - x), (1 - 2 * x)[None], torch.full_like(x, -2))
        return factor.times(self.network.jet(x))


class BurgersNetwork(nn.Module):
    """A network u(x, t) = −sin(πx) + t (1 − x²) N(x, t) for u_t + u u_x = ν u_xx.

    Calling it with points (x, t) [K, 2] returns the residual u_t + u u_x − ν u_xx [K, 1], which is
    to be 0; `solution` returns u, and `jet` u, (u_x, u_t) and u_xx. It holds u(x, 0) = −sin(πx) and
    u(±1, t) = 0 for whatever weights, as above. A viscosity ν not above 0 raises `InputError`.
    """

    def __init__(self, network: TanhNetwork, viscosity: float):
        super().__init__()
        self.network = network
        self.viscosity = check_number("viscosity", viscosity, above=0)

    def forward(self, points: Tensor) -> Tensor:
        value, (by_x, by_t), second = self.jet(points)
        return by_t + value * by_x - self.viscosity * second

    def solution(self, points: Tensor) -> Tensor:
        return self.jet(points).value

    def jet(self, points: Tensor) -> Jet:
        x, t = points.split(1, dim=1)
        sine, cosine = torch.sin(math.pi * x), torch.cos(math.pi * x)
        start = Jet(-sine, torch.stack([-math.pi * cosine, torch.zeros_like(x)]), math.pi**2 * sine)
        factor = Jet(t * (1 - x * x), torch.stack([-2 * t * x, 1 - x * x]), -2 * t)
        return start.plus(factor.times(self.network.jet(points)))


def poisson_solution(x: Tensor) -> Tensor:
    """u(x) = sin(2πx) + sin(6πx) / 10, manufactured for Poisson's equation, elementwise."""
    return sum(a * torch.sin(k * math.pi * x) for a, k in MODES)


def poisson_source(x: Tensor) -> Tensor:
    """f(x) = −u''(x) of that solution, elementwise."""
    return sum(a * (k * math.pi) ** 2 * torch.sin(k * math.pi * x) for a, k in MODES)


def burgers_solution(points: Tensor, viscosity: float) -> Tensor:
    """u(x, t) [K, 1] of u_t + u u_x = ν u_xx with u(x, 0) = −sin(πx) and u(±1, t) = 0.

    The transformation of Cole and Hopf gives

        u = −∫ sin(πy) F(y) exp(−(x − y)² / 4νt) dy / ∫ F(y) exp(−(x − y)² / 4νt) dy

    with F(y) = exp(−cos(πy) / 2πν) (Basdevant et al., Spectral and finite difference solutions of
    the Burgers equation, 1986), by Gauss–Hermite quadrature. Points (x, t) have shape [K, 2] and
    t >= 0, float64; the solution is differentiable for t > 0. A viscosity ν below 0.01/π, for which
    the quadrature is not exact enough, raises `InputError`.
    """
    check_number("viscosity", viscosity, minimum=SMALLEST_VISCOSITY)
    nodes, weights = (points.new_tensor(part) for part in roots_hermite(NODES))
    x, t = points.split(1, dim=1)
    y = math.pi * (x - torch.sqrt(4 * viscosity * t) * nodes)
    # F spans e^±50: the shares of the nodes are a softmax
    shares = torch.softmax(weights.log() - torch.cos(y) / (2 * math.pi * viscosity), dim=1)
    return -(shares * torch.sin(y)).sum(dim=1, keepdim=True)


def franke(points: Tensor) -> Tensor:
    """Franke's function of two variables, four Gaussian hills and hollows; [K, 2] to [K, 1].

    A usual test of interpolation on the unit square (Franke, Scattered data interpolation: tests of
    some methods, 1982).
    """
    x, y = (9 * points).split(1, dim=1)
    return (
        0.75 * torch.exp(-((x - 2) ** 2 + (y - 2) ** 2) / 4)
        + 0.75 * torch.exp(-((x + 1) ** 2) / 49 - (y + 1) / 10)
        + 0.5 * torch.exp(-((x - 7) ** 2 + (y - 3) ** 2) / 4)
        - 0.2 * torch.exp(-((x - 4) ** 2) - (y - 7) ** 2)
    )


@dataclass(frozen=True)
class Problem:
    """A model to train on all its examples at once, and the solution that it should come to.

    `model` maps `inputs` [K, d] to what should be `targets` [K, 1], and `model.solution` the other
    points of `grid` [n, d] to what should be `exact` [n, 1]. For a regression both are the same.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    grid: Tensor
    exact: Tensor

    @torch.no_grad()
    def error(self) -> float:
        """‖u − exact‖ / ‖exact‖ on the grid, of the model's present solution u."""
        device = next(self.model.parameters()).device
        found = self.model.solution(self.grid.to(device)).to(self.exact.device)
        return ((found - self.exact).norm() / self.exact.norm()).item()


def poisson(seed: int, width: int = 32, depth: int = 3, points: int = 128) -> Problem:
    """Poisson's equation −u'' = f on (0, 1), u(0) = u(1) = 0, with `poisson_solution`.

    It is to hold at K = `points` equispaced points inside the interval, by default over 40 per
    period of the faster term. `seed`, `width` and `depth` are the `TanhNetwork`'s; a value out of
    range raises `InputError`, here and below.
    """
    model = PoissonNetwork(TanhNetwork(1, width, depth, seed))
    check_integer("points", points, 1)
    inputs, grid = _inside(points)[:, None], _inside(1000)[:, None]
    return Problem(model, inputs, poisson_source(inputs), grid, poisson_solution(grid))


def burgers(
    seed: int, width: int = 20, depth: int = 4, points: int = 1024, viscosity: float = 0.1 / math.pi
) -> Problem:
    """Burgers' equation u_t + u u_x = ν u_xx on (−1, 1) x (0, 1) from −sin(πx), zero at x = ±1.

    It is to hold at K = `points` points of a Sobol sequence, the same for every seed. The viscosity
    ν is at least 0.01/π. Default 0.1/π: 3,000 passes of L-BFGS after 300 epochs of Adam leave an
    error of 4e-4. At the usual 0.01/π the front at x = 0 is a tenth as wide, and the same passes
    leave 4e-2; Raissi et al. (2019) take 10,000 points for it.
    """
    grid = torch.cartesian_prod(2 * _inside(100) - 1, _inside(50))
    exact = burgers_solution(grid, viscosity)
    model = BurgersNetwork(TanhNetwork(2, width, depth, seed), viscosity)
    inputs = _sobol(points) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
    return Problem(model, inputs, torch.zeros_like(inputs[:, :1]), grid, exact)


def regression(seed: int, width: int = 32, depth: int = 2, points: int = 1024) -> Problem:
    """Regression on `franke`, free of noise, at K = `points` Sobol points, as above."""
    model = TanhNetwork(2, width, depth, seed)
    inputs = _sobol(points)
    grid = torch.cartesian_prod(_inside(70), _inside(70))
    return Problem(model, inputs, franke(inputs), grid, franke(grid))


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "poisson": poisson,
    "burgers": burgers,
    "regression": regression,
}


def _inside(points: int) -> Tensor:
    """The midpoints [points] of equal parts of (0, 1)."""
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points


def _sobol(points: int) -> Tensor:
    """Scrambled Sobol points [points, 2] of the unit square."""
    check_integer("points", points, 1)
    engine = torch.quasirandom.SobolEngine(2, scramble=True, seed=0)
    return engine.draw(points, dtype=torch.float64)
