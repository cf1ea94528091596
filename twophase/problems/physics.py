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

# Terms a · sin(k π x) of the solution of Poisson's equation, as (a, k). Their shares in the source,
# a k², are close, so that neither frequency can be left for later.
MODES = ((1.0, 2), (0.1, 6))
# Nodes of the quadrature in the solution of Burgers' equation, and the smallest viscosity for which
# they are known to suffice: errors below 1e-13.
NODES = 100
SMALLEST_VISCOSITY = 0.01 / math.pi


class Jet(NamedTuple):
    """A function at K points: its value and its derivatives by the coordinates.

    `value` has shape [K, 1], `first` [d, K, 1] holds the derivatives by the d coordinates, `second`
    [K, 1] the second derivative by the first coordinate.

    >>> x = torch.tensor([[3.0]])
    >>> square = Jet(x**2, 2 * x[None], torch.full_like(x, 2))
    >>> square.second.item()
    2.0
    """

    value: Tensor
    first: Tensor
    second: Tensor

    def times(self, other: "Jet") -> "Jet":
        """The product of two functions: (a b)' = a' b + a b', (a b)'' = a'' b + 2 a' b' + a b''.

        >>> x = torch.tensor([[3.0]])
        >>> line = Jet(x, torch.ones(1, 1, 1), torch.zeros(1, 1))
        >>> line.times(line).first.item(), line.times(line).second.item()
        (6.0, 2.0)
        """
        return Jet(
            self.value * other.value,
            self.first * other.value + self.value * other.first,
            self.second * other.value
            + 2 * self.first[0] * other.first[0]
            + self.value * other.second,
        )

    def plus(self, other: "Jet") -> "Jet":
        """The sum of two functions.

        >>> x = torch.tensor([[3.0]])
        >>> line = Jet(x, torch.ones(1, 1, 1), torch.zeros(1, 1))
        >>> line.plus(line).first.item()
        2.0
        """
        return Jet(*(mine + others for mine, others in zip(self, other, strict=True)))


class TanhNetwork(nn.Module):
    """A fully connected tanh network in float64 that knows its derivatives by its inputs.

    It maps points [K, d] to [K, 1] by `depth` hidden layers of `width` units and a linear one.
    Weights follow PyTorch's defaults; torch's global random numbers stay as they were.

    Args:
        inputs: coordinates d of a point, at least 1.
        width, depth: units of a hidden layer and hidden layers, at least 1.
        seed: of the initial weights, at least 0.

    Raises:
        InputError: a value is out of range.

    >>> network = TanhNetwork(inputs=2, width=8, depth=2, seed=0)
    >>> network(torch.zeros(5, 2, dtype=torch.float64)).shape
    torch.Size([5, 1])
    """

    def __init__(self, inputs: int, width: int, depth: int, seed: int):
        super().__init__()
        check_integer("inputs", inputs, 1)
        check_integer("width", width, 1)
        check_integer("depth", depth, 1)
        check_integer("seed", seed, 0)
        sizes = [inputs, *[width] * depth]
        # Only the CPU's generator is saved, seeded and used: manual_seed would reseed GPUs too.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self.hidden = nn.ModuleList(
                nn.Linear(*pair, dtype=torch.float64)
                for pair in zip(sizes, sizes[1:], strict=False)
            )
            self.output = nn.Linear(width, 1, dtype=torch.float64)

    def forward(self, points: Tensor) -> Tensor:
        """The network's values [K, 1] at points [K, d]."""
        for layer in self.hidden:
            points = torch.tanh(layer(points))
        return self.output(points)

    solution = forward

    def jet(self, points: Tensor) -> Jet:
        """Values and derivatives at points [K, d], layer by layer in closed form (Taylor mode).

        For h = tanh(z) along a coordinate: h' = (1 − h²) z', h'' = (1 − h²) z'' − 2 h h' z'
        (Griewank and Walther, Evaluating Derivatives, 2nd ed., chapter 13). So the derivatives are
        there without a graph, and a gradient takes one backward pass.

        >>> network = TanhNetwork(inputs=1, width=4, depth=1, seed=0)
        >>> points = torch.zeros(3, 1, dtype=torch.float64)
        >>> network.jet(points).first.shape
        torch.Size([1, 3, 1])
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
    squared distance from f is the physics-informed loss. The boundary conditions hold exactly, for
    whatever weights (Lagaris, Likas and Fotiadis, Artificial neural networks for solving ordinary
    and partial differential equations, 1998).

    >>> model = PoissonNetwork(TanhNetwork(inputs=1, width=4, depth=1, seed=0))
    >>> ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    >>> model.solution(ends).abs().max().item(), model(ends).shape
    (0.0, torch.Size([2, 1]))
    """

    def __init__(self, network: TanhNetwork):
        super().__init__()
        self.network = network

    def forward(self, points: Tensor) -> Tensor:
        """−u'' [K, 1] at points [K, 1]."""
        return -self.jet(points).second

    def solution(self, points: Tensor) -> Tensor:
        """u [K, 1] at points [K, 1]."""
        return self.jet(points).value

    def jet(self, x: Tensor) -> Jet:
        """u with u' and u'' at points [K, 1]."""
        factor = Jet(x * (1 - x), (1 - 2 * x)[None], torch.full_like(x, -2))
        return factor.times(self.network.jet(x))


class BurgersNetwork(nn.Module):
    """A network u(x, t) = −sin(πx) + t (1 − x²) N(x, t) for u_t + u u_x = ν u_xx.

    Calling it with points (x, t) [K, 2] returns the residual u_t + u u_x − ν u_xx [K, 1], which is
    to be 0. It holds u(x, 0) = −sin(πx) and u(±1, t) = 0 for whatever weights (Lagaris, Likas and
    Fotiadis, 1998).

    Args:
        network: N, of two inputs.
        viscosity: ν, above 0.

    Raises:
        InputError: the viscosity is out of range.

    >>> network = TanhNetwork(inputs=2, width=4, depth=1, seed=0)
    >>> points = torch.tensor([[0.5, 0.0], [0.5, 1.0]], dtype=torch.float64)
    >>> BurgersNetwork(network, viscosity=0.1).solution(points)[0].item()
    -1.0
    """

    def __init__(self, network: TanhNetwork, viscosity: float):
        super().__init__()
        self.network = network
        self.viscosity = check_number("viscosity", viscosity, above=0)

    def forward(self, points: Tensor) -> Tensor:
        """u_t + u u_x − ν u_xx [K, 1] at points [K, 2]."""
        value, (by_x, by_t), second = self.jet(points)
        return by_t + value * by_x - self.viscosity * second

    def solution(self, points: Tensor) -> Tensor:
        """u [K, 1] at points [K, 2]."""
        return self.jet(points).value

    def jet(self, points: Tensor) -> Jet:
        """u with u_x, u_t and u_xx at points [K, 2]."""
        x, t = points.split(1, dim=1)
        sine, cosine = torch.sin(math.pi * x), torch.cos(math.pi * x)
        start = Jet(-sine, torch.stack([-math.pi * cosine, torch.zeros_like(x)]), math.pi**2 * sine)
        factor = Jet(t * (1 - x * x), torch.stack([-2 * t * x, 1 - x * x]), -2 * t)
        return start.plus(factor.times(self.network.jet(points)))


def poisson_solution(x: Tensor) -> Tensor:
    """u(x) = sin(2πx) + sin(6πx) / 10, manufactured for Poisson's equation, elementwise.

    >>> poisson_solution(torch.tensor([0.25]))
    tensor([0.9000])
    """
    return sum(a * torch.sin(k * math.pi * x) for a, k in MODES)


def poisson_source(x: Tensor) -> Tensor:
    """f(x) = −u''(x) of that solution, elementwise.

    >>> round(poisson_source(torch.tensor([0.25], dtype=torch.float64)).item() / math.pi**2, 9)
    0.4
    """
    return sum(a * (k * math.pi) ** 2 * torch.sin(k * math.pi * x) for a, k in MODES)


def burgers_solution(points: Tensor, viscosity: float) -> Tensor:
    """u(x, t) [K, 1] of u_t + u u_x = ν u_xx with u(x, 0) = −sin(πx) and u(±1, t) = 0.

    The transformation of Cole and Hopf gives

        u = −∫ sin(πy) F(y) exp(−(x − y)² / 4νt) dy / ∫ F(y) exp(−(x − y)² / 4νt) dy

    with F(y) = exp(−cos(πy) / 2πν) (Basdevant et al., Spectral and finite difference solutions of
    the Burgers equation, 1986), by Gauss–Hermite quadrature. Differentiable for t > 0.

    Args:
        points: (x, t) with t >= 0, shape [K, 2], float64.
        viscosity: ν, at least 0.01/π; below it the quadrature is not exact enough.

    Raises:
        InputError: the viscosity is out of range.

    >>> points = torch.tensor([[0.5, 0.0], [0.0, 0.7]], dtype=torch.float64)
    >>> [round(u, 9) + 0.0 for u in burgers_solution(points, viscosity=0.1).flatten().tolist()]
    [-1.0, 0.0]
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

    >>> round(franke(torch.tensor([[0.5, 0.5]])).item(), 4)
    0.3258
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

    Attributes:
        model: maps `inputs` to what should equal `targets`; `model.solution(points)` is what should
            equal the exact solution. For a regression both are the same.
        inputs, targets: shapes [K, d] and [K, 1], float64.
        grid, exact: points [n, d] other than the inputs, and the exact solution [n, 1] there.

    >>> from twophase import AdamSettings, fit
    >>> problem = poisson(seed=0, width=8, depth=1, points=32)
    >>> before = problem.error()
    >>> data, adam = (problem.inputs, problem.targets), AdamSettings(batch_size=32)
    >>> result = fit(problem.model, data, epochs=60, switch=20, adam=adam)
    >>> problem.error() < before
    True
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    grid: Tensor
    exact: Tensor

    @torch.no_grad()
    def error(self) -> float:
        """Relative L2 error of the model's present solution u on the grid, ‖u − exact‖ / ‖exact‖.

        >>> error = regression(seed=0).error()
        >>> 0.5 < error < 2
        True
        """
        device = next(self.model.parameters()).device
        found = self.model.solution(self.grid.to(device)).to(self.exact.device)
        return ((found - self.exact).norm() / self.exact.norm()).item()


def poisson(seed: int, width: int = 32, depth: int = 3, points: int = 128) -> Problem:
    """Poisson's equation −u'' = f on (0, 1), u(0) = u(1) = 0, with `poisson_solution`.

    Args:
        seed: of the initial weights.
        width, depth: of the `TanhNetwork`.
        points: K equispaced points inside the interval, where the equation is to hold. Default 128:
            over 40 per period of the faster term.

    Raises:
        InputError: a value is out of range.

    >>> problem = poisson(seed=0)
    >>> problem.inputs.shape, problem.targets.abs().max().item() > 1
    (torch.Size([128, 1]), True)
    """
    model = PoissonNetwork(TanhNetwork(1, width, depth, seed))
    check_integer("points", points, 1)
    inputs, grid = _inside(points)[:, None], _inside(1000)[:, None]
    return Problem(model, inputs, poisson_source(inputs), grid, poisson_solution(grid))


def burgers(
    seed: int, width: int = 20, depth: int = 4, points: int = 1024, viscosity: float = 0.1 / math.pi
) -> Problem:
    """Burgers' equation u_t + u u_x = ν u_xx on (−1, 1) x (0, 1) from −sin(πx), zero at x = ±1.

    Args:
        seed: of the initial weights.
        width, depth: of the `TanhNetwork`.
        points: K points of a Sobol sequence, the same for every seed, where the equation is to
            hold.
        viscosity: ν, at least 0.01/π. Default 0.1/π: 3,000 passes of L-BFGS after 300 epochs of
            Adam leave an error of 4e-4. At the usual 0.01/π the front at x = 0 is a tenth as wide,
            and the same passes leave 4e-2; Raissi et al. (2019) take 10,000 points for it.

    Raises:
        InputError: a value is out of range.

    >>> problem = burgers(seed=0, points=16)
    >>> problem.inputs.shape, problem.targets.abs().max().item()
    (torch.Size([16, 2]), 0.0)
    """
    grid = torch.cartesian_prod(2 * _inside(100) - 1, _inside(50))
    exact = burgers_solution(grid, viscosity)
    model = BurgersNetwork(TanhNetwork(2, width, depth, seed), viscosity)
    inputs = _sobol(points) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
    return Problem(model, inputs, torch.zeros_like(inputs[:, :1]), grid, exact)


def regression(seed: int, width: int = 32, depth: int = 2, points: int = 1024) -> Problem:
    """Regression of a tanh network on `franke` at points of the unit square, free of noise.

    Args:
        seed: of the initial weights.
        width, depth: of the `TanhNetwork`.
        points: K points of a Sobol sequence, the same for every seed.

    Raises:
        InputError: a value is out of range.

    >>> problem = regression(seed=0)
    >>> problem.inputs.shape, problem.targets.shape
    (torch.Size([1024, 2]), torch.Size([1024, 1]))
    """
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
