"""Levenberg–Marquardt against dense algebra and scipy's least_squares; hard cases; resuming."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from twophase import LeastSquares, LevenbergMarquardt, Term, minimize
from twophase.errors import InputError
from twophase.least_squares import normal_equations
from twophase.least_squares import problem as problem_module
from twophase.objective import FunctionObjective, evaluate


class Vector(nn.Module):
    """Parameters by themselves; a residual makes of them what it wants."""

    def __init__(self, *values):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def rows(function, count):
    """A least-squares problem ‖f(x)‖² of f: [P] to [count]; each row has its index as point."""
    indices = torch.arange(count)[:, None]
    return lambda model: LeastSquares(
        model, [Term(lambda m, i: function(m.x)[i[:, 0]], indices, float(count))]
    )


def rosenbrock(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def powell_singular(x):
    linear = x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3])
    return torch.stack([*linear, (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2])


def helical(x):
    theta = torch.atan2(x[1], x[0]) / (2 * math.pi)
    return torch.stack([10 * (x[2] - 10 * theta), 10 * ((x[0] ** 2 + x[1] ** 2).sqrt() - 1), x[2]])


def exponentials(x):
    t = torch.arange(1, 12, dtype=torch.float64) / 10
    return (
        torch.exp(-t * x[0]) - x[2] * torch.exp(-t * x[1]) - torch.exp(-t) + 5 * torch.exp(-10 * t)
    )


# Moré, Garbow and Hillstrom, Testing unconstrained optimization software, 1981
CASES = {
    "rosenbrock": (rosenbrock, 2, (-1.2, 1.0)),
    "powell singular": (powell_singular, 4, (3.0, -1.0, 0.0, 1.0)),
    "helical valley": (helical, 3, (-1.0, 0.1, 0.1)),
    "exponentials": (exponentials, 11, (1.0, 2.0, 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("acceleration", [0.75, 0.0])
def test_it_ends_where_scipy_does(name, acceleration):
    function, count, at = CASES[name]
    model = Vector(*at)
    second = LevenbergMarquardt(acceleration=acceleration)
    found = minimize(rows(function, count)(model), iterations=400, second=second)
    exact = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
    peer = scipy.optimize.least_squares(
        lambda x: function(torch.from_numpy(x)).numpy(), np.array(at), method="lm", **exact
    )
    assert found.loss <= 2 * peer.cost * (1 + 1e-8) + 1e-20
    assert torch.equal(model.x.detach(), found.x)


def regression(count=40, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) * x[:, 1:]
    return model, LeastSquares(model, [Term(lambda m, p: m(p[0]) - p[1], (x, y))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [40, 10])
def test_the_loss_never_rises_and_passes_are_those_of_the_objective(dtype, count):
    _, problem = regression(count, dtype)
    losses, spent = [problem.value(problem.vector.read())], problem.passes.total
    told = []
    found = minimize(problem, iterations=60, callback=told.append)
    losses += [result.loss for result in told]
    assert all(after < before for before, after in zip(losses, losses[1:-1], strict=False))
    assert found.passes == problem.passes.total - spent == told[-1].passes
    assert found.loss < 1e-3 * losses[0]


def test_an_iteration_takes_five_passes_where_its_first_step_is_good():
    _, problem = regression()
    told = []
    minimize(problem, iterations=30, callback=told.append)
    spent = np.diff([result.passes for result in told])
    assert np.median(spent) == 5


def test_it_goes_on_from_its_state_alone():
    """The kept Jacobian is no state: without it the same steps come, and count the same."""
    second = LevenbergMarquardt()
    _, problem = regression()
    _, other = regression()
    point = evaluate(problem, problem.vector.read())
    state, passes = None, []
    for _ in range(4):
        before = problem.passes.total
        done = second.iterate(problem, point, state)
        passes.append(problem.passes.total - before)
        earlier, point, state = (point, state), done.point, done.state
    before = other.passes.total
    again = second.iterate(other, *earlier)
    assert torch.equal(again.x, done.x) and again.state.memory == done.state.memory
    assert other.passes.total - before == passes[-1]


def test_without_normal_equations_it_goes_by_products(monkeypatch):
    _, problem = regression()
    direct = minimize(problem, iterations=8, second=LevenbergMarquardt(acceleration=0))
    monkeypatch.setattr(problem_module, "NORMAL_WORK", 0)
    monkeypatch.setattr(normal_equations, "CG_TOLERANCE", 1e-10)
    _, problem = regression()
    assert not problem.direct
    found = minimize(problem, iterations=8, second=LevenbergMarquardt())
    # the first damping is in parts of an estimate
    assert found.loss == pytest.approx(direct.loss, rel=0.1)
    monkeypatch.undo()
    monkeypatch.setattr(problem_module, "NORMAL_WORK", 0)
    _, problem = regression()
    assert minimize(problem, iterations=100, second=LevenbergMarquardt()).loss < 1e-3


def test_rank_deficient_and_zero_jacobians_end_with_a_status():
    copies = rows(lambda x: (x.sum() - 1).expand(3), 3)(Vector(0.0, 0.0, 0.0))
    assert minimize(copies, iterations=50).loss < 1e-25
    nothing = rows(lambda x: 0 * x + 1, 2)(Vector(1.0, 2.0))
    found = minimize(nothing, iterations=50)
    assert found.status == "converged" and found.loss == pytest.approx(2)


def test_residuals_that_turn_not_a_number_along_the_step_are_gone_around():
    model = Vector(0.01)
    problem = rows(lambda x: torch.log(x) + 3, 1)(model)
    found = minimize(problem, iterations=100)
    assert found.loss < 1e-20 and found.x.item() == pytest.approx(math.exp(-3))


def test_where_every_step_is_not_a_number_the_weights_stay():
    def wall(x):
        return x / (x == 1).double()

    model = Vector(1.0)
    found = minimize(rows(wall, 1)(model), iterations=5)
    assert found.status == "not finite" and model.x.item() == 1.0


@pytest.mark.parametrize(
    "given", [{"damping": 0}, {"damping": "x"}, {"acceleration": -1}, {"tolerance_grad": -1}]
)
def test_values_out_of_range_are_one_line(given):
    with pytest.raises(InputError, match=f"^{next(iter(given))}: "):
        LevenbergMarquardt(**given)


def test_another_objective_is_refused_in_one_line():
    objective = FunctionObjective(lambda x: x.square().sum())
    with pytest.raises(InputError, match="^second: .*no sum of squares"):
        minimize(objective, torch.ones(2).double(), second=LevenbergMarquardt(), iterations=3)


def test_a_jacobian_that_does_not_fit_is_summed_up(monkeypatch):
    """More examples than memory: J'J is made part by part, products by passes."""
    _, kept = regression(count=200)
    first = kept.linearize(kept.vector.read())
    whole = minimize(kept, iterations=15)
    monkeypatch.setattr(problem_module, "JACOBIAN_BYTES", 1000)
    monkeypatch.setattr(problem_module, "JACOBIAN_CHUNK_BYTES", 40 * 8 * 33)
    _, summed = regression(count=200)
    assert not summed.keeps_jacobian
    at = summed.linearize(summed.vector.read())
    assert torch.allclose(at.squared, first.jacobian.T @ first.jacobian, rtol=1e-12)
    assert torch.allclose(at.gradient, first.gradient, rtol=1e-12)
    rows = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(summed.pull(at.x, rows), first.jacobian.T @ rows, rtol=1e-10)
    parts = minimize(summed, iterations=15)
    # the second derivative along the step is a central difference here
    assert parts.loss == pytest.approx(whole.loss, rel=0.5)
