"""The paper's loss against its definition."""

import pytest
import torch
from torch import nn

from twophase.errors import InputError
from twophase.losses import cross_entropy, mse


def test_mse_is_its_definition():
    outputs = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0])
    by_hand = (0.8**2 + 0.8**2 + 0.5**2 + 0.5**2 + 0 + 0) / (3 * 2)
    assert mse(outputs, labels).item() == pytest.approx(by_hand, rel=1e-15)
    one_hot = nn.functional.one_hot(labels).double()
    assert mse(outputs, one_hot).item() == mse(outputs, labels).item()


def test_targets_that_would_broadcast_are_refused():
    with pytest.raises(InputError, match="targets: .* the outputs' shape"):
        mse(torch.zeros(5, 1), torch.zeros(5))


def test_cross_entropy_is_torchs_of_the_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    ours = cross_entropy(logits.softmax(1), labels)
    theirs = nn.functional.cross_entropy(logits, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-14)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_probability_of_zero_has_a_finite_cross_entropy():
    assert torch.isfinite(cross_entropy(torch.tensor([[0.0, 1.0]]), torch.tensor([0])))
