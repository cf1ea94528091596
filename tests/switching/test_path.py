"""Rules of an epoch's way, by their definitions, and the way itself against numpy."""

import math

import numpy as np
import pytest
import torch

from twophase.errors import InputError
from twophase.objective import Point, Way, way
from twophase.switching import PositiveCurvature, ProjectedRate, SignalToNoise
from twophase.switching.rules import first_switch, replay


def point(x, gradient):
    return Point(torch.tensor(x), 0.0, torch.tensor(gradient), 1e-16)


def test_the_way_is_that_of_its_definitions():
    draw = np.random.default_rng(0)
    x0, x1, g0, g1 = draw.standard_normal((4, 7))
    found, s = way(point(x0, g0), point(x1, g1)), x1 - x0
    assert found.step_norm == pytest.approx(np.linalg.norm(s))
    assert found.slope == pytest.approx(s @ g0 / np.linalg.norm(s))
    assert found.curvature == pytest.approx(s @ (g1 - g0) / (s @ s))
    cosine = g0 @ g1 / (np.linalg.norm(g0) * np.linalg.norm(g1))
    assert found.alignment == pytest.approx(cosine)


def test_on_a_quadratic_the_curvature_is_that_of_its_matrix():
    matrix = torch.diag(torch.tensor([1.0, -3.0], dtype=torch.float64))
    x0, x1 = torch.tensor([[1.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    found = way(Point(x0, 0, matrix @ x0, 0), Point(x1, 0, matrix @ x1, 0))
    assert found.curvature == pytest.approx(-3)


@pytest.mark.parametrize("x, gradient", [([1.0, 2.0], [1.0, 1.0]), ([0.0, 2.0], [0.0, 0.0])])
def test_without_a_step_or_a_gradient_there_is_no_way(x, gradient):
    assert way(point([1.0, 2.0], [1.0, 1.0]), point(x, gradient)) is None


def trace(ways, norm=1.0):
    return [(1.0, norm, each) for each in ways]


def curved(*curvatures):
    return trace([Way(1.0, -1.0, each, 0.5) for each in curvatures])


def test_positive_curvature_is_counted_in_a_row():
    assert first_switch(PositiveCurvature(3), curved(1, 1, -1, 1, 1, 1)) == 6
    assert first_switch(PositiveCurvature(3), curved(1, 1, 0, 1, 1)) is None
    gap = [*curved(1, 1), (1.0, 1.0, None), *curved(1)]
    assert first_switch(PositiveCurvature(3), gap) == 4, "what is not known changes nothing"


def test_the_projected_rate_is_swats():
    """Gradient descent of rate γ, projected on the step, is the step: (γ g)'s / s's = −1."""
    draw = np.random.default_rng(1)
    beta, threshold, mean = 0.5, 0.05, 0.0
    ways, fired = [], None
    for k in range(1, 60):
        s, g = draw.standard_normal((2, 3))
        s, g = s / 10 ** (k / 15), (g if g @ s < 0 else -g)
        ways.append(Way(np.linalg.norm(s), s @ g / np.linalg.norm(s), 1.0, 0.0))
        rate = -(s @ s) / (s @ g)
        assert (rate * g) @ s / (s @ s) == pytest.approx(-1)
        mean = beta * mean + (1 - beta) * rate
        if fired is None and k > 1 and abs(mean / (1 - beta**k) - rate) < threshold:
            fired = k
    assert fired is not None and first_switch(ProjectedRate(threshold, beta), trace(ways)) == fired


def test_the_first_epoch_and_one_uphill_settle_nothing():
    down, up = Way(1.0, -1.0, 1.0, 0.0), Way(1.0, 1.0, 1.0, 0.0)
    assert first_switch(ProjectedRate(), trace([down, up, down])) == 3


def test_signal_to_noise_is_that_of_two_gradients():
    draw = np.random.default_rng(2)
    gradients = draw.standard_normal((30, 4)) + np.linspace(0, 6, 30)[:, None]
    norms = np.linalg.norm(gradients, axis=1)
    ratios = [
        np.linalg.norm(a + b) / np.linalg.norm(b - a)
        for a, b in zip(gradients, gradients[1:], strict=False)
    ]
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(gradients, gradients[1:], strict=False)
    ]
    ways = [None, *(Way(1.0, -1.0, 1.0, cosine) for cosine in cosines)]
    seen = [(1.0, norm, each) for norm, each in zip(norms, ways, strict=True)]
    window, means = 4, {}
    for end in range(window, len(ratios) + 1):
        means[end + 1] = math.exp(np.log(ratios[end - window : end]).mean())
    lowest = np.minimum.accumulate(list(means.values()))
    expected = next(e for (e, m), low in zip(means.items(), lowest, strict=True) if m >= 2 * low)
    assert first_switch(SignalToNoise(window=window), seen) == expected


def test_gradients_that_repeat_themselves_are_signal_alone():
    same = [(1.0, 1.0, None), *trace([Way(1.0, -1.0, 0.0, 1.0)] * 5)]
    assert not any(each.switch for each in replay(SignalToNoise(window=2), same))


@pytest.mark.parametrize(
    ("rule", "field", "value"),
    [
        (PositiveCurvature, "window", 0),
        (ProjectedRate, "threshold", 0),
        (ProjectedRate, "beta", 1.0),
        (SignalToNoise, "rise", 1.0),
        (SignalToNoise, "window", 0),
    ],
)
def test_settings_out_of_range_name_themselves(rule, field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        rule(**{field: value})
