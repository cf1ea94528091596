"""Small full-batch problems in float64 with known solutions, solved by tanh networks.

Physics-informed networks and a regression: smooth losses without noise, for which Adam followed by
a second-order method is common practice (Raissi, Perdikaris and Karniadakis, Physics-informed
neural networks, J. Comput. Phys. 378, 2019). A problem is a network, terms of squared residuals,
and the solution on a grid; a residual is a function of the network and points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import roots_hermite
from torch import Tensor, nn

from twophase.errors import check_integer, check_number
from twophase.least_squares import LeastSquares, Term, derivatives
from twophase.problems.networks import seeded

# Terms a · sin(k π x) of the solution of Poisson's equation, as (a, k). Their shares in the source,
# a k², are close, so that neither frequency can be left for later.
MODES = ((1.0, 2), (0.1, 6))
# Nodes of the quadrature in the solution of Burgers' equation, and the smallest viscosity for which
# they are known to suffice: errors below 1e-13.
NODES = 100
SMALLEST_VISCOSITY = 0.01 / math.pi


@dataclass(frozen=True)
class Problem:
    """A network to train on all its points at once, and the solution that it should come to.

    `model` maps the `grid` [n, d] to what should be `exact` [n, 1].
    """

    model: nn.Module
    terms: tuple[Term, ...]
    grid: Tensor
    exact: Tensor

    def loss(self) -> LeastSquares:
        """What is to be minimised: the terms' mean squared residuals, with their weights."""
        return LeastSquares(self.model, self.terms)

    @torch.no_grad()
    def error(self) -> float:
        """‖u − exact‖ / ‖exact‖ on the grid, of the model's present solution u."""
        device = next(self.model.parameters()).device
        found = self.model(self.grid.to(device)).to(self.exact.device)
        return ((found - self.exact).norm() / self.exact.norm()).item()


def tanh_network(inputs: int, width: int, depth: int, seed: int) -> nn.Sequential:
    """A fully connected tanh network in float64, from [K, inputs] to [K, 1].

    It has `depth` hidden layers of `width` units, and PyTorch's default weights for the `seed`.
    Fewer than one of anything, or a negative seed, raises `InputError`.
    """
    check_integer("inputs", inputs, 1)
    check_integer("width", width, 1)
    check_integer("depth", depth, 1)
    sizes = [inputs, *[width] * depth]
    with seeded(seed):
        layers: list[nn.Module] = []
        for pair in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(*pair, dtype=torch.float64), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(width, 1, dtype=torch.float64))


class Constrained(nn.Module):
    """u(x) = start(x) + factor(x) · network(x): what `start` prescribes holds where `factor` is 0.

    So boundary and initial conditions hold exactly, for whatever weights (Lagaris, Likas and
    Fotiadis, Artificial neural networks for solving ordinary and partial differential equations,
    1998). `start` and `factor` map points [K, d] to [K, 1].
    """

    def __init__(
        self,
        network: nn.Module,
        start: Callable[[Tensor], Tensor],
        factor: Callable[[Tensor], Tensor],
    ):
        super().__init__()
        self.network, self.start, self.factor = network, start, factor

    def forward(self, points: Tensor) -> Tensor:
        return self.start(points) + self.factor(points) * self.network(points)

    def derivatives(self, points: Tensor, order: int) -> tuple[Tensor, ...]:
        """By the product rule, so that the network is passed through once; for `derivatives`."""
        parts = (self.start, self.factor, self.network)
        start, factor, network = (derivatives(part, points, order) for part in parts)
        a, b = factor[0][:, None], network[0][:, None]
        found = [factor[0] * network[0], factor[1] * b + a * network[1]]
        if order == 2:
            found.append(factor[2] * b + 2 * factor[1] * network[1] + a * network[2])
        return tuple(s + f for s, f in zip(start, found, strict=True))


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


def poisson(seed: int, width: int = 32, depth: int = 3, points: int = 128) -> Problem:
    """Poisson's equation −u'' = f on (0, 1), u(0) = u(1) = 0, with `poisson_solution`.

    It is to hold at K = `points` equispaced points inside the interval, by default over 40 per
    period of the faster term, the boundary conditions exactly. `seed`, `width` and `depth` are the
    `tanh_network`'s; a value out of range raises `InputError`, here and below.
    """
    check_integer("points", points, 1)
    model = Constrained(
        tanh_network(1, width, depth, seed), torch.zeros_like, lambda x: x * (1 - x)
    )
    inputs, grid = _inside(points)[:, None], _inside(1000)[:, None]
    term = Term(_poisson_residual, (inputs, poisson_source(inputs)))
    return Problem(model, (term,), grid, poisson_solution(grid))


def burgers(
    seed: int, width: int = 20, depth: int = 4, points: int = 1024, viscosity: float = 0.1 / math.pi
) -> Problem:
    """Burgers' equation u_t + u u_x = ν u_xx on (−1, 1) x (0, 1) from −sin(πx), zero at x = ±1.

    It is to hold at K = `points` points of a Sobol sequence, the same for every seed, and the
    conditions exactly: u = −sin(πx) + t (1 − x²) N(x, t). The viscosity ν is at least 0.01/π.
    Default 0.1/π: 3,000 passes of L-BFGS after 300 epochs of Adam leave an error of 4e-4. At the
    usual 0.01/π, see `burgers_front`, the front at x = 0 is a tenth as wide.
    """
    grid, exact = _burgers_grid(viscosity)
    model = Constrained(
        tanh_network(2, width, depth, seed),
        lambda p: -torch.sin(math.pi * p[:, :1]),
        lambda p: p[:, 1:] * (1 - p[:, :1] ** 2),
    )
    return Problem(model, (Term(_burgers_residual(viscosity), _strip(points)),), grid, exact)


def burgers_front(
    seed: int, width: int = 20, depth: int = 4, points: int = 2000, conditions: int = 200
) -> Problem:
    """Burgers' equation as above at the usual viscosity 0.01/π, its conditions in the loss.

    The mean squared residual at `points` points, and that of the conditions at `conditions` points
    at t = 0 and as many at x = ±1, all of Sobol sequences (Raissi et al., 2019: 10,000 and 100).
    """
    check_integer("conditions", conditions, 1)
    grid, exact = _burgers_grid(SMALLEST_VISCOSITY)
    begin, walls = _strip(conditions), _strip(conditions)
    begin[:, 1] = 0
    walls[:, 0] = torch.where(walls[:, 0] < 0, -1.0, 1.0)
    known = torch.cat([begin, walls])
    values = torch.where(known[:, 1:] == 0, -torch.sin(math.pi * known[:, :1]), 0)
    terms = (
        Term(_burgers_residual(SMALLEST_VISCOSITY), _strip(points)),
        Term(_difference, (known, values)),
    )
    return Problem(tanh_network(2, width, depth, seed), terms, grid, exact)


def regression(seed: int, width: int = 32, depth: int = 2, points: int = 1024) -> Problem:
    """Regression on `franke`, free of noise, at K = `points` Sobol points, as above."""
    inputs = _sobol(points)
    grid = torch.cartesian_prod(_inside(70), _inside(70))
    term = Term(_difference, (inputs, franke(inputs)))
    return Problem(tanh_network(2, width, depth, seed), (term,), grid, franke(grid))


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "poisson": poisson,
    "burgers": burgers,
    "burgers-front": burgers_front,
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


def _strip(points: int) -> Tensor:
    """Sobol points (x, t) [points, 2] of (−1, 1) x (0, 1)."""
    return _sobol(points) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])


def _burgers_grid(viscosity: float) -> tuple[Tensor, Tensor]:
    grid = torch.cartesian_prod(2 * _inside(100) - 1, _inside(50))
    return grid, burgers_solution(grid, viscosity)


def _poisson_residual(model: Any, given: tuple[Tensor, Tensor]) -> Tensor:
    points, source = given
    return derivatives(model, points)[2][:, 0] + source


def _burgers_residual(viscosity: float) -> Callable[[Any, Tensor], Tensor]:
    def residual(model: Any, points: Tensor) -> Tensor:
        u, by, twice = derivatives(model, points)
        return by[:, 1] + u * by[:, 0] - viscosity * twice[:, 0]

    return residual


def _difference(model: Any, given: tuple[Tensor, Tensor]) -> Tensor:
    return model(given[0]) - given[1]
