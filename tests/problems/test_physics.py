"""Networks, problems and their exact solutions against autograd and the equations themselves."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from twophase.adam import AdamSettings
from twophase.errors import InputError
from twophase.full_batch import FullBatch
from twophase.problems import physics
from twophase.training import fit

VISCOSITY = 0.1 / math.pi


def network(inputs, seed=0):
    return physics.TanhNetwork(inputs, width=5, depth=3, seed=seed)


def scattered(inputs, count=7):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, inputs, generator=generator, dtype=torch.float64)


def derivatives(function, points):
    """Value [K, 1], first [d, K, 1] and second derivative [K, 1] by the first coordinate."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        value = function(points)
        (first,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), points, create_graph=True)
    return physics.Jet(value, first.T[..., None], second[:, :1])


def poisson_side(function, points):
    return -derivatives(function, points).second


def burgers_side(function, points):
    u, (u_x, u_t), u_xx = derivatives(function, points)
    return u_t + u * u_x - VISCOSITY * u_xx


EQUATIONS = {
    "poisson": (physics.PoissonNetwork(network(1)), poisson_side),
    "burgers": (physics.BurgersNetwork(network(2), VISCOSITY), burgers_side),
}
equations = pytest.mark.parametrize("name", EQUATIONS)
problems = pytest.mark.parametrize("name", physics.PROBLEMS)


class Exact(nn.Module):
    """The N that makes a hard-constrained network equal to an exact solution."""

    def __init__(self, quotient):
        super().__init__()
        self.jet = lambda points: derivatives(quotient, points)


# ---- networks


@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_a_jet_holds_the_derivatives_that_autograd_finds(inputs):
    model, points = network(inputs), scattered(inputs)
    for found, expected in zip(model.jet(points), derivatives(model, points), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@equations
def test_the_forward_pass_is_the_equations_left_side_of_the_solution(name):
    model, side = EQUATIONS[name]
    points = scattered(2 if name == "burgers" else 1)
    torch.testing.assert_close(model(points), side(model.solution, points), rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(model(points), model(points.requires_grad_()))


@equations
def test_every_derivative_of_the_solution_is_autograds(name):
    model, _ = EQUATIONS[name]
    points = scattered(2 if name == "burgers" else 1)
    for found, expected in zip(model.jet(points), derivatives(model.solution, points), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_boundary_and_initial_conditions_hold_for_any_weights(seed):
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert physics.PoissonNetwork(network(1, seed)).solution(ends).abs().max() == 0
    model = physics.BurgersNetwork(network(2, seed), VISCOSITY)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    start = torch.stack([x, torch.zeros_like(x)], dim=1)
    assert torch.equal(model.solution(start)[:, 0], -torch.sin(math.pi * x))
    for wall in (-1.0, 1.0):
        points = torch.stack([torch.full_like(x, wall), x.abs()], dim=1)
        assert model.solution(points).abs().max() < 1e-15


def test_weights_follow_the_seed_and_leave_torchs_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (physics.burgers(seed, points=8) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    weights = [nn.utils.parameters_to_vector(p.model.parameters()) for p in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(first.inputs, other.inputs)
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
    residual = burgers_side(lambda p: physics.burgers_solution(p, VISCOSITY), points)
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
    slope = derivatives(lambda p: physics.burgers_solution(p, 0.01 / math.pi), front).first[0]
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


def test_the_exact_solutions_leave_no_residual_and_no_error():
    def poisson_quotient(x):
        return physics.poisson_solution(x) / (x * (1 - x))

    def burgers_quotient(points):
        x, t = points.split(1, dim=1)
        exact = physics.burgers_solution(points, VISCOSITY)
        return (exact + torch.sin(math.pi * x)) / (t * (1 - x * x))

    solved = {
        "poisson": physics.PoissonNetwork(Exact(poisson_quotient)),
        "burgers": physics.BurgersNetwork(Exact(burgers_quotient), VISCOSITY),
    }
    for name, model in solved.items():
        problem = physics.PROBLEMS[name](seed=0)
        # points next to an edge amplify rounding in the quotient
        inner = (problem.inputs[:, -1] > 0.02) & (problem.inputs[:, 0] < 0.98)
        residual = model(problem.inputs) - problem.targets
        assert inner.sum() > 0.9 * len(inner) and residual[inner].abs().max() < 1e-7
        model.anchor = nn.Parameter(torch.zeros(1))
        assert replace(problem, model=model).error() < 1e-12


# ---- problems


@problems
def test_a_problem_has_its_points_inside_the_domain_and_its_grid_elsewhere(name):
    problem = physics.PROBLEMS[name](seed=0)
    count, size = problem.inputs.shape
    lower = torch.tensor([-1.0, 0.0]) if name == "burgers" else torch.zeros(size)
    for points in (problem.inputs, problem.grid):
        assert ((points > lower) & (points < 1)).all()
        assert points.dtype == torch.float64
    assert problem.targets.shape == (count, 1)
    assert problem.exact.shape == (len(problem.grid), 1)
    assert torch.cdist(problem.inputs, problem.grid).min() > 0


@problems
def test_the_error_is_the_relative_distance_from_the_exact_solution(name):
    problem = physics.PROBLEMS[name](seed=0)
    with torch.no_grad():
        found = problem.model.solution(problem.grid)
    squares = ((found - problem.exact) ** 2).sum() / (problem.exact**2).sum()
    assert problem.error() == pytest.approx(squares.item() ** 0.5, rel=1e-12)
    # half the solution is half of it off
    assert replace(problem, exact=2 * found).error() == pytest.approx(0.5, rel=1e-12)


def test_the_exact_values_on_the_grid_are_the_solutions():
    poisson, burgers = physics.poisson(0), physics.burgers(0, viscosity=0.05)
    assert torch.equal(poisson.exact, physics.poisson_solution(poisson.grid))
    assert torch.equal(poisson.targets, physics.poisson_source(poisson.inputs))
    assert torch.equal(burgers.exact, physics.burgers_solution(burgers.grid, 0.05))
    assert burgers.model.viscosity == 0.05 and not burgers.targets.any()
    regression = physics.regression(0)
    assert torch.equal(regression.exact, physics.franke(regression.grid))
    assert torch.equal(regression.targets, physics.franke(regression.inputs))


@equations
def test_gradient_and_curvature_of_the_full_batch_are_autograds(name):
    """The oracle differentiates u by autograd, and the loss by the weights through that."""
    problem = physics.PROBLEMS[name](seed=0, width=4, depth=2, points=11)
    model, side = problem.model, EQUATIONS[name][1]
    if name == "burgers":
        assert model.viscosity == VISCOSITY
    full = FullBatch(model, mse_loss, problem.inputs, problem.targets, chunk_size=4)
    x = full.vector.read()
    value, gradient = full.value_and_gradient(x)
    weights = list(model.parameters())
    loss = mse_loss(side(model.solution, problem.inputs), problem.targets)
    first = torch.autograd.grad(loss, weights, create_graph=True)
    flat = torch.cat([part.reshape(-1) for part in first])
    assert value == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient, flat.detach(), rtol=1e-9, atol=1e-12 * flat.norm().item())
    vector = torch.randn(len(x), generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    second = torch.autograd.grad(flat @ vector, weights)
    expected = torch.cat([part.reshape(-1) for part in second])
    found = full.hessian_vector(x, vector)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * expected.norm().item())


@pytest.mark.slow
@problems
def test_a_short_fit_lowers_loss_and_error(name):
    problem = physics.PROBLEMS[name](seed=0, width=12, depth=2, points=256)
    before, adam = problem.error(), AdamSettings(batch_size=256)
    data = (problem.inputs, problem.targets)
    epochs = {"epochs": 160, "switch": 60, "fallback": None}
    result = fit(problem.model, data, loss=mse_loss, adam=adam, device="cpu", **epochs)
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
        physics.TanhNetwork(0, 4, 1, 0)
    with pytest.raises(InputError, match="^viscosity: 0 is not allowed"):
        physics.BurgersNetwork(network(2), 0)
