"""Least-squares losses: values, Jacobians and what they cost, against torch.func and algebra."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import twophase
from twophase.errors import InputError
from twophase.least_squares import LeastSquares, Term, squares_of
from twophase.objective import FunctionObjective
from twophase.objectives.full_batch import FullBatch


def model(inputs=2, outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def points(count=7, size=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def laplace(network, x):
    return twophase.derivatives(network, x)[2].sum(dim=1) - x.sum(dim=1, keepdim=True)


def away(network, given):
    x, y = given
    return network(x) - y


def flat(network, x):
    return network(x)[:, 0] - 1


TERMS = {
    "an equation": [Term(laplace, points())],
    "several, with weights": [
        Term(laplace, points(), 0.5),
        Term(flat, points(3), 10.0),
        Term(away, (points(4), points(4, 1, 2)), 2.0),
    ],
    "one of weight 0": [Term(flat, points(3)), Term(laplace, points(), 0.0)],
    "one point": [Term(flat, points(1))],
    "targets in integers": [Term(away, (points(4), torch.tensor([[0], [1], [2], [1]])))],
}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_the_loss_is_the_weighted_sum_of_mean_squares(terms, chunk_size):
    network = model()
    problem = LeastSquares(network, terms, chunk_size)
    x = problem.vector.read()
    loss = sum(t.weight * t.residual(network, t.points).square().mean() for t in terms)
    gradient = torch.autograd.grad(loss, list(network.parameters()))
    assert problem.value(x) == pytest.approx(loss.item(), rel=1e-13)
    value, found = problem.value_and_gradient(x)
    assert value == pytest.approx(loss.item(), rel=1e-13)
    assert torch.allclose(found, torch.cat([g.flatten() for g in gradient]), rtol=1e-12)
    assert (problem.passes.forward, problem.passes.backward) == (2, 1)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_residuals_and_jacobian_are_those_of_torch_func(terms):
    network = model()
    problem = LeastSquares(network, terms)
    x = problem.vector.read()
    names, shapes = zip(*((n, p.shape) for n, p in network.named_parameters()), strict=True)

    class Together(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self):
            parts = []
            for t in terms:
                if t.weight:
                    rows = t.residual(self.network, t.points).reshape(-1)
                    parts.append(rows * (t.weight / rows.numel()) ** 0.5)
            return torch.cat(parts)

    def residuals(vector):
        split = vector.split([s.numel() for s in shapes])
        values = {f"network.{n}": v.view(s) for n, v, s in zip(names, split, shapes, strict=True)}
        return functional_call(Together(), values, ())

    found = problem.linearize(x)
    assert torch.allclose(found.residuals, residuals(x), rtol=1e-12)
    assert torch.allclose(problem.residuals(x), residuals(x), rtol=1e-12)
    assert torch.allclose(found.jacobian, jacrev(residuals)(x), rtol=1e-10, atol=1e-13)
    assert torch.allclose(found.gradient, problem.value_and_gradient(x)[1], rtol=1e-10, atol=1e-13)
    assert problem.size == tuple(found.jacobian.shape)


def test_a_jacobian_counts_as_its_backward_passes_and_is_made_once():
    problem = LeastSquares(model(outputs=3), [Term(lambda m, x: m(x), points())])
    x = problem.vector.read()
    first = problem.linearize(x)
    assert (problem.passes.forward, problem.passes.backward) == (1, 3)
    assert problem.linearize(x.clone()) is first
    assert problem.passes.total == 7
    problem.linearize(x + 1, counted=False)
    assert problem.passes.total == 7


def test_frozen_and_shared_parameters_and_plain_torch_on_layers():
    network = model()
    network[0].bias.requires_grad_(False)

    def residual(net, x):
        return torch.tanh(x @ net[0].weight.T) @ net[2].weight.T

    problem = LeastSquares(network, [Term(residual, points())])
    x = problem.vector.read()
    assert problem.size == (7, len(x)) and len(x) == 10 + 5 + 1
    value, gradient = problem.value_and_gradient(x)
    assert torch.allclose(problem.linearize(x).gradient, gradient)


def test_single_precision_points_follow_the_model():
    problem = LeastSquares(model().float(), [Term(flat, points())])
    x = problem.vector.read()
    assert x.dtype == torch.float32
    found = problem.linearize(x)
    assert found.jacobian.dtype == found.residuals.dtype == torch.float64
    assert problem.value(x) == pytest.approx(found.residuals.square().sum().item(), rel=1e-5)


def value_of(residual):
    problem = LeastSquares(model(), [Term(residual, points())])
    return problem.value(problem.vector.read())


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("residual", lambda: Term(3, points())),
        ("residual", lambda: Term(lambda x: x, points())),
        ("weight", lambda: Term(flat, points(), -1.0)),
        ("weight", lambda: Term(flat, points(), float("nan"))),
        ("points", lambda: Term(flat, points()[:0])),
        ("points", lambda: Term(flat, [1.0])),
        ("points", lambda: Term(away, (points(3), points(4)))),
        ("terms", lambda: LeastSquares(model(), [])),
        ("terms", lambda: LeastSquares(model(), [flat])),
        ("chunk_size", lambda: LeastSquares(model(), [Term(flat, points())], 0)),
        ("residual", lambda: value_of(lambda m, x: m(x).mean())),
        ("residual", lambda: value_of(lambda m, x: m(x)[:2])),
        ("residual", lambda: value_of(lambda m, x: 0.0)),
    ],
)
def test_bad_input_is_one_line(field, make):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.field == field
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loss", [twophase.mse, nn.functional.mse_loss, nn.MSELoss()])
@pytest.mark.parametrize("width", [1, 3])
def test_a_full_batch_with_mean_squared_errors_is_one_by_itself(loss, width):
    full = FullBatch(model(outputs=width), loss, points(), points(size=width, seed=2))
    squares = squares_of(full)
    x = full.vector.read()
    assert squares.value(x) == pytest.approx(full.value(x), rel=1e-13)
    assert torch.allclose(squares.linearize(x).gradient, full.value_and_gradient(x)[1], rtol=1e-10)
    assert full.passes is squares.passes


def test_classes_are_one_hot_as_in_the_papers_loss():
    full = FullBatch(model(outputs=3), twophase.mse, points(4), torch.tensor([0, 2, 1, 1]))
    x = full.vector.read()
    assert squares_of(full).value(x) == pytest.approx(full.value(x), rel=1e-13)
    assert squares_of(full).linearize(x).residuals.shape == (12,)


@pytest.mark.parametrize("loss", [nn.MSELoss(reduction="sum"), nn.functional.l1_loss])
def test_other_losses_are_no_sums_of_squares(loss):
    assert squares_of(FullBatch(model(), loss, points(), points(size=1))) is None
    assert squares_of(FunctionObjective(lambda x: x @ x)) is None


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_products_are_those_with_the_jacobian(chunk_size):
    """Several terms, one with two residuals for a point, in chunks that do not divide them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    points = torch.randn(11, 2, dtype=torch.float64)
    terms = [Term(lambda m, p: m(p)[:, 0] - 1, points, 0.3), Term(lambda m, p: m(p), points[:7])]
    problem = LeastSquares(model, terms, chunk_size)
    x = problem.vector.read()
    jacobian = problem.linearize(x).jacobian
    before = problem.passes.total
    along, rows = torch.randn(len(x)).double(), torch.randn(len(jacobian)).double()
    torch.testing.assert_close(problem.push(x, along), jacobian @ along)
    torch.testing.assert_close(problem.pull(x, rows), jacobian.T @ rows)
    assert problem.passes.total - before == 6


def two_terms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None]
    terms = [Term(lambda m, p: m(p) - p, x, 0.5), Term(lambda m, p: m(p)[:, 0], x[:2], 3.0)]
    return LeastSquares(model, terms)


def test_the_loss_of_a_batch_is_on_average_the_whole_one():
    problem = two_terms()
    whole = problem.value(problem.vector.read())
    assert problem.count == 12
    assert problem.batch_loss(torch.arange(12)).item() == pytest.approx(whole, rel=1e-12)
    for size in (1, 3, 4):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(size))
        losses = [problem.batch_loss(batch).item() for batch in order.split(size)]
        assert sum(losses) / len(losses) == pytest.approx(whole, rel=1e-12)
    problem.batch_loss(torch.tensor([10])).backward()  # of the second term alone
    assert problem.vector.parameters[0].grad.any()


def test_what_a_training_loop_asks_is_loss_and_gradient():
    problem = two_terms()
    x = problem.vector.read()
    point, accuracy = problem.measure(x)
    value, gradient = problem.value_and_gradient(x)
    assert (point.value, accuracy) == (value, None) and torch.equal(point.gradient, gradient)
    assert problem.score(x) == (problem.value(x), None)


def test_residuals_that_look_at_other_points_are_one_line():
    line = nn.Linear(1, 1).double()
    x = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    mixed = Term(lambda model, points: model(points) - model(points).mean(), x)
    with pytest.raises(InputError, match="^residual: .* use row i from point i alone"):
        twophase.minimize(LeastSquares(line, [mixed]), passes=10)


def test_derivatives_by_autograd_in_a_residual_are_one_line():
    """The usual way of physics-informed networks, which `derivatives` replaces here."""
    line = nn.Linear(1, 1).double()
    x = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]

    def slope(model, points):
        return torch.autograd.grad(model(points).sum(), points, create_graph=True)[0]

    with pytest.raises(InputError, match="^residual: .* twophase.derivatives"):
        twophase.minimize(LeastSquares(line, [Term(slope, x)]), passes=10)


def test_minimize_says_what_it_takes():
    with pytest.raises(InputError, match="^problem: 'function' .* `fit` takes closures"):
        twophase.minimize(lambda: torch.ones(()), passes=10)


def test_wrong_types_are_one_clear_line():
    term = Term(lambda model, points: model(points), torch.ones(3, 1))
    with pytest.raises(InputError, match="^model: None"):
        LeastSquares(None, [term])
    with pytest.raises(InputError, match="^terms: 5"):
        LeastSquares(nn.Linear(1, 1), 5)
    with pytest.raises(InputError, match="^model: 'NoneType'"):
        twophase.derivatives(None, torch.ones(3, 1))
    with pytest.raises(InputError, match="^points: 'list'"):
        twophase.derivatives(nn.Linear(1, 1), [1.0])
