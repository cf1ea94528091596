"""Files are whole or not there; the source tree and its commit are told from an installed copy."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from twophase.errors import InputError
from twophase.experiments import files, provenance
from twophase.experiments.files import (
    committed_table,
    project_folder,
    work_folder,
    write_atomically,
    write_json,
)


def git(folder, *command):
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def committed(folder):
    """A repository with one commit of all that is in the folder."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")


@pytest.fixture
def runs_from(monkeypatch):
    """Let the package be that of another folder."""

    def run(folder):
        module = folder / "twophase" / "experiments" / "files.py"
        module.parent.mkdir(parents=True)
        module.touch()
        monkeypatch.setattr(files, "__file__", str(module))
        monkeypatch.setattr(provenance, "__file__", str(module.with_name("provenance.py")))

    return run


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "note.txt"
    write_atomically(path, "ä")
    assert path.read_bytes() == "ä".encode()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "note.json"
    write_json(path, {"b": 1, "a": "ä"})
    assert path.read_text(encoding="utf-8").splitlines() == ["{", '  "b": 1,', '  "a": "ä"', "}"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 1, "a": "ä"}
    with pytest.raises(OSError):
        write_atomically(tmp_path / "missing" / "note.txt", "x")


def test_the_source_tree_is_known_by_its_pyproject(tmp_path, runs_from):
    runs_from(tmp_path)
    assert project_folder() is None
    (tmp_path / "pyproject.toml").touch()
    assert project_folder() == tmp_path.resolve()


def test_what_lies_in_the_source_tree(tmp_path, runs_from, monkeypatch):
    runs_from(tmp_path)
    with pytest.raises(InputError, match="^data/x.csv: .* use the source tree"):
        committed_table("data/x.csv")
    assert work_folder("runs") == Path("runs")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert committed_table("x.csv").to_dict("list") == {"a": [1], "b": [2]}
    assert work_folder("runs") == tmp_path.resolve() / "runs"
    assert work_folder(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = work_folder(""), work_folder(None)
    assert first.is_dir() and second.is_dir() and first != second


def test_the_commit_of_the_source_tree(tmp_path, runs_from):
    runs_from(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    assert provenance.git_revision() is None, "no repository"
    committed(tmp_path)
    clean = provenance.git_revision()
    assert len(clean) == 40
    (tmp_path / "pyproject.toml").write_text("# changed")
    assert provenance.git_revision() == f"{clean}-dirty"


@pytest.mark.parametrize("inner", ["venv/lib/python3/site-packages", "vendor/twophase-0.1"])
def test_a_copy_in_somebody_elses_repository_has_no_commit(tmp_path, runs_from, inner):
    copy = tmp_path / inner
    runs_from(copy)
    if "vendor" in inner:
        (copy / "pyproject.toml").touch()
    committed(tmp_path)
    assert provenance.git_revision() is None


def test_a_computer_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_revision() is None


def test_versions_name_python_and_the_packages():
    assert {"python", *provenance.PACKAGES} == set(provenance.versions())


def test_the_time_is_utc_to_the_second():
    assert provenance.now().endswith("+00:00") and len(provenance.now()) == 25


def test_rows_are_replaced_where_they_are_and_the_others_stay(tmp_path):
    """Also numbers that would not come back alike, and what looks as if it were missing."""
    path = tmp_path / "table.csv"

    def write(*rows, columns=("name", "seed", "loss")):
        files.write_rows(path, pd.DataFrame(rows, columns=columns), ["name", "seed"])
        return path.read_text().splitlines()[1:]

    kept = ["NA,0,0.1234567890123456789", "b,0,"]
    path.write_text("\n".join(["name,seed,loss", *kept]) + "\n")
    assert write(("c", 1, 3.0), ("d", 0, None)) == [*kept, "c,1,3.0", "d,0,"]
    assert write(("b", 0, 2.0), ("b", 1, 2.5)) == [kept[0], "b,0,2.0", "b,1,2.5", "c,1,3.0", "d,0,"]
    before = path.read_bytes()
    write(("b", 0, 2.0), ("b", 1, 2.5))
    assert path.read_bytes() == before
    assert write(("c", 1, 4.0, 1), columns=("name", "seed", "loss", "q"))[-2:] == [
        "c,1,4.0,1",
        "d,0,,",
    ]
    for damaged in ("", "x,y\n1,2\n", 'name,seed\n"'):
        path.write_text(damaged)
        assert write(("e", 0, 1.0)) == ["e,0,1.0"]


def left(folder, name, age):
    path = folder / name
    path.write_text("half") if "csv" in name else path.mkdir()
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_goes_with_the_next_file(tmp_path, dead):
    """Not what a process that lives, or one of another machine a minute ago, may still write."""
    own, elsewhere = files.here(), "01234567"
    gone = [
        left(tmp_path, f".a.csv.{own}.{dead}.tmp", 5),
        left(tmp_path, f".a.csv.{elsewhere}.{dead}.tmp", 70),
        left(tmp_path, f".x1.{own}.{dead}.tmp", 5),
        left(tmp_path, f".a.csv.{own}.{os.getpid()}.tmp", 90_000),
    ]
    kept = [
        left(tmp_path, f".b.csv.{elsewhere}.{dead}.tmp", 5),
        left(tmp_path, f".b.csv.{own}.{os.getpid()}.tmp", 70),
        left(tmp_path, f".x3.{own}.{os.getpid()}.tmp", 70),
    ]
    write_atomically(tmp_path / "c.csv", "")
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_what_others_have_in_the_folder_stays(tmp_path, dead):
    names = ["notes.tmp", f".my.csv.{dead}.tmp", ".unfinished-novel", f".unfinished-{dead}-x1"]
    names += [f"a.csv.{files.here()}.{dead}.tmp", f".a.csv.{files.here()}.{dead}.tmp.gz"]
    kept = [left(tmp_path, name, 90_000) for name in names]
    write_atomically(tmp_path / "c.csv", "")
    assert all(path.exists() for path in kept)


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="note.txt"):
        write_atomically(tmp_path / "note.txt", "x")
    assert not list(tmp_path.iterdir())


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    """A device node, a pipe or a folder, also where a link leads to it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    for path in before:
        with pytest.raises(
            InputError, match=f"^file: .*{path.name}' is not allowed; use a regular"
        ):
            write_atomically(path, "x")
    assert {path: path.lstat() for path in tmp_path.iterdir()} == before


def left_by_a_killed_writer(path, dead):
    """What a process that is killed while it writes leaves."""
    names = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: dead)
        patch.setattr(os, "fsync", lambda file: names.extend(path.parent.iterdir()))
        write_atomically(path, "half")
    return path.rename(*names)


def test_what_a_process_of_this_machine_left_goes_at_once(tmp_path, monkeypatch, dead):
    """Where another machine, or a container, has the same number it may live there."""
    left = left_by_a_killed_writer(tmp_path / "a.csv", dead)
    with monkeypatch.context() as patch:
        patch.setattr(files, "here", lambda: "01234567")
        write_atomically(tmp_path / "b.csv", "")
        assert left.exists()
    write_atomically(tmp_path / "b.csv", "")
    assert [path.name for path in tmp_path.iterdir()] == ["b.csv"]
