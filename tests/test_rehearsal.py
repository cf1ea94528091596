"""What a training would stumble over later is found before its first epoch."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import twophase
from twophase.errors import InputError

INPUTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS[:, :2].sin()
LABELS = torch.arange(12) % 2


def network(outputs=2):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


class Attention(nn.Module):
    """Its dropout is no module."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, inputs):
        token = self.inner(inputs)[:, None]
        return self.outer(self.attention(token, token, token)[0][:, 0])


class Functional(nn.Linear):
    """Its dropout is in no attribute."""

    def forward(self, inputs):
        return functional.dropout(super().forward(inputs), 0.5, self.training)


class Sparse(nn.Embedding):
    def __init__(self):
        super().__init__(3, 2, sparse=True)


def mean(outputs, targets):
    return (outputs - targets).square().mean()


def starts(model, data, **arguments):
    """Set up a training; nothing is trained."""
    return twophase.Trainer(model, data, device="cpu", **{"loss": mean} | arguments)


CASES = {
    "dropout in attention": (Attention(), (INPUTS, TARGETS), {}, "MultiheadAttention with dropout"),
    "dropout in an LSTM": (nn.LSTM(3, 2, 2, dropout=0.1), (INPUTS, TARGETS), {}, "LSTM with"),
    "dropout of its own": (Functional(3, 2), (INPUTS, TARGETS), {}, "at the same parameters"),
    "int32 labels": (
        *(network(), (INPUTS, LABELS.int()), {"loss": functional.cross_entropy}),
        "targets: 'torch.int32",
    ),
    "labels out of range": (
        *(network(), (INPUTS, LABELS + 1), {"loss": functional.cross_entropy}),
        "targets: .* from 1 to 2",
    ),
    "labels out of range, mse": (
        *(network(), (INPUTS, LABELS - 1), {"loss": twophase.mse}),
        "targets: 'labels from -1 to 0' is not allowed; use 0 to 1",
    ),
    "integer inputs": (network(), (INPUTS.int(), TARGETS), {}, "inputs: 'torch.int32' .* real"),
    "inputs of another width": (
        *(network(), (INPUTS[:, :2], TARGETS), {}),
        r"inputs: 'torch.float32 \[2, 2\]' is not allowed; use what the model takes \(mat1",
    ),
    "a vector": (
        *(network(), (INPUTS, TARGETS), {"loss": lambda o, t: (o - t).square().mean(1)}),
        r"loss: 'one that returns torch.float32 \[2\]'",
    ),
    "a float": (
        *(network(), (INPUTS, TARGETS), {"loss": lambda o, t: mean(o, t).item()}),
        "loss: 'one that returns float'",
    ),
    "a detached loss": (
        *(network(), (INPUTS, TARGETS), {"loss": lambda o, t: mean(o, t).detach()}),
        "loss: .* without a graph",
    ),
    "sparse gradients": (Sparse(), (LABELS, TARGETS), {}, "model: .* sparse gradients"),
    "a weighted mean": (
        *(network(), (INPUTS, LABELS)),
        {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))},
        r"loss: '[\d.]+ over 3 examples, [\d.]+ in the mean of their losses' .* such as cross_e",
    ),
    "a mean over what is not ignored": (
        *(network(), (INPUTS, LABELS), {"loss": nn.CrossEntropyLoss(ignore_index=1)}),
        "loss: '.* a mean over the examples",
    ),
    "a sum": (
        *(network(), (INPUTS, LABELS), {"loss": nn.CrossEntropyLoss(reduction="sum")}),
        "loss: '.* a mean over the examples",
    ),
    "complex targets": (
        *(network(), (INPUTS, TARGETS.to(torch.complex64)), {"loss": functional.mse_loss}),
        "targets: 'torch.complex64 .* what the loss takes",
    ),
    "targets that are broadcast": (
        *(network(1), (INPUTS, TARGETS[:, 0]), {}),
        r"targets: \[2\] is not allowed; use the outputs' shape \[2, 1\]",
    ),
    "targets that torch broadcasts": (
        *(network(1), TensorDataset(INPUTS, TARGETS[:, 0]), {"loss": functional.mse_loss}),
        "targets: .* the outputs' shape",
    ),
    "validation that is broadcast": (
        *(network(1), (INPUTS, TARGETS[:, :1]), {"validation": (INPUTS, TARGETS[:, 0])}),
        "targets: .* the outputs' shape",
    ),
    "a lazy module": (nn.LazyLinear(2), (INPUTS, TARGETS), {}, "params: .* lazy module"),
}


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize("case", CASES)
def test_what_does_not_go_together_is_one_line_at_the_start(case):
    torch.manual_seed(0)  # two masks of eight elements may be the same
    model, data, arguments, message = CASES[case]
    with pytest.raises(InputError, match=message):
        starts(model, data, **arguments)


def test_what_is_right_passes_and_leaves_no_trace():
    """Losses that reshape by themselves, frozen dropout, labels that the loss leaves out."""
    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5), nn.BatchNorm1d(1)).train()
    before, noise = model[2].running_mean.clone(), torch.get_rng_state()
    targets = TARGETS[:, 0]
    starts(model, (INPUTS, targets), freeze=True, loss=lambda o, t: mean(o.flatten(), t.flatten()))
    assert torch.equal(model[2].running_mean, before) and model.training
    assert torch.equal(torch.get_rng_state(), noise)
    ignored = torch.where(LABELS == 1, -100, LABELS)
    plain = partial(functional.cross_entropy, reduction="none")
    starts(network(), (INPUTS, ignored), loss=lambda o, t: plain(o, t).mean())
