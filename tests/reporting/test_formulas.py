"""Formulas become MathML that reads as TeX meant it; what is no formula stays text."""

import pytest

from twophase.reporting.formulas import caption_html, formula_html, title_html


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
        (r"\tanh h", '<mi>tanh</mi><mspace width="0.167em"></mspace><mi>h</mi>'),
        (r"\tanh(h)", '<mi>tanh</mi><mo stretchy="false">('),
        (r"a < b", "<mo>&lt;</mo>"),
        (r"L''(p)", '<mi>L</mi><mo lspace="0" rspace="0">″</mo><mo stretchy="false">('),
        (r"a / b", '<mo lspace="0" rspace="0">/</mo>'),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
    ],
)
def test_what_the_converter_gets_wrong_is_mended(latex, part):
    assert part in formula_html(latex)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b & *c*", "a &lt; b &amp; *c*"),
        ("<b>no</b> [x](y)", "&lt;b&gt;no&lt;/b&gt; [x](y)"),
        ("`a_b` and `$x$`", "<code>a_b</code> and <code>$x$</code>"),
        ("costs 5 $ or 6 $", "costs 5 $ or 6 $"),
        ("1. first", "1. first"),
    ],
)
def test_a_caption_is_plain_text_with_code(text, shown):
    assert caption_html(text) == shown


@pytest.mark.parametrize("kind", [caption_html, title_html])
def test_no_line_breaks_before_a_unit_or_in_a_range(kind):
    shown = kind("A 95 % interval in 3 s, 12, (0.1 to a miss), 2 to 3 (as in 4 to 5).")
    assert shown == "A 95_% interval in 3_s,_12, (0.1_to_a_miss), 2 to 3 (as in 4 to 5).".replace(
        "_", "\N{NO-BREAK SPACE}"
    )


def test_captions_and_titles_have_formulas():
    assert caption_html("of $x$.") == f"of {formula_html('x')}."
    assert title_html("*of* $x$") == f"<em>of</em> {formula_html('x')}"
    assert "href" not in title_html("[a](javascript:alert(1))").replace('href="#harmful-link"', "")
