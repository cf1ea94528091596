"""The parameters of a model as one vector: order, gradients and second derivatives."""

import pytest
import torch
from torch import nn

import twophase
from twophase.errors import InputError
from twophase.parameters import ParameterVector


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(dim=1)).double()


def test_the_vector_is_the_parameters_in_order():
    model = classifier()
    vector = ParameterVector(model.parameters())
    x = vector.read()
    assert torch.equal(x, nn.utils.parameters_to_vector(model.parameters()).detach())
    vector.write(x + 1)
    assert torch.equal(vector.read(), x + 1)
    assert torch.equal(x, vector.read() - 1), "read must copy"


def test_gradients_are_autograds_with_zeros_for_what_is_unused():
    model, spare = classifier(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    inputs = torch.ones(5, 4, dtype=torch.float64)
    vector = ParameterVector([*model.parameters(), spare])
    expected = torch.autograd.grad(model(inputs).square().sum(), model.parameters())
    expected = torch.cat([*(g.reshape(-1) for g in expected), torch.zeros(2)])
    total = torch.zeros_like(expected)
    assert vector.add_gradient(total, model(inputs).square().sum()) == []
    torch.testing.assert_close(total, expected)
    outputs = model(inputs)
    (slope,) = vector.add_gradient(total, outputs.square().sum(), outputs)
    torch.testing.assert_close(slope, 2 * outputs)
    torch.testing.assert_close(total, 2 * expected)
    (slope,) = vector.add_gradient(total.zero_(), spare.sum(), outputs)
    assert not slope.any() and total.sum() == 2


def test_hessian_vector_products_are_the_dense_hessians():
    x = torch.tensor([[1.0, 2.0], [-0.5, 3.0]], dtype=torch.float64)
    first, second = (nn.Parameter(part) for part in x)

    def loss(a, b):
        return (a.prod() * b).pow(2).sum() + (a - b).sin().sum()

    flat = torch.autograd.functional.hessian(lambda v: loss(v[:2], v[2:]), x.reshape(-1))
    v = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = ParameterVector([first, second]).hessian_vector(loss(first, second), v)
    torch.testing.assert_close(found, flat @ v)


def test_frozen_parameters_are_no_part_of_the_vector():
    model = classifier()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    vector = ParameterVector(model.parameters())
    vector.write(torch.zeros_like(vector.read()))
    assert len(vector.read()) == 3 * 6 + 3
    assert torch.equal(model[0].weight, before) and not model[2].weight.any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "at least one parameter"),
        ([nn.Parameter(torch.ones(2), requires_grad=False)], "at least one parameter"),
        ([nn.Parameter(torch.ones(2).half())], "float32 or float64"),
        ([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())], "one dtype"),
    ],
)
def test_parameters_that_are_no_vector_are_refused(parameters, message):
    with pytest.raises(InputError, match=f"^params: .*{message}"):
        ParameterVector(parameters)


@pytest.mark.parametrize("optimizer", [twophase.TwoPhase, twophase.SecondPhase])
@pytest.mark.parametrize(
    ("params", "said"),
    [
        (None, "'NoneType' is not allowed; use tensors, model.parameters()"),
        ([], "optimizer got an empty parameter list"),
        (nn.Linear(1, 1), "'Linear' is not allowed"),
        (nn.Sequential(nn.Linear(1, 1)), "'Sequential' is not allowed"),
        (nn.Parameter(torch.ones(2)), "'Parameter' is not allowed"),
        ([torch.ones(2, requires_grad=True) * 2], "can't optimize a non-leaf Tensor"),
        ([3], "can only optimize Tensors"),
        (list(nn.Linear(1, 1, device="meta").parameters()), "a parameter on meta"),
        ([nn.Parameter(torch.zeros(1, 1).expand(1, 3))], r"an expanded parameter \[1, 3\]"),
    ],
)
def test_optimizers_say_what_they_take(optimizer, params, said):
    with pytest.raises(InputError, match=f"^params: .*{said}"):
        optimizer(params)


def test_a_model_without_numbers_is_refused_before_it_is_moved():
    with pytest.raises(InputError, match="^params: 'a parameter on meta'"):
        twophase.fit(nn.Linear(1, 1, device="meta"), (torch.ones(2, 1), torch.ones(2, 1)), epochs=1)


def test_a_parameter_with_one_row_is_not_expanded():
    strided = torch.zeros(3).as_strided((1, 3), (0, 1))
    ParameterVector([nn.Parameter(strided)])
