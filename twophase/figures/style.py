"""The style of every figure: colours that all kinds of colour vision tell apart, sizes, marks."""

import seaborn as sns
from cycler import cycler

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
    """Set the style of every figure: ticks without a grid, sans serif, text of 10 points and more.

    Lines differ by colour AND dash by default, so that they can be told apart in grey, too.

    >>> from matplotlib import pyplot as plt
    >>> with plt.rc_context():
    ...     use_style()
    ...     plt.rcParams["font.size"]
    11.0
    """
    sns.set_theme(
        style="ticks",
        font="DejaVu Sans",
        rc={
            "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=DASHES),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.linewidth": 0.8,
            "axes.labelsize": 11,
            "axes.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.hspace": 0.05,
            "figure.constrained_layout.wspace": 0.05,
            "figure.dpi": 100,
            "figure.figsize": (WIDE, 4.0),
            "font.size": 11,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "xtick.labelsize": 10,
            "xtick.major.size": 4,
            "xtick.major.width": 0.8,
            "ytick.labelsize": 10,
            "ytick.major.size": 4,
            "ytick.major.width": 0.8,
        },
    )
