"""Objectives: values, gradients, passes, and what a start must satisfy."""

import pytest
import torch

from twophase.errors import InputError, NonFiniteError
from twophase.objective import (
    FunctionObjective,
    Passes,
    dot,
    evaluate,
    norm,
    round_off,
    start,
)


def test_inner_products_do_not_underflow():
    tiny = torch.full((4,), 1e-30)
    assert dot(tiny, tiny) == pytest.approx(4e-60)


def test_a_start_that_does_not_repeat_itself_is_refused():
    generator = torch.Generator().manual_seed(0)
    noisy = FunctionObjective(lambda x: (x**2).sum() + torch.rand((), generator=generator))
    with pytest.raises(InputError, match="at the same parameters"):
        start(noisy, torch.ones(2, dtype=torch.float64))


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match="gradient norm: nan"):
        start(FunctionObjective(lambda x: x.abs().sqrt().sum() * 0), torch.zeros(1).double())


def test_a_function_is_its_value_and_autograds_gradient():
    def function(x):
        return (x**4).sum() + x.prod()

    objective = FunctionObjective(function)
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    value, gradient = objective.value_and_gradient(x)
    assert value == objective.value(x) == function(x).item()
    torch.testing.assert_close(gradient, 4 * x**3 + x.prod() / x)
    hessian = torch.autograd.functional.hessian(function, x)
    torch.testing.assert_close(objective.hessian_vector(x, x + 1), hessian @ (x + 1))
    assert objective.passes == Passes(forward=2, backward=1, hessian_vector=1)
    assert not x.requires_grad


def test_work_is_counted_in_sweeps():
    """A backward pass is 2 sweeps; a product is 9, the backward pass of forward and backward."""
    assert Passes(forward=14, backward=1).total == 16
    assert Passes(hessian_vector=2).total == 18


def test_the_resolution_is_that_of_the_values_dtype():
    for dtype in (torch.float32, torch.float64):
        point = evaluate(FunctionObjective(lambda x: x @ x), torch.ones(2, dtype=dtype))
        assert point.resolution == round_off(dtype) == 4 * torch.finfo(dtype).eps


def test_a_point_is_evaluated_only_if_it_is_finite():
    for function in (lambda x: x.log().sum(), lambda x: (x + 1).sqrt().sum()):
        objective = FunctionObjective(function)  # the value, or the gradient alone
        x = -torch.ones(1, dtype=torch.float64)
        value, gradient = objective.value_and_gradient(x)
        assert not abs(value) + norm(gradient) < float("inf")
        with pytest.raises(NonFiniteError, match="^(loss|gradient norm): (nan|inf) is not allowed"):
            evaluate(objective, x)


def test_a_start_is_a_point_and_one_more_forward_pass():
    objective = FunctionObjective(lambda x: x @ x)
    x = torch.ones(2, dtype=torch.float64)
    point = start(objective, x)
    assert (point.value, point.gradient.tolist()) == (2.0, [2.0, 2.0])
    assert objective.passes == Passes(forward=2, backward=1)
