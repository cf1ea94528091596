"""Comparisons: one prefix for all, equal tuning, runs that resume and tables that come back."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase import SELF_SCALED_BFGS
from twophase.__main__ import main
from twophase.automatic import DEFAULT
from twophase.directions import SelfScaledBFGSDirection
from twophase.errors import InputError, TwoPhaseError
from twophase.experiments import comparison, findings, profiles, reached, runs
from twophase.experiments.branches import Place, digest_name
from twophase.experiments.comparison import (
    PLANS,
    TUNING_SEED,
    Entry,
    Plan,
    chosen,
    entries,
    prefix,
    tuning_entries,
)
from twophase.experiments.competitors import SGD, AdamGoesOn, TorchLBFGS
from twophase.experiments.executors import Local, Slurm
from twophase.experiments.files import project_folder
from twophase.experiments.methods import METHODS, Candidates, Ladder, Method
from twophase.line_search import StrongWolfe
from twophase.problems import gpt, networks
from twophase.problems.problem import ImageProblem, PhysicsProblem

pytestmark = pytest.mark.slow

SMOKE = replace(PLANS["smoke"], seeds=1, passes=12)
METHOD_NAMES = ["adam", "adam-tuned", "default", "torch-lbfgs"]
DIGITS = prefix(ImageProblem("digits", "vit-mlp"), 1)


def here(folder):
    return Place(Path(folder), device="cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder and the curves of a small comparison."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, comparison.compare(SMOKE, METHOD_NAMES, here(folder))


@pytest.fixture
def measured(monkeypatch):
    """What is measured from now on, and how many epochs of Adam are trained."""
    work = {"methods": [], "epochs": 0}
    real, train = runs.go_on, runs.train

    def go_on(second, *rest):
        work["methods"].append(second)
        return real(second, *rest)

    def training(trainer, *rest):
        before = len(trainer.history)
        fit = train(trainer, *rest)
        work["epochs"] += len(fit.records) - before
        return fit

    monkeypatch.setattr(runs, "go_on", go_on)
    monkeypatch.setattr(runs, "train", training)
    return work


def assert_same(found, expected):
    """All but the seconds, which are measured, bit for bit."""
    pd.testing.assert_frame_equal(
        found.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True
    )


# -- one prefix, equal tuning


def test_all_methods_start_from_one_prefix(done):
    folder, curves = done
    first = curves[curves.passes_spent == 0]
    assert first.groupby("seed").loss.nunique().eq(1).all()
    assert first.loss.nunique() == 2  # the tuning has a seed of its own
    for trunk in (*SMOKE.prefixes(), SMOKE.tuning()):
        history, _ = runs.read(here(folder).folder(trunk))
        start = first[first.seed == trunk.seed].loss.iloc[0]
        assert (len(history), history.train_loss.iloc[-1]) == (SMOKE.swap_epoch, start)


def test_each_prefix_is_trained_once_and_each_method_measured_once(tmp_path, measured):
    todo = entries(SMOKE.prefixes(), ["adam", "adam-tuned", "default"], SMOKE.passes)
    curves = comparison.run(todo, here(tmp_path))
    assert measured["epochs"] == SMOKE.swap_epoch
    assert measured["methods"] == [AdamGoesOn(), DEFAULT]  # Adam tuned to its own rate is Adam
    adam, tuned = (curves[curves.method == name] for name in ("adam", "adam-tuned"))
    assert_same(tuned.assign(method="adam").reset_index(drop=True), adam.reset_index(drop=True))


def test_tuning_never_sees_the_seeds_that_it_is_judged_by(done):
    _, curves = done
    assert set(curves.seed) == {0, TUNING_SEED}
    assert (curves[curves.seed == 0].groupby("method").candidate.nunique() == 1).all()
    tuned = curves[curves.seed == TUNING_SEED]
    assert tuned.groupby("method").candidate.nunique().ge(3).all()
    picked = chosen(tuned)
    assert set(picked) == {"adam-tuned", "torch-lbfgs"}
    assert picked["adam-tuned"] > 0  # not as shipped
    final = tuned.groupby(["method", "candidate"]).loss.min().unstack()
    for method, candidate in picked.items():
        assert final.loc[method, candidate] == final.loc[method].min()
        assert (curves[(curves.seed == 0) & (curves.method == method)].candidate == candidate).all()


def test_the_best_of_a_ladder_has_worse_ones_on_both_sides(done):
    """Or the ladder ends; so tuning looks further where the best is at an edge."""
    _, curves = done
    tuned = curves[curves.seed == TUNING_SEED]
    for method, best in chosen(tuned).items():
        tried = tuned[tuned.method == method].groupby("candidate").loss.min()
        beside = METHODS[method].candidates.beside(best)
        assert beside and set(beside) <= set(tried.index)
        assert tried[best] == tried.min()


def test_the_chosen_candidate_is_what_runs():
    (entry,) = entries([DIGITS], ["sgd"], 30, {"sgd": 2})
    assert (entry.candidate, entry.config.second) == (2, METHODS["sgd"].candidates[2])


def test_the_automatic_switch_is_charged_from_the_first_epoch_on(tmp_path):
    """Its curve is that of `fit` with the passes of the prefix and of what follows it."""
    start = prefix(ImageProblem("digits", "mlp-4", 64, 20), 6, batch_size=16)
    (entry,) = entries([start], ["race"], 60)
    curves = comparison.run([entry], here(tmp_path))
    assert entry.config.budget == 78 and (curves.swap_epoch == 6).all()
    history, summary = runs.read(here(tmp_path).folder(entry.config))
    comparison.save(curves, tmp_path / "saved")
    told = {
        bool(one) for of in (curves, comparison.load(tmp_path / "saved")) for one in of.switched
    }
    assert told == {summary["swap_epoch"] is not None}
    end = reached.end(history, entry.config)
    assert curves.passes_spent.iloc[0] == 0
    assert curves.passes_spent.iloc[-1] == end.spent + end.reading - 18 <= 60
    assert curves.loss.is_monotonic_decreasing and curves.loss.iloc[-1] <= end.loss
    within = history.passes.cumsum() <= 18
    assert curves.loss.iloc[0] >= history[within].train_loss.min()
    assert curves.validation_loss.notna().all() and curves.accuracy.between(0, 1).all()
    assert curves.seconds.iloc[0] == 0 and curves.seconds.is_monotonic_increasing


def test_what_starts_over_has_a_beginning_of_its_own(tmp_path):
    start = prefix(ImageProblem("digits", "mlp-4", 64, 20), 3, batch_size=16)
    todo = entries([start], ["adam", "adam-from-start", "race"], 30, {"adam-from-start": 1})
    found = comparison.run(todo, here(tmp_path))
    first = found[found.passes_spent == 0].set_index("method").loss
    # with Adam's own rate, held constant, it is the same training
    adam, same = (found[found.method == name].loss for name in ("adam", "adam-from-start"))
    assert same.to_numpy() == pytest.approx(adam.to_numpy(), rel=1e-4)
    assert first["race"] == pytest.approx(first["adam"], rel=1e-4)
    assert profiles.costs(found, 30).method.tolist() == ["adam", "adam-from-start", "race"]


def test_tuning_is_on_the_first_problems_smallest_network():
    plan = Plan(("mnist", "digits"), ("vgg5-max-relu", "vit-mlp", "vit-nomlp"), 1, 30)
    assert plan.tuning().problem.name == "mnist vit-nomlp"
    assert plan.tuning().seed == TUNING_SEED


def test_without_tuning_all_methods_are_as_shipped(done):
    folder, _ = done
    curves = comparison.compare(SMOKE, METHOD_NAMES, here(folder), tune=False)
    assert set(curves.seed) == {0}
    assert set(curves.candidate) == {0}


def test_a_method_may_have_a_multiple_of_the_budget():
    once, twice = entries([DIGITS], ["adam", "adam-twice"], 30)
    assert (once.config.passes, twice.config.passes) == (30, 60)
    assert once.keys["passes"] == twice.keys["passes"] == 30
    assert once.config.second == twice.config.second


# -- many sittings


def test_a_comparison_goes_on_where_it_was_stopped(done, measured):
    folder, curves = done
    lost = entries(SMOKE.prefixes(), ["default"], SMOKE.passes)[0]
    (here(folder).folder(lost.config) / "summary.json").unlink()
    redone = comparison.compare(SMOKE, METHOD_NAMES, here(folder))
    assert (measured["methods"], measured["epochs"]) == ([DEFAULT], 0)
    assert_same(redone, curves)


def test_an_interrupted_comparison_loses_the_method_that_ran(done, tmp_path, monkeypatch):
    _, curves = done
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        real, seen = runs.go_on, []

        def stopped(second, *rest):
            seen.append(second)
            if len(seen) == 4:
                raise KeyboardInterrupt
            return real(second, *rest)

        patch.setattr(runs, "go_on", stopped)
        comparison.compare(SMOKE, METHOD_NAMES, here(tmp_path))
    kept = {path: path.read_bytes() for path in tmp_path.glob("*/curve.csv")}
    assert len(kept) == 3
    assert_same(comparison.compare(SMOKE, METHOD_NAMES, here(tmp_path)), curves)
    assert all(path.read_bytes() == content for path, content in kept.items())


PROGRAM = """
from dataclasses import replace
from pathlib import Path
from twophase.experiments.branches import Place
from twophase.experiments.comparison import PLANS, compare
if __name__ == "__main__":
    plan = replace(PLANS["smoke"], seeds=1, passes=12)
    compare(plan, %r, Place(Path(%r), device="cpu"))
"""


def test_a_killed_comparison_goes_on(done, tmp_path):
    _, curves = done
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM % (METHOD_NAMES, str(out))])
    try:
        while len(list(out.glob("*/curve.csv"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(list(out.glob("*/curve.csv"))) < len(METHOD_NAMES) + 6
    assert_same(comparison.compare(SMOKE, METHOD_NAMES, here(out)), curves)


def test_several_processes_find_what_one_finds(done, tmp_path):
    _, curves = done
    picked = chosen(curves[curves.seed == TUNING_SEED])
    both = entries(SMOKE.prefixes(), ["default", "adam-tuned"], SMOKE.passes, picked)
    both += tuning_entries(SMOKE.tuning(), ["adam-tuned"], SMOKE.passes)
    found = comparison.run(both, here(tmp_path), executor=Local(2))
    histories = list(tmp_path.glob("*/history.csv"))
    assert len(histories) == 2  # one prefix for each seed, trained once
    keys = ["method", "candidate", "seed"]
    assert len(found.drop_duplicates(keys)) == len(both)
    pairs = found.merge(curves, on=[*keys, "passes_spent"])
    assert len(pairs) == len(found)
    assert pairs.loss_x.to_numpy() == pytest.approx(pairs.loss_y.to_numpy(), rel=1e-3)


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path):
    lost = prefix(ImageProblem("mnist", "vit-mlp"), 1)
    todo = entries([lost, *SMOKE.prefixes()], ["adam"], SMOKE.passes)
    place = replace(here(tmp_path / "runs"), root=tmp_path)
    with pytest.raises(TwoPhaseError, match="^1 of 2 runs failed; first mnist .*missing"):
        comparison.run(todo, place)
    assert len(list(tmp_path.glob("runs/*/curve.csv"))) == 1


# -- one folder for one run


@given(
    st.sampled_from(sorted(METHODS)),
    st.integers(0, 3),
    st.integers(1, 99),
    st.integers(3, 999),
)
def test_different_entries_have_different_folders(method, seed, swap, passes):
    entry = _entry(method, prefix(ImageProblem("digits", "vit-mlp"), swap, seed), passes)
    known = METHODS[method].candidates
    config, second = entry.config, [known[number] for number in known.first]
    others = [
        replace(config, **{field: value})
        for field, value in {
            **{"problem": ImageProblem("mnist", "vit-mlp", validation_examples=0)},
            **{"epochs": swap + 1, "seed": seed + 1, "dtype": "float64"},
            **{"adam": replace(config.adam, batch_size=7), "passes": config.passes + 1},
        }.items()
    ]
    others += [
        replace(config, problem=replace(config.problem, model="vit-nomlp")),
        replace(config, problem=replace(config.problem, train_examples=9)),
        replace(config, adam=replace(config.adam, learning_rate=0.5)),
        *(replace(config, second=candidate) for candidate in second[1:]),
    ]
    assert len({digest_name(one) for one in [config, *others]}) == 1 + len(others)


def _entry(method, start, passes):
    """Also of a method whose package is missing here."""
    found = METHODS[method]
    config = replace(start, second=found.candidates[0], passes=found.times * passes)
    return Entry(config, method, 0, passes, start.epochs)


def test_other_settings_of_a_candidate_have_another_folder(monkeypatch):
    (before,) = entries([DIGITS], ["default"], 30)
    other = replace(SELF_SCALED_BFGS, direction=SelfScaledBFGSDirection(history_size=7))
    monkeypatch.setitem(METHODS, "default", Method("default", Candidates((other,))))
    (after,) = entries([DIGITS], ["default"], 30)
    assert digest_name(before.config) != digest_name(after.config)


# -- tables


def test_tables_come_back_with_the_same_losses(done, tmp_path):
    _, curves = done
    comparison.save(curves, tmp_path)
    back = comparison.load(tmp_path)
    keys = [name for name in curves if name not in (*comparison.MEASURED, "switched")]
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


def test_full_batch_problems_come_back_without_model_and_batch_size(tmp_path):
    todo = entries([prefix(PhysicsProblem("poisson"), 1, dtype="float64")], ["adam"], 6)
    curves = comparison.run(todo, here(tmp_path / "runs"))
    comparison.save(curves, tmp_path / "saved")
    for of in (curves, comparison.load(tmp_path / "saved")):
        row = of.iloc[0]
        assert (row.problem, row.model, row["dtype"]) == ("poisson", "", "float64")
        assert pd.isna(row.batch_size) and pd.isna(row.train_examples)
        assert profiles.costs(of, 6).method.tolist() == ["adam"]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=60))
def test_thinning_keeps_both_ends_and_forgets_no_lower_loss_for_long(falls):
    losses = np.cumprod([1.0, *falls])
    curve = pd.DataFrame({"passes_spent": 3 * np.arange(len(losses)), "loss": losses})
    thin = comparison._thinned(curve)
    assert thin.index[0] == 0 and thin.index[-1] == len(curve) - 1
    assert thin.loss.is_monotonic_decreasing and thin.index.is_unique
    inner = thin.passes_spent.iloc[1:-1]
    assert (inner.diff().dropna() >= comparison.SAVED_SPACING * inner.shift().dropna()).all()


def test_tables_of_two_comparisons_are_refused(done, tmp_path):
    _, curves = done
    comparison.save(curves, tmp_path)
    points = pd.read_csv(tmp_path / "curves.csv")
    points[points.run > 0].to_csv(tmp_path / "curves.csv", index=False)
    with pytest.raises(InputError, match=r"curves\.csv of one comparison"):
        comparison.load(tmp_path)


@pytest.mark.parametrize("damage", [None, "", "run\n"])
def test_what_is_no_comparison_is_refused(damage, tmp_path):
    if damage is not None:
        (tmp_path / "runs.csv").write_text(damage)
        (tmp_path / "curves.csv").write_text(damage)
    with pytest.raises(InputError, match="^comparison: "):
        comparison.load(tmp_path)


KEPT = ("fair-comparison", "fair-comparison-mnist-cifar", "payoff-map")


@pytest.mark.parametrize("name", KEPT)
def test_kept_comparisons_load_and_are_whole(name):
    kept = comparison.load(project_folder() / "reports" / "reference" / name)
    assert set(kept.method) <= set(METHODS)
    for method, of in kept.groupby("method"):
        assert all(METHODS[method].candidates[number] for number in set(of.candidate))
    keys = [name for name in kept if name not in comparison.MEASURED]
    for _, run in kept.groupby(keys, dropna=False):
        assert run.passes_spent.iloc[0] == 0 and run.passes_spent.is_monotonic_increasing
        assert run.loss.is_monotonic_decreasing
    judged = kept[kept.seed != TUNING_SEED]
    assert len(profiles.costs(judged, int(kept.passes.min())))


# -- what is asked for


def test_a_method_whose_package_is_missing_is_left_out_and_named(monkeypatch, caplog):
    @dataclass(frozen=True)
    class Missing(SGD):
        package = "no_such_package"

    monkeypatch.setitem(METHODS, "sgd", Method("SGD", Ladder((Missing,), 10.0)))
    assert [one.method for one in entries([DIGITS], ["adam", "sgd"], 30)] == ["adam"]
    assert "sgd left out: its package is not installed" in caplog.text
    assert not tuning_entries(DIGITS, ["sgd"], 30)


def test_full_batch_problems_take_their_points_at_once():
    config = prefix(PhysicsProblem("poisson"), 1, dtype="float64", batch_size=7)
    device = runs.resolve_device("cpu")
    trainer = config.trainer(config.problem.load(0, "float64", device, None), device)
    points = trainer.objective.count
    assert trainer.phases["adam"].batches == 1 < points


def test_a_plan_says_how_many_validation_examples_are_looked_at():
    assert DIGITS.second is None and DIGITS.passes is None
    plan = comparison.plan("smoke", validation_examples=0)
    assert {start.problem.validation_examples for start in plan.prefixes()} == {0}
    with pytest.raises(InputError, match="^validation_examples: -1"):
        comparison.plan("smoke", validation_examples=-1)


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
        ({"batch_size": 0}, "batch_size: 0"),
        ({"problems": ("regression",), "batch_size": -1}, "batch_size: -1"),
        ({"problems": ("regression",), "train_examples": -1}, "train_examples: -1"),
        ({"problems": ("regression",), "train_examples": 10**30}, "train_examples: 10+ "),
        ({"problems": ("poisson", "regression"), "batch_size": 16}, "batch_size: 16 is .* nothing"),
        (
            {"problems": ("poisson",), "validation_examples": 9},
            "validation_examples: 9 is .* nothing",
        ),
        ({"problems": ("poisson",), "models": ("vit-mlp",)}, "model: .* poisson, which has no mod"),
        ({"problems": ("nofile",)}, "problem: 'nofile' .* or the path of a UTF-8 file"),
    ],
)
def test_a_wrong_plan_names_its_field(change, message):
    with pytest.raises(InputError, match=f"^{message}"):
        comparison.plan("smoke", **change)


@pytest.mark.parametrize(
    ("methods", "passes", "candidates", "message"),
    [
        (["newton"], 30, {}, "method: 'newton'"),
        (["adam"], 2, {}, "passes: 2"),
        (["adam-twice"], 2, {}, "passes: 2"),
        (["adam"], 30, {"adam": 1}, "candidate: 1 is not allowed; use one of 0"),
        (["cg"], 30, {"cg": 3}, "candidate: 3 is not allowed; use one of 0, 1, 2"),
        (["sgd"], 30, {"sgd": 17}, "candidate: 17 is not allowed; use a rung from -8 to 8"),
    ],
)
def test_a_wrong_entry_names_its_field(methods, passes, candidates, message):
    with pytest.raises(InputError, match=f"^{message}"):
        entries([DIGITS], methods, passes, candidates)


def test_each_problem_takes_the_options_that_it_has():
    both = comparison.plan("smoke", problems=("digits", "poisson"), batch_size=9, dtype="float64")
    assert [start.adam.batch_size for start in both.prefixes()[:2]] == [9, None]
    assert comparison.plan("smoke", problems=("poisson",), dtype="float64").prefixes()


@pytest.mark.parametrize("field", ["batch_size", "train_examples"])
def test_a_plan_is_checked_whatever_takes_its_fields(field):
    with pytest.raises(InputError, match=f"^{field}: -1"):
        Plan(("poisson",), ("vit-mlp",), 1, 30, **{field: -1})


def test_the_device_of_a_cluster_is_none_of_this_machine():
    found = comparison.facts([], "cuda:77", Slurm())
    assert found["device"] == "cuda:77 of the cluster's nodes"


def test_the_networks_are_all_there_by_size():
    plan = Plan(("digits", "poisson"), tuple(comparison.SIZES), 1, 30, seeds=1)
    names = [start.problem.name for start in plan.prefixes()]
    assert names == [*(f"digits {model}" for model in comparison.SIZES), "poisson"]
    assert [start.dtype for start in plan.prefixes()] == ["float32"] * 5 + ["float64"]
    single = replace(plan, models=("vit-mlp",), dtype="float32")
    assert [start.dtype for start in single.prefixes()] == ["float32"] * 2


def test_a_plan_has_whole_seeds_first():
    starts = Plan(("digits", "mnist"), ("vit-mlp",), 9, 30, seeds=2).prefixes()
    seen = [(start.seed, start.problem.dataset) for start in starts]
    assert seen == [(0, "digits"), (0, "mnist"), (1, "digits"), (1, "mnist")]


def test_only_images_have_a_subset():
    starts = replace(SMOKE, problems=("digits", "poisson")).prefixes()
    assert [start.problem for start in starts] == [
        ImageProblem("digits", SMOKE.models[0], SMOKE.train_examples),
        PhysicsProblem("poisson"),
    ]


def test_variants_are_compared_with_adam_under_their_labels(tmp_path):
    tight = replace(SELF_SCALED_BFGS, line_search=StrongWolfe(c2=0.1))
    todo = comparison.variants(SMOKE.prefixes()[0], {"tight": tight, "rival": TorchLBFGS(5)}, 6)
    found = {entry.method: entry.config.second for entry in todo}
    assert found == {"adam": AdamGoesOn(), "tight": tight, "rival": TorchLBFGS(5)}
    curves = comparison.run(todo, here(tmp_path))
    assert set(profiles.costs(curves, 6).method) == set(found)
    assert curves[curves.passes_spent == 0].loss.nunique() == 1


@pytest.mark.parametrize("name", METHODS)
def test_the_words_tell_a_methods_candidates_apart(name):
    words = findings.candidates(name)
    assert len(set(words.values())) == len(METHODS[name].candidates.first)


# -- the command


def test_the_command_leaves_tables_and_says_what_they_hold(tmp_path, capsys):
    command = "compare --preset smoke --seeds 1 --passes 12 --no-tuning --device cpu"
    out = ["--out", str(tmp_path / "out"), "--method", "default"]
    assert main([*command.split(), *out]) == 0
    said = capsys.readouterr().out
    assert "curves:" in said and "passes to Adam's last loss" in said
    assert "validation of the weights" in said and "lowest on the way" in said
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
        (["--passes", "2"], "passes: 2"),
        (["--swap-epoch", "0"], "swap_epoch: 0"),
        (["--processes", "0"], "processes: 0"),
        (["--problem", "heat"], "problem: 'heat'"),
    ],
)
def test_a_wrong_option_is_one_line(wrong, line, tmp_path, capsys):
    arguments = ["compare", "--preset", "smoke", "--no-tuning", "--out", str(tmp_path / "out")]
    assert main([*arguments, *wrong]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "model"), [("topics", "gpt-10k"), ("digits", "resnet8-groupnorm")]
)
def test_texts_and_residual_networks_are_compared_like_others(tmp_path, problem, model):
    plan = comparison.plan(
        "smoke", problems=(problem,), models=(model,), train_examples=16, seeds=1, passes=12
    )
    assert plan.tuning().problem.name == f"{problem} {model}"
    found = comparison.compare(plan, ["adam", "default", "golden"], Place(tmp_path, device="cpu"))
    assert set(found.method) == {"adam", "default", "golden"} and set(found.model) == {model}
    assert found.loss.notna().all()


def test_what_does_not_go_together_is_one_line():
    with pytest.raises(InputError, match="^model: 'gpt-10k' is not allowed; use one of vit-mlp"):
        comparison.plan("smoke", models=("gpt-10k",))
    with pytest.raises(InputError, match="^model: 'vit-mlp' is not allowed; use one of gpt-10k"):
        comparison.plan("smoke", problems=("topics",), models=("vit-mlp",))


def test_every_network_has_its_place_by_size():
    assert set(comparison.SIZES + comparison.OTHERS) == {*networks.ALL_MODELS, *gpt.GPT_MODELS}
