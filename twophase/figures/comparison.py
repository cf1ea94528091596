"""Figures of comparisons: losses against cost, performance profiles, the map of when CG pays."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter

from twophase.experiments.competitors import METHODS
from twophase.experiments.profiles import SETTING, loss_at, ratio_text
from twophase.figures.style import COLORS, GREY

BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE, BLACK = COLORS
# families share a colour, and differ by dash within
STYLES: dict[str, dict] = {
    "adam": {"color": BLACK, "linestyle": "-"},
    "adam-twice": {"color": BLACK, "linestyle": "-", "linewidth": 1.0},
    "adam-tuned": {"color": BLACK, "linestyle": "--"},
    "adam-cosine": {"color": BLACK, "linestyle": ":"},
    "sgd": {"color": GREY, "linestyle": "-."},
    "golden": {"color": VERMILION, "linestyle": "-"},
    "cg": {"color": VERMILION, "linestyle": "--"},
    "default": {"color": BLUE, "linestyle": "-", "linewidth": 2.6},
    "default-tuned": {"color": SKY, "linestyle": "--"},
    "torch-lbfgs": {"color": GREEN, "linestyle": "-"},
    "scipy-cg": {"color": PURPLE, "linestyle": "-"},
    "torchmin-cg": {"color": PURPLE, "linestyle": ":"},
}
# ratios beyond this factor either way have the darkest colour
_DARKEST = 10.0
# a cell's text is white where its colour is darker than this part of the way
_DARK = 0.6
_POINTS = 120
# Of the first loss: below this a curve tells nothing more, but would press the others together.
LOWEST = 1e-9


def loss_bands(ax: Axes, curves: pd.DataFrame, cost: str = "passes_spent") -> Axes:
    """Draw the lowest loss so far against cost: a line for each method, a band over its seeds.

    The line is the median over the seeds, the band reaches from the lowest to the highest.
    A method that gave up keeps the loss it had.

    Args:
        ax: axes to draw on; losses are on a logarithmic axis, which ends at 1e-9 of the first.
        curves: of one setting but for the seed, from `twophase.experiments.comparison`.
        cost: "passes_spent" or "seconds".

    Returns:
        `ax`, without a legend.

    >>> from matplotlib.figure import Figure
    >>> adam = pd.DataFrame({"method": "adam", "passes_spent": [0, 3, 6], "loss": [1.0, 0.5, 0.2]})
    >>> ax = loss_bands(Figure().subplots(), adam.assign(**dict.fromkeys(SETTING, 0)))
    >>> ax.get_xlabel(), ax.lines[0].get_ydata()[-1].item()
    ('passes since the prefix', 0.2)
    """
    for method, of in curves.groupby("method", sort=False):
        runs = [run for _, run in of.groupby(list(SETTING), dropna=False)]
        grid = np.linspace(0, max(run[cost].max() for run in runs), _POINTS)
        losses = np.array([[loss_at(run, budget, cost) for budget in grid] for run in runs])
        style = {"linewidth": 1.6} | STYLES[method]
        ax.plot(grid, np.median(losses, axis=0), label=METHODS[method].label, **style)
        ax.fill_between(
            grid, losses.min(axis=0), losses.max(axis=0), color=style["color"], alpha=0.12, lw=0
        )
    unit = "passes since the prefix" if cost == "passes_spent" else "seconds since the prefix"
    ax.set(yscale="log", xlabel=unit, xlim=(0, None))
    ax.set_ylim(bottom=max(ax.get_ylim()[0], LOWEST * curves.loss.max()))
    return ax


def legend(methods: Sequence[str]) -> list[Line2D]:
    """The lines of a legend for methods, in the styles of these figures.

    >>> [line.get_label() for line in legend(["adam"])]
    ['Adam, constant rate']
    """
    return [Line2D([], [], label=METHODS[name].label, **STYLES[name]) for name in methods]


def profile(ax: Axes, shares: pd.DataFrame) -> Axes:
    """Draw performance profiles: over τ, the share of settings solved within τ times the best.

    Args:
        ax: axes to draw on; τ is on a logarithmic axis.
        shares: from `twophase.experiments.profiles.performance_profile`.

    Returns:
        `ax`, without a legend.

    >>> from matplotlib.figure import Figure
    >>> shares = pd.DataFrame({"adam": [0.5, 1.0]}, index=[1.0, 4.0])
    >>> profile(Figure().subplots(), shares).get_xscale()
    'log'
    """
    for method in shares:
        ax.step(
            shares.index,
            shares[method],
            where="post",
            label=METHODS[method].label,
            **{"linewidth": 1.6} | STYLES[method],
        )
    ax.set(xscale="log", ylim=(-0.02, 1.03), xlim=(shares.index.min(), shares.index.max()))
    ax.set(xlabel="factor τ of the fewest passes", ylabel="share of settings solved")
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def loss_ratios(ax: Axes, found: pd.DataFrame) -> Axes:
    """Draw ratios of losses, a row for each method: a mark for each seed, a bar at their median.

    Args:
        ax: axes to draw on; ratios are on a logarithmic axis, with a line at 1.
        found: columns `method` and `loss_ratio`; methods in the order they come in, from top to
            bottom. Ratios below 1e-9 are drawn there.

    Returns:
        `ax`; its horizontal label is the caller's.

    >>> from matplotlib.figure import Figure
    >>> found = pd.DataFrame({"method": ["a", "a", "b"], "loss_ratio": [0.5, 2.0, 0.1]})
    >>> [text.get_text() for text in loss_ratios(Figure().subplots(), found).get_yticklabels()]
    ['a', 'b']
    """
    names = list(dict.fromkeys(found.method))
    ax.axvline(1, color=GREY, linewidth=0.8)
    for row, name in enumerate(names):
        values = found.loss_ratio[found.method == name].clip(lower=LOWEST)
        median = values.median()
        color = BLUE if median < 1 else VERMILION
        ax.plot(values, [row] * len(values), "o", color=color, alpha=0.6, markersize=6)
        ax.plot([median], [row], "|", color=color, markersize=18, markeredgewidth=2.5)
    ax.set(xscale="log", ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    return ax


def payoff_map(ax: Axes, ratios: pd.DataFrame) -> Axes:
    """Draw a table of ratios of costs as coloured cells, blue below 1 and red above.

    Args:
        ax: axes to draw on.
        ratios: above 0; inf is a miss, NaN was not run. Index and columns name the cells.

    Returns:
        `ax`; its labels are the caller's.

    >>> from matplotlib.figure import Figure
    >>> ratios = pd.DataFrame({100: [0.5, np.inf], 300: [0.2, np.nan]}, index=["a", "b"])
    >>> ax = payoff_map(Figure().subplots(), ratios)
    >>> [text.get_text() for text in ax.texts]
    ['0.50', '0.20', 'missed', '']
    """
    values = ratios.to_numpy(float)
    with np.errstate(divide="ignore"):
        levels = np.log10(np.clip(values, 1 / _DARKEST, _DARKEST))
    limit = np.log10(_DARKEST)
    ax.imshow(levels, cmap="RdBu_r", norm=TwoSlopeNorm(0, -limit, limit), aspect="auto", zorder=0)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if abs(levels[row, column]) > _DARK * limit else "black"
        ax.text(column, row, cell_text(value), ha="center", va="center", color=color, fontsize=10)
    ax.set_xticks(range(len(ratios.columns)), [str(name) for name in ratios.columns])
    ax.set_yticks(range(len(ratios.index)), [str(name) for name in ratios.index])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


def cell_text(value: float) -> str:
    """A ratio as the map shows it; "missed" for inf, nothing for NaN.

    >>> cell_text(0.5), cell_text(0.01)
    ('0.50', '0.01')
    """
    if np.isnan(value):
        return ""
    return "missed" if np.isinf(value) else ratio_text(value)
