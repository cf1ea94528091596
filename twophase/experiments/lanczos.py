"""Lanczos runs: eigenvalues of a symmetric operator [P, P] that is known by its products only.

Source: Parlett, The Symmetric Eigenvalue Problem, chapters 4 and 13; restarts: Wu and Simon, SIAM
J. Matrix Anal. Appl. 22 (2000); sums over all eigenvalues: Ubaru, Chen and Saad, the same 38
(2017); without the known ones: Meyer, Musco, Musco and Woodruff, Hutch++, SOSA 2021.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twophase.objective import norm, round_off

Product = Callable[[Tensor], Tensor]
# eigenvalues [k] and their vectors [k, P]
Pairs = tuple[np.ndarray, Tensor]

# Products before which a run is not believed. Most eigenvalues of a network lie near 0, and for a
# few steps the smallest Ritz value rests among them, with a small residual.
LEAST_PRODUCTS = 20
# Residual, relative to its eigenvalue, from which on a Ritz pair is left out of the random probes:
# its eigenvalue is then known to about the square of that.
DEFLATED = 1e-2


class Extremes(NamedTuple):
    """The smallest and the largest eigenvalue of a symmetric operator, with bounds of their errors.

    An eigenvalue lies within `smallest_error` of `smallest`. But for rounding, the smallest one of
    all is at most `smallest`, the curvature along `smallest_vector` [P], of norm 1: that there are
    negative eigenvalues is certain even before convergence. Likewise for the largest, from below.
    `converged`: both errors met the tolerance, after at least 20 of the operator's products or in a
    space that holds every eigenvalue.
    """

    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    smallest_vector: Tensor
    largest_vector: Tensor
    products: int
    converged: bool


class Krylov:
    """A Krylov space of a symmetric operator: an orthonormal basis, and the operator within it.

    Lanczos with full reorthogonalisation, from a vector `start` [P] of norm 1. Where the basis has
    `limit` vectors it restarts from half of it, the outermost Ritz vectors ("thick restart").
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
        """Extend until both extremes are within the tolerance or the products are used up."""
        ends = [0, -1]
        while True:
            self.extend()
            values, errors, _ = self.ritz()
            believed = self.complete or self.products >= LEAST_PRODUCTS
            close = errors[ends].max() <= tolerance * np.abs(values[ends]).max()
            converged = bool(believed and close)
            if converged or self.complete or self.products >= max_products:
                found = values[ends].tolist() + errors[ends].tolist()
                return Extremes(*found, *self.ritz_vectors(ends), self.products, converged)

    def extend(self) -> None:
        """Add a dimension: one product."""
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

    def outliers(self) -> Pairs:
        values, errors, _ = self.ritz()
        converged = np.flatnonzero(errors <= DEFLATED * np.abs(values))
        return values[converged], self.ritz_vectors(converged)

    def _restart(self) -> None:
        quarter = self.limit // 4
        kept = np.r_[:quarter, self.limit - quarter : self.limit]
        count, values = len(kept), self.ritz()[0][kept]
        self.vectors[:count] = self.ritz_vectors(kept)
        self.vectors[count] = self.vectors[self.limit]
        self.matrix = np.pad(np.diag(values), (0, self.limit - count))
        self.size = count


class NegativeShare(NamedTuple):
    """A share of negative curvature, in 0..1, and the two parts of its error.

    `deviation` is one standard deviation over random probes, `truncation` the largest change of
    the share over the last quarter of the Lanczos steps.
    """

    share: float
    deviation: float
    truncation: float

    @property
    def error(self) -> float:
        return float(np.hypot(self.deviation, self.truncation))


class Spectrum(NamedTuple):
    """What is known of all eigenvalues: some as they are, and a random view of the others.

    `known` [k]: those that count once each. `matrices`: for each random probe the operator within
    its Krylov space, [m, m]. `complete`: whether the spaces hold all that the operator makes of
    them. `count`: the number of the other eigenvalues.
    """

    known: np.ndarray
    matrices: Sequence[np.ndarray]
    complete: bool
    count: int

    def negative_share(self, power: int) -> NegativeShare:
        """The share Σ_{λ<0} |λ|^p / Σ |λ|^p with its errors."""
        values, weights = self._nodes(0)
        share = self._share(0, power)
        quarter = 0 if self.complete else max(map(len, self.matrices)) // 4
        truncation = max(abs(self._share(less, power) - share) for less in range(1 + quarter))
        total = (np.abs(self.known) ** power).sum() + weights @ np.abs(values) ** power
        # the share is a ratio: to first order its error is that of f(λ) = |λ|^p ([λ < 0] − share)
        spread = np.abs(values) ** power * ((values < 0) - share)
        variance = 2 * weights @ spread**2 / max(len(self.matrices), 1)
        return NegativeShare(share, float(variance**0.5 / total) if total else 0.0, truncation)

    def _nodes(self, fewer: int) -> tuple[np.ndarray, np.ndarray]:
        """Gauss nodes and weights of all probes, as if each had had so many steps fewer."""
        sizes = [max(len(matrix) - fewer, 1) for matrix in self.matrices]
        pairs = [np.linalg.eigh(m[:n, :n]) for m, n in zip(self.matrices, sizes, strict=True)]
        weights = [vectors[0] ** 2 * self.count / len(pairs) for _, vectors in pairs]
        return np.concatenate([[], *(nodes for nodes, _ in pairs)]), np.concatenate([[], *weights])

    def _share(self, fewer: int, power: int) -> float:
        values, weights = self._nodes(fewer)
        values = np.concatenate([self.known, values])
        sizes = np.abs(values) ** power * np.concatenate([np.ones(len(self.known)), weights])
        total = sizes.sum()
        return float(sizes[values < 0].sum() / total) if total else 0.0


def probe(
    product: Product, outliers: Pairs, probes: int, steps: int, generator: torch.Generator
) -> tuple[Spectrum, list[Extremes]]:
    """The spectrum by random probes beside the k outliers, and what each says of the extremes.

    With a random unit vector u orthogonal to their vectors, (P − k) u'f(H)u has the mean Σ f(λ)
    over the others; m Lanczos steps from u give the nodes and weights of its Gauss quadrature. Its
    variance is at most 2 Σ f(λ)², which the same nodes estimate: a single probe knows its error.
    """
    known, vectors = outliers
    like, count = vectors.new_empty(vectors.shape[1]), vectors.shape[1] - len(known)

    def remove(vector: Tensor) -> Tensor:
        return vector - (vectors @ vector) @ vectors

    found, matrices, complete = [], [], True
    for _ in range(probes if count else 0):
        start = remove(random_unit(like, generator))
        krylov = Krylov(lambda vector: remove(product(vector)), start / norm(start), steps)
        found.append(krylov.converge(0.0, min(steps, count)))
        matrices.append(krylov.matrix[: krylov.size, : krylov.size])
        complete = complete and (krylov.complete or krylov.size == count)
    return Spectrum(known, matrices, complete, count), found


def random_unit(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector like `x`, of norm 1, all directions alike; the same one on all devices."""
    draw = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (draw / norm(draw)).to(x)
