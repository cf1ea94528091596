"""Problems for global searches: closed forms against autograd, minima against their definition."""

import numpy as np
import pytest
import torch
from scipy.optimize import brute

from twophase.errors import InputError
from twophase.problems import landscape
from twophase.problems.multimodal import PROBLEMS, conflict, planted


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("size", [1, 4, 10])
def test_residuals_and_jacobian_are_those_of_torch(name, size):
    problem = PROBLEMS[name](size, seed=3)
    points = problem.starts(np.random.default_rng(0), 3)
    for w in points:
        squares = problem.least_squares(w)
        at = squares.linearize(squares.vector.read())
        root = np.sqrt(len(problem.targets))
        np.testing.assert_allclose(problem.residuals(w), root * at.residuals, atol=1e-12)
        np.testing.assert_allclose(problem.jacobian(w), root * at.jacobian, atol=1e-12)
    losses = [np.square(problem.residuals(w)).mean() for w in points]
    np.testing.assert_allclose(problem.loss(torch.from_numpy(points)), losses)


def test_a_planted_network_is_the_teachers_formula_and_its_symmetries_are_minima():
    problem = planted(10, seed=1)
    (w1, b1, v1, w2, b2, v2, w3, b3, v3, c), x = problem.minimizer, problem.inputs[:, 0]
    units = [(w1, b1, v1), (w2, b2, v2), (w3, b3, v3)]
    outputs = sum(v * np.tanh(w * x + b) for w, b, v in units) + c
    np.testing.assert_allclose(problem.targets, outputs, rtol=1e-12)
    twins = [w2, b2, v2, -w1, -b1, -v1, w3, b3, v3, c]
    assert problem.minimum == pytest.approx(0, abs=1e-25)
    assert np.square(problem.residuals(np.array(twins))).mean() == pytest.approx(0, abs=1e-25)


def test_fewer_parameters_are_the_first_of_the_same_network():
    whole, part = planted(10, seed=2), planted(4, seed=2)
    np.testing.assert_array_equal(part.minimizer, whole.minimizer[:4])
    w = part.starts(np.random.default_rng(0), 1)[0]
    filled = np.concatenate([w, whole.minimizer[4:]])
    np.testing.assert_allclose(part.residuals(w), whole.residuals(filled), atol=1e-12)


@pytest.mark.parametrize("size", [0, 11])
def test_a_planted_network_has_one_to_ten_parameters(size):
    with pytest.raises(InputError, match=f"^size: {size}"):
        planted(size, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_a_conflict_has_two_minima_for_each_weight_and_the_lowest_is_the_global_one(seed):
    one = conflict(1, seed)
    found = landscape.profile(lambda p: one.loss(p[..., None]), -12.0, 12.0, 1001)
    losses = [one.loss(torch.tensor([p], dtype=torch.float64)).item() for p in found.minima]
    assert len(losses) == 2 and max(losses) > min(losses) + 0.05
    assert one.minimum == pytest.approx(min(losses), rel=1e-9)
    two = conflict(2, seed)
    search = brute(
        lambda w: np.square(two.residuals(w)).mean(), two.bounds, Ns=40, full_output=True
    )
    assert two.minimum == pytest.approx(search[1], rel=1e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_minimizer_is_in_the_box_and_stationary(name):
    for size, seed in [(1, 0), (3, 1), (7, 2), (10, 3), (10, 4)]:
        problem = PROBLEMS[name](size, seed)
        assert np.abs(problem.minimizer).max() < problem.half_width
        gradient = problem.jacobian(problem.minimizer).T @ problem.residuals(problem.minimizer)
        np.testing.assert_allclose(gradient, 0, atol=1e-10)
        assert problem.scale > 0.1
