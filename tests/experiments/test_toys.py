"""Runs on toys: what is followed, and what it costs."""

from functools import partial

import numpy as np
import pytest
import torch

import twophase
from twophase.experiments import toys as toy_runs
from twophase.line_search import GoldenSection
from twophase.problems import toys


def bowl():
    return toys.Quadratic.log_spaced(3, 10.0, torch.Generator().manual_seed(0))


def iterates(problem, optimizer, steps, closure):
    """An independent loop: the point and its gradient before each step."""
    x = torch.nn.Parameter(problem.start.clone())
    made = optimizer([x])
    for _ in range(steps + 1):
        yield x.detach().clone(), problem.hessian @ (x.detach() - problem.minimizer), made
        made.step(lambda: closure(x))


def test_adams_steps_are_those_of_torch_and_cost_three_passes():
    problem, adam = bowl(), partial(torch.optim.Adam, lr=0.1)
    found = toy_runs.descend(problem, adam, 20)

    def closure(x):
        x.grad = problem.hessian @ (x.detach() - problem.minimizer)

    expected = list(iterates(problem, adam, 20, closure))
    np.testing.assert_allclose(
        found.distance, [(x - problem.minimizer).norm() for x, _, _ in expected], rtol=1e-9
    )
    np.testing.assert_allclose(found.grad_norm, [g.norm() for _, g, _ in expected], rtol=1e-9)
    assert found.passes.tolist() == list(range(0, 63, 3))


@pytest.mark.parametrize(
    "optimizer",
    [
        twophase.SecondPhase,
        partial(twophase.ConjugateGradient, beta="PR+", line_search=GoldenSection()),
    ],
)
def test_a_second_phase_is_followed_step_by_step_with_the_passes_that_it_counts(optimizer):
    problem = bowl()
    found = toy_runs.descend(problem, optimizer, 5)
    spent = [0]
    for row, (x, gradient, made) in enumerate(iterates(problem, optimizer, 5, problem)):
        spent.append(spent[-1] + (made.result.passes if row else 0))
        assert found.distance[row] == pytest.approx((x - problem.minimizer).norm().item())
        assert found.grad_norm[row] == pytest.approx(gradient.norm().item(), rel=1e-6)
    assert found.passes.tolist() == spent[1:]
    assert found.index.tolist() == list(range(6)) and found.index.name == "iteration"
