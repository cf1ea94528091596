"""The figure of swaps: its curves and marks are the table's."""

import pandas as pd
from matplotlib import pyplot as plt

from twophase.figures.swaps import swap_points


def branches(validation=True):
    rows = []
    for name, swap, last in (
        ("never", 9, 0.5),
        ("2", 2, 0.01),
        ("4", 4, 0.02),
        ("by the race", 3, 0.03),
    ):  # noqa: E501
        for epoch in range(1, 7):
            phase = "adam" if epoch <= swap else "second"
            loss = last if epoch == 6 else 1 / epoch
            rows.append((name, epoch, phase, loss, 2 * loss if validation else None, 3 * epoch))
    columns = ["swap", "epoch", "phase", "train_loss", "validation_loss", "passes"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(kept=table.epoch == 6, validation_accuracy=None, seconds=1.0)


def test_curves_marks_and_ends_are_the_tables():
    _, axes = plt.subplots(1, 2)
    swap_points(axes, branches())
    left, right = axes
    labels = [line.get_label() for line in left.lines if not line.get_label().startswith("_")]
    assert labels == ["Adam alone", "swap at 2", "swap at 4", "by the race", "swap"]
    marks = [line for line in left.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks] == [(6, 1 / 2), (12, 1 / 4)]
    ends = {line.get_label(): line for line in right.lines}
    assert list(ends["training loss"].get_ydata()) == [0.01, 0.02]
    assert list(ends["validation loss"].get_ydata()) == [0.02, 0.04]
    assert list(ends["training loss"].get_xdata()) == [2, 4]
    assert set(ends["training loss, Adam alone"].get_ydata()) == {0.5}
    assert list(ends["validation loss, by the race"].get_ydata()) == [0.06]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ends.values()}
    assert len(looks) == len(ends) == 6
    for ax in axes:
        assert ax.get_xlabel() and ax.get_ylabel() and ax.get_legend()
    plt.close("all")


def test_without_validation_there_is_one_line_of_ends():
    _, axes = plt.subplots(1, 2)
    swap_points(axes, branches(validation=False))
    assert "validation loss" not in [line.get_label() for line in axes[1].lines]
    plt.close("all")


def test_the_race_looks_the_same_however_many_swaps_there_are():
    looks = []
    for table in (branches(), branches().query("swap != '4'")):
        _, axes = plt.subplots(1, 2)
        swap_points(axes, table)
        (race,) = (line for line in axes[0].lines if line.get_label() == "by the race")
        looks.append((race.get_color(), str(race.get_linestyle())))
    assert looks[0] == looks[1]
    plt.close("all")
