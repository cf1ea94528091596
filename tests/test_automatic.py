"""The default second phase: what it chooses for which structure and size, and that it says why."""

import pytest
import torch
from torch import nn

from twophase import (
    SELF_SCALED_BFGS,
    AdamSettings,
    Automatic,
    BroydenDirection,
    Descent,
    Identity,
    LeastSquares,
    LevenbergMarquardt,
    StrongWolfe,
    Term,
    fit,
    minimize,
)
from twophase.automatic import DENSE_PARAMETERS
from twophase.least_squares import problem as problem_module
from twophase.objective import FunctionObjective, evaluate

DENSE = Descent(BroydenDirection(), StrongWolfe(), Automatic().preconditioner)


def squares(rows=9, inputs=1):
    torch.manual_seed(0)
    model = nn.Linear(inputs, 1).double()
    x = torch.linspace(-1, 1, rows * inputs, dtype=torch.float64).reshape(rows, inputs)
    return LeastSquares(model, [Term(lambda m, p: m(p) - p.sum(dim=1, keepdim=True), x)])


def chosen(objective, size):
    return Automatic().prepare(objective, size).minimizer


@pytest.mark.parametrize("shape", [(9, 1), (2, 5000), (50_000, 2)])
def test_sums_of_squares_of_moderate_size_are_for_levenberg_marquardt(shape):
    problem = squares(*shape)
    found = Automatic().prepare(problem, problem.size[1])
    assert found.minimizer == LevenbergMarquardt() and found.objective is problem
    assert found.reason == f"a sum of {shape[0]:,} squares, of {shape[1] + 1:,} parameters"


def test_what_takes_too_long_or_does_not_fit_is_for_quasi_newton_methods(monkeypatch):
    assert chosen(squares(5000, 5000), 5001) == SELF_SCALED_BFGS
    monkeypatch.setattr(problem_module, "JACOBIAN_BYTES", 8 * 2 * 5000)
    assert chosen(squares(2, 5000), 5001) == SELF_SCALED_BFGS
    assert chosen(squares(50_000, 2), 3) == LevenbergMarquardt()


def test_many_residuals_for_each_point_are_for_quasi_newton_methods():
    model = nn.Linear(2, 5).double()
    x = torch.eye(2, dtype=torch.float64)
    for outputs, second in ((4, LevenbergMarquardt()), (5, DENSE)):
        problem = LeastSquares(model, [Term(lambda m, p, n=outputs: m(p)[:, :n], x)])
        assert chosen(problem, 15) == second


@pytest.mark.parametrize(
    ("size", "second"), [(DENSE_PARAMETERS, DENSE), (DENSE_PARAMETERS + 1, SELF_SCALED_BFGS)]
)
def test_other_losses_have_a_matrix_while_it_is_small(size, second):
    found = Automatic().prepare(FunctionObjective(lambda x: x @ x), size)
    assert found.minimizer == second
    assert found.reason == f"no sum of squares, of {size:,} parameters"


def test_its_settings_are_those_of_what_it_chooses():
    second = Automatic(Identity(), tolerance_grad=0.5)
    for objective in (FunctionObjective(lambda x: x @ x), squares()):
        minimizer = second.prepare(objective, 2).minimizer
        assert (minimizer.preconditioner, minimizer.tolerance_grad) == (Identity(), 0.5)


def test_an_iteration_is_that_of_what_it_chooses():
    objective = FunctionObjective(lambda x: (x**4).sum() + x @ x)
    point = evaluate(objective, torch.ones(3, dtype=torch.float64))
    ours, theirs = (second.iterate(objective, point, None) for second in (Automatic(), DENSE))
    assert torch.equal(ours.x, theirs.x)


def test_the_choice_is_in_the_record():
    assert minimize(squares()).reason == "a sum of 9 squares, of 2 parameters"
    x = torch.linspace(-1, 1, 12)[:, None]
    result = fit(
        nn.Linear(1, 1), (x, 3 * x + 1), epochs=6, adam=AdamSettings(batch_size=4), switch=3
    )
    first = result.records[3]
    assert first.phase == "second"
    assert first.note.startswith("LevenbergMarquardt, since the loss is a sum of 12 squares, of 2")
