"""Loss and gradient norm from mini-batches: their definition, what they cost, what stays exact."""

import pytest
import torch

import twophase
from twophase import Exact, FromBatches, Race, Trainer, fit
from twophase.adam import Adam
from twophase.errors import InputError
from twophase.monitor import EpochMeans
from twophase.objectives.full_batch import FullBatch
from twophase.training import run


def test_the_means_are_those_of_the_batches(network, rings, adam):
    """Each at the weights of its batch; the last batch is shorter."""
    model, data = network().double(), rings()
    objective = FullBatch(model, twophase.mse, data.inputs.double(), data.targets)
    means = EpochMeans(objective.vector.parameters, objective.count)
    Adam(model.parameters(), adam, torch.Generator().manual_seed(3)).epoch(objective, means)

    again = network().double()
    optimizer = torch.optim.Adam(again.parameters(), lr=adam.learning_rate)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    loss, gradient = 0.0, 0.0
    for batch in order.split(20):
        optimizer.zero_grad()
        part = twophase.mse(again(data.inputs[batch].double()), data.targets[batch])
        part.backward()
        loss += len(batch) / 96 * part.item()
        gradient += len(batch) / 96 * torch.cat([p.grad.flatten() for p in again.parameters()])
        optimizer.step()
    assert means.read() == pytest.approx((loss, gradient.norm().item()), rel=1e-12)


def test_a_step_that_changes_nothing_has_the_exact_loss_and_norm(network, rings):
    adam = twophase.AdamSettings(learning_rate=1e-30, batch_size=20)
    seen = [
        fit(network().double(), rings(), epochs=1, adam=adam, second=None, monitor=monitor).records
        for monitor in (Exact(), FromBatches())
    ]
    (exact,), (means,) = seen
    assert means.train_loss == pytest.approx(exact.train_loss, rel=1e-12)
    assert means.grad_norm == pytest.approx(exact.grad_norm, rel=1e-12)


def test_it_costs_no_passes_and_changes_no_weights(network, rings, adam, flat):
    models, results = [], []
    for monitor in (Exact(), FromBatches()):
        models.append(network())
        settings = dict(adam=adam, second=None, seed=2, monitor=monitor)
        results.append(fit(models[-1], rings(), epochs=6, **settings))
    assert torch.equal(*map(flat, models))
    exact, means = (result.history for result in results)
    assert exact.monitor_passes.eq(3).all() and means.monitor_passes.eq(0).all()
    assert means.train_accuracy.isna().all()
    # half an epoch behind
    assert means.train_loss.iloc[1:].to_numpy() == pytest.approx(
        exact.train_loss.iloc[:-1], rel=0.1
    )


def test_what_a_rule_of_the_norm_reads_is_free(network, rings, adam):
    for monitor, reading in ((Exact(), 3 * 4), (FromBatches(), 0)):
        rule = twophase.GradientNormPeak(1e-9)
        trainer = Trainer(network(), rings(), adam=adam, switch=rule, monitor=monitor)
        run(trainer, 4)
        assert trainer.spent == 4 * 3 + reading


RACE = Race(passes=9, length=36)  # a trial after four epochs


def test_a_race_reads_exact_losses_and_ends_as_with_exact_ones(network, rings, adam):
    """Three of Adam's losses are measured before the trial; one pass each."""
    found = [
        fit(network(), rings(), epochs=12, adam=adam, switch=RACE, monitor=monitor)
        for monitor in (Exact(), FromBatches())
    ]
    exact, means = (result.history for result in found)
    assert found[0].swap_epoch == found[1].swap_epoch == 4
    read = means.monitor_passes[means.phase == "adam"]
    assert read[read > 0].index.tolist() == [1, 2, 3] and read.max() == 1
    same = exact.train_loss.iloc[[1, 2, 3, -1]].tolist()
    assert means.train_loss.iloc[[1, 2, 3, -1]].tolist() == pytest.approx(same, rel=1e-12)


def test_one_batch_has_it_at_hand(network, rings):
    result = fit(network(), rings(), epochs=3, second=None, monitor=FromBatches())
    assert result.history.monitor_passes.tolist() == [1, 0, 0], "one to compare with eval mode"
    assert result.history.train_accuracy.notna().all()


def test_a_loss_that_is_no_number_is_found(network, rings):
    adam = twophase.AdamSettings(learning_rate=1e30, batch_size=20)
    with pytest.raises(twophase.NonFiniteError, match="after epoch 1|after epoch 2"):
        fit(
            network(),
            rings(),
            epochs=3,
            adam=adam,
            second=None,
            monitor=FromBatches(),
            loss=lambda outputs, targets: outputs.sum() * float("nan"),
        )


def test_a_monitor_is_one():
    with pytest.raises(InputError, match="^monitor: "):
        Trainer(torch.nn.Linear(1, 1), (torch.ones(2, 1), torch.ones(2, 1)), monitor="exact")
