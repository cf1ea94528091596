"""Where to swap: the losses of branches from one trajectory of Adam."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from twophase.experiments.ablation import LOSSES
from twophase.experiments.swap_study import BY_ITSELF, NEVER, ends
from twophase.figures.style import BLUE, COLORS, GREY, VERMILION, line_style, mark, plain_ticks

# of the branches that are in every figure, however many swaps there are
LOOKS = {NEVER: {"color": COLORS[-1], "linestyle": "-"}, BY_ITSELF: line_style(5)}
LABELS = {NEVER: "Adam alone", BY_ITSELF: "by the race"}
# colour, mark, and the dash and the cross of Adam's and the race's end, of each loss
ENDS = {"train_loss": (BLUE, "o", ":", "X"), "validation_loss": (VERMILION, "s", "-.", "P")}


def swap_points(axes: Sequence[Axes], table: pd.DataFrame, label: str = "") -> Sequence[Axes]:
    """Draw the losses over passes, and where they end over the epoch of the swap.

    `table` is of `swap_study.study`. The first of two axes has the training loss of each branch,
    Adam alone in black, swaps as diamonds; the second the losses in the end, with lines at Adam's
    and crosses at the race's, in the colour of the loss.
    """
    left, right = axes
    for index, (name, rows) in enumerate(table.groupby("swap", sort=False)):
        look = LOOKS.get(str(name)) or line_style(index - 1)
        shown = LABELS.get(str(name), f"swap at {name}")
        left.plot(rows.passes, rows.train_loss, label=shown, **look)
        if str(name).isdigit():
            swap = rows[rows.phase == "adam"].iloc[-1]
            mark(left, swap.passes, swap.train_loss, "D", None, look["color"], size=6)
    left.plot([], [], "D", color=GREY, markeredgecolor="black", label="swap")
    left.set(yscale="log", xlabel="passes over the data", ylabel=f"training loss{label}")
    _ends(right, ends(table))
    right.set_ylabel(f"loss in the end{label}")
    for ax in axes:
        low, high = ax.get_ylim()
        if high < 100 * low:
            plain_ticks(ax.yaxis)
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
        ax.legend(**place, ncols=2, fontsize=9, handlelength=4)
    return axes


def _ends(ax: Axes, found: pd.DataFrame) -> None:
    swaps = found[found.index.str.isdigit()]
    for column, (color, marker, dash, cross) in ENDS.items():
        if column not in found:
            continue
        name = LOSSES[column]
        ax.plot(swaps.index.astype(int), swaps[column], "-", label=name, color=color, marker=marker)
        ends_at = found[column]
        ax.axhline(ends_at[NEVER], color=color, ls=dash, lw=1.5, label=f"{name}, Adam alone")
        look: dict[str, Any] = {"color": color, "marker": cross, "markersize": 9, "ls": "none"}
        look |= {"transform": ax.get_yaxis_transform(), "clip_on": False}
        ax.plot([1], [ends_at[BY_ITSELF]], label=f"{name}, by the race", **look)
    ax.set(xscale="log", yscale="log", xlabel="epoch of the swap")
    ax.set_xticks(swaps.index.astype(int), swaps.index)
    ax.minorticks_off()
