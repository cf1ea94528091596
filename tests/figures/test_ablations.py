"""Figures of ablations: what the axes hold, not how it looks."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from twophase.experiments.ablation import BUDGETS
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


@pytest.fixture
def compared():
    frame = pd.DataFrame({"size": [64, 512]})
    names = ["adam_train_loss"]
    for budget in BUDGETS:
        names += [f"train_loss_{budget}", f"train_loss_{budget}_ratio"]
    for value, name in enumerate(names, 1):
        frame[[name, f"{name}_low", f"{name}_high"]] = value, value / 2, value * 2
    return frame


def heights(ax):
    return [container.lines[0].get_ydata()[0] for container in ax.containers]


def test_each_budget_has_its_axes(compared):
    axes = Figure().subplots(1, 3)
    ablation_figures.by_budget(axes, {"a": compared}, "size")
    assert [heights(ax) for ax in axes] == [[3], [5], [7]]
    assert [ax.get_title() for ax in axes] == [f"at equal {budget}" for budget in BUDGETS]


def test_losses_are_above_their_ratios(compared):
    axes = Figure().subplots(2)
    ablation_figures.losses_and_ratios(axes, compared, "size")
    assert [heights(ax) for ax in axes] == [[1, 2, 4, 6], [3, 5, 7]]
    assert axes[0].get_legend_handles_labels()[1][0] == "Adam alone"
    assert list(axes[1].lines[0].get_ydata()) == [1, 1]
