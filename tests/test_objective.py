"""The objective against autograd and float64: values, gradients, chunks, passes, checks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from twophase import objective
from twophase.adam import AdamSettings
from twophase.errors import InputError, NonFiniteError
from twophase.losses import mse
from twophase.objective import (
    FullBatch,
    FunctionObjective,
    ParameterVector,
    bytes_per_example,
    check_modules,
    dot,
    start,
)
from twophase.problems import images, networks
from twophase.training import fit


def classifier(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(dim=1)).to(dtype)


def labelled(count=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator, dtype=dtype)
    return inputs, torch.randint(3, (count,), generator=generator)


def test_mse_is_its_definition():
    outputs = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0])
    by_hand = (0.8**2 + 0.8**2 + 0.5**2 + 0.5**2 + 0 + 0) / (3 * 2)
    assert mse(outputs, labels).item() == pytest.approx(by_hand, rel=1e-15)
    one_hot = nn.functional.one_hot(labels).double()
    assert mse(outputs, one_hot).item() == mse(outputs, labels).item()


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


def test_the_vector_is_the_parameters_in_order():
    model = classifier()
    vector = ParameterVector(model.parameters())
    x = vector.read()
    assert torch.equal(x, nn.utils.parameters_to_vector(model.parameters()).detach())
    vector.write(x + 1)
    assert torch.equal(vector.read(), x + 1)
    assert torch.equal(x, vector.read() - 1), "read must copy"


def test_inner_products_do_not_underflow():
    tiny = torch.full((4,), 1e-30)
    assert dot(tiny, tiny) == pytest.approx(4e-60)


def test_a_start_that_does_not_repeat_itself_is_refused():
    generator = torch.Generator().manual_seed(0)
    noisy = FunctionObjective(lambda x: (x**2).sum() + torch.rand((), generator=generator))
    with pytest.raises(InputError, match="at the same parameters"):
        start(noisy, torch.ones(2, dtype=torch.float64))


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match="gradient norm: nan"):
        start(FunctionObjective(lambda x: x.abs().sqrt().sum() * 0), torch.zeros(1).double())


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Dropout2d(0.1)])
def test_modules_that_break_cg_are_named(module):
    with pytest.raises(InputError, match=f"model: '{type(module).__name__} in training mode'"):
        check_modules(nn.Sequential(nn.Linear(2, 2), nn.Sequential(module)))
    check_modules(nn.Sequential(module).eval())


def test_modules_that_do_not_break_cg_pass():
    check_modules(nn.Sequential(nn.Dropout(0.0), nn.LayerNorm(2), nn.GroupNorm(1, 2)))


@pytest.mark.parametrize("name", ["vit-nomlp-wkewq-wvwo1", "vit-mlp"])
@pytest.mark.parametrize("epochs", [0, 20])
def test_the_resolution_covers_the_noise_of_float32_networks(name, epochs):
    """Noise: what a parabola along a short line leaves, over the loss; not far above it either."""
    digits = images.load("digits", train_examples=500)
    model = networks.build(name, 1, 10, seed=0)
    if epochs:
        fit(model, digits, epochs=epochs, strategy="adam", adam=AdamSettings(batch_size=64))
    full = FullBatch(model, mse, digits.train.inputs, digits.train.targets)
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


def test_targets_that_would_broadcast_are_refused():
    with pytest.raises(InputError, match="targets: .* the outputs' shape"):
        mse(torch.zeros(5, 1), torch.zeros(5))


def test_bytes_per_example_are_those_of_the_tensors_of_a_forward_pass():
    """By hand: two linear maps, a tanh, the outputs in float64, and the squared error's two."""
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    full = FullBatch(
        model, lambda o, t: (o - t).square().mean(), torch.ones(9, 4), torch.ones(9, 3)
    )
    found = bytes_per_example(model, full._part, full.inputs, full.targets)
    assert found == 4 * (7 + 7 + 3) + 8 * (3 + 3) + 8 * (3 + 3)


def test_bytes_per_example_leave_out_what_is_made_once():
    class Normalised(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight / self.weight.norm())

    model = Normalised(50, 2, bias=False)
    assert bytes_per_example(model, lambda x, _: model(x), torch.ones(4, 50), torch.ones(4)) == 8


def test_frozen_layers_count_too():
    """They are not in the graph, but their results are in memory."""
    model = nn.Sequential(nn.Linear(4, 7).requires_grad_(False), nn.Linear(7, 3))
    assert bytes_per_example(model, lambda x, _: model(x), torch.ones(4, 4), torch.ones(4)) == 40


@pytest.mark.parametrize(
    ("count", "budget", "expected"), [(1, 1, 1), (4, 1, 4), (40, 1, 1), (40, 1e9, 40)]
)
def test_the_chosen_chunk_lies_between_one_and_all(monkeypatch, count, budget, expected):
    monkeypatch.setattr(objective, "CPU_CHUNK_BYTES", budget)
    assert FullBatch(classifier(), mse, *labelled(count)).chunk_size == expected


def test_the_chosen_chunks_fit_and_are_equal(monkeypatch):
    model, (inputs, targets) = classifier(), labelled(1000)
    full = FullBatch(model, mse, inputs, targets)
    size = bytes_per_example(model, full._part, inputs, targets)
    monkeypatch.setattr(objective, "CPU_CHUNK_BYTES", 300.5 * size)
    assert full.chunk_size == 250
    assert FullBatch(model, mse, inputs, targets, 300).chunk_size == 300


def test_the_chosen_chunk_changes_results_by_rounding_only(monkeypatch):
    model, (inputs, targets) = classifier(), labelled()
    whole = FullBatch(model, mse, inputs, targets, 40)
    monkeypatch.setattr(objective, "CPU_CHUNK_BYTES", 2000)
    chunked = FullBatch(model, mse, inputs, targets)
    x = whole.vector.read()
    value, gradient = chunked.value_and_gradient(x)
    assert 1 < chunked.chunk_size < 40
    assert value == pytest.approx(whole.value(x), rel=1e-14)
    torch.testing.assert_close(gradient, whole.value_and_gradient(x)[1], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("first", ["value", "value_and_gradient", "hessian_vector"])
@pytest.mark.parametrize("name", ["vit-mlp", "vgg5-max-relu"])
def test_every_way_to_begin_chooses_the_same_chunk(first, name):
    digits = images.load("digits", train_examples=16).train
    full = FullBatch(networks.build(name, 1, 10, 0), mse, digits.inputs, digits.targets)
    x = full.vector.read()
    getattr(full, first)(*((x, x) if first == "hessian_vector" else (x,)))
    again = FullBatch(networks.build(name, 1, 10, 1), mse, digits.inputs, digits.targets)
    assert "chunk_size" in vars(full), "it was chosen once, at the first evaluation"
    assert full.chunk_size == again.chunk_size


def test_choosing_a_chunk_leaves_no_trace():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), Noisy(), nn.Linear(6, 3)
    )
    model[2].eval()
    full = FullBatch(model, nn.functional.cross_entropy, *labelled(dtype=torch.float32))
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    before, random = full.vector.read(), torch.get_rng_state()
    assert full.chunk_size == 40
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(full.vector.read(), before)
    assert all(p.grad is None for p in model.parameters())
    assert full.passes.total == 0
    assert not any(module._forward_hooks for module in model.modules())


def test_a_chunk_is_chosen_for_models_and_losses_of_any_kind():
    inputs, targets = labelled(dtype=torch.float32)
    recurrent = nn.LSTM(4, 3, batch_first=True)
    full = FullBatch(recurrent, lambda o, t: o[0].square().mean(), inputs[:, None], targets)
    assert full.chunk_size == 40

    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def residual(outputs, points):
        """A physics-informed loss, which differentiates the network itself."""
        points = points.float().requires_grad_()
        slope = torch.func.vmap(torch.func.jacrev(network))(points)
        (direct,) = torch.autograd.grad(network(points).sum(), points, create_graph=True)
        return (slope.flatten() - direct.flatten() + outputs.flatten()).square().mean()

    full = FullBatch(network, residual, inputs[:, :1], inputs[:, :1])
    value, gradient = full.value_and_gradient(full.vector.read())
    assert full.chunk_size == 40 and value > 0 and gradient.abs().sum() > 0


def test_a_gpu_takes_a_share_of_its_memory(monkeypatch):
    class Properties:
        total_memory = 8 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert objective._chunk_bytes(torch.device("cuda")) == 2**30
