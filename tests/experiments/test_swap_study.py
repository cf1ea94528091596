"""Branches of a training of one's own: the same losses as whole runs, and the words about them."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import twophase as tp
from twophase.errors import InputError
from twophase.experiments.swap_study import (
    BY_ITSELF,
    NEVER,
    Training,
    ends,
    study,
    to_ends,
    verdict,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def samples(seed):
    inputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(seed)).double()
    return inputs, inputs.prod(dim=1, keepdim=True)


def regression():
    adam = tp.AdamSettings(0.01, 16)
    return Training(network, samples(0), samples(1), mse_loss, adam)


def test_branches_are_whole_runs():
    """Bit for bit what `fit` has for each swap, and for the default."""
    training = regression()
    table = study(training, 150, (3, 10))
    assert table.swap.unique().tolist() == [NEVER, "3", "10", BY_ITSELF]
    settings = dict(validation=training.validation, loss=mse_loss, adam=training.adam)
    for name, extra in {
        NEVER: dict(second=None),
        "3": dict(switch=3, fallback=None),
        "10": dict(switch=10, fallback=None),
        BY_ITSELF: {},
    }.items():
        result = tp.fit(network(), training.data, passes=150, **settings, **extra)
        rows = table[table.swap == name]
        for column in ("epoch", "phase", "train_loss", "validation_loss"):
            assert rows[column].tolist() == result.history[column].tolist()
        assert rows.epoch[rows.kept].tolist() == [result.final.epoch]
    assert table.groupby("swap").seconds.apply(lambda of: (of.diff().iloc[1:] > 0).all()).all()
    by_adam = table[(table.swap == "10") & (table.phase == "adam")]
    assert by_adam.passes.tolist() == [3 * n for n in range(1, 11)]


def test_what_the_race_needs_is_in_its_passes():
    """Three losses a trial, with mini-batches."""
    table = study(regression(), 300, (3,))
    race = table[table.swap == BY_ITSELF]
    trainer = regression().trainer(switch=tp.Race(length=300))
    while trainer.spent < 300 and not trainer.ended:
        trainer.epoch()
    assert race.passes.iloc[-1] == trainer.spent > sum(r.passes for r in trainer.history)


def test_a_sum_of_squares_has_no_data():
    x = torch.linspace(-1, 1, 20).double()[:, None]

    def problem():
        torch.manual_seed(0)
        line = nn.Linear(1, 1).double()
        return tp.LeastSquares(line, [tp.Term(lambda model, points: model(points) - 3 * points, x)])

    @torch.no_grad()
    def error(line):
        return abs(line.weight.item() - 3)

    adam = tp.AdamSettings(batch_size=None)
    assert list(ends(study(Training(problem, adam=adam), 60, (2,)))) == [
        "train_loss", "passes", "seconds"
    ]  # fmt: skip
    table = study(Training(problem, adam=adam, error=error), 60, (2,))
    found = ends(table)
    assert list(found) == ["train_loss", "passes", "seconds", "error"]
    # of the weights that each branch keeps: the equation holds where the loss is 0
    assert found.error["2"] < 1e-9 < 1 < found.error[NEVER]
    assert "error of the solution" in to_ends(table)
    assert found.train_loss["2"] < 1e-20 < found.train_loss[NEVER]
    assert verdict(table).startswith(
        "**It pays in training loss**: the lowest to within 1 %, by the swap at epoch 2, is "
    )
    assert "validation" not in verdict(table)


def test_swaps_beyond_the_end_are_one_line():
    with pytest.raises(InputError, match=r"^swaps: \[100, 200\]"):
        study(regression(), 60, (100, 200))
    with pytest.raises(InputError, match="^passes: 0"):
        study(regression(), 0, (1,))


def table_of(ends_of):
    """A table of branches of two epochs, by training and validation losses."""
    rows = [
        (name, epoch, loss, validation, epoch == 2)
        for name, losses in ends_of.items()
        for epoch, (loss, validation) in zip((1, 2), losses, strict=True)
    ]
    columns = ["swap", "epoch", "train_loss", "validation_loss", "kept"]
    return pd.DataFrame(rows, columns=columns).assign(
        phase="adam", passes=6, seconds=1.0, validation_accuracy=None
    )


def test_the_verdict_says_who_is_lowest_in_both_losses():
    both = table_of({
        NEVER: [(1.0, 1.0), (0.5, 0.6)],
        "1": [(1.0, 1.0), (0.1, 0.9)],
        BY_ITSELF: [(1.0, 1.0), (0.2, 0.7)],
    })  # fmt: skip
    text = verdict(both)
    assert text.startswith(
        "**It pays in training loss, not in validation loss**: the lowest to within 1 %, "
        "by the swap at epoch 1, is 0.1, Adam going on ends at 0.5, at the same passes, not "
        "seconds: 1 beside 1; "
        "validation losses there are 0.9, Adam's 0.6."
    )
    assert "ends below Adam, at 0.2; its own validation loss is 0.7." in text
    assert "is that of **Adam alone**: the best of 2 branches, without the race" in text
    assert '`fit(..., second=None, keep="validation")`' in text and text.endswith("one seed.")
    assert list(to_ends(both)) == [
        "training loss", "validation loss", "passes", "seconds", "lowest validation loss"
    ]  # fmt: skip
    both.loc[both.swap.eq("1"), "validation_loss"] = [0.5, 0.55]
    assert verdict(both).startswith("**It pays in training loss, and in validation loss**")
    assert '`fit(..., switch=1, fallback=None, keep="validation")`' in verdict(both)
    level = table_of({
        NEVER: [(1.0, 1.0), (0.5, 0.8)],
        "1": [(1.0, 1.0), (0.1, 0.9)],
        "2": [(1.0, 1.0), (0.1005, 0.7)],
        BY_ITSELF: [(1.0, 1.0), (0.2, 0.7)],
    })  # fmt: skip
    level.loc[level.swap.eq("2"), "seconds"] = 2.0
    text = verdict(level)
    assert text.startswith("**It pays in training loss, partly in validation loss**: ")
    assert "by the swap at epoch 1 or 2, is 0.1," in text and "not seconds: 1 to 2 beside 1" in text
    assert "validation losses there are 0.7 to 0.9, Adam's 0.8." in text
    level.loc[level.swap.eq(NEVER) & level.epoch.eq(2), "train_loss"] = 0.1005
    assert verdict(level).startswith("**No swap pays**")
    worse = table_of({
        NEVER: [(1.0, 1.0), (0.1, 0.6)],
        "1": [(1.0, 1.0), (0.5, 0.59)],
        BY_ITSELF: [(1.0, 1.0), (0.2, 0.7)],
    })  # fmt: skip
    text = verdict(worse)
    assert "**No swap pays**" in text and "ends not below Adam" in text
    assert "is that of **the swap at epoch 1**" in text
    assert 'keep="validation"' not in text
