"""Reports: pages are whole and self-contained; what fails or stops never costs an old page."""

import json
import re
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from twophase.errors import InputError
from twophase.experiments.progress import Progress
from twophase.reporting import notebook as shown
from twophase.reporting import report
from twophase.reporting.html import contents_html, formula_html, opening, page_html
from twophase.reporting.notebook import PRESET_VARIABLE
from twophase.reporting.report import ReportError, build

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PARAMETERS = 'preset: str = "auto"  # smoke, quick or paper\nepochs: int = 3\n'


def code(source, *tags, outputs=()):
    cell = new_code_cell(source, outputs=list(outputs))
    cell.metadata["tags"] = list(tags)
    return cell


def write(project, name, *cells, prose="# A title\n\nWhat is asked?"):
    (project / "notebooks").mkdir(exist_ok=True)
    cells = [new_markdown_cell(prose), code(PARAMETERS, "parameters"), *map(code, cells)]
    nbformat.write(new_notebook(cells=cells), project / "notebooks" / f"{name}.ipynb")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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

    index = build("smoke", parameters={"epochs": 7}, notebooks=["01"], project=project)
    reports = project / "reports"
    assert index == reports / "index.html"
    expected = ["01-first.html", "index.html", "index.json", "notebooks/01-first.ipynb"]
    assert files(reports) == expected
    page = (reports / "01-first.html").read_text(encoding="utf-8")
    visible = Page(page).visible
    assert "preset smoke epochs 7" in visible
    assert "clutter" not in visible
    assert "<title>The first C &amp; more · twophase</title>" in page
    for word in ("preset smoke", "Device", "torch 2", "python 3"):
        assert word in visible
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
    assert f"[1/2] 01-first failed, {error}\n" in capfd.readouterr().err
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
    assert "ailed" not in Page((reports / "index.html").read_text(encoding="utf-8")).visible
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
    with pytest.raises(KeyboardInterrupt):
        build("smoke", project=project)
    assert {name: (reports / name).read_bytes() for name in files(reports)} == before


def test_a_kernel_that_dies_is_a_failure_like_others(project):
    write(project, "01-first", "import os\nos._exit(1)")
    with pytest.raises(ReportError, match="01-first, the kernel died"):
        build("smoke", project=project)


# -- what is refused before anything runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "preset: 'fast' is not allowed; use one of auto, smoke"),
        ({"notebooks": ["03"]}, "notebook: '03' is not allowed; use one of 01-first, 01"),
        ({"parameters": {"epoch": 3}}, r"parameter: 'epoch' .*did you mean 'epochs'"),
        ({"parameters": {"preset": "smoke"}}, "parameter: 'preset' is not allowed"),
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
    with pytest.raises(InputError, match=r"notebooks: .* use a folder with NN-name.ipynb"):
        build("smoke", project=project)
    write(project, "01-first")
    (project / "file").write_text("")
    with pytest.raises(InputError, match="out: .*use a folder to write in"):
        build("smoke", out=project / "file", project=project)


# -- a page


class Page(HTMLParser):
    """Collects what a page would load, its images and the text that is not folded away."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.loads, self.images, self.visible, self.folded = [], [], [], "", ""
        self._open = []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self._open.append(tag)
        self.loads += [
            value
            for name, value in attributes.items()
            if name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href")
        ]
        if tag == "img":
            self.images.append(attributes)
        if tag in ("img", "meta", "br"):
            self._open.pop()

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self._open:
            return
        if "details" in self._open:
            self.folded += data
        else:
            self.visible += data


@pytest.fixture(scope="module")
def page():
    fig, axes = plt.subplots()
    axes.set(xlabel="loss")
    picture = shown._figure_html(fig, "The norm $\\|g\\|$ of `vit`.")
    plt.close(fig)
    table = shown._table_html(
        pd.DataFrame({"$P$": [3], "cost": ["5 $"]}), "Counts $Q$, `$HOME/$PATH`."
    )
    outputs = [
        new_output("stream", name="stdout", text="printed <text>"),
        new_output("stream", name="stderr", text="a warning"),
        new_output("display_data", data={"text/html": picture, "text/plain": "<HTML>"}),
        new_output("display_data", data={"text/html": table, "text/plain": "<HTML>"}),
        new_output("display_data", data={"text/markdown": "So $\\beta=2$, **really**."}),
        new_output("display_data", data={"text/html": "<b>$1 and $2</b>"}),
        new_output("execute_result", data={"text/plain": "{'a': 1}"}),
    ]
    prose = (
        "# Who & why\n\nWhat of $\\alpha_k$?\n\n$$\\frac{1}{2}$$\n\nIt is `$5 and $6` in code.\n\n"
        "```python\nprice = '$7 or $8'\n```\n"
    )
    cells = [
        new_markdown_cell(prose),
        code(PARAMETERS, "parameters"),
        code("# Parameters\nepochs = 3", "injected-parameters"),
        code("secret = 'folded away'", outputs=outputs),
    ]
    notebook = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    return page_html(notebook, "Who & why", Path("."), "a <summary>", {"Term": "A <description>"})


def test_a_page_loads_nothing(page):
    assert "script" not in Page(page).tags
    assert "link" not in Page(page).tags
    assert all(source.startswith("data:") for source in Page(page).loads)
    assert not re.search(r"@import|url\(", page)


def test_a_page_shows_prose_and_output_and_folds_code(page):
    parsed = Page(page)
    assert "folded away" in parsed.folded and "folded away" not in parsed.visible
    assert "Parameters of this run" in parsed.folded
    assert "printed <text>" in parsed.visible
    assert "{'a': 1}" in parsed.visible
    assert "a <summary>" in parsed.visible and "A <description>" in parsed.visible
    assert "a warning" not in page
    assert parsed.tags.count("h1") == 1
    assert "<title>Who &amp; why · twophase</title>" in page
    assert 'class="highlight' in page


def test_formulas_are_mathml_and_code_is_left_alone(page):
    parsed = Page(page)
    assert parsed.tags.count("math") == 6, "two of prose, two captions, a heading, a sentence"
    assert page.count('<div class="formula"><math') == 1
    for kept in ("$5 and $6", "$1 and $2", "5 $", "$HOME/$PATH"):
        assert kept in parsed.visible
    assert "$7 or $8" in parsed.visible
    assert "not-typeset" not in re.sub(r"(?s)<style>.*?</style>", "", page)


def test_figures_have_an_alternative_text(page):
    (image,) = Page(page).images
    assert image["alt"] == "The norm \\|g\\| of vit."


def test_the_index_lists_title_question_and_status():
    common = {"question": "Is $x$ > 1 & **why**?", "duration": "3 s", "preset": "quick"}
    good = {"name": "01-a", "title": "A `b`", "finished": "today", "failure": None} | common
    html = contents_html([good], "now")
    parsed = Page(html)
    assert "A b" in parsed.visible and "why" in parsed.visible and "now" in parsed.visible
    assert 'href="01-a.html"' in html
    assert {"math", "strong", "code"} <= set(parsed.tags)
    assert "script" not in parsed.tags and not parsed.loads


# -- parts


@pytest.mark.parametrize(
    ("prose", "title", "question"),
    [
        ("# T\n\n**Question.** How\nfar?\n\nMore?", "T", "How\nfar?"),
        ("# T\nAn answer.\n\nWhy?", "T", "Why?"),
        ("# T\n\nOnly a statement.\n\nAnd one more.", "T", "Only a statement."),
        ("No title here.", "01-name", "No title here."),
        ("# T", "T", ""),
        ("", "01-name", ""),
    ],
)
def test_a_notebook_opens_with_its_title_and_question(prose, title, question):
    notebook = new_notebook(cells=[code("x = '# no'"), new_markdown_cell(prose)])
    about = opening(notebook, "01-name")
    assert (about.title, about.question) == (title, question)


@pytest.mark.parametrize("latex", [r"\frac{1}{", r"\unknowncommand{x}", "", r"a & b", "x_{"])
def test_a_formula_that_cannot_be_typeset_stays_readable(latex):
    assert formula_html(latex).startswith('<code class="not-typeset">')


@pytest.mark.parametrize(
    ("latex", "part"),
    [
        ("x = -1", '<mo>=</mo><mo form="prefix">−</mo>'),
        ("a - b", "</mi><mo>−</mo>"),
        ("f(x) - b", ")</mo><mo>−</mo>"),
        ("U(-1, -2)", ',</mo><mo form="prefix">−</mo>'),
        (r"x \sim U", "<mo>∼</mo>"),
        (r"\tanh h", '<mi>tanh</mi><mspace width="0.167em" /><mi>h</mi>'),
        (r"\tanh(h)", '<mi>tanh</mi><mo stretchy="false">('),
        (r"a < b", "<mo>&lt;</mo>"),
        (r"L''(p)", '<mi>L</mi><mo lspace="0" rspace="0">″</mo><mo stretchy="false">('),
        (r"a / b", '<mo lspace="0" rspace="0">/</mo>'),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
    ],
)
def test_what_the_converter_gets_wrong_is_mended(latex, part):
    assert part in formula_html(latex)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_in_the_notebooks_can_be_typeset(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    page = page_html(notebook, opening(notebook, path.stem).title, path.parent, "", {})
    assert not re.findall(r'<code class="not-typeset">(.*?)</code>', page)


@pytest.mark.parametrize(
    ("expected", "progress", "words"),
    [
        ([None], None, "[2/3] 02-x · 10 s so far"),
        ([None], Progress("adam", 5, 20, 4.0), "adam 5/20 · 10 s so far · about 12 s left in this"),
        ([60.0, 90.0], None, "10 s so far · about 2 min 20 s left"),
        ([12.0, 90.0], Progress("cg", 5, 20, 4.0), "cg 5/20 · 10 s so far · about 1 min 42 s left"),
        ([12.0, None], Progress("", 0, None, 0.0), "[2/3] 02-x · step 0 · 10 s so far"),
    ],
)
def test_the_status_tells_notebook_epoch_and_time_left(monkeypatch, expected, progress, words):
    monkeypatch.setattr(report.time, "monotonic", lambda: 110.0)
    task = report._Task("02-x", "[2/3]", 100.0, expected)
    assert words in report._status(task, progress)


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
    assert report._duration(seconds) == text


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"01-a": 3}', '{"01-a": {"failure": null, "x": 1}}']
)
def test_an_index_that_cannot_be_read_starts_anew(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    assert report._load_records(tmp_path) == {}
