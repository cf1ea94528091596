"""Work counted against what one works out by hand, and the floor that follows from it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from twophase.adam import Adam, AdamSettings
from twophase.errors import InputError
from twophase.experiments import floor, table1
from twophase.experiments.floor import Speed, Work, work_of
from twophase.losses import mse
from twophase.objectives import FullBatch
from twophase.problems import networks


def test_operations_are_those_of_products_forward_and_backward():
    model, inputs = nn.Linear(30, 20, bias=False), torch.ones(7, 30)
    product = 2 * 7 * 30 * 20
    assert work_of(lambda: model(inputs)).operations == product
    # the gradient by the weights is one more, and so is that by the inputs
    assert work_of(lambda: model(inputs).sum().backward()).operations == 2 * product
    inputs.requires_grad_()
    assert work_of(lambda: model(inputs).sum().backward()).operations == 3 * product


def test_operations_are_those_of_attention_too():
    """Scores and their sums forward; backward the scores again, and both factors of each."""
    tokens = torch.ones(2, 4, 17, 16, requires_grad=True)

    def attend():
        return functional.scaled_dot_product_attention(tokens, tokens, tokens)

    product = 2 * (2 * 4) * 17 * 17 * 16
    assert work_of(attend).operations == 2 * product
    assert work_of(lambda: attend().sum().backward()).operations == (2 + 5) * product


def test_launches_are_operations_that_make_or_change_numbers():
    x = torch.ones(7, 30)
    assert work_of(lambda: x.view(30, 7).t()[0]).launches == 0
    assert work_of(lambda: x.add_(1)) == Work(0, 1)
    assert work_of(lambda: (x.t() + 1).sum()).launches == 2
    assert work_of(lambda: x.t().contiguous()).launches == 1


def test_an_epoch_has_the_work_of_its_mini_batches():
    def epoch(batch_size):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        objective = FullBatch(model, mse, torch.ones(12, 3), torch.ones(12, 2))
        settings = AdamSettings(batch_size=batch_size)
        adam = Adam(model.parameters(), settings, torch.Generator().manual_seed(0))
        return work_of(lambda: adam.epoch(objective))

    whole, parts = epoch(12), epoch(4)
    # forward and by the weights, and by the inputs of the second layer
    assert whole.operations == parts.operations == 2 * 12 * (2 * 3 * 4 + 3 * 4 * 2)
    assert whole.launches < parts.launches <= 3 * whole.launches


def test_the_floor_is_the_larger_of_both_bounds():
    speed = Speed(rate=100.0, launch=0.5)
    assert speed.floor(Work(1000, 4)) == 10 and speed.floor(Work(100, 4)) == 2


def test_speed_is_the_best_of_some_repetitions(monkeypatch):
    """By a clock that counts what it is asked: a product takes 4 s, then 2 s, additions 10 s."""
    ticks = iter([0, 4, 4, 6, 10, 20, 20, 30])
    monkeypatch.setattr(floor, "clock", lambda device: next(ticks))
    monkeypatch.setitem(floor.WIDTHS, "cpu", 8)
    found = floor.speed(torch.device("cpu"), torch.float32, 2)
    assert found == pytest.approx((2 * 8**3 / 2, 10 / floor.LAUNCHES))


def test_a_step_and_an_iteration_are_counted_as_by_hand():
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.ones(5, 4)
    step, iteration = floor.step_and_iteration(model, inputs, 7)
    value = 5 * 2 * (4 * 3 + 3 * 2)
    # by all weights, and by the inputs of the second layer
    gradient = 2 * value + 5 * 2 * 3 * 2
    assert step.operations == gradient and iteration.operations == gradient + 7 * value

    objective = FullBatch(model, mse, inputs, torch.zeros(5).long(), 5)
    x, batch = objective.vector.read(), torch.arange(5)
    gradient = work_of(lambda: objective.value_and_gradient(x)).launches
    value = work_of(lambda: objective.value(x)).launches
    assert iteration.launches == gradient + 7 * value
    model.zero_grad()
    # one for the indices; fused Adam makes a step of all weights, and counts it
    alone = work_of(lambda: objective.batch_loss(batch).backward()).launches
    assert step.launches == 1 + alone + 2


def test_pairs_on_paper_have_all_epochs_of_adam_and_the_iterations_after_the_swap():
    """The paper's first network on CIFAR-10, layer by layer."""
    protocol = table1.PROTOCOLS["paper"]
    (config,) = table1.configs(protocol, ["cifar10"], ["vit-mlp"])
    tokens, width, classes = 17, 64, 10
    embedding = 2 * 16 * (3 * 8 * 8) * width
    attention = 2 * 2 * tokens**2 * width
    layer = 2 * tokens * width * width * (4 + 4 + 4)
    value = embedding + 3 * (layer + attention) + 2 * width * classes
    # by weights and inputs, but the images; of attention five products for two
    gradient = value + 2 * (value - 3 * attention) - embedding + 3 * attention * 5 // 2
    speed = Speed(rate=1e13, launch=1e-5)
    (row,) = floor.pairs([config], 11, speed).itertuples()
    assert (row.dataset, row.model) == ("cifar10", "vit-mlp")
    assert row.adam_operations == 700 * 50_000 * gradient
    assert row.cg_operations == (700 - 210) * 50_000 * (gradient + 11 * value)
    model = networks.build("vit-mlp", 3, 10, seed=0)
    step, iteration = floor.step_and_iteration(model, torch.ones(3, 3, 32, 32), 11)
    assert row.adam_launches == 700 * 98 * step.launches, "batches of 512"
    assert row.cg_launches == 490 * iteration.launches
    adam, cg = 60 * row.adam_minutes, 60 * row.cg_minutes
    assert adam == pytest.approx(row.adam_launches * 1e-5) and cg > row.cg_launches * 1e-5
    assert cg == pytest.approx(row.cg_operations / 1e13)
    assert row.minutes == row.adam_minutes + row.cg_minutes


def test_a_pair_needs_a_swap():
    (config,) = table1.configs(table1.PROTOCOLS["smoke"], models=["vit-nomlp"], swap="rule")
    with pytest.raises(InputError, match="^switch: "):
        floor.pairs([config])
