"""Figures of global searches: lines, misses and bars are the table's."""

import math

import pandas as pd
import pytest
from matplotlib.figure import Figure

from twophase.experiments.global_search_results import End
from twophase.figures.global_search import LOOKS, end_shares, evaluations_over_parameters


def test_lines_are_medians_and_open_marks_are_misses():
    rows = [
        {"problem": "p", "method": name, "parameters": size, "seed": seed, "evaluations": count}
        for name, counts in {"found": {1: [10, 30, 20], 3: [90, 80, math.inf]},
                             "lost": {1: [5, 6, 7], 3: [math.inf, 9, math.inf]}}.items()
        for size, of in counts.items() for seed, count in enumerate(of)
    ]  # fmt: skip
    ax = Figure().subplots()
    evaluations_over_parameters(ax, pd.DataFrame(rows), ["found", "lost", "not run"])
    open_marks = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    lines = {line.get_label(): line for line in ax.lines if line not in open_marks}
    assert list(lines) == ["found", "lost"]
    assert list(lines["found"].get_ydata()) == [20, 90]
    assert lines["lost"].get_ydata()[0] == 6 and math.isnan(lines["lost"].get_ydata()[1])
    assert [list(line.get_xdata()) for line in open_marks] == [[], [3]]
    # each method has its own mark, the same for what it finds and what it misses
    marks = [line.get_marker() for line in open_marks]
    assert marks == [line.get_marker() for line in lines.values()] and len(set(marks)) == 2
    heights = {line.get_ydata()[0] for line in open_marks if len(line.get_xdata())}
    assert min(heights) > 1 and ax.get_yscale() == "log"
    assert ax.get_xlabel() and ax.get_ylabel()


def test_bars_add_up_to_all_starts():
    ends = [
        End.GLOBAL,
        End.GLOBAL,
        End.SPURIOUS,
        End.FLAT,
        End.SADDLE,
        End.MOVING,
        End.GLOBAL,
        End.GLOBAL,
    ]
    table = pd.DataFrame({"parameters": [1] * 4 + [2] * 4, "end": [str(end) for end in ends]})
    ax = Figure().subplots()
    end_shares(ax, table)
    bars = {
        container.get_label(): [bar.get_height() for bar in container]
        for container in ax.containers
    }
    assert list(bars) == [end.value for end in LOOKS] and set(LOOKS) == set(End)
    assert bars["global minimum"] == [0.5, 0.5] and bars["spurious minimum"] == [0.25, 0]
    assert [sum(of) for of in zip(*bars.values(), strict=True)] == pytest.approx([1, 1])
    tops = [bar.get_y() + bar.get_height() for bar in ax.containers[-1]]
    assert tops == pytest.approx([1, 1])
