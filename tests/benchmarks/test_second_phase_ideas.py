"""The benchmark of ideas for the second phase: products, truncated solves, pass counts, a run."""

import importlib
import json
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import twophase as tp
from twophase.experiments import branches, runs
from twophase.experiments.competitors import BudgetSpent, Competitor, Journal, go_on
from twophase.losses import mse
from twophase.objectives.full_batch import FullBatch
from twophase.parameters import ParameterVector
from twophase.problems import networks
from twophase.settings import from_dict

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
newton = importlib.import_module("gauss_newton")
ideas = importlib.import_module("second_phase_ideas")

SEED, SWAP = 3, 4
REGRESSION = ideas.TanhRegression.name
PREFIX = ideas.start(REGRESSION, SWAP, SEED)


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


class Told(Journal):
    """A journal that keeps everything it is told, and what a function says at that moment."""

    def __init__(self, trainer, budget, seen=lambda: None):
        super().__init__(budget, trainer.device)
        self.told, self.seen = [], seen
        x = trainer.objective.vector.read()
        self.begin(trainer.objective.value(x), x)

    def saw(self, passes, loss, x):
        self.told.append((passes, loss, self.seen()))
        super().saw(passes, loss, x)


def follow(method, trainer, budget, seen=lambda: None):
    """All that a method tells: passes, loss, and what `seen` says."""
    journal = Told(trainer, budget, seen)
    with suppress(BudgetSpent):
        method.run(trainer, journal)
    return journal.told


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    place = branches.Place(tmp_path_factory.mktemp("prefixes"), device="cpu")
    branches.run_trunk(PREFIX, [], place)
    return runs.branch_file(place.folder(PREFIX), "end")


@pytest.fixture
def trainer(state):
    return runs.restore(PREFIX, state, device="cpu")


def gradient_sweeps(objective):
    """Examples that went forward with a graph so far, in sweeps over the training set."""
    count = []
    assert objective.chunk_size > 0  # chosen now, by a probe that costs no passes

    def hook(_, inputs, outputs):
        if torch.is_grad_enabled():
            count.append(len(inputs[0]))

    objective.model.register_forward_hook(hook)
    return lambda: sum(count) / len(objective.inputs)


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


@pytest.mark.slow
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


def test_steps_of_a_linear_model_end_at_the_least_squares_loss():
    inputs, targets = random(40, 3), random(40, 1, seed=1)
    trainer = tp.Trainer(nn.Linear(3, 1).double(), (inputs, targets), second=None, device="cpu")
    trainer.epoch()
    *_, last = go_on(newton.TruncatedGaussNewton(residual=1e-6), trainer, 3000)
    design = torch.cat([inputs, torch.ones(40, 1).double()], dim=1)
    best = torch.linalg.lstsq(design, targets).solution
    assert last.loss == pytest.approx((design @ best - targets).square().mean().item(), rel=1e-10)


@pytest.mark.parametrize(("examples", "share"), [(256, 0.25), (None, 1.0)])
def test_gauss_newton_counts_gradients_graphs_and_products(trainer, monkeypatch, examples, share):
    work = {"graphs": 0, "products": 0}

    class Spy(newton.GaussNewton):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            work["graphs"] += 1

        def __call__(self, v):
            work["products"] += 1
            return super().__call__(v)

    monkeypatch.setattr(newton, "GaussNewton", Spy)
    journal = Told(trainer, 100)
    first = trainer.objective.passes.total
    with pytest.raises(BudgetSpent):
        newton.TruncatedGaussNewton(examples, seed=SEED).run(trainer, journal)
    curved = newton.GRAPH_PASSES * work["graphs"] + newton.PRODUCT_PASSES * work["products"]
    passes, losses, _ = zip(*journal.told, strict=True)
    assert passes[0] == 3 and passes[-1] > 100
    spent = trainer.objective.passes.total - first
    assert passes[-1] == pytest.approx(spent + share * curved)
    assert list(losses) == sorted(losses, reverse=True)


METHODS = {
    label: method
    for of in ideas.ideas(PREFIX).values()
    for label, method in of.items()
    if isinstance(method, Competitor) and not isinstance(method, newton.TruncatedGaussNewton)
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_passes_are_three_per_sweep_of_gradients(trainer, method):
    told = follow(method, trainer, 120, gradient_sweeps(trainer.objective))
    for passes, _, sweeps in told:
        assert passes == pytest.approx(3 * sweeps)
    assert told[-1][0] > 115


def test_a_growing_sample_ends_on_all_examples(trainer, monkeypatch):
    sizes, iterate = [], ideas.iterate

    def counted(objective, *arguments):
        sizes.append(len(objective.inputs))
        return iterate(objective, *arguments)

    monkeypatch.setattr(ideas, "iterate", counted)
    follow(ideas.GrowingSample(iterations=3, seed=SEED), trainer, 60)
    assert sizes[:6] == [256] * 3 + [512] * 3
    assert set(sizes[6:]) == {1024}


def test_a_part_of_the_sample_lasts_while_its_gradient_tells_something(trainer, monkeypatch):
    norms, steps = [], ideas._steps

    def spied(part, start, state, inverse):
        smallest = 0.0
        if part is not trainer.objective:
            full = ideas.evaluate(trainer.objective, start.x)
            smallest = ideas.norm(full.gradient - start.gradient)
        for point, left in steps(part, start, state, inverse):
            norms.append((ideas.norm(point.gradient), smallest))
            yield point, left

    monkeypatch.setattr(ideas, "_steps", spied)
    follow(ideas.GrowingSample(seed=SEED), trainer, 300)
    parts = [smallest for _, smallest in norms if smallest > 0]
    assert len(set(parts)) == 2
    for smallest in set(parts):
        *before, last = (size for size, bound in norms if bound == smallest)
        assert last <= smallest and all(size > smallest for size in before)


def test_the_trajectory_is_the_prefix_own(trainer):
    weights = ideas.trajectory(PREFIX)
    assert len(weights) == SWAP
    torch.testing.assert_close(weights[-1], trainer.objective.vector.read(), rtol=1e-12, atol=0)


def test_the_average_is_over_the_last_epochs(trainer):
    weights = ideas.trajectory(PREFIX)
    (passes, loss, x), *_ = follow(
        ideas.FromAverage(PREFIX, part=0.5), trainer, 60, trainer.objective.vector.read
    )
    torch.testing.assert_close(x, (weights[2] + weights[3]) / 2)
    assert (passes, loss) == (3, pytest.approx(trainer.objective.value(x)))


def test_the_learning_rate_falls_linearly(trainer, monkeypatch):
    optimizer, rates = trainer.phases["adam"].adam.optimizer, []
    monkeypatch.setattr(optimizer, "step", lambda: rates.append(optimizer.param_groups[0]["lr"]))
    follow(ideas.FromDecay(epochs=3), trainer, 9)
    assert rates == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3])


def test_looking_at_the_mean_leaves_adam_alone(trainer, state):
    told = follow(ideas.AveragedAdam(PREFIX, part=0.5), trainer, 30)
    bare = runs.restore(PREFIX, state, device="cpu")
    for _ in range(told[-1][0] // 3):
        bare.epoch()
    x, expected = trainer.objective.vector.read(), bare.objective.vector.read()
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-12)


def test_settings_come_back_from_json():
    for of in ideas.ideas(PREFIX).values():
        for method in of.values():
            assert from_dict(method.to_dict()) == method


@pytest.mark.slow
def test_the_script_leaves_curves_and_runs_nothing_twice(tmp_path):
    chosen = ["--networks", REGRESSION, "--seeds", "3", "--swap", "4", "--passes", "30"]
    folders = ["--out", str(tmp_path / "out"), "--prefixes", str(tmp_path / "prefixes")]
    ideas.main([*chosen, *folders, "--ideas", "baselines", "averaged"])
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert tuple(curves.columns) == ideas.COLUMNS
    assert curves.groupby("method").passes.min().eq(0).all()
    assert curves.groupby("method").passes.max().between(25, 30).all()
    assert curves[curves.passes == 0].loss.nunique() == 1
    assert curves.groupby("method").seconds.apply(lambda s: s.is_monotonic_increasing).all()

    ideas.main([*chosen, *folders])
    more = pd.read_csv(tmp_path / "out" / "curves.csv")
    pd.testing.assert_frame_equal(more[more.method.isin(curves.method)], curves)
    assert set(more.method) == {name for idea in ideas.ideas(PREFIX).values() for name in idea}
    ideas.main([*chosen, *folders])
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert [len(run["command"]) > 0 for run in facts["commands"]] == [True, True]
    assert set(facts["costs"][REGRESSION]) == {"graph", "product"}


def test_the_kept_results_have_the_columns_and_names():
    kept = pd.read_csv(
        Path(__file__).parents[2] / "reports" / "reference" / "second-phase-ideas" / "curves.csv"
    )
    assert tuple(kept.columns) == ideas.COLUMNS
    assert set(kept.method) == {name for idea in ideas.ideas(PREFIX).values() for name in idea}
