"""Figures of physics-informed networks: errors over what they cost."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from twophase.figures.style import COLORS, plain_ticks

BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE, BLACK = COLORS
# all differ by colour or by dash, this library's by both
STYLES: dict[str, dict] = {
    "twophase, default": {"color": BLUE, "linestyle": "-", "linewidth": 2.6},
    "twophase, SSBroyden": {"color": ORANGE, "linestyle": "--"},
    "twophase, self-scaled BFGS": {"color": SKY, "linestyle": "-."},
    "ssbroyden-optimistix": {"color": GREEN, "linestyle": "--"},
    "scipy, BFGS": {"color": PURPLE, "linestyle": "-"},
    "torch, L-BFGS": {"color": VERMILION, "linestyle": "-"},
    "Adam": {"color": BLACK, "linestyle": "-"},
    "Adam, cosine decay": {"color": BLACK, "linestyle": ":"},
}
COSTS = {"passes": "passes over the points", "seconds": "seconds"}


def error_curves(axes: Sequence[Axes], curves: pd.DataFrame) -> Sequence[Axes]:
    """Draw the lowest error so far of one problem's methods over passes, and over seconds.

    `curves` are the rows of one seed of `physics_results.load`.
    """
    for ax, (cost, label) in zip(axes, COSTS.items(), strict=True):
        for method, look in STYLES.items():
            of = curves[curves.method == method]
            ax.plot(of[cost], of.error.cummin(), label=method, **look)
        ax.set(xscale="log", yscale="log", xlabel=label)
        plain_ticks(ax.xaxis)
    axes[0].set_ylabel("lowest error so far")
    return axes
