"""A comparison in tables for readers, against counts by hand on small curves."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from twophase.experiments import comparison, findings, profiles
from twophase.experiments.comparison import TUNING_SEED
from twophase.experiments.files import project_folder
from twophase.experiments.methods import METHODS
from twophase.experiments.profiles import SETTING

SET = {
    **{"problem": "digits", "model": "vit-mlp", "train_examples": np.nan, "batch_size": 64},
    **{"learning_rate": 1e-3, "dtype": "float32", "swap_epoch": 9, "seed": 0},
    **{"candidate": 0, "passes": 9},
}


def curve(method, losses, step=2.0, **setting):
    """A point every 3 passes and `step` seconds, without validation unless `setting` has one."""
    count = np.arange(len(losses))
    points = {"passes_spent": 3 * count, "seconds": step * count, "loss": losses}
    unseen = {"validation_loss": np.nan, "accuracy": np.nan}
    return pd.DataFrame(points).assign(**SET | unseen | setting, method=method)


ADAM = [1, 0.5, 0.4, 0.3]
EARLY, LATE, NEVER = [1, 0.3, 0.1, 0.1], [1, 0.9, 0.8, 0.25], [1, 0.9, 0.8, 0.7]


@pytest.fixture
def curves():
    """Two networks and seeds: on the second the default misses once; torch's ran on the first."""
    other = {"model": "vit-nomlp"}
    frames = [curve("adam", ADAM, seed=seed, **at) for at in ({}, other) for seed in (0, 1)]
    frames += [
        curve("default", EARLY, step=9.0),
        curve("default", [1, 0.6, 0.3, 0.2], step=9.0, seed=1),
        curve("default", EARLY, **other),
        curve("default", NEVER, seed=1, **other),
        curve("torch-lbfgs", LATE),
        curve("torch-lbfgs", EARLY, seed=1),
    ]
    return pd.concat(frames, ignore_index=True)


def test_the_tunings_runs_are_apart(curves):
    tried = curve("sgd", EARLY, seed=TUNING_SEED)
    found = findings.parts(pd.concat([curves, tried], ignore_index=True))
    assert set(found.curves.seed) == {0, 1} and set(found.tuning.method) == {"sgd"}
    assert (len(found.curves), found.passes) == (len(curves), 9)


def test_the_table_of_the_tuning_names_what_was_chosen():
    losses = {0: [1, 0.5], 1: [1, 0.9], 2: [1, 0.2]}
    tuning = pd.concat(curve("sgd", of, candidate=n) for n, of in losses.items())
    (row,) = findings.tuned(tuning).to_dict("records")
    assert row == {
        **{"method": METHODS["sgd"].label, "candidates": "rate 1.0; rate 0.3; rate 3.0"},
        **{"chosen": "rate 3.0", "its loss": 0.2, "the worst's": 0.9},
    }
    assert findings.tuned(tuning[:0]).empty


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_candidates_differ_in_words(method):
    words = findings.candidates(method)
    assert list(words) == list(METHODS[method].candidates.first)
    assert len(set(words.values())) == len(words) and all(words.values())


def test_nested_settings_are_told_by_what_differs_innermost():
    golden = {0: "rtol 0.01", 1: "rtol 0.1", 2: "rtol 0.001", 12: "rtol 1e-08"}
    assert findings.candidates("golden", [0, 1, 2, 12]) == golden
    assert findings.candidates("adam") == {0: "as shipped"}
    mixed = {0: "as shipped", 1: "c2 0.5", 2: "preconditioner Identity()"}
    assert findings.candidates("default-tuned") == mixed
    kinds = {0: "as shipped", 1: "cosine False", 3: "rate 0.0003, cosine False"}
    assert findings.candidates("adam-from-start", [0, 1, 3]) == kinds


def test_methods_after_a_prefix_have_one_start(curves):
    assert findings.one_start(curves)
    own = curve("race", [0.5, 0.4])
    assert findings.one_start(pd.concat([curves, own]))
    assert not findings.one_start(pd.concat([curves, own.assign(method="golden")]))


def test_a_setting_in_words_is_what_the_curves_have_in_common(curves):
    one = curves[curves.model == "vit-mlp"]
    text = findings.setting(one)
    assert text == "digits vit-mlp, all examples in batches of 64, after 9 epochs of Adam, 2 seeds"
    full = curve("adam", ADAM, problem="poisson", model="", batch_size=np.nan)
    assert (
        findings.setting(full)
        == "poisson, all examples in one batch, after 9 epochs of Adam, 1 seed"
    )


def test_methods_have_labels_and_only_names_that_differ_have_columns(curves):
    table = findings.by_method(curves, 9)
    assert list(table.columns[:2]) == ["network", "method"]
    assert table.method.iloc[0] == METHODS["adam"].label
    row = table[(table.network == "vit-mlp") & (table.method == METHODS["default"].label)].iloc[0]
    assert row["passes / Adam's"] == "0.50 (0.33 to 0.67)"
    alone = findings.by_method(curves[curves.model == "vit-mlp"], 9)
    assert "network" not in alone and "problem" not in alone


def test_twice_the_passes_of_adam_beside_the_second_phase(curves):
    assert findings.twice(curves).empty
    longer = [
        curve("adam-twice", [*ADAM, 0.3, end], seed=seed) for seed, end in ((0, 0.15), (1, 0.1))
    ]
    (row,) = findings.twice(pd.concat([curves, *longer])).to_dict("records")
    assert (row["Adam"], row["Adam, twice"], row["default second phase"]) == (
        *(0.3, pytest.approx(0.125), pytest.approx(0.15)),
    )
    assert row["twice / Adam"] == pytest.approx(0.125 / 0.3)
    assert row["second phase lower than Adam, twice"] == "1 of 2 seeds"


def test_methods_and_settings_are_chosen_by_where_they_ran(curves):
    found = profiles.costs(curves, 9)
    assert set(findings.everywhere(found).method) == {"adam", "default"}
    there = findings.where_ran(found, "torch-lbfgs")
    assert set(there.model) == {"vit-mlp"}
    assert set(there.method) == {"adam", "default", "torch-lbfgs"}


def test_how_often_methods_are_quickest_and_get_there(curves):
    same = findings.everywhere(profiles.costs(curves, 9))
    table = findings.solved(same).set_index("method")
    assert table.loc[METHODS["adam"].label].to_dict() == {"quickest": "25%", "gets there": "100%"}
    assert table.loc[METHODS["default"].label].to_dict() == {"quickest": "75%", "gets there": "75%"}


def test_the_standing_counts_problems_and_networks(curves):
    equal = curve("sgd", ADAM)
    found = profiles.costs(pd.concat([curves, equal], ignore_index=True), 9)
    table = findings.standing(found).set_index("method")
    assert table.loc[METHODS["default"].label].to_dict() == {
        **{"problems and networks": 2, "quicker on every seed": 1, "on some": 1, "on none": 0},
        "runs that miss": "1 of 4",
    }
    # as quick as Adam is not quicker
    assert table.loc[METHODS["sgd"].label].to_dict() == {
        **{"problems and networks": 1, "quicker on every seed": 0, "on some": 0, "on none": 1},
        "runs that miss": "0 of 1",
    }
    assert METHODS["adam"].label not in table.index


def test_the_answer_has_an_item_for_each_outcome_that_there_is(curves):
    never = curve("golden", NEVER)
    found = profiles.costs(pd.concat([curves, never]), 9)
    assert findings.answer(found).splitlines() == [
        "- on every seed (1 of 2): digits vit-mlp 0.50 (0.33 to 0.67)",
        "- on some seeds only (1 of 2): digits vit-nomlp missed on 1 of 2 seeds (0.33 at best)",
    ]
    assert findings.answer(found, "golden") == "- on no seed (1 of 1): digits vit-mlp missed"


def test_the_answers_speak_for_and_against(curves):
    compared = findings.Parts(curves, curves[:0], 9)
    said = findings.answers(profiles.costs(curves, 9), [compared])
    assert said.startswith("**Where does the default second phase") and "golden" not in said
    assert "misses Adam's last loss: 1 of 4; in which it gets there later than Adam: 0." in said
    assert "validation" not in said and "tuned from the start" not in said
    rival = "It ran on 1 of 2 problems and networks. There the default needs fewer passes than it"
    assert f"{rival} in the median on 1 of 1 problems and networks, in 1 of 2 runs, and" in said
    seen = curves.assign(validation_loss=curves.loss + curves.method.eq("default"), accuracy=0.5)
    said = findings.answers(profiles.costs(seen, 9), [compared._replace(curves=seen)])
    assert "in validation loss?** Of the weights" in said and "digits vit-mlp 3.8" in said
    assert findings.whole(compared)
    assert not findings.whole(compared._replace(passes=30))


def test_a_rival_is_met_where_both_ran(curves):
    # a third seed on which the default misses, which is no matter in the median
    third = [curve("adam", ADAM), curve("default", NEVER), curve("torch-lbfgs", LATE)]
    table = pd.concat([curves, pd.concat(third).assign(seed=2)], ignore_index=True)
    table.loc[(table.method == "torch-lbfgs") & (table.seed == 1), "loss"] = LATE
    assert findings.ahead(profiles.costs(table, 9)) == (
        "in the median on 1 of 1 problems and networks, in 2 of 3 runs"
    )


def test_validation_is_that_of_the_weights_with_the_lowest_training_loss():
    """In the end, and on the way for who keeps the weights of the lowest validation loss."""
    seen = {"validation_loss": [4.0, 3, 2, 3], "accuracy": 0.5}
    frames = [curve("adam", ADAM, **seen), curve("adam", ADAM, seed=1, **seen)]
    better = {"validation_loss": [4.0, 1.0, 5, 6], "accuracy": [0, 0, 0, 0.75]}
    frames += [curve("default", EARLY, **better)]
    frames += [curve("default", EARLY, seed=1, **better | {"validation_loss": [4.0, 4, 4, 4.5]})]
    table = pd.concat(frames, ignore_index=True)
    rows = findings.in_validation(table, 9).set_index("method")
    assert rows.loc[METHODS["default"].label].to_dict() == {
        **{"validation loss": "5.25 (4.5 to 6)", "lowest on the way": "2.5 (1 to 4)"},
        **{"accuracy": "0.750", "seeds": 2},
        "passes to Adam's lowest": "missed on 1 of 2 seeds (0.50 at best)",
    }
    (verdict,) = findings.verdicts(table, 9).to_dict("records")
    assert verdict["validation loss / Adam's"] == "1.75 (1.50 to 2.00)"
    unseen = pd.concat([curve("adam", ADAM), curve("default", EARLY)])
    assert findings.in_validation(unseen, 9).empty
    assert findings.verdicts(unseen, 9)["validation loss / Adam's"].tolist() == ["not measured"]
    one = findings.in_validation(table[table.seed == 0].assign(accuracy=np.nan), 9)
    assert "accuracy" not in one, "a network that does not classify has none"
    assert one.set_index("method").loc[METHODS["default"].label].to_dict() == {
        **{"validation loss": "6", "lowest on the way": "1", "seeds": 1},
        "passes to Adam's lowest": "0.50",
    }


def test_verdicts_are_by_passes_and_by_seconds(curves):
    first, second = findings.verdicts(curves, 9).to_dict("records")
    assert (first["problem"], first["network"]) == ("digits", "vit-mlp")
    assert first["pays by passes"].startswith("yes: it needs 0.50")
    assert first["pays by seconds"].startswith("no: it needs 2.25 (1.50 to 3.00) times Adam's sec")
    assert first["quickest by passes"] == f"{METHODS['default'].label}, 0.50 (0.33 to 0.67)"
    assert second["pays by passes"].startswith("not on every seed: missed on 1 of 2 seeds")
    assert second["quickest by passes"].startswith(METHODS["adam"].label)


def test_seed_0_is_compared_at_all_levels_and_medians_where_there_are_more_seeds():
    def run(method, seed, *losses):
        points = {"passes": [0, 10, 20, 31][: len(losses)], "loss": losses}
        return pd.DataFrame(points).assign(method=method, seed=seed)

    runs = [run("b", 0, 1, 0.5, 0.4, 0.3), run("b", 1, 1, 0.7, 0.2, 0.1), run("a", 0, 1, 0.6, 0.3)]
    table = findings.at_levels(pd.concat(runs), [10, 20, 30, 99])
    assert table.to_dict("list") == {
        **{"method": ["b", "a"], "loss at 10": [0.5, 0.6], "loss at 20": [0.4, 0.3]},
        **{"loss at 30": pytest.approx([0.4, np.nan], nan_ok=True), "seeds": [2, 1]},
        "median at 30": pytest.approx([0.3, np.nan], nan_ok=True),
    }
    shorter = pd.concat([*runs, run("a", 1, 1, 0.6)])
    assert findings.at_levels(shorter, [10, 20])["median at 10"].tolist() == [0.6, 0.6]
    alone = pd.concat([run("b", 0, 1, 0.5), run("c", 0, 1, 0.5), run("a", 0, 1, 0.4)])
    table = findings.at_levels(alone, [10, 20])
    assert table.to_dict("list") == {"method": ["b = c", "a"], "loss at 10": [0.5, 0.4]}


def test_a_change_helps_or_hurts_where_all_seeds_agree():
    losses = pd.DataFrame({"a": [1.0, 1.0, 1.0], "b": [2.0, 4.0, 3.0], "c": [0.5, 2.0, 2.0]})
    pairs = {f"{one} for {other}": (one, other) for one, other in ("ab", "ba", "ca", "ac")}
    table = findings.changes(losses, pairs).set_index("change")
    assert table.verdict.tolist() == ["helps", "hurts", *["no clear difference"] * 2]
    assert table.loc["a for b"].tolist()[:3] == [3, 2, 4]
    one = findings.changes(losses[:1], pairs)
    assert set(one.verdict) == {"one seed says little"}


def test_agreement_by_chance_is_a_coin_thrown_for_each_seed():
    said = findings.by_chance(13, 3)
    assert "in one row of 4" in said and "about 3 of these 13 rows" in said
    heads = np.array(list(product((True, False), repeat=5)))
    agreeing = (heads.all(axis=1) | ~heads.any(axis=1)).mean()
    assert f"in one row of {1 / agreeing:.0f}:" in findings.by_chance(1, 5)


def test_a_standing_names_the_lowest_and_the_places_of_others():
    losses = pd.DataFrame({"method": list("aabbcc"), "loss": [3.0, 5.0, 1.0, 2.0, 9.0, 9.0]})
    said = findings.standing_in_words(losses, {"c": "the last", "b": "the first"})
    assert said == "1.5, of b. Of 3 methods the last 9, number 3; the first 1.5, number 1"


def test_methods_without_their_package_are_named(monkeypatch):
    monkeypatch.setattr("twophase.experiments.methods.find_spec", lambda package: None)
    said = findings.missing(["adam", "torchmin-cg"])
    assert said.endswith(f": {METHODS['torchmin-cg'].label}.") and findings.missing(["adam"]) == ""


@pytest.mark.parametrize("name", ["fair-comparison", "fair-comparison-mnist-cifar"])
def test_kept_comparisons_fill_all_tables(name):
    kept = comparison.load(project_folder() / "reports" / "reference" / name)
    curves, tuning, passes = findings.parts(kept)
    assert len(findings.tuned(tuning)) == tuning.method.nunique()
    found = profiles.costs(curves, passes)
    assert len(findings.verdicts(curves, passes)) == len(found.drop_duplicates(findings.NAME))
    assert set(findings.standing(found).method) == {
        METHODS[method].label for method in set(found.method) - {"adam"}
    }
    assert len(found.drop_duplicates(list(SETTING))) == (found.method == "adam").sum()
