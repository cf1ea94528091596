"""Figures of the toys: profiles over one parameter, and descent paths over two and more."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from twophase.figures.style import BLUE, COLORS, CONVEX_SHADE, GREY, MARKERS, VERMILION, mark
from twophase.problems.landscape import FlowPath, Profile, least_eigenvalue
from twophase.problems.toys import Loss


def convexity_curve(
    ax: Axes, x: Tensor, y: Tensor, convex: Tensor, color: str, marker: str = "", label: str = ""
) -> Axes:
    """Draw a curve: its convex parts as a thick solid line, the others thin and dashed.

    `x`, `y` and `convex` (bool) have shape [n]. A `marker` is set at a few points, to tell curves
    apart without colour; `convexity_legend` explains the line styles.
    """
    x, y = np.asarray(x), np.asarray(y)
    first = 0
    for inside, group in groupby(np.asarray(convex).tolist()):
        last = first + len(list(group))
        # one point more, so that neighbouring parts touch
        ax.plot(x[first : last + 1], y[first : last + 1], color=color, **_line(inside))
        first = last
    spacing = {"marker": marker, "markersize": 6, "markevery": 0.1}
    ax.plot(x, y, linestyle="none", color=color, label=label, **spacing)
    return ax


def convexity_legend(ax: Axes, **kwargs) -> Axes:
    """Add an `Axes.legend`: the curves of `convexity_curve`, and what the line styles mean."""
    curves, labels = ax.get_legend_handles_labels()
    styles = [Line2D([], [], color="black", **_line(inside)) for inside in (True, False)]
    ax.legend([*curves, *styles], [*labels, "convex", "not convex"], **kwargs)
    return ax


def profile_losses(ax: Axes, profiles: Sequence[Profile], labels: Sequence[str]) -> Axes:
    """Draw at most seven losses over one parameter, their convex parts and minima (Figure 1)."""
    for profile, label, color, marker in zip(profiles, labels, COLORS, MARKERS, strict=False):
        convexity_curve(ax, profile.x, profile.loss, profile.convex, color, marker, label)
    _minima(ax, profiles, label="minimum")
    ax.set(xlabel="scaling parameter $p$", ylabel="loss $L(p)$")
    return ax


def profile_grad_norms(ax: Axes, branches: Sequence[Profile], labels: Sequence[str]) -> Axes:
    """Draw the gradient norm over the loss along at most seven `Profile.branch`es (Figure 2)."""
    for branch, label, color, marker in zip(branches, labels, COLORS, MARKERS, strict=False):
        convexity_curve(ax, branch.loss, branch.grad_norm, branch.convex, color, marker, label)
    ax.set(xlabel="loss $L$ (descent: right to left)", ylabel="gradient norm $|dL/dp|$")
    return ax


def profile_regions(ax: Axes, profile: Profile) -> Axes:
    """Draw one loss over x, its convex regions shaded and its minima marked (Figure 4)."""
    for index, (lower, upper) in enumerate(profile.convex_regions):
        label = "convex region" if index == 0 else None
        ax.axvspan(lower, upper, facecolor=CONVEX_SHADE, edgecolor=BLUE, label=label)
    ax.plot(profile.x, profile.loss, color="black", linestyle="-", label="loss")
    _minima(ax, [profile], label="local minimum")
    ax.set(xlabel="parameter $x$", ylabel="loss $L(x)$")
    return ax


def level_curves(
    ax: Axes, loss: Loss, half_width: float, levels: Sequence[float], points: int = 201
) -> Axes:
    """Draw level curves of a loss over two parameters around the origin; shade where it is convex.

    `levels` are losses, ascending; evenly spaced ones show the gradient norm as density.
    """
    ticks = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    # the first factor of the product is the vertical axis of a contour plot's array
    across = grid.flip(1)
    curvature = least_eigenvalue(loss, across).reshape(points, points).numpy()
    losses = loss(across).reshape(points, points).numpy()
    if curvature.max() > 0:
        ax.contourf(ticks, ticks, curvature, levels=[0, curvature.max()], colors=[CONVEX_SHADE])
    ax.contour(ticks, ticks, losses, levels=levels, colors=GREY, linewidths=0.8)
    ax.set(xlabel="parameter $w_1$", ylabel="parameter $w_2$", aspect="equal")
    ax.locator_params(nbins=5)
    return ax


def flow_path(ax: Axes, path: FlowPath) -> Axes:
    """Draw a descent path over two parameters, with the points that `flow_grad_norm` marks, too."""
    w1, w2 = path.points.T
    convexity_curve(ax, w1, w2, path.convex, VERMILION)
    return _milestones(ax, path, w1, w2)


def flow_grad_norm(ax: Axes, path: FlowPath) -> Axes:
    """Draw the gradient norm, from 0, along a descent path over the length of the path."""
    convexity_curve(ax, path.length, path.grad_norm, path.convex, VERMILION)
    _milestones(ax, path, path.length, path.grad_norm)
    ax.set(xlabel="length of the path from its start", ylabel=r"gradient norm $\|g\|$")
    ax.set_ylim(bottom=0)
    return ax


def flow_curvatures(ax: Axes, path: FlowPath) -> Axes:
    """Draw the curvature along the gradient and the Hessian's least eigenvalue along a path.

    The first is minus the slope of `flow_grad_norm`; the loss is convex where the second is > 0.
    """
    ax.axhline(0, color=GREY, linestyle="-", linewidth=0.8)
    along, least = path.curvature_along_gradient, path.least_eigenvalue
    ax.plot(path.length, along, color=BLUE, linestyle="-", label="along the gradient")
    ax.plot(path.length, least, color=VERMILION, linestyle="--", label="least eigenvalue")
    ax.set(xlabel="length of the path from its start", ylabel="curvature")
    return ax


def _line(convex: bool) -> dict[str, object]:
    return {"linestyle": "-", "linewidth": 2.8} if convex else {"linestyle": "--", "linewidth": 1.3}


def _minima(ax: Axes, profiles: Sequence[Profile], label: str) -> None:
    points = [(at, np.interp(at, p.x, p.loss)) for p in profiles for at in p.minima]
    if points:
        mark(ax, *zip(*points, strict=True), "*", label, size=11)


def _milestones(ax: Axes, path: FlowPath, x: Tensor, y: Tensor) -> Axes:
    for label, index, marker, face, size in (
        ("start", 0, "o", "white", 8),
        ("largest gradient norm", path.peak, "D", "white", 8),
        ("entry into the convex region", path.convex_entry, "s", "black", 7),
        ("end, near the minimum", len(x) - 1, "*", "white", 13),
    ):
        # a path that ends before the convex region has no entry
        if index < len(x):
            mark(ax, x[index], y[index], marker, label, face, size)
    return ax
