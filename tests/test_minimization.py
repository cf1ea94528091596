"""The second phase alone: what it picks, what it may spend, what it leaves behind."""

import time

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from twophase import (
    DEFAULT,
    SELF_SCALED_BFGS,
    LeastSquares,
    LevenbergMarquardt,
    Term,
    fit,
    minimize,
)
from twophase.errors import InputError, NonFiniteError
from twophase.objective import FunctionObjective
from twophase.objectives import FullBatch
from twophase.problems import toys


def fit_of_a_line(rows=9, inputs=1):
    torch.manual_seed(0)
    model = nn.Linear(inputs, 1).double()
    x = torch.linspace(-1, 1, rows * inputs, dtype=torch.float64).reshape(rows, inputs)
    return model, LeastSquares(model, [Term(lambda m, p: m(p) - p.sum(dim=1, keepdim=True), x)])


@pytest.mark.parametrize("second", [DEFAULT, SELF_SCALED_BFGS])
def test_the_result_says_what_was_done(second):
    model, problem = fit_of_a_line()
    told = []
    found = minimize(problem, second=second, callback=told.append)
    assert found.loss < 1e-25 and found.second == (
        LevenbergMarquardt() if second == DEFAULT else second
    )
    assert found.status in ("converged", "resolution") and found.message
    steps = [result.iterations for result in told]
    assert steps in ([*range(1, steps[-1] + 1)], [*range(1, steps[-1] + 1), steps[-1]])
    assert told[-1] == found
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), found.x)
    assert found.passes == problem.passes.total
    assert 0 < told[0].seconds <= found.seconds


def rosenbrock():
    return FunctionObjective(toys.rosenbrock(2)), torch.tensor([-1.2, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "budget", [{"iterations": 4}, {"passes": 20}, {"iterations": 50, "passes": 20}]
)
def test_a_budget_ends_it_after_the_iteration_that_has_spent_it(budget):
    told = []
    found = minimize(*rosenbrock(), **budget, callback=told.append)
    assert found.status == "budget"
    spent = [{"iterations": r.iterations, "passes": r.passes} for r in told]
    assert any(spent[-1][name] >= limit for name, limit in budget.items())
    assert all(result[name] < limit for result in spent[:-1] for name, limit in budget.items())


def test_a_budget_of_seconds_ends_it():
    found = minimize(*rosenbrock(), seconds=0.05, callback=lambda result: time.sleep(0.02))
    assert found.status == "budget" and 0.05 <= found.seconds < 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_ends_it_leaves_the_best_weights(error):
    model, problem = fit_of_a_line()
    seen = []

    def stop(result):
        seen.append(result)
        if len(seen) == 3:
            raise error

    with pytest.raises(error):
        minimize(problem, callback=stop)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), seen[-1].x)


def test_a_start_that_is_not_finite_is_one_line_and_the_weights_stay():
    model, _ = fit_of_a_line()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    x = torch.ones(3, 1, dtype=torch.float64)
    problem = LeastSquares(model, [Term(lambda m, p: (m(p) - 1e9).log(), x)])
    with pytest.raises(NonFiniteError, match="^loss: nan is not allowed"):
        minimize(problem)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("iterations", {"iterations": 0}),
        ("passes", {"passes": "many"}),
        ("seconds", {"seconds": 0}),
        ("second", {"second": "lm"}),
        ("x", {"x": None}),
    ],
)
def test_bad_input_is_one_line(field, given):
    objective, x = rosenbrock()
    with pytest.raises(InputError, match=f"^{field}: "):
        minimize(objective, **{"x": x} | given)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(2).double(), torch.zeros(3).long()])
def test_a_start_is_a_vector_of_the_models_kind(x):
    model = nn.Linear(2, 1).double()
    inputs = torch.rand(5, 2).double()
    found = FullBatch(model, mse_loss, inputs, inputs[:, :1])
    with pytest.raises(InputError, match=r"^x: .* use a vector of torch.float64 \[3\]$"):
        minimize(found, x)


def test_targets_that_are_broadcast_are_one_line():
    inputs = torch.rand(5, 2)
    with pytest.raises(InputError, match="^targets: .* the outputs' shape"):
        minimize(FullBatch(nn.Linear(2, 1), mse_loss, inputs, inputs[:, 0]))
    with pytest.raises(InputError, match="^inputs: "):
        FullBatch(nn.Linear(2, 1), mse_loss, [1], [2])


def test_points_may_require_a_gradient():
    model, x = nn.Linear(1, 1).double(), torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    line = Term(lambda model, points: model(points) - 2 * points - 1, x.requires_grad_())
    found = minimize(LeastSquares(model, [line]), passes=60)
    assert found.second.label == "LevenbergMarquardt" and found.loss < 1e-20
    assert x.grad is None
    fit(model, (x, (2 * x).detach().requires_grad_()), epochs=4, switch=2)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"x": [1.0, 2.0]}, "^x: .* use Tensor"),
        ({"callback": 5}, "^callback: 5 is not allowed; use a function"),
    ],
)
def test_wrong_types_are_one_clear_line(arguments, words):
    with pytest.raises(InputError, match=words):
        minimize(FunctionObjective(lambda x: x @ x), **{"x": torch.ones(2).double()} | arguments)
