"""A closure as an objective: what it returns, and what is wrong with it."""

import re

import pytest
import torch
from torch import nn

from twophase.errors import InputError
from twophase.objective import Passes, evaluate, round_off
from twophase.objectives.closure import ClosureObjective, check_closure, check_slope
from twophase.parameters import ParameterVector, unharmed


def objective_of(closure_of, dtype=torch.float64):
    weight = nn.Parameter(torch.zeros(2, dtype=dtype))
    return ClosureObjective(ParameterVector([weight]), lambda: closure_of(weight)), weight


def cubes(w):
    return (w**3).sum()


def with_backward(loss_of, detached=False):
    """The convention of torch's L-BFGS; Lightning returns a detached loss."""

    def closure(weight):
        weight.grad = None
        loss = loss_of(weight)
        loss.backward()
        return loss.detach() if detached else loss

    return closure


CLOSURES = {
    "plain": cubes,
    "backward": with_backward(cubes),
    "backward, detached": with_backward(cubes, detached=True),
    "backward, without zero_grad": lambda w: (loss := cubes(w), loss.backward())[0],
    "backward in parts": lambda w: sum((part := p**3, part.backward())[0].detach() for p in w),
}


@pytest.mark.parametrize("name", CLOSURES)
def test_values_and_gradients_are_the_closures_at_x(name):
    objective, weight = objective_of(CLOSURES[name])
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    value, gradient = objective.value_and_gradient(2 * x)
    assert (value, gradient.tolist()) == (56, [48.0, 12.0])
    assert torch.equal(weight, 2 * x)
    assert objective.value(x) == 7
    assert torch.equal(weight, x)
    plain = name == "plain"
    assert objective.habits.calls_backward is not plain
    assert objective.passes == Passes(forward=2, backward=1 if plain else 2)


def test_a_value_needs_no_graph_and_a_gradient_has_one_even_without():
    """Once it is known that the closure does not call backward."""
    seen = []
    objective, _ = objective_of(lambda w: (seen.append(torch.is_grad_enabled()), w @ w)[1])
    with torch.no_grad():
        objective.value_and_gradient(torch.ones(2).double())
    objective.value(torch.ones(2).double())
    assert seen == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_resolution_is_the_coarser_one_of_loss_and_parameters(dtype):
    objective, _ = objective_of(lambda w: (w @ w).to(dtype))
    objective.value(torch.ones(2).double())
    assert objective.resolution == round_off(dtype)
    objective, _ = objective_of(lambda w: (w @ w).double(), dtype)
    objective.value(torch.ones(2, dtype=dtype))
    assert objective.resolution == round_off(dtype)


def backward_twice(weight):
    loss = weight @ weight
    loss.backward()
    loss.backward()
    return loss


@torch.no_grad()
def changing(weight):
    weight += 1
    return (weight @ weight).requires_grad_()


def changing_data(weight):
    weight.data = weight.data + 1
    return weight @ weight


WRONG = {
    "calls backward twice": backward_twice,
    "without a graph": lambda w: (w @ w).detach(),
    r"shape \(2,\)": lambda w: w,
    "float": lambda w: (w @ w).item(),
    "int64": lambda w: torch.ones((), dtype=torch.int64),
    "changes the parameters": changing,
    "one that changes": changing_data,
    "does not depend on": lambda w: torch.ones(()).backward(),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_closures_are_explained(message):
    objective, _ = objective_of(WRONG[message])
    with pytest.raises(InputError, match=f"^closure: .*{message}"):
        objective.value_and_gradient(torch.ones(2).double())


def test_a_closure_that_calls_backward_later_on_is_noticed():
    calls = []

    def closure(weight):
        loss = weight @ weight
        calls.append(1)
        if len(calls) > 1:
            loss.backward()
        return loss

    objective, _ = objective_of(closure)
    x = torch.ones(2).double()
    assert objective.value_and_gradient(x)[0] == objective.value(x) == objective.value(x) == 2
    assert objective.habits.calls_backward


def test_a_closure_may_take_derivatives_by_its_inputs():
    """Those of physics-informed losses need a graph also where only the loss is asked for."""
    inputs = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)

    def closure(weight):
        outputs = (weight[0] * inputs).sin() + weight[1]
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        return (slope - 1).square().mean()

    objective, _ = objective_of(closure)
    x = torch.tensor([0.7, 0.1], dtype=torch.float64)
    value, _ = objective.value_and_gradient(x)
    before = objective.passes.total
    assert objective.value(x) == objective.value(x) == value
    assert objective.passes.total == before + 2
    assert objective.habits == (False, True)


def test_other_errors_in_a_closure_are_its_own():
    objective, _ = objective_of(lambda w: w.reshape(5))
    with pytest.raises(RuntimeError, match="shape"):
        objective.value(torch.ones(2).double())


def scaled(factor):
    def closure(weight):
        loss = (weight.exp() + weight**2).sum()
        (factor * loss).backward()
        return loss

    return closure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [2.0, 0.1, 1e-3, 1e-4, 65536.0])
def test_a_gradient_that_is_not_the_losss_is_found(factor, dtype):
    """Two backward passes, clipping, AMP's scaler."""
    objective, weight = objective_of(scaled(factor), dtype)
    x = torch.tensor([0.3, -2.0], dtype=dtype)
    with pytest.raises(InputError, match="that leaves .* times the gradient") as raised:
        check_slope(objective, evaluate(objective, x))
    (found,) = re.findall("leaves (.*) times", str(raised.value))
    assert float(found) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(20))
def test_a_gradient_of_its_own_passes_everywhere(seed, dtype):
    """Also at kinks, at a minimum and on a slope far steeper than the loss is high."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, generator=generator, dtype=dtype)
    functions = (
        lambda w: (w.exp() + w**2).sum(),
        lambda w: w.abs().sum() + w.relu().sum(),
        lambda w: 1e-6 + ((w - x) ** 2).sum(),
        lambda w: 1e-9 + (1e6 * (w - x)).sum() ** 2 + (1e3 * (w[0] - x[0])),
        lambda w: (300 * w).sin().sum() + 2.1,
    )
    for function in functions:
        objective, _ = objective_of(with_backward(function), dtype)
        check_slope(objective, evaluate(objective, x))


def test_parameters_and_gradients_are_as_before_where_a_block_fails():
    objective, weight = objective_of(with_backward(cubes))
    gradient = weight.grad = torch.full((2,), 7.0, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt), unharmed(objective.vector):
        objective.value_and_gradient(torch.ones(2).double())
        raise KeyboardInterrupt
    assert weight.tolist() == [0, 0] and weight.grad is gradient


def test_a_closure_takes_no_arguments():
    with pytest.raises(InputError, match="^closure: .* without arguments"):
        check_closure(lambda batch: batch)
    assert check_closure(closure := lambda batch=1: batch) is closure


def test_outputs_computed_before_are_explained():
    weight = nn.Parameter(torch.ones(2).double())
    loss = (weight**2).sum()
    objective = ClosureObjective(ParameterVector([weight]), lambda: loss)
    with pytest.raises(InputError, match="outputs computed before"):
        objective.value_and_gradient(torch.zeros(2).double())
