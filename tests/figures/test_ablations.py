"""Figures of ablations: what the axes hold, not how it looks."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from twophase.figures import ablations as ablation_figures


@pytest.fixture
def ax():
    return Figure().subplots()


def frame(values, mean, low, high):
    return pd.DataFrame({"x": values, "loss": mean, "loss_low": low, "loss_high": high})


def test_bars_are_the_intervals(ax):
    lines = {"a": frame([64, 512], [1.0, 2.0], [0.5, 1.5], [1.5, 4.0])}
    ablation_figures.intervals(ax, lines, "x", "loss")
    (container,) = ax.containers
    points, _, (bars,) = container.lines
    assert points.get_xydata().tolist() == [[0, 1], [1, 2]]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.5, 1.5], [1.5, 4.0]]


def test_a_value_has_one_place_in_all_lines(ax):
    lines = {
        "a": frame([1, 2], [1.0, 1.0], 1.0, 1.0),
        "b": frame([2, 3], [1.0, 1.0], 1.0, 1.0),
    }
    ablation_figures.intervals(ax, lines, "x", "loss")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "3"]
    places = [[round(at) for at in c.lines[0].get_xdata()] for c in ax.containers]
    assert places == [[0, 1], [1, 2]]
    assert ax.containers[0].lines[0].get_xdata()[1] < ax.containers[1].lines[0].get_xdata()[0]
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]


def test_what_was_not_measured_is_a_gap_and_one_seed_has_no_bar(ax):
    lines = {"a": frame(["p", "q"], [1.0, np.nan], [None, None], [None, None])}
    ablation_figures.intervals(ax, lines, "x", "loss")
    points, _, (bars,) = ax.containers[0].lines
    assert np.isnan(points.get_ydata()).tolist() == [False, True]
    assert np.ptp(bars.get_segments()[0][:, 1]) == 0


def test_the_reference_is_a_line_at_one(ax):
    ablation_figures.ratios(ax, {"a": frame([0.9], [0.5], [0.4], [0.6])}, "x", "loss")
    assert list(ax.lines[0].get_ydata()) == [1, 1]
    assert ax.get_yscale() == "log"
