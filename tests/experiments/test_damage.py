"""Run folders with damaged, forged or foreign files: the right result, or one clear line."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import twophase
from twophase.errors import DataError, InputError, NonFiniteError
from twophase.examples import Dataset, Examples
from twophase.experiments import branches, checkpoints, files, runs, table1
from twophase.experiments.config import RunConfig
from twophase.problems.problem import Task
from twophase.settings import Settings
from twophase.trainer import Trainer


@dataclass(frozen=True)
class Tiny(Settings):
    """A linear network on six examples: a run takes hardly longer than writing its files."""

    outputs: int = 2
    full_batch: ClassVar[bool] = False
    name: ClassVar[str] = "tiny"

    def load(self, seed, dtype, device, root):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(6, 2, generator=generator)
        targets = torch.randn(6, self.outputs, generator=generator)
        torch.manual_seed(seed)
        return Task(nn.Linear(2, self.outputs), Dataset("tiny", Examples(inputs, targets), None, 2))


Settings.kinds.pop("Tiny")
ADAM = twophase.AdamSettings(batch_size=3)
CONFIG = RunConfig(Tiny(), 5, ADAM, switch=twophase.FixedEpoch(3), fallback=None)


@pytest.fixture(autouse=True, scope="module")
def a_checkpoint_after_every_epoch_and_nothing_that_takes_long():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "TIMES_WRITING", 0)
        patch.setattr(runs, "git_revision", lambda: None)
        patch.setattr(runs, "versions", lambda: {"torch": torch.__version__})
        patch.setattr(os, "fsync", lambda file: None)
        yield


def run(folder, config=CONFIG):
    return runs.run(config, folder, device="cpu")


class Stopped(Exception):
    pass


def stop_after(epochs, folder, config=CONFIG):
    """A run that ends, as if killed, before the epoch after `epochs`."""
    go_on = Trainer.epoch

    def epoch(self):
        if len(self.history) == epochs:
            raise Stopped
        return go_on(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "epoch", epoch)
        run(folder, config)
    return sorted((folder / runs.CHECKPOINTS).iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    stop_after(4, folder)
    return folder


def is_right(folder, finished):
    """Whether the folder's results are those of the run in one piece."""
    here, there = (runs.read(each)[0].drop(columns="seconds") for each in (folder, finished))
    weights = [torch.load(each / "weights.pt", weights_only=True) for each in (folder, finished)]
    return here.equals(there) and all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


# ---- checkpoints --------------------------------------------------------------------------------


def test_where_both_checkpoints_are_damaged_new_ones_are_kept(tmp_path, caplog, finished):
    for path in stop_after(4, tmp_path):
        path.write_bytes(b"damaged")
    kept = stop_after(2, tmp_path)
    assert [path.name for path in kept] == ["epoch-000001.ckpt", "epoch-000002.ckpt"]
    assert caplog.text.count("it is passed over") == 2
    assert "one before" not in caplog.text
    run(tmp_path)
    assert is_right(tmp_path, finished)


def of_another_model(state):
    trainer = replace(CONFIG, problem=Tiny(outputs=3)).trainer(
        Tiny(outputs=3).load(0, "float32", "cpu", None), "cpu"
    )
    trainer.epoch()
    return trainer.state_dict()


FORGED = {
    "nothing": lambda state: {},
    "another model": of_another_model,
    "unknown field of a record": lambda s: s | {"history": [s["history"][0] | {"x": 1}]},
    "a record without loss": lambda s: s | {"history": [{"epoch": 1}]},
    "a text for a loss": lambda s: s | {"history": [s["history"][0] | {"train_loss": "a"}]},
    "a second epoch first": lambda s: s | {"history": s["history"][1:]},
    "weights that are none": lambda s: s | {"x": 3},
    "float64": lambda s: s | {"x": s["x"].double()},
    "no phases": lambda s: s | {"phases": {}},
    "moments of another shape": lambda s: (
        s["phases"]["adam"]["optimizer"]["state"][0].update(exp_avg=torch.ones(7)),
        s,
    )[1],
}


@pytest.mark.parametrize("content", FORGED)
def test_a_sealed_checkpoint_that_is_none_is_passed_over(tmp_path, caplog, finished, content):
    older, newest = stop_after(4, tmp_path)
    checkpoints.write(newest, FORGED[content](checkpoints.load(newest)))
    run(tmp_path)
    assert is_right(tmp_path, finished)
    assert f"{newest} is not of this run" in caplog.text


@pytest.mark.parametrize("content", [[1], torch.ones(2), "text"])
def test_a_sealed_checkpoint_of_something_else_is_one_line(tmp_path, content):
    checkpoints.write(tmp_path / "x.ckpt", content)
    with pytest.raises(DataError, match="x.ckpt holds no state"):
        checkpoints.load(tmp_path / "x.ckpt")


def test_checkpoints_elsewhere_are_left_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "epoch-000001.ckpt").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / runs.CHECKPOINTS).symlink_to(elsewhere)
    (out / "config.json").write_text(json.dumps({"format": runs.FORMAT, **CONFIG.to_dict()}))
    with pytest.raises(InputError, match="^out: .* checkpoints is no link"):
        run(out)
    assert (elsewhere / "epoch-000001.ckpt").read_text() == "mine"


# ---- results ------------------------------------------------------------------------------------


DAMAGED = {
    "weights.pt missing": lambda folder: (folder / "weights.pt").unlink(),
    "weights.pt empty": lambda folder: (folder / "weights.pt").write_bytes(b""),
    "history.csv cut": lambda folder: cut(folder / "history.csv", 2),
    "history.csv of a header": lambda folder: cut(folder / "history.csv", 1),
    "history.csv binary": lambda folder: (folder / "history.csv").write_bytes(b"\xff\x00\xfe"),
    "summary.json altered": lambda folder: alter(folder, epochs=4),
    "summary.json deep": lambda folder: (folder / "summary.json").write_text("[" * 100_000),
}


def cut(path, lines):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def alter(folder, sealed=True, without=(), **changes):
    """Other content in a summary; without its seal it is as those of older versions."""
    path = folder / "summary.json"
    content = json.loads(path.read_text()) | changes
    for name in (*without, *(() if sealed else ("sha256", "files"))):
        del content[name]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_finished_run_with_damaged_results_is_made_again(tmp_path, finished, damage):
    folder = shutil.copytree(finished, tmp_path / "copy")
    DAMAGED[damage](folder)
    if "weights" not in damage:
        with pytest.raises(InputError, match="^run: .* the folder of a finished run"):
            runs.read(folder)
    assert run(folder)["status"] == "completed"
    assert is_right(folder, finished)


def test_the_damage_is_told_once(tmp_path, finished, caplog):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "weights.pt").unlink()
    run(folder)
    assert caplog.text.count("weights.pt is damaged; the run is made again") == 1


@pytest.mark.parametrize(
    "name", ["weights.pt", "history.csv", "summary.json", "history.partial.csv", "failed.txt"]
)
def test_a_result_that_cannot_be_written_is_named_before_training(
    tmp_path, finished, caplog, monkeypatch, name
):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    monkeypatch.setattr(Trainer, "epoch", None)
    with pytest.raises(InputError, match=f"^file: .*copy/{name}' is not allowed; use a regular"):
        run(folder)
    assert not caplog.text
    assert list((folder / name).iterdir()) == [] and not (folder / "failed.txt").is_file()


def test_checkpoints_that_are_a_file_are_named_before_training(tmp_path, stopped, monkeypatch):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    shutil.rmtree(folder / runs.CHECKPOINTS)
    (folder / runs.CHECKPOINTS).write_text("")
    monkeypatch.setattr(Trainer, "epoch", None)
    with pytest.raises(InputError, match="^out: .* checkpoints is no link and no file"):
        run(folder)


@pytest.mark.parametrize("again", ["run", "sweep"])
def test_what_a_finished_run_had_no_time_to_clear_goes_with_the_next(tmp_path, stopped, again):
    """It was killed after its summary."""
    place = branches.Place(tmp_path, device="cpu")
    config = replace(CONFIG, adam=None, switch=twophase.Race())
    folder = place.folder(config)
    run(folder, config)
    shutil.copytree(stopped / runs.CHECKPOINTS, folder / runs.CHECKPOINTS)
    shutil.copy(stopped / runs.PARTIAL, folder)
    left = folder / f".history.csv.{files.here()}.{2**22 + 1}.tmp"
    left.write_text("half")
    if again == "run":
        run(folder, config)
    else:
        branches.run([config], place)
    there = {path.name for path in folder.iterdir()} - {".lock"}
    assert there == {"config.json", "history.csv", "summary.json", "weights.pt"}


def test_what_another_process_may_still_need_stays(tmp_path, finished, stopped):
    folder = shutil.copytree(finished, tmp_path / "copy")
    shutil.copytree(stopped / runs.CHECKPOINTS, folder / runs.CHECKPOINTS)
    with FileLock(folder / ".lock"):
        assert run(folder)["status"] == "completed"
    assert len(list((folder / runs.CHECKPOINTS).iterdir())) == 2


def test_a_summary_of_an_older_version_is_one(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "copy")
    alter(folder, sealed=False)
    before = (folder / "summary.json").read_bytes()
    assert run(folder)["epochs"] == 5
    assert (folder / "summary.json").read_bytes() == before


FORGERIES = {
    "no status": lambda f: alter(f, sealed=False, status=3),
    "a text for a loss": lambda f: alter(f, sealed=False, train_loss="low"),
    "no passes": lambda f: alter(f, sealed=False, without=["passes"]),
    "a phase of no name": lambda f: edit(f, "adam", "eve"),
    "no number": lambda f: edit(f, "0.", "x."),
    "no epoch": lambda f: (alter(f, sealed=False), cut(f / "history.csv", 1)),
}


def edit(folder, old, new):
    alter(folder, sealed=False)
    path = folder / "history.csv"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("forgery", FORGERIES)
def test_results_without_a_seal_are_checked_by_what_they_hold(tmp_path, finished, forgery):
    folder = shutil.copytree(finished, tmp_path / "copy")
    FORGERIES[forgery](folder)
    with pytest.raises(InputError, match="^run: .* the folder of a finished run"):
        runs.read(folder)


def test_a_damaged_history_does_not_end_a_sweep(tmp_path):
    """It is made again, and until then as good as not run."""
    configs = table1.configs(table1.protocol("smoke"), models=["vit-nomlp-wkewq-wvwo1"])
    folder = tmp_path / table1.folder_name(configs[0])
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    (folder / "history.csv").write_text("epoch\n1\n")
    assert table1.table(configs, tmp_path).seeds.tolist() == [0, 0]


def test_a_failed_run_leaves_the_folder_to_the_corrected_one(tmp_path):
    wrong = replace(CONFIG, adam=twophase.AdamSettings(1e30, batch_size=3))
    with pytest.raises(NonFiniteError):
        run(tmp_path, wrong)
    assert "loss" in (tmp_path / "failed.txt").read_text()
    with pytest.raises(NonFiniteError):
        run(tmp_path, wrong)
    assert run(tmp_path)["status"] == "completed"
    assert not (tmp_path / "failed.txt").exists()
    with pytest.raises(InputError, match="without another run"):
        run(tmp_path, wrong)


def test_a_configuration_of_before_a_setting_was_there_is_the_same(tmp_path):
    """So that runs of before go on, and are found by the names of their folders."""
    assert "precision" not in CONFIG.to_dict()["adam"]
    run(tmp_path)
    before = (tmp_path / "history.csv").stat().st_mtime_ns
    assert run(tmp_path)["status"] == "completed"
    assert (tmp_path / "history.csv").stat().st_mtime_ns == before
    adam = replace(CONFIG.adam, precision=twophase.BFloat16())
    assert "precision" in adam.to_dict()
    with pytest.raises(InputError, match="without another run.*BFloat16"):
        run(tmp_path, replace(CONFIG, adam=adam))


def test_runs_that_another_process_makes_are_waited_for(tmp_path, monkeypatch):
    """Two sweeps in one folder: neither gives up."""
    waited = []
    monkeypatch.setattr(branches, "FileLock", lambda path: Waiting(path, waited))
    place = branches.Place(tmp_path, device="cpu")
    [done] = branches.run([replace(CONFIG, adam=None)], place)
    assert done.error == "" and waited == [tmp_path / f".{done.folder.name}.lock"]


class Waiting:
    def __init__(self, path, waited):
        self.path, self.waited = path, waited

    def __enter__(self):
        self.waited.append(self.path)

    def __exit__(self, *_):
        return


# ---- any byte of any file -----------------------------------------------------------------------


@st.composite
def damages(draw):
    """What happens to a file: it is cut, emptied, or a byte becomes another one."""
    kind, place = draw(st.sampled_from(["cut", "empty", "byte"])), draw(st.floats(0, 1))
    other = draw(st.integers(1, 255))

    def damage(content):
        at = min(int(place * len(content)), len(content) - 1)
        changed = content[:at] + bytes([content[at] ^ other]) + content[at + 1 :]
        return {"cut": content[:at], "empty": b"", "byte": changed}[kind]

    return damage


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_any_damage_ends_in_the_right_result_or_one_line(state, data, tmp_path_factory, request):
    """The test's own folder is only read."""
    whole = request.getfixturevalue("finished")
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(request.getfixturevalue(state), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(damages())(path.read_bytes()))
    try:
        runs.read(folder)
    except InputError as error:
        assert "\n" not in str(error)
    try:
        run(folder)
    except InputError as error:
        assert path.name == "config.json" and "\n" not in str(error)
    else:
        assert is_right(folder, whole)
    shutil.rmtree(folder)
