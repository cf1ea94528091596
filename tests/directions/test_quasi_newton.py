"""Directions against dense matrices, transformed variables and torch's own L-BFGS."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from twophase.cg import CGSettings, iterate, minimize
from twophase.directions import (
    BETA_RULES,
    HISTORY_BOUNDS,
    HISTORY_BYTES,
    Change,
    ConjugateDirection,
    LimitedMemoryBFGS,
    Memory,
    SelfScaledBFGS,
    capacity,
    expected_step,
    hager_zhang,
    steepest_descent,
)
from twophase.errors import InputError
from twophase.line_search.golden_section import LINE_SEARCHES
from twophase.line_search.line import SearchResult, SearchStatus
from twophase.objective import FunctionObjective, Point, evaluate
from twophase.preconditioner import from_moments


def vectors(count, dimension, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def point_at(gradient):
    return Point(torch.zeros_like(gradient), 1.0, gradient, 1e-15)


@given(seed=st.integers(0, 1000), dimension=st.integers(2, 6))
def test_hager_zhang_descends_after_any_line_search(seed, dimension):
    """d'g <= −7/8 g'g for every y with d'y > 0, as long as β is not truncated."""
    gradient, previous, direction = vectors(3, dimension, seed)
    change = Change(gradient, previous, direction)
    vector = -gradient + hager_zhang(change) * direction
    if change.dy > 0 and hager_zhang(change) > 0.4 * change.dp / change.dd:
        assert vector @ gradient <= -7 / 8 * gradient @ gradient * (1 - 1e-9)


@given(seed=st.integers(0, 1000))
def test_hestenes_stiefel_is_conjugate_after_any_line_search(seed):
    """The next direction d has d'y = 0; on a quadratic, y = A s makes that conjugacy."""
    gradient, previous, direction = vectors(3, 4, seed)
    change = Change(gradient, previous, direction)
    if change.dy > 0:
        vector = -gradient + BETA_RULES["HS"](change) * direction
        bound = 1e-9 * vector.norm() * (gradient - previous).norm()
        assert abs(vector @ (gradient - previous)) <= bound


@pytest.mark.parametrize("beta", BETA_RULES)
@pytest.mark.parametrize("seed", range(5))
def test_every_direction_descends(beta, seed):
    gradient, previous, direction = vectors(3, 5, seed)
    last = Memory(torch.zeros(5).double(), previous, direction, 1.0, -1.0)
    found = ConjugateDirection(beta)(point_at(gradient), last, None)
    assert found.slope == pytest.approx((found.vector @ gradient).item())
    assert found.slope < 0


def test_powell_restarts_where_gradients_are_far_from_orthogonal():
    previous = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for angle, restarts in ((0.1, False), (0.3, True), (-0.3, True)):
        gradient = torch.tensor([angle, 1.0], dtype=torch.float64)
        last = Memory(torch.zeros(2).double(), previous, -previous, 1.0, -1.0)
        found = ConjugateDirection("FR", powell=0.2)(point_at(gradient), last, None)
        assert torch.equal(found.vector, -gradient) == restarts


def hessian(dimension, seed):
    root = vectors(dimension, dimension, seed)
    return root @ root.T + torch.eye(dimension, dtype=torch.float64)


def quartic(matrix):
    return lambda x: 0.5 * x @ matrix @ x + 0.1 * (x**4).sum()


@pytest.mark.parametrize("line_search", LINE_SEARCHES.values(), ids=LINE_SEARCHES)
@pytest.mark.parametrize("beta", [None, *BETA_RULES])
def test_preconditioning_is_a_change_of_variables(line_search, beta):
    """With x = S z, S² = M⁻¹: the iterates in x with M are those in z without."""

    def from_one_step(line, first_step):  # the first trial of all depends on the length of x
        return line_search(line, 0.05)

    function = quartic(hessian(6, 0))
    inverse = torch.logspace(-2, 2, 6, dtype=torch.float64)
    root = inverse.sqrt()
    chosen = CGSettings(beta, from_one_step)
    plain = FunctionObjective(function)
    scaled = FunctionObjective(lambda z: function(root * z))
    x = torch.ones(6, dtype=torch.float64)
    points, memories = [evaluate(plain, x), evaluate(scaled, x / root)], [None, None]
    for _ in range(6):
        one = iterate(plain, points[0], memories[0], chosen, inverse)
        two = iterate(scaled, points[1], memories[1], chosen)
        torch.testing.assert_close(root * two.x, one.x, rtol=1e-6, atol=1e-9)
        assert two.evaluations == one.evaluations
        points = [one.point or evaluate(plain, one.x), two.point or evaluate(scaled, two.x)]
        memories = [one.memory, two.memory]


def dense_bfgs(pairs, matrix):
    """H by the update formula of Nocedal and Wright, equation 6.17, each after its growth."""
    identity = torch.eye(len(matrix), dtype=torch.float64)
    for step, difference, growth in pairs:
        weight = 1 / (step @ difference)
        left = identity - weight * torch.outer(step, difference)
        matrix = growth * left @ matrix @ left.T + weight * torch.outer(step, step)
    return matrix


@given(seed=st.integers(0, 1000), count=st.integers(1, 7), history=st.integers(1, 8))
@settings(max_examples=40)
def test_two_loops_are_the_dense_bfgs_formula(seed, count, history):
    dimension = 5
    matrix = hessian(dimension, seed)
    steps, gradient = vectors(count, dimension, seed + 1), vectors(1, dimension, seed + 2)[0]
    pairs = tuple((step, matrix @ step, 1.0) for step in steps)
    inverse = vectors(1, dimension, seed + 3)[0].exp()
    step, difference, _ = pairs[-1]
    last = Memory(
        torch.zeros_like(gradient), gradient - difference, step, 1.0, -1.0, pairs=pairs[:-1]
    )
    kept = pairs[-history:]
    for diagonal in (None, inverse):
        scale = torch.ones(dimension).double() if diagonal is None else diagonal
        gamma = (step @ difference) / (difference @ (scale * difference))
        dense = dense_bfgs(kept, gamma * torch.diag(scale))
        found = LimitedMemoryBFGS(history)(point_at(gradient), last, diagonal)
        torch.testing.assert_close(found.vector, -dense @ gradient, rtol=1e-6, atol=1e-9)
        assert found.first_step == 1.0
        assert len(found.pairs) == len(kept)


def walk(rule, gradients, lengths, inverse):
    """Directions of a rule that is shown one gradient after another, and what it saw at each."""
    found, seen = [steepest_descent(gradients[0], inverse)], []
    for before, gradient, length in zip(gradients, gradients[1:], lengths, strict=False):
        last = Memory(
            *(torch.zeros_like(gradient), before, found[-1].vector, length, found[-1].slope),
            *(found[-1].age, 0.0, found[-1].pairs),
        )
        seen.append((point_at(gradient), last))
        found.append(rule(*seen[-1], inverse))
    return found[1:], seen


@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 8),
    history=st.sampled_from([1, 2, 3, None]),
    preconditioned=st.booleans(),
)
@settings(max_examples=80)
def test_self_scaled_directions_are_the_dense_formula(seed, count, history, preconditioned):
    """H is built and inverted densely here, where the rule knows s'H⁻¹s from the slope."""
    dimension = 5
    gradients, lengths = vectors(count + 1, dimension, seed), vectors(1, count, seed + 1)[0].exp()
    inverse = vectors(1, dimension, seed + 2)[0].exp() if preconditioned else None
    scales = torch.ones(dimension).double() if inverse is None else inverse
    found, seen = walk(SelfScaledBFGS(history), gradients, lengths.tolist(), inverse)
    pairs, matrix = [], torch.diag(scales)
    for direction, (point, last) in zip(found, seen, strict=True):
        step, difference = last.step * last.direction, point.gradient - last.gradient
        curvature = step @ difference
        if curvature > 0:
            size = step @ torch.linalg.solve(matrix, step)
            growth = max(1.0, (size / curvature).item()) if pairs else 1.0
            pairs = [*pairs, (step, difference, growth)][-(history or count) :]
            oldest, y, _ = pairs[0]
            gamma = (oldest @ y) / (y @ (scales * y))
            pairs[0] = oldest, y, 1.0
            matrix = dense_bfgs(pairs, gamma * torch.diag(scales))
        expected = -matrix @ point.gradient
        torch.testing.assert_close(direction.vector, expected, rtol=1e-5, atol=1e-8)
        assert len(direction.pairs) == len(pairs)
        if pairs:
            assert direction.first_step == min(1, expected_step(point, last, direction.slope))


@pytest.mark.parametrize("direction", ["lbfgs", "ssbfgs"])
def test_no_pair_outlives_a_steepest_descent(direction):
    """Only so do all pairs belong to the matrix that made the last step."""
    objective = FunctionObjective(quartic(hessian(6, 0)))
    x = torch.ones(6, dtype=torch.float64)

    def lengths(chosen):
        point, memory, kept = evaluate(objective, x), None, []
        for _ in range(7):
            iteration = iterate(objective, point, memory, chosen)
            point, memory = iteration.point, iteration.memory
            kept.append(len(memory.pairs))
        return kept

    wolfe = LINE_SEARCHES["wolfe"]
    assert lengths(CGSettings(direction=direction, restart_every=3)) == [0, 1, 2, 0, 1, 2, 0]

    class FailsOnce:
        searches = 0

        def __call__(self, line, first_step):
            self.searches += 1
            if self.searches == 4:
                return line.failure(SearchStatus.RESOLUTION)
            return wolfe(line, first_step)

    assert lengths(CGSettings(direction=direction, line_search=FailsOnce())) == [
        0,
        1,
        2,
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("direction", ["lbfgs", "ssbfgs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_underflows_ends_and_does_not_raise(direction, dtype):
    """y'y is 0 where s'y is not, and slopes vanish on the way to a loss of 0."""
    least = 3.9e-163 if dtype == torch.float64 else 1e-23
    for inverse in (None, torch.full((1,), 1e-30, dtype=dtype)):
        objective = FunctionObjective(lambda x: least * ((x - 20) ** 2).sum())
        point, memory = evaluate(objective, torch.full((1,), 2.0, dtype=dtype)), None
        chosen, first = CGSettings(direction=direction), point.value
        for _ in range(30):
            iteration = iterate(objective, point, memory, chosen, inverse)
            if iteration.status != "moved":
                break
            point, memory = iteration.point or evaluate(objective, iteration.x), iteration.memory
        assert torch.isfinite(point.x).all()
        assert point.value <= first


def test_a_pair_takes_at_most_its_share_of_memory():
    assert capacity(None, torch.empty(10)) == HISTORY_BOUNDS[1]
    assert capacity(7, torch.empty(10)) == 7
    for vector in (torch.empty(500_000), torch.empty(500_000).double()):
        kept = capacity(None, vector)
        taken = 2 * vector.numel() * vector.element_size()
        assert kept * taken <= HISTORY_BYTES < (kept + 1) * taken


def test_a_pair_without_curvature_is_left_out():
    gradient = torch.ones(3, dtype=torch.float64)
    last = Memory(torch.zeros(3).double(), 2 * gradient, gradient, 1.0, -1.0)  # s'y < 0
    for rule in (LimitedMemoryBFGS(5), SelfScaledBFGS(5)):
        found = rule(point_at(gradient), last, None)
        assert torch.equal(found.vector, steepest_descent(gradient, None).vector)
        assert found.pairs == ()


def test_follows_torchs_lbfgs_step_by_step():
    """With torch's steps, 1 after a first min(1, 1 / |g|_1), the iterates are torch's."""

    class TorchsSteps:
        def __call__(self, line, first_step):
            steepest = line.slope == -(line.direction @ line.direction).item()
            step = min(1.0, 1 / line.direction.abs().sum().item()) if steepest else first_step
            return line.result(line.gradient_trial(step), SearchStatus.MINIMUM)

    function = quartic(hessian(8, 3))
    weight = nn.Parameter(torch.ones(8, dtype=torch.float64))
    theirs = torch.optim.LBFGS(
        [weight], lr=1, max_iter=1, history_size=4, tolerance_grad=0, tolerance_change=0
    )
    objective = FunctionObjective(function)
    chosen = CGSettings(line_search=TorchsSteps(), direction="lbfgs", history=4)
    point, memory = evaluate(objective, torch.ones(8, dtype=torch.float64)), None

    def closure():
        theirs.zero_grad()
        loss = function(weight)
        loss.backward()
        return loss

    for _ in range(10):
        theirs.step(closure)
        iteration = iterate(objective, point, memory, chosen)
        point, memory = iteration.point, iteration.memory
        torch.testing.assert_close(point.x, weight.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", ["lbfgs", "ssbfgs"])
@pytest.mark.parametrize("seed", range(3))
def test_bfgs_with_exact_steps_ends_a_quadratic_in_n_steps(seed, direction):
    matrix = hessian(6, seed)

    class Exact:
        def __call__(self, line, first_step):
            step = -line.slope / (line.direction @ matrix @ line.direction).item()
            return SearchResult(step, line.trial(step).value, 1, SearchStatus.MINIMUM)

    chosen = CGSettings(line_search=Exact(), direction=direction, history=6)
    objective = FunctionObjective(lambda x: 0.5 * x @ matrix @ x)
    x = torch.ones(6, dtype=torch.float64)
    assert minimize(objective, x, 6, chosen).gradient_norm < 1e-9 * (matrix @ x).norm()


def trained(steps=3):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    adam = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        adam.zero_grad()
        model(torch.ones(4, 3).double()).square().sum().backward()
        adam.step()
    return model, adam


def test_the_preconditioner_is_what_adam_scales_its_steps_with():
    """Without momentum, Adam's step is −rate · M⁻¹ g."""
    model = nn.Linear(3, 2).double()
    adam = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.0, 0.9))
    for _ in range(4):
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        adam.zero_grad()
        model(torch.ones(4, 3).double()).square().sum().backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        adam.step()
        step = nn.utils.parameters_to_vector(model.parameters()).detach() - before
        inverse = from_moments(adam, model.parameters(), damping=0)
        torch.testing.assert_close(step, -0.01 * inverse * gradient)


def test_damping_bounds_the_scales_and_serves_unused_parameters():
    model, adam = trained()
    spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    adam.add_param_group({"params": [spare]})
    parameters = [*model.parameters(), spare]
    plain, damped = (1 / from_moments(adam, parameters, damping=d) for d in (0, 0.5))
    torch.testing.assert_close(damped, plain + 0.5 * (plain - 1e-8).mean())
    assert (damped[-2:] >= 0.5 * (plain - 1e-8).mean()).all()


def test_a_wrong_preconditioner_is_explained():
    model, adam = trained()
    other = nn.Linear(3, 2)
    sgd = torch.optim.SGD(model.parameters())
    for optimizer, parameters in ((adam, other.parameters()), (sgd, model.parameters())):
        with pytest.raises(InputError, match="^preconditioner: .* an Adam that has trained"):
            from_moments(optimizer, parameters)
    with pytest.raises(InputError, match="^preconditioner: 'an Adam without a step'"):
        from_moments(torch.optim.Adam(model.parameters()), model.parameters())
    with pytest.raises(InputError, match="^damping: -1 is not allowed"):
        from_moments(adam, model.parameters(), damping=-1)


@pytest.mark.parametrize("direction", ["lbfgs", "ssbfgs"])
def test_no_beta_is_ignored(direction):
    allowed = f"use none with direction {direction}, which has no β"
    with pytest.raises(InputError, match=f"^beta: 'PR[+]' is not allowed; {allowed}"):
        CGSettings("PR+", direction=direction)


@pytest.mark.parametrize(
    ("field", "value"),
    [("direction", "bfgs"), ("history", 0), ("powell", 0.0), ("preconditioner", "diagonal")],
)
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: {value!r} is not allowed"):
        CGSettings(**{field: value})
