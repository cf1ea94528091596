"""Figures of traces: what the axes hold, not how it looks."""

from matplotlib.figure import Figure

from twophase.figures import traces as trace_figures


def test_a_trace_shows_every_epoch_the_peak_and_where_rules_fire():
    ax = Figure().subplots()
    trace_figures.norm_trace(ax, [1.0, 2.0, 9.0, 2.0, 1.0, 0.0], {"literal": 4, "robust": None})
    drawn = {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}
    assert list(drawn) == ["each epoch", "smoothed", "its peak", "literal switches"]
    assert drawn["each epoch"].get_xydata().tolist()[2] == [3, 9]
    # means of up to five neighbours
    assert drawn["smoothed"].get_ydata().tolist() == [4, 3.5, 3, 2.8, 3, 1]
    assert drawn["its peak"].get_xydata().tolist() == [[1, 4]]
    assert drawn["literal switches"].get_xdata()[0] == 4
    assert ax.get_yscale() == "log"
