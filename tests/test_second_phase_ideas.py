"""The benchmark of ideas for the second phase: products, truncated solves, pass counts, a run."""

import doctest
import importlib
import json
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from twophase.losses import mse
from twophase.objective import FullBatch, ParameterVector
from twophase.problems import networks

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
newton = importlib.import_module("gauss_newton")
ideas = importlib.import_module("second_phase_ideas")

SEED, SWAP = 3, 4


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def dense(model, inputs):
    """2/(K C) J'J, row by row of J."""
    vector = ParameterVector(model.parameters())
    outputs = model(inputs).reshape(-1)
    rows = [
        torch.autograd.grad(o, vector.parameters, retain_graph=True, materialize_grads=True)
        for o in outputs
    ]
    jacobian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    return 2 / len(outputs) * jacobian.T @ jacobian


def kept_prefix(folder):
    return ideas.prefix(ideas.REGRESSION, SEED, SWAP, folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return kept_prefix(tmp_path_factory.mktemp("prefixes"))


@pytest.fixture
def start(kept):
    return ideas.branch(ideas.REGRESSION, SEED, deepcopy(kept))


def counted_examples(start):
    """Examples that went through the model so far, in sweeps over the training set."""
    seen = []
    assert start.objective.chunk_size > 0  # chosen now, by a probe that costs no passes
    start.objective.model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return lambda: sum(seen) / len(start.objective.inputs)


@pytest.mark.parametrize("chunk_size", [3, 64])
def test_products_are_those_of_the_dense_gauss_newton_matrix(chunk_size):
    model, inputs = perceptron(), random(7, 3)
    matrix = dense(model, inputs)
    product = newton.GaussNewton(
        model, ParameterVector(model.parameters()), inputs, chunk_size=chunk_size
    )
    for seed in (1, 2):
        v = random(len(matrix), seed=seed)
        torch.testing.assert_close(product(v), matrix @ v, rtol=1e-12, atol=1e-13)


def test_products_pass_through_attention_and_softmax():
    model = networks.build("vit-nomlp-wkewq-wvwo1", 1, 10, seed=0).double()
    inputs = random(2, 1, 32, 32)
    vector = ParameterVector(model.parameters())
    v = random(len(vector.read()), seed=1)
    expected = dense(model, inputs) @ v
    actual = newton.GaussNewton(model, vector, inputs)(v)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * expected.abs().max())


def test_products_of_a_linear_model_are_its_hessians():
    model = nn.Linear(3, 2).double()
    full = FullBatch(model, mse, random(5, 3), random(5, 2, seed=1))
    x, v = full.vector.read(), random(8, seed=2)
    product = newton.GaussNewton(model, full.vector, full.inputs)
    torch.testing.assert_close(product(v), full.hessian_vector(x, v))


def system():
    root = random(12, 8)
    return root @ root.T, random(12, seed=1), random(12, seed=2).abs() + 0.1


def test_the_solve_is_the_damped_newton_step():
    matrix, gradient, metric = system()
    damped = matrix + 0.3 * metric.diag()
    found = newton.solve(lambda v: matrix @ v, gradient, metric, 0.3, 1e-12, products=100)
    step = torch.linalg.solve(damped, -gradient)
    torch.testing.assert_close(found.step, step)
    assert found.slope == pytest.approx((gradient @ step).item())
    assert found.curvature == pytest.approx((step @ matrix @ step).item())
    part = 0.4 * step
    assert found.gain(0.4) == pytest.approx(-(gradient @ part + part @ matrix @ part / 2).item())


@pytest.mark.parametrize("products", [1, 3])
def test_a_truncated_solve_is_the_best_step_of_its_krylov_space(products):
    matrix, gradient, metric = system()
    damped = matrix + 0.3 * metric.diag()
    found = newton.solve(lambda v: matrix @ v, gradient, metric, 0.3, 0.0, products)
    powers = [gradient / metric]
    for _ in range(products - 1):
        powers.append(damped @ powers[-1] / metric)
    space = torch.linalg.qr(torch.stack(powers, dim=1)).Q
    best = space @ torch.linalg.solve(space.T @ damped @ space, -space.T @ gradient)
    assert found.products == products
    torch.testing.assert_close(found.step, best)
    assert found.curvature == pytest.approx((best @ matrix @ best).item())


def test_a_solve_ends_at_the_first_residual_that_is_small_enough():
    matrix, gradient, metric = system()

    def relative_residual(products, residual):
        found = newton.solve(lambda v: matrix @ v, gradient, metric, 0.3, residual, products)
        left = -gradient - matrix @ found.step - 0.3 * metric * found.step
        size = (left @ (left / metric) / (gradient @ (gradient / metric))).sqrt().item()
        return size, found.products

    reached, products = relative_residual(100, 0.2)
    assert reached <= 0.2 < relative_residual(products - 1, 0.0)[0]


def test_steps_of_a_linear_model_end_at_the_least_squares_solution():
    inputs, targets = random(40, 3), random(40, 1, seed=1)
    model = nn.Linear(3, 1).double()
    full = FullBatch(model, mse, inputs, targets)
    steps = newton.LevenbergMarquardt(residual=1e-6)
    *_, (_, point) = steps(full, torch.ones(4).double(), 3000, seed=0)
    design = torch.cat([inputs, torch.ones(40, 1).double()], dim=1)
    best = torch.linalg.lstsq(design, targets).solution.reshape(-1)
    torch.testing.assert_close(point.x, best, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("examples", "share"), [(256, 0.25), (None, 1.0)])
def test_gauss_newton_counts_gradients_graphs_and_products(start, monkeypatch, examples, share):
    work = {"graphs": 0, "products": 0}

    class Spy(newton.GaussNewton):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            work["graphs"] += 1

        def __call__(self, v):
            work["products"] += 1
            return super().__call__(v)

    monkeypatch.setattr(newton, "GaussNewton", Spy)
    reached = list(ideas.gauss_newton(start, 100, examples=examples))
    curved = newton.GRAPH_PASSES * work["graphs"] + newton.PRODUCT_PASSES * work["products"]
    assert reached[-1][0] == pytest.approx(start.objective.passes.total + share * curved)
    assert reached[-1][0] >= 100
    losses = [loss for _, _, loss in reached]
    assert losses == sorted(losses, reverse=True)


METHODS = {
    "adam": ideas.adam,
    "average of adam": partial(ideas.averaged_adam, part=0.5),
    "default": ideas.second_phase,
    "average": partial(ideas.from_average, part=0.5),
    "decay": partial(ideas.from_decay, epochs=3),
    "growing": partial(ideas.growing_sample, shares=(0.25, 0.5), iterations=None),
    "growing, fixed": partial(ideas.growing_sample, shares=(0.25, 0.5), iterations=3),
    "torch": ideas.torchs_lbfgs,
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_passes_are_three_per_sweep_of_gradients(start, method):
    sweeps = counted_examples(start)
    for passes, _, _ in method(start, 60):
        assert passes == pytest.approx(3 * sweeps())
    assert passes >= 60


def test_a_growing_sample_ends_on_all_examples(start):
    reached = list(ideas.growing_sample(start, 60, (0.25, 0.5), iterations=3))
    known = [loss is not None for _, _, loss in reached]
    assert known == sorted(known)
    assert known.count(False) == 6
    _, x, loss = reached[-1]
    assert loss == pytest.approx(start.objective.value(x))


def test_the_average_is_over_the_last_epochs(start):
    _, x, loss = next(ideas.from_average(start, 60, part=0.5))
    torch.testing.assert_close(x, (start.weights[2] + start.weights[3]) / 2)
    assert loss == pytest.approx(start.objective.value(x))


def test_the_learning_rate_falls_linearly(start, monkeypatch):
    optimizer, rates = start.trainer.phases["adam"].adam.optimizer, []
    monkeypatch.setattr(optimizer, "step", lambda: rates.append(optimizer.param_groups[0]["lr"]))
    for _ in ideas.from_decay(start, 9, epochs=3):
        pass
    assert rates == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3])


def test_the_record_leaves_the_method_alone(start, kept):
    """Adam's weights go on from its own, not from the mean that was looked at."""
    method = METHODS["average of adam"]
    ideas.curve(start, method, 30)
    bare = ideas.branch(ideas.REGRESSION, SEED, deepcopy(kept))
    list(method(bare, 30))
    torch.testing.assert_close(start.objective.vector.read(), bare.objective.vector.read())


def test_the_script_leaves_curves_and_runs_nothing_twice(tmp_path):
    chosen = ["--networks", ideas.REGRESSION, "--seeds", "3", "--swap", "4", "--passes", "30"]
    folders = ["--out", str(tmp_path / "out"), "--prefixes", str(tmp_path / "prefixes")]
    ideas.main([*chosen, *folders, "--ideas", "baselines", "averaged"])
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert tuple(curves.columns) == ideas.COLUMNS
    assert curves.groupby("method").passes.min().eq(0).all()
    assert curves.groupby("method").passes.max().ge(30).all()
    assert curves[curves.passes == 0].loss.nunique() == 1
    assert curves.groupby("method").seconds.apply(lambda s: s.is_monotonic_increasing).all()

    ideas.main([*chosen, *folders])
    more = pd.read_csv(tmp_path / "out" / "curves.csv")
    pd.testing.assert_frame_equal(more[more.method.isin(curves.method)], curves)
    assert set(more.method) == {name for idea in ideas.IDEAS.values() for name in idea}
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert [len(run["command"]) > 0 for run in facts["commands"]] == [True, True]
    assert set(facts["costs"][ideas.REGRESSION]) == {"graph", "product"}


@pytest.mark.parametrize("module", [newton, ideas], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags).failed == 0
