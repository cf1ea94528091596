"""Krylov spaces and spectra against matrices whose eigenvalues are known."""

import numpy as np
import pytest
import torch

from twophase.experiments.lanczos import Krylov, NegativeShare, Spectrum, random_unit


def test_a_space_of_all_dimensions_has_the_eigenvalues():
    diagonal, start = torch.tensor([[1.0, -3.0], [0.6, 0.8]], dtype=torch.float64)
    found = Krylov(lambda v: diagonal * v, start, 2).converge(tolerance=1e-9, max_products=9)
    assert (found.smallest, found.largest) == pytest.approx((-3, 1), rel=1e-12)
    assert found.products == 2 and found.converged


def test_shares_of_known_eigenvalues_are_exact():
    found = Spectrum(np.array([-1.0, 3.0]), [], True, 0).negative_share(1)
    assert found == NegativeShare(0.25, deviation=0.0, truncation=0.0)


def test_the_errors_of_a_share_add_as_squares():
    assert NegativeShare(0.25, deviation=0.03, truncation=0.04).error == pytest.approx(0.05)


@pytest.mark.parametrize("power", [1, 2])
def test_the_share_over_an_orthonormal_basis_is_exact(power):
    """Σ_i e_i'f(H)e_i is the trace, whatever the basis: the quadrature has no other error."""
    values = torch.tensor([-3.0, -1.0, -0.5, 0.25, 1.0, 2.0, 8.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(values) @ basis.T
    sizes = values.abs() ** power
    runs = []
    for start in torch.eye(7, dtype=torch.float64):
        run = Krylov(lambda v: matrix @ v, start, 7)
        run.converge(0.0, 7)
        runs.append(run.matrix[: run.size, : run.size])
    result = Spectrum(np.empty(0), runs, True, 7).negative_share(power)
    assert result.share == pytest.approx((sizes[values < 0].sum() / sizes.sum()).item(), rel=1e-9)
    assert result.truncation == 0


@pytest.mark.parametrize("power", [1, 2])
def test_truncation_is_the_largest_change_over_the_last_quarter_of_the_steps(power):
    matrix = (
        np.diag([1.0, -2, 3, -4, 1, 2, -3, 4]) + np.diag(np.ones(7), 1) + np.diag(np.ones(7), -1)
    )

    def share(steps):
        values, vectors = np.linalg.eigh(matrix[:steps, :steps])
        sizes = vectors[0] ** 2 * np.abs(values) ** power
        return sizes[values < 0].sum() / sizes.sum()

    result = Spectrum(np.empty(0), [matrix], False, 100).negative_share(power)
    expected = max(abs(share(7) - share(8)), abs(share(6) - share(8)))
    assert result.truncation == pytest.approx(expected, rel=1e-9) and expected > 0
    assert Spectrum(np.empty(0), [matrix], True, 100).negative_share(power).truncation == 0


def test_the_random_vectors_are_uniform_on_the_sphere():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(3, dtype=torch.float64)
    draws = torch.stack([random_unit(x, generator) for _ in range(20000)])
    covariance = draws.T @ draws / len(draws)
    torch.testing.assert_close(covariance, torch.eye(3).double() / 3, rtol=0, atol=0.01)
