"""A line: its trials by definition, and where steps and losses end."""

import math

import pytest
import torch

from twophase.line_search import Line, SearchStatus
from twophase.objective import FunctionObjective, round_off


def bowl_line(x, direction, **settings):
    objective = FunctionObjective(lambda x: (x**4).sum() + 1)
    value, gradient = objective.value_and_gradient(x)
    slope = (gradient @ direction).item()
    return Line(objective, x, direction, value, slope, **settings)


@pytest.mark.parametrize("step", [0.25, 1.0, 8.0])
def test_trials_are_the_objective_along_the_line(step):
    x, direction = torch.tensor([[1.0, -2.0], [-0.5, 0.25]], dtype=torch.float64)
    line = bowl_line(x, direction)
    there = x + step * direction
    before = line.objective.passes.total
    trial = line.trial(step)
    assert (trial.step, trial.value) == (step, (there**4).sum().item() + 1)
    assert line.objective.passes.total == before + 1
    trial = line.gradient_trial(step)
    assert line.objective.passes.total == before + 4
    assert trial.value == (there**4).sum().item() + 1
    assert trial.slope == pytest.approx((4 * there**3 @ direction).item())
    torch.testing.assert_close(trial.gradient, 4 * there**3)
    assert trial.resolution == line.objective.resolution
    assert line.evaluations == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_is_a_wall(dtype):
    objective = FunctionObjective(lambda x: x.log().sum())
    x = torch.ones(1, dtype=dtype)
    line = Line(objective, x, -x, 0.0, -1.0)
    for step in (2.0, 1e39 if dtype == torch.float32 else math.inf):
        assert line.trial(step).value == math.inf
        trial = line.gradient_trial(step)
        assert (trial.value, trial.slope, trial.gradient) == (math.inf, math.inf, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_step_is_about_where_no_parameter_moves(dtype):
    """The parameter that moves most for its size has x = 2 and d = 4; one does not move at all."""
    x = torch.tensor([2.0, 1e6, 1.0], dtype=dtype)
    direction = torch.tensor([4.0, 1.0, 0.0], dtype=dtype)
    smallest = bowl_line(x, direction).smallest_step
    assert torch.equal(x + smallest / 100 * direction, x)
    assert (x + 2 * smallest * direction)[0] != x[0]
    assert bowl_line(x, torch.zeros_like(x)).smallest_step == 0


def test_the_resolution_is_the_objectives_unless_another_is_given():
    x = torch.ones(2, dtype=torch.float64)
    line = bowl_line(x, -x)
    assert line.resolution == 3 * round_off(torch.float64)
    assert bowl_line(x, -x, relative_resolution=1e-3).resolution == pytest.approx(3e-3)


def test_results_and_failures_carry_what_they_cost():
    x = torch.ones(2, dtype=torch.float64)
    line = bowl_line(x, -x)
    best = [line.trial(0.25), line.gradient_trial(0.5)][1]
    found = line.result(best, SearchStatus.MINIMUM)
    assert found[:-1] == (0.5, best.value, 2, SearchStatus.MINIMUM) and found.descended
    assert torch.equal(found.point.x, x / 2) and found.point.gradient is best.gradient
    assert (found.point.value, found.point.resolution) == (best.value, best.resolution)
    failed = line.failure(SearchStatus.RESOLUTION)
    assert failed == (0.0, line.start.value, 2, SearchStatus.RESOLUTION, None)
    assert not failed.descended
