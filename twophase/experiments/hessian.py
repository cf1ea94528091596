"""The curvature of a loss: how convex it is at a point, from products of its Hessian and vectors.

The Hessian [P, P] itself is never formed. Lanczos runs from random vectors give its extreme
eigenvalues, with bounds of their errors, and a quadrature for sums over all its eigenvalues.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twophase.errors import InputError, NonFiniteError, check_integer, check_number
from twophase.objective import TwiceDifferentiable, dot, evaluate, norm, round_off

Product = Callable[[Tensor], Tensor]

# Vectors [P] that a Lanczos run keeps before it restarts.
BASIS_SIZE = 48

# Products before which a run is not believed. Most eigenvalues of a network lie near 0, and for a
# few steps the smallest Ritz value rests among them, with a small residual.
LEAST_PRODUCTS = 20

# Residual, relative to its eigenvalue, from which on a Ritz pair is left out of the random probes:
# its eigenvalue is then known to about the square of that.
DEFLATED = 1e-2


class Extremes(NamedTuple):
    """The smallest and the largest eigenvalue of a Hessian, each with a bound of its error.

    An eigenvalue lies within `smallest_error` of `smallest`. But for rounding, the smallest one of
    all is at most `smallest`, the curvature along `smallest_vector`: that a Hessian has negative
    eigenvalues is certain even before convergence. Likewise for the largest, from below.
    Eigenvalues and errors are losses per squared unit of parameter; the vectors [P] have norm 1.
    `products` counts Hessian–vector products; `converged`: both errors met the tolerance, after at
    least 20 products or in a space that holds every eigenvalue.

    >>> from twophase.objective import FunctionObjective
    >>> saddle = FunctionObjective(lambda x: x[0] ** 2 - x[1] ** 2)
    >>> result = extremes(saddle, torch.ones(2).double())
    >>> round(result.smallest, 12), round(result.largest, 12), result.products
    (-2.0, 2.0, 2)
    """

    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    smallest_vector: Tensor
    largest_vector: Tensor
    products: int
    converged: bool


class NegativeShare(NamedTuple):
    """A share of negative curvature, in 0..1, and the two parts of its error.

    `deviation` is one standard deviation over random probes, `truncation` the largest change of
    the share over the last quarter of the Lanczos steps.

    >>> NegativeShare(0.25, deviation=0.03, truncation=0.04).error
    0.05
    """

    share: float
    deviation: float
    truncation: float

    @property
    def error(self) -> float:
        """Deviation and truncation, the root of their summed squares."""
        return float(np.hypot(self.deviation, self.truncation))


class Convexity(StrEnum):
    """What the smallest eigenvalue says of a loss at a point."""

    NEGATIVE = "clearly negative"
    NOT_NEGATIVE = "not clearly negative"
    UNDECIDED = "undecided"


class Curvature(NamedTuple):
    """The convexity audit of one point: numbers only, a row of a table.

    Loss and gradient norm (loss per unit of parameter) are those at the point; the eigenvalues,
    their errors and `converged` are those of `Extremes`; the shares and their errors, in 0..1,
    are `negative_share` with power 1 and 2. `along` holds the curvatures along the named
    directions; `products` counts all Hessian–vector products.

    >>> from twophase.objective import FunctionObjective
    >>> saddle = FunctionObjective(lambda x: x[0] ** 2 - x[1] ** 2)
    >>> result = audit(saddle, torch.ones(2).double())
    >>> result.convexity().value, round(result.negative_share, 9)
    ('clearly negative', 0.5)
    """

    loss: float
    gradient_norm: float
    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    converged: bool
    negative_share: float
    negative_share_error: float
    negative_square_share: float
    negative_square_share_error: float
    along: dict[str, float]
    products: int

    def convexity(self, level: float = 1e-2) -> Convexity:
        """Whether the smallest eigenvalue is below −`level` times the largest absolute one.

        Undecided where it may be, within its error. Default 1e-2: under gradient steps of 1/λ_max
        a component along an eigenvector of −λ_max/100 takes 100 steps to grow by the factor e,
        the length of a whole run, so that weaker negative curvature is of little consequence.

        Raises:
            InputError: the level is not in (0, 1).

        >>> from twophase.objective import FunctionObjective
        >>> saddle = FunctionObjective(lambda x: x[0] ** 2 - 0.001 * x[1] ** 2)
        >>> result = audit(saddle, torch.ones(2).double())
        >>> result.convexity().value, result.convexity(level=1e-4).value
        ('not clearly negative', 'clearly negative')
        """
        check_number("level", level, above=0, below=1)
        bound = -level * max(abs(self.smallest), abs(self.largest))
        if self.smallest < bound:
            return Convexity.NEGATIVE
        if self.smallest - self.smallest_error < bound:
            return Convexity.UNDECIDED
        return Convexity.NOT_NEGATIVE


def extremes(
    objective: TwiceDifferentiable,
    x: Tensor,
    *,
    tolerance: float = 1e-3,
    max_products: int = 48,
    seed: int = 0,
) -> Extremes:
    """The extreme eigenvalues of the Hessian at `x` [P], by Lanczos iterations.

    The error bound of a Ritz pair (θ, y) is its residual norm ‖Hy − θy‖, plus rounding; for a
    symmetric H an eigenvalue lies that near to θ. That it is the outermost one, no residual can
    tell: from a random start the outermost eigenvalues emerge first, but those near 0, of which a
    network has most, can hold the smallest Ritz value for some ten steps. So no run is called
    converged before 20 products. It costs one gradient and the products, and keeps at most 49
    vectors of length P, with 24 more for a moment where these do not suffice and the iteration
    restarts.

    Args:
        objective: the loss.
        x: the parameters [P].
        tolerance: bound of both errors, relative to the largest absolute eigenvalue. Default 1e-3,
            a tenth of the level below which `Curvature.convexity` finds an eigenvalue clearly
            negative.
        max_products: at least 1; where it is reached, what is found by then is returned. Default
            48, nearly twice what the default tolerance takes for a vision transformer of 154058
            parameters.
        seed: of the random start vector.

    Raises:
        InputError: an argument is out of range, or the model does not repeat itself.
        NonFiniteError: the loss, its gradient or a product is not finite.

    Source: Parlett, The Symmetric Eigenvalue Problem, chapters 4 and 13; the restarts: Wu and
    Simon, SIAM J. Matrix Anal. Appl. 22 (2000).

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: (torch.tensor([1.0, 2.0, 5.0]).double() * x**2).sum())
    >>> result = extremes(bowl, torch.zeros(3).double(), tolerance=1e-9)
    >>> round(result.smallest, 9), round(result.largest, 9), result.converged
    (2.0, 10.0, True)
    """
    generator = _checked(tolerance, max_products, seed)
    evaluate(objective, x)
    krylov = Krylov(_product(objective, x), random_unit(x, generator), BASIS_SIZE)
    return krylov.converge(tolerance, max_products)


def negative_share(
    objective: TwiceDifferentiable,
    x: Tensor,
    *,
    power: int = 1,
    probes: int = 1,
    steps: int = 20,
    seed: int = 0,
) -> NegativeShare:
    """The share of negative curvature at `x` [P]: Σ_{λ<0} |λ|^p / Σ |λ|^p over all P eigenvalues.

    A first Lanczos run finds outlying eigenvalues; they count as they are. For the others, with
    a random unit vector u orthogonal to the k known eigenvectors, (P − k) u'f(H)u has the mean
    Σ f(λ); m Lanczos steps from u give the nodes and weights of its Gauss quadrature. Its variance
    is at most 2 Σ f(λ)², which the same nodes estimate: even a single probe knows its error.

    With power 1 a network's share depends on the many eigenvalues near 0, where |λ| has its kink:
    expect a truncation error of up to 0.2, which falls only slowly with more steps. Power 2
    asks for the large ones and is exact to about 1e-2 at the same cost.

    Args:
        objective: the loss; one gradient and (1 + probes) · steps products.
        x: the parameters [P].
        power: p, 1 or 2. Default 1.
        probes: random vectors, at least 1. Default 1.
        steps: of each Lanczos run, at least 1; at most twice as many vectors [P] are kept. Where
            steps reach P there is no error. Default 20.
        seed: of the random vectors.

    Returns:
        The `NegativeShare`; a Hessian of zeros has the share 0.

    Raises:
        InputError: an argument is out of range, or the model does not repeat itself.
        NonFiniteError: the loss, its gradient or a product is not finite.

    Source: Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017); deflation: Meyer, Musco,
    Musco and Woodruff, Hutch++, SOSA 2021.

    >>> from twophase.objective import FunctionObjective
    >>> saddle = FunctionObjective(lambda x: 3 * x[0] ** 2 - x[1] ** 2)
    >>> round(negative_share(saddle, torch.ones(2).double()).share, 9)
    0.25
    """
    if power not in (1, 2):
        raise InputError("power", power, "1 or 2")
    generator = _checked_runs(probes, steps, seed)
    evaluate(objective, x)
    product = _product(objective, x)
    _, known, vectors = _outliers(Krylov(product, random_unit(x, generator), steps), 0.0, steps)
    return _spectrum(product, known, vectors, probes, steps, generator)[0].negative_share(power)


def along(objective: TwiceDifferentiable, x: Tensor, direction: Tensor) -> float:
    """Curvature of the loss at `x` [P] along a direction v [P]: v'Hv / v'v.

    It costs one gradient and one Hessian–vector product; the unit is loss per squared unit of
    parameter, whatever the length of v.

    Raises:
        InputError: the direction is zero, not finite or of another shape than `x`, or the model
            does not repeat itself.
        NonFiniteError: the loss, its gradient or the product is not finite.

    >>> from twophase.objective import FunctionObjective
    >>> saddle = FunctionObjective(lambda x: x[0] ** 2 - x[1] ** 2)
    >>> along(saddle, torch.ones(2), torch.tensor([0.0, 3.0]))
    -2.0
    """
    unit = _unit("direction", direction, x)
    evaluate(objective, x)
    return _along(_product(objective, x), unit)


def audit(
    objective: TwiceDifferentiable,
    x: Tensor,
    *,
    directions: Mapping[str, Tensor] | None = None,
    tolerance: float = 1e-3,
    max_products: int = 48,
    probes: int = 1,
    steps: int = 20,
    seed: int = 0,
) -> Curvature:
    """Everything the convexity audit asks of one point `x` [P], from shared products.

    The run that finds the extreme eigenvalues is the first one of the negative share. Its probes,
    from other random vectors, guard the extremes in turn: where one sees an eigenvalue beyond
    them, that one is reported, with its own error.

    Args:
        objective, x: the loss and the parameters [P].
        directions: vectors [P] by name, such as an optimizer's steps; one product each.
        tolerance, max_products: as in `extremes`.
        probes, steps, seed: as in `negative_share`.

    Raises:
        InputError: an argument is out of range, a direction is zero, not finite or of another
            shape than `x`, or the model does not repeat itself.
        NonFiniteError: the loss, its gradient or a product is not finite.

    >>> from twophase.objective import FunctionObjective
    >>> bowl = FunctionObjective(lambda x: (x**2).sum())
    >>> result = audit(bowl, torch.ones(4).double(), directions={"step": torch.ones(4)})
    >>> result.along, result.negative_share, result.convexity().value
    ({'step': 2.0}, 0.0, 'not clearly negative')
    """
    _checked(tolerance, max_products, seed)
    generator = _checked_runs(probes, steps, seed)
    units = {name: _unit(name, vector, x) for name, vector in (directions or {}).items()}
    point = evaluate(objective, x)
    product = _product(objective, x)
    first, known, vectors = _outliers(
        Krylov(product, random_unit(x, generator), BASIS_SIZE), tolerance, max_products
    )
    spectrum, others = _spectrum(product, known, vectors, probes, steps, generator)
    found = [first, *others]
    low = min(found, key=lambda one: one.smallest)
    high = max(found, key=lambda one: one.largest)
    scale = max(abs(low.smallest), abs(high.largest))
    error = max(low.smallest_error, high.largest_error)
    products = sum(one.products for one in found)
    share, square_share = spectrum.negative_share(1), spectrum.negative_share(2)
    return Curvature(
        point.value,
        norm(point.gradient),
        low.smallest,
        high.largest,
        low.smallest_error,
        high.largest_error,
        (first.converged or products >= LEAST_PRODUCTS) and error <= tolerance * scale,
        share.share,
        share.error,
        square_share.share,
        square_share.error,
        {name: _along(product, unit) for name, unit in units.items()},
        products + len(units),
    )


class Krylov:
    """A Krylov space of a symmetric operator: an orthonormal basis, and the operator within it.

    Lanczos with full reorthogonalisation; where the basis is full it restarts from half of it, the
    outermost Ritz vectors ("thick restart").

    Args:
        product: maps a vector [P] to the operator's product with it.
        start: the first vector [P], of norm 1.
        limit: the most vectors that the basis may hold.

    >>> diagonal, start = torch.tensor([[1.0, -3.0], [0.6, 0.8]], dtype=torch.float64)
    >>> krylov = Krylov(lambda vector: diagonal * vector, start, limit=2)
    >>> result = krylov.converge(tolerance=1e-9, max_products=9)
    >>> round(result.smallest, 12), result.products
    (-3.0, 2)
    """

    def __init__(self, product: Product, start: Tensor, limit: int):
        self.product = product
        self.limit = min(limit, len(start))
        self.vectors = start.new_empty(self.limit + 1, len(start))
        self.vectors[0] = start
        self.matrix = np.zeros((self.limit, self.limit))
        self.residual = 0.0
        self.size = self.products = 0
        self.complete = False

    def converge(self, tolerance: float, max_products: int) -> Extremes:
        """Extend until both extremes are within the tolerance, or the products are used up."""
        while True:
            self.extend()
            values, errors, _ = self.ritz()
            ends = [0, -1]
            believed = self.complete or self.products >= LEAST_PRODUCTS
            close = errors[ends].max() <= tolerance * np.abs(values[ends]).max()
            converged = believed and close
            if converged or self.complete or self.products >= max_products:
                vectors = self.ritz_vectors(ends)
                return Extremes(
                    *values[ends].tolist(),
                    *errors[ends].tolist(),
                    *vectors,
                    self.products,
                    bool(converged),
                )

    def extend(self) -> None:
        """Make the space larger by one dimension: one product."""
        if self.size == self.limit:
            self._restart()
        image = self.product(self.vectors[self.size])
        self.products += 1
        self.size += 1
        known = self.vectors[: self.size]
        row = np.zeros(self.size)
        # once would leave rounding errors that grow from step to step; twice is enough
        for _ in range(2):
            part = known @ image
            image = image - part @ known
            row += part.double().cpu().numpy()
        self.matrix[self.size - 1, : self.size] = self.matrix[: self.size, self.size - 1] = row
        self.residual = norm(image)
        # what is left is then rounding, and has no direction
        rounding = 10 * round_off(image.dtype) * np.linalg.norm(self.matrix)
        self.complete = self.size == len(image) or self.residual <= rounding
        if not self.complete:
            self.vectors[self.size] = image / self.residual

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values [m], ascending, the bounds of their errors [m], and coordinates [m, m]."""
        values, coordinates = np.linalg.eigh(self.matrix[: self.size, : self.size])
        # a product's own rounding errors, a few units of its last place
        rounding = 4 * round_off(self.vectors.dtype) * np.abs(values).max()
        return values, self.residual * np.abs(coordinates[-1]) + rounding, coordinates

    def ritz_vectors(self, which: Sequence[int] | np.ndarray) -> Tensor:
        """The Ritz vectors [k, P] of k of the Ritz values."""
        rotation = torch.tensor(self.ritz()[2][:, which].T).to(self.vectors)
        return rotation @ self.vectors[: self.size]

    def _restart(self) -> None:
        quarter = self.limit // 4
        kept = np.r_[:quarter, self.limit - quarter : self.limit]
        count, values = len(kept), self.ritz()[0][kept]
        self.vectors[:count] = self.ritz_vectors(kept)
        self.vectors[count] = self.vectors[self.limit]
        self.matrix = np.zeros_like(self.matrix)
        self.matrix[range(count), range(count)] = values
        self.size = count


class Spectrum(NamedTuple):
    """What is known of all eigenvalues: some as they are, and a random view of the others.

    `known` [k]: eigenvalues that count once each. `matrices`: for each random probe the operator
    within its Krylov space, [m, m]. `complete`: whether every probe's space holds all that the
    operator makes of it. `count`: the number of the other eigenvalues.

    >>> Spectrum(np.array([-1.0, 3.0]), [], True, 0).negative_share(1)
    NegativeShare(share=0.25, deviation=0.0, truncation=0.0)
    """

    known: np.ndarray
    matrices: Sequence[np.ndarray]
    complete: bool
    count: int

    def negative_share(self, power: int) -> NegativeShare:
        """The share Σ_{λ<0} |λ|^p / Σ |λ|^p with its errors."""
        values, weights = self._nodes(0)
        share = self._share(values, weights, power)
        shares = [share]
        if not self.complete:
            steps = max((len(matrix) for matrix in self.matrices), default=0)
            shares += [self._share(*self._nodes(less), power) for less in range(1, 1 + steps // 4)]
        truncation = max(abs(other - share) for other in shares)
        total = (np.abs(self.known) ** power).sum() + weights @ np.abs(values) ** power
        # the share is a ratio: to first order its error is that of f(λ) = |λ|^p ([λ < 0] − share)
        spread = np.abs(values) ** power * ((values < 0) - share)
        variance = 2 * weights @ spread**2 / max(len(self.matrices), 1)
        return NegativeShare(share, float(variance**0.5 / total) if total else 0.0, truncation)

    def _nodes(self, fewer: int) -> tuple[np.ndarray, np.ndarray]:
        """Gauss nodes and weights of all probes, as if each had had so many steps fewer."""
        values, weights = [], []
        for matrix in self.matrices:
            size = max(len(matrix) - fewer, 1)
            nodes, coordinates = np.linalg.eigh(matrix[:size, :size])
            values.append(nodes)
            weights.append(coordinates[0] ** 2 * self.count / len(self.matrices))
        return np.concatenate([[], *values]), np.concatenate([[], *weights])

    def _share(self, values: np.ndarray, weights: np.ndarray, power: int) -> float:
        values = np.concatenate([self.known, values])
        sizes = np.abs(values) ** power * np.concatenate([np.ones(len(self.known)), weights])
        total = sizes.sum()
        return float(sizes[values < 0].sum() / total) if total else 0.0


def random_unit(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector of norm 1, all directions alike, of the shape, dtype and device of `x`.

    The generator is the CPU's, so that all devices get the same vector.

    >>> random_unit(torch.zeros(3), torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """
    draw = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (draw / norm(draw)).to(x)


def _outliers(
    krylov: Krylov, tolerance: float, max_products: int
) -> tuple[Extremes, np.ndarray, Tensor]:
    """The extremes, and all eigenvalues [k] and eigenvectors [k, P] that converged on the way."""
    found = krylov.converge(tolerance, max_products)
    values, errors, _ = krylov.ritz()
    converged = np.flatnonzero(errors <= DEFLATED * np.abs(values))
    return found, values[converged], krylov.ritz_vectors(converged)


def _spectrum(
    product: Product,
    known: np.ndarray,
    vectors: Tensor,
    probes: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[Spectrum, list[Extremes]]:
    """Probe what lies beside the known eigenvectors; also what the probes say of the extremes."""
    like, count = vectors.new_empty(vectors.shape[1]), vectors.shape[1] - len(known)
    if count == 0:
        return Spectrum(known, [], True, 0), []

    def remove(vector: Tensor) -> Tensor:
        return vector - (vectors @ vector) @ vectors

    found, matrices, complete = [], [], True
    for _ in range(probes):
        start = remove(random_unit(like, generator))
        krylov = Krylov(lambda vector: remove(product(vector)), start / norm(start), steps)
        found.append(krylov.converge(0.0, min(steps, count)))
        matrices.append(krylov.matrix[: krylov.size, : krylov.size])
        complete = complete and (krylov.complete or krylov.size == count)
    return Spectrum(known, matrices, complete, count), found


def _product(objective: TwiceDifferentiable, x: Tensor) -> Product:
    def product(vector: Tensor) -> Tensor:
        image = objective.hessian_vector(x, vector)
        if not norm(image) < float("inf"):
            raise NonFiniteError(
                f"Hessian–vector product: norm {norm(image)} is not allowed; use parameters at "
                "which the loss has finite second derivatives"
            )
        return image

    return product


def _along(product: Product, unit: Tensor) -> float:
    # a unit vector in float32 has a norm of 1 to seven digits only
    return dot(unit, product(unit)) / dot(unit, unit)


def _unit(name: str, direction: Tensor, x: Tensor) -> Tensor:
    length = norm(direction)
    if direction.shape != x.shape or not 0 < length < float("inf"):
        raise InputError(
            name,
            f"shape {list(direction.shape)}, norm {length:g}",
            f"a vector of shape {list(x.shape)} with a finite norm above 0",
        )
    return (direction / length).to(x)


def _checked(tolerance: float, max_products: int, seed: int) -> torch.Generator:
    check_number("tolerance", tolerance, above=0)
    check_integer("max_products", max_products, 1)
    return torch.Generator().manual_seed(check_integer("seed", seed, 0))


def _checked_runs(probes: int, steps: int, seed: int) -> torch.Generator:
    check_integer("probes", probes, 1)
    check_integer("steps", steps, 1)
    return torch.Generator().manual_seed(check_integer("seed", seed, 0))
