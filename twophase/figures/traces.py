"""Figures of gradient norm traces and of what switch rules do on them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from twophase.experiments.traces import peak_epoch, smoothed
from twophase.figures.style import COLORS, GREY, mark_epochs


def norm_trace(
    ax: Axes, norms: Sequence[float], fired: Mapping[str, int | None], color: str = COLORS[0]
) -> Axes:
    """Draw a gradient norm over the epochs, its smoothed curve and peak, and where rules fire.

    `norms` (loss per unit of parameter, one for each epoch) are drawn on a logarithmic axis;
    `fired` has for each rule the epoch after which it switches, or None where it never does.
    """
    epochs, curve = np.arange(1, len(norms) + 1), smoothed(norms)
    top = peak_epoch(norms)
    ax.plot(epochs, norms, color=GREY, linestyle="-", linewidth=0.7, label="each epoch")
    ax.plot(epochs, curve, color=color, linestyle="-", label="smoothed")
    peak = {"color": "black", "marker": "x", "markersize": 8, "linestyle": "none"}
    ax.plot([top], [curve[top - 1]], label="its peak", markeredgewidth=2, **peak)
    # below the trace, so that a marker hides nothing
    switches = {f"{rule} switches": epoch for rule, epoch in fired.items()}
    mark_epochs(ax, switches, lowest=0.04, spacing=0.075)
    ax.set(yscale="log", xlim=(0, len(norms) + 1))
    # within less than a decade matplotlib labels the minor ticks, too many for a small figure
    ax.yaxis.set_minor_formatter(NullFormatter())
    return ax
