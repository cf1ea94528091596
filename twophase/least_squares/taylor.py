"""A model's derivatives by its inputs, in forward mode: for residuals of differential equations."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from twophase.errors import InputError

# Modules that act on each number alone, as they do on the numbers of a jet's value.
ELEMENTWISE = (
    *(nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, nn.ELU, nn.CELU, nn.SELU, nn.Mish),
    *(nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Identity),
)


def derivatives(model: Callable[..., Any], points: Tensor, order: int = 2) -> tuple[Tensor, ...]:
    """A model's values and unmixed derivatives by each coordinate: (u, du, ddu) for `order` 2.

    With points [N, d] and u = model(points) [N, k], row i from point i alone, du[i, j] = ∂u_i/∂x_ij
    and ddu[i, j] = ∂²u_i/∂x_ij² are [N, d, k]; for `order` 1 the result is (u, du). They can be
    differentiated by the model's parameters.

    A `Sequential` of linear layers and activations is passed through once, with all derivatives
    beside the values (Taylor mode: Griewank and Walther, Evaluating Derivatives, 2nd ed., chapter
    13). A model with a method `derivatives(points, order)` is asked for its own, and any other is
    passed through once for each coordinate, by `torch.func.jvp`. `InputError` where `order`
    is neither 1 nor 2, points are no matrix of real numbers, or the model's values are none.

    >>> points = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    >>> u, du, ddu = derivatives(lambda x: x[:, :1] ** 2 * x[:, 1:], points)
    >>> u.tolist(), du.flatten().tolist(), ddu.flatten().tolist()
    ([[0.5]], [2.0, 0.25], [4.0, 0.0])
    """
    if order not in (1, 2):
        raise InputError("order", order, "1 or 2")
    if not callable(model):
        raise InputError("model", type(model).__name__, "a model, or a function of points")
    if not isinstance(points, Tensor):
        raise InputError("points", type(points).__name__, "a tensor of real numbers [N, d]")
    if points.ndim != 2 or not points.is_floating_point():
        raise InputError("points", f"{points.dtype} {list(points.shape)}", "real numbers [N, d]")
    layers = list(_layers(model))
    if all(isinstance(layer, (nn.Linear, *ELEMENTWISE)) for layer in layers):
        found = _through(layers, points, order)
    elif callable(own := getattr(model, "derivatives", None)):
        found = own(points, order)
    else:
        found = _along_axes(model, points, order)
    if found[0].ndim != 2 or len(found[0]) != len(points):
        raise InputError(
            "model", list(found[0].shape), f"values [N, k] at the {len(points)} points"
        )
    return found


def _forward(function: Callable[[Tensor], Any], x: Tensor, tangent: Tensor) -> tuple[Any, Any]:
    """A function's values at x and their derivatives along a tangent."""
    values, slopes = jvp(function, (x,), (tangent,))  # type: ignore[misc]
    return values, slopes


def _layers(model: Any) -> Iterator[Any]:
    """A model's layers, those of `Sequential`s in it one by one."""
    if type(model) is nn.Sequential:
        for layer in model:
            yield from _layers(layer)
    else:
        yield model


def _through(layers: list[nn.Module], points: Tensor, order: int) -> tuple[Tensor, ...]:
    """Taylor mode: one product with a layer's weights for values and all derivatives."""
    count, size = points.shape
    axes = torch.eye(size, dtype=points.dtype, device=points.device)
    parts = [points[None], axes[:, None].expand(size, count, size)]
    if order == 2:
        parts.append(points.new_zeros(()).expand(size, count, size))
    jet = torch.cat(parts)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            jet = jet @ layer.weight.T
            if layer.bias is not None:
                jet = torch.cat([jet[:1] + layer.bias, jet[1:]])
        else:
            jet = _elementwise(layer, jet, size, order)
    value, first, *second = jet.split([1, *[size] * order])
    return value[0], first.movedim(0, 1), *(part.movedim(0, 1) for part in second)


def _elementwise(function: nn.Module, jet: Tensor, size: int, order: int) -> Tensor:
    """(f(z), f'(z) z', f'(z) z'' + f''(z) z'²) of a jet (z, z', z'')."""
    value, first, *second = jet.split([1, *[size] * order])
    if isinstance(function, nn.Tanh):
        result = torch.tanh(value)
        slope = 1 - result * result
        bend = -2 * result * slope
    else:
        ones = torch.ones_like(value)

        def sloped(z: Tensor) -> tuple[Tensor, Tensor]:
            return _forward(function, z, ones)

        (result, slope), (_, bend) = _forward(sloped, value, ones)
    bent = [slope * part + bend * first * first for part in second]
    return torch.cat([result, slope * first, *bent])


def _along_axes(model: Callable[..., Any], points: Tensor, order: int) -> tuple[Tensor, ...]:
    """Forward mode, one coordinate after the other."""

    def along(axis: Tensor) -> tuple[Tensor, ...]:
        tangent = axis.expand_as(points)

        def first(x: Tensor) -> tuple[Tensor, Tensor]:
            return _forward(model, x, tangent)

        if order == 1:
            return first(points)
        (value, slope), (_, bend) = _forward(first, points, tangent)
        return value, slope, bend

    axes = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    values, *rest = zip(*map(along, axes), strict=True)
    return values[0], *(torch.stack(parts, dim=1) for parts in rest)
