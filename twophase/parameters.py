"""The parameters of a model as one flat vector."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from twophase.errors import InputError


def check_held(parameters: Iterable[Tensor]) -> None:
    """`InputError` where one holds no numbers of its own: without a shape, on meta, or expanded."""
    for one in parameters:
        if is_lazy(one):
            raise InputError("params", "those of a lazy module", "a model that was called once")
        if hasattr(one, "placements"):  # a DTensor
            raise InputError("params", "sharded parameters", "whole ones in each process, not FSDP")
        if one.is_meta:
            allowed = "parameters with values, such as model.to_empty(device='cpu') and a start"
            raise InputError("params", "a parameter on meta", allowed)
        if any(step == 0 < size - 1 for step, size in zip(one.stride(), one.shape, strict=True)):
            found = f"an expanded parameter {list(one.shape)}"
            raise InputError("params", found, "one with an element for each number, .contiguous()")


@contextmanager
def given(params: Any) -> Iterator[list[Any]]:
    """Parameters or groups for a torch optimizer, as a list; `InputError` where it takes none."""
    try:
        if isinstance(params, (Tensor, torch.nn.Module)):
            raise TypeError
        yield list(params)
    except InputError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        reason = f" ({error})" if str(error) else ""
        shown = type(params).__name__
        raise InputError("params", shown, f"tensors, model.parameters(){reason}") from error


class ParameterVector:
    """The parameters that require a gradient, as one flat vector [P] to read and to write.

    Beside them the model's buffers, such as the statistics of BatchNorm, which no optimizer sees
    but a loss depends on.

    Raises `InputError` where there is none, one has no shape yet, dtypes or devices are mixed, or
    the dtype is neither float32 nor float64 (a line search cannot resolve a minimum in half
    precision).
    """

    def __init__(self, parameters: Iterable[Tensor], buffers: Iterable[Tensor] = ()):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.buffers = list(buffers)
        if not self.parameters:
            raise InputError("params", [], "at least one parameter that requires a gradient")
        # meta tensors are no mistake of those who only ask what an evaluation reads
        check_held(p for p in self.parameters if not p.is_meta)
        kinds = sorted({f"{p.dtype} on {p.device}" for p in self.parameters})
        if len(kinds) > 1:
            raise InputError("params", ", ".join(kinds), "parameters of one dtype on one device")
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError("params", kinds[0], "parameters in float32 or float64")

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of the parameters, float32 or float64."""
        return self.parameters[0].dtype

    @property
    def shapes(self) -> list[list[int]]:
        """Those of the parameters."""
        return [list(p.shape) for p in self.parameters]

    def read(self) -> Tensor:
        """A copy of the parameters."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    @torch.no_grad()
    def write(self, x: Tensor) -> None:
        """Set the parameters to the vector `x` [P]."""
        for parameter, part in zip(self.parameters, self._split(x), strict=True):
            parameter.copy_(part.view_as(parameter))

    def read_buffers(self) -> list[Tensor]:
        """Copies of the buffers."""
        return [buffer.detach().clone() for buffer in self.buffers]

    @torch.no_grad()
    def write_buffers(self, values: Sequence[Tensor]) -> None:
        """Set the buffers to what `read_buffers` has returned; none leave them as they are."""
        for buffer, value in zip(self.buffers, values or self.buffers, strict=True):
            if not torch.equal(buffer, value):  # what is expanded cannot be written to
                buffer.copy_(value)

    def taken(self, saved: Any, field: str = "state") -> Tensor:
        """A vector [P] that is given, on the parameters' device; `InputError` for anything else."""
        size, first = sum(p.numel() for p in self.parameters), self.parameters[0]
        if not isinstance(saved, Tensor) or (saved.dtype, saved.shape) != (self.dtype, (size,)):
            found = type(saved).__name__
            if isinstance(saved, Tensor):
                found = f"{saved.dtype} {list(saved.shape)}"
            raise InputError(field, found, f"a vector of {self.dtype} [{size}]")
        return saved.to(first.device)

    def taken_buffers(self, saved: Any) -> list[Tensor]:
        """Buffers from a state, on their device; `InputError` for others than the model has."""
        shapes = [(buffer.dtype, buffer.shape) for buffer in self.buffers]
        found = [
            (value.dtype, value.shape) if isinstance(value, Tensor) else type(value).__name__
            for value in saved
        ]
        if found and found != shapes:
            raise InputError("state", f"buffers {found}", f"those of the model, {shapes}")
        return [value.to(own.device) for value, own in zip(saved, self.buffers, strict=False)]

    def write_gradient(self, gradient: Tensor) -> None:
        """Set the parameters' `grad` to the parts of a vector [P], as `backward` would."""
        for parameter, part in zip(self.parameters, self._split(gradient), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def read_gradient(self) -> Tensor:
        """The parts in the parameters' `grad` as a vector [P]; zero where there is none."""
        return _flat(
            torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters
        )

    def add_gradient(self, total: Tensor, loss: Tensor, *outputs: Tensor) -> list[Tensor]:
        """Add the gradient of a scalar to a vector [P]; returns its gradients by some outputs.

        It is zero where the scalar does not depend on a parameter.
        """
        inputs = [*outputs, *self.parameters]
        found = torch.autograd.grad(loss, inputs, materialize_grads=True)
        own, shares = found[: len(outputs)], found[len(outputs) :]
        for part, share in zip(self._split(total), shares, strict=True):
            part.add_(share.to_dense().reshape(-1))
        return list(own)

    def hessian_vector(self, loss: Tensor, vector: Tensor) -> Tensor:
        """Hessian of a scalar L times a vector v [P], H v = ∇(v'∇L), exact (Pearlmutter, 1994)."""
        first = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        parts = zip(first, self._split(vector), strict=True)
        pairs = [(g, part.view_as(g)) for g, part in parts if g is not None and g.requires_grad]
        if not pairs:
            return torch.zeros_like(vector)
        outputs, weights = zip(*pairs, strict=True)
        return _flat(torch.autograd.grad(outputs, self.parameters, weights, materialize_grads=True))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, [p.numel() for p in self.parameters])


@contextmanager
def unharmed(vector: ParameterVector) -> Iterator[Tensor]:
    """The parameters [P]; where an exception ends the block, they are the same again.

    So are their `grad` and the buffers.
    """
    x, gradients = vector.read(), [p.grad for p in vector.parameters]
    buffers = vector.read_buffers()
    try:
        yield x
    except BaseException:
        vector.write(x)
        vector.write_buffers(buffers)
        for parameter, gradient in zip(vector.parameters, gradients, strict=True):
            parameter.grad = gradient
        raise


def _flat(gradients: Iterable[Tensor]) -> Tensor:
    return torch.cat([gradient.to_dense().reshape(-1) for gradient in gradients])
