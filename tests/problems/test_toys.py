"""Losses against their formulas, scipy and hand calculation; minima and convex regions."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.adam import AdamSettings
from twophase.errors import InputError
from twophase.experiments.config import RunConfig
from twophase.problems import landscape, toys
from twophase.problems.problem import ToyProblem
from twophase.settings import from_dict
from twophase.training import run


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
        found = landscape.profile(toys.random_tanh_task(generator), -15.0, 15.0)
        assert len(found.minima) == len(found.convex_regions) == 1
        assert found.convex_regions[0].lower < found.minima[0] < found.convex_regions[0].upper


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", ["left", "right"])
def test_on_both_branches_the_gradient_norm_rises_and_falls_and_peaks_where_convexity_begins(
    seed, side
):
    found = landscape.profile(toys.random_tanh_task(seeded(seed)), -15.0, 15.0)
    branch = found.branch(side)
    assert landscape.is_unimodal(branch.grad_norm)
    assert (branch.loss.diff() < 0).all()
    edge = found.convex_regions[0].lower if side == "left" else found.convex_regions[0].upper
    spacing = 30.0 / 2000
    assert abs(branch.x[branch.grad_norm.argmax()].item() - edge) <= spacing


@pytest.mark.parametrize(
    "c, regions, minima", [(0.40, 1, 1), (0.45, 2, 1), (0.50, 2, 1), (0.55, 2, 2), (0.60, 2, 2)]
)
@pytest.mark.parametrize("points", [401, 2000, 2001])
def test_two_layer_tanh_has_the_convex_regions_and_minima_of_figure_4(c, regions, minima, points):
    found = landscape.profile(toys.TwoLayerTanh(c), -4.0, 4.0, points)
    assert (len(found.convex_regions), len(found.minima)) == (regions, minima)
    loss_at_minima = toys.TwoLayerTanh(c)(vector(*found.minima))
    assert loss_at_minima.min().item() == pytest.approx(0, abs=1e-20)
    # what is new comes on the left slope
    assert found.minima[-1] > 0 and all(at < 0 for at in found.minima[:-1])


@pytest.mark.parametrize("weight", [0.0, 0.40, 0.45, 0.50, 0.55, 0.60, 1.0, 3.0])
def test_with_the_sign_as_printed_there_is_never_more_than_one_minimum(weight):
    found = landscape.profile(toys.TwoLayerTanh(-weight), -6.0, 6.0)
    assert len(found.minima) == len(found.convex_regions) == 1


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


# ---- the well


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
        assert bool(landscape.least_eigenvalue(well, w[None]) > 0) == (q < 1)


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
    ],
)
def test_wrong_input_names_the_field_and_the_value(wrong, message):
    with pytest.raises(InputError, match=f"^{message}"):
        wrong()


@pytest.mark.parametrize("c", [0.4, 0.55])
def test_a_configuration_can_train_a_toy(c):
    """From its own start for each seed, by the library's default, and back from JSON."""
    config = RunConfig(ToyProblem(c), 30, AdamSettings(0.02, None), dtype="float64")
    assert from_dict(config.problem.to_dict()) == config.problem
    for seed in range(2):
        task = config.problem.load(seed, "float64", torch.device("cpu"), None)
        assert task.model.x.item() == -2 - seed / 4
        trainer = config.trainer(task, torch.device("cpu"))
        start = trainer.objective.value(trainer.objective.vector.read())
        assert start == toys.TwoLayerTanh(c)(task.model.x).item()
        assert run(trainer, 30).final.train_loss < start
    with pytest.raises(InputError, match="^c: nan"):
        ToyProblem(math.nan)
