"""The literal rule against Algorithm 1 as the paper prints it; the robust ones on traces."""

import math
import re
from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.switching import peak
from twophase.switching.peak import PeakSeen, PeakTest, RunningMedian
from twophase.switching.rules import (
    FixedEpoch,
    GradientNormPeak,
    NormVersusLoss,
    SmoothedNormPeak,
    first_switch,
    replay,
)

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
    assert fresh == GradientNormPeak(0.8)
    assert not fresh.update(1.0, 1.0).switch
    assert rule.update(1.0, 1.0).switch, "the rule itself has not forgotten"


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
    for rule in (GradientNormPeak(), SmoothedNormPeak(), NormVersusLoss()):
        with pytest.raises(InputError, match="^(loss|grad_norm): "):
            rule.update(loss, norm)


# The robust rules on artificial traces. A switch is early if it comes before the largest norm of
# the whole trace, smoothed here by a centred mean that the rules do not use.


def bump(n, centre, width, height):
    """A trace that starts at 1 and rises by a factor `height` around an epoch, over n epochs."""
    epochs = np.arange(1, n + 1)
    return 1 + (height - 1) * np.exp(-0.5 * (np.log(epochs / centre) / width) ** 2)


def peak_epoch(norms, window=5):
    half = window // 2
    means = [np.mean(norms[max(0, i - half) : i + half + 1]) for i in range(len(norms))]
    return int(np.argmax(means)) + 1


def fired(rule, norms):
    """The epoch at which a rule first switches over falling losses."""
    fresh = rule.fresh()
    trace = enumerate(zip(np.linspace(1, 0.1, len(norms)), norms, strict=True), 1)
    return next((epoch for epoch, seen in trace if fresh.update(*seen).switch), None)


ROBUST = [SmoothedNormPeak(), NormVersusLoss()]
NOISE = st.sampled_from([0.0, 0.1, 0.3])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ROBUST)
@settings(max_examples=40)
@given(centre=st.integers(10, 40), height=st.floats(3, 20), noise=NOISE, seed=st.integers(0, 10**6))
def test_a_peak_after_a_dip_is_found_and_not_before(rule, centre, height, noise, seed):
    norms = bump(5 * centre, centre, 0.4, height)
    norms[1:4] *= 0.7  # the literal rule fires here
    norms *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(norms)))
    epoch = fired(rule, norms)
    assert epoch is None or epoch >= peak_epoch(norms)
    if noise == 0:
        assert fired(GradientNormPeak(), norms) == 2 < epoch


@pytest.mark.slow
@pytest.mark.parametrize("rule", ROBUST)
@settings(max_examples=25)
@given(
    shape=st.sampled_from(["flat", "rising", "falling"]), noise=NOISE, seed=st.integers(0, 10**6)
)
def test_without_a_peak_it_never_fires(rule, shape, noise, seed):
    epochs = np.arange(1, 121)
    norms = {"flat": np.ones(120), "rising": 1 + epochs / 20, "falling": 1 / epochs}[shape]
    norms = norms * np.exp(noise * np.random.default_rng(seed).standard_normal(120))
    assert fired(rule, norms) is None


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_plateau_is_waited_out(rule, noise):
    norms = np.concatenate([bump(20, 20, 0.4, 8), np.full(20, 8.0), np.geomspace(8, 0.2, 100)])
    norms *= np.exp(noise * np.random.default_rng(5).standard_normal(len(norms)))
    assert peak_epoch(norms) <= fired(rule, norms) <= 100


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize(("second", "height"), [(27, 0.6), (26, 2.0), (60, 0.5)])
def test_a_second_peak_within_the_waiting_time_is_waited_for(rule, second, height):
    norms = bump(150, 20, 0.2, 10.0) + bump(150, second, 0.12, 10.0 * height)
    assert fired(rule, norms) >= peak_epoch(norms)


@pytest.mark.slow
@settings(max_examples=15)
@given(scale=st.integers(-40, 40).map(lambda k: 2.0**k), seed=st.integers(0, 10**6))
@example(scale=2.0, seed=3012)  # the same five medians twice, in another order
def test_the_unit_of_the_norm_does_not_matter(scale, seed):
    """Every decision is the same, not just the first switch."""
    noise = np.exp(0.2 * np.random.default_rng(seed).standard_normal(80))
    norms = bump(80, 15, 0.4, 8.0) * noise
    losses = np.linspace(1, 0.1, 80)
    for rule in ROBUST:
        plain, scaled = (replay(rule, zip(losses, n, strict=True)) for n in (norms, scale * norms))
        assert [d.switch for d in plain] == [d.switch for d in scaled]


def test_a_slower_training_switches_later_in_proportion():
    quick, slow = (fired(SmoothedNormPeak(), bump(n, n / 8, 0.4, 8.0)) for n in (160, 800))
    assert slow == pytest.approx(5 * quick, rel=0.1)


def test_spikes_are_no_peaks():
    norms = np.geomspace(1, 0.05, 120)
    norms[[10, 30, 31, 70]] *= 50
    assert fired(SmoothedNormPeak(), norms) is None


@pytest.mark.parametrize("shape", ["log-normal", "triangle", "exponential"])
@pytest.mark.parametrize("height", [4, 20])
@pytest.mark.parametrize("centre", [20, 40, 80])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_clear_peak_is_found_within_half_again_of_its_epoch(shape, height, centre, noise):
    epochs = np.arange(1, 4 * centre + 1)
    norms = {
        "log-normal": bump(4 * centre, centre, 0.4, height),
        "triangle": np.maximum(1 + (height - 1) * (1 - abs(epochs / centre - 1)), 0.1),
        "exponential": height ** (1 - abs(epochs / centre - 1)),
    }[shape]
    norms[1:4] *= 0.7  # a dip first
    norms *= np.exp(noise * np.random.default_rng(0).standard_normal(len(norms)))
    assert centre < fired(SmoothedNormPeak(), norms) <= 1.5 * centre


def test_with_much_noise_most_peaks_are_found_in_time_and_none_before():
    """Noise of 30 %: a fall of less than that is within it."""
    late = 0
    for seed in range(40):
        norms = bump(160, 40, 0.3, 10.0)
        norms *= np.exp(0.3 * np.random.default_rng(seed).standard_normal(160))
        epoch = fired(SmoothedNormPeak(), norms)
        assert epoch >= 40
        late += epoch > 60
    assert late <= 12


def test_the_thresholds_are_those_that_are_stated():
    """Without noise or smoothing: a rise by `rise`, then a fall to `factor`, a `share` later."""
    test = PeakTest(factor=0.5, rise=3, share=0.5, confidence=0)

    def holds(*norms):
        seen = PeakSeen(test)
        # each five times: the medians are the values, and the sequence too short for means
        return [seen.add(i, norm)[0] for i, norm in enumerate(np.repeat(norms, 5))][-1]

    assert not holds(1.0, 2.9, 0.1, 0.1) and holds(1.0, 3.1, 0.1, 0.1)
    assert not holds(1.0, 3.1, 1.6, 1.6) and holds(1.0, 3.1, 1.5, 1.5)
    assert not holds(1.0, 1.0, 1.0, 3.1, 1.5) and holds(1.0, 1.0, 1.0, 3.1, 1.5, 1.5, 1.5)


@settings(max_examples=30, deadline=None)
@given(
    keys=st.lists(st.integers(0, 30), min_size=1, max_size=90),
    seed=st.integers(0, 10**6),
    ordered=st.booleans(),
)
def test_what_is_kept_from_update_to_update_is_what_a_look_at_all_would_find(keys, seed, ordered):
    """Peak, rise and noise, for keys that come in order and for keys that do not."""
    norms = np.exp(np.random.default_rng(seed).normal(size=len(keys)))
    seen = PeakSeen(PeakTest())
    came, smooth, before = [], {}, 0  # (key, number, logarithm, median) in order
    for i, (key, norm) in enumerate(zip(range(len(keys)) if ordered else keys, norms, strict=True)):
        seen.add(key, norm)
        place = sum(k <= key for k, *_ in came)
        near = [log for _, _, log, _ in came[max(0, place - 4) : place]] + [np.log(norm)]
        came.insert(place, (key, i, np.log(norm), np.median(near)))
        width = max([w for w in (2, 4, 8, 16) if 5 * w <= i + 1], default=1)
        # with wider means all are smoothed again, else what is new
        for p in range(i + 1) if width > before else [place]:
            smooth[came[p][1]] = np.mean([m for *_, m in came[max(0, p + 1 - width) : p + 1]])
        before = width
    values = np.array([smooth[number] for _, number, *_ in came])
    assert seen.top[0] == pytest.approx(values.max())
    low = seen.low_values[bisect_right(seen.low_keys, seen.top[1]) - 1]
    until = [v for (k, *_), v in zip(came, values, strict=True) if k <= seen.top[1]]
    assert low == pytest.approx(min(until))


@given(numbers=st.lists(st.floats(-1e6, 1e6), max_size=60))
def test_a_running_median_is_the_median(numbers):
    running = RunningMedian()
    for i, number in enumerate(numbers, 1):
        running.add(number)
        assert running.value == pytest.approx(np.median(numbers[:i]), abs=1e-9)


def test_the_noise_is_that_of_the_trace():
    logs = np.random.default_rng(0).normal(0, 0.3, 4000) + np.linspace(0, 50, 4000)
    seen = PeakSeen(PeakTest())
    for i, log in enumerate(logs):
        seen.add(i, math.exp(log))
    assert seen.deviation == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("width", [1, 4, 16, 32])
def test_means_of_medians_have_the_deviation_that_is_stated(width):
    noise = np.random.default_rng(0).standard_normal((3000, width + 4))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(noise, 5, axis=1), axis=2)
    assert peak._deviation(width) == pytest.approx(medians.mean(axis=1).std(), rel=0.1)


def test_a_norm_over_the_loss_ignores_epochs_that_climb_back():
    """Every other epoch jumps back to an earlier loss, and its norm with it."""
    losses, norms = np.linspace(1, 0.1, 120), bump(120, 20, 0.4, 8.0)
    trace = [(losses[j], norms[j]) for i in range(120) for j in (i, i // 4)]
    epoch = first_switch(NormVersusLoss(), trace)
    assert epoch == [d.switch for d in replay(NormVersusLoss(), trace)].index(True) + 1
    assert trace[epoch - 1][0] < losses[peak_epoch(norms) - 1]
    assert first_switch(SmoothedNormPeak(), trace) is None


def test_a_replay_starts_anew_and_says_why():
    rule, other = SmoothedNormPeak(), SmoothedNormPeak()
    rule.update(1.0, 5.0), other.update(1.0, 5.0)
    trace = [(1.0, norm) for norm in bump(60, 15, 0.4, 8.0)]
    decisions = replay(rule, trace)
    assert decisions == replay(SmoothedNormPeak(), trace)
    assert rule.update(1.0, 4.0) == other.update(1.0, 4.0), "the rule itself has seen nothing of it"
    assert sum(decision.switch for decision in decisions) >= 1
    assert all(re.search(r"rise.*; smoothed norm .*, peak .* at \d+$", d.reason) for d in decisions)


def test_a_norm_of_zero_is_a_number():
    assert fired(SmoothedNormPeak(), np.zeros(40)) is None
    assert fired(SmoothedNormPeak(), np.append(bump(40, 10, 0.4, 8.0), np.zeros(40))) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("factor", 0),
        ("factor", 1.1),
        ("rise", 1),
        ("share", -1),
        ("confidence", -1),
        ("share", 1.5),
    ],
)
def test_thresholds_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        PeakTest(**{field: value})


@pytest.mark.parametrize("epoch", [0, -1, 2.5, True])
def test_a_fixed_epoch_out_of_range_names_itself(epoch):
    with pytest.raises(InputError, match="^swap_epoch: "):
        FixedEpoch(epoch)


def test_what_was_seen_is_no_part_of_a_rule():
    """Neither of its text nor of comparison; the settings are."""
    for rule in (GradientNormPeak(0.8), SmoothedNormPeak(), NormVersusLoss(), FixedEpoch(3)):
        new, text = rule.fresh(), repr(rule)
        rule.update(1.0, 2.0)
        assert (rule, hash(rule), repr(rule)) == (new, hash(new), text)
    assert GradientNormPeak(0.8) != GradientNormPeak(0.9)
    assert SmoothedNormPeak(PeakTest(rise=3)) != SmoothedNormPeak()
    assert SmoothedNormPeak() != NormVersusLoss()
