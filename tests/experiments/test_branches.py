"""Many runs: Adam's epochs are trained once, many sittings are one, failures are named."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import twophase as tp
from twophase.errors import InputError, TwoPhaseError
from twophase.experiments import branches, runs
from twophase.experiments.branches import Place
from twophase.experiments.competitors import AdamGoesOn
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import Local
from twophase.problems.problem import ImageProblem
from twophase.settings import from_dict
from twophase.switching.rules import first_switch

pytestmark = pytest.mark.slow

PROBLEM = ImageProblem(train_examples=16, validation_examples=10)
BOTH = RunConfig(PROBLEM, 4, **tp.PAPER | {"switch": tp.FixedEpoch(2)})
ADAM = BOTH.trunk()
LITERAL = replace(BOTH, switch=tp.GradientNormPeak())
MEASURED = replace(ADAM, epochs=2, second=tp.DEFAULT, passes=12)


def beta(name, config=BOTH):
    return replace(config, second=tp.Descent(tp.ConjugateDirection(name), tp.GoldenSection()))


def here(folder, root=None):
    return Place(Path(folder), root, "cpu")


@pytest.fixture
def trained(monkeypatch):
    """The epochs that were trained, by phase."""
    epochs = []
    step = runs.train

    def counting(trainer, *args):
        before = len(trainer.history)
        outcome = step(trainer, *args)
        epochs.extend(record.phase for record in outcome.records[before:])
        return outcome

    monkeypatch.setattr(runs, "train", counting)
    return epochs


def histories(out):
    # seconds are measured, all else is determined
    return {
        path.parent.name: pd.read_csv(path).drop(columns="seconds")
        for path in Path(out).glob("*/history.csv")
    }


# -- what is shared


def test_adams_epochs_are_trained_once(tmp_path, trained):
    variants = [beta(name) for name in ("FR", "PR", "PR+")]
    branches.run([ADAM, *variants, replace(BOTH, switch=tp.FixedEpoch(3))], here(tmp_path))
    assert trained.count("adam") == ADAM.epochs
    assert trained.count("second") == 3 * 2 + 1


@pytest.mark.parametrize("config", [BOTH, LITERAL, beta("FR")], ids=["fixed", "literal", "FR"])
def test_a_branch_is_the_unshared_run_bit_for_bit(tmp_path, config):
    (done,) = branches.run([config], here(tmp_path / "shared"))
    runs.run(config, tmp_path / "alone", device="cpu")
    alone, _ = runs.read(tmp_path / "alone")
    shared, _ = runs.read(done.folder)
    numbers = [name for name in alone if name not in ("seconds", "note")]
    pd.testing.assert_frame_equal(shared[numbers], alone[numbers], check_exact=True)
    weights = [f / "weights.pt" for f in (done.folder, tmp_path / "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_rules_that_choose_the_same_epoch_are_one_run(tmp_path, trained):
    configs = [replace(BOTH, switch=tp.GradientNormPeak(f)) for f in (0.999, 0.9999)]
    done = branches.run(configs, here(tmp_path))
    adam, _ = runs.read(here(tmp_path).folder(ADAM))
    fired = [first_switch(config.switch, branches.trace(adam)) for config in configs]
    assert fired[0] == fired[1] < ADAM.epochs, "an example where both fire together"
    assert done[0].folder == done[1].folder
    assert [one.config for one in done] == configs
    assert trained.count("second") == ADAM.epochs - fired[0]


def test_a_rule_that_never_fires_is_adam_alone(tmp_path, trained):
    never = replace(BOTH, switch=tp.SmoothedNormPeak())
    (done,) = branches.run([never], here(tmp_path))
    assert done.folder == here(tmp_path).folder(ADAM)
    assert trained == ["adam"] * ADAM.epochs


def test_a_rule_that_fires_at_the_end_is_adam_alone():
    rising = [(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]
    assert branches.settled(LITERAL, [*rising, (1.0, 1.0)]) == ADAM
    settled = branches.settled(LITERAL, [*rising[:2], (1.0, 1.0), (1.0, 1.0)])
    assert settled.swap_epoch == 3


def test_the_second_phase_alone_has_no_trunk(tmp_path, trained):
    (done,) = branches.run([replace(BOTH, adam=None)], here(tmp_path))
    assert done.error == ""
    assert trained == ["second"] * BOTH.epochs


def test_a_measurement_goes_on_from_the_end_of_its_trunk(tmp_path, trained):
    configs = [MEASURED, replace(MEASURED, second=AdamGoesOn())]
    done = branches.run(configs, here(tmp_path))
    assert trained == ["adam", "adam"], "the prefix, once"
    curves = [runs.read_curve(one.folder) for one in done]
    trunk, _ = runs.read(here(tmp_path).folder(MEASURED.trunk()))
    for curve in curves:
        assert curve.passes.iloc[0] == 0 and curve.passes.iloc[-1] <= 12
        assert curve.loss.iloc[0] == pytest.approx(trunk.train_loss.iloc[-1], rel=1e-6)
        assert curve.loss.is_monotonic_decreasing
    before = (done[0].folder / runs.CURVE).read_bytes()
    branches.run(configs, here(tmp_path))
    assert (done[0].folder / runs.CURVE).read_bytes() == before


def test_a_folder_tells_its_configuration(tmp_path):
    done = branches.run([BOTH, MEASURED], here(tmp_path))
    for one in done:
        written = json.loads((one.folder / "config.json").read_text())
        assert written.pop("format") == runs.FORMAT
        assert from_dict(written) == one.config


# -- many sittings


def test_what_is_finished_is_not_trained_again(tmp_path, trained):
    first = branches.run([ADAM, BOTH], here(tmp_path))
    trained.clear()
    again = branches.run([BOTH, ADAM], here(tmp_path))
    assert trained == []
    assert first[::-1] == again


def test_a_swap_asked_for_later_trains_the_first_epochs_once_more(tmp_path, trained):
    branches.run([BOTH], here(tmp_path / "a"))
    trained.clear()
    later = [beta(name, replace(BOTH, switch=tp.FixedEpoch(3))) for name in ("FR", "PR")]
    branches.run(later, here(tmp_path / "a"))
    assert (trained.count("adam"), trained.count("second")) == (3, 2)
    branches.run([BOTH, *later], here(tmp_path / "b"))
    found = histories(tmp_path / "a")
    for name, history in histories(tmp_path / "b").items():
        pd.testing.assert_frame_equal(history, found[name], check_exact=True)


def test_many_runs_that_were_stopped_go_on(tmp_path, trained, monkeypatch):
    step = runs.train

    def stopped(trainer, *args):
        if trainer.history:  # of the trunk that it branches off
            raise KeyboardInterrupt
        return step(trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "train", stopped)
        branches.run([ADAM, BOTH], here(tmp_path))
    assert trained == ["adam"] * ADAM.epochs
    done = branches.run([ADAM, BOTH], here(tmp_path))
    assert trained == ["adam"] * ADAM.epochs + ["second"] * 2
    assert not any(one.error for one in done)


def test_two_processes_give_the_same_and_train_a_trunk_once(tmp_path):
    configs = [ADAM, BOTH, beta("FR"), replace(BOTH, seed=1), MEASURED]
    alone = branches.run(configs, here(tmp_path / "one"))
    told = []
    both = branches.run(configs, here(tmp_path / "two"), Local(2), told.append)
    assert [one.folder.name for one in alone] == [two.folder.name for two in both]
    assert sorted(map(str, told)) == sorted(map(str, both))
    found = histories(tmp_path / "two")
    assert found.keys() == histories(tmp_path / "one").keys()
    for name, history in histories(tmp_path / "one").items():
        pd.testing.assert_frame_equal(history, found[name], check_exact=True)


PROGRAM = """
from pathlib import Path
import twophase as tp
from twophase.experiments.branches import Place, run
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import Local
from twophase.problems.problem import ImageProblem
if __name__ == "__main__":
    config = RunConfig(ImageProblem(train_examples=16, validation_examples=10), 400,
                       **tp.PAPER | {"switch": tp.FixedEpoch(390)})
    run([config], Place(Path(%r), None, "cpu"))
"""


def test_a_trunk_that_is_killed_has_its_last_checkpoint(tmp_path):
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM % str(out)])
    try:
        epochs = 0
        while epochs < 30:
            assert process.poll() is None
            time.sleep(0.005)
            found = [int(path.stem[6:]) for path in out.glob("*/checkpoints/*.ckpt")]
            epochs = max(found, default=0)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (folder,) = (path.parent for path in out.glob("*/checkpoints"))
    _, state = next(runs.checkpoints.whole(folder / runs.CHECKPOINTS))
    assert len(state["history"]) >= epochs >= 30


# -- failures


def test_a_run_that_fails_is_named_and_the_others_run(tmp_path, caplog):
    missing = replace(BOTH, problem=replace(PROBLEM, dataset="mnist"))
    failed, fine = branches.run([missing, BOTH], here(tmp_path / "out", tmp_path))
    assert "missing" in failed.error and fine.error == ""
    assert "mnist vit-nomlp-wkewq-wvwo1 adam+second" in caplog.text
    with pytest.raises(TwoPhaseError, match="^1 of 2 runs failed; first mnist .*missing"):
        branches.check([failed, fine])
    branches.check([fine])


def test_a_damaged_branch_fails_alone(tmp_path):
    branches.run([ADAM, BOTH], here(tmp_path))
    kept = runs.branch_file(here(tmp_path).folder(ADAM), "epoch-2")
    kept.write_bytes(b"damaged")
    failed, fine = branches.run([beta("FR"), BOTH], here(tmp_path))
    assert "damaged" in failed.error and fine.error == ""


def test_no_process_is_refused(tmp_path):
    with pytest.raises(InputError, match="^processes: 0 "):
        branches.run([ADAM], here(tmp_path), Local(0))


def test_a_second_process_waits_for_the_trunk(tmp_path):
    """Two that want the same trunk at the same moment both end, with one trunk trained."""
    spawn = multiprocessing.get_context("spawn")
    both = [
        spawn.Process(target=branches.run_trunk, args=(ADAM, [BOTH], here(tmp_path)))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(runs.read(here(tmp_path).folder(ADAM))[0]) == ADAM.epochs
