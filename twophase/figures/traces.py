"""Figures of gradient norm traces and of what switch rules do on them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from twophase.experiments.traces import peak_epoch, smoothed
from twophase.figures.style import COLORS, GREY, MARKERS

# Below the trace, so that a marker hides nothing; in units of the axes' height.
_LOWEST, _SPACING = 0.04, 0.075


def norm_trace(
    ax: Axes, norms: Sequence[float], fired: Mapping[str, int | None], color: str = COLORS[0]
) -> Axes:
    """Draw a gradient norm over the epochs, its smoothed curve and peak, and where rules fire.

    Args:
        ax: axes to draw on; the norm's axis becomes logarithmic.
        norms: loss per unit of parameter, one for each epoch.
        fired: for each rule the epoch after which it switches; None: never, and no marker.
        color: of the smoothed curve.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> ax = norm_trace(Figure().subplots(), [1.0, 2.0, 1.0], {"literal": 3, "robust": None})
    >>> ax.get_yscale(), [line.get_label() for line in ax.lines if line.get_label()[0] != "_"]
    ('log', ['each epoch', 'smoothed', 'its peak', 'literal switches'])
    """
    epochs, curve = np.arange(1, len(norms) + 1), smoothed(norms)
    top = peak_epoch(norms)
    ax.plot(epochs, norms, color=GREY, linestyle="-", linewidth=0.7, label="each epoch")
    ax.plot(epochs, curve, color=color, linestyle="-", label="smoothed")
    peak = {"color": "black", "marker": "x", "markersize": 8, "linestyle": "none"}
    ax.plot([top], [curve[top - 1]], label="its peak", markeredgewidth=2, **peak)
    for index, (rule, epoch) in enumerate(fired.items()):
        if epoch is None:
            continue
        style = {"color": COLORS[(index + 1) % len(COLORS)], "marker": MARKERS[index]}
        ax.axvline(epoch, color=style["color"], linestyle=":", linewidth=1)
        ax.plot(
            [epoch],
            [_LOWEST + _SPACING * index],
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            markersize=8,
            label=f"{rule} switches",
            **style,
        )
    ax.set(yscale="log", xlim=(0, len(norms) + 1))
    # within less than a decade matplotlib labels the minor ticks, too many for a small figure
    ax.yaxis.set_minor_formatter(NullFormatter())
    return ax


def share_legend(axes: Sequence[Axes], **kwargs) -> None:
    """One legend for several axes above the first, with every label that any of them has.

    Args:
        axes: with labelled lines; at least one.
        **kwargs: passed on to `Figure.legend`.

    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> axes = figure.subplots(1, 2)
    >>> lines = axes[0].plot([1], label="a") + axes[1].plot([1], label="b")
    >>> share_legend(axes)
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['a', 'b']
    """
    found = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    placed = {"loc": "outside upper center", "ncols": len(found)} | kwargs
    axes[0].figure.legend(found.values(), found.keys(), **placed)
