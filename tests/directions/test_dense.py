"""Dense directions against the formulas in dense algebra, also with updates that are gathered."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.directions import BroydenDirection, State
from twophase.directions.dense import GATHERED, UPDATES, Matrix
from twophase.directions.direction import steepest_descent
from twophase.errors import InputError
from twophase.line_search import StrongWolfe
from twophase.minimization import minimize
from twophase.objective import FunctionObjective
from twophase.second_phase import Descent


def broyden(matrix, step, change, theta, tau):
    """The update of Broyden's family, as it is written in the docstring."""
    curvature, product = step @ change, matrix @ change
    square = change @ product
    b, h = step @ torch.linalg.solve(matrix, step) / curvature, square / curvature
    phi = (1 - theta) / (1 + (b * h - 1) * theta)
    v = step / curvature - product / square
    inner = matrix - torch.outer(product, product) / square + phi * square * torch.outer(v, v)
    return inner / tau + torch.outer(step, step) / curvature


def choice(update, matrix, step, change):
    """θ and τ of Al-Baali's self-scaling methods, from a dense H."""
    curvature = step @ change
    b = (step @ torch.linalg.solve(matrix, step) / curvature).item()
    h = (change @ matrix @ change / curvature).item()
    a = b * h - 1
    if update == "BFGS":
        return 0.0, 1.0
    if update == "SSBFGS":
        return 0.0, min(1, 1 / b)
    c = math.sqrt(a / (1 + a))
    low = min(1, h * (1 - c))
    theta = max((low - 1) / a, min(1 / low, (1 - b) / b))
    sigma = 1 + a * theta
    root, rho = sigma ** (-1 / (len(step) - 1)), min(1, 1 / b)
    return theta, rho * min(root, 1 / theta) if theta > 0 else min(rho * root, sigma)


@pytest.mark.parametrize("update", UPDATES)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40), preconditioned=st.booleans())
@settings(max_examples=30)
def test_directions_are_those_of_the_dense_formula(
    vectors, walk, update, seed, count, preconditioned
):
    dimension = 6
    gradients, lengths = vectors(count + 1, dimension, seed), vectors(1, count, seed + 1)[0].exp()
    inverse = vectors(1, dimension, seed + 2)[0].exp() if preconditioned else None
    scales = torch.ones(dimension).double() if inverse is None else inverse
    found, seen = walk(BroydenDirection(update), gradients, lengths.tolist(), inverse)
    matrix = None
    for direction, (point, last) in zip(found, seen, strict=True):
        step, change = last.step * last.direction, point.gradient - last.gradient
        if step @ change > 0:
            first = matrix is None
            if first:
                matrix = torch.diag(scales * (step @ change) / (change @ (scales * change)))
            theta, tau = choice(update, matrix, step, change)
            matrix = broyden(matrix, step, change, theta, 1.0 if first else tau)
        expected = -(torch.diag(scales) if matrix is None else matrix) @ point.gradient
        torch.testing.assert_close(direction.vector, expected, rtol=1e-5, atol=1e-8)


def test_gathered_updates_are_updates():
    torch.manual_seed(0)
    expected = torch.rand(5, dtype=torch.float64).diag()
    matrix = Matrix.diagonal(expected.diagonal())
    for count in range(1, 2 * GATHERED + 2):
        columns, middle = torch.randn(5, 2).double(), torch.randn(2, 2).double()
        tau = 1 + 1 / count
        matrix = matrix.updated(tau, columns, middle)
        expected = expected / tau + columns @ middle @ columns.T
        assert matrix.columns.shape[1] == 2 * (count % GATHERED)
        vectors = torch.randn(5, 3).double()
        torch.testing.assert_close(matrix.multiply(vectors), expected @ vectors)


def test_steps_without_curvature_change_nothing(point_at):
    rule, gradient = BroydenDirection(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    last = State(torch.zeros(3).double(), 2 * gradient, gradient, 1.0, -1.0)  # s'y < 0
    found = rule(point_at(gradient), last, None)
    assert torch.equal(found.vector, steepest_descent(gradient, None).vector)
    assert found.memory is None
    matrix = Matrix.diagonal(torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64))._asdict()
    found = rule(point_at(gradient), last._replace(memory=matrix), None)
    assert torch.equal(found.vector, -torch.tensor([1.0, 1.0, 6.0], dtype=torch.float64))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("seed", range(3))
def test_exact_steps_end_a_quadratic_in_n_steps(ends_a_quadratic, update, seed):
    torch.manual_seed(seed)
    root = torch.randn(6, 6, dtype=torch.float64)
    assert ends_a_quadratic(BroydenDirection(update), root @ root.T + torch.eye(6).double())


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_underflows_ends_and_does_not_raise(update, dtype):
    least = 3.9e-163 if dtype == torch.float64 else 1e-23
    objective = FunctionObjective(lambda x: least * ((x - 20) ** 2).sum())
    x = torch.full((1,), 2.0, dtype=dtype)
    second = Descent(BroydenDirection(update), StrongWolfe())
    found = minimize(objective, x, iterations=30, second=second)
    assert torch.isfinite(found.x).all() and found.loss <= objective.value(x)


@pytest.mark.parametrize("value", ["broyden", None, 3])
def test_an_unknown_update_names_itself(value):
    with pytest.raises(InputError, match=f"^update: {value!r} is not allowed"):
        BroydenDirection(value)


@pytest.mark.parametrize("update", ["BFGS", "SSBFGS", "SSBroyden"])
def test_a_problem_that_is_solved_to_the_last_bit_ends(update):
    """Curvatures whose squares are lost to underflow change no matrix."""
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    functions = (
        lambda p: (weights * p).square().sum(),
        lambda p: -1 / (1 + p.square().sum()) - 3,
        lambda p: p.abs().sum(),
    )
    second = Descent(BroydenDirection(update), StrongWolfe())
    for function in functions:
        start = torch.ones(3, dtype=torch.float64)
        found = minimize(FunctionObjective(function), start, iterations=300, second=second)
        assert found.status != "moved"
