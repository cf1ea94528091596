"""Conjugate gradient against its definition: conjugacy, termination, restarts, formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.cg import DIRECTIONS, CGSettings, Status, iterate, minimize
from twophase.directions import BETA_RULES, Change
from twophase.errors import InputError, NonFiniteError
from twophase.line_search.golden_section import (
    LINE_SEARCHES,
    GoldenSection,
    SearchResult,
    SearchStatus,
)
from twophase.objective import FunctionObjective, evaluate


def quadratic(dimension, condition, seed=0):
    """A random symmetric positive definite matrix with log-spaced eigenvalues from 1."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(
        torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    )
    eigenvalues = torch.logspace(0, torch.tensor(condition).log10(), dimension, dtype=torch.float64)
    return basis @ torch.diag(eigenvalues) @ basis.T


def objective_of(matrix):
    return FunctionObjective(lambda x: 0.5 * x @ matrix @ x)


class ExactSearch:
    """The minimum along a line of a quadratic, from its formula."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, line, first_step):
        step = -line.slope / (line.direction @ self.matrix @ line.direction).item()
        return SearchResult(step, line.trial(step).value, 1, SearchStatus.MINIMUM)


def trajectory(objective, x, settings, iterations):
    """Points and memories of successive iterations."""
    point, memory = evaluate(objective, x), None
    points, memories = [point], []
    for _ in range(iterations):
        iteration = iterate(objective, point, memory, settings)
        assert iteration.status is Status.MOVED
        point, memory = evaluate(objective, iteration.x), iteration.memory
        points.append(point)
        memories.append(memory)
    return points, memories


@pytest.mark.parametrize("beta", BETA_RULES)
@given(dimension=st.integers(2, 8), seed=st.integers(0, 100))
def test_directions_are_conjugate_and_n_steps_suffice(beta, dimension, seed):
    matrix = quadratic(dimension, 20.0, seed)
    settings = CGSettings(beta, ExactSearch(matrix))
    x = torch.ones(dimension, dtype=torch.float64)
    points, memories = trajectory(objective_of(matrix), x, settings, dimension)
    directions = torch.stack([m.direction / m.direction.norm() for m in memories])
    products = directions @ matrix @ directions.T
    off_diagonal = products - torch.diag(products.diagonal())
    # in units of the smallest eigenvalue: the last directions are short and noisy
    assert off_diagonal.abs().max() < 1e-4
    assert points[-1].gradient.norm() < 1e-9 * points[0].gradient.norm()


@pytest.mark.parametrize("beta", BETA_RULES)
def test_equals_linear_conjugate_gradient_with_exact_steps(beta):
    """Hestenes and Stiefel's recursion for A x = 0, whose iterates all β rules must reproduce."""
    matrix = quadratic(12, 100.0)
    x = torch.linspace(1, 2, 12, dtype=torch.float64)
    points, _ = trajectory(objective_of(matrix), x, CGSettings(beta, ExactSearch(matrix)), 8)
    residual = -matrix @ x
    direction = residual
    for point in points:
        torch.testing.assert_close(point.x, x, rtol=1e-9, atol=1e-12)
        step = (residual @ residual) / (direction @ matrix @ direction)
        x, before = x + step * direction, residual
        residual = residual - step * (matrix @ direction)
        direction = residual + (residual @ residual) / (before @ before) * direction


def test_beta_rules_are_their_formulas():
    g = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    p = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    d = torch.tensor([-1.5, 0.5, 0.5], dtype=torch.float64)
    y = g - p
    gg, pp, gp, yy, dy = 14, 5.25, -2, 23.25, (d @ y).item()
    expected = {
        "FR": gg / pp,
        "PR": (gg - gp) / pp,
        "PR+": (gg - gp) / pp,
        "HS": (gg - gp) / dy,
        "DY": gg / dy,
        "HS-DY": min(gg - gp, gg) / dy,
        "HZ": (gg - gp - 2 * yy * (d @ g).item() / dy) / dy,
    }
    for name, rule in BETA_RULES.items():
        assert rule(Change(g, p, d)) == pytest.approx(expected[name]), name


def test_beta_rules_are_truncated_where_they_say():
    g, d = torch.ones(1).double(), -torch.ones(1).double()
    nearer = Change(g, 2 * g, d)
    assert BETA_RULES["PR"](nearer) == pytest.approx(-0.25)
    assert BETA_RULES["PR+"](nearer) == 0
    assert BETA_RULES["HS-DY"](nearer) == 0
    # g'y = -1, y'y = 1, d'y = 1, d'g = -1: β = -1 + 2 = 1; the bound 0.4 d'p / d'd is -0.8
    assert BETA_RULES["HZ"](nearer) == pytest.approx(1)
    across = Change(torch.tensor([0.5, 3.0]), torch.tensor([1.0, 4.0]), torch.tensor([-1.0, 0.0]))
    assert BETA_RULES["HZ"](across) == pytest.approx(-0.4)  # bound 0.4 d'p / d'd, above -1.5
    for rule in ("HS", "DY", "HZ"):
        assert math.isnan(BETA_RULES[rule](Change(g, g / 2, d)))  # negative curvature


def test_the_previous_gradient_is_the_previous_one():
    matrix = quadratic(6, 50.0)
    x = torch.ones(6, dtype=torch.float64)
    points, memories = trajectory(objective_of(matrix), x, CGSettings(), 5)
    for point, memory in zip(points, memories, strict=False):
        assert torch.equal(memory.gradient, point.gradient)


def test_restarts_every_n_iterations():
    matrix = quadratic(8, 100.0)
    settings = CGSettings("FR", ExactSearch(matrix), restart_every=3)
    x = torch.ones(8, dtype=torch.float64)
    points, memories = trajectory(objective_of(matrix), x, settings, 7)
    steepest = [
        torch.equal(memory.direction, -point.gradient)
        for point, memory in zip(points, memories, strict=False)
    ]
    assert steepest == [True, False, False, True, False, False, True]


def test_restarts_where_the_direction_does_not_descend():
    objective = objective_of(quadratic(4, 10.0))
    point = evaluate(objective, torch.ones(4, dtype=torch.float64))
    memory = iterate(objective, point, None, CGSettings()).memory
    uphill = memory._replace(direction=1e6 * point.gradient, gradient=0.1 * point.gradient)
    iteration = iterate(objective, point, uphill, CGSettings("FR"))
    assert torch.equal(iteration.memory.direction, -point.gradient)
    assert iteration.value < point.value


def test_a_failed_search_falls_back_on_steepest_descent():
    """A search that only accepts the steepest descent: the second attempt is along −g."""

    class Choosy:
        def __call__(self, line, first_step):
            if torch.equal(line.direction, -line.x):
                return LINE_SEARCHES["golden"](line, first_step)
            return line.failure(SearchStatus.NO_DESCENT)

    objective = FunctionObjective(lambda x: 0.5 * x @ x)
    point = evaluate(objective, torch.ones(3, dtype=torch.float64))
    memory = iterate(objective, point, None, CGSettings()).memory
    memory = memory._replace(direction=-torch.arange(1.0, 4).double(), age=1)
    iteration = iterate(objective, point, memory, CGSettings("FR", Choosy()))
    assert iteration.status is Status.MOVED
    assert torch.equal(iteration.memory.direction, -point.gradient)


def test_stops_at_the_zero_gradient_norm():
    matrix = quadratic(20, 1e3)
    settings = CGSettings(line_search=LINE_SEARCHES["golden-tight"], zero_gradient_norm=1e-6)
    result = minimize(objective_of(matrix), torch.ones(20, dtype=torch.float64), 100, settings)
    assert result.status is Status.CONVERGED
    assert result.gradient_norm <= 1e-6
    assert (matrix @ result.x).norm() == pytest.approx(result.gradient_norm, rel=1e-6)


def test_stops_where_the_arithmetic_ends():
    """At 1 + x'Ax/2, float64 cannot see progress of the loss below |x| = 1e-8."""
    matrix = quadratic(5, 10.0)
    objective = FunctionObjective(lambda x: 1 + 0.5 * x @ matrix @ x)
    settings = CGSettings(line_search=GoldenSection())
    result = minimize(objective, torch.ones(5, dtype=torch.float64), 50, settings)
    assert result.status is Status.RESOLUTION
    assert result.x.norm() < 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_slopes_go_on_to_where_the_gradient_ends(direction):
    """Beyond the losses' resolution, to that of the gradient, and no further."""
    matrix = quadratic(5, 10.0)
    minimum = torch.linspace(1, 2, 5, dtype=torch.float64)
    objective = FunctionObjective(lambda x: 1 + 0.5 * (x - minimum) @ matrix @ (x - minimum))
    settings = CGSettings(direction=direction)
    result = minimize(objective, torch.zeros(5, dtype=torch.float64), 200, settings)
    assert result.status in (Status.RESOLUTION, Status.CONVERGED)
    assert (result.x - minimum).norm() < 1e-13


@pytest.mark.parametrize("line_search", [None, GoldenSection()], ids=["default", "golden"])
def test_a_gradient_that_belongs_to_another_loss_is_no_descent(line_search):
    class Liar(FunctionObjective):
        def value_and_gradient(self, x):
            value, gradient = super().value_and_gradient(x)
            return value, -gradient

    settings = CGSettings(line_search=line_search)
    result = minimize(Liar(lambda x: x @ x + 1), torch.ones(3).double(), 5, settings)
    assert (result.status, result.iterations) == (Status.NO_DESCENT, 0)


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteError, match="loss: nan is not allowed"):
        minimize(FunctionObjective(lambda x: x.log().sum()), -torch.ones(1).double(), 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("beta", "pr"), ("restart_every", 0), ("zero_gradient_norm", -1.0)],
)
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: {value!r} is not allowed"):
        CGSettings(**{field: value})


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_there_is_no_absolute_floor(scale):
    """The paper's rule has no scale: what solves a loss solves it times 1e±20."""
    matrix = scale * quadratic(10, 100.0)
    settings = CGSettings(line_search=LINE_SEARCHES["golden-tight"])
    x = torch.ones(10, dtype=torch.float64)
    result = minimize(objective_of(matrix), x, 60, settings)
    assert result.gradient_norm < 1e-8 * (matrix @ x).norm()


def test_a_smaller_restart_period_than_the_age_restarts_at_once():
    objective = objective_of(quadratic(4, 10.0))
    point = evaluate(objective, torch.ones(4, dtype=torch.float64))
    memory = iterate(objective, point, None, CGSettings()).memory._replace(age=7)
    iteration = iterate(objective, point, memory, CGSettings("FR", restart_every=3))
    assert torch.equal(iteration.memory.direction, -point.gradient)


def test_a_step_beyond_the_dtype_is_no_crash():
    """Unbounded below in float32: steps grow until the dtype cannot hold them."""
    objective = FunctionObjective(lambda x: -(x**2).sum())
    point, memory = evaluate(objective, torch.ones(2)), None
    for _ in range(5):
        iteration = iterate(objective, point, memory, CGSettings())
        if iteration.status is not Status.MOVED:
            break
        point, memory = evaluate(objective, iteration.x), iteration.memory
    assert torch.isfinite(iteration.x).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_parameters_far_from_the_minimum_move(dtype):
    """At |x| = 1e-8 and a minimum at 1e4 the first trial changes the loss by less than 1 ulp."""
    objective = FunctionObjective(lambda x: (x - 1e4).square().sum())
    result = minimize(objective, torch.full((2,), 1e-8, dtype=dtype), 20)
    assert (result.x - 1e4).abs().max() < 1


def test_one_large_parameter_does_not_hide_the_others():
    """The bias is 1e4 and right; what is left to find is of size 1e-2."""
    generator = torch.Generator().manual_seed(0)
    inputs = 100 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.tensor([0.01, -0.02, 0.03], dtype=torch.float64) + 1e4
    objective = FunctionObjective(lambda x: (inputs @ x[:3] + x[3] - targets).square().mean())
    start_at = torch.tensor([0.001, 0.001, 0.001, 1e4], dtype=torch.float64)
    result = minimize(objective, start_at, 50)
    assert result.value < 1e-9 * objective.value(start_at)


def test_zero_residuals_end_at_the_resolution_not_in_a_blame():
    """Rounding errors are those of the targets, not of the tiny loss: no wrong gradient here."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(100, 4, generator=generator).double()
        targets = inputs @ torch.randn(4, generator=generator).double()
        objective = FunctionObjective(lambda x, a=inputs, b=targets: (a @ x - b).square().mean())
        result = minimize(objective, torch.zeros(4, dtype=torch.float64), 100)
        assert result.status in (Status.RESOLUTION, Status.CONVERGED)
        assert result.value < 1e-25


def test_a_search_without_evaluations_left_says_so():
    settings = CGSettings(line_search=GoldenSection(max_evaluations=3))
    objective = FunctionObjective(lambda x: (x - 1).square().sum() + 1)
    point = evaluate(objective, torch.zeros(1, dtype=torch.float64))
    memory = iterate(objective, point, None, CGSettings()).memory._replace(step=1e12)
    iteration = iterate(objective, point, memory, settings)
    assert iteration.status is Status.LIMIT
    assert "evaluations ran out" in iteration.message
