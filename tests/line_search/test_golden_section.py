"""Golden section against its definition and against scipy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from twophase.errors import InputError
from twophase.line_search import GoldenSection, SearchStatus

COEFFICIENTS = st.floats(0.01, 100.0)
FIRST_STEPS = st.floats(-12, 12).map(lambda exponent: 10.0**exponent)


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4])
@given(quadratic=COEFFICIENTS, quartic=COEFFICIENTS, minimum=COEFFICIENTS, first_step=FIRST_STEPS)
def test_finds_the_minimum_to_the_tolerance(line_of, rtol, quadratic, quartic, minimum, first_step):
    def function(t):
        return quadratic * (t - minimum) ** 2 + quartic * (t - minimum) ** 4

    result = GoldenSection(rtol)(line_of(function), first_step)
    exact = minimize_scalar(function, bracket=(0, minimum), tol=1e-12).x
    assert result.status is SearchStatus.MINIMUM
    assert abs(result.step - exact) <= 2 * rtol * exact


@given(
    frequency=st.floats(0.1, 30),
    height=st.floats(0.01, 10),
    slope=st.floats(0.01, 10),
    first_step=FIRST_STEPS,
    max_evaluations=st.integers(3, 40),
)
def test_never_raises_the_loss_nor_exceeds_the_bound(
    line_of, frequency, height, slope, first_step, max_evaluations
):
    def function(t):
        return height * torch.sin(frequency * t) ** 2 - slope * t + 0.01 * t**2

    line = line_of(function)
    result = GoldenSection(1e-3, max_evaluations)(line, first_step)
    assert result.evaluations <= max_evaluations
    assert line.objective.passes.forward == result.evaluations + 1  # 1: the slope at the start
    assert line.objective.passes.backward == 1
    assert result.value <= line.start.value
    assert result.descended == (result.value < line.start.value)
    there = line.objective.value(torch.full((1,), result.step, dtype=torch.float64))
    assert there == result.value


@given(first_step=FIRST_STEPS, power=st.integers(-60, 60))
def test_the_scale_of_the_loss_changes_nothing(line_of, first_step, power):
    """A power of two scales without rounding: the steps are equal to the last bit."""

    def function(t):
        return (t - 3) ** 2 + (t - 3) ** 4 + 1

    plain = GoldenSection(1e-3)(line_of(function), first_step)
    scaled = GoldenSection(1e-3)(line_of(lambda t: 2.0**power * function(t)), first_step)
    assert scaled.step == plain.step
    assert scaled.value == 2.0**power * plain.value


def test_a_search_at_the_default_tolerance_takes_about_fourteen_forward_passes(line_of):
    costs = [
        GoldenSection()(line_of(lambda t: (t - 1) ** 2 + 0.5), first_step).evaluations
        for first_step in torch.linspace(0.4, 2.0, 17).tolist()
    ]
    assert 11 <= sorted(costs)[len(costs) // 2] <= 15


def test_a_tight_search_finds_the_minimum_beyond_what_comparing_losses_can(line_of):
    """Losses near the minimum 1 differ by less than 1 ulp within 1e-8 of the best step."""
    line = line_of(lambda t: (t - math.pi) ** 2 + 1)
    result = GoldenSection(rtol=1e-8)(line, 1.0)
    assert abs(result.step - math.pi) < 1e-10


def test_rising_loss_against_a_lying_slope_is_no_descent(line_of):
    result = GoldenSection()(line_of(lambda t: t + 1, slope=-1.0), 1.0)
    assert (result.status, result.step) == (SearchStatus.NO_DESCENT, 0.0)


def test_a_loss_that_is_never_finite_is_reported(line_of):
    result = GoldenSection()(line_of(lambda t: torch.where(t > 0, t / 0, 1 - t)), 1.0)
    assert (result.status, result.step) == (SearchStatus.NOT_FINITE, 0.0)


def test_a_wall_of_infinite_losses_is_stepped_back_from(line_of):
    line = line_of(lambda t: torch.where(t < 2, (t - 1) ** 2, torch.inf))
    result = GoldenSection(1e-4)(line, 1e6)
    assert result.status is SearchStatus.MINIMUM
    assert abs(result.step - 1) < 1e-3


@pytest.mark.parametrize("offset", [1.0, -1e6])
def test_a_gain_below_the_resolution_is_no_progress(line_of, offset):
    """The best step gains 1e-20, far below the spacing of float64 at the offset."""
    line = line_of(lambda t: (t - 1e-10) ** 2 + offset)
    result = GoldenSection()(line, 1.0)
    assert (result.status, result.step) == (SearchStatus.RESOLUTION, 0.0)
    assert result.value == line.start.value


def test_a_lower_loss_within_the_resolution_is_no_progress_either(line_of):
    """At the minimum 1 the loss is two units in the last place below that of the start."""
    line = line_of(lambda t: 1 - 4.4e-16 * (1 - (t - 1) ** 2))
    assert line.trial(1.0).value < line.start.value
    result = GoldenSection()(line, 1.0)
    assert (result.status, result.step) == (SearchStatus.RESOLUTION, 0.0)


def test_rounding_errors_of_earlier_losses_are_no_wrong_gradient(line_of):
    """A loss of 1e-16 with the errors of losses of 1, which training may have begun with."""

    def function(t):
        return 1e-16 * (1 - t) + torch.where(t > 0, 2e-16, 0.0)

    for scale, blamed in ((0.0, True), (1.0, False)):
        result = GoldenSection()(line_of(function, scale=scale), 1.0)
        assert result.step == 0
        assert (result.status is SearchStatus.NO_DESCENT) == blamed


def test_a_loss_without_a_minimum_ends_at_the_bound_with_its_best_step(line_of):
    line = line_of(lambda t: -t)
    result = GoldenSection(max_evaluations=20)(line, 1.0)
    assert (result.status, result.evaluations) == (SearchStatus.LIMIT, 20)
    assert result.value == -result.step < 0


@pytest.mark.parametrize("rtol", [0, 1, -1e-3, math.nan, "1e-3", True])
def test_a_tolerance_out_of_range_names_itself(rtol):
    with pytest.raises(InputError, match="^rtol: .* is not allowed; use a finite number"):
        GoldenSection(rtol=rtol)


@pytest.mark.parametrize("bound", [2, 0, 10.0])
def test_a_bound_out_of_range_names_itself(bound):
    with pytest.raises(InputError, match="^max_evaluations: .* use a whole number of at least 3"):
        GoldenSection(max_evaluations=bound)
