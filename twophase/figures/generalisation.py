"""The gap between training and validation over the overdetermination Q."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from twophase.experiments.generalisation import ADAM, STRATEGIES, beside_adam, with_gap
from twophase.experiments.pattern import LOSSES
from twophase.figures.style import COLORS, GREY, MARKERS

_LOOKS = dict(zip(STRATEGIES, (COLORS[0], COLORS[4], COLORS[2]), strict=True))
# neighbours at one Q, side by side
APART = 1.12


def over_q(axes: Sequence[Axes], table: pd.DataFrame, strategy: str) -> Sequence[Axes]:
    """Draw the gap of each strategy over Q, and a strategy's losses in units of Adam's.

    `table` is of `generalisation.run`. A mark is a training; on both axes Q is logarithmic.
    """
    left, right = axes
    found = with_gap(table)
    for index, (name, color) in enumerate(_LOOKS.items()):
        rows = found[found.strategy == name]
        _marks(left, rows.q * APART ** (index - 1), rows.gap, index, color, name)
    left.axhline(0, color=GREY, linestyle="-", linewidth=0.8)
    left.set(xscale="log", ylabel="validation loss − training loss")
    ratios = beside_adam(table).query("strategy == @strategy")
    for index, (column, name) in enumerate(LOSSES.items()):
        _marks(right, ratios.q, ratios[column].clip(lower=1e-4), index, COLORS[3 * index], name)
    right.axhline(1, color=GREY, linestyle="-", linewidth=0.8)
    right.set(xscale="log", yscale="log", ylabel=f"{strategy}, over {ADAM}")
    for ax in axes:
        ax.set_xlabel("Q = K M / P, constraints per parameter")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
    return axes


def _marks(ax: Axes, x: pd.Series, y: pd.Series, index: int, color: str, label: str) -> None:
    look = {"marker": MARKERS[index], "linestyle": "none", "markersize": 6, "alpha": 0.8}
    ax.plot(x, y, color=color, markeredgecolor="white", markeredgewidth=0.5, label=label, **look)
