"""A closure as an objective: what it returns, and what is wrong with it."""

import pytest
import torch
from torch import nn

from twophase.closure import ClosureObjective
from twophase.errors import InputError
from twophase.objective import Passes, round_off
from twophase.parameters import ParameterVector


def objective_of(closure_of, dtype=torch.float64):
    weight = nn.Parameter(torch.zeros(2, dtype=dtype))
    return ClosureObjective(ParameterVector([weight]), lambda: closure_of(weight)), weight


def test_values_and_gradients_are_the_closures_at_x():
    objective, weight = objective_of(lambda w: (w**3).sum())
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert objective.value(x) == 7
    assert torch.equal(weight, x)
    value, gradient = objective.value_and_gradient(2 * x)
    assert (value, gradient.tolist()) == (56, [48.0, 12.0])
    assert torch.equal(weight, 2 * x)
    assert objective.passes == Passes(forward=2, backward=1)
    assert weight.grad is None


def test_a_value_needs_no_graph_and_a_gradient_has_one_even_without():
    seen = []
    objective, _ = objective_of(lambda w: (seen.append(torch.is_grad_enabled()), w @ w)[1])
    objective.value(torch.ones(2).double())
    with torch.no_grad():
        objective.value_and_gradient(torch.ones(2).double())
    assert seen == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_resolution_is_the_coarser_one_of_loss_and_parameters(dtype):
    objective, _ = objective_of(lambda w: (w @ w).to(dtype))
    objective.value(torch.ones(2).double())
    assert objective.resolution == round_off(dtype)
    objective, _ = objective_of(lambda w: (w @ w).double(), dtype)
    objective.value(torch.ones(2, dtype=dtype))
    assert objective.resolution == round_off(dtype)


def backward(weight):
    loss = weight @ weight
    loss.backward()
    return loss


def backward_that_keeps_the_graph(weight):
    loss = weight @ weight
    loss.backward(retain_graph=True)
    return loss


WRONG = {
    "calls backward": backward,
    "without a graph": lambda w: (w @ w).detach(),
    r"shape \(2,\)": lambda w: w,
    "float": lambda w: (w @ w).item(),
    "int64": lambda w: torch.ones((), dtype=torch.int64),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_closures_are_explained(message):
    objective, _ = objective_of(WRONG[message])
    with pytest.raises(InputError, match=f"^closure: .*{message}"):
        objective.value_and_gradient(torch.ones(2).double())


@pytest.mark.parametrize("closure", [backward, backward_that_keeps_the_graph])
def test_a_closure_that_calls_backward_is_found_at_a_trial(closure):
    objective, _ = objective_of(closure)
    with pytest.raises(InputError, match="^closure: 'one that calls backward'"):
        objective.value(torch.ones(2).double())


def test_other_errors_in_a_closure_are_its_own():
    objective, _ = objective_of(lambda w: w.reshape(5))
    with pytest.raises(RuntimeError, match="shape"):
        objective.value(torch.ones(2).double())
