"""What a loss looks like: its convex regions and minima, its descent path and curvature there."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor

from twophase.errors import InputError, NonFiniteError, check_choice, check_integer, check_number
from twophase.problems.toys import Loss

# relative size below which a derivative is rounding error and has no sign
_ROUNDING = 1e-12


# ---- one parameter ------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A stretch of the axis from `lower` to `upper`."""

    lower: float
    upper: float


@dataclass(frozen=True)
class Profile:
    """A loss over one parameter: L, L′ and L″ on the grid `x`, each of shape [points], float64.

    Made by `profile`, with the intervals where L″ > 0 and the local minima inside the range, both
    ascending. The gradient norm of one parameter is |L′|, and it can turn from rising to falling
    only where L″ changes its sign: in one dimension its peak IS the edge of a convex region.
    """

    x: Tensor
    loss: Tensor
    slope: Tensor
    curvature: Tensor
    convex_regions: tuple[Interval, ...]
    minima: tuple[float, ...]

    @property
    def grad_norm(self) -> Tensor:
        """|L′|, shape [points]."""
        return self.slope.abs()

    @property
    def convex(self) -> Tensor:
        """Where L″ > 0, shape [points], bool."""
        return self.curvature > 0

    def branch(self, side: str) -> "Profile":
        """The part on the "left" or "right" side of the minimum, in the order of a descent.

        Another side, or not exactly one minimum, raises `InputError`.
        """
        check_choice("side", side, ("left", "right"))
        if len(self.minima) != 1:
            raise InputError("minima", self.minima, "exactly one minimum to split at")
        (minimum,) = self.minima
        chosen = self.x <= minimum if side == "left" else self.x >= minimum
        order = chosen.nonzero().squeeze(1)
        order = order if side == "left" else order.flip(0)
        grids = (self.x[order], self.loss[order], self.slope[order], self.curvature[order])
        return Profile(*grids, self.convex_regions, self.minima)


def profile(loss: Loss, lower: float, upper: float, points: int = 2001) -> Profile:
    """Evaluate a loss over one parameter on a grid and find its convex regions and minima.

    Both are found as sign changes of L″ and L′ (from autograd) between grid points and refined by
    Brent's root finding to about 1e-12. A region or minimum narrower than the grid spacing can be
    missed; a point where L′ touches zero without changing its sign is not a minimum. A convex
    region that reaches the end of the range is cut there. 2001 points resolve all toys; fewer than
    2, or a range that is empty or not finite, raise `InputError`.
    """
    check_number("lower", lower)
    check_number("upper", upper, above=lower)
    check_integer("points", points, 2)
    x = torch.linspace(lower, upper, points, dtype=torch.float64)
    values, slope, curvature = derivatives(loss, x)
    stops = _sign_changes(lambda at: derivatives(loss, at)[1], x, slope)
    edges = _sign_changes(lambda at: derivatives(loss, at)[2], x, curvature)
    starts_convex = not edges[0].rising if edges else bool((_signs(curvature) > 0).any())
    begins = [lower] * starts_convex + [edge.at for edge in edges if edge.rising]
    ends = [edge.at for edge in edges if not edge.rising] + [upper]
    regions = tuple(Interval(*pair) for pair in zip(begins, ends, strict=False))
    minima = tuple(stop.at for stop in stops if stop.rising)
    return Profile(x, values, slope, curvature, regions, minima)


def derivatives(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L, L′ and L″ of an elementwise loss at every element of x, from autograd, of x's shape."""
    leaf = x.detach().requires_grad_()
    values = loss(leaf)
    # the loss is elementwise, so the gradient of the sum holds every element's own derivative
    slope = _derivative(values, leaf)
    curvature = _derivative(slope, leaf)
    return values.detach(), slope.detach(), curvature.detach()


def is_unimodal(values: Tensor) -> bool:
    """Whether a sequence [n] first rises strictly and then falls strictly; it must do both."""
    peak = int(values.argmax())
    steps = values.diff()
    inside = 0 < peak < len(values) - 1
    return inside and bool((steps[:peak] > 0).all() and (steps[peak:] < 0).all())


class _SignChange(NamedTuple):
    at: float
    rising: bool


def _signs(values: Tensor) -> Tensor:
    return torch.where(values.abs() > _ROUNDING * values.abs().max(), values.sign(), 0)


def _sign_changes(function: Loss, x: Tensor, values: Tensor) -> list[_SignChange]:
    """Where `function` changes its sign; points at which it has none are stepped over."""

    def value(at: float) -> float:
        return float(function(torch.tensor(at, dtype=torch.float64)))

    signs = _signs(values)
    known = signs.nonzero().squeeze(1).tolist()
    return [
        _SignChange(brentq(value, float(x[a]), float(x[b]), xtol=1e-13), bool(signs[b] > 0))
        for a, b in zip(known, known[1:], strict=False)
        if signs[a] != signs[b]
    ]


# ---- several parameters -------------------------------------------------------------------------


def least_eigenvalue(loss: Loss, points: Tensor) -> Tensor:
    """The least eigenvalue [k] of the Hessian, in k·n² numbers of memory, at points [k, n]."""
    return torch.linalg.eigvalsh(_hessians(loss, points))[:, 0]


@dataclass(frozen=True)
class FlowPath:
    """A steepest-descent path and the curvature that it meets. Made by `gradient_flow`.

    The points [k, n], float64, are evenly spaced along the path; all else has shape [k]: the length
    of the path up to each point, L, ‖g‖, gᵀ H g / gᵀ g, and the least eigenvalue of H.
    """

    points: Tensor
    length: Tensor
    loss: Tensor
    grad_norm: Tensor
    curvature_along_gradient: Tensor
    least_eigenvalue: Tensor

    @property
    def convex(self) -> Tensor:
        """Where the Hessian is positive definite, shape [k], bool."""
        return self.least_eigenvalue > 0

    @property
    def peak(self) -> int:
        """The index of the largest gradient norm."""
        return int(self.grad_norm.argmax())

    @property
    def convex_entry(self) -> int:
        """The index from which on every point is in a convex region; k where there is none."""
        outside = (~self.convex).nonzero()
        return int(outside[-1]) + 1 if len(outside) else 0


def gradient_flow(
    loss: Loss,
    start: Tensor,
    stop_norm: float = 1e-3,
    max_length: float = 100.0,
    points: int = 401,
) -> FlowPath:
    """Follow the steepest descent of a smooth loss from `start` [n] with infinitely small steps.

    The path is that of the gradient flow dw/dt = −g(w), followed at unit speed, so that flat parts
    cost no more than steep ones: dw/ds = −g/‖g‖ over the arc length s. Along it

        d‖g‖/dt = −gᵀHg/‖g‖    and    d‖g‖/ds = −gᵀHg/gᵀg,

    so the norm falls exactly where the curvature along the gradient is positive; the least
    eigenvalue of H may be negative there. The path ends where ‖g‖ has fallen to `stop_norm`, or
    where it is `max_length` long, and is returned at `points` points, at least 2.

    Raises:
        InputError: the gradient at `start` is zero, or a number is out of range.
        NonFiniteError: the path runs into a place where the loss has no gradient.
    """
    check_number("stop_norm", stop_norm, above=0)
    check_number("max_length", max_length, above=0)
    check_integer("points", points, 2)
    start = start.to(torch.float64)
    if not _gradients(loss, start).norm() > 0:
        raise InputError("start", start.tolist(), "a point where the gradient is not zero")

    def gradient(w: np.ndarray) -> np.ndarray:
        return _gradients(loss, torch.from_numpy(w)).numpy()

    def velocity(_length: float, w: np.ndarray) -> np.ndarray:
        g = gradient(w)
        return -g / np.linalg.norm(g)

    def excess(_length: float, w: np.ndarray) -> float:
        return float(np.linalg.norm(gradient(w))) - stop_norm

    excess.terminal, excess.direction = True, -1
    # LSODA, because the narrow floor of a valley makes the flow stiff
    exact = {"method": "LSODA", "rtol": 1e-8, "atol": 1e-10, "dense_output": True}
    flow = solve_ivp(velocity, (0.0, max_length), start.numpy(), events=excess, **exact)
    if not np.isfinite(flow.y).all():
        raise NonFiniteError(f"the loss is not finite on the descent from {start.tolist()}")
    length = torch.linspace(0.0, float(flow.t[-1]), points, dtype=torch.float64)
    path = torch.from_numpy(flow.sol(length.numpy()).T)
    gradients, hessians = _gradients(loss, path), _hessians(loss, path)
    along = torch.einsum("ki,kij,kj->k", gradients, hessians, gradients)
    return FlowPath(
        points=path,
        length=length,
        loss=loss(path),
        grad_norm=gradients.norm(dim=1),
        curvature_along_gradient=along / gradients.square().sum(dim=1),
        least_eigenvalue=torch.linalg.eigvalsh(hessians)[:, 0],
    )


def _derivative(values: Tensor, leaf: Tensor) -> Tensor:
    """Gradient of the sum of `values`, zero where they do not depend on `leaf`."""
    if not values.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(values.sum(), leaf, create_graph=True, materialize_grads=True)
    return gradient


def _gradients(loss: Loss, points: Tensor) -> Tensor:
    leaf = points.detach().requires_grad_()
    return _derivative(loss(leaf), leaf).detach()


def _hessians(loss: Loss, points: Tensor) -> Tensor:
    leaf = points.detach().requires_grad_()
    columns = _derivative(loss(leaf), leaf).unbind(dim=-1)
    return torch.stack([_derivative(column, leaf).detach() for column in columns], dim=-2)
