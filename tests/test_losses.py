"""The paper's loss against its definition."""

import pytest
import torch
from torch import nn

from twophase.errors import InputError
from twophase.losses import mse


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
