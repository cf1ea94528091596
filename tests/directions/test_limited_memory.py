"""Quasi-Newton directions against dense matrices and torch's own L-BFGS."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from twophase.directions import LBFGSDirection, SelfScaledBFGSDirection, State
from twophase.directions.direction import expected_step, steepest_descent
from twophase.directions.limited_memory import (
    HISTORY_BOUNDS,
    HISTORY_BYTES,
    History,
    Pair,
    capacity,
)
from twophase.errors import InputError
from twophase.line_search import SearchStatus, StrongWolfe
from twophase.objective import FunctionObjective, evaluate
from twophase.second_phase import Descent, iterate

RULES = {"lbfgs": LBFGSDirection, "ssbfgs": SelfScaledBFGSDirection}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def hessian(dimension, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(dimension, dtype=torch.float64)


def quartic(matrix):
    return lambda x: 0.5 * x @ matrix @ x + 0.1 * (x**4).sum()


def pairs_in(kept):
    """The pairs that a direction or a state remembers."""
    return History(**kept.memory).size if kept.memory else 0


def dense_bfgs(pairs, matrix):
    """H by the update formula of Nocedal and Wright, equation 6.17, each after its growth."""
    identity = torch.eye(len(matrix), dtype=torch.float64)
    for step, difference, growth in pairs:
        weight = 1 / (step @ difference)
        left = identity - weight * torch.outer(step, difference)
        matrix = growth * left @ matrix @ left.T + weight * torch.outer(step, step)
    return matrix


@given(seed=st.integers(0, 1000), count=st.integers(1, 30), history=st.integers(1, 20))
@settings(max_examples=40)
def test_the_compact_form_is_the_dense_bfgs_formula(vectors, point_at, seed, count, history):
    dimension = 5
    matrix = hessian(dimension, seed)
    steps, gradient = vectors(count, dimension, seed + 1), vectors(1, dimension, seed + 2)[0]
    pairs = tuple((step, matrix @ step, 1.0) for step in steps)
    inverse = vectors(1, dimension, seed + 3)[0].exp()
    kept = pairs[-history:]
    for diagonal in (None, inverse):
        scale = torch.ones(dimension).double() if diagonal is None else diagonal
        before = History.empty(gradient)
        for step, change, growth in pairs[:-1]:
            square = (change @ (scale * change)).item()
            pair = Pair(step, change, (step @ change).item(), square, growth)
            before, _ = before.after(gradient, pair, history)
        step, difference, _ = pairs[-1]
        memory = before._asdict() if before.size else None
        last = State(
            torch.zeros_like(gradient), gradient - difference, step, 1.0, -1.0, memory=memory
        )
        gamma = (step @ difference) / (difference @ (scale * difference))
        dense = dense_bfgs(kept, gamma * torch.diag(scale))
        found = LBFGSDirection(history)(point_at(gradient), last, diagonal)
        torch.testing.assert_close(found.vector, -dense @ gradient, rtol=1e-6, atol=1e-9)
        assert found.first_step == 1.0
        assert History(**found.memory).size == len(kept)


@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 8),
    history=st.sampled_from([1, 2, 3, None]),
    preconditioned=st.booleans(),
)
@settings(max_examples=80)
def test_self_scaled_directions_are_the_dense_formula(
    vectors, walk, seed, count, history, preconditioned
):
    """H is built and inverted densely here, where the rule knows s'H⁻¹s from the slope."""
    dimension = 5
    gradients, lengths = vectors(count + 1, dimension, seed), vectors(1, count, seed + 1)[0].exp()
    inverse = vectors(1, dimension, seed + 2)[0].exp() if preconditioned else None
    scales = torch.ones(dimension).double() if inverse is None else inverse
    found, seen = walk(SelfScaledBFGSDirection(history), gradients, lengths.tolist(), inverse)
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
        assert pairs_in(direction) == len(pairs)
        if pairs:
            end = (last.direction @ point.gradient).item()
            expected = min(1, expected_step(last, direction.slope, end))
            assert direction.first_step == pytest.approx(expected)


@every_rule
@pytest.mark.parametrize("history", [1, 3, 10])
def test_what_goes_on_from_a_state_changes_no_other(vectors, walk, point_at, rule, history):
    """Histories share what they keep: each goes on once more here, with another pair."""
    dimension, count = 5, 30
    lengths = vectors(1, count, 1)[0].exp().tolist()
    direction = rule(history)
    found, seen = walk(direction, vectors(count + 1, dimension, 0), lengths, None)
    for point, last in seen:
        direction(point_at(-2 * point.gradient + last.direction), last, None)
    for expected, (point, last) in zip(found[::-1], seen[::-1], strict=True):
        torch.testing.assert_close(direction(point, last, None).vector, expected.vector)


class Every:
    """A rule that goes along the steepest descent every so many iterations."""

    def __init__(self, rule, period):
        self.rule, self.period, self.calls = rule, period, 0

    def __call__(self, point, last, inverse):
        self.calls += 1
        if self.calls % self.period == 0:
            return steepest_descent(point.gradient, inverse)
        return self.rule(point, last, inverse)


class FailsOnce:
    """A search that fails at its fourth call."""

    calls = 0

    def __call__(self, line, first_step):
        self.calls += 1
        if self.calls == 4:
            return line.failure(SearchStatus.RESOLUTION)
        return StrongWolfe()(line, first_step)


@every_rule
def test_no_pair_outlives_a_steepest_descent(rule):
    """Only so do all pairs belong to the matrix that made the last step."""
    objective = FunctionObjective(quartic(hessian(6, 0)))
    x = torch.ones(6, dtype=torch.float64)

    def lengths(descent):
        point, state, kept = evaluate(objective, x), None, []
        for _ in range(7):
            iteration = iterate(objective, point, state, descent)
            point, state = iteration.point, iteration.state
            kept.append(pairs_in(state))
        return kept

    assert lengths(Descent(Every(rule(), 3), StrongWolfe())) == [0, 1, 2, 0, 1, 2, 0]
    assert lengths(Descent(rule(), FailsOnce())) == [0, 1, 2, 0, 1, 2, 3]


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_underflows_ends_and_does_not_raise(rule, dtype):
    """y'y is 0 where s'y is not, and slopes vanish on the way to a loss of 0."""
    least = 3.9e-163 if dtype == torch.float64 else 1e-23
    for inverse in (None, torch.full((1,), 1e-30, dtype=dtype)):
        objective = FunctionObjective(lambda x: least * ((x - 20) ** 2).sum())
        point, state = evaluate(objective, torch.full((1,), 2.0, dtype=dtype)), None
        descent, first = Descent(rule(), StrongWolfe()), point.value
        for _ in range(30):
            iteration = iterate(objective, point, state, descent, inverse)
            if iteration.status != "moved":
                break
            point, state = iteration.point or evaluate(objective, iteration.x), iteration.state
        assert torch.isfinite(point.x).all()
        assert point.value <= first


def test_a_pair_takes_at_most_its_share_of_memory():
    assert capacity(None, torch.empty(10)) == HISTORY_BOUNDS[1]
    assert capacity(7, torch.empty(10)) == 7
    for vector in (torch.empty(200_000), torch.empty(200_000).double()):
        kept = capacity(None, vector)
        taken = 2 * vector.numel() * vector.element_size()
        assert kept * taken <= HISTORY_BYTES < (kept + 1) * taken


def test_a_pair_without_curvature_is_left_out(point_at):
    gradient = torch.ones(3, dtype=torch.float64)
    last = State(torch.zeros(3).double(), 2 * gradient, gradient, 1.0, -1.0)  # s'y < 0
    for rule in (LBFGSDirection(5), SelfScaledBFGSDirection(5)):
        found = rule(point_at(gradient), last, None)
        assert torch.equal(found.vector, steepest_descent(gradient, None).vector)
        assert found.memory is None


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
    descent = Descent(LBFGSDirection(4), TorchsSteps())
    point, state = evaluate(objective, torch.ones(8, dtype=torch.float64)), None

    def closure():
        theirs.zero_grad()
        loss = function(weight)
        loss.backward()
        return loss

    for _ in range(10):
        theirs.step(closure)
        iteration = iterate(objective, point, state, descent)
        point, state = iteration.point, iteration.state
        torch.testing.assert_close(point.x, weight.detach(), rtol=1e-6, atol=1e-9)


@every_rule
@pytest.mark.parametrize("seed", range(3))
def test_bfgs_with_exact_steps_ends_a_quadratic_in_n_steps(ends_a_quadratic, rule, seed):
    assert ends_a_quadratic(rule(6), hessian(6, seed))


@every_rule
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "10"])
def test_a_history_out_of_range_names_itself(rule, value):
    with pytest.raises(InputError, match=f"^history_size: {value!r} is not allowed"):
        rule(value)
