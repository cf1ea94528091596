"""Chunks: the bytes of an example by hand, and a choice that follows from them."""

import pytest
import torch
from torch import nn
from torch.func import jvp

from twophase.losses import mse
from twophase.objectives import chunks
from twophase.objectives.chunks import bytes_per_example
from twophase.objectives.full_batch import FullBatch
from twophase.problems import images, networks


def classifier(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(dim=1)).to(dtype)


def labelled(count=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator, dtype=dtype)
    return inputs, torch.randint(3, (count,), generator=generator)


def test_bytes_per_example_are_those_of_the_tensors_of_a_forward_pass():
    """By hand: two linear maps, a tanh, the outputs in float64, and the squared error's two."""
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    full = FullBatch(
        model, lambda o, t: (o - t).square().mean(), torch.ones(9, 4), torch.ones(9, 3)
    )
    found = bytes_per_example(model, full.part, full.inputs, full.targets)
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
    monkeypatch.setattr(chunks, "CPU_CHUNK_BYTES", budget)
    assert FullBatch(classifier(), mse, *labelled(count)).chunk_size == expected


def test_the_chosen_chunks_fit_and_are_equal(monkeypatch):
    model, (inputs, targets) = classifier(), labelled(1000)
    full = FullBatch(model, mse, inputs, targets)
    size = bytes_per_example(model, full.part, inputs, targets)
    monkeypatch.setattr(chunks, "CPU_CHUNK_BYTES", 300.5 * size)
    assert full.chunk_size == 250
    assert FullBatch(model, mse, inputs, targets, 300).chunk_size == 300


def test_the_chosen_chunk_changes_results_by_rounding_only(monkeypatch):
    model, (inputs, targets) = classifier(), labelled()
    whole = FullBatch(model, mse, inputs, targets, 40)
    monkeypatch.setattr(chunks, "CPU_CHUNK_BYTES", 2000)
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
    assert chunks.chunk_bytes(torch.device("cuda")) == 2**30


def test_what_forward_mode_makes_is_counted():
    """Derivatives by a coordinate produce at least as much as the values do."""
    model = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
    points = torch.rand(8, 1)
    plain = bytes_per_example(model, model, points)
    along = bytes_per_example(model, lambda x: jvp(model, (x,), (torch.ones_like(x),))[1], points)
    assert plain < along < 10 * plain
