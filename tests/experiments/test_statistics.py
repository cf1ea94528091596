"""Summaries over seeds against their definitions."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.experiments.statistics import (
    Estimate,
    Ratio,
    by_group,
    interval,
    mean_of,
    ratio,
    ratio_of,
    ratio_text,
    spread,
)

COST = st.floats(0.1, 1e6) | st.just(math.inf)


def test_a_group_is_a_row_with_its_labels_in_the_order_of_the_frame():
    frame = pd.DataFrame({"a": ["y", "x", "y"], "b": [math.nan, 1, math.nan], "loss": [1, 2, 4]})
    found = by_group(frame, ["a", "b"], lambda of: {"mean": of.loss.mean()})
    assert found.fillna(0).to_dict("list") == {"a": ["y", "x"], "b": [0, 1], "mean": [2.5, 2]}
    assert by_group(frame[:0], ["a"], len).empty


def test_ratios_are_geometric_means_with_the_logarithms_interval():
    losses, reference = np.array([1.0, 2.0, 8.0]), np.array([2.0, 1.0, 2.0])
    found = ratio(losses, reference)
    assert found.mean == pytest.approx(np.cbrt(0.5 * 2 * 4))
    # of three values the range
    assert (found.low, found.high) == pytest.approx((0.5, 4.0))
    turned = ratio(reference, losses)
    assert np.array(turned) == pytest.approx(1 / np.array([found.mean, found.high, found.low]))


def test_the_interval_is_the_bootstraps():
    values = np.random.default_rng(1).normal(5, 2, size=200)
    low, high = interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_of(values) == (values.mean(), low, high)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_few_seeds_have_their_range_and_others_less(values):
    low, high = interval(np.array(values))
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    if len(values) < 5:
        assert (low, high) == (min(values), max(values))
    elif len(set(values)) == len(values):
        assert (low, high) != (min(values), max(values))


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([3, 3], "ranges over the seeds"),
        ([5, 8], "95 % bootstrap intervals"),
        ([5, 4, 0], "95 % bootstrap intervals (ranges below 5 seeds)"),
        ([1, 2], "ranges over the seeds"),
        ([1, 0], "no intervals"),
    ],
)
def test_a_caption_says_which_it_is(seeds, words):
    assert spread(seeds) == words


def test_many_seeds_have_the_normal_interval():
    logs = np.random.default_rng(0).normal(0.3, 1.0, size=400)
    found = ratio(np.exp(logs), np.ones(400))
    half = 1.96 * logs.std(ddof=1) / 20
    assert np.log(found) == pytest.approx(logs.mean() + np.array([0, -half, half]), abs=0.1 * half)


def test_equal_values_have_no_width():
    assert mean_of(np.array([2.0, 2.0])) == Estimate(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("losses", "reference", "message"),
    [([0.0], [1.0], "losses above 0"), ([1.0], [1.0, 2.0], "the reference's shape")],
)
def test_ratios_refuse_what_has_none(losses, reference, message):
    with pytest.raises(InputError, match=message):
        ratio(np.array(losses), np.array(reference))


def test_one_seed_has_no_interval():
    assert ratio(np.array([1.0]), np.array([2.0])) == Estimate(0.5, None, None)


@given(st.lists(COST, min_size=1, max_size=7))
def test_a_miss_counts_as_infinite_in_the_median(values):
    found, ordered = ratio_of(values), sorted(values)
    assert (found.low, found.high, found.seeds) == (ordered[0], ordered[-1], len(values))
    assert found.missed == values.count(math.inf)
    middle = len(values) // 2
    expected = ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    assert found.median == expected


@pytest.mark.parametrize(
    ("values", "quicker"),
    [
        ((0.4, 0.6), True),
        ((1.0, 1.5), False),
        ((0.95, 0.97), False),  # by less than curves can tell
        ((0.9, 0.97), None),
        ((0.4, math.inf), None),
    ],
)
def test_a_ratio_is_quicker_where_all_seeds_are_clearly_below_1(values, quicker):
    assert ratio_of(values).quicker is quicker


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5, 0.4, math.inf], "0.50 (0.40 to a miss)"),
        ([0.5], "0.50 (one seed)"),
        ([0.6, math.inf, math.inf], "missed on 2 of 3 seeds (0.60 at best)"),
        ([math.inf, math.inf], "missed"),
        ([0.0123, 9.94, 12.3], "9.94 (0.012 to 12)"),
        ([1e-9, 1e-7, 2e-7], "<1e-06 (all seeds)"),
        ([1e-9, 1e-7, 2e-6], "<1e-06 (<1e-06 to 2e-06)"),
    ],
)
def test_a_ratio_says_its_range_and_its_misses(values, text):
    assert ratio_of(values).text == text


def test_a_ratio_has_two_decimals_or_two_digits():
    assert [ratio_text(value) for value in (0.5, 0.0949, 99.6)] == ["0.50", "0.095", "100"]
    assert [ratio_text(value) for value in (163.7, 1234, 5e7)] == ["160", "1,200", "5e+07"]
    assert [ratio_text(value) for value in (2e-6, 9e-7, 0)] == ["2e-06", "<1e-06", "0"]
    assert Ratio(2.0, 1.0, 3.0, 3).text == "2.00 (1.00 to 3.00)"
