"""Mini-batches in less than float32: torch's autocast, within a tolerance, and what follows."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from twophase import AdamSettings, BFloat16, InputError, Trainer, fit
from twophase.adam import Adam
from twophase.experiments.config import RunConfig
from twophase.losses import mse
from twophase.objectives.full_batch import FullBatch
from twophase.precision import TF32, AsSet, Full, Precision, Reduced, deviation
from twophase.settings import from_dict, from_text
from twophase.steps import Step


def objective(model, data):
    return FullBatch(model, mse, data.inputs, data.targets)


def adam_of(model, precision, **settings):
    settings = AdamSettings(0.02, 32, precision=precision, **settings)
    return Adam(model.parameters(), settings, torch.Generator().manual_seed(3))


def after(model, data, precision, epochs=3):
    adam, full = adam_of(model, precision), objective(model, data)
    for _ in range(epochs):
        adam.epoch(full)
    return adam


def test_steps_in_bfloat16_are_those_of_torchs_autocast(network, rings, flat, in_autocast):
    data, ours, plain = rings(), network(), network()
    after(ours, data, BFloat16(), epochs=1)
    theirs = torch.optim.Adam(plain.parameters(), lr=0.02)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    in_autocast(plain, data, theirs, order.split(32))
    assert torch.equal(flat(ours), flat(plain))
    assert all(p.dtype == torch.float32 == p.grad.dtype for p in ours.parameters())


def test_the_deviation_is_the_larger_one_of_loss_and_gradient(network, rings):
    data, batch = rings(), torch.arange(40)
    model, found = network(), []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = mse(model(data.inputs[batch]), data.targets[batch])
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        found.append((loss.detach().double(), gradient))
    (loss, gradient), (other, others) = found
    expected = max(abs(other - loss) / loss, (others - gradient).norm() / gradient.norm())
    step = Step(objective(model, data), torch.optim.SGD(model.parameters()), BFloat16())
    off, failed = deviation(step, batch)
    assert off == pytest.approx(expected.item(), rel=1e-6) and not failed
    assert 1e-4 < expected < 0.1


def test_a_comparison_changes_nothing(rings, flat):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2), nn.Softmax(1)
    )
    step = Step(objective(model, rings()), torch.optim.SGD(model.parameters()), Full())
    weights, before = flat(model), (torch.get_rng_state(), deepcopy(dict(model.named_buffers())))
    # the same examples are dropped both times
    assert deviation(step, torch.arange(40)) == (0, "")
    assert torch.equal(flat(model), weights) and torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(buffer, before[1][name]) for name, buffer in model.named_buffers())


def test_epochs_beyond_the_tolerance_are_full_and_say_so_once(network, rings, flat, caplog):
    data, ours, plain = rings(), network(), network()
    adam = after(ours, data, BFloat16(tolerance=1e-5))
    after(plain, data, AsSet())
    assert torch.equal(flat(ours), flat(plain)) and adam.precision == Full()
    (record,) = caplog.records
    assert record.message.startswith("epoch 1 of Adam: full precision from here on; in BFloat16(")
    assert "loss or gradient is off by 0.0" in record.message


def test_it_is_compared_at_powers_of_two_and_where_a_state_goes_on(
    network, rings, monkeypatch, caplog
):
    data, model, asked = rings(), network(), []
    deviations = {1: 0.0, 2: 0.0, 4: 0.0, 8: 0.5}

    def told(step, batch):
        asked.append(adam.epochs + 1)
        return deviations[adam.epochs + 1], ""

    monkeypatch.setattr("twophase.adam.deviation", told)
    adam, full = adam_of(model, BFloat16()), objective(model, data)
    for epoch in range(1, 9):
        adam.epoch(full)
        if epoch in (3, 8):
            state, adam = deepcopy(adam.state_dict()), adam_of(model, BFloat16())
            adam.load_state_dict(state)
    assert asked == [1, 2, 4, 8] and adam.precision == Full()
    adam.epochs = 15
    adam.epoch(full)
    assert asked == [1, 2, 4, 8] and len(caplog.records) == 1


def test_a_state_of_before_brings_the_reduced_precision_back(network, rings, monkeypatch):
    adam, full = adam_of(model := network(), BFloat16()), objective(model, rings())
    adam.epoch(full)
    before = deepcopy(adam.state_dict())
    monkeypatch.setattr("twophase.adam.deviation", lambda step, batch: (1.0, ""))
    adam.epoch(full)
    assert adam.precision == Full()
    after = deepcopy(adam.state_dict())
    adam.load_state_dict(before)
    assert adam.precision == BFloat16() and adam.epochs == 1
    adam.load_state_dict(after)
    assert adam.precision == Full()
    # what was asked for is no part of a state
    other = adam_of(network(), AsSet())
    other.load_state_dict(adam_of(network(), Full()).state_dict())
    assert other.precision == AsSet()


def test_an_epoch_that_fails_is_compared_again(network, rings, monkeypatch):
    adam, full = adam_of(model := network(), BFloat16()), objective(model, rings())
    asked = []

    def told(step, batch):
        asked.append(adam.epochs)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return 0.0, ""

    monkeypatch.setattr("twophase.adam.deviation", told)
    with pytest.raises(KeyboardInterrupt):
        adam.epoch(full)
    adam.epoch(full)
    assert asked == [0, 0] and adam.epochs == 1


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(network, dataset):
    def trainer():
        settings = AdamSettings(0.02, 32, precision=BFloat16(tolerance=0.02))
        return Trainer(network(), dataset, adam=settings, second=None, device="cpu")

    whole, first, second = trainer(), trainer(), trainer()
    expected = [whole.epoch().train_loss for _ in range(6)]
    for _ in range(3):
        first.epoch()
    second.load_state_dict(first.state_dict())
    assert [second.epoch().train_loss for _ in range(3)] == expected[3:]


class InFloat32(nn.Module):
    """What cannot be computed in another precision."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, inputs):
        if inputs.dtype != torch.float32:
            raise self.error
        return inputs


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, AssertionError])
def test_a_model_without_bfloat16_is_trained_in_full(network, rings, flat, caplog, kind):
    ends = []
    for precision in (BFloat16(), Full()):
        model = network()
        model.insert(0, nn.BatchNorm1d(2))
        model.insert(2, InFloat32(kind("not implemented\nmore")))
        assert after(model, rings(), precision).precision == Full()
        ends.append((flat(model), *(buffer.clone() for buffer in model.buffers())))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    (record,) = caplog.records
    assert record.message.endswith("in BFloat16(tolerance=0.1): not implemented")


def test_memory_that_is_not_there_is_no_matter_of_precision(network, rings):
    model = network()
    model.insert(1, InFloat32(torch.cuda.OutOfMemoryError("so much")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        after(model, rings(), BFloat16())


def test_numbers_that_are_equal_are_within_any_tolerance(rings):
    """Zero and zero, too."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    full = FullBatch(model, nn.functional.mse_loss, rings().inputs, torch.zeros(96, 1))
    adam = adam_of(model, BFloat16())
    adam.epoch(full)
    assert adam.precision == BFloat16()


def test_buffers_that_cannot_be_written_to_are_left_alone(network, rings):
    model = network()
    model.register_buffer("expanded", torch.zeros(1).expand(16))
    assert after(model, rings(), BFloat16()).precision == BFloat16()


def test_a_loader_without_a_batch_has_nothing_to_compare(network):
    data = TensorDataset(torch.ones(20, 2), torch.zeros(20).long())
    settings = AdamSettings(precision=BFloat16())
    loader = DataLoader(data, 32, drop_last=True)
    assert (
        len(fit(network(), loader, epochs=2, second=None, device="cpu", adam=settings).history) == 2
    )


def test_a_loss_that_is_not_finite_is_beyond_any_tolerance(network, rings, caplog):
    class Overflow(nn.Module):
        def forward(self, inputs):
            return inputs * (torch.inf if inputs.dtype == torch.bfloat16 else 1)

    model = network()
    model.insert(1, Overflow())
    assert after(model, rings(), BFloat16()).precision == Full() and len(caplog.records) == 1


class Seen(nn.Module):
    """Writes down how torch is set, forwards and backwards."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, inputs):
        self.look(inputs)
        if inputs.requires_grad:
            inputs.register_hook(self.look)
        return inputs

    def look(self, _):
        casting = torch.is_autocast_enabled("cpu")
        self.found.append((torch.get_float32_matmul_precision(), casting))


@pytest.mark.parametrize(
    ("precision", "forward", "backward"),
    [
        (AsSet(), ("medium", False), ("medium", False)),
        (Full(), ("highest", False), ("highest", False)),
        (BFloat16(), ("highest", True), ("highest", False)),
        (TF32(), ("highest", False), ("highest", False)),
    ],
)
def test_each_precision_holds_forwards_and_backwards(network, rings, precision, forward, backward):
    model, found = network(), []
    model.insert(1, Seen(found))
    step = Step(objective(model, rings()), torch.optim.SGD(model.parameters()), precision)
    torch.set_float32_matmul_precision("medium")
    try:
        step(torch.arange(40))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found == [forward, backward]


def test_a_captured_step_has_the_precision_of_the_plain_one(network, rings, flat):
    data, ends = rings(), []
    for capture in (lambda step, optimizer: step, None):
        model = network()
        adam = adam_of(model, BFloat16())
        adam.capture = capture
        full = objective(model, data)
        for _ in range(3):
            adam.epoch(full)
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_the_full_loss_of_a_training_is_full(network, dataset):
    model, found = network(), []
    model.insert(1, Seen(found))
    history = fit(
        model, dataset, epochs=4, switch=2, device="cpu",
        adam=AdamSettings(batch_size=96 // 2, precision=BFloat16()),
    ).history  # fmt: skip
    assert history.phase.tolist() == ["adam"] * 2 + ["second"] * 2
    # two epochs of two batches, and the comparison at the first batch of both
    assert found.count(("highest", True)) == 2 * 2 + 2


def test_a_configuration_keeps_it():
    config = RunConfig(adam=AdamSettings(precision=BFloat16(tolerance=0.05)))
    assert from_dict(config.to_dict()) == config
    assert from_text("AdamSettings(precision=TF32())").precision == TF32(tolerance=0.1)


@pytest.mark.parametrize("value", ["bfloat16", None, torch.bfloat16, 0.1, Precision(), Reduced()])
def test_what_is_no_precision_is_refused(value):
    with pytest.raises(InputError, match="^precision: .* use AsSet.., Full.., BFloat16.. or TF32"):
        AdamSettings(precision=value)


def test_float64_is_not_reduced(network):
    with pytest.raises(InputError, match=r"^precision: BFloat16\(.* in float64"):
        adam_of(network().double(), BFloat16())
    adam_of(network().double(), Full())


@pytest.mark.parametrize("value", [0, 1, -0.1, float("nan"), "0.1"])
def test_a_tolerance_out_of_range_is_refused(value):
    with pytest.raises(InputError, match="^tolerance: "):
        BFloat16(tolerance=value)


def test_tf32_is_for_cuda_alone():
    told = []
    for device in ("cuda", "cpu"):
        with TF32().around(torch.device(device)):
            told.append((torch.get_float32_matmul_precision(), torch._C._get_cudnn_allow_tf32()))
    assert told == [("high", True), ("highest", False)]
