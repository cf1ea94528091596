"""Figures of optimization runs: every function draws on the axes it is given and returns them."""

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from twophase.experiments.files import write_atomically
from twophase.figures.style import BLUE, COLORS, DASHES, GREY, VERMILION, WIDE, use_style
from twophase.line_search.golden_section import Trial

PHASE_STYLES = {
    "adam": {"color": BLUE, "linestyle": "-"},
    "cg": {"color": VERMILION, "linestyle": "--"},
}
PHASE_NAMES = {"adam": "Adam", "cg": "CG"}


def grad_norm_over_loss(ax: Axes, history: pd.DataFrame) -> Axes:
    """Draw the gradient norm over the training loss, phase by phase (the paper's Figure 5).

    Training runs from right to left. The swap is marked with a diamond, the start with a circle.

    Args:
        ax: axes to draw on.
        history: columns phase ("adam" or "cg"), train_loss, grad_norm; a row per epoch.

    Returns:
        `ax`; both quantities start at 0.

    >>> from matplotlib.figure import Figure
    >>> history = pd.DataFrame(
    ...     {"phase": ["adam", "cg"], "train_loss": [0.2, 0.1], "grad_norm": [1.0, 0.5]}
    ... )
    >>> grad_norm_over_loss(Figure().subplots(), history).get_legend_handles_labels()[1]
    ['Adam, 1 epochs', 'CG, 1 epochs', 'swap', 'after epoch 1']
    """
    for phase, rows in _phases(history):
        epochs = int((history.phase == phase).sum())
        label = f"{PHASE_NAMES[phase]}, {epochs} epochs"
        ax.plot(rows.train_loss, rows.grad_norm, label=label, lw=1.5, **PHASE_STYLES[phase])
        if rows.phase.iloc[0] != phase:
            _mark(ax, rows.iloc[0], "D", "swap")
    _mark(ax, history.iloc[0], "o", "after epoch 1")
    ax.set(xlabel="training loss (training: right to left)", ylabel=r"gradient norm $\|g\|$")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    return ax


def paper_axis(epochs: pd.Series, parameters: int, examples: int) -> pd.Series:
    """The abscissa of the paper's Figure 6: epochs × million parameters × training examples.

    Args:
        epochs: numbers of epochs, shape [n].
        parameters: P, of the network.
        examples: K, of the training set.

    Returns:
        epochs · P / 10⁶ · K, shape [n].

    >>> paper_axis(pd.Series([1, 700]), parameters=162250, examples=50000).tolist()
    [8112.5, 5678750.0]
    """
    return epochs * (parameters / 1e6 * examples)


def loss_curves(
    ax: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str
) -> Axes:
    """Draw training losses on a logarithmic axis, a line for each label.

    Args:
        ax: axes to draw on.
        curves: for each label the abscissae and the losses, each of shape [n].
        xlabel: with its unit.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> ax = loss_curves(Figure().subplots(), {"Adam": ([1, 2], [0.1, 0.01])}, "epoch")
    >>> ax.get_xlabel(), ax.get_yscale()
    ('epoch', 'log')
    """
    return convergence(ax, curves, xlabel, "training loss (mean squared error)")


def loss_over_costs(
    axes: Sequence[Axes],
    histories: Mapping[str, pd.DataFrame],
    parts: Mapping[str, tuple[str, slice]],
    parameters: int,
    examples: int,
) -> Sequence[Axes]:
    """Draw losses over the paper's axis, over passes and over seconds (the paper's Figure 6).

    Args:
        axes: three, the legend goes above the first.
        histories: columns epoch, passes, seconds, train_loss; a row per epoch. Passes and seconds
            are those of the epoch; they are summed here.
        parts: for each line its history and its rows.
        parameters, examples: of network and training set, for the paper's axis.

    Returns:
        `axes`.

    Raises:
        ValueError: `axes` are not three.

    >>> from matplotlib.figure import Figure
    >>> columns = {"epoch": [1, 2], "passes": 3, "seconds": 0.5, "train_loss": [0.1, 0.01]}
    >>> parts = {"Adam": ("adam", slice(None))}
    >>> axes = Figure().subplots(1, 3)
    >>> axes = loss_over_costs(axes, {"adam": pd.DataFrame(columns)}, parts, 162250, 1437)
    >>> axes[1].get_xlabel(), axes[1].lines[0].get_xdata().tolist()
    ('passes over the training set', [3, 6])
    """
    axis_of: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
        "epochs × million parameters × examples": lambda h: paper_axis(
            h.epoch, parameters, examples
        ),
        "passes over the training set": lambda h: h.passes.cumsum(),
        "seconds": lambda h: h.seconds.cumsum(),
    }
    for ax, (xlabel, x_of) in zip(axes, axis_of.items(), strict=True):
        curves = {
            label: (x_of(histories[name])[rows], histories[name].train_loss[rows])
            for label, (name, rows) in parts.items()
        }
        loss_curves(ax, curves, xlabel)
        ax.set_xlim(left=0)
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=len(parts))
    return axes


def convergence(
    ax: Axes,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
) -> Axes:
    """Draw how a positive quantity goes to zero, on a logarithmic axis, a line for each label.

    Args:
        ax: axes to draw on.
        curves: for each label the abscissae and the values, each of shape [n]; values that are
            not positive are left out.
        xlabel, ylabel: with their units.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> curves = {"CG": ([0, 1, 2], [1.0, 0.1, 0.0])}
    >>> ax = convergence(Figure().subplots(), curves, "iteration", "error")
    >>> ax.get_ylabel(), ax.get_yscale(), ax.lines[0].get_ydata().tolist()
    ('error', 'log', [1.0, 0.1, nan])
    """
    for index, (label, (x, values)) in enumerate(curves.items()):
        positive = np.where(np.asarray(values) > 0, values, np.nan)
        style = {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}
        ax.plot(x, positive, label=label, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
    return ax


def line_search_trials(
    ax: Axes,
    loss: Callable[[torch.Tensor], torch.Tensor],
    trials: Sequence[Trial],
    numbered: Collection[int],
) -> Axes:
    """Draw the loss along a line above the lowest trial, and the trials of a search.

    Args:
        ax: axes to draw on.
        loss: from steps [n] to losses [n].
        trials: as they were tried.
        numbered: the trials, from 1, that get their number beside them; not all would fit.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> trials = [Trial(0.5, 0.25), Trial(2.0, 1.0), Trial(1.0, 0.0)]
    >>> ax = line_search_trials(Figure().subplots(), lambda t: (t - 1) ** 2, trials, {1, 3})
    >>> [text.get_text() for text in ax.texts]
    ['1', '3']
    """
    steps = np.array([trial.step for trial in trials])
    losses = np.array([trial.value for trial in trials])
    lowest = losses.min()
    grid = torch.linspace(0, 1.05 * steps.max(), 1000, dtype=torch.float64)
    ax.plot(grid, loss(grid) - lowest, color=GREY, linestyle="-", label="loss along the line")
    ax.plot(
        steps, losses - lowest, "o", color=VERMILION, ms=5, ls="none", label="trial: a forward pass"
    )
    for number, (step, value) in enumerate(zip(steps, losses - lowest, strict=True), 1):
        if number in numbered:
            # alternating heights keep the numbers of neighbours apart
            offset = (0, 8 + 12 * (number % 3))
            ax.annotate(str(number), (step, value), offset, textcoords="offset points", ha="center")
    ax.set(xlabel="step $t$ along the direction", ylabel="loss above the lowest trial")
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    return ax


def grad_norm_over_epochs(
    ax: Axes, history: pd.DataFrame, factor: float, swap_epoch: int | None
) -> Axes:
    """Draw the gradient norm over the epochs with the level at which Algorithm 1 switches.

    Args:
        ax: axes to draw on.
        history: columns epoch, phase ("adam" or "cg"), grad_norm; a row per epoch.
        factor: of the peak so far, the paper's gn_fact.
        swap_epoch: the last epoch of Adam; None: no line.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> history = pd.DataFrame(
    ...     {"epoch": [1, 2, 3], "phase": ["adam", "adam", "cg"], "grad_norm": [2.0, 1.0, 0.5]}
    ... )
    >>> ax = grad_norm_over_epochs(Figure().subplots(), history, factor=0.9, swap_epoch=2)
    >>> ax.get_legend_handles_labels()[1]
    ['Adam', 'CG', '0.9 × the peak so far', 'swap']
    """
    for phase, rows in _phases(history):
        style = {"marker": "o", "markersize": 3} | PHASE_STYLES[phase]
        ax.plot(rows.epoch, rows.grad_norm, label=PHASE_NAMES[phase], **style)
    level = factor * history.grad_norm.cummax()
    adam = history.phase == "adam"
    ax.plot(
        history.epoch[adam],
        level[adam],
        color=GREY,
        linestyle=":",
        label=f"{factor:g} × the peak so far",
    )
    if swap_epoch is not None:
        ax.axvline(swap_epoch, color="black", linestyle="-", lw=0.8, label="swap")
    ax.set(xlabel="epoch", ylabel=r"gradient norm $\|g\|$")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def advantages(ax: Axes, frame: pd.DataFrame) -> Axes:
    """Draw, row by row, how many times lower the loss of two-phase training is than Adam's.

    Args:
        ax: axes to draw on.
        frame: a row for each data set and network (the index); columns paper and own, the ratios
            of Adam's loss to that of Adam, then CG; missing where not run.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> rows = [("mnist", "vit-mlp"), ("cifar10", "vit-mlp")]
    >>> frame = pd.DataFrame({"paper": [2.0, 1.5], "own": [1.2, np.nan]}, index=rows)
    >>> ax = advantages(Figure().subplots(), frame)
    >>> [text.get_text() for text in ax.texts], ax.get_yticklabels()[0].get_text()
    (['not run'], 'mnist  vit-mlp')
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
    for row in rows[frame.own.isna()]:
        ax.annotate(
            "not run",
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=GREY,
            fontsize=10,
        )
    ax.set_yticks(rows, [f"{dataset}  {model}" for dataset, model in frame.index])
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="training loss of Adam / training loss of Adam, then CG")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(loc="upper center", bbox_to_anchor=(0.35, -0.6 / (0.33 * len(frame))), ncols=3)
    return ax


def save_grad_norm_over_loss(history: pd.DataFrame, summary: Mapping, out: Path) -> None:
    """Save `grad_norm_over_loss` of a run as a PNG, titled with its data set, model and seed.

    Args:
        history, summary: from `twophase.experiments.runs.read`.
        out: the file, replaced whole; 150 dots per inch.

    Raises:
        OSError: the file cannot be written; the old one is intact.

    >>> import tempfile
    >>> history = pd.DataFrame(
    ...     {"phase": ["adam", "cg"], "train_loss": [0.2, 0.1], "grad_norm": [1.0, 0.5]}
    ... )
    >>> summary = {"dataset": "digits", "model": "vit-mlp", "seed": 0}
    >>> with tempfile.TemporaryDirectory() as folder, plt.rc_context():
    ...     out = Path(folder) / "figure.png"
    ...     save_grad_norm_over_loss(history, summary, out)
    ...     out.read_bytes()[1:4]
    b'PNG'
    """
    use_style()
    figure, ax = plt.subplots(figsize=(WIDE, 4.6))
    grad_norm_over_loss(ax, history)
    ax.set_title("{dataset}, {model}, seed {seed}".format(**summary))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    plt.close(figure)
    write_atomically(out, content.getvalue())


def _phases(history: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each phase and its rows, with the last row of the phase before, so that lines touch."""
    for phase, rows in history.groupby("phase", sort=False):
        yield phase, history.loc[max(rows.index[0] - 1, history.index[0]) : rows.index[-1]]


def _mark(ax: Axes, record: pd.Series, marker: str, label: str) -> None:
    ax.plot(
        record.train_loss,
        record.grad_norm,
        marker,
        ms=8,
        ls="none",
        zorder=5,
        label=label,
        markerfacecolor="white",
        markeredgecolor="black",
        clip_on=False,
    )
