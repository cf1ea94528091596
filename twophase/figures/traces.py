"""Figures of gradient norm traces and of what switch rules do on them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twophase.experiments.traces import KEY, peak_epoch, smoothed
from twophase.figures.style import COLORS, GREY, WIDE, mark_epochs, plain_ticks, share_legend

# of the height of the trace, added below it
_FOR_MARKS = 0.25
# data set, network and seed of a trajectory
Key = tuple[str, str, int]


def panels(
    keys: Collection[Key], draw: Callable[[Axes, Key], Any], height: float, ylabel: str, **kwargs
) -> Figure:
    """A figure with a panel over the epochs for each trajectory, and one legend for all.

    Three are in a row, others in two columns. The `height` is that of a row, in inches; `kwargs`
    are passed on to `pyplot.subplots`.
    """
    columns = 3 if len(keys) == 3 else 2
    rows = -(-len(keys) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(WIDE, height * rows), squeeze=False, **kwargs)
    for ax, key in zip(axes.flat, keys, strict=False):
        draw(ax, key)
        ax.set_title(f"{key[0]}, {key[1]}", fontsize=10)
    for ax in axes.flat[len(keys) :]:
        ax.set_axis_off()
    fig.supxlabel("epoch", fontsize=11)
    fig.supylabel(ylabel, fontsize=11)
    share_legend(list(axes.flat), ncols=4 if columns == 3 else 3)
    return fig


def norm_traces(recorded: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """A `norm_trace` for each recorded one, with what `traces.outcomes` has found on it."""
    trajectories = dict(list(recorded.groupby(KEY, sort=False)))

    def draw(ax: Axes, key: Key) -> None:
        of = found[(found[KEY] == list(key)).all(axis=1)]
        fired = {rule: None if pd.isna(e) else e for rule, e in zip(of.rule, of.fired, strict=True)}
        # those by formula say whether they have a peak
        peak = not key[1].startswith("no peak")
        norm_trace(ax, trajectories[key].grad_norm.to_numpy(), fired, peak=peak)

    one_row = len(trajectories) == 3
    height, apart = (3.0, "\n") if one_row else (2.1, " ")
    return panels(trajectories, draw, height, f"gradient norm{apart}(loss per unit of parameter)")


def norm_trace(
    ax: Axes,
    norms: Sequence[float],
    fired: Mapping[str, int | None],
    color: str = COLORS[0],
    peak: bool = True,
) -> Axes:
    """Draw a gradient norm over the epochs, its smoothed curve and peak, and where rules fire.

    `norms` (loss per unit of parameter, one for each epoch) are drawn on a logarithmic axis;
    `fired` has for each rule the epoch after which it switches, or None where it never does;
    without `peak` the largest norm is not marked.
    """
    epochs, curve = np.arange(1, len(norms) + 1), smoothed(norms)
    top = peak_epoch(norms)
    ax.plot(epochs, norms, color=GREY, linestyle="-", linewidth=0.7, label="each epoch")
    ax.plot(epochs, curve, color=color, linestyle="-", label="smoothed")
    if peak:
        cross = {"color": "black", "marker": "x", "markersize": 8, "linestyle": "none"}
        ax.plot([top], [curve[top - 1]], label="largest, smoothed", markeredgewidth=2, **cross)
    ax.set(yscale="log", xlim=(0, len(norms) + 1))
    if fired:
        # below the trace, so that a marker hides nothing
        low, high = np.log(ax.get_ylim())
        ax.set_ylim(bottom=np.exp(low - _FOR_MARKS * (high - low)))
    switches = {f"{rule} switches": epoch for rule, epoch in fired.items()}
    mark_epochs(ax, switches, lowest=0.07, spacing=0.08)
    plain_ticks(ax.yaxis)
    return ax
