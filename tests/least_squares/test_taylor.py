"""Derivatives by inputs against torch's own, by reverse mode, in float64."""

import pytest
import torch
from torch import nn

import twophase
from twophase.errors import InputError
from twophase.least_squares.taylor import ELEMENTWISE


def points(count=5, size=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def network(activation=nn.Tanh, size=3, outputs=2):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(size, 6), nn.Sequential(activation(), nn.Linear(6, 5, bias=False)), activation(),
        nn.Linear(5, outputs),
    ).double()  # fmt: skip


def oracle(model, points):
    """Values, gradients and diagonals of the Hessians, point by point and output by output."""
    value = model(points)
    first, second = (
        torch.zeros(len(points), points.shape[1], value.shape[1]).double() for _ in "12"
    )
    for i, point in enumerate(points):
        for k in range(value.shape[1]):
            of = lambda x, k=k: model(x[None])[0, k]  # noqa: E731
            first[i, :, k] = torch.func.grad(of)(point)
            second[i, :, k] = torch.autograd.functional.hessian(of, point).diagonal()
    return value, first, second


class Squared(nn.Module):
    """A model that is no Sequential."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x) ** 2 + x.prod(dim=1, keepdim=True)


MODELS = {kind.__name__: network(kind) for kind in ELEMENTWISE} | {"no Sequential": Squared()}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_values_and_derivatives_are_those_of_reverse_mode(model):
    x = points()
    expected = oracle(model, x)
    found = twophase.derivatives(model, x)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    for one, other in zip(twophase.derivatives(model, x, order=1), found[:2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("model", [network(), network(nn.GELU), Squared()])
def test_they_have_gradients_by_the_parameters(model):
    x, last = points(), [p for p in model.parameters()][0]

    def mean():
        return sum(part.square().mean() for part in twophase.derivatives(model, x))

    (found,) = torch.autograd.grad(mean(), last)
    step, direction = 1e-6, torch.randn_like(last)
    with torch.no_grad():
        last += step * direction
        above = mean()
        last -= 2 * step * direction
        below = mean()
        last += step * direction
    assert (found * direction).sum().item() == pytest.approx(
        (above - below).item() / (2 * step), rel=1e-6
    )


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("order", (network(), points(), 3)),
        ("points", (network(), points()[0])),
        ("points", (network(), points().long())),
        ("model", (lambda x: x.sum(dim=1), points())),
        ("model", (lambda x: x[:2], points())),
    ],
)
def test_what_is_not_allowed_is_one_line(field, arguments):
    with pytest.raises(InputError) as error:
        twophase.derivatives(*arguments)
    assert error.value.field == field
    assert "\n" not in str(error.value)
