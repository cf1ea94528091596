"""Small losses with known minima: the paper's tasks of one parameter, and classical test functions.

A loss maps p of any shape to losses of that shape (one parameter), or w of shape [..., n] to losses
of shape [...] (a vector of parameters). A number out of range raises `InputError` everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from twophase.errors import InputError, check_integer, check_number

Loss = Callable[[Tensor], Tensor]


# ---- losses over one parameter ------------------------------------------------------------------


@dataclass(frozen=True)
class TanhTask:
    """Mean squared error of one layer of tanh units over their common scaling parameter p.

    L(p) = (1/n) Σᵢ (tanh(p xᵢ) − rᵢ)² with inputs xᵢ and targets rᵢ, both of shape [n], float64
    (equations 3 and 4 of the paper, section 3).
    """

    inputs: Tensor
    targets: Tensor

    def __call__(self, p: Tensor) -> Tensor:
        outputs = torch.tanh(p[..., None] * self.inputs)
        return (outputs - self.targets).square().mean(dim=-1)


def random_tanh_task(generator: torch.Generator, units: int = 100) -> TanhTask:
    """Draw a `TanhTask`: xᵢ uniform in (−0.5, 0.5), rᵢ uniform in (0, 1).

    The paper's text has lost the minus sign of the first interval. 100 units are the paper's.
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
    formula as printed, with weight −c. The reference value r = 0.1 reproduces the paper's figure 4.
    """

    c: float
    r: float = 0.1

    def __call__(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return (torch.tanh(h) + self.c * torch.tanh(-2 * h) - self.r).square()


class OneWeight(nn.Module):
    """A loss of one number x as a network with one weight, whose outputs [K] are all the loss.

    So that a toy can be trained like any network: on `one_example`, with `mean_output` as loss.
    The weight x begins at `start`, in float64.

    >>> network = OneWeight(TwoLayerTanh(c=0.55), start=-2.0)
    >>> inputs, targets = one_example()
    >>> mean_output(network(inputs), targets) == network.loss(network.x)
    tensor(True)
    """

    def __init__(self, loss: Loss, start: float):
        super().__init__()
        self.loss = loss
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.loss(self.x).expand(len(inputs))


def one_example() -> tuple[Tensor, Tensor]:
    """Inputs and targets for `OneWeight`, which looks at neither."""
    return torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def mean_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of the outputs, whatever the targets: the loss of networks like `OneWeight`."""
    return outputs.mean()


# ---- losses over a parameter vector -------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A loss with its customary start [n], its known minimizer [n] and minimum; called like it."""

    loss: Loss
    start: Tensor
    minimizer: Tensor
    minimum: float

    def __call__(self, w: Tensor) -> Tensor:
        return self.loss(w)


@dataclass(frozen=True)
class Quadratic:
    """A quadratic loss whose Hessian, minimizer and minimum are known.

    L(w) = ½ (w − m)ᵀ V diag(λ) Vᵀ (w − m): the columns of the orthogonal V [n, n] are the Hessian's
    eigenvectors, λ [n] its eigenvalues, m [n] is the minimizer, and the minimum is 0. Linear
    conjugate gradient with exact steps finds m in as many steps as there are different eigenvalues.
    All are positive: else there would be no minimum.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    minimizer: Tensor
    minimum = 0.0

    def __post_init__(self):
        if not (self.eigenvalues > 0).all():
            raise InputError("eigenvalues", self.eigenvalues.tolist(), "positive numbers only")

    @classmethod
    def random(cls, eigenvalues: Sequence[float], generator: torch.Generator) -> "Quadratic":
        """Chosen eigenvalues, eigenvectors uniform over all bases, standard normal minimizer."""
        n = check_integer("number of eigenvalues", len(eigenvalues), 1)
        minimizer = torch.randn(n, generator=generator, dtype=torch.float64)
        values = torch.as_tensor(eigenvalues, dtype=torch.float64)
        return cls(values, _random_basis(n, generator), minimizer)

    @classmethod
    def log_spaced(
        cls, dimension: int, condition_number: float, generator: torch.Generator
    ) -> "Quadratic":
        """`random` with eigenvalues spaced evenly in their logarithm from 1 to κ, at least 1."""
        check_integer("dimension", dimension, 2)
        check_number("condition_number", condition_number, minimum=1)
        exponents = torch.linspace(0, 1, dimension, dtype=torch.float64)
        return cls.random((condition_number**exponents).tolist(), generator)

    @property
    def hessian(self) -> Tensor:
        """V diag(λ) Vᵀ, shape [n, n]."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T

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

    L(w) = 1 − exp(−q/2) with q = wᵀ A w and the `precision` A [n, n], symmetric and positive
    definite. The minimum, 0, is at the origin, where the Hessian is A. The Hessian
    e^(−q/2) (A − A w wᵀ A) is positive definite exactly where q < 1.

    Along a descent path the gradient norm turns at some q from 1 to (κ + 1)²/(4κ), κ the condition
    number of A (Kantorovich's inequality): where κ = 1 on the edge of the convex region, in
    general outside it.
    """

    precision: Tensor
    minimum = 0.0

    def __post_init__(self):
        if not (torch.linalg.eigvalsh(self.precision) > 0).all():
            raise InputError("precision", self.precision.tolist(), "a positive definite matrix")

    @classmethod
    def tilted(cls, condition_number: float, degrees: float) -> "GaussianWell":
        """Two dimensions, eigenvalues 1 and κ >= 1, the long axis turned from the first axis."""
        check_number("condition_number", condition_number, minimum=1)
        angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        cos, sin = torch.cos(angle), torch.sin(angle)
        axes = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        return cls(axes @ torch.diag(axes.new_tensor([1.0, condition_number])) @ axes.T)

    @property
    def minimizer(self) -> Tensor:
        """The origin, shape [n]."""
        return torch.zeros_like(self.precision[0])

    def squared_distance(self, w: Tensor) -> Tensor:
        """q = wᵀ A w for w of shape [..., n]; the loss is convex where q < 1."""
        return ((w @ self.precision) * w).sum(dim=-1)

    def __call__(self, w: Tensor) -> Tensor:
        # expm1 keeps the digits of a loss close to its minimum
        return -torch.expm1(-0.5 * self.squared_distance(w))


def rosenbrock(dimension: int = 2) -> Problem:
    """The chained Rosenbrock function, a curved valley with a flat floor.

    L(w) = Σᵢ 100 (wᵢ₊₁ − wᵢ²)² + (1 − wᵢ)², i = 1 … n−1, as `scipy.optimize.rosen`. The minimum,
    0, is at (1, …, 1); in four to seven dimensions there is one other local minimum, with
    w₁ < 0 (Kok and Sandrock 2009). The start is Rosenbrock's (−1.2, 1), repeated.
    """
    check_integer("dimension", dimension, 2)
    start = torch.ones(dimension, dtype=torch.float64)
    start[::2] = -1.2
    return Problem(_rosenbrock, start, torch.ones_like(start), 0.0)


def _rosenbrock(w: Tensor) -> Tensor:
    here, after = w[..., :-1], w[..., 1:]
    return (100 * (after - here.square()).square() + (1 - here).square()).sum(dim=-1)


def _random_basis(n: int, generator: torch.Generator) -> Tensor:
    """Orthogonal matrix of uniform (Haar) distribution (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    # without this the distribution would depend on the sign convention of the factorisation
    return q * torch.sign(torch.diagonal(r))
