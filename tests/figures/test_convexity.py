"""Figures of the convexity audit: what the axes hold, not how it looks."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from twophase.figures import convexity as convexity_figures


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def audits():
    """Two points of Adam, the second convex, and one after 20 iterations of CG."""
    columns = {"epoch": [2, 1, 2], "iteration": [0, 0, 20], "smallest": [0.1, -0.5, -0.01]}
    columns |= {"smallest_error": 0.0, "largest": [1.0, 0.25, 2.0]}
    return pd.DataFrame(columns | {"along_adam": [1.0, -0.5, np.nan], "along_cg": 0.2})


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_the_smallest_eigenvalue_is_drawn_in_units_of_the_largest_absolute_one(ax, audits):
    marks = {"peak of the norm": 2, "rule": None}
    drawn = lines(convexity_figures.negative_ratio(ax, audits, marks))
    floor = convexity_figures.FLOOR
    assert drawn["under Adam"].get_xydata().tolist() == [[1, 1], [2, floor]]
    assert drawn["after CG"].get_xydata().tolist() == [[22, 0.005]]
    assert drawn["peak of the norm"].get_xdata()[0] == 2 and "rule" not in drawn
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_a_bar_reaches_to_what_the_error_bound_leaves_possible(ax, audits):
    convexity_figures.negative_ratio(ax, audits.assign(smallest_error=0.25), {})
    adam = ax.collections[0]
    ends = [segment[:, 1].tolist() for segment in adam.get_segments()]
    assert ends == [[1, 1.5], [convexity_figures.FLOOR, pytest.approx(0.15)]]


def test_curvatures_are_those_along_both_steps_from_adams_points(ax, audits):
    drawn = lines(convexity_figures.curvatures_along(ax, audits))
    assert drawn["along an epoch of Adam"].get_xydata().tolist() == [[1, -2], [2, 1]]
    assert drawn["along CG's third step"].get_xydata().tolist() == [[1, 0.8], [2, 0.2]]


def test_a_spectrum_shows_every_eigenvalue_once_by_its_sign(ax):
    convexity_figures.spectrum_over_epochs(
        ax, {1: np.array([-1.0, 2.0]), 4: np.array([-0.5, 0.0, 3.0])}
    )
    points = {c.get_label(): c.get_offsets().tolist() for c in ax.collections}
    assert points == {"positive": [[1, 2], [4, 0], [4, 3]], "negative": [[1, -1], [4, -0.5]]}
