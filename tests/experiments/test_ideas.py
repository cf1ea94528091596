"""Ideas beside a rival: losses and passes on straight lines of ln L, against numbers by hand."""

import numpy as np
import pandas as pd
import pytest

from twophase.experiments import ideas
from twophase.experiments.files import committed_table


def run(method, losses, seed=0, step=50):
    points = {"passes": step * np.arange(len(losses)), "loss": losses}
    return pd.DataFrame(points).assign(problem="p", swap_epoch=9, seed=seed, method=method)


def test_between_points_the_logarithm_of_the_loss_is_a_straight_line():
    one = run("idea", [1.0, 1e-2, 0.5, 1e-4])
    assert ideas.loss_after(one, 25) == pytest.approx(1e-1)
    # a loss that rises again is not the lowest so far
    assert ideas.loss_after(one, 100) == pytest.approx(1e-2)
    assert ideas.loss_after(one, 1000) == pytest.approx(1e-4)
    assert ideas.passes_to(one, 1e-1) == pytest.approx(25)
    assert ideas.passes_to(one, 1e-3) == pytest.approx(125)
    assert ideas.passes_to(one, 2.0) == 0 and ideas.passes_to(one, 1e-5) == np.inf


def test_runs_are_beside_the_rivals_from_the_same_start():
    curves = pd.concat(
        [run("rival", [1.0, 1e-1, 1e-2]), run("rival", [1.0, 1e-2, 1e-3], seed=1)]
        + [run("idea", [1.0, 1e-2, 1e-3, 1e-9]), run("idea", [1.0, 0.5, 1e-4], seed=1)]
        + [run("other", [1.0, 0.5])]
    )
    found = ideas.pairs(curves, "rival", levels=[1e-2])
    assert found.method.tolist() == ["idea", "other", "idea"]
    # within what both had: not 1e-9, and the rival after 50 passes beside the other
    assert found.ratio.tolist() == pytest.approx([0.1, 5, 0.1])
    assert found[1e-2].tolist()[:2] == [pytest.approx(0.5), np.inf]
    shown = ideas.standing(curves, "rival", [50], [1e-2]).set_index("method")
    assert shown.loc["idea"].tolist()[:2] == ["1 of 2", "2 of 2"]
    assert shown.loc["other"].tolist() == ["0 of 1", "0 of 1", "missed"]
    assert list(shown) == ["below it after 50", "in the end", "passes to 0.01 / its"]


def test_the_words_are_the_kept_curves():
    kept = committed_table("reports/reference/second-phase-ideas/curves.csv")
    smooth, digits = (of for _, of in kept.groupby(kept.problem != "tanh-regression"))
    text = ideas.in_words(digits, smooth)
    ends = kept.groupby([*ideas.START, "method"]).loss.min().unstack("method")
    both = ends[["L-BFGS after a decay of 30 epochs", "L-BFGS, preconditioned"]]
    lower = both.iloc[:, 0] < both.iloc[:, 1]
    on_smooth = lower.index.get_level_values("problem") == "tanh-regression"
    counts = f"{lower[~on_smooth].sum()} of 7 and {lower[on_smooth].sum()} of 3 runs in the end"
    assert text.endswith(f"{counts}.") and "nan" not in text
