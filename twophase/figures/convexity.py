"""Figures of the convexity audit: eigenvalues, shares and curvatures along a trajectory."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from twophase.figures.style import BLUE, CONVEX_SHADE, GREY, VERMILION, mark_epochs

# What is not negative has no place on a logarithmic axis: it is drawn here, at the bottom.
FLOOR = 1e-6


def negative_ratio(
    ax: Axes, audits: pd.DataFrame, events: Mapping[str, float | None], level: float = 1e-2
) -> Axes:
    """Draw how negative the smallest eigenvalue is over the epochs, relative to the largest one.

    −λ_min / max(|λ_min|, |λ_max|) at Adam's audited epochs, with a bar up to what its error bound
    leaves possible, and after iterations of CG. The shade below `level` is where the loss counts as
    convex; see `convexity_audit.clearly_negative`.

    `audits` are of one trajectory, from `convexity_audit.audit_recording`; `events` are epochs to
    mark by name, such as the peak of the norm (None: no mark).
    """
    for chosen, color, marker, dash, label in (
        (audits.iteration == 0, BLUE, "o", "-", "under Adam"),
        (audits.iteration > 0, VERMILION, "s", "none", "after CG"),
    ):
        path = audits[chosen].sort_values("epoch")
        scale = path[["smallest", "largest"]].abs().max(axis=1)
        ratio = (-path.smallest / scale).clip(lower=FLOOR)
        highest = ((path.smallest_error - path.smallest) / scale).clip(lower=FLOOR)
        epochs = path.epoch + path.iteration
        ax.plot(epochs, ratio, color=color, marker=marker, linestyle=dash, label=label)
        ax.vlines(epochs, ratio, np.maximum(ratio, highest), color=color, linewidth=1)
    ax.axhspan(FLOOR / 2, level, color=CONVEX_SHADE, zorder=0, label="not clearly negative")
    # below the curve, which falls
    mark_epochs(ax, events, lowest=0.06, spacing=0.08)
    ax.set(xscale="log", yscale="log", ylim=(FLOOR / 2, 2))
    return ax


def curvatures_along(ax: Axes, audits: pd.DataFrame) -> Axes:
    """Draw curvatures along Adam's and CG's steps of a trajectory, over the largest eigenvalue."""
    path = audits[audits.iteration == 0].sort_values("epoch")
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
    """Draw a Hessian's eigenvalues [P] (loss per squared unit of parameter) at some epochs."""
    epochs = np.repeat(list(spectra), [len(values) for values in spectra.values()])
    values = np.concatenate(list(spectra.values()))
    for chosen, color, marker, label in (
        (values >= 0, BLUE, "o", "positive"),
        (values < 0, VERMILION, "v", "negative"),
    ):
        ax.scatter(epochs[chosen], values[chosen], s=6, color=color, marker=marker, label=label)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_ylim(top=3 * values.max())
    return ax
