"""Figures of physics-informed networks: errors over what they cost."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from twophase.figures.style import COLORS, plain_ticks

BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE, BLACK = COLORS
# none shares its dash with another, but for Adam's thin line and the default's thick one
STYLES: dict[str, dict] = {
    "twophase, default": {"color": BLUE, "linestyle": "-", "linewidth": 2.6},
    "twophase, SSBroyden": {"color": ORANGE, "linestyle": (0, (10, 2))},
    "twophase, self-scaled BFGS": {"color": SKY, "linestyle": "-."},
    "ssbroyden-optimistix": {"color": GREEN, "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    "scipy, BFGS": {"color": PURPLE, "linestyle": (0, (7, 3))},
    "torch, L-BFGS": {"color": VERMILION, "linestyle": (0, (3, 1, 1, 1, 1, 1, 1, 1))},
    "Adam": {"color": BLACK, "linestyle": "-", "linewidth": 1.2},
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
