"""Time and memory over the numbers of parameters and examples."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from twophase.experiments.scale import BYTES, KINDS
from twophase.figures.style import COLORS, MARKERS


def over_work(axes: Sequence[Axes], table: pd.DataFrame) -> Sequence[Axes]:
    """Draw seconds over P · K, and the peak memory in vectors of length P over P, by kind.

    `table` is of `scale.run`. A mark is a number of parameters and examples.
    """
    left, right = axes
    held = table.peak / (BYTES * table.parameters)
    for index, kind in enumerate(KINDS):
        rows = table[table.kind == kind]
        look = {"color": COLORS[index], "marker": MARKERS[index], "linestyle": "none"}
        # hollow, and of their own size: none hides another
        look |= {"markerfacecolor": "none", "markeredgewidth": 1.5, "markersize": 6 + 2 * index}
        left.plot(rows.parameters * rows.examples, rows.seconds, label=kind, **look)
        right.plot(rows.parameters, held[rows.index], **look)
    left.set(xscale="log", yscale="log", ylabel="seconds, an epoch or iteration")
    left.set_xlabel("parameters × examples")
    right.set(xscale="log", yscale="log", xlabel="parameters P")
    right.set_ylabel("peak memory, vectors of length P")
    return axes
