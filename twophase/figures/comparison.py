"""Figures of comparisons: losses against cost, performance profiles, the map of what pays."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from twophase.experiments.methods import METHODS
from twophase.experiments.profiles import COSTS, SETTING, loss_at
from twophase.experiments.statistics import ratio_text
from twophase.figures.style import COLORS, GREY, WIDE, plain_ticks

BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE, BLACK = COLORS
# families share a colour, and differ by dash within
STYLES: dict[str, dict] = {
    "adam": {"color": BLACK, "linestyle": "-"},
    "adam-twice": {"color": BLACK, "linestyle": "-", "linewidth": 1.0},
    "adam-tuned": {"color": BLACK, "linestyle": "--"},
    "adam-cosine": {"color": BLACK, "linestyle": ":"},
    "adam-from-start": {"color": ORANGE, "linestyle": "-"},
    "adamw-from-start": {"color": ORANGE, "linestyle": ":", "linewidth": 2.2},
    "sgd": {"color": GREY, "linestyle": "-."},
    "golden": {"color": VERMILION, "linestyle": (0, (7, 3))},
    "cg": {"color": VERMILION, "linestyle": "--"},
    "default": {"color": BLUE, "linestyle": "-", "linewidth": 2.6},
    "race": {"color": BLUE, "linestyle": "--", "linewidth": 2.0},
    "default-tuned": {"color": SKY, "linestyle": "--"},
    "torch-lbfgs": {"color": GREEN, "linestyle": (0, (5, 1, 1, 1))},
    "scipy-cg": {"color": PURPLE, "linestyle": "-"},
    "torchmin-cg": {"color": PURPLE, "linestyle": ":"},
}
LABELS = {
    "loss": "lowest training loss so far",
    "validation_loss": "validation loss of these weights",
}
# ratios beyond this factor either way have the darkest colour
_DARKEST = 10.0
# what the map's colour bar names
_LEVELS = (1 / _DARKEST, 0.2, 0.5, 1, 2, 5, _DARKEST)
# a cell's text is white where its colour is darker than this part of the way
_DARK = 0.6
_POINTS = 120
# ratios of losses below this are drawn here
LOWEST = 1e-9
# Of the first loss: below this a curve tells nothing more, but would press the others together.
DEEPEST = 1e-12
# the axis of losses ends at this part of the lowest median
_BELOW = 0.3
# of the validation losses, what their axis holds where the others would press them together
_NEARLY_ALL = 0.98
# of the height of a row, between the marks of two seeds
_SPREAD = 0.14
# the bands of more methods would hide the lines
_FEW = 4
_BANDED = ("adam", "default")


def loss_bands(
    ax: Axes, curves: pd.DataFrame, cost: str = "passes_spent", of: str = "loss"
) -> Axes:
    """Draw the lowest loss so far against cost: for each method the median and range over seeds.

    Or the validation loss of its weights, where `of` is "validation_loss"; a few that are far above
    the others leave the axis.

    A method that gave up keeps the loss it had. Losses are on a logarithmic axis, which ends a
    little below the lowest median, or at 1e-12 of the first loss. Of more than four methods only
    Adam and the default second phase have their range; `reading` says so. `curves`, from
    `twophase.experiments.comparison`, are of one setting but for the seed; `cost` is one of
    `COSTS`.
    """
    banded = _banded(curves)
    for method, rows in curves.groupby("method", sort=False):
        runs = [run for _, run in rows.groupby(list(SETTING), dropna=False)]
        # a single run on a busy machine does not stretch the axis of seconds
        grid = np.linspace(0, np.median([run[cost].max() for run in runs]), _POINTS)
        losses = np.array([[loss_at(run, budget, cost, of) for budget in grid] for run in runs])
        look = _look(method)
        ax.plot(grid, np.median(losses, axis=0), **look)
        if method in banded:
            ends = losses.min(axis=0), losses.max(axis=0)
            ax.fill_between(grid, *ends, color=look["color"], alpha=0.12, lw=0)
    unit = "passes" if cost == "passes_spent" else "seconds"
    ax.set(yscale="log", xlabel=f"{unit} after the shared epochs of Adam", xlim=(0, None))
    if of == "loss":
        ax.set_ylim(bottom=max(ax.get_ylim()[0], _bottom(curves)))
    elif _spike(curves):
        ax.set_ylim(top=_top(curves))
    plain_ticks(ax.yaxis)
    return ax


def reading(*groups: pd.DataFrame, shared: bool = False) -> str:
    """How `loss_bands` of these curves are to be read, for a caption.

    `shared` says that the axes of several groups have one scale of losses, as in `panels`.
    """
    seeds = max(of.seed.nunique() for of in groups)
    text = "a line for each method, of one seed"
    if seeds > 1:
        text = f"lines are medians over {seeds} seeds, bands the range"
        if any(len(_banded(of)) < of.method.nunique() for of in groups):
            text += " of Adam and of the default second phase"
    bottoms = [_bottom(of) for of in groups]
    if shared:
        bottoms = [min(bottoms)] * len(groups)
    lows = [of.loss.min() for of in groups]
    below = [loss for loss, bottom in zip(lows, bottoms, strict=True) if loss < bottom]
    if below:
        lowest = min(below)
        depth = f"$10^{{{np.floor(np.log10(lowest)):.0f}}}$" if lowest > 0 else "0"
        text += f"; what leaves the axis at the bottom goes on, down to about {depth}"
    if spikes := list(filter(None, map(_spike, groups))):
        text += f"; a validation loss that leaves the axis at the top goes up to {max(spikes):.2g}"
    return text


def _banded(curves: pd.DataFrame) -> list[str]:
    names = curves.method.unique().tolist()
    return [name for name in names if len(names) <= _FEW or name in _BANDED]


def _bottom(curves: pd.DataFrame) -> float:
    ends = curves.groupby(["method", "seed"]).loss.min().groupby("method").median()
    return max(_BELOW * ends.min(), DEEPEST * curves.loss.max())


def _top(curves: pd.DataFrame) -> float:
    """Where the axis of validation losses ends, a little above nearly all of them."""
    low, high = curves.validation_loss.quantile([0, _NEARLY_ALL])
    return float(high * (high / low) ** 0.1)


def _spike(curves: pd.DataFrame) -> float | None:
    """The largest validation loss, where it would press most of the others together."""
    low, high, most = np.log(curves.validation_loss.quantile([0, _NEARLY_ALL, 1]))
    return float(np.exp(most)) if most - high > 0.5 * (high - low) else None


def losses(curves: pd.DataFrame) -> Figure:
    """Draw `loss_bands` over passes on the left and over seconds on the right.

    Training losses are on top, validation losses below, where there are any.
    """
    seen = [of for of in LABELS if curves[of].notna().any()]
    size = WIDE, 1.2 + 3.4 * len(seen)
    fig, axes = plt.subplots(len(seen), 2, figsize=size, sharex="col", sharey="row", squeeze=False)
    for row, of in zip(axes, seen, strict=True):
        for ax, cost in zip(row, COSTS, strict=True):
            loss_bands(ax, curves, cost, of).label_outer()
        row[0].set_ylabel(LABELS[of])
    legend_below(fig, curves.method.unique())
    return fig


def panels(axes: np.ndarray, curves: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Draw `loss_bands` for each title on axes [rows, columns]; spare axes are hidden.

    Axes that share their losses hold the lowest of all.
    """
    for ax, (title, of) in zip(axes.flat, curves.items(), strict=False):
        loss_bands(ax, of).set_title(title)
    shared = axes.flat[0].get_shared_y_axes()
    if all(shared.joined(axes.flat[0], ax) for ax in axes.flat):
        axes.flat[0].set_ylim(bottom=min(map(_bottom, curves.values())))
        plain_ticks(axes.flat[0].yaxis)
    for ax in axes.flat[len(curves) :]:
        ax.set_axis_off()
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    for ax in axes[:, 0]:
        ax.set_ylabel(LABELS["loss"])
    methods = dict.fromkeys(name for of in curves.values() for name in of.method)
    legend_below(axes.flat[0].figure, list(methods))
    return axes


def legend_below(figure: Figure, methods: Sequence[str]) -> None:
    """One legend for all axes of a figure, below them."""
    handles = [Line2D([], [], **_look(name)) for name in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(methods)))


def profile(ax: Axes, shares: pd.DataFrame) -> Axes:
    """Draw what `profiles.performance_profile` found: the shares of settings solved, over τ."""
    for method in shares:
        ax.step(shares.index, shares[method], where="post", **_look(method))
    ax.set(xscale="log", ylim=(-0.02, 1.03), xlim=(shares.index.min(), shares.index.max()))
    ax.set(xlabel="factor τ of the fewest passes", ylabel="share of settings solved")
    plain_ticks(ax.xaxis)
    return ax


def loss_ratios(ax: Axes, found: pd.DataFrame) -> Axes:
    """Draw ratios of losses, a row for each method: a mark for each seed, a line at their median.

    `found` has columns `method`, drawn in the order they come in, from top to bottom, and
    `loss_ratio`; a ratio below 1e-9 is drawn there. The axis is logarithmic, with a line at 1.
    Marks are blue where the median is below it, else red.
    """
    names = list(dict.fromkeys(found.method))
    ax.axvline(1, color=GREY, linewidth=0.8)
    for row, name in enumerate(names):
        values = found.loss_ratio[found.method == name].clip(lower=LOWEST)
        median = values.median()
        color = BLUE if median < 1 else VERMILION
        ax.plot([median] * 2, [row - 0.35, row + 0.35], "-", color="black", linewidth=1.5)
        # none above another
        rows = row + _SPREAD * (np.arange(len(values)) - (len(values) - 1) / 2)
        ax.plot(values, rows, "o", color=color, markersize=6)
    ax.set(xscale="log", ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    plain_ticks(ax.xaxis)
    return ax


def payoff_map(ratios: pd.DataFrame) -> Figure:
    """Draw the table of `twophase.experiments.payoff_map.ratios` as cells, blue where it pays.

    Ratios are above 0, red above 1; inf is a miss, NaN was not run. The index has pairs of K/B and
    swap epoch, the columns are passes of Adam.
    """
    figure, ax = plt.subplots(figsize=(WIDE, 1.4 + 0.36 * len(ratios)))
    values = ratios.to_numpy(float)
    with np.errstate(divide="ignore"):
        levels = np.log10(np.clip(values, 1 / _DARKEST, _DARKEST))
    limit = np.log10(_DARKEST)
    norm = TwoSlopeNorm(0, -limit, limit)
    image = ax.imshow(levels, cmap="RdBu_r", norm=norm, aspect="auto", zorder=0)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if abs(levels[row, column]) > _DARK * limit else "black"
        ax.text(column, row, cell_text(value), ha="center", va="center", color=color, fontsize=10)
    ax.set_xticks(range(len(ratios.columns)), map(str, ratios.columns))
    names = [f"K/B = {steps}, swap after {swap} epochs" for steps, swap in ratios.index]
    ax.set_yticks(range(len(ratios)), names)
    steps = ratios.index.get_level_values(0)
    for row in np.flatnonzero(steps[1:] != steps[:-1]):
        ax.axhline(row + 0.5, color="white", linewidth=6)
    ax.set_xlabel("target: Adam's loss after so many passes since the swap")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, pad=0.01, ticks=np.log10(_LEVELS))
    bar.set_ticklabels([_level(level) for level in _LEVELS])
    bar.set_label("passes / Adam's")
    return figure


def _level(ratio: float) -> str:
    """What a tick of the colour bar says; the colours of its ends are those of all beyond, too."""
    if ratio in (_LEVELS[0], _LEVELS[-1]):
        return f"{'≤' if ratio < 1 else '≥'} {ratio:g}"
    return f"{ratio:g}"


def cell_text(value: float) -> str:
    """A ratio as the map shows it; "missed" for inf, nothing for NaN."""
    if np.isnan(value):
        return ""
    return "missed" if np.isinf(value) else ratio_text(value)


def _look(method: str) -> dict[str, object]:
    return {"label": METHODS[method].label, "linewidth": 1.6} | STYLES[method]
