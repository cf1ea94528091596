"""Trials within a training: what is kept, what goes on from where, and exact resume."""

import io
from dataclasses import dataclass, replace

import pytest
import torch

from twophase import PAPER, AdamMoments, Fallback, GradientNormPeak, Race, Trainer, fit
from twophase.errors import InputError
from twophase.objective import Way
from twophase.second_phase import SELF_SCALED_BFGS, Iteration, Minimizer, Status
from twophase.settings import Settings
from twophase.switching import Action, Told, course
from twophase.training import run

EARLY = Race(passes=6, length=18)  # a trial after two epochs


@dataclass(frozen=True)
class Idle(Minimizer):
    """A second phase that stays where it is, or goes where nothing is a number."""

    to: float = 0.0

    def iterate(self, objective, point, state, inverse=None):
        objective.value(point.x)  # costs a pass
        x = point.x + self.to
        return Iteration(x, point.value, 1.0, 1, Status.MOVED, None)


@pytest.fixture(autouse=True)
def no_kind_is_left_behind():
    yield
    Settings.kinds.pop("Idle", None)


def without_seconds(history):
    return history.drop(columns=["seconds", "note", "epoch", "step_size"]).reset_index(drop=True)


@pytest.mark.parametrize("fallback", [None, Fallback()], ids=["forward", "way back"])
@pytest.mark.parametrize("second", [Idle(), Idle(float("nan"))], ids=["stays", "not a number"])
def test_after_a_lost_trial_adam_is_as_if_there_had_been_none(
    network, dataset, adam, flat, second, fallback
):
    model, alone = network(), network()
    settings = dict(adam=adam, seed=3)
    found = fit(
        model, dataset, epochs=40, second=second, switch=EARLY, fallback=fallback, **settings
    )
    phases = found.history.phase
    assert phases[:3].tolist() == ["adam", "adam", "trial"] and phases.iloc[-1] == "adam"
    epochs = int((phases == "adam").sum())
    expected = fit(alone, dataset, epochs=epochs, second=None, **settings)
    # but for the way of the epoch after a trial, whose first gradient is not kept
    ours, theirs = (
        without_seconds(history).drop(columns=list(Way._fields))
        for history in (found.history[phases == "adam"], expected.history)
    )
    assert ours.equals(theirs)
    assert torch.equal(flat(model), flat(alone))
    assert found.swap_epoch is None and found.payoffs == []
    kinds = [note.partition(":")[0] for note in found.changes.note]
    assert set(kinds) == {"trial", "return"} and kinds[:2] == ["trial", "return"]
    assert "; no switch: " in found.message


def test_a_trial_that_is_won_goes_on(network, dataset, adam):
    """Its iterations are those after a fixed swap."""
    settings = dict(adam=adam, seed=3)
    found = fit(network(), dataset, epochs=12, switch=EARLY, fallback=None, **settings)
    swapped = fit(network(), dataset, epochs=12, switch=2, fallback=None, **settings)
    history = found.history
    assert found.swap_epoch == 2
    assert history.phase[:3].tolist() == ["adam", "adam", "trial"]
    assert history.phase.iloc[-1] == "second"
    columns = ["train_loss", "grad_norm", "step_size", "evaluations", "passes", "status"]
    ours, theirs = history[columns], swapped.history[columns]
    assert ours.equals(theirs)
    switch = history.note[history.note.str.startswith("switch: ")].item()
    assert switch.startswith("switch: from the weights of epoch 2, ahead: ")
    assert found.payoffs[0].first_epoch == 3, "the trial belongs to the phase"


def test_the_end_is_never_above_adam_after_as_many_epochs_of_its_own(network, dataset, adam):
    for seed in range(4):
        found = fit(network(seed), dataset, epochs=40, switch=EARLY, adam=adam, seed=seed)
        epochs = int((found.history.phase == "adam").sum())
        alone = fit(network(seed), dataset, epochs=epochs, second=None, adam=adam, seed=seed)
        assert found.final.train_loss <= alone.final.train_loss


PRECONDITIONED = replace(SELF_SCALED_BFGS, preconditioner=AdamMoments(min_batches=1))
COURSES = {
    "race": {"switch": EARLY},
    "race by validation": {"switch": EARLY, "keep": "validation"},
    "race, preconditioned": {"switch": EARLY, "second": PRECONDITIONED},
    "race, lost": {"switch": EARLY, "second": Idle()},
    "race without way back, lost": {"switch": EARLY, "second": Idle(), "fallback": None},
    "many returns": {
        "switch": GradientNormPeak(1.0),
        "second": Idle(),
        "fallback": Fallback(trial=2, growth=1.1),
    },
    "paper": {"switch": EARLY, "second": PAPER["second"]},
}


@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
def test_wherever_it_ends_the_weights_are_those_of_the_record(network, dataset, adam, course):
    """Also where the last epoch begins a trial, ends one, or goes back."""
    for epochs in range(1, 16):
        model = network()
        final = fit(model, dataset, epochs=epochs, adam=adam, **course).final
        there = Trainer(model, dataset, second=None)
        x = there.objective.vector.read()
        assert there.objective.value(x) == pytest.approx(final.train_loss, rel=1e-6)
        assert there.validation.value(x) == pytest.approx(final.validation_loss, rel=1e-6)


@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
def test_every_state_resumes_exactly(network, dataset, adam, flat, course):
    straight = Trainer(network(), dataset, adam=adam, **course)
    states = []
    for _ in range(14):
        straight.epoch()
        file = io.BytesIO()
        torch.save(straight.state_dict(), file)
        states.append(file)
    expected = run(straight, 14)
    for file in states:
        file.seek(0)
        again = Trainer(network(seed=1), dataset, adam=adam, **course)
        again.load_state_dict(torch.load(file, weights_only=True))
        result = run(again, 14)
        columns = ["seconds"]
        assert result.history.drop(columns=columns).equals(expected.history.drop(columns=columns))
        assert result.final.epoch == expected.final.epoch
        assert torch.equal(flat(again.model), flat(straight.model))
        assert again.spent == straight.spent


def test_a_phase_that_was_adopted_by_validation_is_judged_from_its_own_loss():
    """Adam's last training loss may be far below that of the trial."""
    planned = course(EARLY, Fallback())
    # by its trend Adam would come to a validation loss of 0.81 in six passes more
    for loss, validation in ((1.0, 1.0), (0.2, 0.9)):
        planned.adam(Told(loss, 1.0, 3, judged=validation))
    assert planned.second(Told(0.9, 0.5, 3, judged=0.84)).action is Action.STAY
    assert planned.second(Told(0.8, 0.5, 3, judged=0.80)).action is Action.ADOPT
    assert planned.second(Told(0.7, 0.5, 3, judged=0.79)).action is Action.STAY


def test_a_course_is_made_of_rules_only():
    for wrong in ("race", Race, None, 2.5):
        with pytest.raises(InputError, match="^switch: "):
            course(wrong, None)
    with pytest.raises(InputError, match="^switch: 0 "):
        course(0, None)


@pytest.mark.parametrize(("level", "action"), [(1 / 70, Action.STAY), (1 / 28, Action.RETURN)])
def test_near_the_end_a_stall_is_no_reason_unless_adam_would_end_lower(level, action):
    """Adam has 1 / 20 after 60 of 240 passes, and promises 1 / 33 with 40 more."""
    planned = course(Race(passes=20, length=240, late=0.25), Fallback())
    planned.race.due = 60.0  # no early trial
    for n in range(1, 21):
        planned.adam(Told(1 / n, 1.0, 3, 1 / n))
    assert planned.trying
    while planned.trying:
        move = planned.second(Told(level, 0.5, 10, level))
    assert move.action is Action.ADOPT
    for _ in range(12):
        move = planned.second(Told(level, 0.5, 10, level))
    assert planned.race.left == 40
    assert move.reason.startswith("it stalls") and move.action is action
