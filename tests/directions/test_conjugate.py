"""Conjugate gradient directions against their formulas, and where they start anew."""

import math
from inspect import signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.directions import BETA_RULES, ConjugateDirection, State
from twophase.directions.conjugate import products
from twophase.errors import InputError


def rule(name, g, p, d, point_at):
    """β of a rule at a gradient g, with p before it and the direction d between them."""
    formula = BETA_RULES[name]
    last = State(torch.zeros_like(g), p, d, 1.0, -1.0)
    return formula(**products(signature(formula).parameters, point_at(g), last, None))


def test_beta_rules_are_their_formulas(point_at):
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
    for name in BETA_RULES:
        assert rule(name, g, p, d, point_at) == pytest.approx(expected[name]), name


@pytest.mark.parametrize("preconditioned", [False, True])
def test_products_are_those_of_the_variables_in_which_m_is_one(vectors, point_at, preconditioned):
    """With x = C z and M⁻¹ = C C', gradients are C'g there, and directions C⁻¹d."""
    g, p, d, diagonal = vectors(4, 5, seed=0)
    inverse = diagonal.exp() if preconditioned else None
    root = inverse.sqrt() if preconditioned else torch.ones(5).double()
    there = {"g": root * g, "p": root * p, "y": root * (g - p), "d": d / root}
    names = [a + b for a in "gpyd" for b in "gpyd"]
    found = products(names, point_at(g), State(g, p, d, 1.0, -1.0), inverse)
    assert found == {a + b: pytest.approx((there[a] @ there[b]).item()) for a, b in names}


def test_beta_rules_are_truncated_where_they_say(point_at):
    g, d = torch.ones(1).double(), -torch.ones(1).double()
    nearer = g, 2 * g, d, point_at
    assert rule("PR", *nearer) == pytest.approx(-0.25)
    assert rule("PR+", *nearer) == 0
    assert rule("HS-DY", *nearer) == 0
    # g'y = -1, y'y = 1, d'y = 1, d'g = -1: β = -1 + 2 = 1; the bound 0.4 d'p / d'd is -0.8
    assert rule("HZ", *nearer) == pytest.approx(1)
    across = torch.tensor([0.5, 3.0]), torch.tensor([1.0, 4.0]), torch.tensor([-1.0, 0.0])
    assert rule("HZ", *across, point_at) == pytest.approx(-0.4)  # bound 0.4 d'p / d'd, above -1.5
    for name in ("HS", "DY", "HZ"):
        assert math.isnan(rule(name, g, g / 2, d, point_at))  # negative curvature


def formulas(g, p, d):
    """β by the papers' formulas, in plain numbers; None where the rule has none."""
    y = g - p
    fr, pr = g @ g / (p @ p), g @ y / (p @ p)
    curved = d @ y > 0
    hs, dy = g @ y / (d @ y), g @ g / (d @ y)
    hz = (y - 2 * d * (y @ y) / (d @ y)) @ g / (d @ y)
    return {
        "FR": fr,
        "PR": pr,
        "PR+": max(pr, 0),
        "HS": hs if curved else None,
        "DY": dy if curved else None,
        "HS-DY": max(0, min(hs, dy)) if curved else None,
        "HZ": max(hz, 0.4 * (d @ p) / (d @ d)) if curved else None,
    }


@pytest.mark.parametrize("beta", BETA_RULES)
@given(seed=st.integers(0, 1000), dimension=st.integers(2, 6))
def test_directions_are_their_formula(vectors, point_at, beta, seed, dimension):
    """d = −g + β d_previous, and −g where β does not exist or d does not descend."""
    gradient, previous, direction = vectors(3, dimension, seed)
    last = State(torch.zeros_like(gradient), previous, direction, 1.0, -1.0, age=4)
    found = ConjugateDirection(beta)(point_at(gradient), last, None)
    expected = formulas(gradient, previous, direction)[beta]
    vector = -gradient if expected is None else -gradient + expected * direction
    if expected is None or vector @ gradient >= 0:
        assert torch.equal(found.vector, -gradient)
        assert found.age == 0
    else:
        torch.testing.assert_close(found.vector, vector)
        assert found.age == (5 if expected else 0)
    assert found.slope == pytest.approx((found.vector @ gradient).item())
    assert found.slope < 0


@given(seed=st.integers(0, 1000), dimension=st.integers(2, 6))
def test_hager_zhang_descends_after_any_line_search(vectors, point_at, seed, dimension):
    """d'g <= −7/8 g'g for every y with d'y > 0, as long as β is not truncated."""
    gradient, previous, direction = vectors(3, dimension, seed)
    beta = rule("HZ", gradient, previous, direction, point_at)
    vector = -gradient + beta * direction
    bound = 0.4 * (direction @ previous) / (direction @ direction)
    if direction @ (gradient - previous) > 0 and beta > bound:
        assert vector @ gradient <= -7 / 8 * gradient @ gradient * (1 - 1e-9)


@given(seed=st.integers(0, 1000))
def test_hestenes_stiefel_is_conjugate_after_any_line_search(vectors, point_at, seed):
    """The next direction d has d'y = 0; on a quadratic, y = A s makes that conjugacy."""
    gradient, previous, direction = vectors(3, 4, seed)
    if direction @ (gradient - previous) > 0:
        vector = -gradient + rule("HS", gradient, previous, direction, point_at) * direction
        bound = 1e-9 * vector.norm() * (gradient - previous).norm()
        assert abs(vector @ (gradient - previous)) <= bound


def test_powell_restarts_where_gradients_are_far_from_orthogonal(point_at):
    previous = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for angle, restarts in ((0.1, False), (0.3, True), (-0.3, True)):
        gradient = torch.tensor([angle, 1.0], dtype=torch.float64)
        last = State(torch.zeros(2).double(), previous, -previous, 1.0, -1.0)
        found = ConjugateDirection("FR", powell=0.2)(point_at(gradient), last, None)
        assert torch.equal(found.vector, -gradient) == restarts


def test_restarts_are_counted_from_the_last(vectors, point_at):
    """Every third direction is the steepest descent; an older state restarts at once."""
    gradient, previous, direction = vectors(3, 4, seed=0)
    rule = ConjugateDirection("FR", restart_every=3)
    for age, restarts in ((0, False), (1, False), (2, True), (7, True)):
        last = State(torch.zeros(4).double(), previous, -previous, 1.0, -1.0, age)
        found = rule(point_at(gradient), last, None)
        assert torch.equal(found.vector, -gradient) == restarts
        assert found.age == (0 if restarts else age + 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("beta", "pr"), ("beta", "CD"), ("beta", None), ("restart_every", 0), ("powell", 0.0)],
)
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: {value!r} is not allowed"):
        ConjugateDirection(**{field: value})
