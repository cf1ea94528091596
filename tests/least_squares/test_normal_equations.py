"""Damped linear systems against dense algebra in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from twophase import LeastSquares, Term
from twophase.distributed import ALONE
from twophase.least_squares import Linearization, normal_equations
from twophase.least_squares import problem as problem_module
from twophase.least_squares.normal_equations import ByProducts, Direct


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 6), (6, 1)])
def test_steps_solve_the_damped_normal_equations(shape):
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(*shape, generator=generator, dtype=torch.float64)
    right = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    squared = jacobian.T @ jacobian if shape[0] >= shape[1] else None
    at = Linearization(right, right, 2 * jacobian.T @ right, jacobian, squared)
    normal = Direct(SimpleNamespace(processes=ALONE), at)
    assert normal.matrix.shape == (min(shape), min(shape))
    for damping in (1e-6, 1.0, 1e6):
        matrix = jacobian.T @ jacobian + damping * torch.eye(shape[1], dtype=torch.float64)
        expected = -torch.linalg.solve(matrix, jacobian.T @ right)
        step, gain = normal.step(damping)
        assert torch.allclose(step, expected, rtol=1e-7, atol=1e-12)
        before, after = right @ right, (right + jacobian @ step).square().sum()
        assert gain == pytest.approx((before - after).item(), rel=1e-6, abs=1e-9)
    assert normal.largest == pytest.approx((jacobian.T @ jacobian).diagonal().max().item())


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    points = torch.randn(12, 2, dtype=torch.float64)
    return LeastSquares(model, [Term(lambda m, p: m(p) - p, points)], chunk_size=5)


def test_products_solve_them_too(problem, monkeypatch):
    x = problem.vector.read()
    jacobian = problem.linearize(x).jacobian
    monkeypatch.setattr(problem_module, "NORMAL_WORK", 0)
    monkeypatch.setattr(normal_equations, "CG_TOLERANCE", 1e-9)
    problem._last = None
    at = problem.linearize(x)
    assert at.jacobian is None and at.squared is None
    right = -jacobian.T @ at.residuals
    assert torch.allclose(at.gradient, -2 * right)
    for inverse in (None, torch.linspace(0.1, 1, len(x), dtype=torch.float64)):
        systems = ByProducts(problem, at, inverse)
        before = problem.passes.total
        step, gain = systems.step(0.01)
        assert (problem.passes.total - before) % 6 == 0
        matrix = jacobian.T @ jacobian + 0.01 * torch.eye(len(x), dtype=torch.float64)
        assert torch.allclose(step, torch.linalg.solve(matrix, right), rtol=1e-5, atol=1e-7)
        change = at.residuals + jacobian @ step
        assert gain == pytest.approx((at.value - change @ change).item(), rel=1e-6)
        assert not systems.correction(step, 0.01).any()


def test_a_system_that_is_not_solved_to_the_end_gains_all_the_same(problem, monkeypatch):
    monkeypatch.setattr(problem_module, "NORMAL_WORK", 0)
    x, gains = problem.vector.read(), []
    for steps in (1, 2, 4, 8):
        monkeypatch.setattr(normal_equations, "CG_STEPS", steps)
        monkeypatch.setattr(normal_equations, "CG_TOLERANCE", 0)
        gains.append(ByProducts(problem, problem.linearize(x), None).step(1e-3)[1])
    assert 0 < gains[0] < gains[1] < gains[2] < gains[3]
