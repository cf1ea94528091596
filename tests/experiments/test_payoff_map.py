"""Maps of when a second phase pays, against counts by hand on small curves."""

import numpy as np
import pandas as pd
import pytest

from twophase.experiments import comparison, payoff_map, profiles
from twophase.experiments.comparison import prefix
from twophase.experiments.files import project_folder
from twophase.experiments.methods import METHODS
from twophase.payoff import forecast
from twophase.problems.problem import ImageProblem

SET = {
    **{"problem": "digits", "model": "vit-mlp", "train_examples": 64, "batch_size": 8},
    **{"learning_rate": 1e-3, "dtype": "float32", "swap_epoch": 9, "seed": 0},
}
ADAM = [1, 0.5, 0.4, 0.3]
# 3, 6 and infinitely many passes to the loss of Adam after 9, which are 1/3, 2/3 and inf of Adam's
QUICK, SLOW, NEVER = [1, 0.3, 0.2, 0.1], [1, 0.9, 0.3, 0.2], [1, 0.9, 0.8, 0.7]


def curve(method, losses, **setting):
    count = np.arange(len(losses))
    points = {"passes_spent": 3 * count, "seconds": 2.0 * count, "loss": losses}
    return pd.DataFrame(points).assign(**SET | setting, method=method)


def pair(losses, **setting):
    return [curve("adam", ADAM, **setting), curve("default", losses, **setting)]


@pytest.fixture
def curves():
    """Two batch sizes, of which the larger comes first, and two swaps on the smaller."""
    frames = pair(QUICK, batch_size=32) + pair(SLOW, batch_size=32, seed=1)
    frames += pair(QUICK, batch_size=32, seed=2)
    frames += pair(NEVER) + pair(SLOW, swap_epoch=2)
    return pd.concat(frames, ignore_index=True)


def test_a_cell_is_the_median_ratio_of_passes_over_the_seeds(curves):
    found = payoff_map.ratios(curves, [3, 9], 64)
    assert list(found.columns) == [3, 9] and found.index.names == payoff_map.AXES
    # most steps first, then by the swap
    assert list(found.index) == [("8", 2), ("8", 9), ("2", 9)]
    assert found[9].tolist() == [pytest.approx(2 / 3), np.inf, pytest.approx(1 / 3)]
    # the loss of Adam after 3 passes is reached with up to 9: after 6, never, after 3
    assert found[3].tolist() == [2.0, np.inf, 1.0]


def test_a_cell_may_be_in_seconds(curves):
    slow = curves.assign(seconds=np.where(curves.method == "default", 10, 1) * curves.seconds)
    passes, seconds = (payoff_map.ratios(slow, [9], 64, cost)[9] for cost in profiles.COSTS)
    assert seconds.tolist() == pytest.approx((10 * passes).tolist())


def test_the_losses_behind_a_map_are_medians_over_the_seeds(curves):
    seen = curves.assign(validation_loss=2 * curves.loss, accuracy=0.5)
    found = payoff_map.losses(seen, 6, 64)
    assert list(found.index) == [("8", 2), ("8", 9), ("2", 9)]
    columns = ["training, Adam", "training, second", "validation, Adam", "validation, second"]
    assert list(found) == columns
    # after 6 passes; of three seeds 0.2, 0.3 and 0.2
    assert found.loc[("2", 9)].tolist() == pytest.approx([0.4, 0.2, 0.8, 0.4])
    assert found.loc[("8", 9)].tolist() == pytest.approx([0.4, 0.8, 0.8, 1.6])


def test_validation_is_beside_adams_run_by_run(curves):
    second = curves.method.eq("default")
    seen = curves.assign(accuracy=0.5, validation_loss=np.where(second, 2.0, 4.0))
    seen.loc[second & curves.seed.eq(1), "validation_loss"] = 6.0
    said = payoff_map.in_validation(seen, 9)
    assert "below Adam's in **4 of 5** runs, in the median 0.50 times" in said


def test_cells_below_one_pay(curves):
    found = payoff_map.ratios(curves, [3, 9], 64)
    assert payoff_map.paying(found) == "2 of 6"
    assert payoff_map.paying(found, "steps") == "8: 1 of 4; 2: 1 of 2"
    assert payoff_map.paying(found, "swap_epoch") == "2: 1 of 2; 9: 1 of 4"
    assert payoff_map.paying(found, "target") == "3: 0 of 3; 9: 2 of 3"


def test_adam_is_harder_to_beat_where_cells_are_higher_with_more_steps(curves):
    found = payoff_map.ratios(curves, [3, 9], 64)
    said = payoff_map.harder(found)
    assert "**Yes**: the second phase needs a larger part of Adam's passes, by more" in said
    assert "than at K/B = 2 in 2 of 2 pairs" in said
    assert "**No**: " in payoff_map.harder(found.rename({"8": "2", "2": "8"})[::-1])
    mixed = found.assign(more=[1.0, 0.5, 2.0])
    assert "**Not always**: " in payoff_map.harder(mixed) and "2 of 3" in payoff_map.harder(mixed)
    # 6 % apart or less is not told apart
    for ratio, word in ((0.58, "No"), (0.6, "Yes")):
        near = pd.DataFrame({9: [ratio, 0.56]}, index=found.index[[1, 2]])
        assert f"**{word}**: " in payoff_map.harder(near)
    assert payoff_map.harder(found.loc[["8"]]).endswith("a map with one K/B cannot say.")


def test_the_summary_names_swaps_after_which_it_always_pays(curves):
    found = payoff_map.ratios(curves, [3, 9], 64)
    assert "pays in **2 of 6** cells" in payoff_map.summary(found)
    assert payoff_map.summary(found).endswith("every target and every K/B: none.")
    assert payoff_map.summary(found[[9]]).endswith("every target and every K/B: 2.")
    for axis in (*payoff_map.AXES, "target"):
        assert payoff_map.paying(found, axis) in payoff_map.summary(found)


def test_the_kept_map_is_the_published_one():
    kept = comparison.load(project_folder() / "reports" / "reference" / "payoff-map")
    digits = kept[kept.problem == "digits"]
    large = payoff_map.ratios(digits[digits.dtype == "float32"], [30, 100, 300, 1000], 256)
    assert large.shape == (16, 4)
    assert list(large.index.get_level_values("steps").unique()) == ["32", "8", "2", "1"]
    assert large.loc[("8", 10), 30] == pytest.approx(2.4)


def test_precisions_are_side_by_side_where_all_were_run(curves):
    both = pd.concat([curves, *pair(QUICK, dtype="float64")], ignore_index=True)
    found = payoff_map.precisions(both, [3, 9], 64)
    assert list(found.index) == [("8", 9)]
    assert list(found.columns) == [
        ("float32", 3), ("float64", 3), ("float32", 9), ("float64", 9),
    ]  # fmt: skip
    assert found["float32"].iloc[0].tolist() == [np.inf, np.inf]
    assert found["float64"].iloc[0].tolist() == [1.0, pytest.approx(1 / 3)]


def test_what_is_foretold_is_held_against_the_adam_that_went_on():
    starts = [prefix(ImageProblem("digits", "vit-mlp"), 9, seed, 8) for seed in (0, 1)]
    history = pd.DataFrame({"passes": 3, "train_loss": np.geomspace(9, 1, 9)})
    foreseen = forecast(history.itertuples(), 9)
    low, high = foreseen / 2, foreseen * 2
    curves = pd.concat(
        [
            *(curve("adam", [1, 1, 1, low]), curve("default", [1, 1, 1, low / 2])),
            *(curve("adam", [1, 1, 1, low / 2], seed=1), curve("default", [1, 1, 1, low], seed=1)),
        ]
    )
    histories = dict.fromkeys(starts, history)
    said = payoff_map.foretold(curves, histories, [9])
    assert said.says.tolist() == [True, True] and said["is"].tolist() == [True, False]
    assert said.off.tolist() == pytest.approx([2, 4])
    (row,) = payoff_map.confusion(said).to_dict("records")
    assert row == {
        **{"passes": 9, "says it pays, it does": 1, "says it pays, it does not": 1},
        **{"says it does not, it does": 0, "says it does not, it does not": 0},
        "forecast / Adam's loss, median": pytest.approx(3),
    }
    right = (
        "Its word is right in **1 of 2** cases; to say each time that it pays would be right in 1."
    )
    assert payoff_map.right_in_words(said) == right
    mostly = pd.DataFrame({"says": [True, True, False], "is": [False, True, False]})
    assert "**2 of 3**" in payoff_map.right_in_words(mostly)
    assert payoff_map.right_in_words(mostly).endswith("that it does not pay would be right in 2.")
    curves.loc[curves.method == "default", "loss"] = high
    (row,) = payoff_map.confusion(payoff_map.foretold(curves, histories, [9])).to_dict("records")
    assert row["says it does not, it does not"] == 2


def test_a_trend_is_held_against_the_adam_that_went_on():
    phases = ["adam"] * 9 + ["second"] * 3
    losses = [*np.geomspace(9, 1, 9), 0.5, 0.2, 0.1]
    table = pd.DataFrame({"epoch": range(1, 13), "phase": phases, "train_loss": losses})
    records = list(table.assign(passes=3, validation_loss=None).itertuples())
    foreseen = forecast(records[:9], 9)
    said = payoff_map.trend_in_words(records, foreseen / 2)
    assert said.endswith("after as many passes; its trend is 2.00 times that.")
    assert f"has {foreseen / 2:.3g} after" in said


FULL = {"problem": "poisson", "model": "", "train_examples": np.nan, "batch_size": np.nan}


@pytest.fixture
def smooth():
    """A full-batch problem, two seeds: torch's lowest loss is met by the default in half."""
    frames = []
    for seed in (0, 1):
        at = FULL | {"seed": seed}
        frames += [curve("adam", ADAM, **at), curve("default", [1, 0.3, 0.2, 0.05], **at)]
        frames += [curve("torch-lbfgs", [1, 0.4, 0.25, 0.2], **at), curve("golden", NEVER, **at)]
    return pd.concat(frames, ignore_index=True)


def test_full_batch_problems_beside_adam_and_torchs_lbfgs(smooth):
    (row,) = payoff_map.full_batch(smooth, [3, 9]).to_dict("records")
    torchs, golden = METHODS["torch-lbfgs"].label, METHODS["golden"].label
    assert row == {
        "problem": "poisson",
        **{"default: to Adam at 3": "1.00 (1.00 to 1.00)"},
        **{"default: to Adam at 9": "0.33 (0.33 to 0.33)"},
        **{f"{torchs}: to Adam at 9": "0.67 (0.67 to 0.67)", f"{golden}: to Adam at 9": "missed"},
        **{"default: to torch's lowest": "0.67 (0.67 to 0.67)"},
        **{"last loss / torch's": "0.25"},
    }
    later = pd.concat([smooth, smooth.assign(swap_epoch=99, dtype="float64")])
    both = payoff_map.full_batch(later, [9])
    assert both.problem.tolist() == ["poisson, float32", "poisson, float64"]
    assert both["epochs before the swap"].tolist() == [9, 99]


def test_verdicts_are_over_all_swaps_and_seeds(smooth):
    later = pd.concat([curve("adam", ADAM, **FULL), curve("default", SLOW, **FULL)])
    torchs = curve("torch-lbfgs", SLOW, **FULL)
    more = pd.concat([smooth, pd.concat([later, torchs]).assign(swap_epoch=99)])
    (row,) = payoff_map.verdicts(more, 9).to_dict("records")
    assert row["problem"] == "poisson"
    assert row["pays"] == "yes: it needs 0.33 (0.33 to 0.67) times Adam's passes"
    assert row["passes to torch's lowest loss"] == "0.67 (0.67 to 1.00)"


def test_variants_are_measured_by_torchs_lowest_loss_on_the_same_seed(smooth):
    tried = pd.concat(
        [curve("adam", ADAM, **FULL), curve("tight", QUICK, **FULL)]
        + [curve("tight", SLOW, **FULL | {"seed": 1})]
    )
    smooth.loc[(smooth.method == "torch-lbfgs") & (smooth.seed == 1), "loss"] /= 2
    row, *others = payoff_map.beside_torch(tried, smooth).to_dict("records")
    seen = {of["second phase"]: of["seconds"] for of in others}
    assert seen == {METHODS[name].label: 6 for name in ("adam", "torch-lbfgs", "golden")}
    assert row == {
        **{"problem": "poisson", "second phase": "tight", "loss": pytest.approx(0.15)},
        **{"loss / torch's": "1.25 (0.50 to 2.00)", "seconds": pytest.approx(6)},
    }
