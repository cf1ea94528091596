"""A race: when it draws a line, who wins, and what trials may cost; by scripted losses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.second_phase import Status
from twophase.switching.race import Race, Stage

EPOCH = 3


def adam(race, losses):
    """Epochs of Adam; the epochs, counted from 1, at which something begins."""
    return [i for i, loss in enumerate(losses, 1) if race.after_adam(loss, EPOCH)]


def in_trial(**options):
    """A race of 12 passes in its first trial: Adam fell from 1.0 at the line to 0.6."""
    race = Race(passes=12, **options)
    assert adam(race, [2.0, 1.8, 1.5, 1.0, 0.9, 0.8, 0.7, 0.6]) == [4, 8]
    assert race.stage is Stage.TRIAL
    return race


def test_the_first_line_is_drawn_after_the_passes_of_a_trial_and_the_trial_after_as_many():
    race = Race(passes=30)
    assert adam(race, [1 / n for n in range(1, 21)]) == [10, 20]
    assert race.stage is Stage.TRIAL
    assert (race.start, race.goal) == (1 / 10, 1 / 20)


def test_who_is_below_adam_has_won():
    race = in_trial()
    assert race.after_second(0.95, 3) == ""
    assert race.after_second(0.6, 3) == "", "a tie is not won yet"
    assert race.after_second(0.59, 3) == "ahead: 0.59 after 9 passes, Adam 0.6"
    assert race.stage is Stage.WON
    assert race.on_trials == 0


def test_the_goal_is_the_lower_loss_of_half_way_and_the_end():
    race = Race(passes=6)
    adam(race, [1.0, 0.9, 0.5, 0.8])
    assert race.stage is Stage.TRIAL and race.goal == 0.5
    assert race.after_second(0.6, 3) == ""
    race = Race(passes=12)
    adam(race, [4.0, 3.0, 2.0, 1.0, 0.1, 0.5, 0.2, 0.4])
    assert (race.half, race.goal) == (0.5, 0.4), "the other epochs' losses need not be known"


def test_three_losses_a_trial_are_read():
    race = in_trial()
    assert race.read == 3
    race = Race(passes=3)
    adam(race, [1.0, 0.9])
    assert (race.stage, race.read, race.half) == (Stage.TRIAL, 3, 0.9)


def test_who_is_not_ahead_after_as_many_passes_has_lost():
    race = in_trial()
    for loss in (0.9, 0.8, 0.7):
        assert race.after_second(loss, 3) == ""
    assert race.after_second(0.61, 3) == "behind: 0.61 after 12 passes, Adam 0.6"
    assert (race.stage, race.on_trials) == (Stage.WAITING, 12)


def test_who_comes_less_than_half_as_far_in_half_of_the_passes_has_lost():
    race = in_trial()
    assert race.after_second(0.99, 3) == "", "before half of the passes nothing is decided"
    # Adam came from 1.0 to 0.8 in 6 passes
    assert race.after_second(0.91, 3) == "behind: 0.91 after 6 passes, Adam 0.8"
    race = in_trial()
    race.after_second(0.99, 3)
    assert race.after_second(0.89, 3) == ""


def test_who_can_do_no_more_has_lost_unless_it_is_ahead():
    race = in_trial()
    assert "(converged)" in race.after_second(0.7, 3, Status.CONVERGED)
    assert race.stage is Stage.WAITING
    race = in_trial()
    race.after_second(0.5, 3, Status.CONVERGED)
    assert race.stage is Stage.WON


def test_a_lost_trial_is_repeated_when_adam_has_twice_the_passes():
    race = in_trial(share=1.0)
    for loss in (0.9, 0.8, 0.7, 0.65):
        race.after_second(loss, 3)
    # 24 passes before the trial, so the next line is at 48, after 8 epochs more
    assert adam(race, [0.5] * 8)[0] == 8


def test_trials_wait_until_they_are_affordable():
    race = in_trial(share=0.1, growth=1.01)
    for loss in (0.9, 0.8, 0.7, 0.65):
        race.after_second(loss, 3)
    # 12 passes on trials are a tenth of 120: 36 are spent, 84 more are 28 epochs
    assert adam(race, [0.5] * 28) == [28]


@settings(max_examples=50, deadline=None)
@given(
    passes=st.integers(3, 90),
    growth=st.floats(1.1, 4),
    share=st.floats(0, 0.5),
    cost=st.integers(1, 20),
)
def test_lost_trials_never_cost_more_than_is_stated(passes, growth, share, cost):
    """All of them are lost: a share of all passes, and one trial, whose last step may be longer."""
    race = Race(passes, growth, share)
    for _ in range(2000):
        race.after_adam(1.0, EPOCH)
        while race.stage is Stage.TRIAL:
            race.after_second(1.0, cost)
        assert race.on_trials <= share * race.spent + passes + cost


@settings(max_examples=50)
@given(
    losses=st.lists(st.floats(0.1, 10), min_size=12, max_size=40),
    trial=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    unit=st.sampled_from([2.0**-20, 1.0, 2.0**20]),
    zero=st.sampled_from([-8.0, 0.0, 8.0]),
)
def test_unit_and_zero_of_the_loss_do_not_matter(losses, trial, unit, zero):
    def stages(change):
        race, seen = Race(passes=12), []
        for loss in losses:
            race.after_adam(change(loss), EPOCH)
            seen.append(race.stage)
            for step in trial:
                if race.stage is Stage.TRIAL:
                    race.after_second(change(step), EPOCH)
                    seen.append(race.stage)
        return seen

    # exact in binary, so that rounding decides nothing
    losses, trial = ([round(64 * loss) / 64 for loss in part] for part in (losses, trial))
    assert stages(lambda loss: unit * (loss + zero)) == stages(lambda loss: loss)


def test_a_fresh_race_has_seen_nothing():
    race = in_trial()
    assert race.fresh() == Race(passes=12)
    assert (race.fresh().spent, race.fresh().stage) == (0, Stage.WAITING)


@pytest.mark.parametrize(
    ("field", "value"),
    [("passes", 0), ("passes", 2.5), ("growth", 1), ("share", -0.1), ("share", 1.1)],
)
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        Race(**{field: value})
