"""Steps over mini-batches: any optimizer's, and replayed ones that must be the plain ones."""

import pytest
import torch
from torch import nn

import twophase as tp
from twophase.adam import Adam, AdamSettings
from twophase.losses import mse
from twophase.objectives.full_batch import FullBatch
from twophase.steps import FIRST, Step, in_cuda_graph, sweep


def objective(model, data):
    return FullBatch(model, mse, data.inputs, data.targets)


def test_a_sweep_is_a_step_of_any_optimizer_for_each_batch(network, rings, flat):
    data, ours, plain = rings(), network(), network()
    batches = torch.arange(96).split(40)
    sweep(Step(objective(ours, data), torch.optim.SGD(ours.parameters(), lr=0.1)), batches)
    for batch in batches:
        loss = mse(plain(data.inputs[batch]), data.targets[batch])
        gradients = torch.autograd.grad(loss, plain.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(flat(ours), flat(plain))


def test_steps_in_autocast_around_an_epoch_see_the_weights(network, rings, flat, in_autocast):
    """As in autocast around each loss: torch keeps what it has cast until autocast ends."""
    data, ours, plain = rings(), network(), network()
    batches = torch.arange(96).split(40)
    with torch.autocast("cpu", torch.bfloat16):
        sweep(Step(objective(ours, data), torch.optim.SGD(ours.parameters(), lr=0.1)), batches)
    in_autocast(plain, data, torch.optim.SGD(plain.parameters(), lr=0.1), batches)
    assert torch.equal(flat(ours), flat(plain))


# ---- captured steps -----------------------------------------------------------------------------


class Recorded:
    """A capture like a CUDA graph's: it runs nothing, and each replay reads the mini-batch anew."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, step, optimizer):
        self.captured += 1

        def replay():
            self.replayed += 1
            step()

        return replay


def epochs(model, data, capture, size=20, count=3, **settings):
    """An Adam after some epochs, of 96 examples each, over `model`."""
    adam = Adam(
        model.parameters(),
        AdamSettings(0.02, size, **settings),
        torch.Generator().manual_seed(3),
        capture,
    )
    full = objective(model, data)
    for _ in range(count):
        adam.epoch(full)
    return adam


def test_replayed_epochs_are_the_plain_ones_to_the_last_bit(network, rings, flat):
    data, captured, plain, capture = rings(), network(), network(), Recorded()
    one, two = epochs(captured, data, capture), epochs(plain, data, None)
    # four mini-batches of 20 in an epoch, and one of 16, which stays plain
    assert (capture.captured, capture.replayed) == (1, 3 * 4 - FIRST)
    assert torch.equal(flat(captured), flat(plain))
    ours, theirs = (adam.optimizer.state_dict()["state"] for adam in (one, two))
    assert all(torch.equal(ours[i]["exp_avg_sq"], theirs[i]["exp_avg_sq"]) for i in theirs)


def test_dropout_and_batch_statistics_are_the_plain_ones(rings, flat):
    ends = []
    for capture in (Recorded(), None):
        torch.manual_seed(0)
        layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3), nn.Softmax(1)
        model = nn.Sequential(*layers)
        epochs(model, rings(), capture, size=24)
        ends.append((flat(model), *(buffer.clone() for buffer in model.buffers())))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("fault", ["raises", "reads nothing", "runs twice"])
def test_what_cannot_be_captured_stays_plain_and_says_so(network, rings, flat, caplog, fault):
    data, model, plain, calls = rings(), network(), network(), []

    def capture(step, optimizer):
        calls.append(fault)
        if fault == "raises":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return lambda: [step() for _ in range(2 if fault == "runs twice" else 0)]

    epochs(model, data, capture)
    epochs(plain, data, None)
    assert torch.equal(flat(model), flat(plain)) and len(calls) == 1
    (record,) = caplog.records
    reason = "operation not permitted" if fault == "raises" else "it makes another step"
    assert "Adam's step is not captured" in record.message and reason in record.message
    assert "more" not in record.message


def test_a_loaded_state_and_other_modes_are_captured_anew(network, rings):
    data, model, capture = rings(), network(), Recorded()
    adam = epochs(model, data, capture)
    adam.load_state_dict(adam.state_dict())
    full = objective(model, data)
    adam.epoch(full)
    assert capture.captured == 2
    model.train(not model.training)
    adam.epoch(full)
    assert capture.captured == 3


def test_gradients_that_are_looked_at_are_those_of_plain_steps(network, rings):
    data, capture = rings(), Recorded()
    histories = []
    for chosen in (capture, None):
        trainer = tp.Trainer(
            network(), data, adam=AdamSettings(batch_size=20), second=None, device="cpu"
        )
        trainer.phases["adam"].adam.capture = chosen
        trainer.phases["adam"].monitor = tp.FromBatches()
        records = [trainer.epoch() for _ in range(3)]
        histories.append([(one.train_loss, one.grad_norm) for one in records])
    assert histories[0] == histories[1]


def test_on_a_cpu_nothing_is_captured(network):
    adam = Adam(network().parameters(), AdamSettings(), torch.Generator())
    assert adam.capture is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_makes_the_plain_steps(network, rings, flat, caplog):
    data = rings().to("cuda", torch.float32)
    captured, plain = network().to("cuda"), network().to("cuda")
    one, two = epochs(captured, data, in_cuda_graph), epochs(plain, data, None, count=0)
    two.capture = None
    for _ in range(3):
        two.epoch(objective(plain, data))
    assert one._step.replay is not None and not caplog.records
    torch.testing.assert_close(flat(captured), flat(plain), rtol=1e-5, atol=1e-7)
    assert not any(group["capturable"] for group in one.optimizer.param_groups)
