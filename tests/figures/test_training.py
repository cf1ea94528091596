"""Figures of runs: what the axes hold, not how it looks."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from twophase.examples import Dataset, Examples
from twophase.figures import training as training_figures
from twophase.line_search.line import Trial


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4, 5],
            "phase": ["adam", "adam", "adam", "second", "second"],
            "train_loss": [0.09, 0.08, 0.05, 0.03, 0.02],
            "grad_norm": [0.02, 0.10, 0.08, 0.05, 0.01],
        }
    )


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def labels(ax):
    return ax.get_xlabel(), ax.get_ylabel()


def test_grad_norm_over_loss_has_a_part_per_phase_that_meet_at_the_swap(ax, history):
    drawn = lines(training_figures.grad_norm_over_loss(ax, history))
    adam, second = drawn["Adam, 3 epochs"], drawn["second phase, 2 epochs"]
    assert adam.get_xdata().tolist() == [0.09, 0.08, 0.05]
    assert second.get_xdata().tolist() == [0.05, 0.03, 0.02]
    assert second.get_ydata().tolist() == [0.08, 0.05, 0.01]
    assert (drawn["swap"].get_xdata()[0], drawn["swap"].get_ydata()[0]) == (0.05, 0.08)
    assert drawn["after epoch 1"].get_xdata()[0] == 0.09
    assert labels(ax) == ("training loss (training: right to left)", r"gradient norm $\|g\|$")
    assert ax.get_xlim()[0] == 0 == ax.get_ylim()[0]
    other = training_figures.grad_norm_over_loss(Figure().subplots(), history[:2])
    assert other.get_xlim()[0] > 0.07 and other.get_ylim()[0] == 0, "it would be pressed together"


def test_grad_norm_over_loss_of_one_phase_has_no_swap(ax, history):
    drawn = lines(training_figures.grad_norm_over_loss(ax, history[:3]))
    assert "swap" not in drawn


def test_a_phase_that_comes_back_has_its_own_line_but_one_name(ax, history):
    history = history.assign(phase=["adam", "second", "second", "adam", "adam"])
    training_figures.grad_norm_over_loss(ax, history)
    runs = [line.get_xdata().tolist() for line in ax.lines if line.get_linestyle() != "None"]
    assert runs == [[0.09], [0.09, 0.08, 0.05], [0.05, 0.03, 0.02]]
    assert ax.get_legend_handles_labels()[1] == [
        *("Adam, 3 epochs", "second phase, 2 epochs", "swap", "after epoch 1")
    ]
    other = training_figures.grad_norm_over_epochs(Figure().subplots(), history, 0.9, 1)
    level = lines(other)["0.9 × the peak so far"].get_ydata()
    assert level == pytest.approx([0.018, np.nan, np.nan, 0.09, 0.09], nan_ok=True)


def test_curves_are_logarithmic_and_told_apart_without_colour(ax):
    curves = {name: ([1, 2], [0.1, 0.01]) for name in "abcde"}
    drawn = lines(training_figures.convergence(ax, curves, "passes", "loss"))
    assert list(drawn) == list("abcde")
    assert len({str(line._unscaled_dash_pattern) for line in drawn.values()}) == 5
    assert ax.get_yscale() == "log"
    assert labels(ax) == ("passes", "loss")


def test_convergence_leaves_out_zeros(ax):
    drawn = lines(training_figures.convergence(ax, {"CG": ([0, 1, 2], [1, 0.1, 0])}, "x", "y"))
    assert pd.isna(drawn["CG"].get_ydata()[2])
    assert labels(ax) == ("x", "y")


@pytest.mark.parametrize("channels", [1, 3])
def test_first_images_have_their_labels_and_shades_from_0_to_1(channels):
    images = torch.arange(-4.0, channels * 8 - 4).reshape(2, channels, 2, 2)
    data = Dataset("tiny", Examples(images, torch.tensor([7, 3])), None, classes=10)
    axes = Figure().subplots(1, 3)
    training_figures.first_images(axes, data)
    assert [ax.get_title() for ax in axes] == ["7", "3", ""]
    drawn = axes[1].images[0].get_array()
    assert drawn.shape == ((2, 2) if channels == 1 else (2, 2, 3))
    span = 4 * channels - 1
    expected = (images[1] - images[1].min()).permute(1, 2, 0).squeeze(-1) / span
    assert np.asarray(drawn) == pytest.approx(expected.numpy())


def test_line_search_trials_are_numbered_in_their_order(ax):
    trials = [Trial(0.5, 1.25), Trial(2.0, 2.0), Trial(1.0, 1.0)]
    training_figures.line_search_trials(ax, lambda t: (t - 1) ** 2 + 1, trials, numbered=[1, 3])
    assert [text.get_text() for text in ax.texts] == ["1", "3"]
    points = lines(ax)["trial: a forward pass"]
    assert points.get_xdata().tolist() == [0.5, 2.0, 1.0]
    assert points.get_ydata().tolist() == [0.25, 1.0, 0.0]
    curve = lines(ax)["loss along the line"]
    expected = (torch.as_tensor(curve.get_xdata()) - 1) ** 2
    assert curve.get_ydata() == pytest.approx(expected.numpy())


def test_grad_norm_over_epochs_shows_the_level_of_the_rule(ax, history):
    drawn = lines(training_figures.grad_norm_over_epochs(ax, history, 0.9, swap_epoch=3))
    level = drawn["0.9 × the peak so far"].get_ydata()
    assert level == pytest.approx([0.018, 0.09, 0.09, np.nan, np.nan], nan_ok=True)
    assert drawn["second phase"].get_xdata().tolist() == [3, 4, 5]
    assert drawn["swap"].get_xdata()[0] == 3


def test_a_level_too_short_to_be_seen_is_not_in_the_legend(ax, history):
    drawn = lines(training_figures.grad_norm_over_epochs(ax, history[1:], 0.9, swap_epoch=3))
    assert "0.9 × the peak so far" not in drawn


def test_ways_back_have_the_colour_of_their_line(ax):
    records = {"passes": [3, 3, 3], "train_loss": [1.0, 0.5, 0.2]}
    histories = {
        name: pd.DataFrame(records | {"note": ["", note, ""]})
        for name, note in {"a": "", "b": "return: it rose"}.items()
    }
    training_figures.over_passes(ax, histories)
    (found,) = [one for one in ax.lines if one.get_marker() == "v" and len(one.get_xdata()) == 1]
    assert found.get_xydata().tolist() == [[6, 0.5]]
    assert found.get_color() == lines(ax)["b"].get_color() != lines(ax)["a"].get_color()


def test_numbers_of_close_trials_are_above_each_other(ax):
    trials = [Trial(step, 1 + (step - 1) ** 2) for step in (0.1, 0.9, 0.92, 0.94, 1.5)]
    training_figures.line_search_trials(ax, lambda t: (t - 1) ** 2 + 1, trials, range(1, 9))
    heights = {text.get_text(): text.xyann[1] for text in ax.texts}
    assert heights["1"] == heights["2"] == heights["5"] < heights["3"] < heights["4"]


@pytest.mark.parametrize(
    "named", [{"problem": "digits vit-mlp"}, {"dataset": "digits", "model": "vit-mlp"}]
)
def test_a_runs_figure_is_a_whole_png(tmp_path, history, named):
    out = tmp_path / "figure.png"
    summary = named | {"seed": 0}
    training_figures.save_grad_norm_over_loss(history, summary, out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_losses_over_costs_use_the_papers_axis_passes_and_seconds(history):
    axes = Figure().subplots(3)
    history = history.assign(passes=[3, 3, 3, 15, 16], seconds=[1.0, 1.0, 1.0, 4.0, 5.0])
    parts = {"Adam": ("run", slice(0, 3)), "CG": ("run", slice(2, None))}
    training_figures.loss_over_costs(axes, {"run": history}, parts, parameters=2_000, examples=500)
    x = [lines(ax)["CG"].get_xdata().tolist() for ax in axes]
    colors = {line.get_color() for line in axes[0].lines}
    assert len(colors) == 1, "both are parts of one run"
    assert x == [[3.0, 4.0, 5.0], [9, 24, 40], [3.0, 7.0, 12.0]]  # 2,000 parameters: 0.002 million
    assert lines(axes[0])["Adam"].get_ydata().tolist() == [0.09, 0.08, 0.05]
    assert [ax.get_xlabel() for ax in axes] == [
        "epochs × million parameters × examples",
        "passes over the training set",
        "seconds",
    ]
    assert axes[0].get_ylabel() == "training loss (mean squared error)"
    with pytest.raises(ValueError):
        training_figures.loss_over_costs(axes[:2], {"run": history}, parts, 2_000, 500)


def test_advantages_are_told_apart_by_who_is_better_and_what_was_not_run(ax):
    rows = [("mnist", "vit-mlp"), ("cifar10", "vit-mlp"), ("digits", "vgg5-max-relu")]
    frame = pd.DataFrame({"paper": [2.0, 1.5, 3.0], "own": [1.2, np.nan, 0.7]}, index=rows)
    drawn = lines(training_figures.advantages(ax, frame))
    assert drawn["paper"].get_xydata().tolist() == [[2.0, 0], [1.5, 1], [3.0, 2]]
    assert drawn["own: two-phase better"].get_xydata().tolist() == [[1.2, 0]]
    assert drawn["own: Adam better"].get_xydata().tolist() == [[0.7, 2]]
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("not run", (1, 1))]
    assert ax.get_yticklabels()[0].get_text() == "mnist  vit-mlp"


def test_losses_over_passes_begin_with_the_last_epoch_of_adam_where_another_phase_follows(history):
    seen = history.assign(passes=[3, 3, 3, 2, 2], validation_loss=2 * history.train_loss)
    axes = Figure().subplots(1, 2)
    alone = pd.DataFrame({"phase": "adam", "passes": 3, "train_loss": np.ones(20)})
    histories = {"adam": alone.assign(validation_loss=2), "both": seen}
    training_figures.losses_over_passes(axes, histories)
    for ax, times in zip(axes, (1, 2), strict=True):
        drawn = lines(ax)
        assert drawn["adam"].get_xdata().tolist() == [3 * n for n in range(3, 21)]
        assert drawn["both"].get_xdata().tolist() == [9, 11, 13]
        assert drawn["both"].get_ydata().tolist() == [times * loss for loss in (0.05, 0.03, 0.02)]
    assert axes[1].get_ylabel().startswith("validation loss")
