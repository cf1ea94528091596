"""What results stand on."""

import sys

import pytest

from twophase.experiments.files import read_json
from twophase.experiments.provenance import add, command, made_with, of_script, tables, words


@pytest.mark.parametrize("threads", ["1 thread", "11 threads", "16 threads"])
def test_a_single_thread_is_in_the_singular(threads):
    recorded = threads if threads.endswith("s") else f"{threads}s"
    assert words(f"cpu (x86_64, {recorded})") == f"cpu (x86_64, {threads})"


def test_runs_are_named_by_device_torch_and_revision_each_once():
    def summary(device, revision):
        return {"device": device, "versions": {"torch": "2.6"}, "git_revision": revision}

    commit = "0123456789abcdef"
    found = [summary("gpu", None), summary("cpu", commit), summary("cpu", commit)]
    assert made_with([*found, summary("cpu", f"{commit}-dirty")]) == (
        "cpu, torch 2.6, revision 0123456789; cpu, torch 2.6, revision 0123456789-dirty; "
        "gpu, torch 2.6, revision unknown"
    )
    assert made_with([]) == ""


def test_what_was_said_of_older_rows_stays(tmp_path):
    note = tmp_path / "provenance.json"
    for revision in "abc":
        add(note, {"revision": revision})
    assert read_json(note) == {
        "revision": "c",
        "earlier": [{"revision": "a"}, {"revision": "b"}],
    }
    assert tables(tmp_path) == {}
    (tmp_path / "x.csv").write_text("a")
    first = tables(tmp_path)
    (tmp_path / "x.csv").write_text("b")
    assert first.keys() == {"x.csv"} and first != tables(tmp_path)


def test_a_benchmark_says_how_it_was_called(monkeypatch):
    assert command("scale", ["--kinds", "Adam (an epoch)"]) == (
        "python benchmarks/scale.py --kinds 'Adam (an epoch)'"
    )
    assert command("scale", []) == "python benchmarks/scale.py", "not what started the tests"
    monkeypatch.setattr(sys, "argv", ["scale.py", "--most", "3"])
    assert command("scale", None) == "python benchmarks/scale.py --most 3"
    said = of_script("scale", [], ("pytest", "not-a-package"))
    assert "pytest" in said["versions"] and "not-a-package" not in said["versions"]
    assert {"command", "revision", "versions", "device", "hardware", "time"} == set(said)
