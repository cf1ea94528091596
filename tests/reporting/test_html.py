"""Pages load nothing, fold code, keep prose and figures, and show what a text says as text."""

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from twophase.reporting import notebook as shown
from twophase.reporting.html import contents_html, opening, page_html

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PARAMETERS = 'preset: str = "auto"  # smoke, quick or paper\nepochs: int = 3\n'


def code(source, *tags, outputs=()):
    cell = new_code_cell(source, outputs=list(outputs))
    cell.metadata["tags"] = list(tags)
    return cell


def page_of(*cells, title="T"):
    return page_html(new_notebook(cells=list(cells)), title, Path("."), "", {})


GOOD = SimpleNamespace(finished="today", preset="quick", took="3 s", failure=None)


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
    displayed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "display", displayed.append)
        shown.figure(fig, "The norm $\\|g\\|$ of `vit`.")
        frame = pd.DataFrame({"$P$": [3], "cost": ["5 $"]})
        shown.table(frame, "Counts $Q$, `$HOME/$PATH`.")
    picture, table = (html.data for html in displayed)
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


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/svg+xml"])
def test_alternative_texts_are_escaped(kind):
    alt = 'Loss "a" < b & <b>c</b>'
    output = new_output("display_data", data={kind: "AAAA"}, metadata={kind: {"alt": alt}})
    bare = new_output("display_data", data={kind: "AAAA"})
    parsed = Page(page_of(code("fig", outputs=[output, bare])))
    assert parsed.images[0]["alt"] == alt
    assert parsed.images[1]["alt"], "never an image without one"
    assert "b" not in parsed.tags


@pytest.mark.parametrize("title", ["A <b>B</b> & C", "<script>alert(1)</script> x < 1"])
def test_a_title_and_a_question_are_text_and_not_html(title):
    parsed = Page(page_of(new_markdown_cell(f"# {title}\n\nWhy?"), title=title))
    source = SimpleNamespace(name="01-a", title=title, question=f"Is {title}?")
    listed = Page(contents_html([(source, GOOD)], "now"))
    for one in (parsed, listed):
        assert title in one.visible and not {"b", "script"} & set(one.tags)
    assert parsed.tags.count("h1") == 1


def test_a_page_has_no_scripts_whatever_a_cell_shows():
    view = {"model_id": "a"}
    outputs = [
        new_output("display_data", data={"application/javascript": "alert(1)"}),
        new_output("display_data", data={"application/vnd.jupyter.widget-view+json": view}),
    ]
    notebook = new_notebook(cells=[code("x", outputs=outputs)])
    notebook.metadata["widgets"] = {
        "application/vnd.jupyter.widget-state+json": {"state": {"a": {}}}
    }
    assert "script" not in Page(page_html(notebook, "T", Path("."), "", {})).tags


def test_pictures_that_the_prose_names_are_inside(tmp_path):
    (tmp_path / "loss.png").write_bytes(b"\x89PNG")
    notebook = new_notebook(cells=[new_markdown_cell("![the loss](loss.png)")])
    (image,) = Page(page_html(notebook, "T", tmp_path, "", {})).images
    assert image["alt"] == "the loss"
    assert image["src"].startswith("data:image/png;base64,")


def test_other_notebooks_are_linked_in_prose_and_in_sentences():
    said = new_output("display_data", {"text/markdown": "See notebooks 01, 02 and 03."})
    prose = "Notebook\n02 is `notebook 01`, notebook 2026, 01 or `notebooks/01-a`."
    cells = [new_markdown_cell(prose), new_code_cell(outputs=[said])]
    page = page_html(
        new_notebook(cells=cells), "T", Path(), "", {}, {"01": "01-a.html", "02": "02-b.html"}
    )
    found = re.findall(r'<a href="(\d\d-.\.html)">(\d\d)</a>', page)
    assert found == [("02-b.html", "02"), ("01-a.html", "01"), ("02-b.html", "02")]


def test_the_index_lists_title_question_and_status():
    source = SimpleNamespace(name="01-a", title="A `b`", question="Is $x$ > 1 & **why**?")
    html = contents_html([(source, GOOD)], "now")
    parsed = Page(html)
    assert "A b" in parsed.visible and "why" in parsed.visible and "now" in parsed.visible
    assert 'href="01-a.html"' in html
    assert {"math", "strong", "code"} <= set(parsed.tags)
    assert "script" not in parsed.tags and not parsed.loads


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
    assert opening(notebook, "01-name") == (title, question)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_in_the_notebooks_can_be_typeset(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    page = page_html(notebook, opening(notebook, path.stem)[0], path.parent, "", {})
    assert not re.findall(r'<code class="not-typeset">(.*?)</code>', page)
