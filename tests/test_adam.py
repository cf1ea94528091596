"""The Adam phase: batches, torch's own optimizer, and nothing that waits for the device."""

from copy import deepcopy

import pytest
import torch

from twophase.adam import Adam, AdamSettings, sweep
from twophase.errors import InputError
from twophase.examples import Examples
from twophase.losses import mse
from twophase.objectives.full_batch import FullBatch
from twophase.problems import networks


def objective(model, data):
    return FullBatch(model, mse, data.inputs, data.targets)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(20, [20] * 4 + [16]), (100, [96]), (None, [96])]
)
def test_an_epoch_is_every_example_once_in_batches(network, rings, batch_size, sizes):
    full, generator = objective(network(), rings()), torch.Generator()
    first, second = (full.mini_batches(batch_size, generator) for _ in range(2))
    assert [len(batch) for batch in first] == sizes
    assert full.batch_count(batch_size) == len(sizes)
    assert torch.cat(first).sort().values.tolist() == list(range(96))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_steps_are_torchs_with_these_settings(network, rings, flat):
    data, settings = rings(), AdamSettings(0.02, 30, betas=(0.8, 0.95), eps=1e-5)
    ours, plain = network(), network()
    adam = Adam(ours.parameters(), settings, torch.Generator().manual_seed(3))
    theirs = torch.optim.Adam(plain.parameters(), lr=0.02, betas=(0.8, 0.95), eps=1e-5)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    adam.epoch(objective(ours, data))
    with torch.no_grad():  # an epoch needs the graph whatever its caller has switched off
        sweep(objective(plain, data), theirs, order.split(30))
    assert torch.equal(flat(ours), flat(plain))


def test_a_sweep_is_a_step_of_any_optimizer_for_each_batch(network, rings, flat):
    data, ours, plain = rings(), network(), network()
    batches = torch.arange(96).split(40)
    sweep(objective(ours, data), torch.optim.SGD(ours.parameters(), lr=0.1), batches)
    for batch in batches:
        loss = mse(plain(data.inputs[batch]), data.targets[batch])
        gradients = torch.autograd.grad(loss, plain.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(flat(ours), flat(plain))


def test_steps_in_autocast_around_an_epoch_see_the_weights_as_they_are(network, rings, flat):
    """As in autocast around each loss: torch keeps what it has cast until autocast ends."""
    data, ours, plain = rings(), network(), network()
    batches = torch.arange(96).split(40)
    with torch.autocast("cpu", torch.bfloat16):
        sweep(objective(ours, data), torch.optim.SGD(ours.parameters(), lr=0.1), batches)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1)
    for batch in batches:
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = mse(plain(data.inputs[batch]), data.targets[batch])
        loss.backward()
        theirs.step()
    assert torch.equal(flat(ours), flat(plain))


def test_a_state_continues_the_same_epochs(network, rings, flat):
    data, first, second = rings(), network(), network(seed=1)
    one, two = (Adam(m.parameters(), AdamSettings(), torch.Generator()) for m in (first, second))
    one.epoch(objective(first, data))
    second.load_state_dict(first.state_dict())
    two.load_state_dict(deepcopy(one.state_dict()))  # torch's optimizers keep what they are given
    for adam, model in ((one, first), (two, second)):
        adam.epoch(objective(model, data))
    assert torch.equal(flat(first), flat(second))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", 1e31),
        ("batch_size", 0),
        ("batch_size", 2.0),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("betas", (0.9,)),
        ("betas", [0.9, 0.999]),
        ("eps", 0),
    ],
)
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: .* is not allowed"):
        AdamSettings(**{field: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_adam_epoch_never_waits_for_the_gpu(network, rings):
    data, model = rings(), network().cuda()
    adam = Adam(model.parameters(), AdamSettings(), torch.Generator())
    examples = objective(model, data.to("cuda", torch.float32))
    adam.epoch(examples)
    torch.cuda.set_sync_debug_mode("error")
    try:
        adam.epoch(examples)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_adam_epoch_reads_no_number_from_the_device():
    """Tensors on the device "meta" have no numbers: to read one raises."""
    model = networks.build("vit-nomlp-wkewq-wvwo1", 1, 10, seed=0).to("meta")
    adam = Adam(model.parameters(), AdamSettings(batch_size=4), torch.Generator())
    inputs = torch.zeros(10, 1, 32, 32, device="meta")
    targets = torch.zeros(10, dtype=torch.int64, device="meta")
    adam.epoch(objective(model, Examples(inputs, targets)))
