"""Reports: what fails, stops or runs at the same time never costs a page or an index entry."""

import json
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from twophase.errors import InputError
from twophase.experiments.progress import Progress, duration
from twophase.reporting import execution, report
from twophase.reporting.notebook import PRESET_VARIABLE
from twophase.reporting.report import ReportError, build

pytestmark = pytest.mark.slow

PARAMETERS = 'preset: str = "auto"  # smoke, quick or paper\nepochs: int = 3\n'


def code(source, *tags):
    cell = new_code_cell(source)
    cell.metadata["tags"] = list(tags)
    return cell


def write(project, name, *cells, prose="# A title\n\nWhat is asked?"):
    (project / "notebooks").mkdir(exist_ok=True)
    cells = [new_markdown_cell(prose), code(PARAMETERS, "parameters"), *map(code, cells)]
    nbformat.write(new_notebook(cells=cells), project / "notebooks" / f"{name}.ipynb")


def files(folder):
    found = (path for path in folder.rglob("[!.]*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found)


def visible(page):
    """The text that is neither folded away nor style."""
    soup = BeautifulSoup(page, "html.parser")
    for part in soup(["style", "details"]):
        part.decompose()
    return soup.get_text()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv(PRESET_VARIABLE, raising=False)
    return tmp_path


# -- what a build leaves


def test_a_build_leaves_a_page_for_each_notebook_and_an_index(project, monkeypatch, capfd):
    # a kernel of the same name that the user has installed must not be the one that runs
    kernel = project / "user" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(project / "user"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    write(
        project,
        "01-first",
        f"import os, sys\nassert sys.executable == {sys.executable!r}",
        f"assert os.getcwd() == {str(project / 'notebooks')!r}",
        "assert os.environ['TWOPHASE_PROGRESS']",
        "print('preset', preset, 'epochs', epochs)\nprint('clutter', file=sys.stderr)",
        prose="# The *first* $C$ & more\n\nIs $a<b$?",
    )
    write(project, "02-second", "print(preset)", prose="A notebook without a title.")
    (project / "notebooks" / "scratch.ipynb").write_text("not numbered, so not read")

    index = build("smoke", parameters={"epochs": 7}, notebooks=["1"], project=project)
    reports = project / "reports"
    assert index == reports / "index.html"
    expected = ["01-first.html", "index.html", "index.json", "notebooks/01-first.ipynb"]
    assert files(reports) == expected
    page = (reports / "01-first.html").read_text(encoding="utf-8")
    text = visible(page)
    assert "preset smoke epochs 7" in text
    assert "clutter" not in text
    assert "<title>01 · The first C &amp; more · twophase</title>" in page
    for word in ("preset smoke", "Device", "torch 2", "python 3"):
        assert word in text
    listed = index.read_text(encoding="utf-8")
    assert 'href="01-first.html"' in listed and "done" in listed
    assert "02-second" in listed and "not made yet" in listed
    assert "<math" in listed, "the question is typeset"

    out, err = capfd.readouterr()
    assert out == ""
    assert "[1/1] 01-first: done in" in err
    assert "IPKernelApp" not in err and len(err.splitlines()) == 2
    executed = nbformat.read(reports / "notebooks" / "01-first.ipynb", as_version=4)
    assert str(project) not in json.dumps(executed.metadata), "no names of temporary files"


def test_a_failure_keeps_the_old_page_and_lets_the_others_run(project, capfd):
    write(project, "01-first", "print('old')")
    write(project, "02-second", "print('old')")
    build("smoke", project=project)
    reports = project / "reports"
    old = (reports / "01-first.html").read_bytes()
    capfd.readouterr()

    write(project, "01-first", "print('new')", "x = 1\nraise ValueError('no <good>\\nreason')")
    write(project, "02-second", "print('new')")
    with pytest.raises(ReportError) as caught:
        build("smoke", project=project)
    error = "cell [4] 'x = 1': ValueError: no <good>"
    assert str(caught.value) == f"1 of 2 notebooks failed: 01-first, {error}"
    assert re.search(rf"\[[12]/2\] 01-first failed, {re.escape(error)}\n", capfd.readouterr().err)
    assert (reports / "01-first.html").read_bytes() == old
    assert "new" in (reports / "02-second.html").read_text(encoding="utf-8")
    listed = (reports / "index.html").read_text(encoding="utf-8")
    assert "ValueError: no &lt;good&gt;" in listed
    assert "The report here is the last good one" in listed
    failed = nbformat.read(reports / "notebooks" / "01-first.failed.ipynb", as_version=4)
    assert "ValueError" in json.dumps(failed)

    write(project, "01-first", "print('mended')")
    build("smoke", project=project)
    assert "mended" in (reports / "01-first.html").read_text(encoding="utf-8")
    assert "ailed" not in visible((reports / "index.html").read_text(encoding="utf-8"))
    assert not (reports / "notebooks" / "01-first.failed.ipynb").exists()


@pytest.fixture
def ctrl_c():
    """SIGINT as at a terminal: shells start background jobs, such as some CI's, with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_run_leaves_everything_whole(project, ctrl_c):
    write(project, "01-first", "print('old')")
    build("smoke", project=project)
    reports = project / "reports"
    before = {name: (reports / name).read_bytes() for name in files(reports)}
    write(
        project,
        "01-first",
        f"import os, time\nos.kill(os.getppid(), {int(signal.SIGINT)})\ntime.sleep(60)",
    )
    # one beside it, and one that never starts
    for name in ("02-second", "03-third"):
        write(project, name, "import time\ntime.sleep(60)")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build("smoke", jobs=2, project=project)
    assert time.monotonic() - began < 60, "nobody waits for what was stopped"
    assert {name: (reports / name).read_bytes() for name in files(reports)} == before


def test_a_kernel_that_dies_is_a_failure_like_others(project):
    write(project, "01-first", "import os\nos.write(2, b'last words\\n')\nos._exit(1)")
    with pytest.raises(ReportError, match="01-first, DeadKernelError: Kernel died: last words$"):
        build("smoke", project=project)


def test_notebooks_run_beside_each_other_and_share_the_cores(project, monkeypatch):
    """Each waits for a file that the other one writes."""
    monkeypatch.setattr(report, "_CORES", 6)
    monkeypatch.delenv("OMP_NUM_THREADS")
    for name, own, other in (("01-first", "a", "b"), ("02-second", "b", "a")):
        write(
            project,
            name,
            "import os, time\nfrom pathlib import Path\nprint(os.environ['OMP_NUM_THREADS'])",
            f"Path('{own}').touch()\nwhile not Path('{other}').exists(): time.sleep(0.1)",
        )
    build("smoke", jobs=2, project=project)
    for name in ("01-first", "02-second"):
        page = visible((project / "reports" / f"{name}.html").read_text(encoding="utf-8"))
        assert "3" in page.split() and "3 threads" in page


def test_two_builds_into_one_folder_keep_both_entries(project, monkeypatch):
    """The second runs, start to end, while the first one's notebook runs."""
    write(project, "01-first")
    write(project, "02-second")
    execute = execution.papermill.execute_notebook

    def with_another_build(path, *others, **options):
        monkeypatch.setattr(execution.papermill, "execute_notebook", execute)
        build("smoke", notebooks=["02"], project=project)
        return execute(path, *others, **options)

    monkeypatch.setattr(execution.papermill, "execute_notebook", with_another_build)
    build("smoke", notebooks=["01"], project=project)
    listed = (project / "reports" / "index.html").read_text(encoding="utf-8")
    assert 'href="01-first.html"' in listed and 'href="02-second.html"' in listed
    assert "not made yet" not in listed


def test_entries_that_are_written_at_the_same_time_are_all_kept(project):
    sources = [report._Source(project / f"{i:02}-x.ipynb", "T", "", {}, {}) for i in range(20)]
    job = report._Job(project, "smoke", {}, "cpu", None, sources)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(partial(report._update_index, job, finished="now"), sources))
    assert set(report._load_records(project)) == {source.name for source in sources}
    assert (project / "index.html").read_text(encoding="utf-8").count("href=") == 20


# -- what is refused before anything runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "preset: 'fast' is not allowed; use one of auto, smoke"),
        ({"notebooks": ["03"]}, "notebook: '03' is not allowed; use one of 01-first, 01"),
        ({"parameters": {"epoch": 3}}, r"parameter: 'epoch' .*did you mean 'epochs'"),
        ({"parameters": {"preset": "smoke"}}, "parameter: 'preset' is not allowed"),
        ({"jobs": 0}, "jobs: 0 is not allowed; use"),
        ({"device": "gpu"}, "device: 'gpu' is not allowed; use auto, cpu or cuda"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(project, options, message):
    write(project, "01-first")
    with pytest.raises(InputError, match=message):
        build(**{"preset": "smoke"} | options, project=project)
    assert not (project / "reports").exists()


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [code("preset = 'auto'")],
        [code("epochs = 3", "parameters")],
        [code("x = (", "parameters")],
    ],
)
def test_a_notebook_that_takes_no_preset_is_refused(project, cells):
    (project / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), project / "notebooks" / "01-first.ipynb")
    with pytest.raises(InputError, match="notebook: '01-first.ipynb'"):
        build("smoke", project=project)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_refused(project, text):
    (project / "notebooks").mkdir()
    (project / "notebooks" / "01-first.ipynb").write_text(text)
    with pytest.raises(InputError, match="notebook: '01-first.ipynb'"):
        build("smoke", project=project)


def test_a_folder_without_notebooks_and_one_that_cannot_be_written(project):
    with pytest.raises(InputError, match=r"project: .* use a folder with notebooks/NN-name.ipynb"):
        build("smoke", project=project)
    write(project, "01-first")
    (project / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory") as caught:
        build("smoke", out=project / "file", project=project)
    assert str(project / "file") in caught.value.filename, "the command line's one line names it"


# -- parts


@pytest.mark.parametrize(
    ("expected", "progress", "words"),
    [
        ((None, None), None, "02-x · 10 s so far"),
        (
            (None, None),
            Progress("adam", 5, 20, 4.0),
            "02-x (adam 5/20) · 10 s so far · about 12 s left in this",
        ),
        ((60.0, 90.0), None, "02-x · 10 s so far · about 2 min 20 s left"),
        (
            (12.0, 90.0),
            Progress("cg", 5, 20, 4.0),
            "(cg 5/20) · 10 s so far · about 1 min 42 s left",
        ),
        ((12.0, None), Progress("", 0, None, 0.0), "02-x (step 0) · 10 s so far"),
    ],
)
def test_the_status_tells_notebook_epoch_and_time_left(
    tmp_path, monkeypatch, expected, progress, words
):
    build = a_build(tmp_path, expected, monkeypatch, jobs=1)
    build._running["02-x"] = 100.0, tmp_path / "progress.json"
    build._waiting.remove("02-x")
    if progress:
        (tmp_path / "progress.json").write_text(json.dumps(asdict(progress)))
    assert build.status().startswith("0 of 2 done · 02-x")
    assert build.status().endswith(words) or words + " step" in build.status()


def a_build(folder, expected, monkeypatch, jobs):
    """One that began ten seconds ago, with notebooks 02-x, 03-x, … that nobody runs."""
    monkeypatch.setattr(report.time, "monotonic", lambda: 100.0)
    names = [f"{number:02}-x.ipynb" for number in range(2, 2 + len(expected))]
    sources = [
        report._Source(folder / name, "T", "", frozenset(), {"quick": seconds} if seconds else {})
        for name, seconds in zip(names, expected, strict=True)
    ]
    build = report._Build(report._Job(folder, "quick", {}, "cpu", None, sources), sources, jobs)
    monkeypatch.setattr(report.time, "monotonic", lambda: 110.0)
    return build


@pytest.mark.parametrize(
    ("jobs", "left"), [(1, "3 min 10 s"), (2, "1 min 35 s"), (4, "1 min 30 s")]
)
def test_the_time_left_counts_the_notebooks_that_run_beside_each_other(
    tmp_path, monkeypatch, jobs, left
):
    build = a_build(tmp_path, (60.0, 50.0, 90.0), monkeypatch, jobs)
    build._running["02-x"] = 100.0, tmp_path / "none"
    build._waiting.remove("02-x")
    assert f"about {left} left" in build.status()
    assert [source.name for source in build._order] == ["04-x", "02-x", "03-x"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (754, "12 min 34 s"),
        (3720, "1 h 02 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"01-a": 3}', '{"01-a": {"failure": null, "x": 1}}']
    + ['{"01-a": {"seconds": NaN}}', '{"01-a": {"seconds": "x"}}', '{"01-a": {"failure": "x"}}']
    + ['{"01-a": {"seconds": 1e999}}', '{"01-a": {"preset": 3}}', 100_000 * "["],
)
def test_an_index_that_cannot_be_read_starts_anew(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    assert report._load_records(tmp_path) == {}
