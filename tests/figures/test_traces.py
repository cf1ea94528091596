"""Figures of traces: what the axes hold, not how it looks."""

from matplotlib.figure import Figure

from twophase.figures import traces as trace_figures


def test_a_trace_shows_every_epoch_the_peak_and_where_rules_fire():
    ax = Figure().subplots()
    trace_figures.norm_trace(ax, [1.0, 2.0, 9.0, 3.0, 1.0], {"literal": 4, "robust": None})
    drawn = {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}
    assert list(drawn) == ["each epoch", "smoothed", "its peak", "literal switches"]
    assert drawn["each epoch"].get_xydata().tolist()[2] == [3, 9]
    assert drawn["smoothed"].get_ydata()[2] == 3.2
    # the ends are means of fewer neighbours
    assert drawn["its peak"].get_xydata().tolist() == [[2, 3.75]]
    assert drawn["literal switches"].get_xdata()[0] == 4
    assert ax.get_yscale() == "log"
