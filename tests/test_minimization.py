"""The second phase alone: what it picks, what it may spend, what it leaves behind."""

import time

import pytest
import torch
from torch import nn

from twophase import DEFAULT, LeastSquares, LevenbergMarquardt, Term, minimize
from twophase.errors import InputError, NonFiniteError
from twophase.least_squares import problem as problem_module
from twophase.minimization import choose
from twophase.objective import FunctionObjective
from twophase.problems import toys


def fit_of_a_line(rows=9, inputs=1):
    torch.manual_seed(0)
    model = nn.Linear(inputs, 1).double()
    x = torch.linspace(-1, 1, rows * inputs, dtype=torch.float64).reshape(rows, inputs)
    return model, LeastSquares(model, [Term(lambda m, p: m(p) - p.sum(dim=1, keepdim=True), x)])


def test_sums_of_squares_of_moderate_size_are_for_levenberg_marquardt():
    assert choose(fit_of_a_line()[1]) == LevenbergMarquardt()
    # few residuals, many parameters, or the other way round
    assert choose(fit_of_a_line(rows=2, inputs=5000)[1]) == LevenbergMarquardt()
    assert choose(fit_of_a_line(rows=50_000, inputs=2)[1]) == LevenbergMarquardt()
    assert choose(fit_of_a_line(rows=5000, inputs=5000)[1]) == DEFAULT


def test_a_wide_jacobian_that_does_not_fit_is_for_the_default(monkeypatch):
    monkeypatch.setattr(problem_module, "JACOBIAN_BYTES", 8 * 2 * 5000)
    assert choose(fit_of_a_line(rows=2, inputs=5000)[1]) == DEFAULT
    assert choose(fit_of_a_line(rows=50_000, inputs=2)[1]) == LevenbergMarquardt()


def test_other_objectives_are_for_the_default():
    assert choose(FunctionObjective(lambda x: x @ x)) == DEFAULT


@pytest.mark.parametrize("second", [None, DEFAULT])
def test_the_result_says_what_was_done(second):
    model, problem = fit_of_a_line()
    told = []
    found = minimize(problem, second=second, callback=told.append)
    assert found.loss < 1e-25 and found.second == (second or LevenbergMarquardt())
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
