"""Figures of toys: what the axes hold, not how it looks."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from twophase.figures import style
from twophase.figures import toys as toy_figures
from twophase.problems import landscape, toys


@pytest.fixture(autouse=True)
def styled():
    with plt.rc_context():
        style.use_style()
        yield


@pytest.fixture
def ax():
    return Figure().subplots()


def line(ax, label):
    (found,) = [one for one in ax.lines if one.get_label() == label]
    return found


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def quartic():
    """Minima at ±1, convex outside ±1/√3."""
    return landscape.profile(lambda x: (x**2 - 1) ** 2, -2.0, 2.0, points=201)


def well_and_path():
    well = toys.GaussianWell.tilted(4.0, degrees=0.0)
    return well, landscape.gradient_flow(well, torch.tensor([1.7, 1.15]), points=101)


# ---- curves


def test_a_figure_of_every_kind_of_line_is_drawn_without_a_warning(tmp_path):
    fig, axes = plt.subplots(1, 2)
    toy_figures.profile_regions(axes[0], quartic())
    well, path = well_and_path()
    toy_figures.level_curves(axes[1], well, 2.0, [0.5], points=21)
    toy_figures.flow_path(axes[1], path)
    axes[1].legend()
    fig.savefig(tmp_path / "figure.png")
    plt.close(fig)


def test_convex_parts_are_thick_and_solid_and_the_parts_cover_the_curve_without_gaps(ax):
    x = np.arange(6.0)
    convex = np.array([False, False, True, True, False, True])
    toy_figures.convexity_curve(ax, x, x**2, convex, color="black")
    parts = [one for one in ax.lines if one.get_linestyle() != "None"]
    assert [one.get_linestyle() for one in parts] == ["--", "-", "--", "-"]
    assert min(one.get_linewidth() for one in parts[1::2]) > parts[0].get_linewidth()
    assert [one.get_xdata().tolist() for one in parts] == [[0, 1, 2], [2, 3, 4], [4, 5], [5]]
    assert all((one.get_ydata() == one.get_xdata() ** 2).all() for one in parts)


def test_the_legend_names_the_curves_and_explains_the_line_styles(ax):
    x = np.arange(3.0)
    toy_figures.convexity_curve(ax, x, x, x > 1, color="black", marker="o", label="task 1")
    toy_figures.convexity_legend(ax, loc="upper left")
    assert labels(ax) == ["task 1", "convex", "not convex"]
    curve, convex, other = ax.get_legend().legend_handles
    assert (curve.get_marker(), curve.get_color()) == ("o", "black")
    assert (convex.get_linestyle(), other.get_linestyle()) == ("-", "--")


def test_profile_losses_shows_every_loss_and_every_minimum(ax):
    profiles = [quartic(), landscape.profile(torch.square, -1.0, 1.0, points=51)]
    toy_figures.profile_losses(ax, profiles, ["quartic", "square"])
    np.testing.assert_array_equal(line(ax, "quartic").get_ydata(), profiles[0].loss)
    np.testing.assert_array_equal(line(ax, "square").get_xdata(), profiles[1].x)
    assert line(ax, "quartic").get_color() != line(ax, "square").get_color()
    assert line(ax, "quartic").get_marker() != line(ax, "square").get_marker()
    np.testing.assert_allclose(
        line(ax, "minimum").get_xydata(), [[-1, 0], [1, 0], [0, 0]], atol=1e-9
    )
    assert ax.get_xlabel() == "scaling parameter $p$" and ax.get_ylabel() == "loss $L(p)$"


def test_profile_grad_norms_has_the_loss_across_and_the_slopes_size_up(ax):
    branch = landscape.profile(torch.square, -1.0, 1.0, points=51).branch("left")
    toy_figures.profile_grad_norms(ax, [branch], ["square"])
    drawn = line(ax, "square")
    np.testing.assert_allclose(drawn.get_ydata(), 2 * np.sqrt(drawn.get_xdata()), atol=1e-12)
    assert "loss" in ax.get_xlabel() and "right to left" in ax.get_xlabel()
    assert "gradient norm" in ax.get_ylabel()


def test_profile_regions_shades_every_convex_region_and_marks_every_minimum(ax):
    toy_figures.profile_regions(ax, quartic())
    shaded = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
    edge = 3**-0.5
    np.testing.assert_allclose(shaded, [(-2, -edge), (edge, 2)])
    np.testing.assert_allclose(line(ax, "local minimum").get_xdata(), [-1, 1])
    ax.legend()
    assert labels(ax) == ["convex region", "loss", "local minimum"]


def test_profile_regions_of_a_loss_without_minimum_or_convex_region_is_only_the_loss(ax):
    toy_figures.profile_regions(ax, landscape.profile(lambda x: -(x**2), 0.5, 1.0, points=11))
    assert [one.get_label() for one in ax.lines] == ["loss"] and not ax.patches


# ---- two parameters


def test_level_curves_lie_where_the_loss_has_the_level_and_the_convex_ellipse_is_shaded(ax):
    well = toys.GaussianWell.tilted(4.0, degrees=30.0)
    toy_figures.level_curves(ax, well, 1.5, [0.2, 0.5], points=161)
    region, curves = ax.collections
    on_edge = torch.from_numpy(region.get_paths()[0].vertices)
    torch.testing.assert_close(
        well.squared_distance(on_edge), torch.ones(len(on_edge)).double(), atol=0.05, rtol=0
    )
    for level, path in zip((0.2, 0.5), curves.get_paths(), strict=True):
        losses = well(torch.from_numpy(path.vertices))
        np.testing.assert_allclose(losses, level, atol=0.01)
    assert ax.get_xlabel() == "parameter $w_1$" and ax.get_aspect() == 1


def test_level_curves_of_a_loss_that_is_nowhere_convex_have_no_shade(ax):
    toy_figures.level_curves(ax, lambda w: -w.square().sum(dim=-1), 1.0, [-1.0, -0.5], points=21)
    (curves,) = ax.collections
    assert len(curves.get_paths()) == 2


def test_path_and_norm_mark_the_same_four_points(ax):
    _, path = well_and_path()
    other = Figure().subplots()
    toy_figures.flow_path(ax, path)
    toy_figures.flow_grad_norm(other, path)
    marks = {
        "start": 0,
        "largest gradient norm": path.peak,
        "entry into the convex region": path.convex_entry,
        "end, near the minimum": -1,
    }
    for label, index in marks.items():
        np.testing.assert_array_equal(line(ax, label).get_xydata()[0], path.points[index])
        expected = [path.length[index], path.grad_norm[index]]
        np.testing.assert_array_equal(line(other, label).get_xydata()[0], expected)
        assert line(ax, label).get_marker() == line(other, label).get_marker()
    assert "gradient norm" in other.get_ylabel() and "length" in other.get_xlabel()
    assert other.get_ylim()[0] == 0


def test_a_path_that_never_enters_a_convex_region_has_no_mark_for_it(ax):
    path = landscape.gradient_flow(
        lambda w: w.sum(dim=-1) - w.square().sum(dim=-1), torch.zeros(2), max_length=1.0
    )
    toy_figures.flow_path(ax, path)
    assert "entry into the convex region" not in [one.get_label() for one in ax.lines]


def test_flow_curvatures_draws_both_curvatures_over_the_length(ax):
    _, path = well_and_path()
    toy_figures.flow_curvatures(ax, path)
    for label, expected in (
        ("along the gradient", path.curvature_along_gradient),
        ("least eigenvalue", path.least_eigenvalue),
    ):
        np.testing.assert_array_equal(line(ax, label).get_ydata(), expected)
        np.testing.assert_array_equal(line(ax, label).get_xdata(), path.length)
    along, least = line(ax, "along the gradient"), line(ax, "least eigenvalue")
    assert along.get_linestyle() != least.get_linestyle()


@pytest.mark.parametrize(
    "draw, source",
    [
        (toy_figures.profile_regions, quartic),
        (toy_figures.flow_path, lambda: well_and_path()[1]),
        (toy_figures.flow_grad_norm, lambda: well_and_path()[1]),
        (toy_figures.flow_curvatures, lambda: well_and_path()[1]),
    ],
)
def test_axes_go_in_and_come_out_and_no_figure_is_opened(ax, draw, source):
    assert draw(ax, source()) is ax
    assert plt.get_fignums() == []
