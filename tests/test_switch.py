"""The switch rule against Algorithm 1 as the paper prints it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.switch import FixedEpoch, GradientNormPeak

NORMS = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def algorithm_1(norms, gn_fact):
    """The epoch after which `adam` first becomes false; None if it never does."""
    gn_max = 0
    for epoch, gn in enumerate(norms, start=1):
        gn_max = max(gn, gn_max)
        adam = gn > gn_max * gn_fact
        if not adam:
            return epoch
    return None


@given(norms=NORMS, factor=st.floats(0.01, 1))
def test_is_the_papers_algorithm(norms, factor):
    rule = GradientNormPeak(factor)
    decisions = [rule.update(1.0, norm) for norm in norms]
    fired = next((n for n, decision in enumerate(decisions, 1) if decision.switch), None)
    assert fired == algorithm_1(norms, factor)
    assert all(decision.reason for decision in decisions)


def test_explains_itself():
    rule = GradientNormPeak()
    assert not rule.update(0.09, 0.020).switch
    assert rule.update(0.08, 0.016) == (
        True,
        "at or below 0.9 of its peak: gradient norm 0.016, peak 0.02, level 0.018",
    )


def test_a_fresh_rule_has_seen_nothing():
    rule = GradientNormPeak(0.8)
    rule.update(1.0, 5.0)
    fresh = rule.fresh()
    assert (fresh.factor, fresh.peak) == (0.8, 0.0)
    assert not fresh.update(1.0, 1.0).switch


@given(epoch=st.integers(1, 30))
def test_a_fixed_epoch_is_the_last_of_adam(epoch):
    rule = FixedEpoch(epoch)
    decisions = [rule.update(1.0, 1.0).switch for _ in range(epoch + 1)]
    assert decisions == [False] * (epoch - 1) + [True, True]
    assert not FixedEpoch(2).fresh().update(1.0, 1.0).switch


@pytest.mark.parametrize("factor", [0, -0.1, 1.1, math.nan, "0.9", None])
def test_a_factor_out_of_range_names_itself(factor):
    with pytest.raises(InputError, match="^factor: .* is not allowed; use a finite number above 0"):
        GradientNormPeak(factor)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf), (1.0, -1.0)])
def test_numbers_that_are_none_are_refused(loss, norm):
    with pytest.raises(InputError, match="^(loss|grad_norm): "):
        GradientNormPeak().update(loss, norm)
