"""What the tests of line searches share."""

import pytest
import torch

from twophase.line_search import Line
from twophase.objective import FunctionObjective


@pytest.fixture(scope="session")
def line_of():
    """The line x = step: a scalar function as an objective along +1 from 0."""

    def line(function, slope=None, scale=0.0):
        objective = FunctionObjective(lambda x: function(x).sum())
        x = torch.zeros(1, dtype=torch.float64)
        value, gradient = objective.value_and_gradient(x)
        return Line(objective, x, torch.ones_like(x), value, slope or gradient.item(), scale)

    return line
