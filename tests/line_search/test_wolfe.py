"""Strong Wolfe searches against the inequalities themselves, and where arithmetic or slopes end."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.line_search import Line, ParabolaFirst, SearchStatus, StrongWolfe
from twophase.objective import FunctionObjective

COEFFICIENTS = st.floats(0.01, 100.0)
FIRST_STEPS = st.floats(-12, 12).map(lambda exponent: 10.0**exponent)
SEARCHES = {
    "exact-like": StrongWolfe(c2=0.01),
    "for-cg": StrongWolfe(c2=0.1),
    "default": StrongWolfe(),
    "parabola": ParabolaFirst(),
    "parabola-tight": ParabolaFirst(StrongWolfe(c2=0.1)),
}
every_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


def conditions(search):
    return getattr(search, "search", search)


def assert_strong_wolfe(search, function, line, result):
    """Both inequalities, by an evaluation of its own."""
    step = torch.tensor(result.step, dtype=torch.float64, requires_grad=True)
    value = function(step)
    (slope,) = torch.autograd.grad(value, step)
    wolfe = conditions(search)
    bound = line.start.value + wolfe.c1 * result.step * line.slope
    assert value.item() <= bound + line.resolution
    assert abs(slope.item()) <= wolfe.c2 * abs(line.slope) * (1 + 1e-9)


@every_search
@settings(max_examples=50)
@given(quadratic=COEFFICIENTS, quartic=COEFFICIENTS, minimum=COEFFICIENTS, first_step=FIRST_STEPS)
def test_the_conditions_hold_on_a_convex_line(
    line_of, search, quadratic, quartic, minimum, first_step
):
    def function(t):
        return quadratic * (t - minimum) ** 2 + quartic * (t - minimum) ** 4

    line = line_of(function)
    result = search(line, first_step)
    assert result.status is SearchStatus.MINIMUM
    assert_strong_wolfe(search, function, line, result)


@every_search
@settings(max_examples=50)
@given(
    frequency=st.floats(0.1, 30),
    height=st.floats(0.01, 10),
    slope=st.floats(0.01, 10),
    first_step=FIRST_STEPS,
)
def test_the_conditions_hold_on_a_wavy_line(line_of, search, frequency, height, slope, first_step):
    def function(t):
        return height * torch.sin(frequency * t) ** 2 - slope * t + 0.01 * t**2

    line = line_of(function)
    result = search(line, first_step)
    assert result.value <= line.start.value + line.resolution
    assert result.status in (SearchStatus.MINIMUM, SearchStatus.LIMIT)
    if result.status is SearchStatus.MINIMUM:
        assert_strong_wolfe(search, function, line, result)


@every_search
@settings(max_examples=50)
@given(first_step=FIRST_STEPS)
def test_what_is_handed_on_is_the_point_at_the_step(line_of, search, first_step):
    line = line_of(lambda t: (t - 3) ** 2 + torch.exp(t))
    result = search(line, first_step)
    value, gradient = line.objective.value_and_gradient(result.point.x)
    assert result.point.x.item() == result.step
    assert (result.value, result.point.value) == (value, value)
    assert torch.equal(result.point.gradient, gradient)


@every_search
@settings(max_examples=50)
@given(first_step=FIRST_STEPS, power=st.integers(-60, 60))
def test_the_scale_of_the_loss_changes_nothing(line_of, search, first_step, power):
    """A power of two scales without rounding: the steps are equal to the last bit."""

    def function(t):
        return (t - 3) ** 2 + (t - 3) ** 4 + 1

    plain = search(line_of(function), first_step)
    scaled = search(line_of(lambda t: 2.0**power * function(t)), first_step)
    assert scaled.step == plain.step
    assert scaled.value == 2.0**power * plain.value


@pytest.mark.parametrize("max_evaluations", [1, 2, 5])
@given(first_step=FIRST_STEPS)
def test_the_bound_on_trials_holds(line_of, max_evaluations, first_step):
    line = line_of(lambda t: (t - 1) ** 2 + 10 * torch.sin(5 * t))
    result = StrongWolfe(c2=0.1, max_evaluations=max_evaluations)(line, first_step)
    assert result.evaluations <= max_evaluations
    assert line.objective.passes.backward == result.evaluations + 1  # 1: the slope at the start
    assert result.value <= line.start.value + line.resolution


def test_a_parabola_takes_one_forward_trial_and_one_with_the_gradient(line_of):
    for first_step in (0.2, 1.0, 5.0):
        line = line_of(lambda t: (t - 1) ** 2 + 0.5)
        before = line.objective.passes.total
        result = ParabolaFirst()(line, first_step)
        assert result.step == pytest.approx(1)
        assert line.objective.passes.total - before == 4


@every_search
def test_slopes_find_the_minimum_where_losses_cannot_be_compared(line_of, search):
    """Within 1e-9 of the minimum, all losses are the same number, or two units above the start."""
    for noise in (0.0, 4.4e-16):
        line = line_of(lambda t, noise=noise: (t - 1e-9) ** 2 + 1 + torch.where(t > 0, noise, 0.0))
        result = search(line, 1e-10)
        assert result.status is SearchStatus.MINIMUM
        assert abs(result.step - 1e-9) <= conditions(search).c2 * 1e-9 * (1 + 1e-6)


@every_search
def test_rounding_errors_of_earlier_losses_are_no_wrong_gradient(line_of, search):
    """A loss of 1e-16 with the errors of losses of 1, which training may have begun with."""

    def function(t):
        return 1e-16 * (1 - t) + torch.where(t > 0, 2e-16, 0.0)

    for scale, blamed in ((0.0, True), (1.0, False)):
        result = search(line_of(function, scale=scale), 1.0)
        assert result.step == 0
        assert (result.status is SearchStatus.NO_DESCENT) == blamed


@pytest.mark.parametrize("c1", [0.1, 0.3, 0.45])
@pytest.mark.parametrize("first_step", [1.05, 1.3, 1.5, 1.75, 1.89])
def test_the_decrease_is_as_large_as_is_asked_for(line_of, c1, first_step):
    """On (t − 1)² slopes are flat enough up to 1.9, the loss low enough up to 2 (1 − c1)."""
    result = StrongWolfe(c1=c1)(line_of(lambda t: (t - 1) ** 2), first_step)
    assert result.value <= 1 - 2 * c1 * result.step
    assert (result.evaluations == 1) == (first_step <= 2 * (1 - c1))


@every_search
@pytest.mark.parametrize("first_step", [1e-6, 1.0, 1e6])
def test_rising_loss_against_a_lying_slope_is_no_descent(search, first_step):
    class Liar(FunctionObjective):
        def value_and_gradient(self, x):
            value, gradient = super().value_and_gradient(x)
            return value, -gradient

    objective = Liar(lambda x: (x + 1).square().sum() + 1)
    x = torch.zeros(1, dtype=torch.float64)
    value, gradient = objective.value_and_gradient(x)
    line = Line(objective, x, -gradient, value, -(gradient.item() ** 2))
    result = search(line, first_step)
    assert (result.status, result.step) == (SearchStatus.NO_DESCENT, 0.0)


@every_search
def test_a_loss_that_is_never_finite_is_reported(line_of, search):
    result = search(line_of(lambda t: torch.where(t > 0, t / 0, 1 - t)), 1.0)
    assert (result.status, result.step) == (SearchStatus.NOT_FINITE, 0.0)


@every_search
@pytest.mark.parametrize("wall", [math.inf, math.nan])
def test_a_wall_is_stepped_back_from(line_of, search, wall):
    line = line_of(lambda t: torch.where(t < 2, (t - 1) ** 2, t + wall))
    result = search(line, 1e6)
    assert result.status is SearchStatus.MINIMUM
    assert 0 < result.step < 2


@every_search
def test_a_loss_without_a_minimum_ends_at_the_bound_with_its_best_step(line_of, search):
    result = search(line_of(lambda t: -t), 1.0)
    assert result.status is SearchStatus.LIMIT
    assert result.value == -result.step < 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("c1", 0),
        ("c1", 0.5),
        ("c2", 1e-4),
        ("c2", 1),
        ("c2", math.nan),
        ("max_evaluations", 0),
    ],
)
def test_a_setting_out_of_range_names_itself(field, value):
    with pytest.raises(InputError, match=f"^{field}: {value!r} is not allowed"):
        StrongWolfe(**{field: value})
