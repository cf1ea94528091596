"""The figures of the pattern and of the gap over Q show what their tables say."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from twophase.experiments.generalisation import ADAM, STRATEGIES
from twophase.experiments.pattern import ALONE, Pattern
from twophase.figures.generalisation import over_q
from twophase.figures.pattern import ends_beside_adam


@pytest.fixture
def axes():
    fig, axes = plt.subplots(1, 2)
    yield axes
    plt.close(fig)


def pattern(**columns):
    rows = [
        {"strategy": name, "seed": seed, "loss": loss, "validation_loss": 2 * loss}
        | {"swap_epoch": 3}
        | columns
        for name, losses in {ALONE: (1.0, 2.0), "race": (0.5, 4.0), "literal": (2.0, 2.0)}.items()
        for seed, loss in enumerate(losses)
    ]
    return Pattern(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame())


def test_marks_are_ratios_and_lines_their_medians(axes):
    left, right = ends_beside_adam(axes, pattern())
    full, hollow = marks(left)
    assert full[0] == pytest.approx([0.5, 2]) and full[1] == pytest.approx([2, 1]) and not hollow
    assert medians(left) == pytest.approx([1.25, 1.5])
    assert [label.get_text() for label in left.get_yticklabels()] == ["race", "literal"]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the first on top"
    assert "validation" in right.get_xlabel()


def marks(ax):
    """The places of full and of hollow marks, by row."""
    found = {}, {}
    for line in ax.lines:
        if line.get_marker() == "o" and len(line.get_xdata()):
            hollow = line.get_markerfacecolor() == "none"
            found[hollow][line.get_ydata()[0]] = list(line.get_xdata())
    return found


def medians(ax):
    return [line.get_xdata()[0] for line in ax.lines if line.get_color() == "black"]


def test_where_it_never_switched_marks_are_hollow_and_not_in_the_median(axes):
    found = pattern()
    never = found.ends.seed.eq(1) & found.ends.strategy.eq("race")
    ends = found.ends.assign(swap_epoch=found.ends.swap_epoch.mask(never))
    left, _ = ends_beside_adam(axes, found._replace(ends=ends))
    full, hollow = marks(left)
    assert full == {0: [0.5], 1: [2, 1]} and hollow == {0: [2]}
    assert medians(left) == pytest.approx([0.5, 1.5])


def test_without_validation_there_is_one_axis(axes):
    _, right = ends_beside_adam(axes, pattern(validation_loss=None))
    assert not right.axison


def test_gaps_and_ratios_lie_over_q(axes):
    rows = [
        {"q": q, "strategy": name, "loss": (1 + n) * q, "validation_loss": 3 * (1 + n) * q}
        | {"dataset": "d", "model": "m", "examples": 1, "seed": 0}
        for q in (0.1, 10.0)
        for n, name in enumerate(STRATEGIES)
    ]
    left, right = over_q(axes, pd.DataFrame(rows), STRATEGIES[1])
    shown = {line.get_label(): line for line in left.lines}
    assert shown[STRATEGIES[1]].get_ydata() == pytest.approx([0.4, 40])
    assert shown[STRATEGIES[1]].get_xdata() == pytest.approx([0.1, 10])
    ratios = {line.get_label(): line.get_ydata() for line in right.lines}
    assert ratios["training loss"] == pytest.approx([2, 2])
    assert ADAM in right.get_ylabel() and right.get_xscale() == "log"
