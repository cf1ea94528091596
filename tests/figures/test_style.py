"""The style of all figures: sizes, colours and marks that every reader can tell apart."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from twophase.figures import style


@pytest.fixture
def ax():
    with plt.rc_context():
        style.use_style()
        yield Figure().subplots()


def test_no_text_is_smaller_than_ten_points(ax):
    texts = ("font.size", "axes.labelsize", "axes.titlesize", "xtick.labelsize")
    texts += ("ytick.labelsize", "legend.fontsize")
    assert all(plt.rcParams[name] >= 10 for name in texts)


def test_lines_differ_in_dash_as_well_as_in_colour(ax):
    lines = [ax.plot([0, 1], [k, k])[0] for k in range(len(style.COLORS))]
    assert len({one.get_color() for one in lines}) == len(lines) == 7
    assert len({str(one._unscaled_dash_pattern) for one in lines}) == len(lines)


def test_neighbouring_colours_differ_in_lightness_and_all_can_be_seen_on_white():
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in style.COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    # the WCAG's contrast ratio; 2 is the least that a thick line needs
    assert ((1.05) / (luminance + 0.05) > 2).all()
    contrast = (luminance[1:] + 0.05) / (luminance[:-1] + 0.05)
    assert (np.maximum(contrast, 1 / contrast) > 1.2).all()


def test_a_shared_legend_has_every_label_once():
    figure = Figure()
    axes = figure.subplots(1, 2)
    for ax, names in zip(axes, ("ab", "bc"), strict=True):
        for name in names:
            ax.plot([1], label=name)
    style.share_legend(axes, ncols=2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def test_marked_epochs_are_apart_even_where_they_are_equal(ax):
    style.mark_epochs(ax, {"one": 3, "none": None, "other": 3}, lowest=0.1, spacing=0.2)
    marks = [line for line in ax.lines if line.get_label()[0] != "_"]
    assert [(m.get_label(), *m.get_xydata()[0]) for m in marks] == [
        ("one", 3, 0.1),
        ("other", 3, pytest.approx(0.5)),
    ]
    assert len({(m.get_color(), m.get_marker()) for m in marks}) == 2


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.3, 2.4), (0.6, 1.3), (0.95, 1.02), (0.15, 1.2), (0.95, 6), (0.9, 8.9), (1e-9, 1e3)],
)
def test_short_axes_have_a_tick_at_one(ax, low, high):
    ax.set(yscale="log", ylim=(low, high))
    style.plain_ticks(ax.yaxis)
    assert "1" in [text.get_text() for text in ax.get_yticklabels()]


def test_text_on_a_colour_is_the_one_with_more_contrast():
    shades = {"white": "black", "#FDE725": "black", "#31688E": "white", "black": "white"}
    assert {shade: style.readable_on(matplotlib.colors.to_rgb(shade)) for shade in shades} == shades
    # contrast with black and with white is equal at this grey
    assert [style.readable_on((grey / 255,) * 3) for grey in (117, 118)] == ["white", "black"]


@pytest.mark.parametrize(("low", "high"), [(0.95, 1.02), (0.7, 1.4), (0.2, 9.0), (1e-3, 300.0)])
def test_a_logarithmic_axis_has_a_readable_number_of_plain_ticks(ax, low, high):
    ax.set(yscale="log", ylim=(low, high))
    style.plain_ticks(ax.yaxis)
    inside = [
        text
        for at, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
        if low <= at <= high
    ]
    assert 2 <= len(inside) <= 7
    assert all(float(text.get_text()) > 0 for text in inside)


@pytest.mark.parametrize(("low", "high"), [(5.7e-4, 2.9e-3), (2.3e-3, 0.1), (0.0095, 0.9)])
def test_more_digits_leave_no_wide_gap_at_the_ends(ax, low, high):
    ax.set(yscale="log", ylim=(low, high))
    style.plain_ticks(ax.yaxis, (1, 2, 3, 5, 7))
    inside = [at for at in ax.get_yticks() if low <= at <= high]
    assert min(inside) <= 1.4 * low and max(inside) >= high / 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.001, "0.001"), (1000, "1000"), (1e-8, "$10^{-8}$"), (2e-8, r"$2\times10^{-8}$")],
)
def test_only_very_small_and_large_ticks_are_powers(ax, value, text):
    ax.set(yscale="log", ylim=(value / 3, 3 * value))
    style.plain_ticks(ax.yaxis)
    assert ax.yaxis.get_major_formatter()(value) == text
