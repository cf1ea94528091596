"""Parts of a least-squares loss: residuals, the points where they are to vanish, a weight."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vmap

from twophase.errors import InputError, check_call, check_number
from twophase.precision import full_precision


class NoJacobianError(InputError):
    """A Jacobian is asked for that torch.func cannot make."""


# Of a model and points [N, ...]: residuals [N] or [N, k], row i from point i alone.
Residual = Callable[[Any, Any], Tensor]
# Parameters by their names, each with its tangent.
Parametrized = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Term:
    """A part of a least-squares loss, weight · mean(residual(model, points)²).

    `residual` maps the model and points [N, ...] to [N] or [N, k], row i from point i alone, by
    torch's functions, `twophase.derivatives` among them. `points` is a tensor, or a tuple of
    tensors with as many rows, such as points and values there. `InputError` where a weight is not a
    finite number of at least 0, or there are no points.
    """

    residual: Residual
    points: Any
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_call("residual", self.residual, "a function: (model, points)")
        check_number("weight", self.weight, minimum=0)
        tensors = self.tensors
        if not all(isinstance(t, Tensor) and t.ndim > 0 for t in tensors):
            raise InputError("points", type(self.points).__name__, "a tensor, or a tuple of them")
        counts = {len(t) for t in tensors}
        if len(counts) != 1 or 0 in counts:
            raise InputError("points", sorted(counts), "as many rows in all tensors, at least one")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the points."""
        return self.points if isinstance(self.points, tuple) else (self.points,)

    def given(self, tensors: Iterable[Tensor]) -> Any:
        """Tensors in the form in which the residual takes its points."""
        together = tuple(tensors)
        return together if isinstance(self.points, tuple) else together[0]


class Rows(nn.Module):
    """A term as a module, so that torch can call it with other parameters."""

    def __init__(self, model: nn.Module, term: Term):
        super().__init__()
        self.model, self.term = model, term

    def forward(self, *tensors: Tensor) -> Tensor:
        """The residuals [N, k] of some points."""
        try:
            found = self.term.residual(self.model, self.term.given(tensors))
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            allowed = "twophase.derivatives(model, points) for derivatives by the points"
            raise InputError("residual", "torch.autograd.grad by the points", allowed) from error
        count = len(tensors[0])
        if not isinstance(found, Tensor) or found.ndim not in (1, 2) or len(found) != count:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError("residual", shape, f"residuals [{count}] or [{count}, k]")
        return found.reshape(count, -1)

    def slope(self, along: Parametrized, points: tuple[Tensor, ...]) -> Tensor:
        """The derivatives [N, k] of the residuals along tangents of the parameters."""
        names, (values, tangents) = along.keys(), zip(*along.values(), strict=True)

        def rows(*parameters: Tensor) -> Tensor:
            return functional_call(self, dict(zip(names, parameters, strict=True)), points)

        with _derived():
            return jvp(rows, values, tangents)[1]

    @full_precision()
    def width(self, points: tuple[Tensor, ...]) -> int:
        """Residuals k of a point; `InputError` where other points change them."""
        with _derived():
            alone, beside = (self(*(t[:count] for t in points)) for count in (1, 3))
        if not torch.allclose(alone[0], beside[0], rtol=1e-3, atol=1e-5, equal_nan=True):
            found = f"{alone[0].tolist()} for the first point, {beside[0].tolist()} beside others"
            raise InputError("residual", found, "row i from point i alone")
        return alone.shape[1]

    @full_precision()
    def jacobians(
        self, values: dict[str, Tensor], points: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Derivatives [N, k, ...] of the residuals by parameters, and the residuals [N, k]."""

        def rows(values: dict[str, Tensor], *point: Tensor) -> tuple[Tensor, Tensor]:
            found = functional_call(self, values, tuple(t[None] for t in point))[0]
            return found, found.detach()

        each = vmap(jacrev(rows, has_aux=True), in_dims=(None, *[0] * len(points)))
        with _derived():
            return each(values, *points)


@contextmanager
def _derived() -> Iterator[None]:
    """`NoJacobianError` for what a model raises that does not suit torch.func, or single points."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:120]
        found = f"one without a Jacobian ({type(error).__name__}: {reason})"
        allowed = (
            "a model that torch.func takes point by point (no .item(), no branch on values, no "
            "assignment in place), or a second phase such as twophase.SELF_SCALED_BFGS"
        )
        raise NoJacobianError("residual", found, allowed) from error
