"""How convex a loss is at a point: what the products of its Hessian and vectors tell."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from twophase.errors import InputError, NonFiniteError, check_integer, check_number
from twophase.experiments import lanczos
from twophase.experiments.lanczos import Extremes, Krylov, NegativeShare
from twophase.objective import Point, TwiceDifferentiable, dot, norm, start

# Vectors [P] that a Lanczos run keeps before it restarts.
BASIS_SIZE = 48


class Convexity(StrEnum):
    """What the smallest eigenvalue says of a loss at a point."""

    NEGATIVE = "clearly negative"
    NOT_NEGATIVE = "not clearly negative"
    UNDECIDED = "undecided"


class Curvature(NamedTuple):
    """The convexity audit of one point: numbers only, a row of a table.

    Loss and gradient norm (loss per unit of parameter) are those at the point; the eigenvalues
    (loss per squared unit of parameter), their errors and `converged` are those of `Extremes`; the
    shares and their errors, in 0..1, are `Hessian.negative_share` with power 1 and 2. `along` holds
    the curvatures along the named directions; `products` counts all Hessian–vector products.
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
        """Whether the smallest eigenvalue is below −`level`, in (0, 1), times the largest |λ|.

        Undecided where it may be, within its error. Default 1e-2: under gradient steps of 1/λ_max a
        component along an eigenvector of −λ_max/100 takes 100 steps, a whole run, to grow by the
        factor e; weaker negative curvature is of little consequence.
        """
        check_number("level", level, above=0, below=1)
        bound = -level * max(abs(self.smallest), abs(self.largest))
        if self.smallest < bound:
            return Convexity.NEGATIVE
        if self.smallest - self.smallest_error < bound:
            return Convexity.UNDECIDED
        return Convexity.NOT_NEGATIVE


class Hessian:
    """The Hessian [P, P] of a loss at parameters `x` [P]; its products with vectors tell all.

    The first question costs a gradient and a forward pass, each one the products that it says. All
    of them raise `InputError` where an argument is out of range or the model does not repeat
    itself, and `NonFiniteError` where the loss, its gradient or a product is not finite.
    """

    def __init__(self, objective: TwiceDifferentiable, x: Tensor):
        self.objective, self.x = objective, x

    @cached_property
    def point(self) -> Point:
        return start(self.objective, self.x)

    def product(self, vector: Tensor) -> Tensor:
        """The product [P] with a vector [P]."""
        image = self.objective.hessian_vector(self.point.x, vector)
        if not norm(image) < float("inf"):
            raise NonFiniteError(
                f"Hessian–vector product: norm {norm(image)} is not allowed; use parameters at "
                "which the loss has finite second derivatives"
            )
        return image

    def along(self, direction: Tensor) -> float:
        """Curvature v'Hv / v'v along a vector v [P] other than 0; one product."""
        self._check("direction", direction)
        unit = (direction / norm(direction)).to(self.x)
        # a unit vector in float32 has a norm of 1 to seven digits only
        return dot(unit, self.product(unit)) / dot(unit, unit)

    def extremes(
        self, *, tolerance: float = 1e-3, max_products: int = 48, seed: int = 0
    ) -> Extremes:
        """The extreme eigenvalues, by Lanczos iterations from a random vector.

        The error bound of a Ritz pair (θ, y) is its residual norm ‖Hy − θy‖, plus rounding: an
        eigenvalue lies that near to θ, be it the outermost or not; see `lanczos.LEAST_PRODUCTS`.
        At most 49 vectors [P] are kept, 73 in a restart.

        It ends when both errors are within `tolerance` times the largest |λ|, by default a tenth of
        the level of `Curvature.convexity`; or with what is found after `max_products`, by default
        nearly twice as many as a vision transformer of 154058 parameters takes.
        """
        check_number("tolerance", tolerance, above=0)
        generator = _generator(seed, max_products=max_products)
        return self._first_run(generator, BASIS_SIZE, tolerance, max_products)[0]

    def negative_share(
        self, *, power: int = 1, probes: int = 1, steps: int = 20, seed: int = 0
    ) -> NegativeShare:
        """The share of negative curvature: Σ_{λ<0} |λ|^p / Σ |λ|^p over all P eigenvalues.

        A first Lanczos run finds outlying eigenvalues, which count as they are; `lanczos.probe`
        estimates the others. It costs (1 + probes) · steps products and keeps at most twice as many
        vectors [P] as steps. Where the steps reach P there is no error; a Hessian of zeros has 0.

        With `power` p = 1 a network's share depends on the many eigenvalues near 0, where |λ| has
        its kink: expect a truncation error of up to 0.2, which falls only slowly with more steps.
        p = 2 asks for the large ones and is exact to about 1e-2 at the same cost.
        """
        if power not in (1, 2):
            raise InputError("power", power, "1 or 2")
        generator = _generator(seed, probes=probes, steps=steps)
        _, outliers = self._first_run(generator, steps, 0.0, steps)
        spectrum, _ = lanczos.probe(self.product, outliers, probes, steps, generator)
        return spectrum.negative_share(power)

    def audit(
        self,
        *,
        directions: Mapping[str, Tensor] | None = None,
        tolerance: float = 1e-3,
        max_products: int = 48,
        probes: int = 1,
        steps: int = 20,
        seed: int = 0,
    ) -> Curvature:
        """All that the convexity audit asks of one point, from shared products.

        The run that finds the extreme eigenvalues is the first one of the negative share. Its
        probes, from other random vectors, guard the extremes in turn: where one sees an eigenvalue
        beyond them, that one is reported, with its own error. `directions` are vectors [P] by name,
        such as an optimizer's steps, one product each; see `extremes` and `negative_share`.
        """
        check_number("tolerance", tolerance, above=0)
        generator = _generator(seed, max_products=max_products, probes=probes, steps=steps)
        directions = directions or {}
        for name, direction in directions.items():
            self._check(name, direction)
        first, outliers = self._first_run(generator, BASIS_SIZE, tolerance, max_products)
        spectrum, others = lanczos.probe(self.product, outliers, probes, steps, generator)
        found = [first, *others]
        low = min(found, key=lambda one: one.smallest)
        high = max(found, key=lambda one: one.largest)
        scale = max(abs(low.smallest), abs(high.largest))
        error = max(low.smallest_error, high.largest_error)
        products = sum(one.products for one in found)
        share, square_share = spectrum.negative_share(1), spectrum.negative_share(2)
        return Curvature(
            self.point.value,
            norm(self.point.gradient),
            *(low.smallest, high.largest, low.smallest_error, high.largest_error),
            (first.converged or products >= lanczos.LEAST_PRODUCTS) and error <= tolerance * scale,
            *(share.share, share.error, square_share.share, square_share.error),
            {name: self.along(direction) for name, direction in directions.items()},
            products + len(directions),
        )

    def _first_run(
        self, generator: torch.Generator, limit: int, tolerance: float, max_products: int
    ) -> tuple[Extremes, lanczos.Pairs]:
        """The extremes, and the outliers found on the way; the basis is given up."""
        krylov = Krylov(self.product, lanczos.random_unit(self.x, generator), limit)
        return krylov.converge(tolerance, max_products), krylov.outliers()

    def _check(self, name: str, direction: Tensor) -> None:
        length = norm(direction)
        if direction.shape != self.x.shape or not 0 < length < float("inf"):
            raise InputError(
                name,
                f"shape {list(direction.shape)}, norm {length:g}",
                f"a vector of shape {list(self.x.shape)} with a finite norm above 0",
            )


def _generator(seed: int, **counts: int) -> torch.Generator:
    for name, count in counts.items():
        check_integer(name, count, 1)
    return torch.Generator().manual_seed(check_integer("seed", seed, 0))
