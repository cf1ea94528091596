"""Live bytes: what operations make and what is still there, against counts by hand."""

import torch
from torch import nn

from twophase.experiments.live_bytes import LiveBytes


def test_live_bytes_are_those_of_tensors_that_are_alive():
    model = nn.Linear(100, 1, bias=False)
    with LiveBytes() as live:
        model(torch.zeros(1, 100)).sum()
    # the input, the output and the sum; the weight was there before, views are no memory
    assert live.peak == 4 * (100 + 1 + 1)
    with LiveBytes() as live:
        for _ in range(5):
            torch.zeros(100).view(10, 10).t()
    assert live.peak == 400
    with LiveBytes() as live:
        torch.autograd.grad(model(torch.zeros(1, 100)).sum(), model.parameters())
    assert live.peak >= 4 * (100 + 100), "the input and the gradient"
