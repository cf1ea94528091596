"""Figures of ablations: losses and ratios over what was varied, with intervals over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from twophase.experiments.ablation import BUDGETS
from twophase.figures.style import GREY, MARKERS, line_style, plain_ticks

# Shares of the distance between two values, so that intervals of several lines do not overlap.
_SPREAD = 0.05


def intervals(
    ax: Axes, lines: Mapping[str, pd.DataFrame], x: str, column: str, first: int = 0
) -> Axes:
    """Draw means with their intervals over evenly spaced values, a line for each label.

    Frames have columns `x`, what was varied; `column`, the means, above 0; `column`_low and
    `column`_high. The values of `x` need not be numbers: each has its place, in the order of the
    first frame that has it. A missing mean leaves a gap, a missing interval a point without bars.
    Looks begin with number `first`, so that two axes may show the same by the same look.
    """
    values = dict.fromkeys(value for frame in lines.values() for value in frame[x])
    places = {value: place for place, value in enumerate(values)}
    for index, (label, frame) in enumerate(lines.items()):
        mean, low, high = (
            frame[name].to_numpy(float) for name in (column, f"{column}_low", f"{column}_high")
        )
        bars = np.nan_to_num([np.maximum(mean - low, 0), np.maximum(high - mean, 0)])
        offset = _SPREAD * (index - (len(lines) - 1) / 2)
        ax.errorbar(
            [places[value] + offset for value in frame[x]],
            mean,
            yerr=bars,
            label=label,
            marker=MARKERS[(first + index) % len(MARKERS)],
            **line_style(first + index),
            **{"linewidth": 1.2, "elinewidth": 1.8, "capsize": 4},
        )
    ax.set(yscale="log", xlim=(-0.5, len(places) - 0.5))
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in places]
    ax.set_xticks(range(len(places)), names)
    plain_ticks(ax.yaxis, (1, 2, 3, 5, 7))
    return ax


def ratios(
    ax: Axes, lines: Mapping[str, pd.DataFrame], x: str, column: str, first: int = 0
) -> Axes:
    """Draw ratios to a reference as `intervals` does, with a line at 1, the reference itself."""
    ax.axhline(1, color=GREY, linestyle="-", linewidth=0.8)
    return intervals(ax, lines, x, column, first)


def by_budget(axes: Sequence[Axes], lines: Mapping[str, pd.DataFrame], x: str) -> None:
    """Draw ratios of the training loss to Adam's, an axes for each of `ablation.BUDGETS`.

    Frames are from `ablation.compare`; `x` is their column that was varied.
    """
    for ax, budget in zip(axes, BUDGETS, strict=True):
        ratios(ax, lines, x, f"train_loss_{budget}_ratio").set_title(f"at equal {budget}")
    axes[0].set_ylabel("training loss / Adam's")


def losses_and_ratios(axes: Sequence[Axes], compared: pd.DataFrame, x: str) -> None:
    """Draw training losses, of Adam alone and with a second phase, and below it their ratios.

    `compared` is from `ablation.compare`; `x` is its column that was varied.
    """
    losses = {"Adam alone": _renamed(compared, x, "adam_train_loss")}
    relative = {}
    for budget in BUDGETS:
        name = f"train_loss_{budget}"
        losses[f"both phases, equal {budget}"] = _renamed(compared, x, name)
        relative[f"equal {budget}"] = _renamed(compared, x, f"{name}_ratio")
    intervals(axes[0], losses, x, "value").set_ylabel("training loss (mean squared error)")
    ratios(axes[1], relative, x, "value", first=1).set_ylabel("training loss / Adam's")


def _renamed(compared: pd.DataFrame, x: str, name: str) -> pd.DataFrame:
    """One quantity under the name "value", which all lines share."""
    ends = {f"{name}{end}": f"value{end}" for end in ("", "_low", "_high")}
    return compared[[x, *ends]].rename(columns=ends)
