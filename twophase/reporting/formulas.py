"""Text with formulas as HTML: mathematics becomes MathML, which needs no scripts and no network."""

import html
import re

import mistune
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from markupsafe import Markup

# what latex2mathml passes on as if it were a letter: a command it lacks, or a stray alignment
_NOT_UNDERSTOOD = re.compile(r"<m[ion]>(\\\w+|&amp;)</m[ion]>")
_BEFORE_A_SIGN = r"<mi></mi>|<mo[^>]*>(?:[=≤≥∼≈(\[,·×+]|&lt;|&gt;)</mo>"
_LETTER = r"<m[io][^>]*>[^<]*</m[io]>"
_FUNCTION = r"<mi>(?:(?:sin|cos|tan)h?|log|ln|exp)</mi>"
_THIN_SPACE = '<mspace width="0.167em"></mspace>'
# what it gets wrong, and what it ought to write
_MENDS = {
    # relations and signs that are set as letters have no space around them
    r"<mi>~</mi>": "<mo>∼</mo>",
    r"<mi>±</mi>": "<mo>±</mo>",
    # a minus after a relation, a comma or an opening bracket is a sign, not a subtraction
    rf"({_BEFORE_A_SIGN})<mo>−</mo>": r'\1<mo form="prefix">−</mo>',
    # the sign for a prime is small and raised by itself
    rf"<msup>({_LETTER})<mi>([′″‴])</mi></msup>": r'\1<mo lspace="0" rspace="0">\2</mo>',
    r"<mo>/</mo>": '<mo lspace="0" rspace="0">/</mo>',
    # as in TeX, a thin space between a function's name and what stands beside it
    rf"({_FUNCTION})(?=<m(?!o|space))": rf"\1{_THIN_SPACE}",
    rf"(</m(?:i|n|row)>)(?={_FUNCTION})": rf"\1{_THIN_SPACE}",
}


# where no line shall break: between a number and its unit, seconds and passes, and in a range
_TOGETHER = re.compile(r"\d s, (?=\d)|\d (?=%|(?:s|min|h)\b)|\([-−]?\d\S* to [^()]{1,16}\)")


def unbroken(text: str) -> str:
    """A text with no-break spaces before units, as in 95 %, and in ranges, as in (0.1 to 0.3)."""
    return _TOGETHER.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def formula_html(latex: str, display: str = "inline") -> str:
    """A LaTeX formula without its dollar signs as MathML, or as code if that cannot be.

    `display` is "inline", or "block" for a formula on a line of its own.
    """
    # the converter knows the outer environments only, which look the same
    known = re.sub(r"\{(aligned|gathered)\}", r"{align*}", latex.strip())
    try:
        # the characters themselves for their numbers, but for the three that HTML reserves
        mathml = str(BeautifulSoup(convert(known, display=display), "html.parser"))
    except Exception:  # its errors have no common base
        mathml = ""
    if not mathml or _NOT_UNDERSTOOD.search(mathml):
        return f'<code class="not-typeset">{html.escape(latex, quote=False)}</code>'
    for wrong, right in _MENDS.items():
        mathml = re.sub(wrong, right, mathml)
    return f'<div class="formula">{mathml}</div>' if display == "block" else mathml


class Renderer(mistune.HTMLRenderer):
    """mistune's Markdown to HTML with formulas as MathML, and lines that break at good places."""

    def text(self, text: str) -> str:
        return unbroken(super().text(text))

    def inline_math(self, body: str) -> str:
        return formula_html(body)

    def block_math(self, body: str) -> str:
        return formula_html(body, display="block")

    def latex_environment(self, name: str, body: str) -> str:
        return formula_html(rf"\begin{{{name}}}{body}\end{{{name}}}", display="block")


def title_html(text: str) -> Markup:
    """A line of Markdown, such as a title, as HTML; HTML in it is shown as text."""
    return _inline(_MARKDOWN, text)


def caption_html(text: str) -> Markup:
    """Plain text as HTML in which `` `code` `` and `$formulas$` are understood."""
    return _inline(_PLAIN, text)


def _inline(markdown: mistune.Markdown, text: str) -> Markup:
    state = markdown.block.state_cls()
    return Markup(markdown.renderer(markdown.inline(text, state.env), state))


_MARKDOWN = mistune.create_markdown(renderer=Renderer(), plugins=["math"])
_PLAIN = mistune.create_markdown(renderer=Renderer(), plugins=["math"])
_PLAIN.inline.rules = ["inline_math", "codespan"]
