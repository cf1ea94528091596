"""Searches for a global minimum: evaluations over parameters, and where local methods end."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from twophase.experiments.global_search_results import End, medians, shares
from twophase.figures.style import COLORS, GREY, MARKERS, line_style

# of the axes' height: the strip of misses of a method above them
STRIP = 0.035
# colour and hatch of each kind of end
LOOKS = {
    End.GLOBAL: (COLORS[0], ""),
    End.SPURIOUS: (COLORS[1], "//"),
    End.SADDLE: (COLORS[6], ""),
    End.FLAT: (COLORS[3], ".."),
    End.MOVING: ("#DDDDDD", ""),
}


def evaluations_over_parameters(ax: Axes, table: pd.DataFrame, methods: Sequence[str]) -> Axes:
    """Draw the median evaluations to the global minimum of one problem, for at most seven methods.

    `table` is of `global_search_results.searches`. A number of parameters at which most seeds of a
    method miss is its mark, open, in the method's own strip above the axes.
    """
    found = medians(table).droplevel("problem")
    for index, method in enumerate(methods):
        if method not in found.index:
            continue
        row, look = found.loc[method], line_style(index)
        marker = MARKERS[index % len(MARKERS)]
        ax.plot(row.index, row.where(np.isfinite(row)), label=method, marker=marker, **look)
        missed = row.index[np.isinf(row)]
        strip = {"transform": ax.get_xaxis_transform(), "clip_on": False, "color": look["color"]}
        heights = np.full(len(missed), 1 + STRIP * (index + 0.7))
        look = {"linestyle": "none", "marker": marker, "markerfacecolor": "white", "markersize": 5}
        for miss in ax.plot(missed, heights, **look, **strip):
            # the layout would take it for a part of the axes that has no end
            miss.set_in_layout(False)
    ax.set(yscale="log", xlabel="parameters $n$", ylabel="evaluations")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def end_shares(ax: Axes, table: pd.DataFrame) -> Axes:
    """Draw the shares of the kinds of ends of one method on one problem, over parameters.

    `table` is of `global_search_results.census`.
    """
    found = shares(table.sort_values("parameters"), ["parameters"])
    sizes = found.index.get_level_values("parameters").astype(str)
    below = np.zeros(len(found))
    for end, (color, hatch) in LOOKS.items():
        heights = found[end.value].to_numpy()
        look = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
        ax.bar(sizes, heights, bottom=below, width=0.85, label=end.value, **look)
        below = below + heights
    ax.set(ylim=(0, 1), xlabel="parameters $n$", ylabel="share of the starts")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.spines["left"].set_color(GREY)
    return ax
