"""Where to swap: the losses of branches from one trajectory of Adam."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from twophase.experiments.ablation import LOSSES
from twophase.experiments.swap_study import BY_ITSELF, NEVER, ends
from twophase.figures.style import COLORS, line_style, mark, plain_ticks


def swap_points(axes: Sequence[Axes], table: pd.DataFrame, label: str = "") -> Sequence[Axes]:
    """Draw the losses over passes, and where they end over the epoch of the swap.

    `table` is of `swap_study.study`. The first of two axes has the training loss of each branch,
    Adam alone in black, swaps as diamonds; the second the losses in the end, with dotted lines at
    Adam's and crosses at the race's.
    """
    left, right = axes
    for index, (name, rows) in enumerate(table.groupby("swap", sort=False)):
        look = {"color": COLORS[-1], "linestyle": "-"} if name == NEVER else line_style(index - 1)
        left.plot(rows.passes, rows.train_loss, label=_label(str(name)), **look)
        if str(name).isdigit():
            swap = rows[rows.phase == "adam"].iloc[-1]
            mark(left, swap.passes, swap.train_loss, "D", None, look["color"], size=6)
    left.set(yscale="log", xlabel="passes over the data", ylabel=f"training loss{label}")
    _ends(right, ends(table))
    right.set_ylabel(f"loss in the end{label}")
    for ax in axes:
        low, high = ax.get_ylim()
        if high < 100 * low:
            plain_ticks(ax.yaxis)
    for ax in axes:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)
    return axes


def _label(name: str) -> str:
    return {NEVER: "Adam alone", BY_ITSELF: "by the race"}.get(name, f"swap at {name}")


def _ends(ax: Axes, found: pd.DataFrame) -> None:
    swaps = found[found.index.str.isdigit()]
    for index, (column, name) in enumerate(LOSSES.items()):
        if column not in found:
            continue
        look = {"color": COLORS[3 * index], "marker": "os"[index], "linestyle": "-"}
        ax.plot(swaps.index.astype(int), swaps[column], label=name, **look)
        ax.axhline(found[column][NEVER], color=look["color"], linestyle=":", lw=1.5)
        ax.plot([1], [found[column][BY_ITSELF]], marker="X", markersize=9, color=look["color"],
                linestyle="none", transform=ax.get_yaxis_transform(), clip_on=False)  # fmt: skip
    ax.plot([], [], color="0.3", linestyle=":", label="Adam alone")
    ax.plot([], [], color="0.3", marker="X", linestyle="none", label="by the race")
    ax.set(xscale="log", yscale="log", xlabel="epoch of the swap")
    ax.set_xticks(swaps.index.astype(int), swaps.index)
    ax.minorticks_off()
