"""Figures of comparisons: what the axes hold, not how it looks."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from twophase.experiments.methods import METHODS
from twophase.experiments.profiles import SETTING
from twophase.figures import comparison as comparison_figures


@pytest.fixture
def ax():
    return Figure().subplots()


def curve(method, seed, losses):
    columns = {"method": method, "passes_spent": [0, 3, 6], "seconds": [0.0, 1.0, 2.0]}
    setting = dict.fromkeys(SETTING, 0) | {"seed": seed}
    unseen = {"validation_loss": np.nan}
    return pd.DataFrame(columns | {"loss": losses} | unseen).assign(**setting)


def test_every_method_has_a_style_of_its_own():
    assert set(comparison_figures.STYLES) == set(METHODS)
    assert len({str(style) for style in comparison_figures.STYLES.values()}) == len(METHODS)


@pytest.mark.parametrize(("cost", "end"), [("passes_spent", 6), ("seconds", 2)])
def test_a_line_is_the_median_over_the_seeds_and_the_band_their_range(ax, cost, end):
    losses = [[1.0, 0.5, 0.2], [1.0, 0.6, 0.3], [1.0, 0.9, 0.8]]
    curves = pd.concat([curve("adam", seed, values) for seed, values in enumerate(losses)])
    comparison_figures.loss_bands(ax, curves, cost)
    assert ax.lines[0].get_xydata()[-1].tolist() == [end, 0.3]
    (band,) = ax.collections
    edge = band.get_paths()[0].vertices
    assert sorted(set(edge[edge[:, 0] == end][:, 1])) == [0.2, 0.8]
    assert ax.get_xlabel().startswith(cost.split("_")[0])
    assert ax.lines[0].get_label() == METHODS["adam"].label


def test_a_loss_of_zero_does_not_press_the_others_together(ax):
    comparison_figures.loss_bands(ax, curve("adam", 0, [1.0, 0.5, 1e-30]))
    assert ax.get_ylim()[0] == pytest.approx(comparison_figures.DEEPEST)


def test_the_axis_holds_the_medians_and_the_caption_says_what_leaves_it(ax):
    losses = [[1.0, 0.5, 0.2], [1.0, 0.5, 0.1], [1.0, 1e-7, 3e-7]]
    curves = pd.concat([curve("adam", seed, values) for seed, values in enumerate(losses)])
    comparison_figures.loss_bands(ax, curves)
    assert ax.get_ylim()[0] == pytest.approx(0.03)
    said = comparison_figures.reading(curves)
    assert said.endswith("; what leaves the axis at the bottom goes on, down to about $10^{-7}$")
    deeper = curve("adam", 0, [1.0, 0.1, 1e-9])
    assert comparison_figures.reading(curves, deeper).endswith("$10^{-7}$")
    assert ";" not in comparison_figures.reading(curves, deeper, shared=True)
    assert ";" not in comparison_figures.reading(curve("adam", 0, [1.0, 0.5, 0.2]))
    assert comparison_figures.reading(curve("adam", 0, [1.0, 0.5, 0.0])).endswith("about 0")


@pytest.mark.parametrize(("count", "bands"), [(4, 4), (5, 2)])
def test_of_many_methods_only_two_have_bands(ax, count, bands):
    methods = ["adam", "sgd", "golden", "default", "cg"][:count]
    seeds = [curve(method, seed, [1.0, 0.5, 0.2]) for method in methods for seed in (0, 1)]
    curves = pd.concat(seeds)
    comparison_figures.loss_bands(ax, curves)
    assert (len(ax.lines), len(ax.collections)) == (count, bands)
    said = comparison_figures.reading(curves)
    assert said.startswith("lines are medians over 2 seeds, bands the range")
    assert ("of Adam and of the default" in said) == (bands == 2)
    one = comparison_figures.reading(curves[curves.seed == 1])
    assert one == "a line for each method, of one seed"


def test_a_validation_loss_far_above_the_others_leaves_the_axis():
    rows = np.arange(100)
    validation = 1 + rows / 1000
    curves = pd.concat([curve("adam", 0, [1.0, 0.5, 0.2])] * 34)[:100].assign(
        passes_spent=rows, validation_loss=validation
    )
    assert "top" not in comparison_figures.reading(curves)
    spike = curves.assign(validation_loss=[*validation[:-1], 5.0])
    assert "a validation loss that leaves the axis at the top goes up to 5" in (
        comparison_figures.reading(spike)
    )
    for table, top in ((curves, 1.2), (spike, 1.2)):
        shown = comparison_figures.losses(table).axes[2]
        assert shown.get_ylim()[1] < top
    assert ";" not in comparison_figures.reading(curves.assign(validation_loss=np.nan))


def test_panels_with_one_axis_of_losses_hold_the_lowest():
    axes = Figure().subplots(1, 2, sharey=True, squeeze=False)
    groups = {end: curve("adam", 0, [1.0, 0.5, end]) for end in (0.2, 1e-6)}
    comparison_figures.panels(axes, groups)
    assert axes[0, 1].get_ylim()[0] == pytest.approx(0.3e-6)


def test_a_profile_steps_where_a_setting_is_solved(ax):
    shares = pd.DataFrame({"adam": [0.5, 1.0], "default": [0.75, 0.75]}, index=[1.0, 4.0])
    comparison_figures.profile(ax, shares)
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        [[1.0, 0.5], [4.0, 1.0]],
        [[1.0, 0.75], [4.0, 0.75]],
    ]
    assert ax.lines[0].get_drawstyle() == "steps-post" and ax.get_xscale() == "log"


def test_ratios_have_a_row_for_each_method_with_a_line_at_the_median(ax):
    found = pd.DataFrame({"method": ["a", "a", "a", "b"], "loss_ratio": [0.5, 2.0, 3.0, 0.0]})
    comparison_figures.loss_ratios(ax, found)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    _, bar, marks, _, low = ax.lines
    assert marks.get_xdata().tolist() == [0.5, 2.0, 3.0]
    heights = marks.get_ydata()
    assert abs(heights).max() < 0.3 and len(set(heights)) == 3, "in its row, none above another"
    assert list(bar.get_xdata()) == [2.0, 2.0] and sum(bar.get_ydata()) == 0
    assert low.get_xydata().tolist() == [[comparison_figures.LOWEST, 1]]
    assert marks.get_color() != low.get_color()


def test_the_map_writes_ratios_misses_and_nothing_where_nothing_was_run():
    cells = pd.MultiIndex.from_tuples([("16", 10), ("4", 30)])
    ratios = pd.DataFrame({100: [0.5, np.inf], 300: [0.012, np.nan]}, index=cells)
    ax, bar = comparison_figures.payoff_map(ratios).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "K/B = 16, swap after 10 epochs",
        "K/B = 4, swap after 30 epochs",
    ]
    assert [line.get_ydata()[0] for line in ax.lines] == [0.5], "between two K/B"
    named = [text.get_text() for text in bar.get_yticklabels()]
    assert named == ["≤ 0.1", "0.2", "0.5", "1", "2", "5", "≥ 10"]
    assert [text.get_text() for text in ax.texts] == ["0.50", "0.012", "missed", ""]
    assert [text.get_color() for text in ax.texts[:2]] == ["black", "white"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["100", "300"]


def test_losses_are_over_both_costs_and_validation_below_training():
    curves = pd.concat([curve("adam", 0, [1.0, 0.5, 0.2]), curve("default", 0, [1.0, 0.4, 0.1])])
    left, right = comparison_figures.losses(curves).axes
    assert [ax.lines[0].get_xydata()[-1][0] for ax in (left, right)] == [6, 2]
    (legend,) = left.figure.legends
    assert len(legend.get_texts()) == 2
    seen = curves.assign(validation_loss=[2.0, 0.7, 0.9] * 2)
    figure = comparison_figures.losses(seen)
    below = figure.axes[2]
    assert len(figure.axes) == 4 and below.get_ylabel().startswith("validation loss")
    assert below.lines[0].get_xydata()[-1].tolist() == [6, 0.9], "not the lowest on the way"


def test_panels_have_titles_outer_labels_and_a_legend_of_all_methods():
    figure = Figure()
    groups = {
        "first": curve("adam", 0, [1.0, 0.5, 0.2]),
        "second": curve("default", 0, [1.0, 0.4, 0.1]),
        "third": curve("adam", 0, [1.0, 0.3, 0.3]),
    }
    axes = comparison_figures.panels(figure.subplots(2, 2, squeeze=False), groups)
    assert [ax.get_title() for ax in axes.flat] == ["first", "second", "third", ""]
    assert [ax.axison for ax in axes.flat] == [True, True, True, False]
    assert [bool(ax.get_ylabel()) for ax in axes.flat] == [True, False, True, False]
    assert not axes[0, 0].get_xlabel() and axes[1, 0].get_xlabel().startswith("passes")
    assert axes[1, 0].lines[0].get_ydata()[-1] == 0.3
    (legend,) = figure.legends
    names = [METHODS[name].label for name in ("adam", "default")]
    assert [text.get_text() for text in legend.get_texts()] == names
