"""The configuration of a run: checked as a whole, to JSON and back, one digest, one trunk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import twophase as tp
from twophase.errors import InputError
from twophase.experiments import runs
from twophase.experiments.competitors import SGD, TorchLBFGS
from twophase.experiments.config import RunConfig, digest
from twophase.problems.problem import ImageProblem, PhysicsProblem, named
from twophase.settings import from_dict

PAPER = RunConfig(ImageProblem("mnist", "vit-mlp"), 70, **tp.PAPER)
CONFIGS = [
    RunConfig(),
    PAPER,
    PAPER.trunk(),
    replace(PAPER, switch=tp.FixedEpoch(21), seed=3, dtype="float64"),
    RunConfig(adam=None),
    RunConfig(PhysicsProblem("burgers"), 9, tp.AdamSettings(batch_size=None), passes=30),
    RunConfig(second=TorchLBFGS(30), passes=60),
    RunConfig(second=SGD(0.1), passes=60),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_json_gives_the_same_configuration_back(config):
    text = json.dumps(config.to_dict())
    assert from_dict(json.loads(text)) == config
    assert digest(from_dict(json.loads(text))) == digest(config)


def test_a_digest_differs_where_a_configuration_does():
    assert len(set(map(digest, CONFIGS))) == len(CONFIGS)
    assert digest(PAPER) == digest(RunConfig(ImageProblem("mnist", "vit-mlp"), 70, **tp.PAPER))


def test_one_trunk_for_all_that_differs_after_the_swap():
    others = [
        replace(PAPER, second=tp.DEFAULT),
        replace(PAPER, switch=tp.FixedEpoch(21), fallback=tp.Fallback()),
        replace(PAPER, passes=300),
    ]
    assert {config.trunk() for config in [PAPER, *others]} == {PAPER.trunk()}
    assert replace(PAPER, seed=1).trunk() != PAPER.trunk()
    assert PAPER.trunk().strategy == "adam"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "^epochs: 0 "),
        ({"seed": -1}, "^seed: -1 "),
        ({"dtype": "float16"}, "^dtype: 'float16' .*float32, float64"),
        ({"adam": None, "second": None}, "^second: None .*one phase"),
        ({"adam": 1e-3}, "^adam: 0.001 .*AdamSettings"),
        ({"second": "cg"}, "^second: 'cg' .*a second phase"),
        ({"switch": 5}, "^switch: 5 .*switch rule"),
        ({"switch": tp.GoldenSection()}, "^switch: GoldenSection.*switch rule"),
        ({"fallback": True}, "^fallback: True .*Fallback"),
        ({"problem": "digits"}, "^problem: 'digits' "),
        ({"switch": tp.FixedEpoch(70)}, "^switch: 70 .*below the number of epochs, 70"),
        ({"second": SGD()}, "^passes: None .*SGD"),
        ({"passes": 2}, "^passes: 2 .*at least 3"),
        ({"passes": 30, "adam": None}, "^passes: 30 "),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(change, message):
    with pytest.raises(InputError, match=message):
        replace(PAPER, **change)


@pytest.mark.parametrize("config", CONFIGS[:5], ids=lambda config: config.name)
def test_a_trainer_is_given_every_setting(config, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "twophase.experiments.config.Trainer", lambda *args, **settings: given.update(settings)
    )
    task = ImageProblem(train_examples=16).load(0, "float32", torch.device("cpu"), None)
    config.trainer(task, torch.device("cpu"))
    for name in ("adam", "second", "fallback", "seed"):
        assert given[name] == getattr(config, name)
    length = min(3 * config.epochs, config.budget or 3 * config.epochs)
    planned = replace(config.switch, length=length) if isinstance(config.switch, tp.Race) else None
    assert given["switch"] == (planned or config.switch)
    assert given["loss"] is tp.mse


def test_a_problem_by_name():
    assert named("digits", "vit-mlp", 9) == ImageProblem("digits", "vit-mlp", 9)
    assert named("poisson", "vit-mlp") == PhysicsProblem("poisson")
    with pytest.raises(InputError, match="^problem: 'minst' .*digits.*poisson"):
        named("minst", "vit-mlp")


def test_no_validation_examples_are_none():
    task = ImageProblem(train_examples=16, validation_examples=0).load(
        0, "float64", torch.device("cpu"), None
    )
    assert task.data.validation is None
    assert task.data.train.inputs.dtype == torch.float64


def test_a_run_is_what_fit_does(tmp_path):
    """The default configuration and `fit` with its defaults: the same epochs, bit for bit."""
    problem = ImageProblem(train_examples=32, validation_examples=20)
    adam = tp.AdamSettings(batch_size=16)
    runs.run(RunConfig(problem, 6, adam, switch=tp.FixedEpoch(2)), tmp_path, device="cpu")
    history, _ = runs.read(tmp_path)
    task = problem.load(0, "float32", torch.device("cpu"), None)
    expected = tp.fit(task.model, task.data, epochs=6, adam=adam, switch=2, device="cpu").history
    assert history.drop(columns=["seconds", "note"]).equals(
        expected.drop(columns=["seconds", "note"]).astype(history.dtypes.drop(["seconds", "note"]))
    )


REFERENCE = Path(__file__).parents[2] / "reports" / "reference"


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in REFERENCE.rglob("history.csv")}),
    ids=lambda folder: folder.relative_to(REFERENCE).as_posix(),
)
def test_every_committed_run_is_read_with_todays_phases(folder):
    history, summary = runs.read(folder)
    assert set(history.phase) <= {"adam", "second"}
    assert len(history) == summary["epochs"]
    if summary["strategy"] == "adam+cg":
        assert history.phase.tolist().count("adam") == summary["swap_epoch"]
