"""Figures of optimization runs: losses, gradient norms, trials of a line search, Table 1."""

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from twophase.examples import Dataset
from twophase.experiments.ablation import LOSSES
from twophase.experiments.files import write_atomically
from twophase.figures import style
from twophase.figures.style import (
    BLUE,
    COLORS,
    GREY,
    VERMILION,
    WIDE,
    line_style,
    mark,
    plain_ticks,
)
from twophase.line_search.line import Trial
from twophase.record import ADAM, SECOND, TRIAL

# of the range of the numbered steps: closer numbers of trials would overlap
_NEAR = 0.06
# of the ticks of losses that fall by less than two decades, so that the lowest has one near it
_DIGITS = (1, 2, 3, 5, 7)
PHASE_STYLES = {
    ADAM: {"color": BLUE, "linestyle": "-"},
    TRIAL: {"color": COLORS[2], "linestyle": ":"},
    SECOND: {"color": VERMILION, "linestyle": "--"},
}
# Adam, Adam then CG, Adam then the default, and CG: as in figures of comparisons
_OF_STRATEGIES = (COLORS[6], VERMILION, BLUE, COLORS[1])
PHASE_NAMES = {ADAM: "Adam", TRIAL: "trial", SECOND: "second phase"}


def grad_norm_over_loss(ax: Axes, history: pd.DataFrame) -> Axes:
    """Draw the gradient norm over the training loss, phase by phase (the paper's Figure 5).

    Training runs from right to left. A swap is marked with a diamond, the start with a circle.
    `history` has columns phase, train_loss and grad_norm, a row per epoch. The axis of the norm
    starts at 0, and so does that of a loss that has come down to half of its largest.
    """
    for phase, rows, first in _stretches(history):
        label = f"{PHASE_NAMES[phase]}, {(history.phase == phase).sum()} epochs" if first else None
        ax.plot(rows.train_loss, rows.grad_norm, label=label, lw=1.5, **PHASE_STYLES[phase])
        if rows.phase.iloc[0] != phase:
            swap = rows.iloc[0]
            mark(ax, swap.train_loss, swap.grad_norm, "D", "swap" if first else None)
    start = history.iloc[0]
    mark(ax, start.train_loss, start.grad_norm, "o", "after epoch 1")
    ax.set(xlabel="training loss (training: right to left)", ylabel=r"gradient norm $\|g\|$")
    if 2 * history.train_loss.min() < history.train_loss.max():
        ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.locator_params(axis="x", nbins=6)
    return ax


def grad_norm_over_epochs(
    ax: Axes, history: pd.DataFrame, factor: float, swap_epoch: int | None
) -> Axes:
    """Draw the gradient norm over the epochs with the level at which Algorithm 1 switches.

    `history` has columns epoch, phase and grad_norm, a row per epoch; the level is `factor` (the
    paper's gn_fact) of the peak so far, in the legend from three epochs on; `swap_epoch` is Adam's
    last epoch (None: no line).
    """
    for phase, rows, first in _stretches(history):
        label = PHASE_NAMES[phase] if first else None
        ax.plot(rows.epoch, rows.grad_norm, "o", ms=3, label=label, **PHASE_STYLES[phase])
    level = (factor * history.grad_norm.cummax()).where(history.phase == ADAM)
    # the line of one or two epochs cannot be seen
    label = f"{factor:g} × the peak so far" if level.count() > 2 else None
    ax.plot(history.epoch, level, color=GREY, linestyle=":", label=label)
    if swap_epoch is not None:
        ax.axvline(swap_epoch, color="black", linestyle="-", lw=0.8, label="swap")
    ax.set(xlabel="epoch", ylabel=r"gradient norm $\|g\|$")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def convergence(
    ax: Axes,
    curves: Mapping[str, tuple[Sequence, Sequence]],
    xlabel: str,
    ylabel: str,
    colors: Mapping[str, str] | None = None,
) -> Axes:
    """Draw how positive values go to zero, on a logarithmic axis, a line for each label.

    Each has a colour of its own, if not one of `colors`.
    """
    for index, (label, (x, values)) in enumerate(curves.items()):
        positive = np.where(np.asarray(values) > 0, values, np.nan)
        color = {"color": colors[label]} if colors else {}
        ax.plot(x, positive, label=label, **line_style(index) | color)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
    return ax


def loss_over_costs(
    axes: Sequence[Axes],
    histories: Mapping[str, pd.DataFrame],
    parts: Mapping[str, tuple[str, slice]],
    parameters: int,
    examples: int,
    loss: str = "mean squared error",
) -> Sequence[Axes]:
    """Draw losses over the paper's axis, over passes and over seconds (the paper's Figure 6).

    The paper's axis is epochs × million parameters of the network × examples of the training set.
    `axes` are three (else `ValueError`), the legend goes above the first. `histories` have a row
    per epoch, with passes and seconds of that epoch alone; `parts` names for each line its history,
    which has one colour, and its rows.
    """
    axis_of: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
        "epochs × million parameters × examples": lambda h: h.epoch * (parameters / 1e6 * examples),
        "passes over the training set": lambda h: h.passes.cumsum(),
        "seconds": lambda h: h.seconds.cumsum(),
    }
    own = dict(zip(histories, cycle(_OF_STRATEGIES), strict=False))
    colors = {label: own[name] for label, (name, _) in parts.items()}
    for ax, (xlabel, x_of) in zip(axes, axis_of.items(), strict=True):
        curves = {
            label: (x_of(histories[name])[rows], histories[name].train_loss[rows])
            for label, (name, rows) in parts.items()
        }
        convergence(ax, curves, xlabel, f"training loss ({loss})", colors).set_xlim(left=0)
        plain_ticks(ax.yaxis, _DIGITS)
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=len(parts))
    return axes


def losses_over_passes(axes: Sequence[Axes], histories: Mapping[str, pd.DataFrame]) -> None:
    """Draw training losses, and beside them validation losses, over passes; a line for each name.

    Histories have a row per epoch, with the passes of that epoch alone; of one with both phases the
    line begins with the last epoch of Adam. One phase alone is grey, without its first tenth.
    """
    for ax, (column, words) in zip(axes, LOSSES.items(), strict=True):
        for index, (name, history) in enumerate(histories.items()):
            adams = int((history.phase == ADAM).sum())
            both = 0 < adams < len(history)
            shown = history.index[adams - 1 if both else len(history) // 10 :]
            look = line_style(index) if both else {"color": GREY, "linewidth": 0.6, "zorder": 1}
            ax.plot(history.passes.cumsum()[shown], history[column][shown], label=name, **look)
        ylabel = f"{words} (mean squared error)"
        ax.set(xlabel="passes over the training set", ylabel=ylabel, yscale="log")
        plain_ticks(ax.yaxis, _DIGITS)


def first_images(axes: Sequence[Axes], data: Dataset) -> None:
    """Draw the first training images, stretched to 0..1, one in each of the axes with its label."""
    for ax, image, label in zip(axes, data.train.inputs, data.train.targets, strict=False):
        shades = image.mean(dim=0) if data.channels == 1 else image.permute(1, 2, 0)
        shades = (shades - shades.min()) / (shades.max() - shades.min())
        ax.imshow(shades.cpu().numpy(), cmap="gray_r")
        ax.set(title=f"{label}", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def line_search_trials(
    ax: Axes,
    loss: Callable[[torch.Tensor], torch.Tensor],
    trials: Sequence[Trial],
    numbered: Collection[int],
) -> Axes:
    """Draw the loss along a line above the lowest trial, and the trials of a search.

    `loss` maps steps [n] to losses [n]; `trials` are as they were tried, and those whose numbers,
    from 1, are in `numbered` get them beside them; not all would fit.
    """
    steps, losses = np.array([(trial.step, trial.value) for trial in trials]).T
    above = losses - losses.min()
    grid = torch.linspace(0, 1.05 * steps.max(), 1000, dtype=torch.float64)
    ax.plot(grid, loss(grid) - losses.min(), color=GREY, ls="-", label="loss along the line")
    ax.plot(steps, above, "o", color=VERMILION, ms=5, ls="none", label="trial: a forward pass")
    row, last, lowest = 0, -np.inf, steps[losses.argmin()]
    place = {"textcoords": "offset points", "ha": "center"}
    link = {"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkB": 4}
    shown = sorted((steps[n - 1], n) for n in numbered if n <= len(steps))
    for step, number in shown:
        # only what would overlap its neighbour goes higher
        row = row + 1 if step - last < _NEAR * (shown[-1][0] - shown[0][0]) else 0
        # to the side that leads away from the lowest trial, and off the curve
        last, side = step, np.sign(step - lowest)
        offset = (14 * side, 7 + 15 * row) if row else (9 * side, -11 if side else 7)
        at = step, above[number - 1]
        ax.annotate(str(number), at, offset, arrowprops=link if row else None, **place)
    ax.set(xlabel="step $t$ along the direction", ylabel="loss above the lowest trial")
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    return ax


def advantages(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Draw, row by row, how many times lower the loss of two-phase training is than Adam's.

    `frame` has an index of data set and network; columns paper and own, the ratios of Adam's loss
    to that of Adam and then the second phase; missing where not run.
    """
    rows = np.arange(len(frame))
    ax.axvline(1, color="black", linestyle="-", lw=1)
    ax.plot(frame.paper, rows, "D", ms=7, ls="none", mfc="white", mec="black", label="paper")
    for better, marker, color, label in (
        (True, "o", BLUE, "own: two-phase better"),
        (False, "X", VERMILION, "own: Adam better"),
    ):
        chosen = frame.own.notna() & ((frame.own > 1) == better)
        ax.plot(frame.own[chosen], rows[chosen], marker, ms=9, ls="none", color=color, label=label)
    margin = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    for row in rows[frame.own.isna()]:
        ax.annotate("not run", (1, row), (4, 0), va="center", color=GREY, fontsize=10, **margin)
    ax.set_yticks(rows, [f"{dataset}  {model}" for dataset, model in frame.index])
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="training loss of Adam / of Adam, then the second phase")
    plain_ticks(ax.xaxis)
    ax.legend(loc="upper center", bbox_to_anchor=(0.35, -0.6 / (0.33 * len(frame))), ncols=3)
    return ax


def save_grad_norm_over_loss(history: pd.DataFrame, summary: Mapping, out: Path) -> None:
    """Save `grad_norm_over_loss` of what `runs.read` returns as a PNG, which is replaced whole."""
    style.use_style()
    figure, ax = plt.subplots(figsize=(WIDE, 4.6))
    grad_norm_over_loss(ax, history)
    # summaries that were written before problems had names have a data set and a model
    problem = summary.get("problem") or "{dataset} {model}".format(**summary)
    ax.set_title(f"{problem}, seed {summary['seed']}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    plt.close(figure)
    write_atomically(out, content.getvalue())


def _stretches(history: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, bool]]:
    """Each stretch of a phase, its rows from the last one before on, whether it is the first."""
    seen = set()
    for _, rows in history.groupby((history.phase != history.phase.shift()).cumsum()):
        phase, start = rows.phase.iloc[0], max(rows.index[0] - 1, history.index[0])
        yield phase, history.loc[start : rows.index[-1]], phase not in seen
        seen.add(phase)


def over_passes(ax: Axes, histories: Mapping[str, pd.DataFrame]) -> Axes:
    """`convergence` of some named histories over passes.

    A triangle in the colour of its line is at each way back.
    """
    curves = {name: (h.passes.cumsum(), h.train_loss) for name, h in histories.items()}
    convergence(ax, curves, "passes over the training set", "training loss (MSE)")
    look = {"marker": "v", "linestyle": "none", "markeredgecolor": "black", "markersize": 8}
    for index, (name, (passes, losses)) in enumerate(curves.items()):
        back = histories[name].note.str.startswith("return")
        color = line_style(index)["color"]
        ax.plot(passes[back], losses[back], color=color, zorder=3, **look)
    ax.plot([], [], color="white", label="back to Adam", **look)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax
