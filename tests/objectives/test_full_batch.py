"""The full-batch loss against autograd and float64: values, gradients, accuracy, resolution."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from twophase.adam import Adam, AdamSettings
from twophase.losses import mse
from twophase.objective import dot
from twophase.objectives.full_batch import FullBatch
from twophase.problems import images, networks


def classifier(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(dim=1)).to(dtype)


def labelled(count=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator, dtype=dtype)
    return inputs, torch.randint(3, (count,), generator=generator)


@pytest.mark.parametrize("chunk_size", [1, 7, 40, 1000])
def test_value_and_gradient_are_those_of_the_whole_batch(chunk_size):
    model, (inputs, targets) = classifier(), labelled()
    full = FullBatch(model, mse, inputs, targets, chunk_size)
    value, gradient = full.value_and_gradient(full.vector.read())
    loss = mse(model(inputs), targets)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, model.parameters())])
    assert value == pytest.approx(loss.item(), rel=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-16)
    assert full.value(full.vector.read()) == pytest.approx(value, rel=1e-14)


def test_the_gradient_is_the_slope_of_the_value():
    model, (inputs, targets) = classifier(), labelled()
    full = FullBatch(model, mse, inputs, targets)
    x = full.vector.read()
    _, gradient = full.value_and_gradient(x)
    direction = torch.randn(len(x), generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    h = 1e-6
    slope = (full.value(x + h * direction) - full.value(x - h * direction)) / (2 * h)
    assert slope == pytest.approx(dot(gradient, direction), rel=1e-6)


def test_float32_losses_are_summed_in_float64():
    """10⁵ equal losses: their float64 mean is one loss; a float32 sum is off by more."""
    model, count = nn.Linear(1, 1), 100_000
    inputs, targets = torch.ones(count, 1), torch.zeros(count, 1)
    full = FullBatch(model, mse_loss, inputs, targets, chunk_size=1000)
    exact = model(inputs[:1]).double().square().item()
    assert full.value(full.vector.read()) == pytest.approx(exact, rel=1e-13)


def test_score_and_measure_count_hits():
    model, (inputs, targets) = classifier(), labelled()
    full = FullBatch(model, mse, inputs, targets, chunk_size=7)
    x = full.vector.read()
    hits = (model(inputs).argmax(dim=1) == targets).double().mean().item()
    point, accuracy = full.measure(x)
    assert accuracy == full.score(x).accuracy == hits
    assert point.value == full.value_and_gradient(x)[0]


def test_top_accuracy_counts_the_largest_outputs():
    model, (inputs, targets) = classifier(), labelled()
    full = FullBatch(model, mse, inputs, targets, chunk_size=7)
    ranks = (-model(inputs)).argsort(dim=1).argsort(dim=1)
    in_two = ranks.gather(1, targets[:, None]) < 2
    assert full.score(full.vector.read(), top=2).accuracy == in_two.double().mean().item()
    assert full.score(full.vector.read(), top=3).accuracy == 1


def test_there_is_no_accuracy_without_classes():
    inputs = torch.ones(5, 2)
    full = FullBatch(nn.Linear(2, 1), mse_loss, inputs, torch.ones(5, 1))
    assert full.score(full.vector.read()).accuracy is None


def test_passes_are_counted():
    model, (inputs, targets) = classifier(), labelled()
    full = FullBatch(model, mse, inputs, targets, chunk_size=7)
    x = full.vector.read()
    full.value(x)
    assert full.passes.total == 1
    full.value_and_gradient(x)
    assert full.passes.total == 1 + 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-nomlp-wkewq-wvwo1", "vit-mlp"])
@pytest.mark.parametrize("epochs", [0, 30])
def test_the_resolution_covers_the_noise_of_float32_networks(name, epochs):
    """Noise: what a parabola along a short line leaves, over the loss; not far above it either."""
    digits = images.load("digits", train_examples=100)
    model = networks.build(name, 1, 10, seed=0)
    adam = Adam(model.parameters(), AdamSettings(batch_size=20), torch.Generator().manual_seed(0))
    full = FullBatch(model, mse, digits.train.inputs, digits.train.targets)
    for _ in range(epochs):
        adam.epoch(full)
    x = full.vector.read()
    value, gradient = full.value_and_gradient(x)
    steps = 1e-3 * value / dot(gradient, gradient) * np.linspace(0, 1, 15)
    losses = np.array([full.value(x - float(step) * gradient) for step in steps])
    left = losses - np.polyval(np.polyfit(steps, losses, 2), steps)
    noise = left.std() * (15 / 12) ** 0.5 / value
    # other processors sum in other orders: leave them a factor of 2
    assert noise / 2 < full.resolution < 20 * noise


def test_a_float64_network_resolves_like_float64():
    model, (inputs, targets) = classifier(), labelled()
    full = FullBatch(model, mse, inputs, targets)
    full.value_and_gradient(full.vector.read())
    assert full.resolution < 1e-14


def test_losses_with_weights_and_models_that_return_tuples_work():
    model, (inputs, targets) = classifier(torch.float32), labelled(dtype=torch.float32)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    full = FullBatch(model, weighted, inputs, targets)
    expected = weighted(model(inputs), targets).item()
    assert full.value(full.vector.read()) == pytest.approx(expected, rel=1e-6)

    recurrent = nn.LSTM(4, 3, batch_first=True)
    full = FullBatch(recurrent, lambda o, t: o[0].square().mean(), inputs[:, None], targets)
    value, gradient = full.value_and_gradient(full.vector.read())
    assert value > 0 and gradient.shape == full.vector.read().shape
    assert full.score(full.vector.read()).accuracy is None
