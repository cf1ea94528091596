"""What the tests of directions share."""

import pytest
import torch

from twophase.objective import Point


@pytest.fixture(scope="session")
def vectors():
    """Random vectors [count, dimension]."""

    def draw(count, dimension, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, dimension, generator=generator, dtype=torch.float64)

    return draw


@pytest.fixture(scope="session")
def point_at():
    """A point with a given gradient, all that a direction looks at."""

    def point(gradient):
        return Point(torch.zeros_like(gradient), 1.0, gradient, 1e-15)

    return point
