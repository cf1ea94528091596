"""Networks, problems and their exact solutions against autograd and the equations themselves."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from twophase.adam import AdamSettings
from twophase.errors import InputError
from twophase.least_squares import derivatives
from twophase.problems import physics
from twophase.training import fit

VISCOSITY = 0.1 / math.pi


def network(inputs, seed=0):
    return physics.tanh_network(inputs, width=5, depth=3, seed=seed)


def scattered(inputs, count=7):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, inputs, generator=generator, dtype=torch.float64)


def by_autograd(function, points):
    """Value [K, 1], first [K, d] and second derivatives [K, d] of a function, by autograd."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        value = function(points)
        (first,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        second = [
            torch.autograd.grad(part.sum(), points, create_graph=True)[0][:, axis]
            for axis, part in enumerate(first.T)
        ]
    return value, first, torch.stack(second, dim=1)


def poisson_side(function, points):
    return -by_autograd(function, points)[2]


def burgers_side(viscosity):
    def side(function, points):
        u, first, second = by_autograd(function, points)
        return first[:, 1:] + u * first[:, :1] - viscosity * second[:, :1]

    return side


def conditions(function, points):
    """What is left of u = −sin(πx) at t = 0 and of u = 0 elsewhere."""
    x, t = points.split(1, dim=1)
    return function(points) - torch.where(t == 0, -torch.sin(math.pi * x), 0)


# the sides of a problem's equations, by autograd, each of which is to be zero
RESIDUALS = {
    "poisson": [lambda u, x: poisson_side(u, x) - physics.poisson_source(x)],
    "burgers": [burgers_side(VISCOSITY)],
    "burgers-front": [burgers_side(physics.SMALLEST_VISCOSITY), conditions],
    "regression": [lambda u, x: u(x) - physics.franke(x)],
}
problems = pytest.mark.parametrize("name", physics.PROBLEMS)


def points_of(term):
    return term.tensors[0]


# ---- networks


def test_a_constrained_network_is_what_it_says_and_knows_its_derivatives():
    model = physics.Constrained(
        network(2), lambda p: torch.sin(p[:, :1] * p[:, 1:]), lambda p: p[:, 1:] * (1 - p[:, :1])
    )
    points = scattered(2)
    for order in (1, 2):
        found = derivatives(model, points, order)
        assert len(found) == order + 1
        for part, expected in zip(found, by_autograd(model, points), strict=False):
            torch.testing.assert_close(part.squeeze(-1), expected.squeeze(-1))


@pytest.mark.parametrize("seed", range(3))
def test_boundary_and_initial_conditions_hold_for_any_weights(seed):
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert physics.poisson(seed).model(ends).abs().max() == 0
    model = physics.burgers(seed).model
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    start = torch.stack([x, torch.zeros_like(x)], dim=1)
    assert torch.equal(model(start)[:, 0], -torch.sin(math.pi * x))
    for wall in (-1.0, 1.0):
        points = torch.stack([torch.full_like(x, wall), x.abs()], dim=1)
        assert model(points).abs().max() < 1e-15


def test_weights_follow_the_seed_and_leave_torchs_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (physics.burgers(seed, points=8) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    weights = [nn.utils.parameters_to_vector(p.model.parameters()) for p in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(points_of(first.terms[0]), points_of(other.terms[0]))
    assert weights[0].dtype == torch.float64


# ---- exact solutions


def test_the_solution_of_poissons_equation_satisfies_it_and_is_zero_at_both_ends():
    x = torch.linspace(0, 1, 33, dtype=torch.float64)[:, None]
    side = poisson_side(physics.poisson_solution, x)
    torch.testing.assert_close(side, physics.poisson_source(x), rtol=1e-12, atol=1e-12)
    assert physics.poisson_solution(x[[0, -1]]).abs().max() < 1e-15
    assert len({waves for _, waves in physics.MODES}) > 1


def test_the_solution_of_burgers_equation_satisfies_it_and_its_conditions():
    points = scattered(2, 50) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
    residual = burgers_side(VISCOSITY)(lambda p: physics.burgers_solution(p, VISCOSITY), points)
    assert residual.abs().max() < 1e-9
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    start = torch.stack([x, torch.zeros_like(x)], dim=1)
    found = physics.burgers_solution(start, VISCOSITY)[:, 0]
    torch.testing.assert_close(found, -torch.sin(math.pi * x), rtol=0, atol=1e-14)
    walls = torch.cartesian_prod(torch.tensor([-1.0, 1.0]).double(), x.abs())
    assert physics.burgers_solution(walls, VISCOSITY).abs().max() < 1e-12


def test_at_the_usual_viscosity_the_front_is_as_steep_as_basdevant_and_others_found():
    """Basdevant et al. (1986): |u_x| has its maximum, 152.00516, at x = 0 and t = 1.6037 / π."""
    front = torch.tensor([[0.0, 1.6037 / math.pi]], dtype=torch.float64)
    slope = by_autograd(lambda p: physics.burgers_solution(p, 0.01 / math.pi), front)[1][0, 0]
    assert -slope.item() == pytest.approx(152.00516, abs=1e-4)


def test_frankes_function_is_its_definition():
    for x, y in [(0.0, 0.0), (0.5, 0.2), (1.0, 0.7)]:
        by_hand = (
            0.75 * math.exp(-((9 * x - 2) ** 2) / 4 - (9 * y - 2) ** 2 / 4)
            + 0.75 * math.exp(-((9 * x + 1) ** 2) / 49 - (9 * y + 1) / 10)
            + 0.5 * math.exp(-((9 * x - 7) ** 2) / 4 - (9 * y - 3) ** 2 / 4)
            - 0.2 * math.exp(-((9 * x - 4) ** 2) - (9 * y - 7) ** 2)
        )
        found = physics.franke(torch.tensor([[x, y]], dtype=torch.float64))
        assert found.item() == pytest.approx(by_hand, rel=1e-14)


# ---- problems


SOLUTIONS = {
    "poisson": physics.poisson_solution,
    "burgers": lambda p: physics.burgers_solution(p, VISCOSITY),
    "burgers-front": lambda p: physics.burgers_solution(p, physics.SMALLEST_VISCOSITY),
    "regression": physics.franke,
}


class Solution(nn.Module):
    """The exact solution in place of the network."""

    def __init__(self, function):
        super().__init__()
        self.function, self.anchor = function, nn.Parameter(torch.zeros(1))

    forward = property(lambda self: self.function)


@problems
def test_the_exact_solution_leaves_no_loss_and_no_error(name):
    problem = physics.PROBLEMS[name](seed=0)
    model = Solution(SOLUTIONS[name])
    for term, _ in zip(problem.terms, RESIDUALS[name], strict=True):
        # Burgers' front amplifies the rounding of the quadrature
        assert term.residual(model, term.points).abs().max() < 1e-5
    assert replace(problem, model=model).error() < 1e-12


@problems
def test_a_problem_has_its_points_inside_the_domain_and_its_grid_elsewhere(name):
    problem = physics.PROBLEMS[name](seed=0)
    inside, size = points_of(problem.terms[0]), problem.grid.shape[1]
    lower = torch.tensor([-1.0, 0.0]) if name.startswith("burgers") else torch.zeros(size)
    for points in (inside, problem.grid):
        assert ((points > lower) & (points < 1)).all()
        assert points.dtype == torch.float64
    assert problem.exact.shape == (len(problem.grid), 1)
    assert torch.cdist(inside, problem.grid).min() > 0


def test_the_conditions_of_the_front_are_at_its_edges():
    known, values = physics.burgers_front(0, conditions=16).terms[1].tensors
    x, t = known.split(1, dim=1)
    assert len(known) == 32 and ((t == 0) | (x.abs() == 1)).all()
    assert (t == 0).sum() == 16 and (x == 1).any() and (x == -1).any()
    expected = physics.burgers_solution(known, physics.SMALLEST_VISCOSITY)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-9)


@problems
def test_the_error_is_the_relative_distance_from_the_exact_solution(name):
    problem = physics.PROBLEMS[name](seed=0)
    with torch.no_grad():
        found = problem.model(problem.grid)
    squares = ((found - problem.exact) ** 2).sum() / (problem.exact**2).sum()
    assert problem.error() == pytest.approx(squares.item() ** 0.5, rel=1e-12)
    # half the solution is half of it off
    assert replace(problem, exact=2 * found).error() == pytest.approx(0.5, rel=1e-12)


def test_the_exact_values_on_the_grid_are_the_solutions():
    burgers = physics.burgers(0, viscosity=0.05)
    assert torch.equal(burgers.exact, physics.burgers_solution(burgers.grid, 0.05))
    for name in physics.PROBLEMS:
        problem = physics.PROBLEMS[name](0)
        assert torch.equal(problem.exact, SOLUTIONS[name](problem.grid))


@problems
def test_loss_and_gradient_are_autograds(name):
    """The oracle differentiates u by autograd, and the loss by the weights through that."""
    problem = physics.PROBLEMS[name](seed=0, width=4, depth=2, points=11)
    squares = problem.loss()
    value, gradient = squares.value_and_gradient(squares.vector.read())
    model, weights = problem.model, list(problem.model.parameters())
    loss = sum(
        (side(model, points_of(term)) ** 2).mean()
        for side, term in zip(RESIDUALS[name], problem.terms, strict=True)
    )
    flat = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, weights)])
    assert value == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient, flat, rtol=1e-9, atol=1e-12 * flat.norm().item())


@pytest.mark.slow
@problems
def test_a_short_fit_lowers_loss_and_error(name):
    problem = physics.PROBLEMS[name](seed=0, width=12, depth=2, points=256)
    before, adam = problem.error(), AdamSettings(batch_size=None)
    result = fit(problem.loss(), adam=adam, epochs=160, switch=60, fallback=None)
    losses = result.history.train_loss
    assert losses.iloc[-1] < 0.1 * losses[0]
    assert problem.error() < 0.5 * before


@pytest.mark.parametrize("name", physics.PROBLEMS)
@pytest.mark.parametrize("field, value", [("seed", -1), ("width", 0), ("depth", 0), ("points", 0)])
def test_arguments_out_of_range_name_themselves(name, field, value):
    with pytest.raises(InputError, match=f"^{field}: {value} is not allowed; use a whole number"):
        physics.PROBLEMS[name](**{"seed": 0, field: value})


@pytest.mark.parametrize("viscosity", [0.0, 0.003, math.nan, "0.1"])
def test_a_viscosity_that_the_quadrature_cannot_resolve_names_itself(viscosity):
    with pytest.raises(InputError, match="^viscosity: .* is not allowed; use a finite number"):
        physics.burgers(0, viscosity=viscosity)


def test_a_network_out_of_range_names_its_field():
    with pytest.raises(InputError, match="^inputs: 0 is not allowed"):
        physics.tanh_network(0, 4, 1, 0)
    with pytest.raises(InputError, match="^conditions: 0 is not allowed"):
        physics.burgers_front(0, conditions=0)
