"""Small losses with known minima, and the tools that find their convex regions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor, nn

from twophase.errors import InputError, NonFiniteError, check_integer, check_number

Loss = Callable[[Tensor], Tensor]

# relative size below which a derivative is rounding error and has no sign
_ROUNDING = 1e-12


# ---- losses over one parameter ------------------------------------------------------------------


@dataclass(frozen=True)
class TanhTask:
    """Mean squared error of one layer of tanh units over their common scaling parameter p.

    L(p) = (1/n) Σᵢ (tanh(p xᵢ) − rᵢ)²: each unit has its own input and its own reference value
    (equations 3 and 4 of the paper, section 3).

    Args:
        inputs: xᵢ, shape [n], float64.
        targets: rᵢ, shape [n], float64.

    Calling the task with p of any shape returns L elementwise, in the same shape.

    >>> task = TanhTask(torch.tensor([0.5]), torch.tensor([0.0]))
    >>> task(torch.tensor([0.0, 2.0]))
    tensor([0.0000, 0.5800])
    """

    inputs: Tensor
    targets: Tensor

    def __call__(self, p: Tensor) -> Tensor:
        outputs = torch.tanh(p[..., None] * self.inputs)
        return (outputs - self.targets).square().mean(dim=-1)


def random_tanh_task(generator: torch.Generator, units: int = 100) -> TanhTask:
    """Draw a `TanhTask`: xᵢ uniform in (−0.5, 0.5), rᵢ uniform in (0, 1).

    The paper's text has lost the minus sign of the first interval. 100 units are the paper's.

    Args:
        generator: source of all draws.
        units: number of units, at least 1.

    Raises:
        InputError: `units` is not a whole number of at least 1.

    >>> task = random_tanh_task(torch.Generator().manual_seed(0), units=3)
    >>> task(torch.tensor(0.0)) == task.targets.square().mean()
    tensor(True)
    """
    check_integer("units", units, 1)
    draw = partial(torch.rand, units, generator=generator, dtype=torch.float64)
    return TanhTask(inputs=draw() - 0.5, targets=draw())


@dataclass(frozen=True)
class TwoLayerTanh:
    """Squared error of a two-layer tanh network over its only parameter x.

    L(x) = (y − r)² with y = tanh(h) + c tanh(−2h) and h = tanh(x) (equations 5, 6 and 4 of the
    paper, section 3). Equation 6 is printed with +2h; then L has one minimum for every c ≥ 0, and
    only −2h gives the convex regions and minima that the paper describes. A negative c is the
    formula as printed, with weight −c.

    Args:
        c: weight of the second unit of the output layer.
        r: reference value; 0.1 reproduces the paper's figure 4.

    Calling it with x of any shape returns L elementwise, in the same shape.

    >>> TwoLayerTanh(c=0.5)(torch.tensor([0.0]))
    tensor([0.0100])
    """

    c: float
    r: float = 0.1

    def __call__(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return (torch.tanh(h) + self.c * torch.tanh(-2 * h) - self.r).square()


class OneWeight(nn.Module):
    """A loss of one number x as a network with one weight, whose output is the loss.

    So that a toy can be trained like any network: with one example, any, and the outputs' mean
    (`mean_output`) as loss.

    Args:
        loss: of a tensor, elementwise.
        start: the weight x to begin with; float64.

    Calling it with inputs [K, ...] returns L(x) for each of them, shape [K].

    >>> network = OneWeight(TwoLayerTanh(c=0.55), start=-2.0)
    >>> network(torch.zeros(1, 1)).shape, network.x.item()
    (torch.Size([1]), -2.0)
    """

    def __init__(self, loss: Loss, start: float):
        super().__init__()
        self.loss = loss
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """L(x), shape [K]."""
        return self.loss(self.x).expand(len(inputs))


def one_example() -> tuple[Tensor, Tensor]:
    """Inputs and targets for `OneWeight`, which looks at neither.

    >>> len(one_example()[0])
    1
    """
    return torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def mean_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of the outputs, whatever the targets: the loss of networks like `OneWeight`.

    >>> mean_output(torch.tensor([1.0, 3.0]), torch.zeros(2))
    tensor(2.)
    """
    return outputs.mean()


# ---- losses over a parameter vector -------------------------------------------------------------


@dataclass(frozen=True)
class Quadratic:
    """A quadratic loss whose Hessian, minimizer and minimum are known.

    L(w) = ½ (w − m)ᵀ V diag(λ) Vᵀ (w − m): the columns of the orthogonal V are the Hessian's
    eigenvectors, m is the minimizer, and the minimum is 0. Linear conjugate gradient with exact
    steps finds m in as many steps as there are different eigenvalues.

    Args:
        eigenvalues: λ > 0, shape [n], float64.
        eigenvectors: V, shape [n, n].
        minimizer: m, shape [n].

    Raises:
        InputError: an eigenvalue is not positive; there would be no minimum.

    Calling it with w of shape [..., n] returns L of shape [...]. `start` is the zero vector.

    >>> bowl = Quadratic(torch.tensor([2.0, 8.0]), torch.eye(2), torch.tensor([1.0, 0.0]))
    >>> bowl(torch.tensor([0.0, 1.0])), bowl(bowl.minimizer)
    (tensor(5.), tensor(0.))
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    minimizer: Tensor

    def __post_init__(self):
        if not (self.eigenvalues > 0).all():
            raise InputError("eigenvalues", self.eigenvalues.tolist(), "positive numbers only")

    @classmethod
    def random(cls, eigenvalues: Sequence[float], generator: torch.Generator) -> "Quadratic":
        """Chosen eigenvalues, eigenvectors uniform over all bases, standard normal minimizer.

        Raises `InputError` when there is no eigenvalue, or one is not positive.

        >>> bowl = Quadratic.random([1.0, 9.0], torch.Generator().manual_seed(0))
        >>> torch.linalg.eigvalsh(bowl.hessian)
        tensor([1.0000, 9.0000], dtype=torch.float64)
        """
        n = check_integer("number of eigenvalues", len(eigenvalues), 1)
        minimizer = torch.randn(n, generator=generator, dtype=torch.float64)
        values = torch.as_tensor(eigenvalues, dtype=torch.float64)
        return cls(values, _random_basis(n, generator), minimizer)

    @classmethod
    def log_spaced(
        cls, dimension: int, condition_number: float, generator: torch.Generator
    ) -> "Quadratic":
        """A random `Quadratic` with eigenvalues spaced evenly in their logarithm from 1 to κ.

        Raises `InputError` when κ is below 1, or the dimension below 2.

        >>> Quadratic.log_spaced(3, 100.0, torch.Generator().manual_seed(0)).eigenvalues
        tensor([  1.,  10., 100.], dtype=torch.float64)
        """
        check_integer("dimension", dimension, 2)
        check_number("condition_number", condition_number, minimum=1)
        exponents = torch.linspace(0, 1, dimension, dtype=torch.float64)
        return cls.random((condition_number**exponents).tolist(), generator)

    @property
    def hessian(self) -> Tensor:
        """V diag(λ) Vᵀ, shape [n, n]."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T

    @property
    def minimum(self) -> float:
        """The loss at the minimizer, 0."""
        return 0.0

    @property
    def start(self) -> Tensor:
        """The zero vector, shape [n]."""
        return torch.zeros_like(self.minimizer)

    def __call__(self, w: Tensor) -> Tensor:
        coordinates = (w - self.minimizer) @ self.eigenvectors
        return 0.5 * (self.eigenvalues * coordinates.square()).sum(dim=-1)


@dataclass(frozen=True)
class GaussianWell:
    """An upside-down Gaussian: convex in an ellipse around its one minimum, not convex outside.

    L(w) = 1 − exp(−q/2) with q = wᵀ A w. The minimum, 0, is at the origin, where the Hessian is
    A. The Hessian e^(−q/2) (A − A w wᵀ A) is positive definite exactly where q < 1.

    Along a descent path the gradient norm turns where the curvature along the gradient changes
    its sign, at some q from 1 to (κ + 1)²/(4κ), κ the condition number of A (Kantorovich's
    inequality): on the edge of the convex region where κ = 1, in general outside it.

    Args:
        precision: A, symmetric and positive definite, shape [n, n], float64.

    Raises:
        InputError: an eigenvalue of A is not positive.

    Calling it with w of shape [..., n] returns L of shape [...].

    >>> well = GaussianWell.tilted(4.0, degrees=30.0)
    >>> well(well.minimizer)
    tensor(0., dtype=torch.float64)
    """

    precision: Tensor

    def __post_init__(self):
        eigenvalues = torch.linalg.eigvalsh(self.precision)
        if not (eigenvalues > 0).all():
            raise InputError("precision", self.precision.tolist(), "a positive definite matrix")

    @classmethod
    def tilted(cls, condition_number: float, degrees: float) -> "GaussianWell":
        """A two-dimensional well: eigenvalues 1 and κ, the long axis turned from the first axis.

        Raises `InputError` when κ is below 1.

        >>> GaussianWell.tilted(4.0, degrees=0.0).precision
        tensor([[1., 0.], [0., 4.]], dtype=torch.float64)
        """
        check_number("condition_number", condition_number, minimum=1)
        angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        cos, sin = torch.cos(angle), torch.sin(angle)
        axes = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        return cls(axes @ torch.diag(axes.new_tensor([1.0, condition_number])) @ axes.T)

    @property
    def minimizer(self) -> Tensor:
        """The origin, shape [n]."""
        return torch.zeros_like(self.precision[0])

    @property
    def minimum(self) -> float:
        """The loss at the minimizer, 0."""
        return 0.0

    def squared_distance(self, w: Tensor) -> Tensor:
        """Return q = wᵀ A w for w of shape [..., n]; the loss is convex where q < 1.

        >>> well = GaussianWell.tilted(4.0, degrees=0.0)
        >>> well.squared_distance(torch.tensor([[0.5, 0.0], [0.0, 1.0]], dtype=torch.float64))
        tensor([0.2500, 4.0000], dtype=torch.float64)
        """
        return ((w @ self.precision) * w).sum(dim=-1)

    def __call__(self, w: Tensor) -> Tensor:
        # expm1 keeps the digits of a loss close to its minimum
        return -torch.expm1(-0.5 * self.squared_distance(w))


@dataclass(frozen=True)
class Problem:
    """A loss with its customary starting point and its known minimum.

    Args:
        loss: from w of shape [..., n] to L of shape [...].
        start: where optimizers are customarily started, shape [n].
        minimizer: where the minimum is, shape [n].
        minimum: the loss there.

    A problem is called like its loss.

    >>> problem = beale()
    >>> problem(problem.start), problem(problem.minimizer)
    (tensor(14.2031, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """

    loss: Loss
    start: Tensor
    minimizer: Tensor
    minimum: float

    def __call__(self, w: Tensor) -> Tensor:
        return self.loss(w)


def rosenbrock(dimension: int = 2) -> Problem:
    """The chained Rosenbrock function, a curved valley with a flat floor.

    L(w) = Σᵢ 100 (wᵢ₊₁ − wᵢ²)² + (1 − wᵢ)², i = 1 … n−1, as `scipy.optimize.rosen`. The minimum,
    0, is at (1, …, 1); in four to seven dimensions there is one other local minimum, with
    w₁ < 0 (Kok and Sandrock 2009). The start is Rosenbrock's (−1.2, 1), repeated.

    Args:
        dimension: n, at least 2; 2 is Rosenbrock's own.

    Raises:
        InputError: `dimension` is not a whole number of at least 2.

    >>> valley = rosenbrock(4)
    >>> valley(valley.start), valley(valley.minimizer)
    (tensor(532.4000, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    check_integer("dimension", dimension, 2)
    start = torch.ones(dimension, dtype=torch.float64)
    start[::2] = -1.2
    return Problem(_rosenbrock, start, torch.ones_like(start), 0.0)


def beale() -> Problem:
    """Beale's function of two parameters, a flat valley between steep walls.

    L(x, y) = (1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)². The minimum, 0, is at
    (3, 0.5); the start is (1, 1) (Moré, Garbow and Hillstrom 1981, problem 5).

    >>> beale().minimizer
    tensor([3.0000, 0.5000], dtype=torch.float64)
    """
    start, minimizer = torch.tensor([[1.0, 1.0], [3.0, 0.5]], dtype=torch.float64)
    return Problem(_beale, start, minimizer, 0.0)


# ---- what a loss over one parameter looks like --------------------------------------------------


class Interval(NamedTuple):
    """A stretch of the axis from `lower` to `upper`."""

    lower: float
    upper: float


@dataclass(frozen=True)
class Profile:
    """A loss over one parameter: values and derivatives on a grid, convex regions and minima.

    Made by `profile`. The gradient norm of one parameter is |L′|, and it can turn from rising to
    falling only where L″ changes its sign: in one dimension its peak IS the edge of a convex
    region.

    Attributes:
        x, loss, slope, curvature: grid, L, L′ and L″ on it, each of shape [points], float64.
        convex_regions: the intervals where L″ > 0, in ascending order.
        minima: the local minima inside the range, in ascending order.

    >>> bowl = profile(lambda x: x**2, -1.0, 1.0, points=4)
    >>> bowl.grad_norm
    tensor([2.0000, 0.6667, 0.6667, 2.0000], dtype=torch.float64)
    >>> bowl.convex_regions
    (Interval(lower=-1.0, upper=1.0),)
    """

    x: Tensor
    loss: Tensor
    slope: Tensor
    curvature: Tensor
    convex_regions: tuple[Interval, ...]
    minima: tuple[float, ...]

    @property
    def grad_norm(self) -> Tensor:
        """|L′|, the gradient norm of one parameter, shape [points]."""
        return self.slope.abs()

    @property
    def convex(self) -> Tensor:
        """Where L″ > 0, shape [points], bool."""
        return self.curvature > 0

    def branch(self, side: str) -> "Profile":
        """The part on one side of the only minimum, in the order in which a descent passes it.

        Args:
            side: `"left"` or `"right"` of the minimum.

        Raises:
            InputError: `side` is something else, or there is not exactly one minimum.

        >>> loss = lambda x: x**2
        >>> profile(loss, -1.0, 2.0, points=4).branch("right").x
        tensor([2., 1., 0.], dtype=torch.float64)
        """
        if side not in ("left", "right"):
            raise InputError("side", side, "left, right")
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
    region that reaches the end of the range is cut there.

    Args:
        loss: elementwise in its argument.
        lower, upper: the range.
        points: of the grid, at least 2; 2001 resolve all toys of this module.

    Raises:
        InputError: the range is empty or not finite, or there are too few points.

    >>> wave = profile(torch.cos, 0.0, 6.0)
    >>> wave.convex_regions, wave.minima
    ((Interval(lower=1.570..., upper=4.712...),), (3.141...,))
    """
    check_number("lower", lower)
    check_number("upper", upper, above=lower)
    check_integer("points", points, 2)
    x = torch.linspace(lower, upper, points, dtype=torch.float64)
    values, slope, curvature = derivatives(loss, x)
    stops = _sign_changes(lambda at: derivatives(loss, at)[1], x, slope)
    edges = _sign_changes(lambda at: derivatives(loss, at)[2], x, curvature)
    begins = [lower] * _starts_positive(curvature) + [edge.at for edge in edges if edge.rising]
    ends = [edge.at for edge in edges if not edge.rising] + [upper]
    regions = tuple(Interval(*pair) for pair in zip(begins, ends, strict=False))
    minima = tuple(stop.at for stop in stops if stop.rising)
    return Profile(x, values, slope, curvature, regions, minima)


def derivatives(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return L, L′ and L″ at every element of x, from autograd, each of x's shape.

    Args:
        loss: elementwise in its argument.
        x: any shape.

    >>> derivatives(lambda x: x**3, torch.tensor([2.0]))
    (tensor([8.]), tensor([12.]), tensor([12.]))
    """
    leaf = x.detach().requires_grad_()
    values = loss(leaf)
    # the loss is elementwise, so the gradient of the sum holds every element's own derivative
    slope = _derivative(values, leaf)
    curvature = _derivative(slope, leaf)
    return values.detach(), slope.detach(), curvature.detach()


def is_unimodal(values: Tensor) -> bool:
    """Return whether a sequence first rises strictly and then falls strictly.

    Args:
        values: shape [n]. Only rising, or only falling, is not enough.

    >>> is_unimodal(torch.tensor([1, 3, 2])), is_unimodal(torch.tensor([3, 1, 2]))
    (True, False)
    """
    peak = int(values.argmax())
    steps = values.diff()
    inside = 0 < peak < len(values) - 1
    return inside and bool((steps[:peak] > 0).all() and (steps[peak:] < 0).all())


# ---- what a loss over several parameters looks like ---------------------------------------------


def least_eigenvalue(loss: Loss, points: Tensor) -> Tensor:
    """Return the least eigenvalue of the Hessian at each point; the loss is convex where it is > 0.

    Args:
        loss: from w of shape [..., n] to L of shape [...].
        points: shape [k, n]. The full Hessians, k·n² numbers, are held in memory.

    Returns:
        The eigenvalues, shape [k].

    >>> least_eigenvalue(lambda w: (w**3).sum(dim=-1), torch.tensor([[1.0, -2.0]]))
    tensor([-12.])
    """
    return torch.linalg.eigvalsh(_hessians(loss, points))[:, 0]


@dataclass(frozen=True)
class FlowPath:
    """A steepest-descent path and the curvature that it meets. Made by `gradient_flow`.

    Attributes:
        points: shape [k, n], float64, evenly spaced along the path.
        length: of the path up to each point, shape [k].
        loss, grad_norm: L and ‖g‖, shape [k].
        curvature_along_gradient: gᵀ H g / gᵀ g, shape [k]. Its sign decides whether the norm
            falls.
        least_eigenvalue: of the Hessian, shape [k]. Its sign decides whether the loss is convex.

    >>> well = GaussianWell.tilted(1.0, degrees=0.0)
    >>> path = gradient_flow(well, torch.tensor([2.0, 0.0]))
    >>> abs(path.peak - path.convex_entry) <= 1
    True
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
    """Follow the steepest descent from `start` with infinitely small steps.

    The path is that of the gradient flow dw/dt = −g(w), followed at unit speed, so that flat parts
    cost no more than steep ones: dw/ds = −g/‖g‖ over the arc length s. Along it

        d‖g‖/dt = −gᵀHg/‖g‖    and    d‖g‖/ds = −gᵀHg/gᵀg,

    so the norm falls exactly where the curvature along the gradient is positive; the least
    eigenvalue of H may be negative there.

    Args:
        loss: smooth, from w of shape [..., n] to L of shape [...].
        start: shape [n].
        stop_norm: the path ends where ‖g‖ has fallen to this.
        max_length: or where it is this long.
        points: at which the path is returned, at least 2.

    Raises:
        InputError: the gradient at `start` is zero, or a number is out of range.
        NonFiniteError: the path runs into a place where the loss has no gradient.

    >>> bowl = Quadratic.random([1.0, 1.0], torch.Generator().manual_seed(0))
    >>> path = gradient_flow(bowl, bowl.minimizer + torch.tensor([3.0, 4.0]), stop_norm=1.0)
    >>> f"{path.length[-1]:.6f}"
    '4.000000'
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
    flow = solve_ivp(
        velocity,
        (0.0, max_length),
        start.numpy(),
        method="LSODA",
        events=excess,
        dense_output=True,
        rtol=1e-8,
        atol=1e-10,
    )
    if not np.isfinite(flow.y).all():
        raise NonFiniteError(f"the loss is not finite on the descent from {start.tolist()}")
    length = torch.linspace(0.0, float(flow.t[-1]), points, dtype=torch.float64)
    return _measured(loss, torch.from_numpy(flow.sol(length.numpy()).T), length)


# ---- private ------------------------------------------------------------------------------------


def _random_basis(n: int, generator: torch.Generator) -> Tensor:
    """Orthogonal matrix of uniform (Haar) distribution (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    # without this the distribution would depend on the sign convention of the factorisation
    return q * torch.sign(torch.diagonal(r))


def _rosenbrock(w: Tensor) -> Tensor:
    here, after = w[..., :-1], w[..., 1:]
    return (100 * (after - here.square()).square() + (1 - here).square()).sum(dim=-1)


def _beale(w: Tensor) -> Tensor:
    x, y = w[..., 0], w[..., 1]
    terms = ((1.5, y), (2.25, y.square()), (2.625, y**3))
    return sum((constant - x + x * power).square() for constant, power in terms)


class _SignChange(NamedTuple):
    at: float
    rising: bool


def _signs(values: Tensor) -> Tensor:
    return torch.where(values.abs() > _ROUNDING * values.abs().max(), values.sign(), 0)


def _starts_positive(values: Tensor) -> bool:
    signs = _signs(values)
    return bool((signs[signs != 0][:1] > 0).any())


def _sign_changes(function: Loss, x: Tensor, values: Tensor) -> list[_SignChange]:
    """Where `function` changes its sign; points at which it has none are stepped over."""
    signs = _signs(values)
    known = signs.nonzero().squeeze(1).tolist()
    return [
        _SignChange(_root(function, float(x[a]), float(x[b])), bool(signs[b] > 0))
        for a, b in zip(known, known[1:], strict=False)
        if signs[a] != signs[b]
    ]


def _root(function: Loss, lower: float, upper: float) -> float:
    def at(x: float) -> float:
        return float(function(torch.tensor(x, dtype=torch.float64)))

    return brentq(at, lower, upper, xtol=1e-13)


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


def _measured(loss: Loss, points: Tensor, length: Tensor) -> FlowPath:
    gradients = _gradients(loss, points)
    along = torch.einsum("ki,kij,kj->k", gradients, _hessians(loss, points), gradients)
    return FlowPath(
        points=points,
        length=length,
        loss=loss(points),
        grad_norm=gradients.norm(dim=1),
        curvature_along_gradient=along / gradients.square().sum(dim=1),
        least_eigenvalue=least_eigenvalue(loss, points),
    )
