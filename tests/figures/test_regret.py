"""The map of regrets shows what the table says."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from twophase.figures.regret import regret_map


@pytest.fixture
def drawn():
    made = []
    yield made.append
    for fig in made:
        plt.close(fig)


def test_cells_are_medians_and_what_was_set_aside_comes_last(drawn):
    rows = [
        {"case": case, "held_out": case == "aside", "seed": seed, "rule": rule, "regret": value}
        for case in ("aside", "seen")
        for rule, values in {"race": (0.0, 0.01, 9.0), "literal": (1.0, 2.0, 3.0)}.items()
        for seed, value in enumerate(values)
    ]
    fig = regret_map(pd.DataFrame(rows), ["race", "literal"])
    drawn(fig)
    ax = fig.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["seen", "aside"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["race", "literal"]
    cells = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts
    }
    assert cells == {(0, 0): "0", (1, 0): "0", (0, 1): "2.0", (1, 1): "2.0"}
    assert len(ax.lines) == 1, "the line before what was set aside"
