"""Profiles, descent paths and curvatures against formulas, scipy and curves by hand."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import InputError, NonFiniteError
from twophase.problems import landscape, toys


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---- one parameter


def test_a_profile_finds_minima_and_convex_regions_of_a_quartic_by_its_formula():
    # (x² − 1)²: minima at ±1; 12x² − 4 is positive outside ±1/√3
    found = landscape.profile(lambda x: (x**2 - 1) ** 2, -2.0, 2.0, points=100)
    assert found.minima == pytest.approx((-1, 1), abs=1e-11)
    edges = [edge for interval in found.convex_regions for edge in interval]
    assert edges == pytest.approx([-2, -(3**-0.5), 3**-0.5, 2], abs=1e-11)


@given(st.floats(-3, 3), st.floats(0.2, 2), st.integers(200, 400))
def test_a_profile_of_a_bell_turned_upside_down_is_exact_wherever_the_bell_is(at, width, points):
    found = landscape.profile(
        lambda x: -torch.exp(-(((x - at) / width) ** 2) / 2), -10.0, 10.0, points
    )
    assert found.minima == pytest.approx((at,), abs=1e-9)
    assert found.convex_regions == (pytest.approx((at - width, at + width), abs=1e-9),)


def test_a_point_where_the_slope_only_touches_zero_is_no_minimum():
    # an odd number of points puts one of them exactly on the flat point
    for points in (200, 201):
        assert landscape.profile(lambda x: x**3, -1.0, 1.0, points).minima == ()
    assert landscape.profile(lambda x: x**3, -1.0, 1.0, 201).convex_regions[
        0
    ].lower == pytest.approx(0)


@pytest.mark.parametrize("k", range(5, 96, 5))
def test_rounding_errors_on_a_flat_point_make_no_minimum(k):
    # (x − at)³ multiplied out: at the grid point `at` its slope is rounding error of either sign
    at = float(torch.linspace(0, 1, 101, dtype=torch.float64)[k + 2])
    found = landscape.profile(lambda x: x**3 - 3 * at * x**2 + 3 * at**2 * x, 0.0, 1.0, points=101)
    assert found.minima == ()
    assert found.convex_regions == (pytest.approx((at, 1.0)),)


def test_a_minimum_exactly_on_a_grid_point_is_found_once():
    assert landscape.profile(torch.square, -1.0, 1.0, 201).minima == pytest.approx((0,), abs=1e-12)


def test_maxima_are_not_minima_and_a_concave_or_straight_loss_has_no_convex_region():
    for loss in (lambda x: -(x**2), lambda x: 2 * x):
        found = landscape.profile(loss, -1.0, 1.0)
        assert found.minima == () and found.convex_regions == ()


def test_derivatives_equal_the_formula():
    x = vector(-1.0, 0.3, 2.0)
    values, slope, curvature = landscape.derivatives(torch.sin, x)
    torch.testing.assert_close(values, x.sin())
    torch.testing.assert_close(slope, x.cos())
    torch.testing.assert_close(curvature, -x.sin())
    assert not values.requires_grad and not slope.requires_grad


def test_a_branch_runs_from_the_margin_to_the_minimum():
    found = landscape.profile(lambda x: (x - 0.25) ** 2, -1.0, 1.0, points=9)
    left, right = found.branch("left"), found.branch("right")
    assert left.x.tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25]
    assert right.x.tolist() == [1, 0.75, 0.5, 0.25]
    torch.testing.assert_close(right.loss, (right.x - 0.25) ** 2)
    torch.testing.assert_close(right.grad_norm, 2 * (right.x - 0.25).abs())


def test_a_branch_needs_one_minimum_and_a_known_side():
    with pytest.raises(InputError, match="exactly one minimum"):
        landscape.profile(torch.cos, 0.0, 12.0).branch("left")
    with pytest.raises(InputError, match="side: 'up'"):
        landscape.profile(torch.square, -1.0, 1.0).branch("up")


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1, 3, 2], True),
        ([1, 2, 3], False),
        ([3, 2, 1], False),
        ([1, 3, 3, 2], False),
        ([1, 1, 3, 2], False),
        ([1, 3, 2, 2.5], False),
        ([2, 1, 3, 2], False),
    ],
)
def test_unimodal_means_strictly_up_then_strictly_down(values, expected):
    assert landscape.is_unimodal(vector(*values)) is expected


# ---- descent paths


def test_the_flow_in_the_well_follows_the_curve_that_can_be_written_down():
    # dw/dt ∝ −A w, so w₂ / start₂ = (w₁ / start₁)^κ in the coordinates of the axes
    well = toys.GaussianWell.tilted(4.0, degrees=0.0)
    path = landscape.gradient_flow(well, vector(1.7, 1.15))
    w1, w2 = path.points.T
    torch.testing.assert_close(w2, 1.15 * (w1 / 1.7) ** 4, atol=1e-6, rtol=0)
    assert path.grad_norm[-1].item() == pytest.approx(1e-3)
    torch.testing.assert_close(path.points[0], vector(1.7, 1.15))


def test_in_a_round_bowl_the_path_is_straight_and_as_long_as_the_way_to_where_it_stops():
    path = landscape.gradient_flow(
        lambda w: w.square().sum(-1) / 2, vector(3.0, 4.0), stop_norm=1.0
    )
    assert path.length[-1].item() == pytest.approx(4, abs=1e-6)
    torch.testing.assert_close(path.points[-1], vector(0.6, 0.8), atol=1e-6, rtol=0)


def test_points_of_a_path_are_evenly_spaced_along_it_and_what_is_measured_there_is_right():
    path = landscape.gradient_flow(toys.rosenbrock(), vector(-1.2, 1.0), points=2001)
    chords = path.points.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(chords, path.length.diff(), rtol=1e-2, atol=0)
    for k in (0, 700, 2000):
        w = path.points[k]
        g, hessian = scipy.optimize.rosen_der(w.numpy()), scipy.optimize.rosen_hess(w.numpy())
        assert path.loss[k].item() == pytest.approx(scipy.optimize.rosen(w.numpy()))
        assert path.grad_norm[k].item() == pytest.approx(np.linalg.norm(g))
        assert path.curvature_along_gradient[k].item() == pytest.approx(g @ hessian @ g / (g @ g))
        assert path.least_eigenvalue[k].item() == pytest.approx(np.linalg.eigvalsh(hessian)[0])


def test_the_slope_of_the_gradient_norm_is_minus_the_curvature_along_the_gradient():
    well = toys.GaussianWell.tilted(16.0, degrees=30.0)
    path = landscape.gradient_flow(well, vector(1.3, 1.3), stop_norm=0.1, points=4001)
    (slope,) = torch.gradient(path.grad_norm, spacing=(path.length,))
    torch.testing.assert_close(
        slope[1:-1], -path.curvature_along_gradient[1:-1], atol=1e-3, rtol=1e-3
    )


def test_the_path_of_figure_3_has_one_peak_outside_the_convex_region():
    well = toys.GaussianWell.tilted(4.0, degrees=0.0)
    path = landscape.gradient_flow(well, vector(1.7, 1.15), points=2001)
    assert landscape.is_unimodal(path.grad_norm)
    # Kantorovich's bound for condition number 4
    assert 1 < well.squared_distance(path.points[path.peak]) <= 25 / 16
    entry = well.squared_distance(path.points[path.convex_entry - 1 : path.convex_entry + 1])
    assert entry[0] >= 1 > entry[1]
    assert path.peak < path.convex_entry and path.convex[path.convex_entry :].all()


def test_a_falling_gradient_norm_does_not_prove_convexity():
    well = toys.GaussianWell.tilted(16.0, degrees=0.0)
    path = landscape.gradient_flow(well, vector(1.8, 0.5), points=2001)
    fallen = path.grad_norm <= 0.9 * path.grad_norm.cummax(dim=0).values
    first = int(fallen.nonzero()[0])
    assert first < path.convex_entry and path.least_eigenvalue[first] < 0
    assert path.curvature_along_gradient[first] > 0
    assert not landscape.is_unimodal(path.grad_norm)


def test_a_path_without_a_convex_region_has_no_entry():
    path = landscape.gradient_flow(
        lambda w: w.sum(dim=-1) - (w**2).sum(dim=-1), vector(0.0, 0.0), 1e-3, 1.0
    )
    assert path.convex_entry == len(path.points)
    assert path.length[-1] == 1.0


def test_a_path_that_leaves_the_range_of_its_loss_is_an_error_not_a_short_path():
    with pytest.raises(NonFiniteError, match=r"descent from \[2.0, 1.0\]"):
        landscape.gradient_flow(lambda w: (w[..., 0] - 1).sqrt() + w[..., 0], vector(2.0, 1.0))


# ---- what a user can get wrong


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: landscape.profile(torch.square, 1.0, 1.0), "upper: 1.0"),
        (lambda: landscape.profile(torch.square, 0.0, 1.0, points=1), "points: 1"),
        (lambda: landscape.gradient_flow(toys.rosenbrock(), vector(1.0, 1.0)), "start: "),
        (
            lambda: landscape.gradient_flow(toys.rosenbrock(), vector(-1.2, 1.0), stop_norm=0),
            "stop_norm: 0",
        ),
    ],
)
def test_wrong_input_names_the_field_and_the_value(wrong, message):
    with pytest.raises(InputError, match=f"^{message}"):
        wrong()
