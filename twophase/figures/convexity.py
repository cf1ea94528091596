"""Figures of the convexity audit: eigenvalues, shares and curvatures along a trajectory."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from twophase.figures.style import BLUE, COLORS, CONVEX_SHADE, GREY, MARKERS, VERMILION

# What is not negative has no place on a logarithmic axis: it is drawn here, at the bottom.
FLOOR = 1e-6


def negative_ratio(
    ax: Axes, audits: pd.DataFrame, events: Mapping[str, int | None], level: float = 1e-2
) -> Axes:
    """Draw how negative the smallest eigenvalue is over the epochs, relative to the largest one.

    −λ_min / max(|λ_min|, |λ_max|) at Adam's audited epochs, with a bar up to what its error bound
    leaves possible, and after CG; the shade below `level` is where the loss counts as convex.

    Args:
        ax: axes to draw on; both become logarithmic.
        audits: of one trajectory; see `twophase.experiments.convexity_audit.audit_recording`.
        events: epochs to mark by name, such as the peak of the norm; None: not drawn.
        level: see `twophase.experiments.convexity_audit.clearly_negative`.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> columns = {"phase": "adam", "epoch": [1, 2], "iteration": 0, "smallest": [-0.5, -1e-3]}
    >>> audits = pd.DataFrame(columns | {"smallest_error": 1e-4, "largest": 1.0})
    >>> ax = negative_ratio(Figure().subplots(), audits, {"peak of the norm": 2})
    >>> ax.lines[0].get_ydata().tolist()
    [0.5, 0.001]
    """
    styles = {"adam": (BLUE, "o", "-", "under Adam"), "cg": (VERMILION, "s", "none", "after CG")}
    for phase, (color, marker, dash, label) in styles.items():
        path = audits[audits.phase == phase].sort_values("epoch")
        scale = path[["smallest", "largest"]].abs().max(axis=1)
        ratio = (-path.smallest / scale).clip(lower=FLOOR)
        highest = ((path.smallest_error - path.smallest) / scale).clip(lower=FLOOR)
        epochs = path.epoch + path.iteration
        ax.plot(epochs, ratio, color=color, marker=marker, linestyle=dash, label=label)
        ax.vlines(epochs, ratio, np.maximum(ratio, highest), color=color, linewidth=1)
    ax.axhspan(FLOOR / 2, level, color=CONVEX_SHADE, zorder=0, label="not clearly negative")
    for index, (name, epoch) in enumerate(events.items()):
        if epoch is None:
            continue
        color, marker = ["black", *COLORS[2:]][index], ["x", *MARKERS[2:]][index]
        ax.axvline(epoch, color=color, linestyle=":", linewidth=1)
        where = {"transform": ax.get_xaxis_transform(), "linestyle": "none"}
        ax.plot([epoch], [0.93], color=color, marker=marker, label=name, **where)
    ax.set(xscale="log", yscale="log", ylim=(FLOOR / 2, 2))
    return ax


def curvatures_along(ax: Axes, audits: pd.DataFrame) -> Axes:
    """Draw the curvature along Adam's and CG's steps in units of the largest eigenvalue.

    Args:
        ax: axes to draw on; the curvature's axis is linear near 0 and logarithmic beyond.
        audits: of one trajectory; columns epoch, phase, largest, along_adam and along_cg.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> columns = {"phase": "adam", "epoch": [1, 2], "largest": 2.0, "along_adam": [1.0, -0.5]}
    >>> ax = curvatures_along(Figure().subplots(), pd.DataFrame(columns | {"along_cg": 0.2}))
    >>> ax.lines[0].get_ydata().tolist()
    [0.5, -0.25]
    """
    path = audits[audits.phase == "adam"].sort_values("epoch")
    for name, color, marker, label in (
        ("along_adam", BLUE, "o", "along an epoch of Adam"),
        ("along_cg", VERMILION, "s", "along CG's third step"),
    ):
        ratio = path[name] / path.largest
        ax.plot(path.epoch, ratio, color=color, marker=marker, label=label, markersize=5)
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle="-")
    ax.set(xscale="log", ylim=(-1.2, 1.2))
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.set_yticks([-1, -0.01, 0, 0.01, 1], ["−1", "−0.01", "0", "0.01", "1"])
    return ax


def spectrum_over_epochs(ax: Axes, spectra: Mapping[int, np.ndarray]) -> Axes:
    """Draw all eigenvalues of a Hessian over the epochs, negative ones in another colour.

    Args:
        ax: axes to draw on; the eigenvalues' axis is linear near 0 and logarithmic beyond.
        spectra: for each epoch the eigenvalues, shape [P], in losses per squared unit of parameter.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> ax = spectrum_over_epochs(Figure().subplots(), {1: np.array([-1.0, 2.0])})
    >>> [collection.get_label() for collection in ax.collections]
    ['positive', 'negative']
    """
    epochs = np.repeat(list(spectra), [len(values) for values in spectra.values()])
    values = np.concatenate(list(spectra.values()))
    for chosen, color, marker, label in (
        (values >= 0, BLUE, "o", "positive"),
        (values < 0, VERMILION, "v", "negative"),
    ):
        ax.scatter(epochs[chosen], values[chosen], s=6, color=color, marker=marker, label=label)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_yscale("symlog", linthresh=1e-4)
    return ax
