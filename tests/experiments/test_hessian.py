"""Curvature against dense Hessians in float64, and what its errors promise."""

import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from twophase.errors import InputError, NonFiniteError
from twophase.experiments.hessian import Convexity, Curvature, Hessian
from twophase.losses import mse
from twophase.objective import FunctionObjective, Passes
from twophase.objectives.full_batch import FullBatch
from twophase.problems import networks
from twophase.problems.toys import rosenbrock

TIGHT = dict(tolerance=1e-9, max_products=5000)


class Attention(nn.Module):
    """A classifier of sequences [B, 5, 4]: one head of torch's fused attention, a norm, a head."""

    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        q, v = self.query(x), self.value(x)
        attended = nn.functional.scaled_dot_product_attention(q[:, None], q[:, None], v[:, None])
        return self.head(self.norm(x + attended[:, 0]).mean(1)).softmax(-1)


def mlp():
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3), nn.Softmax(1))


def full_batch(build=mlp, shape=(4,), dtype=torch.float64, chunk_size=512, count=30):
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    inputs = torch.randn(count, *shape, dtype=torch.float64)
    return FullBatch(model, mse, inputs.to(dtype), torch.randint(3, (count,)), chunk_size)


def attention(**options):
    return full_batch(Attention, (5, 4), **options)


def dense(objective, x):
    """The Hessian of the loss of all examples at once, by torch."""
    model, loss = objective.model, objective.loss

    def function(x):
        parts = objective.vector._split(x)
        state = {
            name: part.view_as(parameter)
            for (name, parameter), part in zip(model.named_parameters(), parts, strict=True)
        }
        outputs = torch.func.functional_call(model, state, (objective.inputs,))
        return loss(outputs, objective.targets)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(function, x)


def quadratic(matrix):
    """Objective ½ x'Ax, whose Hessian is A."""
    matrix = torch.as_tensor(matrix, dtype=torch.float64)
    return FunctionObjective(lambda x: x @ matrix.to(x.dtype) @ x / 2), matrix


def with_eigenvalues(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(square).Q
    values = torch.as_tensor(values, dtype=torch.float64)
    return quadratic(basis @ torch.diag(values) @ basis.T)


def network_like(size=400):
    """A few large positive eigenvalues, few small negative ones, and very many near zero."""
    bulk = np.random.default_rng(0).normal(0, 1e-4, size - 14)
    return np.concatenate([[-0.3, -0.28, -0.1, -0.02], bulk, np.geomspace(0.5, 17, 10)])


def share_of(eigenvalues, power=1):
    sizes = eigenvalues.abs() ** power
    return (sizes[eigenvalues < 0].sum() / sizes.sum()).item()


NETWORKS = [full_batch, attention]


# ---- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("chunk_size", [1, 28, 512])
def test_products_are_those_of_the_dense_hessian(network, chunk_size):
    objective = network(chunk_size=chunk_size)
    x = objective.vector.read()
    vector = torch.randn(len(x), dtype=x.dtype)
    expected = dense(objective, x) @ vector
    product = objective.hessian_vector(x, vector)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-14)
    assert not product.requires_grad


@pytest.mark.parametrize("name", networks.MODELS)
def test_products_of_the_five_networks_are_slopes_of_the_gradient(name):
    torch.manual_seed(0)
    model = networks.build(name, 1, 10, 0).double().eval()
    inputs = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    objective = FullBatch(model, mse, inputs, torch.tensor([0, 1, 2]))
    x = objective.vector.read()
    vector = torch.randn(len(x), dtype=x.dtype)
    # small, since the kinks of relu and maximum pooling must stay where they are
    h = 1e-7
    ahead, behind = (objective.value_and_gradient(x + s * h * vector)[1] for s in (1, -1))
    slope = (ahead - behind) / (2 * h)
    product = objective.hessian_vector(x, vector)
    assert (product - slope).norm() < 1e-5 * slope.norm()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_products_are_linear_and_symmetric(seed, a, b):
    objective = attention(count=5)
    x = objective.vector.read()
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, len(x), generator=generator, dtype=x.dtype)
    hu, hv = objective.hessian_vector(x, u), objective.hessian_vector(x, v)
    assert torch.dot(u, hv).item() == pytest.approx(torch.dot(v, hu).item(), rel=1e-9, abs=1e-12)
    both = objective.hessian_vector(x, a * u + b * v)
    torch.testing.assert_close(both, a * hu + b * hv, rtol=1e-9, atol=1e-12)


def test_products_count_as_passes_of_their_own():
    objective = full_batch()
    x = objective.vector.read()
    objective.hessian_vector(x, x)
    assert objective.passes == Passes(hessian_vector=1)
    assert objective.passes.total == 9
    toy = FunctionObjective(lambda x: x @ x)
    toy.hessian_vector(torch.ones(2), torch.ones(2))
    assert toy.passes == Passes(hessian_vector=1)


def test_the_model_keeps_x_and_no_gradient():
    objective = full_batch()
    x = torch.zeros_like(objective.vector.read())
    objective.hessian_vector(x, x + 1)
    assert torch.equal(objective.vector.read(), x)
    assert all(parameter.grad is None for parameter in objective.model.parameters())


def test_parameters_without_curvature_have_zero_products():
    linear = FunctionObjective(lambda x: x.sum())
    assert linear.hessian_vector(torch.ones(3), torch.ones(3)).tolist() == [0, 0, 0]
    partly = FunctionObjective(lambda x: x[0] ** 2 + x[1])
    assert partly.hessian_vector(torch.ones(2), torch.ones(2)).tolist() == [2, 0]
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]).double()
    model.forward = model[0].forward
    inputs = torch.ones(1, 1, dtype=torch.float64)
    unused = FullBatch(model, nn.functional.mse_loss, inputs, inputs)
    vector = torch.ones(2, dtype=torch.float64)
    assert unused.hessian_vector(vector, vector).tolist() == [2, 0]


# ---- extremes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_extremes_of_networks_are_those_of_the_dense_hessian(network, scale):
    objective = network()
    x = scale * objective.vector.read()
    hessian = dense(objective, x)
    exact = torch.linalg.eigvalsh(hessian)
    result = Hessian(objective, x).extremes(**TIGHT)
    assert result.converged and exact[0] < 0
    assert result.smallest == pytest.approx(exact[0].item(), rel=1e-6)
    assert result.largest == pytest.approx(exact[-1].item(), rel=1e-6)
    for value, error, vector in (
        (result.smallest, result.smallest_error, result.smallest_vector),
        (result.largest, result.largest_error, result.largest_vector),
    ):
        assert vector.norm().item() == pytest.approx(1, rel=1e-12)
        assert (hessian @ vector - value * vector).norm() <= error


@pytest.mark.parametrize("x", [[1.0, 1.0], [-0.5, 2.0], [0.0, 1.0]])
def test_extremes_of_the_rosenbrock_function(x):
    x = torch.tensor(x, dtype=torch.float64)
    a, b = x.tolist()
    by_hand = [[1200 * a * a - 400 * b + 2, -400 * a], [-400 * a, 200.0]]
    exact = np.linalg.eigvalsh(by_hand)
    result = Hessian(FunctionObjective(rosenbrock()), x).extremes()
    assert result.smallest == pytest.approx(exact[0], rel=1e-9)
    assert result.largest == pytest.approx(exact[1], rel=1e-9)
    assert result.products == 2


@settings(max_examples=40, deadline=None)
@given(
    # squares of anything smaller are no floats
    values=st.lists(
        st.floats(-10, 10).map(lambda value: value if abs(value) > 1e-100 else 0.0),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 99),
)
def test_extremes_of_any_symmetric_matrix(values, seed):
    objective, matrix = with_eigenvalues(values, seed)
    result = Hessian(objective, torch.zeros(len(values), dtype=torch.float64)).extremes(
        **TIGHT, seed=seed
    )
    scale = max(map(abs, values))
    assert result.converged
    assert result.smallest == pytest.approx(min(values), rel=0, abs=1e-7 * scale)
    assert result.largest == pytest.approx(max(values), rel=0, abs=1e-7 * scale)


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0])
def test_one_parameter(value):
    objective, _ = quadratic([[value]])
    result = Hessian(objective, torch.ones(1, dtype=torch.float64)).extremes()
    assert (result.smallest, result.largest, result.products) == (value, value, 1)
    assert result.converged
    share = Hessian(objective, torch.ones(1, dtype=torch.float64)).negative_share()
    assert (share.share, share.error) == (float(value < 0), 0)


def test_a_product_of_two_is_a_saddle():
    """Random signs as a start would be an eigenvector of [[0, 1], [1, 0]] and miss the other."""
    objective = FunctionObjective(lambda x: x[0] * x[1])
    for seed in range(5):
        result = Hessian(objective, torch.zeros(2, dtype=torch.float64)).extremes(seed=seed)
        assert (result.smallest, result.largest) == pytest.approx((-1, 1), rel=1e-12)


def test_equal_eigenvalues_end_the_run():
    objective, _ = quadratic(-4 * torch.eye(200))
    result = Hessian(objective, torch.zeros(200, dtype=torch.float64)).extremes()
    assert (result.smallest, result.largest) == pytest.approx((-4, -4), rel=1e-12)
    assert result.products == 1 and result.converged


def test_restarts_find_what_one_basis_does_not():
    objective, matrix = with_eigenvalues(np.linspace(-1, 30, 400))
    x = torch.zeros(400, dtype=torch.float64)
    early = Hessian(objective, x).extremes(tolerance=1e-6)
    assert early.products == 48 and not early.converged
    result = Hessian(objective, x).extremes(**TIGHT)
    assert result.products > 48 and result.converged
    assert result.smallest == pytest.approx(-1, rel=1e-6)
    assert result.largest == pytest.approx(30, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_small_negative_eigenvalues_are_found_beside_many_zeros(seed):
    objective, _ = with_eigenvalues(network_like())
    result = Hessian(objective, torch.zeros(400, dtype=torch.float64)).extremes(seed=seed)
    assert result.converged and result.products < 48
    assert result.smallest == pytest.approx(-0.3, rel=1e-2)
    assert result.smallest - result.smallest_error <= -0.3 <= result.smallest + 1e-12
    assert result.largest == pytest.approx(17, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("smallest", [-0.13, -0.02])
def test_a_crowd_near_zero_does_not_pass_for_the_smallest_eigenvalue(smallest, seed):
    """For ten steps the smallest Ritz value is about 0 and its residual within the tolerance."""
    crowd = np.random.default_rng(0).normal(0, 1e-4, 20_000)
    values = np.concatenate([[smallest, smallest / 2], crowd, np.geomspace(0.5, 17, 10)])
    weights = torch.from_numpy(values)
    objective = FunctionObjective(lambda x: (weights * x * x).sum() / 2)
    x = torch.zeros(len(values), dtype=torch.float64)
    early = Hessian(objective, x).extremes(max_products=7, seed=seed)
    assert early.smallest > smallest / 2 and not early.converged
    for result in (
        Hessian(objective, x).extremes(seed=seed),
        Hessian(objective, x).audit(seed=seed),
    ):
        assert result.converged
        assert result.smallest == pytest.approx(smallest, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(products=st.integers(1, 60), seed=st.integers(0, 99))
def test_an_eigenvalue_lies_within_the_error_whenever_the_run_ends(products, seed):
    objective, matrix = with_eigenvalues(np.linspace(-1, 1, 100) ** 3)
    exact = torch.linalg.eigvalsh(matrix)
    x = torch.zeros(100, dtype=torch.float64)
    result = Hessian(objective, x).extremes(tolerance=1e-3, max_products=products, seed=seed)
    assert result.products <= products
    assert (exact - result.smallest).abs().min() <= result.smallest_error
    assert (exact - result.largest).abs().min() <= result.largest_error
    assert exact[0] <= result.smallest + 1e-12 and result.largest <= exact[-1] + 1e-12
    scale = max(abs(result.smallest), abs(result.largest))
    close = max(result.smallest_error, result.largest_error) <= 1e-3 * scale
    assert result.converged == (close and result.products >= 20)


def test_scipy_finds_the_same_with_no_fewer_products():
    objective, matrix = with_eigenvalues(network_like())
    products = 0

    def multiply(vector):
        nonlocal products
        products += 1
        return matrix.numpy() @ vector

    operator = LinearOperator(matrix.shape, multiply, dtype=float)
    start = np.random.default_rng(0).normal(size=400)
    options = dict(k=2, which="BE", ncv=48, tol=1e-6, v0=start, return_eigenvectors=False)
    low, high = eigsh(operator, **options)
    x = torch.zeros(400, dtype=torch.float64)
    result = Hessian(objective, x).extremes(tolerance=1e-8, max_products=500)
    assert result.smallest == pytest.approx(low, rel=1e-6)
    assert result.largest == pytest.approx(high, rel=1e-6)
    assert result.products <= products


def test_float32_comes_with_an_error_that_holds():
    exact = torch.linalg.eigvalsh(dense(objective := full_batch(), objective.vector.read()))
    single = full_batch(dtype=torch.float32)
    result = Hessian(single, single.vector.read()).extremes(tolerance=1e-5)
    assert result.smallest_vector.dtype == torch.float32 and result.converged
    assert abs(result.smallest - exact[0].item()) <= result.smallest_error
    assert abs(result.largest - exact[-1].item()) <= result.largest_error


# ---- the share of negative curvature ------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_share_is_exact_with_as_many_steps_as_parameters(network, power):
    objective = network()
    x = objective.vector.read()
    exact = share_of(torch.linalg.eigvalsh(dense(objective, x)), power)
    result = Hessian(objective, x).negative_share(power=power, steps=len(x))
    assert 0.01 < exact < 0.99
    assert result.share == pytest.approx(exact, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("power", [1, 2])
def test_the_error_of_the_share_is_the_one_stated(power):
    """A spectrum of few different values: no truncation, so that all error is the probes'."""
    values = torch.tensor([-5.0, -3.0, 1.0, 2.0]).repeat(50)
    objective, _ = with_eigenvalues(values)
    x = torch.zeros(200, dtype=torch.float64)
    exact = share_of(values, power)
    results = [Hessian(objective, x).negative_share(power=power, seed=seed) for seed in range(200)]
    assert max(result.truncation for result in results) < 1e-9
    ratios = np.array([(result.share - exact) / result.deviation for result in results])
    # each root mean square of 200 has a relative deviation of 1/20; the bound is 2 ‖f(H)‖²
    assert abs(ratios.mean()) < 4 / math.sqrt(200)
    assert 0.7 < math.sqrt((ratios**2).mean()) < 1.2


def test_more_probes_make_the_share_more_certain():
    values = torch.tensor([-2.0, -1.0, 1.0, 3.0]).repeat(50)
    objective, _ = with_eigenvalues(values)
    x = torch.zeros(200, dtype=torch.float64)
    one, many = (Hessian(objective, x).negative_share(probes=count).deviation for count in (1, 16))
    assert many == pytest.approx(one / 4, rel=0.2)


@pytest.mark.parametrize("power, bound", [(1, 0.25), (2, 1e-3)])
def test_the_share_of_a_spectrum_like_a_networks(power, bound):
    values = torch.from_numpy(network_like())
    objective, _ = with_eigenvalues(values)
    exact = share_of(values, power)
    for seed in range(5):
        result = Hessian(objective, torch.zeros(400, dtype=torch.float64)).negative_share(
            power=power, steps=24, seed=seed
        )
        assert abs(result.share - exact) <= 4 * result.error + 1e-9
        assert result.error < bound


@pytest.mark.parametrize("sign, share", [(1, 0), (-1, 1)])
def test_definite_hessians_have_the_share_0_or_1(sign, share):
    objective, _ = with_eigenvalues(sign * np.geomspace(1e-3, 10, 60))
    result = Hessian(objective, torch.zeros(60, dtype=torch.float64)).negative_share()
    assert result.share == share


# ---- along --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_curvature_along_a_direction_is_its_definition(network):
    objective = network()
    x = objective.vector.read()
    direction = torch.randn(len(x), dtype=x.dtype)
    exact = direction @ dense(objective, x) @ direction / (direction @ direction)
    for length in (1e-20, 1, 1e20):
        assert Hessian(objective, x).along(length * direction) == pytest.approx(
            exact.item(), rel=1e-9
        )


def test_curvature_in_float32_does_not_depend_on_the_rounding_of_a_norm():
    bowl = FunctionObjective(lambda x: x @ x)
    for direction in torch.randn(5, 1000):
        assert Hessian(bowl, torch.zeros(1000)).along(direction) == pytest.approx(2, rel=1e-14)


def test_curvature_along_a_float64_direction_of_a_float32_model():
    objective = full_batch(dtype=torch.float32)
    x = objective.vector.read()
    direction = torch.randn(len(x), dtype=torch.float64)
    assert Hessian(objective, x).along(direction) == pytest.approx(
        Hessian(objective, x).along(direction.float())
    )


@pytest.mark.parametrize("direction", [torch.zeros(2), torch.ones(3), torch.tensor([1, math.nan])])
def test_a_direction_without_a_direction_is_refused(direction):
    bowl = FunctionObjective(lambda x: x @ x)
    with pytest.raises(InputError, match="direction: .* a vector of shape \\[2\\]"):
        Hessian(bowl, torch.ones(2)).along(direction)
    with pytest.raises(InputError, match="step: .* a vector of shape \\[2\\]"):
        Hessian(bowl, torch.ones(2)).audit(directions={"step": direction})
    assert bowl.passes.total == 0


# ---- audit --------------------------------------------------------------------------------------


def test_the_audit_agrees_with_its_parts():
    objective = full_batch()
    x = objective.vector.read()
    direction = torch.ones_like(x)
    result = Hessian(objective, x).audit(directions={"step": direction}, **TIGHT, steps=len(x))
    exact = torch.linalg.eigvalsh(dense(objective, x))
    value, gradient = objective.value_and_gradient(x)
    assert (result.loss, result.gradient_norm) == pytest.approx((value, gradient.norm().item()))
    assert result.smallest == pytest.approx(exact[0].item(), rel=1e-6)
    assert result.largest == pytest.approx(exact[-1].item(), rel=1e-6)
    assert result.along == {
        "step": pytest.approx(Hessian(objective, x).along(direction), rel=1e-12)
    }
    assert result.converged
    for share, error, power in (
        (result.negative_share, result.negative_share_error, 1),
        (result.negative_square_share, result.negative_square_share_error, 2),
    ):
        assert abs(share - share_of(exact, power)) <= 4 * error + 1e-9


def test_the_audit_counts_its_products():
    objective, _ = with_eigenvalues(network_like())
    x = torch.zeros(400, dtype=torch.float64)
    result = Hessian(objective, x).audit(directions={"a": x + 1, "b": x - 1}, probes=2, steps=11)
    assert objective.passes == Passes(2, 1, result.products)
    assert 22 + 2 < result.products <= 48 + 22 + 2


def test_a_probe_that_sees_beyond_the_first_run_is_believed():
    """With one product the first run sees nothing; the probe, with enough, sees the extremes."""
    objective, _ = with_eigenvalues(np.linspace(-2, 5, 20))
    x = torch.zeros(20, dtype=torch.float64)
    result = Hessian(objective, x).audit(max_products=1, steps=20)
    assert (result.smallest, result.largest) == pytest.approx((-2, 5), rel=1e-6)
    assert result.converged


def test_convexity_is_the_sign_beyond_level_and_error():
    def point(smallest, error, largest=10.0, level=1e-2):
        found = Curvature(1, 1, smallest, largest, error, 0, True, 0, 0, 0, 0, {}, 1)
        return found.convexity(level)

    assert point(-0.11, 5.0) is Convexity.NEGATIVE  # a Ritz value is an upper bound
    assert point(-0.05, 0.04) is Convexity.NOT_NEGATIVE
    assert point(-0.05, 0.06) is Convexity.UNDECIDED
    assert point(0.3, 0.5) is Convexity.UNDECIDED
    assert point(0.0, 0.0, largest=0.0) is Convexity.NOT_NEGATIVE
    assert point(-5.0, 0.0, largest=-1.0) is Convexity.NEGATIVE
    assert point(-0.05, 0.04, level=1e-3) is Convexity.NEGATIVE
    for level in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="^level: "):
            point(-0.05, 0.04, level=level)


def test_a_hessian_of_zeros():
    flat = FunctionObjective(lambda x: x.sum())
    result = Hessian(flat, torch.ones(100, dtype=torch.float64)).audit()
    assert (result.smallest, result.largest, result.negative_share) == (0, 0, 0)
    assert result.converged and result.convexity() is Convexity.NOT_NEGATIVE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_gives_the_same_audit_and_another_one_another(dtype):
    objective = attention(dtype=dtype)
    x = objective.vector.read()
    options = dict(max_products=6, steps=6)
    first, again, other = (Hessian(objective, x).audit(**options, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.smallest != other.smallest
    assert first.negative_share != other.negative_share


def test_the_global_generator_stays_as_it_is():
    state = torch.get_rng_state()
    Hessian(FunctionObjective(lambda x: x @ x), torch.ones(5)).audit()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_memory_is_a_few_dozen_vectors():
    """All live tensors of length P, counted at every product."""
    size, most = 3000, 0.0

    def living():
        """What is alive in this process, in vectors, also of other tests."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in gc.get_objects()
            if type(tensor) is torch.Tensor
        }
        return sum(storages.values()) / (8 * size)

    weights = torch.linspace(-1, 30, size, dtype=torch.float64)

    class Bowl(FunctionObjective):
        def hessian_vector(self, x, vector):
            nonlocal most
            if self.passes.hessian_vector % 20 == 0:
                most = max(most, living())
            self.passes.hessian_vector += 1
            return weights * vector

    objective = Bowl(lambda x: (weights * x * x).sum() / 2)
    gc.collect()
    x, before = torch.zeros(size, dtype=torch.float64), living()
    Hessian(objective, x).audit(tolerance=1e-9, max_products=300, probes=2)
    assert objective.passes.hessian_vector == 300 + 40
    assert most - before < 49 + 2 * 21 + 10


# ---- errors -------------------------------------------------------------------------------------

CALLS = [
    *(Hessian.extremes, Hessian.negative_share, Hessian.audit),
    lambda hessian: hessian.along(torch.ones_like(hessian.x)),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_loss_that_is_no_number_is_an_error(call):
    with pytest.raises(NonFiniteError, match="loss: nan"):
        call(Hessian(FunctionObjective(lambda x: (x * math.nan).sum()), torch.ones(3)))


@pytest.mark.parametrize("call", CALLS)
def test_an_infinite_second_derivative_is_an_error(call):
    with pytest.raises(NonFiniteError, match="Hessian–vector product"):
        call(Hessian(FunctionObjective(lambda x: (x**1.5).sum()), torch.zeros(3)))


@pytest.mark.parametrize("call", CALLS)
def test_a_model_that_does_not_repeat_itself_is_refused(call):
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Softmax(1)).double()
    inputs = torch.ones(5, 4, dtype=torch.float64)
    objective = FullBatch(model, mse, inputs, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(InputError, match="^model: .*that repeats itself"):
        call(Hessian(objective, objective.vector.read()))


@pytest.mark.parametrize(
    "call, option, value",
    [
        (Hessian.extremes, "tolerance", 0.0),
        (Hessian.extremes, "max_products", 0),
        (Hessian.extremes, "seed", -1),
        (Hessian.negative_share, "power", 3),
        (Hessian.negative_share, "probes", 0),
        (Hessian.negative_share, "steps", 0),
        (Hessian.audit, "tolerance", math.nan),
        (Hessian.audit, "probes", 0),
    ],
)
def test_options_out_of_range_are_named(call, option, value):
    bowl = FunctionObjective(lambda x: x @ x)
    with pytest.raises(InputError, match=f"^{option}: "):
        call(Hessian(bowl, torch.ones(3)), **{option: value})
    assert bowl.passes.total == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_curvature():
    here = attention()
    there = attention()
    there.model.cuda()
    there.inputs, there.targets = there.inputs.cuda(), there.targets.cuda()
    x = here.vector.read()
    ours, theirs = Hessian(here, x).audit(), Hessian(there, x.cuda()).audit()
    assert theirs.smallest == pytest.approx(ours.smallest, rel=1e-6)
    assert theirs.negative_share == pytest.approx(ours.negative_share, rel=1e-6)
