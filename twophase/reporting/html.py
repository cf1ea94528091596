"""The HTML of the reports: the code that fills the templates.

A page loads nothing from elsewhere: style and pictures are inside, mathematics is MathML, and
there are no scripts, so that it reads the same offline and in print.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from twophase.reporting.formulas import Renderer, title_html

_FOLDER = Path(__file__).parent / "templates"
_TITLE = re.compile(r"^# +(.+)$", re.MULTILINE)
# code, which stays as it is, and other notebooks, as in "notebooks 03, 06 and 11"
_NAMED = re.compile(r"`[^`]*`|\b[Nn]otebooks?\s+\d\d\b(?:(?:,| and|, and)\s+\d\d\b)*")


def opening(notebook: NotebookNode, name: str) -> tuple[str, str]:
    """The title and the question, in Markdown, from a notebook's first Markdown cell.

    They are the first heading, else `name`, and the first paragraph that asks, else the first.
    """
    source = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title = _TITLE.search(source)
    parts = re.split(r"\n\s*\n|(?m:^#.*$)", source)
    paragraphs = [part.strip() for part in parts if part.strip()]
    asked = next((part for part in paragraphs if "?" in part), "".join(paragraphs[:1]))
    question = re.sub(r"^\*\*Question[.:]?\*\*[.:]?\s*", "", asked)
    return title[1].strip() if title else name, question


def linked(source: str, pages: Mapping[str, str]) -> str:
    """Markdown in which the numbers after "notebook" or "notebooks" are links.

    `pages` has the file of each number; other numbers stay as they are.

    >>> linked("see notebooks 03 and 05", {"03": "03-images.html"})
    'see notebooks [03](03-images.html) and 05'
    """

    def link(number: re.Match[str]) -> str:
        return f"[{number[0]}]({pages[number[0]]})" if number[0] in pages else number[0]

    def links(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("`") else re.sub(r"\d\d", link, found[0])

    return _NAMED.sub(links, source)


def page_html(
    notebook: NotebookNode,
    title: str,
    folder: Path,
    summary: str,
    provenance: Mapping[str, str],
    pages: Mapping[str, str] | None = None,
) -> str:
    """An executed notebook as an HTML page, with a `title` in Markdown.

    `folder` is where its source lies, for the pictures that its Markdown names. `summary`, a line
    under the title, and `provenance`, terms and descriptions for the foot, are plain text. `pages`
    are those of `linked`.
    """
    notebook = copy.deepcopy(notebook)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "markdown"][:1]:
        # the page's header shows the title
        cell.source = _TITLE.sub("", cell.source, count=1)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, pages or {})
        for data in (output.get("data", {}) for output in cell.get("outputs", ())):
            if "text/markdown" in data:
                data["text/markdown"] = linked(data["text/markdown"], pages or {})
    page = {
        "heading": title_html(title),
        "summary": summary,
        "provenance": provenance,
        "colours": lambda style: HtmlFormatter(style=style).get_style_defs(".highlight"),
    }
    exporter = _Exporter(
        template_name="report",
        extra_template_basedirs=[str(_FOLDER)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    resources = {"page": page, "metadata": {"path": str(folder)}}
    return exporter.from_notebook_node(notebook, resources)[0]


def contents_html(reports: Iterable[tuple[Any, Any]], written: str) -> str:
    """The index page: a row for each notebook and what became of it, and the date."""
    loader = FileSystemLoader(_FOLDER / "report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["markdown"] = title_html
    return environment.get_template("contents.html.j2").render(reports=reports, written=written)


class _PageRenderer(Renderer, IPythonRenderer):
    """That with nbconvert's pictures and coloured code."""


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Mapping[str, Any], source: str) -> str:
        renderer = _PageRenderer(
            escape=False,
            attachments=context.get("cell", {}).get("attachments", {}),
            embed_images=True,
            path=context["resources"]["metadata"]["path"],
            exclude_anchor_links=True,
        )
        return MarkdownWithMath(renderer=renderer).render(source)
