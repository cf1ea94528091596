"""The style of every figure: colours that all kinds of colour vision tell apart, marks, ticks."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

# Okabe and Ito's colours for all kinds of colour vision, without their yellow, which is too faint
# for lines on white; neighbours differ in lightness, too.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#000000")
BLUE, VERMILION = COLORS[0], COLORS[4]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 3)), (0, (3, 1)))
CONVEX_SHADE = "#CFE3F1"
GREY = "#666666"

# pixels at 100 dots per inch: 900 is the width of a page of the report
WIDE = 9.0


def use_style() -> None:
    """Set the style of every figure; lines differ by colour AND dash, to be told apart in grey."""
    sns.set_theme(
        style="ticks",
        font="DejaVu Sans",
        rc={
            "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=DASHES),
            **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
            **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), 11),
            **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 10),
            **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 4),
            **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.8),
            "lines.linewidth": 1.8,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.hspace": 0.05,
            "figure.constrained_layout.wspace": 0.05,
            "figure.dpi": 100,
            "figure.figsize": (WIDE, 4.0),
        },
    )


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of a line by its number, which begin anew after the seventh."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}


def share_legend(axes: Sequence[Axes], **kwargs) -> None:
    """One `Figure.legend` for several axes, outside at the top, with every label of any of them."""
    found = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    placed = {"loc": "outside upper center", "ncols": len(found)} | kwargs
    axes[0].figure.legend(found.values(), found.keys(), **placed)


def mark_epochs(
    ax: Axes, epochs: Mapping[str, float | None], lowest: float, spacing: float
) -> None:
    """Mark epochs by name: a dotted line across and a marker, one above the other; None: no mark.

    `lowest` and `spacing` of the markers are in units of the axes' height.
    """
    for index, (name, epoch) in enumerate(epochs.items()):
        if epoch is None:
            continue
        color, marker = COLORS[(index + 1) % len(COLORS)], MARKERS[index % len(MARKERS)]
        ax.axvline(epoch, color=color, linestyle=":", linewidth=1)
        look = {"color": color, "marker": marker, "linestyle": "none", "markersize": 8}
        height = lowest + spacing * index
        ax.plot([epoch], [height], label=name, transform=ax.get_xaxis_transform(), **look)


def mark(
    ax: Axes, x: object, y: object, marker: str, label: str | None, face="white", size: float = 8
) -> None:
    """Draw markers with a black edge above all else, also where they overlap the axes' border."""
    look = {"markeredgecolor": "black", "markerfacecolor": face, "markersize": size}
    ax.plot(x, y, ls="none", marker=marker, zorder=5, clip_on=False, label=label, **look)


def readable_on(colour: tuple[float, ...]) -> str:
    """Black or white, by the contrast with a colour (red, green, blue), as WCAG 2 defines it."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour[:3]]
    luminance = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


def plain_ticks(axis: Axis, digits: tuple[int, ...] = (1, 2, 5)) -> None:
    """Some, but not too many, plain numbers on a logarithmic axis, however short or long it is.

    They have 1 among them, the line of what is equal, where the axis has it. Very small and
    very large ones are powers of ten. Within two decades they begin with these `digits`.
    """
    low, high = axis.get_view_interval()
    gap = max(after / before for before, after in pairwise((*digits, 10)))
    if high < gap**2 * low:  # there could be fewer than two: steps that divide 1
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
    elif high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=digits if high < 100 * low else (1, 3)))
    else:
        every = math.ceil(math.log10(high / low) / 7)
        axis.set_major_locator(FixedLocator([10.0 ** (every * n) for n in range(-20, 21)]))
    axis.set_major_formatter(_plain)
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, position: int | None = None) -> str:
    mantissa, _, exponent = f"{value:g}".partition("e")
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else rf"${mantissa}\times{power}$"
