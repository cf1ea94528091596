"""The HTML of the reports: the templates and the code that fills them.

A page loads nothing from elsewhere: style and pictures are inside, mathematics is MathML, and
there are no scripts, so that it reads the same offline and in print.
"""

import copy
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

_FOLDER = Path(__file__).parent / "templates"
_TITLE = re.compile(r"^# +(.+)$", re.MULTILINE)
_INLINE_FORMULA = re.compile(r"(?<!\\)\$([^$]+)(?<!\\)\$")
# what latex2mathml passes on as if it were a letter: a command it lacks, or a stray alignment
_NOT_UNDERSTOOD = re.compile(r"<m[ion]>(\\\w+|&)</m[ion]>")
_FUNCTION = r"<mi>(?:(?:sin|cos|tan)h?|log|ln|exp)</mi>"
# what it gets wrong, and what it ought to write
_MENDS = (
    # relations and signs that are set as letters have no space around them
    (re.compile(r"<mi>~</mi>"), "<mo>∼</mo>"),
    (re.compile(r"<mi>±</mi>"), "<mo>±</mo>"),
    # a minus after a relation, a comma or an opening bracket is a sign, not a subtraction
    (
        re.compile(r"(<mi />|<mo[^>]*>(?:[=≤≥∼≈(\[,·×+]|&lt;|&gt;)</mo>)<mo>−</mo>"),
        r'\1<mo form="prefix">−</mo>',
    ),
    # the sign for a prime is small and raised by itself
    (
        re.compile(r"<msup>(<m[io][^>]*>[^<]*</m[io]>)<mi>([′″‴])</mi></msup>"),
        r'\1<mo lspace="0" rspace="0">\2</mo>',
    ),
    (re.compile(r"<mo>/</mo>"), '<mo lspace="0" rspace="0">/</mo>'),
    # as in TeX, a thin space between a function's name and what stands beside it
    (re.compile(rf"({_FUNCTION})(?=<m(?!o|space))"), r'\1<mspace width="0.167em" />'),
    (re.compile(rf"(</m(?:i|n|row)>)(?={_FUNCTION})"), r'\1<mspace width="0.167em" />'),
)


@dataclass(frozen=True)
class Opening:
    """What a notebook says of itself in its first Markdown cell.

    Attributes:
        title: the first heading, in Markdown.
        question: the first paragraph with a question mark, else the first one, in Markdown.
    """

    title: str
    question: str


def opening(notebook: NotebookNode, name: str) -> Opening:
    r"""Return the title and the question of a notebook; `name` stands in for a missing title.

    >>> from nbformat.v4 import new_markdown_cell, new_notebook
    >>> opening(new_notebook(cells=[new_markdown_cell("# Steps\n\nSo.\n\nHow far?")]), "01")
    Opening(title='Steps', question='How far?')
    """
    source = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title = _TITLE.search(source)
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n|(?m:^#.*$)", source)]
    paragraphs = [part for part in paragraphs if part]
    asked = next((part for part in paragraphs if "?" in part), "".join(paragraphs[:1]))
    return Opening(
        title=title.group(1).strip() if title else name,
        question=re.sub(r"^\*\*Question[.:]?\*\*[.:]?\s*", "", asked),
    )


def page_html(
    notebook: NotebookNode, title: str, folder: Path, summary: str, provenance: Mapping[str, str]
) -> str:
    """Return an executed notebook as an HTML page.

    Args:
        notebook: the executed notebook.
        title: its title, in Markdown.
        folder: where its source lies, for the pictures that its Markdown names.
        summary: one line of plain text under the title.
        provenance: terms and their descriptions in plain text, for the foot of the page.
    """
    page = {
        "title": _plain(title),
        "heading": _markdown_html(title),
        "summary": summary,
        "provenance": dict(provenance),
        "style": _style(),
    }
    exporter = _Exporter(
        template_name="report", extra_template_basedirs=[str(_FOLDER)], embed_images=True
    )
    resources = {"page": page, "metadata": {"path": str(folder), "name": page["title"]}}
    return exporter.from_notebook_node(_without_title(notebook), resources)[0]


def contents_html(reports: Iterable[Mapping[str, Any]], written: str) -> str:
    """Return the index page as HTML.

    Args:
        reports: a row each, with the fields that `contents.html.j2` reads.
        written: the date, in plain text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["markdown"] = lambda text: Markup(_markdown_html(text))
    template = environment.get_template("contents.html.j2")
    return template.render(reports=list(reports), written=written, style=Markup(_style()))


def formula_html(latex: str, display: str = "inline") -> str:
    r"""Return a LaTeX formula as MathML, or as code where it cannot be typeset.

    Args:
        latex: the formula without its dollar signs.
        display: `"inline"`, or `"block"` for a formula on a line of its own.

    >>> formula_html("x")
    '<math ...display="inline"><mrow><mi>x</mi></mrow></math>'
    >>> formula_html(r"\frac{1}{")
    '<code class="not-typeset">\\frac{1}{</code>'
    """
    # the converter knows the outer environments only, which look the same
    known = re.sub(r"\{(aligned|gathered)\}", r"{align*}", latex.strip())
    try:
        mathml = _readable(convert(known, display=display))
    except Exception:  # its errors have no common base
        mathml = ""
    if not mathml or _NOT_UNDERSTOOD.search(mathml):
        return f'<code class="not-typeset">{html.escape(latex, quote=False)}</code>'
    for wrong, right in _MENDS:
        mathml = wrong.sub(right, mathml)
    return f'<div class="formula">{mathml}</div>' if display == "block" else mathml


def _readable(mathml: str) -> str:
    """The characters themselves for their numbers, but for the three that HTML reserves."""
    return re.sub(
        r"&#x([0-9A-F]+);",
        lambda match: html.escape(chr(int(match[1], 16)), quote=False),
        mathml,
    )


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return formula_html(body)

    def block_math(self, body: str) -> str:
        return formula_html(body, display="block")

    def latex_environment(self, name: str, body: str) -> str:
        return formula_html(rf"\begin{{{name}}}{body}\end{{{name}}}", display="block")


class _Exporter(HTMLExporter):
    """nbconvert's exporter with formulas as MathML, in Markdown and in captions and tables."""

    @pass_context
    def markdown2html(self, context: Mapping[str, Any], source: str) -> str:
        cell = context.get("cell", {})
        renderer = _Renderer(
            escape=False,
            attachments=cell.get("attachments", {}),
            embed_images=True,
            path=context["resources"]["metadata"]["path"],
            exclude_anchor_links=True,
        )
        return MarkdownWithMath(renderer=renderer).render(source)

    def default_filters(self) -> Iterable[tuple[str, Any]]:
        yield from super().default_filters()
        yield "typeset", _typeset


def _typeset(markup: str) -> str:
    """Formulas in the text of our own captions and tables; other HTML may mean dollars."""
    if 'class="twophase-' not in markup:
        return markup
    # codes and tags, attributes and all, stay as they are
    parts = re.split(r"(<code>.*?</code>|<[^>]*>)", markup)
    parts[::2] = [
        _INLINE_FORMULA.sub(lambda match: formula_html(html.unescape(match[1])), text)
        for text in parts[::2]
    ]
    return "".join(parts)


def _markdown_html(text: str) -> str:
    """One paragraph of Markdown without the tags around it."""
    renderer = _Renderer(escape=False, exclude_anchor_links=True)
    rendered = MarkdownWithMath(renderer=renderer).render(text).strip()
    return rendered.removeprefix("<p>").removesuffix("</p>")


def _plain(text: str) -> str:
    return BeautifulSoup(_markdown_html(text), "html.parser").get_text()


def _without_title(notebook: NotebookNode) -> NotebookNode:
    # the page's header shows it
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _TITLE.sub("", cell.source, count=1)
            break
    return notebook


@cache
def _style() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return "\n".join(
        [
            light,
            f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}",
            (_FOLDER / "style.css").read_text(encoding="utf-8"),
        ]
    )
