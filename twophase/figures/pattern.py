"""Whether the paper's pattern holds on a problem: who ends below Adam at equal passes."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from twophase.experiments.pattern import LOSSES, Pattern, beside_adam
from twophase.figures.style import COLORS, GREY, MARKERS, plain_ticks


def ends_beside_adam(axes: Sequence[Axes], found: Pattern) -> Sequence[Axes]:
    """Draw each strategy's loss in the end over that of Adam alone, a mark for each seed.

    One of two axes for training loss, one for validation loss, strategies from top to bottom. The
    short line is the median of those seeds on which a strategy switched; the marks of others are
    hollow.
    """
    ratios = beside_adam(found)
    names = list(dict.fromkeys(ratios.strategy))
    for index, (ax, (column, label)) in enumerate(zip(axes, LOSSES.items(), strict=True)):
        if column not in ratios:
            ax.set_axis_off()
            continue
        _draw(ax, ratios, names, column, COLORS[3 * index], MARKERS[index])
        ax.set_xlabel(f"{label} / that of Adam alone")
    axes[0].set_yticks(range(len(names)), names)
    axes[-1].tick_params(labelleft=False)
    return axes


def _draw(
    ax: Axes, ratios: pd.DataFrame, names: list[str], column: str, color: str, marker: str
) -> None:
    for place, name in enumerate(names):
        of = ratios[ratios.strategy == name]
        for values, face in ((of[of.switched], color), (of[~of.switched], "none")):
            look = {"color": color, "markerfacecolor": face, "markersize": 7, "alpha": 0.8}
            ax.plot(values[column], [place] * len(values), marker, linestyle="none", **look)
        middle = [of[column][of.switched].median()] * 2
        ax.plot(middle, [place - 0.3, place + 0.3], "-", color="black", linewidth=1.5)
    ax.axvline(1, color=GREY, linestyle="-", linewidth=0.8)
    ax.set(xscale="log", ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="y", linewidth=0.3)
    plain_ticks(ax.xaxis)
