"""Costs to a target, performance profiles and ratios, against their definitions."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.experiments import profiles
from twophase.experiments.profiles import SETTING, cost_to, costs, loss_at, performance_profile
from twophase.experiments.statistics import Ratio, ratio_of

# 0: reached within the prefix
COST = st.floats(0.1, 1e6) | st.just(math.inf) | st.just(0.0)


def curves(**losses: list[float]) -> pd.DataFrame:
    """A curve for each method on one setting, a point every 3 passes and 2 seconds."""
    frames = [
        pd.DataFrame(
            {
                "method": method.replace("_", "-"),
                "passes_spent": 3 * np.arange(len(values)),
                "seconds": 2.0 * np.arange(len(values)),
                "loss": values,
            }
        )
        for method, values in losses.items()
    ]
    return pd.concat(frames).assign(**dict.fromkeys(SETTING, 0))


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30), st.floats(1e-6, 1e3))
def test_the_cost_to_a_target_is_that_of_the_first_point_at_or_below_it(losses, target):
    lowest = np.minimum.accumulate(losses)
    curve = pd.DataFrame({"passes_spent": 3 * np.arange(len(losses)), "loss": lowest})
    found = cost_to(curve, target)
    reached = [3 * n for n, loss in enumerate(lowest) if loss <= target]
    assert found == (reached[0] if reached else math.inf)
    assert loss_at(curve, 3 * len(losses) - 1) == lowest[-1]
    assert loss_at(curve, 2.9) == lowest[0]


def test_costs_are_counted_to_the_loss_that_adam_ends_with():
    table = curves(adam=[1, 0.5, 0.4, 0.3], default=[1, 0.3, 0.1, 0.1], sgd=[1, 0.9, 0.8, 0.7])
    found = costs(table, 9).set_index("method")
    assert found.target.eq(0.3).all()
    assert found.cost.to_dict() == {"adam": 9, "default": 3, "sgd": math.inf}
    assert found.ratio.to_dict() == {"adam": 1, "default": pytest.approx(1 / 3), "sgd": math.inf}
    assert found.loss.to_dict() == {"adam": 0.3, "default": 0.1, "sgd": 0.7}
    assert found.timed_loss.to_dict() == {"adam": 0.3, "default": 0.1, "sgd": 0.7}
    assert costs(table, 9, "seconds").set_index("method").cost["default"] == 2.0


def test_adams_own_cost_is_the_first_time_that_it_was_there():
    found = costs(curves(adam=[1, 0.3, 0.3, 0.3], default=[1, 0.9, 0.3, 0.3]), 9)
    assert found.set_index("method").ratio.to_dict() == {"adam": 1, "default": 2}


def test_beyond_the_budget_is_a_miss_unless_there_is_a_longer_one():
    table = curves(adam=[1, 0.5, 0.4, 0.3], default=[1, 0.9, 0.45, 0.45])
    assert costs(table, 3).set_index("method").cost["default"] == math.inf
    assert costs(table, 3, budget=9).set_index("method").cost["default"] == 6


def test_adam_may_lack_less_than_an_epoch_of_the_passes():
    table = curves(adam=[1, 0.5, 0.4, 0.3])
    assert costs(table, 11).target.eq(0.3).all()
    with pytest.raises(InputError, match="adam over 12 passes"):
        costs(table, 12)


@pytest.mark.parametrize("table", [curves(default=[1, 0.5]), curves(adam=[1, 0.5])])
def test_a_target_needs_adam_over_all_the_passes(table):
    with pytest.raises(InputError, match="adam over 9 passes"):
        costs(table, 9)


@given(st.lists(st.lists(COST, min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_performance_profile_is_dolan_and_mores(table):
    factors = [1, 1.5, 4, 100]
    rows = [
        dict.fromkeys(SETTING, 0) | {"seed": seed, "method": method, "cost": cost}
        for seed, of in enumerate(table)
        for method, cost in zip("abc", of, strict=True)
    ]
    found = performance_profile(pd.DataFrame(rows), factors)
    for number, method in enumerate("abc"):
        for factor in factors:
            lowest = [max(3, min(of)) for of in table]  # no less than an epoch of Adam
            within = [of[number] <= factor * low for of, low in zip(table, lowest, strict=True)]
            there = [of[number] < math.inf for of in table]
            assert found.loc[factor, method] == pytest.approx(
                np.mean(np.logical_and(within, there))
            )
        assert found[method].is_monotonic_increasing


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (Ratio(0.5, 0.4, 0.6, 3), "yes: "),
        (Ratio(1.5, 1.0, math.inf, 3), "no: it needs"),
        (Ratio(math.inf, math.inf, math.inf, 3, 3), "no: it does not get there"),
        (Ratio(0.9, 0.8, 1.1, 3), "not on every seed: it needs 0.90"),
        # by less than the curves can tell
        (Ratio(0.95, 0.945, 0.97, 3), "no: it needs 0.95"),
        (Ratio(0.9, 0.8, 0.945, 3), "not on every seed: it needs 0.90"),
        (
            Ratio(math.inf, 0.6, math.inf, 3, 2),
            "not on every seed: missed on 2 of 3 seeds (0.60 at best)",
        ),
    ],
)
def test_a_verdict_needs_all_seeds_on_one_side(ratio, word):
    assert profiles.verdict(ratio).startswith(word)


def test_a_loss_that_is_rounding_is_said_to_be_less():
    table = curves(adam=[1, 1e-45], default=[1, 0])
    texts = profiles.overview(table, 3, ["method"])["loss at equal passes"]
    assert [text.removesuffix(" (one seed)") for text in texts] == ["<1e\N{MINUS SIGN}30", "0"]
    both = pd.concat([table, table.assign(seed=1)])
    texts = profiles.overview(both, 3, ["method"])["loss at equal passes"]
    assert texts.tolist() == ["<1e\N{MINUS SIGN}30", "0"]


def test_losses_at_equal_seconds_are_those_within_adams_seconds():
    table = curves(adam=[1, 0.5, 0.4, 0.3], default=[1, 0.9, 0.2, 0.1])
    table.loc[table.method == "default", "seconds"] *= 1.4
    found = costs(table, 9).set_index("method")
    assert found.timed_loss.to_dict() == {"adam": 0.3, "default": 0.2}
    text = profiles.overview(table, 9, ["method"]).set_index("method")
    assert text.loc["default", "loss in Adam's seconds"] == "0.2 (one seed)"
    assert text.loc["default", "loss at equal passes"] == "0.1 (one seed)"
    assert text.loc["default", "passes / Adam's"].startswith("0.67")
    assert text.loc["default", "seconds / Adam's"].startswith("0.93")


def test_ratios_are_those_over_the_seeds():
    values = [0.5, 0.7, math.inf]
    found = profiles.ratios(pd.DataFrame({"method": "a", "ratio": values}), ["method"])
    assert found.method.tolist() == ["a"] and found.text[0] == "0.70 (0.50 to a miss)"
    assert tuple(found[list(Ratio._fields)].iloc[0]) == ratio_of(values)


def test_a_rivals_lowest_loss_is_the_target():
    table = curves(torch_lbfgs=[1, 0.9, 0.5, 0.1], default=[1, 0.4, 0.05])
    assert profiles.against(table, 8).median == 0.5
    assert profiles.against(table, 9).median == pytest.approx(2 / 3)
    assert profiles.against(table, 6, "torch-lbfgs", "default").missed == 1


def test_a_method_with_twice_the_budget_is_not_compared():
    table = curves(adam=[1, 0.5, 0.4, 0.3], adam_twice=[1, 0.5, 0.4, 0.3, 0.2])
    assert costs(table, 9).method.tolist() == ["adam"]


def test_a_profile_needs_every_method_on_every_setting():
    rows = [
        dict.fromkeys(SETTING, 0) | {"seed": seed, "method": method, "cost": 3.0}
        for seed, method in ((0, "a"), (0, "b"), (1, "a"))
    ]
    with pytest.raises(InputError, match="methods: 'b'"):
        performance_profile(pd.DataFrame(rows), [1])
