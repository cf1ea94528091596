"""Figures of traces: what the axes hold, not how it looks."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from twophase.experiments import traces
from twophase.figures import traces as trace_figures
from twophase.switching.rules import FixedEpoch


def test_a_trace_shows_every_epoch_the_peak_and_where_rules_fire():
    ax = Figure().subplots()
    trace_figures.norm_trace(ax, [1.0, 2.0, 9.0, 2.0, 1.0, 0.0], {"literal": 4, "robust": None})
    drawn = {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}
    assert list(drawn) == ["each epoch", "smoothed", "largest, smoothed", "literal switches"]
    assert drawn["each epoch"].get_xydata().tolist()[2] == [3, 9]
    # means of up to five neighbours
    assert drawn["smoothed"].get_ydata().tolist() == [4, 3.5, 3, 2.8, 3, 1]
    assert drawn["largest, smoothed"].get_xydata().tolist() == [[1, 4]]
    assert drawn["literal switches"].get_xdata()[0] == 4
    assert ax.get_yscale() == "log"


def test_marks_are_below_the_trace_and_a_shape_without_peak_has_none():
    ax = Figure().subplots()
    norms = [1.0, 2.0, 9.0, 2.0, 1.0]
    trace_figures.norm_trace(ax, norms, {"a": 1, "b": 2, "c": 3}, peak=False)
    drawn = {line.get_label(): line for line in ax.lines}
    assert "largest, smoothed" not in drawn
    low, high = np.log(ax.get_ylim())
    assert (np.log(min(norms)) - low) / (high - low) > drawn["c switches"].get_ydata()[0]


def test_only_shapes_with_a_peak_have_one():
    known = traces.artificial()
    fig = trace_figures.norm_traces(known, traces.outcomes(known, {}))
    panels = {ax.get_title(): [line.get_label() for line in ax.lines] for ax in fig.axes}
    assert len(panels) == 12
    assert all(
        ("no peak" in title) != ("largest, smoothed" in drawn) for title, drawn in panels.items()
    )
    plt.close(fig)


def test_an_odd_number_of_panels_leaves_one_empty():
    fig = trace_figures.panels([("d", "m", seed) for seed in range(5)], lambda ax, key: None, 2, "")
    assert [ax.axison for ax in fig.axes] == [True] * 5 + [False]
    plt.close(fig)


def test_each_trace_has_a_panel_with_its_own_switches():
    columns = {"dataset": "d", "model": "m", "epoch": [1, 2, 3] * 3, "loss": 1.0}
    columns |= {"seed": [2] * 3 + [0] * 3 + [1] * 3, "grad_norm": range(1, 10)}
    recorded = pd.DataFrame(columns)
    found = traces.outcomes(recorded, {"at 2": FixedEpoch(2), "at 9": FixedEpoch(9)})
    found.loc[found.seed == 0, "fired"] = 3
    fig = trace_figures.norm_traces(recorded, found)
    panels = fig.axes
    assert len(panels) == 3 and fig.legends, "none is empty"
    drawn = [{line.get_label(): line.get_xydata() for line in ax.lines} for ax in panels]
    assert [lines["each epoch"][0, 1] for lines in drawn] == [1, 4, 7]
    assert [lines["at 2 switches"][0, 0] for lines in drawn] == [2, 3, 2]
    assert ["at 9 switches" in lines for lines in drawn] == [False, True, False]
    plt.close(fig)
