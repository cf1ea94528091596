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
from twophase.errors import InputError
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


class Branching(nn.Module):
    """Outputs by a function that torch.func may not be able to take."""

    def __init__(self, function):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.register_buffer("calls", torch.zeros(()))
        self.function = function

    def forward(self, x):
        return self.function(self, self.layers(x))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def looks_at_values(model, u):
    if torch.isnan(u).any():
        raise ValueError("nan")
    return u


def counts(model, u):
    model.calls += 1
    return u


def wants_several(model, u):
    assert len(u) >= 2
    return u


def mixes(model, u):
    return u - u.mean()


UNDERIVED = {
    "a branch on values": looks_at_values,
    "a buffer that counts": counts,
    "numpy": lambda model, u: u + 0 * u.detach().numpy().sum(),
    "an old autograd function": lambda model, u: Twice.apply(u),
    "batches of two and more": wants_several,
    "examples that depend on each other": mixes,
}


@pytest.mark.parametrize("name", UNDERIVED)
def test_without_a_jacobian_a_quasi_newton_method_is_chosen_at_the_start(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator)
    torch.manual_seed(0)
    model, data = Branching(UNDERIVED[name]), (x, x.prod(dim=1, keepdim=True))
    result = fit(model, data, epochs=12, switch=3, device="cpu")
    first = result.records[3]
    assert first.phase == "second" and first.note.startswith("BroydenDirection with StrongWolfe")
    assert result.records[-1].train_loss < first.train_loss
    reason = "depend on each other" if name.startswith("examples") else "without a Jacobian"
    assert reason in first.note


def test_levenberg_marquardt_by_name_says_at_the_start_that_there_is_no_jacobian():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    data = x, x.prod(dim=1, keepdim=True)
    with pytest.raises(InputError, match="^residual: .*without a Jacobian.*SELF_SCALED") as raised:
        fit(Branching(looks_at_values), data, epochs=9, second=LevenbergMarquardt(), device="cpu")
    assert raised.value.records == ()


def test_a_users_residuals_that_depend_on_other_points_are_refused():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    problem = LeastSquares(Branching(mixes), [Term(lambda m, p: m(p), x)])
    with pytest.raises(InputError, match="row i from point i alone"):
        minimize(problem, passes=30)


def test_a_users_residuals_without_a_jacobian_are_minimised_all_the_same():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    model = Branching(looks_at_values)
    found = minimize(LeastSquares(model, [Term(lambda m, p: m(p) - p[:, :1], x)]), passes=90)
    assert isinstance(found.second, Descent) and found.loss < 0.5
    with pytest.raises(InputError, match="^residual: 'one without a graph"):
        minimize(LeastSquares(model, [Term(lambda m, p: m(p).detach(), x)]), passes=9)
