"""What several files of tests share."""

import hypothesis
import pytest
import torch
from torch import nn

from twophase import AdamSettings
from twophase.examples import Dataset, Examples
from twophase.losses import mse

# a busy machine is no failure, nor what torch imports at its first use
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def process_as_it_was():
    """No test leaves settings of the process behind: other threads round sums differently."""
    told = torch.get_num_threads, torch.get_default_dtype, torch.is_grad_enabled
    told += torch.get_float32_matmul_precision, lambda: torch.is_autocast_enabled("cpu")
    before = [one() for one in told]
    yield
    assert [one() for one in told] == before


@pytest.fixture(scope="session")
def network():
    """Makes a small classifier of two inputs and two classes, the same for the same seed."""

    def build(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2), nn.Softmax(dim=1))

    return build


@pytest.fixture(scope="session")
def in_autocast():
    """Makes steps over mini-batches by hand, each loss in an autocast of its own."""

    def train(model, data, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = mse(model(data.inputs[batch]), data.targets[batch])
            loss.backward()
            optimizer.step()

    return train


@pytest.fixture(scope="session")
def rings():
    """Makes points inside and outside a circle around the origin: two classes."""

    def draw(count=96, seed=1):
        generator = torch.Generator().manual_seed(seed)
        inputs = 1.5 * torch.randn(count, 2, generator=generator)
        return Examples(inputs, (inputs.norm(dim=1) > 1.5).long())

    return draw


@pytest.fixture(scope="session")
def dataset(rings):
    """Rings to train on, and others for validation."""
    return Dataset("rings", rings(), rings(40, seed=2), classes=2)


@pytest.fixture(scope="session")
def adam():
    """Settings of Adam that train the small network in a few dozen epochs of five batches."""
    return AdamSettings(learning_rate=0.01, batch_size=20)


@pytest.fixture(scope="session")
def flat():
    """The parameters of a model as one vector, by torch's own function."""
    return lambda model: nn.utils.parameters_to_vector(model.parameters()).detach()
