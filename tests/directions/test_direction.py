"""The steepest descent, and the step that one line lets expect of the next."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.directions import State
from twophase.directions.direction import expected_step, scaled, steepest_descent


@given(seed=st.integers(0, 1000), preconditioned=st.booleans())
def test_the_steepest_descent_is_the_gradient_scaled(vectors, seed, preconditioned):
    gradient, diagonal = vectors(2, 4, seed)
    inverse = diagonal.exp() if preconditioned else None
    matrix = torch.diag(diagonal.exp()) if preconditioned else torch.eye(4).double()
    found = steepest_descent(gradient, inverse)
    torch.testing.assert_close(found.vector, -matrix @ gradient)
    torch.testing.assert_close(scaled(gradient, inverse), matrix @ gradient)
    assert found.slope == pytest.approx((-gradient @ matrix @ gradient).item())
    assert (found.age, found.memory, found.first_step) == (0, None, None)


@pytest.mark.parametrize("part", [0.25, 0.5, 1.0, 2.0])
def test_the_expected_step_is_that_of_the_last_parabolas_minimum(part):
    """On L(t) = ½ a (t − t*)² the slopes at 0 and at the step place t*; both lines gain as much."""
    curvature, minimum = 3.0, 0.7
    step = part * minimum
    direction = torch.ones(1, dtype=torch.float64)
    first, end = (curvature * (t - minimum) * direction for t in (0.0, step))
    last = State(step * direction, first, direction, step, first.item())
    for slope in (-1.0, 2 * first.item()):
        expected = minimum * first.item() / slope
        assert expected_step(last, slope, end.item()) == pytest.approx(expected)


@pytest.mark.parametrize(("end", "factor"), [(0.999, 10.0), (-1e6, 0.1), (1.0, 1.0), (2.0, 1.0)])
def test_the_expected_step_corrects_the_last_tenfold_at_most(end, factor):
    """`end`: the slope at the end of the last step, in parts of that at its start."""
    direction = torch.ones(1, dtype=torch.float64)
    last = State(direction, -direction, direction, 0.3, -1.0)
    found = expected_step(last, slope=-1.0, end=-end)
    assert found == pytest.approx(0.3 * factor)
