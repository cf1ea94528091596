"""Examples that are read in each pass: the same losses as in memory, and the same trainings."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import twophase
from twophase import AdamSettings, fit
from twophase.errors import InputError
from twophase.examples import Examples
from twophase.objectives import FullBatch, Streamed
from twophase.objectives.streamed import in_order
from twophase.second_phase import SELF_SCALED_BFGS

COUNT = 50


def network(outputs=1, dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs)).to(dtype)
    return layers.append(nn.Softmax(dim=1)) if outputs > 1 else layers


def samples(classes=False):
    inputs = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(1)).double()
    if classes:
        return inputs, (inputs.sum(dim=1) > 0).long()
    return inputs, inputs.prod(dim=1, keepdim=True)


class Stream(IterableDataset):
    """Examples without indices."""

    def __iter__(self):
        return iter(zip(*samples(), strict=True))


def loaders():
    data = TensorDataset(*samples())
    return {
        "dataset": data,
        "in order": DataLoader(data, 16),
        "shuffled": DataLoader(data, 16, shuffle=True),
        "drops the last": DataLoader(data, 16, shuffle=True, drop_last=True),
        "workers": DataLoader(data, 16, shuffle=True, num_workers=1),
        "stream": DataLoader(Stream(), 16),
        "batch sampler": DataLoader(
            data, batch_sampler=BatchSampler(RandomSampler(data), 7, drop_last=False)
        ),
        "pairs": [(x, y) for x, y in zip(*samples(), strict=True)],
    }


def as_dataset(source):
    """A list of pairs is a dataset by what it can, but not by its class."""

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            return source[index]

    return Pairs() if isinstance(source, list) else source


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("name", loaders())
def test_losses_and_gradients_are_those_of_the_examples_in_memory(name, chunk_size):
    model = network()
    streamed = Streamed(model, mse_loss, as_dataset(loaders()[name]), chunk_size)
    memory = FullBatch(model, mse_loss, *samples())
    x = memory.vector.read()
    assert streamed.count == memory.count == COUNT
    assert streamed.value(x) == pytest.approx(memory.value(x), rel=1e-13)
    (value, gradient), expected = streamed.value_and_gradient(x), memory.value_and_gradient(x)
    assert value == pytest.approx(expected[0], rel=1e-13)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-11, atol=1e-14)
    product, other = (o.hessian_vector(x, x) for o in (streamed, memory))
    torch.testing.assert_close(product, other, rtol=1e-10, atol=1e-13)
    assert streamed.passes == memory.passes


def test_batches_that_a_dataset_makes_are_the_loaders_own():
    class Made(IterableDataset):
        def __iter__(self):
            return iter(zip(*(one.split(8) for one in samples()), strict=True))

    streamed = Streamed(network(), mse_loss, DataLoader(Made(), batch_size=None))
    batches = list(streamed.mini_batches(None, torch.Generator()))
    assert streamed.batch_count(None) == len(batches) == 7
    assert streamed.count == sum(map(len, batches)) == COUNT


def test_full_passes_start_workers_as_the_loader_does():
    data = TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1))
    own = {"multiprocessing_context": "spawn", "timeout": 7, "prefetch_factor": 5}
    found = in_order(DataLoader(data, 2, shuffle=True, num_workers=1, **own))
    assert found.multiprocessing_context.get_start_method() == "spawn"
    assert (found.timeout, found.prefetch_factor) == (7, 5)


@pytest.mark.parametrize("size", [0, -3, "a"])
def test_a_chunk_has_an_example(size):
    with pytest.raises(InputError, match="^chunk_size: "):
        Streamed(network(), mse_loss, TensorDataset(*samples()), size)


def test_labels_have_an_accuracy():
    model, data = network(2), samples(classes=True)
    streamed = Streamed(model, twophase.mse, DataLoader(TensorDataset(*data), 16))
    memory = FullBatch(model, twophase.mse, *data)
    x = memory.vector.read()
    assert streamed.score(x) == pytest.approx(memory.score(x), rel=1e-13)
    assert streamed.measure(x)[1] == memory.measure(x)[1]


class Spied(torch.Tensor):
    """Notes how it is asked to go to a device; says that it is pinned, as on a CUDA machine."""

    asked = []

    def is_pinned(self):
        return True

    def to(self, *where, **how):
        self.asked.append(how)
        return super().to(*where, **how).as_subclass(torch.Tensor)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("pins", [False, True])
def test_only_the_copies_of_a_loader_that_pins_are_not_waited_for(monkeypatch, pins, classes):
    """Other pinned memory may be a buffer that its owner fills anew for each batch."""

    def collate(pairs):
        return [t.as_subclass(Spied) for t in torch.utils.data.default_collate(pairs)]

    monkeypatch.setattr(Spied, "asked", [])
    model, data = network(2 if classes else 1), samples(classes)
    plain = [t.float() if t.is_floating_point() else t for t in data]
    loader = DataLoader(TensorDataset(*plain), 16, collate_fn=collate, pin_memory=pins)
    streamed = Streamed(model, twophase.mse if classes else mse_loss, loader)
    memory = FullBatch(
        model, streamed.loss, *(t.to(d.dtype) for t, d in zip(plain, data, strict=True))
    )
    x = memory.vector.read()
    assert streamed.value(x) == pytest.approx(memory.value(x), rel=1e-13)
    for batch in streamed.mini_batches(None, torch.Generator()):
        assert batch.inputs.dtype == torch.float64 and batch.targets.dtype == data[1].dtype
    assert len(Spied.asked) > 10 and all(how == {"non_blocking": pins} for how in Spied.asked)


def test_a_loader_that_pins_cannot_hurry_what_is_not_pinned(monkeypatch):
    asked, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: asked.append(k) or to(t, *a, **k))
    moved = Examples(*samples()).to("cpu", torch.float32, non_blocking=True)
    assert asked == [{"non_blocking": False}] * 2
    assert torch.equal(moved.inputs, to(samples()[0], torch.float32))


def test_a_subset_stays_one():
    """A validation split by samplers must not leak into the training loss."""
    chosen = list(range(0, COUNT, 3))
    data, model = TensorDataset(*samples()), network()
    inputs, targets = (t[chosen] for t in samples())
    memory = FullBatch(model, mse_loss, inputs, targets)
    x = memory.vector.read()
    for source in (
        DataLoader(data, 4, sampler=SubsetRandomSampler(chosen)),
        DataLoader(Subset(data, chosen), 4, shuffle=True),
    ):
        streamed = Streamed(model, mse_loss, source)
        assert streamed.count == len(chosen)
        assert streamed.value(x) == pytest.approx(memory.value(x), rel=1e-13)


def test_another_sampler_draws_as_it_likes_and_is_found_out():
    data = TensorDataset(*samples())
    sampler = WeightedRandomSampler(torch.rand(COUNT).tolist(), COUNT)
    loader = DataLoader(data, 16, sampler=sampler)
    assert in_order(loader) is loader
    with pytest.raises(InputError, match="at the same parameters"):
        fit(network(), loader, epochs=10, switch=2, loss=mse_loss)


@pytest.mark.parametrize("batch_size", [16, None])
@pytest.mark.parametrize("name", ["dataset", "pairs"])
def test_a_dataset_is_trained_like_tensors_with_the_same_seed(name, batch_size):
    """The same mini-batches in the same order: histories agree to rounding."""
    adam = AdamSettings(0.01, batch_size)
    settings = dict(epochs=9, switch=5, adam=adam, loss=mse_loss, second=SELF_SCALED_BFGS, seed=4)
    ours = fit(network(), as_dataset(loaders()[name]), **settings).history
    theirs = fit(network(), samples(), **settings).history
    for column in ("phase", "passes", "evaluations"):
        assert ours[column].tolist() == theirs[column].tolist()
    for column in ("train_loss", "grad_norm"):
        assert ours[column].tolist() == pytest.approx(theirs[column].tolist(), rel=1e-7)


@pytest.mark.parametrize("name", loaders())
def test_it_trains_in_both_phases_and_validates(name):
    data = as_dataset(loaders()[name])
    model = network()
    adam = AdamSettings(0.01, 16)
    result = fit(model, data, validation=samples(), epochs=14, switch=4, adam=adam, loss=mse_loss)
    history = result.history
    assert result.swap_epoch == 4 and history.train_loss.iloc[-1] < history.train_loss.iloc[3]
    assert history.validation_loss.tolist() == pytest.approx(history.train_loss.tolist(), rel=1e-9)


def test_the_global_generator_is_left_alone():
    """What a loader draws for its workers comes from a generator of its own."""
    state = torch.get_rng_state()
    fit(network(), as_dataset(loaders()["pairs"]), epochs=6, switch=3, loss=mse_loss)
    model = network()
    torch.set_rng_state(state)
    fit(model, TensorDataset(*samples()), epochs=6, switch=3, loss=mse_loss)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [{"x": torch.ones(3)}, (torch.ones(3),), torch.ones(3)])
def test_other_batches_are_one_line(batch):
    loader = DataLoader([batch] * 4, 2)
    with pytest.raises(InputError, match="^data: .* use batches \\(inputs, targets\\)"):
        fit(network(), loader, epochs=3)


def test_the_whole_set_is_never_in_memory():
    """At most a chunk, and what a loader's worker has fetched before."""
    alive, most = set(), [0]

    class Counted(torch.utils.data.Dataset):
        def __len__(self):
            return 200

        def __getitem__(self, index):
            alive.add(index)
            most[0] = max(most[0], len(alive))
            return torch.ones(3).double() * index, torch.ones(1).double()

    def collate(pairs):
        alive.clear()
        return torch.utils.data.default_collate(pairs)

    fit(network(), DataLoader(Counted(), 20, collate_fn=collate), epochs=3, loss=mse_loss)
    assert most[0] == 20


class Once(IterableDataset):
    """An iterator in the place of an iterable: the first pass uses it up."""

    def __init__(self):
        self.pairs = iter(zip(*samples(), strict=True))

    def __iter__(self):
        return self.pairs


def without_odd(pairs):
    return torch.utils.data.default_collate(pairs[::2])


def sequence_first(pairs):
    inputs, targets = torch.utils.data.default_collate(pairs)
    return inputs.T[..., None], targets.T


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Once(), 16),
        lambda: DataLoader(TensorDataset(*samples()), 16, collate_fn=without_odd),
    ],
)
def test_a_pass_with_other_examples_is_found_out(loader):
    """Not all, none, or not those that were counted."""
    with pytest.raises(InputError, match="^data: '.* examples in a pass' .* use all"):
        fit(network(), loader(), epochs=3, loss=mse_loss)


def test_the_first_dimension_is_that_of_the_examples():
    data = TensorDataset(torch.randn(50, 4).double(), torch.randn(50, 4).double())

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 1).double()

        def forward(self, inputs):
            return self.inner(inputs)[..., 0]

    with pytest.raises(InputError, match="first dimension"):
        fit(Last(), DataLoader(data, 10, collate_fn=sequence_first), epochs=2, loss=mse_loss)


def test_a_sampler_of_a_part_stays_one():
    data = TensorDataset(*samples())
    loader = DataLoader(data, 4, sampler=torch.utils.data.SequentialSampler(range(20)))
    streamed = Streamed(network(), mse_loss, loader)
    memory = FullBatch(network(), mse_loss, *(t[:20] for t in samples()))
    x = memory.vector.read()
    assert streamed.count == 20
    assert streamed.value(x) == pytest.approx(memory.value(x), rel=1e-13)


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    "data", [Empty(), TensorDataset(torch.ones(0, 3), torch.ones(0, 1))], ids=["stream", "tensors"]
)
def test_no_example_is_one_line(data):
    for source in (data, DataLoader(data, 4)):
        with pytest.raises(InputError, match="^data: '.* of no example'"):
            fit(network(), source, epochs=2, loss=mse_loss)


def test_validation_is_named_where_it_is_wrong():
    for wrong in ([*samples()], "file.csv", 3):
        with pytest.raises(InputError, match="^validation: "):
            fit(network(), samples(), validation=wrong, epochs=2, loss=mse_loss)


def test_an_interrupted_training_has_the_weights_of_its_last_record():
    model, calls = network(), []
    inputs, targets = samples()

    def closure():
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return mse_loss(model(inputs), targets)

    records = []
    with pytest.raises(KeyboardInterrupt):
        fit(model, closure, epochs=30, switch=8, on_epoch=records.append)
    assert records[-1].phase == "second"
    loss = mse_loss(model(inputs), targets).item()
    assert loss == pytest.approx(records[-1].train_loss, rel=1e-12)
