import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import InputError, NonFiniteError
from twophase.problems import toys


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def gradient(loss, w):
    return torch.func.grad(loss)(w)


def eigenvalues(loss, w):
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, w))


PROBLEMS = {
    "rosenbrock 2": toys.rosenbrock(),
    "rosenbrock 5": toys.rosenbrock(5),
    "beale": toys.beale(),
    "quadratic": toys.Quadratic.log_spaced(6, 1e3, seeded()),
}


# ---- losses over one parameter


def test_a_tanh_task_is_the_mean_over_units_of_the_squared_error_at_every_p():
    task = toys.random_tanh_task(seeded(), units=4)
    p = vector(-3.0, 0.5, 7.0)
    by_hand = [
        sum((math.tanh(q * x) - r) ** 2 for x, r in zip(task.inputs, task.targets, strict=True)) / 4
        for q in p.tolist()
    ]
    torch.testing.assert_close(task(p), vector(*by_hand))
    assert task(p[0]).item() == pytest.approx(float(by_hand[0]))


def test_a_random_tanh_task_has_a_hundred_units_drawn_from_the_papers_intervals():
    generator = seeded()
    tasks = [toys.random_tanh_task(generator) for _ in range(50)]
    assert all(len(task.inputs) == len(task.targets) == 100 for task in tasks)
    inputs = torch.cat([task.inputs for task in tasks])
    targets = torch.cat([task.targets for task in tasks])
    assert inputs.dtype == targets.dtype == torch.float64
    for drawn, lower, upper in ((inputs, -0.5, 0.5), (targets, 0, 1)):
        uniform = scipy.stats.kstest(drawn, scipy.stats.uniform(lower, upper - lower).cdf)
        assert uniform.pvalue > 0.01


def test_equal_generators_draw_equal_tasks_and_one_generator_draws_different_ones():
    first, same = toys.random_tanh_task(seeded(3)), toys.random_tanh_task(seeded(3))
    generator = seeded(3)
    toys.random_tanh_task(generator)
    assert torch.equal(first.inputs, same.inputs) and torch.equal(first.targets, same.targets)
    assert not torch.equal(first.inputs, toys.random_tanh_task(generator).inputs)


def test_two_layer_tanh_is_equation_6_with_its_minus_sign():
    x = 0.8
    y = math.tanh(math.tanh(x)) + 0.45 * math.tanh(-2 * math.tanh(x))
    assert toys.TwoLayerTanh(0.45, r=0.3)(vector(x)).item() == pytest.approx((y - 0.3) ** 2)


def test_five_random_tasks_have_one_minimum_and_one_convex_region_around_it():
    generator = seeded()
    for _ in range(5):
        found = toys.profile(toys.random_tanh_task(generator), -15.0, 15.0)
        assert len(found.minima) == len(found.convex_regions) == 1
        assert found.convex_regions[0].lower < found.minima[0] < found.convex_regions[0].upper


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", ["left", "right"])
def test_on_both_branches_the_gradient_norm_rises_and_falls_and_peaks_where_convexity_begins(
    seed, side
):
    found = toys.profile(toys.random_tanh_task(seeded(seed)), -15.0, 15.0)
    branch = found.branch(side)
    assert toys.is_unimodal(branch.grad_norm)
    assert (branch.loss.diff() < 0).all()
    edge = found.convex_regions[0].lower if side == "left" else found.convex_regions[0].upper
    spacing = 30.0 / 2000
    assert abs(branch.x[branch.grad_norm.argmax()].item() - edge) <= spacing


@pytest.mark.parametrize(
    "c, regions, minima", [(0.40, 1, 1), (0.45, 2, 1), (0.50, 2, 1), (0.55, 2, 2), (0.60, 2, 2)]
)
@pytest.mark.parametrize("points", [401, 2000, 2001])
def test_two_layer_tanh_has_the_convex_regions_and_minima_of_figure_4(c, regions, minima, points):
    found = toys.profile(toys.TwoLayerTanh(c), -4.0, 4.0, points)
    assert (len(found.convex_regions), len(found.minima)) == (regions, minima)
    loss_at_minima = toys.TwoLayerTanh(c)(vector(*found.minima))
    assert loss_at_minima.min().item() == pytest.approx(0, abs=1e-20)
    # what is new comes on the left slope
    assert found.minima[-1] > 0 and all(at < 0 for at in found.minima[:-1])


@pytest.mark.parametrize("weight", [0.0, 0.40, 0.45, 0.50, 0.55, 0.60, 1.0, 3.0])
def test_with_the_sign_as_printed_there_is_never_more_than_one_minimum(weight):
    found = toys.profile(toys.TwoLayerTanh(-weight), -6.0, 6.0)
    assert len(found.minima) == len(found.convex_regions) == 1


# ---- profile


def test_a_profile_finds_minima_and_convex_regions_of_a_quartic_by_its_formula():
    # (x² − 1)²: minima at ±1; 12x² − 4 is positive outside ±1/√3
    found = toys.profile(lambda x: (x**2 - 1) ** 2, -2.0, 2.0, points=100)
    assert found.minima == pytest.approx((-1, 1), abs=1e-11)
    edges = [edge for interval in found.convex_regions for edge in interval]
    assert edges == pytest.approx([-2, -(3**-0.5), 3**-0.5, 2], abs=1e-11)


@given(st.floats(-3, 3), st.floats(0.2, 2), st.integers(200, 400))
def test_a_profile_of_a_bell_turned_upside_down_is_exact_wherever_the_bell_is(at, width, points):
    found = toys.profile(lambda x: -torch.exp(-(((x - at) / width) ** 2) / 2), -10.0, 10.0, points)
    assert found.minima == pytest.approx((at,), abs=1e-9)
    assert found.convex_regions == (pytest.approx((at - width, at + width), abs=1e-9),)


def test_a_point_where_the_slope_only_touches_zero_is_no_minimum():
    # an odd number of points puts one of them exactly on the flat point
    for points in (200, 201):
        assert toys.profile(lambda x: x**3, -1.0, 1.0, points).minima == ()
    assert toys.profile(lambda x: x**3, -1.0, 1.0, 201).convex_regions[0].lower == pytest.approx(0)


@pytest.mark.parametrize("k", range(5, 96, 5))
def test_rounding_errors_on_a_flat_point_make_no_minimum(k):
    # (x − at)³ multiplied out: at the grid point `at` its slope is rounding error of either sign
    at = float(torch.linspace(0, 1, 101, dtype=torch.float64)[k + 2])
    found = toys.profile(lambda x: x**3 - 3 * at * x**2 + 3 * at**2 * x, 0.0, 1.0, points=101)
    assert found.minima == ()
    assert found.convex_regions == (pytest.approx((at, 1.0)),)


def test_a_minimum_exactly_on_a_grid_point_is_found_once():
    assert toys.profile(torch.square, -1.0, 1.0, 201).minima == pytest.approx((0,), abs=1e-12)


def test_maxima_are_not_minima_and_a_concave_or_straight_loss_has_no_convex_region():
    for loss in (lambda x: -(x**2), lambda x: 2 * x):
        found = toys.profile(loss, -1.0, 1.0)
        assert found.minima == () and found.convex_regions == ()


def test_derivatives_equal_the_formula():
    x = vector(-1.0, 0.3, 2.0)
    values, slope, curvature = toys.derivatives(torch.sin, x)
    torch.testing.assert_close(values, x.sin())
    torch.testing.assert_close(slope, x.cos())
    torch.testing.assert_close(curvature, -x.sin())
    assert not values.requires_grad and not slope.requires_grad


def test_a_branch_runs_from_the_margin_to_the_minimum():
    found = toys.profile(lambda x: (x - 0.25) ** 2, -1.0, 1.0, points=9)
    left, right = found.branch("left"), found.branch("right")
    assert left.x.tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25]
    assert right.x.tolist() == [1, 0.75, 0.5, 0.25]
    torch.testing.assert_close(right.loss, (right.x - 0.25) ** 2)
    torch.testing.assert_close(right.grad_norm, 2 * (right.x - 0.25).abs())


def test_a_branch_needs_one_minimum_and_a_known_side():
    with pytest.raises(InputError, match="exactly one minimum"):
        toys.profile(torch.cos, 0.0, 12.0).branch("left")
    with pytest.raises(InputError, match="side: 'up'"):
        toys.profile(torch.square, -1.0, 1.0).branch("up")


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
    assert toys.is_unimodal(vector(*values)) is expected


# ---- losses over a vector


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_recorded_minimizer_is_a_strict_minimum_with_the_recorded_value(name):
    problem = PROBLEMS[name]
    assert problem.minimizer.dtype == problem.start.dtype == torch.float64
    assert problem(problem.minimizer).item() == problem.minimum
    assert gradient(problem, problem.minimizer).norm() < 1e-12
    assert eigenvalues(problem, problem.minimizer)[0] > 1e-3


@pytest.mark.parametrize("name", PROBLEMS)
def test_scipy_finds_the_recorded_minimizer_from_the_recorded_start(name):
    problem = PROBLEMS[name]
    found = scipy.optimize.minimize(
        lambda w: problem(torch.from_numpy(w)).item(),
        problem.start.numpy(),
        jac=lambda w: gradient(problem, torch.from_numpy(w)).numpy(),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    np.testing.assert_allclose(found.x, problem.minimizer, atol=1e-6)
    assert found.fun == pytest.approx(problem.minimum, abs=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_batch_of_vectors_gives_a_batch_of_losses(name):
    problem = PROBLEMS[name]
    batch = torch.randn(3, 4, len(problem.start), generator=seeded(), dtype=torch.float64)
    one_by_one = [problem(w).item() for w in batch.flatten(0, 1)]
    torch.testing.assert_close(problem(batch), vector(*one_by_one).reshape(3, 4))


@pytest.mark.parametrize("dimension", [2, 3, 10])
def test_rosenbrock_and_its_gradient_and_hessian_are_scipys(dimension):
    problem = toys.rosenbrock(dimension)
    w = torch.randn(dimension, generator=seeded(), dtype=torch.float64)
    assert problem(w).item() == pytest.approx(scipy.optimize.rosen(w.numpy()))
    np.testing.assert_allclose(gradient(problem, w), scipy.optimize.rosen_der(w.numpy()))
    hessian = torch.autograd.functional.hessian(problem, w)
    np.testing.assert_allclose(hessian, scipy.optimize.rosen_hess(w.numpy()), atol=1e-10)


def test_rosenbrock_in_four_dimensions_has_its_other_minimum_where_the_first_is_negative():
    problem = toys.rosenbrock(4)
    other = scipy.optimize.minimize(
        scipy.optimize.rosen, [-1, 1, 1, 1], jac=scipy.optimize.rosen_der, options={"gtol": 1e-9}
    )
    w = torch.from_numpy(other.x)
    assert w[0] < -0.5
    assert gradient(problem, w).norm() < 1e-6 and eigenvalues(problem, w)[0] > 0
    assert problem(w) > 3


def test_beale_is_the_published_formula_away_from_its_minimum():
    x, y = -0.7, 1.3
    terms = (1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3)
    assert toys.beale()(vector(x, y)).item() == pytest.approx(sum(term**2 for term in terms))


def test_a_quadratic_has_the_chosen_eigenvalues_and_its_hessian_is_that_of_autograd():
    bowl = toys.Quadratic.random([0.5, 3.0, 20.0], seeded())
    w = vector(0.3, -1.0, 2.0)
    torch.testing.assert_close(torch.autograd.functional.hessian(bowl, w), bowl.hessian)
    torch.testing.assert_close(eigenvalues(bowl, w), vector(0.5, 3.0, 20.0))
    step = w - bowl.minimizer
    assert bowl(w).item() == pytest.approx((0.5 * step @ bowl.hessian @ step).item())


def test_log_spaced_eigenvalues_have_equal_ratios_and_the_condition_number():
    values = toys.Quadratic.log_spaced(5, 1e4, seeded()).eigenvalues
    torch.testing.assert_close(values, vector(1, 10, 100, 1000, 10000))


def test_random_bases_are_orthogonal_and_prefer_no_direction():
    generator = seeded()
    bases = torch.stack(
        [toys.Quadratic.random([1.0, 2.0, 3.0], generator).eigenvectors for _ in range(400)]
    )
    identity = torch.eye(3, dtype=torch.float64).expand(400, 3, 3)
    torch.testing.assert_close(bases @ bases.mT, identity)
    # entries of a Haar matrix have mean 0 and variance 1/3; 400 draws: three standard errors
    assert bases.mean(dim=0).abs().max() < 3 * (1 / 3 / 400) ** 0.5
    assert torch.allclose(bases.square().mean(dim=0), torch.tensor(1 / 3).double(), atol=0.05)


# ---- the well and the descent path


def test_the_wells_hessian_at_its_minimum_is_its_precision():
    well = toys.GaussianWell.tilted(9.0, degrees=20.0)
    assert well(well.minimizer).item() == well.minimum == 0
    assert gradient(well, well.minimizer).norm() == 0
    at_minimum = torch.autograd.functional.hessian(well, well.minimizer)
    torch.testing.assert_close(at_minimum, well.precision)
    torch.testing.assert_close(torch.linalg.eigvalsh(well.precision), vector(1.0, 9.0))
    long_axis = vector(math.cos(math.radians(20)), math.sin(math.radians(20)))
    torch.testing.assert_close(well.precision @ long_axis, long_axis)


@given(st.floats(1, 50), st.floats(0, 180), st.floats(0, 360), st.floats(0.05, 2))
def test_the_well_is_convex_exactly_inside_its_ellipse(condition, degrees, direction, q):
    well = toys.GaussianWell.tilted(condition, degrees)
    angle = math.radians(direction)
    ray = vector(math.cos(angle), math.sin(angle))
    w = ray * (q / well.squared_distance(ray)).sqrt()
    assert well.squared_distance(w).item() == pytest.approx(q)
    if abs(q - 1) > 1e-3:
        assert bool(toys.least_eigenvalue(well, w[None]) > 0) == (q < 1)


def test_the_flow_in_the_well_follows_the_curve_that_can_be_written_down():
    # dw/dt ∝ −A w, so w₂ / start₂ = (w₁ / start₁)^κ in the coordinates of the axes
    well = toys.GaussianWell.tilted(4.0, degrees=0.0)
    path = toys.gradient_flow(well, vector(1.7, 1.15))
    w1, w2 = path.points.T
    torch.testing.assert_close(w2, 1.15 * (w1 / 1.7) ** 4, atol=1e-6, rtol=0)
    assert path.grad_norm[-1].item() == pytest.approx(1e-3)
    torch.testing.assert_close(path.points[0], vector(1.7, 1.15))


def test_points_of_a_path_are_evenly_spaced_along_it_and_what_is_measured_there_is_right():
    path = toys.gradient_flow(toys.rosenbrock(), vector(-1.2, 1.0), points=2001)
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
    path = toys.gradient_flow(well, vector(1.3, 1.3), stop_norm=0.1, points=4001)
    (slope,) = torch.gradient(path.grad_norm, spacing=(path.length,))
    torch.testing.assert_close(
        slope[1:-1], -path.curvature_along_gradient[1:-1], atol=1e-3, rtol=1e-3
    )


def test_the_path_of_figure_3_has_one_peak_outside_the_convex_region():
    well = toys.GaussianWell.tilted(4.0, degrees=0.0)
    path = toys.gradient_flow(well, vector(1.7, 1.15), points=2001)
    assert toys.is_unimodal(path.grad_norm)
    # Kantorovich's bound for condition number 4
    assert 1 < well.squared_distance(path.points[path.peak]) <= 25 / 16
    entry = well.squared_distance(path.points[path.convex_entry - 1 : path.convex_entry + 1])
    assert entry[0] >= 1 > entry[1]
    assert path.peak < path.convex_entry and path.convex[path.convex_entry :].all()


def test_a_falling_gradient_norm_does_not_prove_convexity():
    well = toys.GaussianWell.tilted(16.0, degrees=0.0)
    path = toys.gradient_flow(well, vector(1.8, 0.5), points=2001)
    fallen = path.grad_norm <= 0.9 * path.grad_norm.cummax(dim=0).values
    first = int(fallen.nonzero()[0])
    assert first < path.convex_entry and path.least_eigenvalue[first] < 0
    assert path.curvature_along_gradient[first] > 0
    assert not toys.is_unimodal(path.grad_norm)


def test_a_path_without_a_convex_region_has_no_entry():
    path = toys.gradient_flow(
        lambda w: w.sum(dim=-1) - (w**2).sum(dim=-1), vector(0.0, 0.0), 1e-3, 1.0
    )
    assert path.convex_entry == len(path.points)
    assert path.length[-1] == 1.0


def test_a_path_that_leaves_the_range_of_its_loss_is_an_error_not_a_short_path():
    with pytest.raises(NonFiniteError, match=r"descent from \[2.0, 1.0\]"):
        toys.gradient_flow(lambda w: (w[..., 0] - 1).sqrt() + w[..., 0], vector(2.0, 1.0))


# ---- what a user can get wrong


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: toys.random_tanh_task(seeded(), units=0), "units: 0"),
        (lambda: toys.rosenbrock(1), "dimension: 1"),
        (lambda: toys.Quadratic.random([1.0, -1.0], seeded()), "eigenvalues: "),
        (lambda: toys.Quadratic.random([], seeded()), "number of eigenvalues: 0"),
        (lambda: toys.Quadratic.log_spaced(3, 0.5, seeded()), "condition_number: 0.5"),
        (lambda: toys.GaussianWell.tilted(0.5, 0.0), "condition_number: 0.5"),
        (lambda: toys.GaussianWell(torch.diag(vector(1.0, 0.0))), "precision: "),
        (lambda: toys.profile(torch.square, 1.0, 1.0), "upper: 1.0"),
        (lambda: toys.profile(torch.square, 0.0, 1.0, points=1), "points: 1"),
        (lambda: toys.gradient_flow(toys.beale(), vector(3.0, 0.5)), "start: "),
        (lambda: toys.gradient_flow(toys.beale(), vector(1.0, 1.0), stop_norm=0), "stop_norm: 0"),
    ],
)
def test_wrong_input_names_the_field_and_the_value(wrong, message):
    with pytest.raises(InputError, match=f"^{message}"):
        wrong()
