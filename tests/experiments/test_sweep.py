"""Sweeps: what YAML stands for, errors in one line, and nothing that was killed runs twice."""

import errno
import itertools
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import twophase as tp
from twophase.__main__ import main
from twophase.experiments import runs, sweep
from twophase.experiments.branches import Place, digest_name
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import ALONE
from twophase.problems.problem import ImageProblem, PhysicsProblem
from twophase.reporting import report

EIGHT = """
preset: smoke
model: [vit-nomlp-wkewq-wvwo1, vit-nomlp-wkewq]
seed: [0, 1]
switch: [GradientNormPeak(0.8), GradientNormPeak(0.95)]  # the paper's gn_fact
"""
# two runs of half a dozen epochs on a few digits
TWO = "preset: smoke\ntrain_examples: 32\nepochs: 5\nsecond: paper\nswitch: [1, 3]\n"


def write(folder, text):
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def spec(folder, text):
    return sweep.read(write(folder, text))


# -- what a file stands for


def test_two_networks_two_seeds_and_two_factors_are_eight_runs(tmp_path):
    found = spec(tmp_path, EIGHT).configs()
    smoke = RunConfig(
        ImageProblem(train_examples=48, validation_examples=90), 8, tp.AdamSettings(batch_size=16)
    )
    assert found == [
        replace(smoke, problem=replace(smoke.problem, model=model), seed=seed, switch=switch)
        for model in ("vit-nomlp-wkewq-wvwo1", "vit-nomlp-wkewq")
        for seed in (0, 1)
        for switch in (tp.GradientNormPeak(0.8), tp.GradientNormPeak(0.95))
    ]


FIELDS = {
    "seed": st.integers(0, 10**9),
    "epochs": st.integers(1, 10**6),
    "learning_rate": st.floats(1e-300, 1e300),
    "train_examples": st.none() | st.integers(1, 1000),
    "freeze": st.booleans(),
    "keep": st.sampled_from(["train", "validation"]),
    "switch.confidence": st.floats(0.1, 9.0),
}


@st.composite
def mappings(draw):
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4, unique=True))
    several = {n: st.lists(FIELDS[n], min_size=1, max_size=3, unique_by=repr) for n in names}
    return {n: draw(st.one_of(FIELDS[n], several[n])) for n in names}


@given(mappings())
def test_the_runs_are_the_product_of_all_lists(tmp_path_factory, mapping):
    """The oracle is itertools on what was written, whatever YAML makes of the numbers."""
    folder = tmp_path_factory.mktemp("spec", numbered=True)
    found = spec(folder, yaml.safe_dump(mapping, sort_keys=False))
    lists = [value if isinstance(value, list) else [value] for value in mapping.values()]
    expected = [dict(zip(mapping, values, strict=True)) for values in itertools.product(*lists)]
    assert [dict(found.shared) | point for point in found.points()] == expected
    assert list(found.swept) == [name for name, value in mapping.items() if isinstance(value, list)]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_a_number_as_python_and_yaml_1_2_write_it(number):
    """In YAML 1.1 "1e-3" is a text."""
    for text in (repr(number), f"{number:.17e}", f"{number:.17E}".replace("E+", "e")):
        assert yaml.load(text, sweep._Loader) == number
        assert isinstance(yaml.load(text, sweep._Loader), float)


@pytest.mark.parametrize("text", ["e5", "1e", "1e-3x", "-e3", "1.e.5", "0x1e5", "e-3"])
def test_what_only_looks_like_a_number_is_none(text):
    assert not isinstance(yaml.load(text, sweep._Loader), float)


RUNS = {
    "learning_rate: 1e-2": {"adam": tp.AdamSettings(1e-2)},
    "precision: BFloat16(0.05)": {"adam": tp.AdamSettings(precision=tp.BFloat16(0.05))},
    "adam.precision: TF32": {"adam": tp.AdamSettings(precision=tp.TF32())},
    "switch: 20": {"switch": tp.FixedEpoch(20)},
    "fallback: null": {"fallback": None},
    "second: paper\nswitch.factor: 0.8": tp.PAPER | {"switch": tp.GradientNormPeak(0.8)},
    "budget: 3000": {"budget": 3000},
    "problem.loss: cross-entropy": {"problem": ImageProblem(loss="cross-entropy")},
    "strategy: adam\nadam: AdamSettings(0.01)": {"adam": tp.AdamSettings(0.01), "second": None},
    "adam.betas: [[0.8, 0.9]]": {"adam": tp.AdamSettings(betas=(0.8, 0.9))},
    "line_search: StrongWolfe(c2=0.2)": {
        "second": replace(tp.SELF_SCALED_BFGS, line_search=tp.StrongWolfe(c2=0.2))
    },
}


def test_the_problems_of_a_sweep_take_the_options_that_they_have(tmp_path):
    text = "preset: smoke\nproblem: [digits, poisson]\nmodel: mlp-4\nvalidation_examples: 9\n"
    images, equation = spec(tmp_path, text).configs()
    assert images.problem == ImageProblem("digits", "mlp-4", 48, 9)
    assert images.adam.batch_size == 16
    assert (equation.problem, equation.adam.batch_size) == (PhysicsProblem("poisson"), None)
    (alone,) = spec(tmp_path, "preset: smoke\nproblem: poisson").configs()
    assert alone == equation


@pytest.mark.parametrize(
    ("text", "switch"),
    [
        ("switch.factor: 0.7\nswitch: GradientNormPeak", tp.GradientNormPeak(0.7)),
        ("second: paper\nswitch.factor: 0.7", tp.GradientNormPeak(0.7)),
    ],
)
def test_a_part_is_named_and_one_of_its_fields_swept(tmp_path, text, switch):
    assert spec(tmp_path, text).configs()[0].switch == switch
    text = "second.direction.beta: FR\nsecond.direction: ConjugateDirection\nsecond: paper"
    assert spec(tmp_path, text).configs()[0].second.direction == tp.ConjugateDirection("FR")


def test_the_strategies_of_a_sweep_have_use_for_different_options(tmp_path):
    text = "strategy: [adam, adam+second, second]\nswitch: 3\nlearning_rate: 0.1"
    adam, both, second = spec(tmp_path, text).configs()
    assert (adam.second, both.switch, second.adam) == (None, tp.FixedEpoch(3), None)


@pytest.mark.parametrize("text", RUNS)
def test_fields_are_those_of_a_run(tmp_path, text):
    assert spec(tmp_path, text).configs() == [RunConfig(**RUNS[text])]


# -- errors

ABLATION = "notebook: notebooks/08-ablation-gn-fact.ipynb\nparameters: "
TOO_MANY = f"seed: {list(range(101))}\nepochs: {list(range(1, 101))}"
BAD = {
    "epcohs: 3": "did you mean 'epochs'?",
    "swtch.factor: 3": "did you mean 'switch'?",
    "switch.facto: 3": "field: 'facto' is not allowed; use fields of Race",
    "seed.x: 3": "field: 'x' is not allowed; use fields of int: none",
    "epochs: ten": "epochs: 'ten' is not allowed; use a whole number",
    "epochs: 1.5": "epochs: 1.5 is not allowed",
    "epochs: true": "epochs: True is not allowed",
    "seed: [0, one]": "seed: 'one' is not allowed",
    "seed: []": "seed: 'a list of 0' is not allowed; use 1 to",
    "seed: [1, 1]": "seed: 1 is not allowed; use each value once",
    "seed: {a: 1}": "seed: 'dict' is not allowed",
    "seed: 2020-01-01": "seed: 'date' is not allowed",
    "seed: [[[1]]]": "seed: 'list' is not allowed",
    "seed: [[1, 2]]": "seed: [1, 2] is not allowed; use one value in each run",
    "model: 3": "model: 3 is not allowed; use a text",
    "model: vit-mpl": "did you mean 'vit-mlp'?",
    "freeze: maybe": "freeze: 'maybe' is not allowed; use True or False",
    "learning_rate: fast": "learning_rate: 'fast' is not allowed",
    "learning_rate: .inf": "learning_rate: inf is not allowed",
    "switch: Armijo": "switch: 'Armijo' is not allowed",
    "direction: null": "a direction",
    "preset: huge": "preset: 'huge' is not allowed; use one of smoke, quick, paper",
    "preset: [smoke, quick]": "preset: ['smoke', 'quick'] is not allowed",
    "1: 2": "field: 1 is not allowed",
    "epochs: 3\nseed: 0\nseed: 1": "line 3: the key 'seed' comes twice",
    "seed: [001, 010]": "seed: '001' is not allowed; use a whole number",
    "epochs: 1:30": "epochs: '1:30' is not allowed; use a whole number",
    "learning_rate: 1:30.5": "learning_rate: '1:30.5' is not allowed; use a finite number",
    "strategy: adam\nswitch: [1, 2]": (
        "switch: [1, 2] is not allowed; use nothing with strategy adam"
    ),
    "strategy: adam\nswitch.passes: 9": "switch.passes: 9 is not allowed; use nothing with",
    "strategy: [second]\nlearning_rate: 0.1": "learning_rate: 0.1 is not allowed; use nothing",
    "strategy: [second]\nprecision: TF32": "precision: 'TF32' is not allowed; use nothing",
    "passes: 30\nswitch: [3, 5]": "switch: [3, 5] is not allowed; use nothing with passes",
    "passes: [9, 30]\nfallback: null": "fallback: None is not allowed; use nothing with passes",
    "passes: 9\nswitch.passes: 5": "switch.passes: 5 is not allowed; use nothing with passes",
    "precision: bf16": "precision: 'bf16' is not allowed",
    "adam.precision: Reduced": "precision: 'Reduced' is not allowed; use AsSet(), Full()",
    "strategy: second\nadam.precision: TF32": "field: 'precision' is not allowed; use nothing",
    "problem: poisson\nprecision: TF32": "precision: 'TF32' is not allowed; use nothing",
    "seed: [0": "(line 1: ",
    "seed: !!python/object/apply:os.system [exit]": "could not determine a constructor",
    "- seed": "a YAML file that maps fields to values",
    "": "a YAML file that maps fields to values",
    "seed: &a [*a]": "seed: 'list' is not allowed",
    "a: " + "[" * 5000: "a YAML file that maps",
    "seed: \x00": "a YAML file that maps",
    "seed: " + "9" * 5000: "a YAML file that maps",
    "seed: !!map [1]": "a YAML file that maps fields to values (",
    "seed: !!bool x": "a YAML file that maps fields to values (",
    'seed: !!int ""': "a YAML file that maps fields to values (",
    'seed: !!float ""': "a YAML file that maps fields to values (",
    "seed: !!timestamp x": "a YAML file that maps fields to values (",
    "seed: !!omap x": "a YAML file that maps fields to values (",
    "seed: " + "1:" * 200 + "1.5": "seed: '1:1:1:",
    'seed: !!timestamp "2000-99-01"': "a YAML file that maps fields to values (",
    "learning_rate: [0.1]\nadam.learning_rate: 0.3": (
        "adam.learning_rate: 0.3 is not allowed; use nothing with learning_rate, which sets it"
    ),
    "adam.batch_size: [3, 4]\nbatch_size: 8": "adam.batch_size: [3, 4] is not allowed",
    "adam: AdamSettings(0.1)\nlearning_rate: 0.3": (
        "learning_rate: 0.3 is not allowed; use nothing with adam, which sets it"
    ),
    "adam: AdamSettings\nlearning_rate: 0.3": "learning_rate: 0.3 is not allowed",
    "adam.betas: [[0.8, 0.9]]\nadam: AdamSettings(0.1)": "adam.betas: ",
    "second.direction: LBFGSDirection\ndirection: LBFGSDirection": "second.direction: ",
    "second: LevenbergMarquardt(damping=0.1)\nsecond.damping: 0.3": "second.damping: 0.3",
    "line_search: StrongWolfe(c2=0.2)\nsecond.line_search.c2: 0.3": "second.line_search.c2: ",
    "preconditioner: Identity\nsecond.preconditioner: Identity": "second.preconditioner: ",
    "switch: [GradientNormPeak, GradientNormPeak(0.8)]\nswitch.factor: 0.9": "switch.factor: 0.9",
    "switch: 3\nswitch.epoch: 2": "switch.epoch: 2",
    "monitor: FromBatches()\nmonitor.x: 2": "monitor.x: 2",
    "model: mlp-4\nproblem.model: [vit-mlp]": "problem.model: ['vit-mlp'] is not allowed",
    "problem: mnist\nproblem.dataset: digits": "problem.dataset: 'digits' is not allowed",
    "train_examples: 9\nproblem.train_examples: 10": "problem.train_examples: 10",
    "problem: poisson\nmodel: mlp-4": (
        "model: 'mlp-4' is not allowed; use nothing with poisson, which has no model"
    ),
    "problem: [poisson, digits]\nbatch_size: [16, 32]": "batch_size: 16 is not allowed; use",
    "problem: [poisson, burgers]\nbatch_size: 16": "batch_size: 16 is not allowed; use",
    "problem: [poisson, digits]\nbatch_size: -1": "batch_size: -1 is not allowed; use a whole",
    "problem: [[poisson]]": "problem: ['poisson'] is not allowed",
    'switch: ""': """switch: '' is not allowed; use a text such as "Race(passes=30)\"""",
    "adam: AdamSettings(": """adam: 'AdamSettings(' is not allowed; use a text such as "Adam""",
    TOO_MANY: "spec: '10100 runs' is not allowed; use at most 10000",
    f"seed: {list(range(10001))}": "seed: 'a list of 10001'",
    "notebook: null": "notebook: None is not allowed; use the path of a notebook",
    "notebook: nowhere.ipynb": "notebook: 'nowhere.ipynb' is not allowed",
    "notebook: README.md\nseed: 1": "field: 'seed' is not allowed; use one of notebook, parameters",
    "notebook: README.md\nparameters: 3": "parameters: 3 is not allowed",
    "notebook: README.md\nparameters: {x: 1}": "notebook: 'README.md' is not allowed",
    ABLATION + "{factor: 1}": "parameter: 'factor' is not allowed",
    ABLATION + "{preset: smoke}": "parameter: 'preset' is not allowed",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:40])
def test_what_is_not_allowed_is_one_line_and_nothing_runs(tmp_path, capsys, text):
    out = tmp_path / "out"
    assert main(["sweep", str(write(tmp_path, text)), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 1000
    assert BAD[text] in error
    assert not out.exists()


def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "x")]) == 2
    assert "none.yaml: No such file" in capsys.readouterr().err
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert main(["sweep", str(tmp_path / "binary"), "--out", str(tmp_path / "x")]) == 2
    assert "spec: " in capsys.readouterr().err


# -- what is run


def table(out):
    return pd.read_csv(out / "sweep.csv", keep_default_na=False, na_values=[""])


@pytest.mark.slow
def test_a_sweep_leaves_runs_and_a_table(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["sweep", str(write(tmp_path, TWO)), "--out", str(out), "--executor", "Local(1)"]
    assert main([*command, "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert f"table: {out / 'sweep.csv'}, 2 runs, 0 failed" in printed.out
    heading, *rows = printed.err.splitlines()
    assert heading.split() == "time done running failed left time left run".split()
    assert ["switch=1: done" in row or "switch=3: done" in row for row in rows[-3:-1]] == [True] * 2
    found = table(out)
    assert found.switch.tolist() == found.swap_epoch.tolist() == [1, 3]
    for row, config in zip(found.itertuples(), sweep.read(Path(command[1])).configs(), strict=True):
        assert row.folder == digest_name(config)
        summary = runs.read_summary(out / row.folder)
        assert (row.train_loss, row.passes) == (summary["train_loss"], summary["passes"])
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    assert main([*command, "--device", "cpu"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*")} == before


@pytest.mark.slow
def test_each_run_ends_with_its_budget(tmp_path):
    """Within Adam's epochs, or after them; and a rule may read what counts."""
    common = "preset: smoke\ntrain_examples: 16\nbatch_size: 8\nfallback: null\n"
    place = Place(tmp_path / "out", device="cpu")
    for fields in (
        "strategy: [adam, adam+second]\nbudget: [6, 12]\nswitch: 3",
        "budget: [15, 21]\nswitch: [GradientNormPeak(0.999), SmoothedNormPeak]",
    ):
        planned = spec(tmp_path, common + fields)
        found = sweep.run(planned, place, ALONE)
        for row, config in zip(found.itertuples(), planned.configs(), strict=True):
            alone = runs.run(config, tmp_path / "alone" / digest_name(config), device="cpu")
            for name in ("epochs", "passes", "reading_passes", "swap_epoch", "train_loss"):
                assert getattr(row, name) == alone[name], (row, name)
            assert config.second or row.passes == config.budget
    assert found.reading_passes.max() > 0, "some rule reads"


@pytest.mark.slow
def test_a_file_that_holds_another_text_by_now_is_refused(tmp_path, capsys):
    path, out = tmp_path / "notes.txt", tmp_path / "out"
    path.write_text("the cat sat on the mat " * 40, encoding="utf-8")
    text = f"problem: {path}\nmodel: gpt-10k\ntrain_examples: 8\nvalidation_examples: 0\n"
    text += "batch_size: 4\nepochs: 3\nfallback: null\nswitch: [1, Race]\n"
    command = ["sweep", str(write(tmp_path, text)), "--out", str(out), "--executor", "Local(1)"]
    assert main(command) == 0
    before = table(out)
    assert main(command) == 0
    pd.testing.assert_frame_equal(table(out), before)
    path.write_text("tam eht no tas tac eht " * 40, encoding="utf-8")
    assert main(command) == 1
    assert "2 runs, 2 failed" in capsys.readouterr().out
    assert table(out).error.str.contains("this run began with other data").all()


@pytest.mark.slow
def test_a_run_that_fails_is_listed_and_tried_again(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["sweep", str(write(tmp_path, TWO)), "--out", str(out), "--executor", "Local(1)"]
    train = runs.train

    def failing(trainer, *more):
        if trainer.history and len(trainer.history) == 3:
            raise RuntimeError("out of memory\nin two lines")
        return train(trainer, *more)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", failing)
        assert main(command) == 1
    printed = capsys.readouterr()
    assert "failed: switch=3: RuntimeError: out of memory\n" in printed.out
    assert "2 runs, 1 failed" in printed.out
    assert table(out).error.fillna("").tolist() == ["", "RuntimeError: out of memory"]
    assert main(command) == 0
    assert table(out).error.isna().all()


def one_is_finished(out):
    return any(out.glob("*+second*/summary.json"))


def finished(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}


@pytest.mark.slow
def test_on_a_full_disk_what_is_finished_stays(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["sweep", str(write(tmp_path, TWO)), "--out", str(out), "--executor", "Local(1)"]

    def full(file):
        if one_is_finished(out):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"twophase: error: {out / 'sweep.csv'}: No space left on device"
    before = finished(out)
    assert len(before) == 2, "Adam alone, and one that branches off"
    assert main(command) == 0
    assert before.items() <= finished(out).items() and len(table(out)) == 2


@pytest.mark.slow
def test_an_interrupted_sweep_has_a_table_of_what_is_done(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["sweep", str(write(tmp_path, TWO)), "--out", str(out), "--executor", "Local(1)"]
    train, read, looks = runs.train, runs.read_summary, []

    def interrupted(*given):
        if one_is_finished(out):
            raise KeyboardInterrupt
        return train(*given)

    def interrupted_soon(folder):
        looks.append(folder)
        if len(looks) == 2:
            raise KeyboardInterrupt
        return read(folder)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", interrupted)
        assert main(command) == 130
    assert "twophase: interrupted; the same command goes on" in capsys.readouterr().err
    assert table(out).switch.tolist() == [1]
    assert main(command) == 0
    whole = (out / "sweep.csv").read_bytes()
    # while it looks at what is there already
    with monkeypatch.context() as patch:
        patch.setattr(runs, "read_summary", interrupted_soon)
        assert main(command) == 130
    assert (out / "sweep.csv").read_bytes() == whole


@pytest.mark.slow
def test_runs_of_the_same_course_are_one(tmp_path):
    """Rules that swap after the same epoch and have no way back: two rows, one folder."""
    text = TWO.replace("[1, 3]", "[1, GradientNormPeak(1.0), GradientNormPeak(0.999)]")
    found = sweep.run(spec(tmp_path, text), Place(tmp_path / "out", device="cpu"), ALONE)
    assert len(found) == 3
    assert found.folder.nunique() == found.swap_epoch.nunique(dropna=False)
    assert found.groupby("folder").train_loss.nunique().eq(1).all()


@pytest.mark.slow
def test_a_sweep_that_is_killed_runs_nothing_twice(tmp_path, wait_until):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "twophase", "sweep", str(write(tmp_path, EIGHT))]
    command += ["--out", str(out), "--executor", "Local(2)"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def branches():
        return [path for path in finished(out) if "+second" in str(path)]

    wait_until(lambda: len(branches()) >= 2 or process.poll() is not None, 300)
    process.kill()
    process.wait()
    time.sleep(2)  # what its processes wrote last
    before = finished(out)
    assert 2 <= len(branches()) < 8
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    after = finished(out)
    # the trunks, too, are there once: two networks, two seeds
    assert len(branches()) == 8 and len(after) == 12 and before.items() <= after.items()
    assert len(table(out)) == 8 and table(out).error.isna().all()


NOTEBOOK_CELLS = (
    'preset: str = "auto"\nrate: float = 1e-3\n',
    "assert rate < 1, 'too fast'\nprint(rate)",
)


@pytest.fixture
def notebook(tmp_path):
    cells = [new_markdown_cell("# A title\n\nWhat is asked?")]
    cells += [new_code_cell(source) for source in NOTEBOOK_CELLS]
    cells[1].metadata["tags"] = ["parameters"]
    path = tmp_path / "07-rates.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.mark.slow
def test_a_notebook_is_swept_into_one_index(tmp_path, notebook, capsys):
    out = tmp_path / "out"
    text = f"notebook: {notebook}\npreset: smoke\nparameters:\n  rate: [1e-2, 2]\n"
    command = ["sweep", str(write(tmp_path, text)), "--out", str(out), "--executor", "Local(1)"]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "failed: rate=2: " in printed and "AssertionError: too fast" in printed
    found = table(out)
    assert found.rate.tolist() == [0.01, 2.0] and found.seconds.notna().tolist() == [True, False]
    page = (out / found.page[0]).read_text(encoding="utf-8")
    assert "rate = 0.01" in page and "0.01" in page
    made = (out / found.page[0]).stat().st_mtime_ns
    # another sweep into the same folder: all are in the index, and what is there is not made anew
    write(tmp_path, text.replace("2]", "0.1]"))
    assert main(command) == 0
    assert (out / found.page[0]).stat().st_mtime_ns == made
    index = (out / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}"' in index for name in table(out).page)
    assert "too fast" in index and index.count("A title") == 3


@pytest.mark.slow
def test_pages_that_are_made_at_the_same_time_are_all_in_the_index(tmp_path, notebook):
    text = f"notebook: {notebook}\nparameters: {{rate: [0.1, 0.2, 0.3, 0.4]}}\n"
    command = ["sweep", str(write(tmp_path, text)), "--out", str(tmp_path / "out")]
    assert main([*command, "--executor", "Local(2)"]) == 0
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert sum(f'href="{name}"' in index for name in table(tmp_path / "out").page) == 4


@pytest.mark.slow
def test_a_page_that_two_want_at_once_is_made_once(tmp_path, notebook, monkeypatch):
    found = spec(tmp_path, f"notebook: {notebook}\npreset: smoke\nparameters: {{rate: 0.1}}")
    pages = [report.pages(found, tmp_path / "out")[0] for _ in range(2)]
    made, build = [], report._build_page
    monkeypatch.setattr(report, "_build_page", lambda page: made.append(page) or build(page))
    with ThreadPoolExecutor(2) as pool:
        seconds = list(pool.map(report.build_page, pages))
    assert len(made) == 1 and min(seconds) > 0
    assert pages[0].seconds() in seconds


# -- Slurm


class Sweep:
    """The eight runs on Slurm, and all jobs that were ever seen in the queue for them."""

    def __init__(self, folder, slurm, queued):
        self.out, self.queued = folder / "out", queued
        self.jobs = {}  # the run of each, by its name
        self._command = [sys.executable, "-m", "twophase", "sweep", str(write(folder, EIGHT))]
        self._command += ["--out", str(self.out), "--executor", str(slurm)]

    def start(self):
        return subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def is_finished(self, run):
        return (self.out / digest_name(run) / "summary.json").exists()

    def training(self):
        """The jobs in the middle of a training."""
        for path in (self.out / "slurm").glob("*_submitted.pkl"):
            # what is done is removed
            with suppress(OSError):
                content = pickle.loads(path.read_bytes())
                name = path.name.removesuffix("_submitted.pkl")
                self.jobs[name] = content.function.job.arguments[0]
        folders = {name: self.out / digest_name(run) for name, run in self.jobs.items()}
        begun = [name for name, folder in folders.items() if (folder / "config.json").exists()]
        states = self.queued() if begun else {}
        return [
            name
            for name in begun
            if states.get(name) == "RUNNING" and not self.is_finished(self.jobs[name])
        ]


@pytest.mark.slow
def test_on_slurm_nothing_runs_twice_whoever_is_killed(tmp_path, slurm, queued, wait_until):
    """The process that submits, by kill -9; then a job in the middle of its run, by scancel."""
    sweep = Sweep(tmp_path, slurm, queued)
    process = sweep.start()
    wait_until(lambda: sweep.training() and finished(sweep.out), 300)
    process.kill()
    process.communicate()
    before, known = finished(sweep.out), set(sweep.jobs)
    assert len(before) < 12, "four of Adam alone, and eight that branch off"

    process, cancelled = sweep.start(), set()
    wait_until(lambda: sweep.training() is not None and sweep.jobs.keys() - known, 300)
    while all(sweep.is_finished(sweep.jobs[name]) for name in cancelled):
        wait_until(lambda: sweep.training() or process.poll() is not None, 300)
        assert process.poll() is None
        for name in sweep.training()[:1]:
            subprocess.run(["scancel", name], check=True)
            wait_until(lambda: name not in queued())  # noqa: B023
            cancelled.add(name)
    # no pipe is full before it ends
    wait_until(lambda: sweep.training() is None or process.poll() is not None, 300)
    errors = table(sweep.out).error.dropna()
    assert f"8 runs, {len(errors)} failed" in process.communicate()[0]
    assert (process.returncode, len(errors) > 0) == (1, True)
    assert {error.split()[2] for error in errors} <= cancelled
    assert errors.str.startswith("Slurm job ").all() and errors.str.contains(" ended early").all()
    again = [run for name in cancelled if not sweep.is_finished(run := sweep.jobs[name])]
    after = finished(sweep.out)
    assert before.items() <= after.items() and len(after) < 12

    process = sweep.start()
    wait_until(lambda: sweep.training() is None or process.poll() is not None, 300)
    assert "8 runs, 0 failed" in process.communicate()[0] and process.returncode == 0
    assert len(table(sweep.out)) == 8 and table(sweep.out).error.isna().all()
    assert len(finished(sweep.out)) == 12 and after.items() <= finished(sweep.out).items()
    assert Counter(sweep.jobs.values()) == Counter({*sweep.jobs.values()}) + Counter(again)
    assert len(set(sweep.jobs.values())) == 12


@pytest.mark.slow
def test_a_notebook_is_swept_on_slurm(tmp_path, slurm, notebook, capsys):
    out = tmp_path / "out"
    text = f"notebook: {notebook}\npreset: smoke\nparameters:\n  rate: [1e-2, 2]\n"
    command = ["sweep", str(write(tmp_path, text)), "--out", str(out), "--executor", str(slurm)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "failed: rate=2: " in printed and "AssertionError: too fast" in printed
    assert table(out).seconds.notna().tolist() == [True, False]
    index = (out / "index.html").read_text(encoding="utf-8")
    assert f'href="{table(out).page[0]}"' in index and "too fast" in index
    assert "rate = 0.01" in (out / table(out).page[0]).read_text(encoding="utf-8")
