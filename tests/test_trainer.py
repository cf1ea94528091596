"""The trainer: work and time per epoch, exact resume and branches, modes of the model."""

import io

import pytest
import torch
from torch import nn

import twophase
from twophase import (
    PAPER,
    AdamMoments,
    ConjugateDirection,
    Descent,
    Fallback,
    GoldenSection,
    ParabolaFirst,
    StrongWolfe,
    Trainer,
    fit,
)
from twophase.automatic import DEFAULT
from twophase.errors import InputError
from twophase.objectives.full_batch import FullBatch
from twophase.second_phase import SELF_SCALED_BFGS
from twophase.switching import PositiveCurvature
from twophase.training import run

SEARCHES = {"golden": GoldenSection(), "parabola": ParabolaFirst(), "wolfe": StrongWolfe()}


def without_seconds(result):
    return result.history.drop(columns="seconds")


# ---- work and time ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "more", "less"),
    # Adam's own passes go through no objective; the gradient after the last iteration of a golden
    # section starts no further one; the one at a swap counts for the rule and the second phase
    [
        ({"second": None}, 0, 4 * 3),
        ({"adam": None}, 3, 0),
        ({"switch": 2, "fallback": None}, 3, 2 * 3 + 3),
    ],
    ids=["adam", "second", "both"],
)
@pytest.mark.parametrize("search", SEARCHES)
def test_passes_are_what_the_objective_counted(network, rings, adam, arguments, more, less, search):
    if search != "golden":
        more = 0  # the gradient at the end is the search's own
    second = Descent(SELF_SCALED_BFGS.direction, SEARCHES[search])
    trainer = Trainer(network(), rings(), **{"second": second, "adam": adam} | arguments)
    result = run(trainer, 4)
    recorded = sum(r.passes + r.monitor_passes for r in result.records)
    assert trainer.objective.passes.total == recorded + more - less


@pytest.mark.parametrize("batch_size", [None, 96, 1000])
def test_adam_on_all_examples_steps_along_the_gradient_that_is_at_hand(
    network, rings, flat, batch_size
):
    """Three passes an epoch, the first gradient beside them, and one to compare with eval mode."""
    settings = twophase.AdamSettings(learning_rate=0.01, batch_size=batch_size)
    trainer = Trainer(network().double(), rings(), adam=settings, second=None)
    result = run(trainer, 5)
    assert [(r.passes, r.monitor_passes) for r in result.records] == [(3, 1)] + [(3, 0)] * 4
    assert trainer.objective.passes.total == 6 * 3 + 1 and trainer.spent == 15
    model, data = network().double(), rings()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        adam.zero_grad()
        twophase.mse(model(data.inputs.double()), data.targets).backward()
        adam.step()
    torch.testing.assert_close(flat(trainer.model), flat(model), rtol=1e-10, atol=1e-12)


class FunctionalDropout(nn.Module):
    """Random in training mode, without any module that says so."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Linear(2, 2), []

    def forward(self, inputs):
        self.calls.append(self.training)
        return nn.functional.dropout(self.inner(inputs), 0.5, self.training).softmax(1)


def test_a_model_that_is_random_in_training_trains_in_its_own_mode(rings):
    """The gradient at hand is that of eval mode, and not for such a model."""
    model = FunctionalDropout()
    result = fit(model, rings(), epochs=5, second=None)
    assert sum(model.calls) == 1 + 5, "one to compare, then an epoch each"
    assert result.history.monitor_passes.tolist() == [4, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("switch", "reading"),
    [(twophase.GradientNormPeak(1e-9), 3 * 6), (99, 0), (twophase.Race(passes=18, length=54), 3)],
    ids=["a norm an epoch", "nothing", "three losses a trial"],
)
def test_what_the_switch_reads_is_spent(network, rings, adam, switch, reading):
    trainer = Trainer(network(), rings(), adam=adam, switch=switch)
    assert run(trainer, 6).records[-1].phase == "adam"
    assert trainer.spent == 6 * 3 + reading


def test_what_adam_has_at_hand_costs_the_switch_nothing(network, rings):
    whole = Trainer(network(), rings(), switch=twophase.GradientNormPeak(1e-9))
    run(whole, 5)
    assert whole.spent == 15


def test_a_training_ends_when_its_passes_are_spent(network, rings, adam):
    for switch in (3, twophase.GradientNormPeak(1e-9)):
        trainer = Trainer(network(), rings(), adam=adam, switch=switch)
        result = run(trainer, passes=50)
        assert trainer.spent >= 50 > trainer.spent - result.records[-1].passes - 3
        assert f"all {trainer.spent} passes are spent" in result.message
    assert len(fit(network(), rings(), adam=adam, epochs=4, passes=10**6).records) == 4
    for wrong in ({}, {"passes": 0}, {"epochs": 0}, {"passes": 2.5}):
        with pytest.raises(InputError, match="^(epochs|passes): "):
            fit(network(), rings(), **wrong)


def test_seconds_are_those_of_the_optimization(network, rings, adam, monkeypatch):
    """A clock that ticks once a reading: one tick an epoch, and another for a gradient of its own.

    A search by slopes ends with the gradient that the next epoch starts from.
    """
    ticks = iter(range(10_000))
    for module in ("loop", "watch"):
        monkeypatch.setattr(f"twophase.{module}.clock", lambda device: float(next(ticks)))
    settings = dict(epochs=6, switch=3, adam=adam, device="cpu", fallback=None)
    result = fit(network(), rings(), **settings, second=PAPER["second"])
    assert [r.seconds for r in result.records] == [1, 1, 1, 2, 2, 2]
    result = fit(network(), rings(), **settings)
    assert [r.seconds for r in result.records] == [1, 1, 1, 2, 1, 1]


# ---- resume and branches ------------------------------------------------------------------------


def saved(state):
    """A state that went through a file without pickled code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


SECOND_PHASES = {
    "default": DEFAULT,
    "paper": PAPER["second"],
    "preconditioned cg": Descent(
        ConjugateDirection("PR+"), ParabolaFirst(), AdamMoments(min_batches=1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fallback", [None, Fallback()], ids=["forward", "way back"])
@pytest.mark.parametrize("second", SECOND_PHASES.values(), ids=SECOND_PHASES)
@pytest.mark.parametrize("epochs", [2, 4, 7])
def test_a_state_resumes_exactly(network, dataset, adam, flat, epochs, second, fallback):
    """In Adam, at the swap and in the second phase, with the preconditioner that Adam has left."""
    settings = dict(switch=4, adam=adam, seed=5, second=second, fallback=fallback)
    straight = Trainer(network(), dataset, **settings)
    expected = run(straight, 9)
    first = Trainer(network(), dataset, **settings)
    for _ in range(epochs):  # `run` would give the model its final weights
        first.epoch()
    again = Trainer(network(seed=1), dataset, **settings)
    again.load_state_dict(saved(first.state_dict()))
    assert without_seconds(run(again, 9)).equals(without_seconds(expected))
    assert torch.equal(flat(again.model), flat(straight.model))


def test_the_way_of_each_epoch_of_adam_is_recorded(network, dataset, adam):
    """With the gradients before and after it, which mini-batches have from the second on."""
    trainer = Trainer(network().double(), dataset, adam=adam, switch=5, fallback=None)
    points = []
    for _ in range(7):
        trainer.epoch()
        points.append(trainer.watch.point)
    ways = [record.way for record in trainer.history]
    assert ways[0] is None and ways[5] is None and ways[6] is None
    for before, after, found in zip(points, points[1:5], ways[1:5], strict=False):
        step = after.x - before.x
        slope = torch.dot(step, after.gradient - before.gradient) / torch.dot(step, step)
        assert found.curvature == pytest.approx(slope.item())


def test_a_rule_of_the_way_resumes_and_branches(network, dataset, adam):
    rule = PositiveCurvature(2)
    settings = dict(adam=adam, switch=rule, fallback=None)
    straight = Trainer(network(), dataset, **settings)
    expected = run(straight, 12)
    assert straight.swap_epoch is not None and straight.swap_epoch >= 3
    prefix = Trainer(network(), dataset, second=None, adam=adam)
    run(prefix, straight.swap_epoch - 1)
    branch = Trainer(network(seed=1), dataset, **settings)
    branch.load_state_dict(saved(prefix.state_dict()))
    assert without_seconds(run(branch, 12)).equals(without_seconds(expected))


def normalized(seed=0):
    """A network whose loss depends on statistics that are no parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))


@pytest.mark.parametrize("epochs", [3, 5, 6, 9])
@pytest.mark.parametrize("switch", [4, twophase.Race(passes=9, length=27)], ids=["fixed", "race"])
def test_statistics_of_batch_norm_resume_with_the_weights(dataset, adam, flat, switch, epochs):
    settings = dict(switch=switch, adam=adam, seed=5, freeze=True)
    straight = Trainer(normalized(), dataset, **settings)
    expected = run(straight, 12)
    first = Trainer(normalized(), dataset, **settings)
    for _ in range(epochs):
        first.epoch()
    again = Trainer(normalized(seed=1), dataset, **settings)
    again.load_state_dict(saved(first.state_dict()))
    assert without_seconds(run(again, 12)).equals(without_seconds(expected))
    for name, buffer in straight.model.named_buffers():
        assert torch.equal(buffer, again.model.get_buffer(name)), name


def test_kept_weights_have_the_statistics_that_their_loss_was_measured_with(dataset, adam):
    turned = twophase.examples.Examples(dataset.validation.inputs, 1 - dataset.validation.targets)
    data = twophase.examples.Dataset("rings", dataset.train, turned, classes=2)
    trainer = Trainer(normalized(), data, adam=adam, second=None, keep="validation")
    for _ in range(40):
        trainer.epoch()
    kept = trainer.finish()
    assert kept.epoch < 40  # what is learned makes the validation loss rise
    x = trainer.objective.vector.read()
    assert trainer.validation.score(x).loss == kept.validation_loss
    assert trainer.objective.score(x).loss == pytest.approx(kept.train_loss, rel=1e-6)


@pytest.mark.parametrize("fallback", [None, Fallback()], ids=["forward", "way back"])
def test_a_branch_equals_the_run_in_one_piece(network, dataset, adam, fallback):
    prefix = Trainer(network(), dataset, second=None, adam=adam)
    run(prefix, 4)
    branch = Trainer(network(seed=1), dataset, switch=4, adam=adam, fallback=fallback)
    state = prefix.state_dict()
    run(prefix, 6)
    branch.load_state_dict(state)
    whole = fit(network(), dataset, epochs=9, switch=4, adam=adam, fallback=fallback)
    assert without_seconds(run(branch, 9)).equals(without_seconds(whole))
    with pytest.raises(InputError, match="^state: 'epoch 3 in phase adam'"):
        Trainer(network(), dataset, switch=2).load_state_dict(state)


def test_a_state_is_a_snapshot(network, dataset, adam):
    trainer = Trainer(network(), dataset, second=None, adam=adam)
    run(trainer, 2)
    state = trainer.state_dict()
    straight = run(trainer, 5)
    again = Trainer(network(seed=1), dataset, second=None, adam=adam)
    again.load_state_dict(state)
    assert without_seconds(run(again, 5)).equals(without_seconds(straight))


def test_one_state_serves_several_trainers(network, dataset, adam):
    """Each goes on from a copy: the first to train must not move the moments of the second."""
    prefix = Trainer(network(), dataset, second=None, adam=adam)
    run(prefix, 2)
    state = prefix.state_dict()
    twins = [Trainer(network(seed=1), dataset, second=None, adam=adam) for _ in range(2)]
    for twin in twins:
        twin.load_state_dict(state)
    first, second = (without_seconds(run(twin, 6)) for twin in twins)
    assert first.equals(second)
    assert first.equals(without_seconds(run(prefix, 6)))


def test_the_preconditioner_is_adams_at_the_swap(network, dataset, adam):
    trainer = Trainer(
        network(), dataset, switch=3, adam=adam, second=SELF_SCALED_BFGS, fallback=None
    )
    run(trainer, 3)
    before = trainer.objective.vector.read()
    gradient = trainer.objective.value_and_gradient(before)[1]
    optimizer = trainer.phases["adam"].adam.optimizer
    moments = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in optimizer.state])
    steps = optimizer.state[next(iter(optimizer.state))]["step"].item()
    root = (moments / (1 - 0.999**steps)).sqrt()
    scale = root + 0.1 * root.mean() + 1e-8
    record = trainer.epoch()
    torch.testing.assert_close(
        trainer.objective.vector.read() - before, -record.step_size * gradient / scale
    )


# ---- modes --------------------------------------------------------------------------------------


def test_the_models_mode_is_kept_and_measured_in_eval_mode(network, rings, adam):
    model = nn.Sequential(nn.Dropout(0.5), network())
    trainer = Trainer(model, rings(), second=None, adam=adam)
    record = trainer.epoch()
    assert model.training
    exact = FullBatch(model.eval(), twophase.mse, *vars(rings()).values())
    assert record.train_loss == exact.value(exact.vector.read())


def test_a_model_that_does_not_repeat_is_refused_before_training(network, rings, flat):
    model = nn.Sequential(nn.Dropout(0.5), network())
    before = flat(model)
    for arguments in ({}, {"adam": None}):
        with pytest.raises(InputError, match="Dropout in training mode"):
            Trainer(model, rings(), **arguments)
    assert torch.equal(flat(model), before)
    Trainer(model, rings(), second=None)


def test_a_loss_that_does_not_repeat_is_found_before_the_second_phase(network, rings, adam):
    noise = [0.0]

    def noisy(outputs, targets):
        return twophase.mse(outputs, targets) * (1 + noise[0] * torch.rand(()))

    trainer = Trainer(network(), rings(), switch=2, adam=adam, loss=noisy)
    noise[0] = 0.01
    with pytest.raises(InputError, match="at the same parameters"):
        Trainer(network(), rings(), switch=2, adam=adam, loss=noisy)
    run(trainer, 2)
    with pytest.raises(InputError, match="^model: .* at the same parameters"):
        trainer.epoch()


def test_a_training_of_one_phase_has_no_course(network, rings):
    for arguments in ({"second": None}, {"adam": None}):
        trainer = Trainer(network(), rings(), fallback=Fallback(), **arguments)
        assert trainer.course is None


# ---- which weights are kept ---------------------------------------------------------------------


@pytest.mark.parametrize("switch", [4, twophase.Race(passes=6, length=18)], ids=["swap", "race"])
def test_the_weights_of_the_lowest_validation_loss_are_kept(network, dataset, adam, flat, switch):
    weights, model = [], network()
    settings = dict(adam=adam, switch=switch, keep="validation")
    result = fit(
        model, dataset, epochs=30, on_epoch=lambda _: weights.append(flat(model)), **settings
    )
    losses = [record.validation_loss for record in result.records]
    lowest = losses.index(min(losses))
    assert lowest + 1 < len(losses), "the last epoch would prove nothing"
    assert result.final == result.records[lowest]
    # after a change of phase the model has other weights by the time `on_epoch` is called
    assert Trainer(model, dataset, second=None).validation.value(flat(model)) == min(losses)
    assert f"the weights are those of epoch {lowest + 1}, of the lowest" in result.message


def test_trials_are_judged_by_the_validation_loss(network, dataset, adam):
    """Rings for validation whose labels are turned around: whoever learns more is behind."""
    turned = twophase.examples.Examples(dataset.validation.inputs, 1 - dataset.validation.targets)
    data = twophase.examples.Dataset("rings", dataset.train, turned, classes=2)
    race = twophase.Race(passes=6, length=18)
    settings = dict(epochs=20, adam=adam, switch=race, fallback=None)
    by_train = fit(network(), data, **settings)
    by_validation = fit(network(), data, keep="validation", **settings)
    assert by_train.swap_epoch == 2
    assert by_validation.swap_epoch is None
    assert "return: behind" in by_validation.changes.note.iloc[1]


def test_keeping_by_validation_needs_validation_examples(network, rings, dataset):
    with pytest.raises(InputError, match="^keep: 'validation' is not allowed; use 'train' where"):
        Trainer(network(), rings(), keep="validation")
    with pytest.raises(InputError, match="^keep: 'val' is not allowed"):
        Trainer(network(), dataset, keep="val")


def test_a_second_phase_that_gains_in_training_and_loses_in_validation_is_named(
    network, dataset, adam
):
    turned = twophase.examples.Examples(dataset.validation.inputs, 1 - dataset.validation.targets)
    data = twophase.examples.Dataset("rings", dataset.train, turned, classes=2)
    result = fit(network(), data, epochs=12, adam=adam, switch=4)
    before, after = result.payoffs[0].validation
    assert after > before and result.payoffs[0].loses_in_validation
    assert before == result.records[3].validation_loss
    assert f"but its validation loss rose from {before:.3g} to {after:.3g}" in result.message
    assert not fit(network(), dataset.train, epochs=12, adam=adam, switch=4).payoffs[0].validation


def test_a_validation_loss_that_is_no_number_keeps_nothing(network, dataset, adam):
    inputs = dataset.validation.inputs.clone()
    inputs[0] = float("nan")
    broken = twophase.examples.Examples(inputs, dataset.validation.targets)
    data = twophase.examples.Dataset("rings", dataset.train, broken, classes=2)
    with pytest.raises(twophase.NonFiniteError, match="^loss: nan .* by validation after epoch 1"):
        fit(network(), data, epochs=5, adam=adam, keep="validation")


def test_a_trainer_that_was_used_forgets_it_on_loading(network, dataset, adam):
    race = twophase.Race(passes=6, length=18)
    settings = dict(adam=adam, switch=race, keep="validation")
    trainer = Trainer(network(), dataset, **settings)
    for _ in range(3):
        trainer.epoch()
    state = trainer.state_dict()
    run(trainer, 20)
    trainer.load_state_dict(state)
    assert trainer.finish() in trainer.history and len(trainer.history) == 3


def test_a_state_without_the_weights_that_are_needed_is_refused(network, dataset, adam):
    """A run that does not look at validation has set nothing aside where that was lowest."""
    turned = twophase.examples.Examples(dataset.validation.inputs, 1 - dataset.validation.targets)
    dataset = twophase.examples.Dataset("rings", dataset.train, turned, classes=2)
    prefix = Trainer(network(), dataset, second=None, adam=adam)
    run(prefix, 3)
    with pytest.raises(InputError, match="^state: 'without the weights of epoch"):
        trainer = Trainer(network(), dataset, adam=adam, keep="validation", second=None)
        trainer.load_state_dict(prefix.state_dict())


def test_there_is_no_end_before_the_first_epoch(network, rings):
    with pytest.raises(InputError, match="^epochs: 0 is not allowed"):
        Trainer(network(), rings()).finish()
