"""The parameters of a model as one flat vector."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from twophase.errors import InputError


class ParameterVector:
    """The parameters that require a gradient, as one flat vector [P] to read and to write.

    Raises `InputError` where there is none, dtypes or devices are mixed, or the dtype is neither
    float32 nor float64 (a line search cannot resolve a minimum in half precision).
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise InputError("params", [], "at least one parameter that requires a gradient")
        kinds = sorted({f"{p.dtype} on {p.device}" for p in self.parameters})
        if len(kinds) > 1:
            raise InputError("params", ", ".join(kinds), "parameters of one dtype on one device")
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError("params", kinds[0], "parameters in float32 or float64")

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of the parameters, float32 or float64."""
        return self.parameters[0].dtype

    def read(self) -> Tensor:
        """A copy of the parameters."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    @torch.no_grad()
    def write(self, x: Tensor) -> None:
        """Set the parameters to the vector `x` [P]."""
        for parameter, part in zip(self.parameters, self._split(x), strict=True):
            parameter.copy_(part.view_as(parameter))

    def gradient(self, loss: Tensor) -> Tensor:
        """Gradient [P] of a scalar; zero where the scalar does not depend on a parameter."""
        return self._flat(torch.autograd.grad(loss, self.parameters, allow_unused=True))

    def gradients(self, loss: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a scalar by a tensor on the way to it, and by the parameters [P]."""
        first, *rest = torch.autograd.grad(loss, [outputs, *self.parameters], allow_unused=True)
        return torch.zeros_like(outputs) if first is None else first, self._flat(rest)

    def hessian_vector(self, loss: Tensor, vector: Tensor) -> Tensor:
        """Hessian of a scalar times a vector v [P]: the gradient of the gradient's inner product.

        H v = ∇(v'∇L), exact, by a second backward pass (Pearlmutter, 1994); zero where the
        scalar's gradient does not depend on a parameter.
        """
        first = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        pairs = [
            (gradient, part.view_as(gradient))
            for gradient, part in zip(first, self._split(vector), strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(vector)
        gradients, parts = zip(*pairs, strict=True)
        return self._flat(torch.autograd.grad(gradients, self.parameters, parts, allow_unused=True))

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return torch.cat(
            [
                torch.zeros_like(p).reshape(-1) if g is None else g.to_dense().reshape(-1)
                for p, g in zip(self.parameters, gradients, strict=True)
            ]
        )

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, [p.numel() for p in self.parameters])
