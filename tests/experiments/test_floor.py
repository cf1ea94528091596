"""Work counted against what one works out by hand, and the floor that follows from it."""

import pytest
import torch
from torch import nn

from twophase.adam import Adam, AdamSettings
from twophase.experiments import floor
from twophase.experiments.floor import Speed, Work, work_of
from twophase.losses import mse
from twophase.objectives import FullBatch


def test_operations_are_those_of_products_forward_and_backward():
    model, inputs = nn.Linear(30, 20, bias=False), torch.ones(7, 30)
    product = 2 * 7 * 30 * 20
    assert work_of(lambda: model(inputs)).operations == product
    # the gradient by the weights is one more, and so is that by the inputs
    assert work_of(lambda: model(inputs).sum().backward()).operations == 2 * product
    inputs.requires_grad_()
    assert work_of(lambda: model(inputs).sum().backward()).operations == 3 * product


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
