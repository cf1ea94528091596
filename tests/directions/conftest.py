"""What the tests of directions share."""

import pytest
import torch

from twophase.directions import State
from twophase.directions.direction import steepest_descent
from twophase.line_search import SearchResult, SearchStatus
from twophase.minimization import minimize
from twophase.objective import FunctionObjective, Point
from twophase.second_phase import Descent


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


@pytest.fixture(scope="session")
def walk(point_at):
    """Directions of a rule that is shown one gradient after another, and what it saw at each."""

    def walked(rule, gradients, lengths, inverse):
        found, seen = [steepest_descent(gradients[0], inverse)], []
        for before, gradient, length in zip(gradients, gradients[1:], lengths, strict=False):
            last = State(
                *(torch.zeros_like(gradient), before, found[-1].vector, length, found[-1].slope),
                *(found[-1].age, 0.0, found[-1].memory),
            )
            seen.append((point_at(gradient), last))
            found.append(rule(*seen[-1], inverse))
        return found[1:], seen

    return walked


@pytest.fixture(scope="session")
def ends_a_quadratic():
    """Whether n exact steps along a rule's directions end at the minimum of x'Ax / 2, A [n, n]."""

    def ends(rule, matrix):
        def exact(line, first_step):
            step = -line.slope / (line.direction @ matrix @ line.direction).item()
            return SearchResult(step, line.trial(step).value, 1, SearchStatus.MINIMUM)

        objective = FunctionObjective(lambda x: 0.5 * x @ matrix @ x)
        x = torch.ones(len(matrix), dtype=torch.float64)
        found = minimize(objective, x, iterations=len(matrix), second=Descent(rule, exact))
        return found.gradient_norm < 1e-9 * (matrix @ x).norm()

    return ends
