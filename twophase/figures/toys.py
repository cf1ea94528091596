"""Figures of the toys: every function draws on the axes that it is given and returns them."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from twophase.figures.style import BLUE, COLORS, CONVEX_SHADE, GREY, MARKERS, VERMILION
from twophase.problems.toys import FlowPath, Loss, Profile, least_eigenvalue


def convexity_curve(
    ax: Axes, x: Tensor, y: Tensor, convex: Tensor, color: str, marker: str = "", label: str = ""
) -> Axes:
    """Draw a curve: its convex parts as a thick solid line, the others thin and dashed.

    Args:
        ax: axes to draw on.
        x, y: the curve, shape [n].
        convex: where the loss is convex, shape [n], bool.
        color: of the whole curve.
        marker: set at a few points, to tell curves apart without colour.
        label: in the legend; `convexity_legend` explains the line styles.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> x = np.array([0.0, 1.0, 2.0])
    >>> ax = convexity_curve(ax, x, x**2, x < 1.5, color="black", label="loss")
    >>> [line.get_linestyle() for line in ax.lines]
    ['-', '--', 'None']
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
    """Add a legend: the labelled curves of `convexity_curve`, and what the line styles mean.

    Args:
        ax: axes with labelled curves.
        **kwargs: passed on to `Axes.legend`.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> x = np.array([0.0, 1.0, 2.0])
    >>> ax = convexity_curve(Figure().subplots(), x, x**2, x < 1.5, "black", label="loss")
    >>> [text.get_text() for text in convexity_legend(ax).get_legend().get_texts()]
    ['loss', 'convex', 'not convex']
    """
    curves, labels = ax.get_legend_handles_labels()
    styles = [Line2D([], [], color="black", **_line(inside)) for inside in (True, False)]
    ax.legend([*curves, *styles], [*labels, "convex", "not convex"], **kwargs)
    return ax


def profile_losses(ax: Axes, profiles: Sequence[Profile], labels: Sequence[str]) -> Axes:
    """Draw losses over one parameter, with their convex parts and their minima (Figure 1).

    Args:
        ax: axes to draw on.
        profiles: one for each curve; what comes after the seventh is not drawn.
        labels: of the curves, in the same order.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> from twophase.problems.toys import profile
    >>> bowl = profile(lambda x: x**2, -1.0, 1.0, points=5)
    >>> ax = profile_losses(Figure().subplots(), [bowl], ["bowl"])
    >>> ax.get_legend_handles_labels()[1]
    ['bowl', 'minimum']
    """
    for profile, label, color, marker in zip(profiles, labels, COLORS, MARKERS, strict=False):
        convexity_curve(ax, profile.x, profile.loss, profile.convex, color, marker, label)
    _minima(ax, profiles, label="minimum")
    ax.set(xlabel="scaling parameter $p$", ylabel="loss $L(p)$")
    return ax


def profile_grad_norms(ax: Axes, branches: Sequence[Profile], labels: Sequence[str]) -> Axes:
    """Draw the gradient norm over the loss along branches of losses (Figure 2).

    A descent runs from right to left.

    Args:
        ax: axes to draw on.
        branches: from `Profile.branch`; what comes after the seventh is not drawn.
        labels: of the curves, in the same order.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> from twophase.problems.toys import profile
    >>> branch = profile(lambda x: x**2, -1.0, 1.0, points=5).branch("right")
    >>> profile_grad_norms(Figure().subplots(), [branch], ["bowl"]).get_ylabel()
    'gradient norm $|dL/dp|$'
    """
    for branch, label, color, marker in zip(branches, labels, COLORS, MARKERS, strict=False):
        convexity_curve(ax, branch.loss, branch.grad_norm, branch.convex, color, marker, label)
    ax.set(xlabel="loss $L$ (descent: right to left)", ylabel="gradient norm $|dL/dp|$")
    return ax


def profile_regions(ax: Axes, profile: Profile) -> Axes:
    """Draw one loss over x, its convex regions shaded and its minima marked (Figure 4).

    Args:
        ax: axes to draw on.
        profile: of the loss.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> from twophase.problems.toys import profile
    >>> wave = profile(torch.cos, 1.0, 5.0, points=9)
    >>> profile_regions(Figure().subplots(), wave).get_legend_handles_labels()[1]
    ['convex region', 'loss', 'local minimum']
    """
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

    Args:
        ax: axes to draw on.
        loss: from w of shape [..., 2] to L of shape [...].
        half_width: both parameters go from minus this to plus this.
        levels: losses to draw, ascending; evenly spaced ones show the gradient norm as density.
        points: of the grid along each axis.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> from twophase.problems.toys import GaussianWell
    >>> well = GaussianWell.tilted(1.0, degrees=0.0)
    >>> ax = level_curves(Figure().subplots(), well, 2.0, levels=[-0.8, -0.4], points=21)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('parameter $w_1$', 'parameter $w_2$')
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
    """Draw a descent path over two parameters, with the points that `flow_grad_norm` marks, too.

    Args:
        ax: axes to draw on, for example with `level_curves`.
        path: over two parameters, its points of shape [k, 2].

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> from twophase.problems.toys import GaussianWell, gradient_flow
    >>> well = GaussianWell.tilted(1.0, degrees=0.0)
    >>> path = gradient_flow(well, torch.tensor([2.0, 0.0]), points=21)
    >>> flow_path(Figure().subplots(), path).get_legend_handles_labels()[1][:2]
    ['start', 'largest gradient norm']
    """
    w1, w2 = path.points.T
    convexity_curve(ax, w1, w2, path.convex, VERMILION)
    return _milestones(ax, path, w1, w2)


def flow_grad_norm(ax: Axes, path: FlowPath) -> Axes:
    """Draw the gradient norm along a descent path over the length of the path.

    Args:
        ax: axes to draw on.
        path: over any number of parameters.

    Returns:
        `ax`; the gradient norm starts at 0.

    >>> from matplotlib.figure import Figure
    >>> from twophase.problems.toys import GaussianWell, gradient_flow
    >>> well = GaussianWell.tilted(1.0, degrees=0.0)
    >>> path = gradient_flow(well, torch.tensor([2.0, 0.0]), points=21)
    >>> flow_grad_norm(Figure().subplots(), path).get_xlabel()
    'length of the path from its start'
    """
    convexity_curve(ax, path.length, path.grad_norm, path.convex, VERMILION)
    _milestones(ax, path, path.length, path.grad_norm)
    ax.set(xlabel="length of the path from its start", ylabel=r"gradient norm $\|g\|$")
    ax.set_ylim(bottom=0)
    return ax


def flow_curvatures(ax: Axes, path: FlowPath) -> Axes:
    """Draw the curvature along the gradient and the Hessian's least eigenvalue along a path.

    The first is minus the slope of the curve that `flow_grad_norm` draws; the loss is convex where
    the second is positive.

    Args:
        ax: axes to draw on.
        path: over any number of parameters.

    Returns:
        `ax`.

    >>> from matplotlib.figure import Figure
    >>> from twophase.problems.toys import GaussianWell, gradient_flow
    >>> well = GaussianWell.tilted(1.0, degrees=0.0)
    >>> path = gradient_flow(well, torch.tensor([2.0, 0.0]), points=21)
    >>> flow_curvatures(Figure().subplots(), path).get_legend_handles_labels()[1]
    ['along the gradient', 'least eigenvalue']
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
        _mark(ax, *zip(*points, strict=True), marker="*", face="white", size=11, label=label)


def _milestones(ax: Axes, path: FlowPath, x: Tensor, y: Tensor) -> Axes:
    marks = [
        ("start", 0, "o", "white", 8),
        ("largest gradient norm", path.peak, "D", "white", 8),
        ("entry into the convex region", path.convex_entry, "s", "black", 7),
        ("end, near the minimum", len(x) - 1, "*", "white", 13),
    ]
    for label, index, marker, face, size in marks:
        # a path that ends before the convex region has no entry
        if index < len(x):
            _mark(ax, x[index], y[index], marker, face, size, label)
    return ax


def _mark(ax: Axes, x: object, y: object, marker: str, face: str, size: float, label: str) -> None:
    edge = {"markeredgecolor": "black", "markerfacecolor": face, "markersize": size}
    ax.plot(x, y, ls="none", marker=marker, zorder=5, clip_on=False, label=label, **edge)
