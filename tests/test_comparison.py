"""Comparisons: one prefix for all, equal tuning, files that resume and tables that come back."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase.__main__ import main
from twophase.cg import CGSettings
from twophase.errors import InputError
from twophase.experiments import comparison, profiles
from twophase.experiments.comparison import (
    PLANS,
    TUNING_SEED,
    Job,
    Plan,
    Setting,
    chosen,
    jobs,
    tuning_jobs,
)
from twophase.experiments.competitors import METHODS

SMOKE = replace(PLANS["smoke"], seeds=1, passes=12)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder and the curves of a small comparison."""
    folder = tmp_path_factory.mktemp("jobs")
    methods = ["adam", "sgd", "default", "torch-lbfgs"]
    return folder, comparison.compare(SMOKE, methods, folder, device="cpu")


def test_all_methods_start_from_one_prefix(done):
    _, curves = done
    first = curves[curves.passes_spent == 0]
    assert first.groupby("seed").loss.nunique().eq(1).all()
    assert first.loss.nunique() == 2  # the tuning has a seed of its own


def test_tuning_never_sees_the_seeds_that_it_is_judged_by(done):
    _, curves = done
    assert set(curves.seed) == {0, TUNING_SEED}
    assert (curves[curves.seed == 0].groupby("method").candidate.nunique() == 1).all()
    tuned = curves[curves.seed == TUNING_SEED]
    assert set(tuned.groupby("method").candidate.nunique()) == {3}
    picked = chosen(tuned)
    final = tuned.groupby(["method", "candidate"]).loss.min().unstack()
    for method, candidate in picked.items():
        assert final.loc[method, candidate] == final.loc[method].min()
        assert (curves[(curves.seed == 0) & (curves.method == method)].candidate == candidate).all()


def test_a_comparison_goes_on_where_it_was_stopped(done, monkeypatch):
    folder, curves = done
    kept = {path: path.read_text() for path in folder.glob("*.json")}
    lost = sorted(kept)[0]
    lost.unlink()
    again = []
    real = comparison.go_on
    monkeypatch.setattr(comparison, "go_on", lambda *a: (again.append(a), real(*a))[1])
    redone = comparison.compare(SMOKE, list(dict.fromkeys(curves.method)), folder, device="cpu")
    assert len(again) == 1
    pd.testing.assert_frame_equal(redone.drop(columns="seconds"), curves.drop(columns="seconds"))


def test_tables_come_back_with_the_same_losses(done, tmp_path):
    _, curves = done
    comparison.save(curves, tmp_path, {"command": "a test"})
    back = comparison.load(tmp_path)
    keys = [name for name in curves if name not in ("passes_spent", "seconds", "loss")]
    before, after = (dict(list(of.groupby(keys, dropna=False))) for of in (curves, back))
    assert before.keys() == after.keys()
    for key, curve in before.items():
        ends = after[key].iloc[[0, -1]]
        assert ends.passes_spent.tolist() == curve.iloc[[0, -1]].passes_spent.tolist()
        for passes in curve.passes_spent:
            found = profiles.loss_at(after[key], passes)
            within = passes / (1 + comparison.SAVED_SPACING)
            highest = profiles.loss_at(curve, within)
            assert profiles.loss_at(curve, passes) * (1 - 1e-4) <= found <= highest * (1 + 1e-4)
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"command": "a test"}


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=60))
def test_thinning_keeps_both_ends_and_forgets_no_lower_loss_for_long(falls):
    losses = np.cumprod([1.0, *falls])
    curve = pd.DataFrame({"passes_spent": 3 * np.arange(len(losses)), "loss": losses})
    thin = comparison._thinned(curve)
    assert thin.index[0] == 0 and thin.index[-1] == len(curve) - 1
    assert thin.loss.is_monotonic_decreasing and thin.index.is_unique
    inner = thin.passes_spent.iloc[1:-1]
    assert (inner.diff().dropna() >= comparison.SAVED_SPACING * inner.shift().dropna()).all()


def test_full_batch_problems_take_their_points_at_once():
    trainer = Setting("poisson", "", 1, dtype="float64", batch_size=7).trainer(device="cpu")
    assert trainer.phases["adam"].adam.batch_size == len(trainer.objective.inputs)


@given(
    st.sampled_from(sorted(METHODS)),
    st.integers(0, 3),
    st.integers(1, 99),
    st.integers(3, 999),
)
def test_different_jobs_have_different_files(method, seed, swap, passes):
    job = Job(Setting("digits", "vit-mlp", swap, seed), method, 0, passes)
    changed = {
        **{"problem": "mnist", "model": "vit-nomlp", "swap_epoch": swap + 1, "seed": seed + 1},
        **{"batch_size": 7, "learning_rate": 0.5, "train_examples": 9, "dtype": "float64"},
    }
    others = [replace(job, setting=replace(job.setting, **{k: v})) for k, v in changed.items()]
    others += [replace(job, passes=passes + 1), replace(job, method="adam-twice")]
    others += [replace(job, candidate=n) for n in range(1, len(METHODS[method].candidates))]
    names = {other.file_name for other in others if other != job} | {job.file_name}
    assert len(names) == len([other for other in others if other != job]) + 1


def test_other_settings_of_a_candidate_have_another_file(monkeypatch):
    job = Job(Setting("digits", "vit-mlp", 1), "default", 0, 30)
    before = job.file_name
    other = ({"settings": CGSettings(history=7)},)
    monkeypatch.setitem(METHODS, "default", replace(METHODS["default"], candidates=other))
    assert job.file_name != before


def test_several_processes_find_what_one_finds(done, tmp_path):
    _, curves = done
    settings = SMOKE.settings()
    both = jobs(settings, ["default", "torch-lbfgs"], SMOKE.passes)
    found = comparison.run(both, tmp_path, device="cpu", processes=2)
    assert set(found.method) == {"default", "torch-lbfgs"}
    alone = curves[(curves.seed == 0) & (curves.method == "default")]
    losses = found[found.method == "default"].loss.to_numpy()
    assert losses == pytest.approx(alone.loss.to_numpy(), rel=1e-3)


def test_tables_of_two_comparisons_are_refused(done, tmp_path):
    _, curves = done
    comparison.save(curves, tmp_path, {})
    points = pd.read_csv(tmp_path / "curves.csv")
    points[points.run > 0].to_csv(tmp_path / "curves.csv", index=False)
    with pytest.raises(InputError, match=r"curves\.csv of one comparison"):
        comparison.load(tmp_path)


def test_a_method_whose_package_is_missing_is_left_out_and_named(monkeypatch, caplog):
    monkeypatch.setitem(METHODS, "sgd", replace(METHODS["sgd"], package="no_such_package"))
    found = jobs([Setting("digits", "vit-mlp", 1)], ["adam", "sgd"], 30)
    assert [job.method for job in found] == ["adam"]
    assert "sgd left out: no package no_such_package" in caplog.text
    assert not tuning_jobs(Setting("digits", "vit-mlp", 1), ["sgd"], 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems": ("heat",)}, "problem: 'heat'"),
        ({"models": ("resnet",)}, "model: 'resnet'"),
        ({"swap_epoch": 0}, "swap_epoch: 0"),
        ({"passes": 2}, "passes: 2"),
        ({"seeds": 0}, "seeds: 0"),
        ({"dtype": "float16"}, "dtype: 'float16'"),
        ({"train_examples": 0}, "train_examples: 0"),
    ],
)
def test_a_wrong_plan_names_its_field(change, message):
    with pytest.raises(InputError, match=message):
        comparison.plan("smoke", **change)


def test_full_batch_problems_have_no_subset():
    with pytest.raises(InputError, match="train_examples: 9"):
        Setting("poisson", "", 1, train_examples=9, dtype="float64")


def test_the_networks_are_all_there_by_size():
    plan = Plan(("digits", "poisson"), tuple(comparison.SIZES), 1, 30, seeds=1)
    names = [setting.name for setting in plan.settings()]
    assert names == [*(f"digits {model}" for model in comparison.SIZES), "poisson"]


def test_the_command_leaves_tables_and_says_what_they_hold(tmp_path, capsys):
    command = "compare --preset smoke --seeds 1 --passes 12 --no-tuning --device cpu"
    out = ["--out", str(tmp_path / "out"), "--method", "default"]
    assert main([*command.split(), *out]) == 0
    assert "curves:" in capsys.readouterr().out
    curves = comparison.load(tmp_path / "out")
    assert set(curves.method) == {"adam", "default"}
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["versions"]["torch"] and provenance["device"]
    assert provenance["command"].startswith("python -m twophase compare --preset smoke")
    assert provenance["wall_seconds"] >= 0


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["--method", "newton"], "method: 'newton'"),
        (["--preset", "tiny"], "preset: 'tiny'"),
        (["--passes", "many"], "passes: 'many'"),
        (["--processes", "0"], "processes: 0"),
        (["--problem", "heat"], "problem: 'heat'"),
    ],
)
def test_a_wrong_option_is_one_line(wrong, line, tmp_path, capsys):
    arguments = ["compare", "--preset", "smoke", "--no-tuning", "--out", str(tmp_path / "out")]
    assert main([*arguments, *wrong]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
