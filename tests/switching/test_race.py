"""A race: when trials begin, who wins them, and what they may cost; by scripted losses."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.second_phase import Status
from twophase.switching import GradientNormPeak
from twophase.switching.race import Race, Stage, planned
from twophase.switching.trend import Seen, Trend

EPOCH = 3


def adam(race, losses):
    """Epochs of Adam; the epochs, counted from 1, at which a trial begins."""
    return [i for i, loss in enumerate(losses, 1) if race.after_adam(loss, EPOCH)]


def falling(epochs, begin=1):
    """Adam's losses 1 / epoch: a straight line of slope 1 over ln(passes)."""
    return [1 / epoch for epoch in range(begin, begin + epochs)]


def in_early_trial(**options):
    """In one of 18 passes: Adam has 1 / 4 after 12, and promises 1 / 10 after 18 more."""
    race = Race(passes=18, length=180, **options)
    assert adam(race, falling(4)) == [4]
    assert race.stage is Stage.TRIAL
    return race


def in_late_trial():
    """In the one after 60 passes: Adam has 1 / 20 and promises 1 / 26 after 18 more."""
    race = in_early_trial()
    lose(race)
    assert adam(race, falling(16, 5)) == [16]
    assert race.stage is Stage.TRIAL
    return race


def lose(race):
    while race.stage is Stage.TRIAL:
        race.after_second(race.start, EPOCH)


@pytest.mark.parametrize(
    ("length", "trial", "begins"),
    [
        (None, 90, [60, 300]),
        (900, 90, [60, 300]),
        (300, 30, [20, 100]),
        (6000, 120, [80, 2000]),
        (140, 30, [46]),  # too short for an early one
        (60, 30, [30]),
    ],
)
def test_an_early_trial_and_one_after_a_third_of_the_passes(length, trial, begins):
    race = Race(length=length)
    assert race.trial == trial
    found = []
    for loss in falling(800):
        if race.after_adam(loss, EPOCH):
            found.append(race.by_adam)
            lose(race)
    assert [EPOCH * -(-begin // EPOCH) for begin in begins] == found[: len(begins)]


def test_an_early_trial_is_won_where_the_lead_is_there_and_has_doubled_since_its_half():
    # Adam promises 1 / 7 at the half and 1 / 10 at the end: there the lead is 1 and 1.99, or 2.01
    for last, stage in ((1 / (10 * 1.99), Stage.WAITING), (1 / (10 * 2.01), Stage.WON)):
        race = in_early_trial()
        for loss in (0.25, 0.25, 1 / 7, 1 / 7, 1 / 7):
            assert race.after_second(loss, 3) == ""
        said = race.after_second(last, 3)
        assert race.stage is stage
        assert said.endswith("after 18 passes, Adam by its trend 0.1")
        assert said.startswith("ahead: " if stage is Stage.WON else "the lead does not widen: ")


def test_a_lead_of_a_factor_of_a_thousand_wins_at_once():
    # Adam promises 1 / 5 after 3 passes
    for loss, stage in ((0.21e-3, Stage.TRIAL), (0.19e-3, Stage.WON)):
        race = in_early_trial()
        race.after_second(loss, 3)
        assert race.stage is stage


def test_a_late_trial_is_won_by_any_lead():
    for last, stage in ((0.0385, Stage.WAITING), (0.0384, Stage.WON)):
        race = in_late_trial()
        for loss in (0.049, 0.042, 0.039, 0.039, 0.039):  # at the half it was ahead by more
            assert race.after_second(loss, 3) == ""
        race.after_second(last, 3)
        assert race.stage is stage


@pytest.mark.parametrize(("share", "stage"), [(1.1, Stage.WON), (0.9, Stage.WAITING)])
def test_a_late_trial_is_won_by_a_lead_that_would_be_there_in_time(share, stage):
    """It is behind, and would be ahead when half of what is left is spent, or a little later."""
    race = in_late_trial()
    adams = [1 / (20 * (1 + passes / 60)) for passes in (9, 18)]  # slope 1 over ln(passes)
    behind = (
        0.05  # at the half, in ln(loss); after 87 passes, 9 of them in a lost trial, 93 are left
    )
    gained = behind / (1 + 93 / 2 / 9) * share
    half, end = (adams[0] * math.exp(behind), adams[1] * math.exp(behind - gained))
    for loss in (0.05, 0.05, half, half, half):
        assert race.after_second(loss, 3) == ""
    said = race.after_second(end, 3)
    assert race.stage is stage
    assert said.startswith("catching up: " if stage is Stage.WON else "behind: ")


def test_a_slow_start_ends_an_early_trial_but_not_a_late_one():
    early, late = in_early_trial(), in_late_trial()
    for race in (early, late):
        for _ in range(3):
            race.after_second(race.start, 3)
    assert (early.stage, late.stage) == (Stage.WAITING, Stage.TRIAL)


def test_what_is_left_is_told_where_no_other_trial_fits():
    race = in_late_trial()  # of 18 passes, when Adam has 60 of 180; the next one when it has 120
    for loss in (0.04, 0.03, 0.02, 0.01, 0.01, 0.01):
        race.after_second(loss, 3)
    assert race.stage is Stage.WON
    race.spent = 180 - 60 - 18  # as much is left as Adam and a trial need
    assert race.left is None
    race.spent += 1
    assert race.left == 77
    race.spent = 200
    assert race.left == 0
    assert Race().left is None, "it is not known how long the training will be"


def test_the_trend_is_that_of_three_losses():
    race = in_early_trial()
    assert race.read == 3
    losses = [Seen(6, 1 / 2), Seen(9, 1 / 3), Seen(12, 1 / 4)]
    assert race.seen == losses
    assert Trend.of(losses).slope == pytest.approx(1)
    race = Race(passes=18, length=180)
    assert [race.after_adam(loss, 3) for loss in (9.0, 1 / 2, 1 / 3, 1 / 4)][-1]
    assert race.seen == losses, "the first loss need not be known"


@pytest.mark.parametrize("length", [90, 300, 900])
def test_it_says_beforehand_which_losses_it_reads(length):
    race = Race(length=length)
    for loss in falling(400):
        reads, before = race.reads_next(EPOCH), race.read
        race.after_adam(loss, EPOCH)
        assert race.read == before + reads
        lose(race)


def test_who_comes_less_than_half_as_far_in_half_of_the_passes_has_lost():
    # from 1 / 4 Adam promises 1 / 7: half way on the logarithmic scale is the root of 1 / 28
    for loss, stage in ((0.190, Stage.WAITING), (0.188, Stage.TRIAL)):
        race = in_early_trial()
        assert race.after_second(0.25, 6) == "", "before half of the passes nothing is decided"
        race.after_second(loss, 3)
        assert race.stage is stage


def test_who_can_do_no_more_has_lost_unless_it_is_ahead():
    race = in_early_trial()
    assert "(converged)" in race.after_second(0.24, 3, Status.CONVERGED)
    assert race.stage is Stage.WAITING
    race = in_early_trial()
    race.after_second(0.1, 3, Status.CONVERGED)
    assert race.stage is Stage.WON


def test_losses_that_are_not_monotone_are_judged_by_the_lowest():
    race = in_late_trial()
    for loss in (0.03, 0.2, 0.2, 0.2, 0.2, 0.2):
        race.after_second(loss, 3)
    assert race.stage is Stage.WON


@settings(max_examples=50, deadline=None)
@given(
    passes=st.integers(3, 90),
    length=st.integers(90, 900),
    growth=st.floats(1.1, 4),
    cost=st.integers(1, 20),
)
def test_lost_trials_never_cost_more_than_is_stated(passes, length, growth, cost):
    """All of them are lost: two, or a tenth of all passes and one more."""
    race = Race(passes, length, growth=growth)
    for loss in falling(1000):
        race.after_adam(loss, EPOCH)
        while race.stage is Stage.TRIAL:
            race.after_second(race.start, cost)
        most = passes + cost
        assert race.on_trials <= max(2 * most, 0.1 * race.spent + most)


@settings(max_examples=50)
@given(
    losses=st.lists(st.floats(0.1, 10), min_size=12, max_size=40),
    trial=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    unit=st.sampled_from([2.0**-20, 1.0, 2.0**20]),
    zero=st.sampled_from([-20.0, 0.0]),
)
def test_the_unit_of_the_loss_does_not_matter(losses, trial, unit, zero):
    """Also of losses below zero, whose trend is not logarithmic."""

    def stages(change):
        race, seen = Race(passes=12, length=100), []
        for loss in losses:
            race.after_adam(change(loss), EPOCH)
            seen.append(race.stage)
            for step in trial:
                if race.stage is Stage.TRIAL:
                    race.after_second(change(step), EPOCH)
                    seen.append(race.stage)
        return seen

    # exact in binary, so that rounding decides little
    losses, trial = ([round(64 * loss) / 64 for loss in part] for part in (losses, trial))
    assert stages(lambda loss: unit * (loss + zero)) == stages(lambda loss: loss + zero)


def test_a_loss_that_has_moved_during_a_trial_changes_nothing():
    race, other = in_early_trial(), in_early_trial()
    other.moved(1.0, 3.0)
    for loss in (0.2, 0.12, 0.03):
        assert race.stage is other.stage
        race.after_second(loss, 6)
        other.after_second(3 * loss, 6)
    assert race.stage is other.stage is Stage.WON


def test_a_fresh_race_has_seen_nothing():
    race = in_early_trial()
    assert race.fresh() == Race(passes=18, length=180)
    assert (race.fresh().spent, race.fresh().stage, race.fresh().seen) == (0, Stage.WAITING, [])


def test_a_race_is_planned_for_what_ends_the_training():
    assert planned(Race(), 100, None) == Race(length=300)
    assert planned(Race(), 100, 120) == planned(Race(), None, 120) == Race(length=120)
    assert planned(Race(length=50), 100, 120) == Race(length=50)
    assert planned(GradientNormPeak(), 100, 120) == GradientNormPeak()


@pytest.mark.parametrize(
    ("field", "value"),
    [("passes", 0), ("passes", 2.5), ("length", 0), ("growth", 1), ("late", 0), ("late", 1)],
)
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        Race(**{field: value})
