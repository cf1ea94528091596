"""What the notebooks share: checked parameters, computed sentences, figures and tables."""

import ast
import html
import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import make_dataclass
from symtable import symtable
from typing import Any
from zlib import crc32

import matplotlib.pyplot as plt
import pandas as pd
from IPython.core.pylabtools import print_figure
from IPython.display import HTML, Image, Markdown, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from twophase.errors import InputError, check_choice, check_number
from twophase.reporting.formulas import caption_html

PRESETS = ("smoke", "quick", "paper")
PRESET_VARIABLE = "TWOPHASE_PRESET"
# what the text of a number has for a power of ten
_POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e\+?([-−]?)0*(\d+)(?!\w)")
_HYPHENATED = re.compile(r"(?<![\w-])\w[\w+]*(?:-\w+)+\+?(?![\w-])")
_UNBROKEN = r'<span style="white-space: nowrap">\g<0></span>'
# in a cell that is a number, such as "2 of 3 seeds" or "0.5 (0.4 to 0.6)"
_FEW_WORDS = 2
_KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", list: "a list"}


def resolve_preset(preset: str) -> str:
    """smoke, quick or paper; for "auto" the environment's `TWOPHASE_PRESET`, else quick.

    `InputError` for other names, also in the variable.
    """
    chosen = check_choice("preset", preset, ("auto", *PRESETS))
    if chosen != "auto":
        return chosen
    return check_choice(PRESET_VARIABLE, os.environ.get(PRESET_VARIABLE) or "quick", PRESETS)


def parameters(
    namespace: Mapping[str, Any],
    /,
    presets: Mapping[str, Mapping[str, Any]],
    **declared: type | Collection[str] | Callable[[str], Any],
) -> Any:
    """Check a notebook's parameters and return them as the attributes of one frozen object.

    It belongs in the cell after the one tagged `parameters`, and `namespace` is its `globals()`. A
    parameter whose value is the string "preset" takes its value from the table that `presets` has
    for the chosen preset; the table's other entries become attributes, too.

    Each parameter but `preset` (see `resolve_preset`) is declared by its type (`int`, `float`,
    `str`, `bool`, `list`), by the collection of strings it may be, or by a function that makes its
    value from a text and raises `InputError`. An `int` and a string such as "1e-3", which is what
    YAML makes of that number, are accepted as `float`, and the text of a list as a `list`, whose
    entries are to be of the one type that those of the table are; a `bool` is not an `int`.

    Raises:
        InputError: a parameter is missing, has the wrong type or is not among its choices, or
            papermill has injected one that is not declared.

    >>> cell = {"preset": "smoke", "epochs": "preset", "rate": "1e-3"}
    >>> parameters(cell, {"smoke": {"epochs": 2}}, epochs=int, rate=float)
    Parameters(preset='smoke', epochs=2, rate=0.001)
    """
    names = ["preset", *declared]
    for name in _injected(namespace.get("In", ())):
        check_choice("parameter", name, names)
    for name in names:
        if name not in namespace:
            raise InputError(name, None, "a value in the parameters cell")
    values = {"preset": resolve_preset(namespace["preset"])}
    table = presets.get(values["preset"], {})
    for name, kind in declared.items():
        value = namespace[name]
        if isinstance(value, str) and value == "preset" and name in table:
            value = table[name]
        values[name] = _checked(name, value, kind, ', or "preset"' if name in table else "")
        of = {type(entry) for entry in table.get(name, ())} if kind is list else set()
        if len(of) == 1:
            values[name] = [_checked(name, entry, *of, "") for entry in values[name]]
    values |= {name: value for name, value in table.items() if name not in values}
    return make_dataclass("Parameters", values, frozen=True)(**values)


def assigned(source: str) -> list[str]:
    """The names that Python code assigns outside of functions and classes.

    papermill's own inspection drops `rule: str = "Peak(factor=0.9)"` and `epochs: int | None = 3`.
    """
    symbols = symtable(source, "<parameters>", "exec").get_symbols()
    return [symbol.get_name() for symbol in symbols if symbol.is_assigned()]


def say(text: str) -> None:
    """Show Markdown that was computed, so that no number in a sentence is typed by hand."""
    display(Markdown(text))


def figure(fig: Figure, caption: str) -> None:
    """Show a figure with its caption, which is also its alternative text, and close it.

    In the caption, one or two plain sentences, `` `code` `` and `$mathematics$` are understood.
    """
    # retina is twice the 96 pixels of CSS: sharp on screens and in print
    png = Image(print_figure(fig, dpi=192, facecolor="white"), retina=True)
    plt.close(fig)
    data, size = png._repr_png_()
    alt = html.escape(re.sub(r"[`$]", "", caption))
    markup = (
        '<figure class="twophase-figure" style="margin: 0.5em 0">'
        f'<img alt="{alt}" width="{size["width"]}" style="max-width: 100%; height: auto" '
        f'src="data:image/png;base64,{data}">'
        f'<figcaption style="max-width: 46em">{caption_html(caption)}</figcaption></figure>'
    )
    display(HTML(markup))


def table(frame: pd.DataFrame, caption: str) -> None:
    """Show a table with its caption; numbers to four digits, aligned to the right.

    The index is shown unless it is the plain 0, 1, 2, ...; columns of strings are shown as they
    are, which is the way to choose another number format, but for powers of ten: 2e-5 is 2×10⁻⁵
    there, too. In texts, headings and the caption `` `code` `` and `$mathematics$` are understood.
    Names with hyphens are not broken at them.
    """
    plain_index = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    shown = frame if plain_index else frame.reset_index()
    texts = shown.astype(object).map(_text)
    styles = [{"selector": "caption", "props": [("text-align", "left"), ("max-width", "46em")]}]
    styles += [
        {"selector": f".col{i}", "props": [("text-align", _alignment(column))]}
        for i, (_, column) in enumerate(texts.items())
    ]
    styler = Styler(
        texts,
        caption=caption_html(caption),
        table_styles=styles,
        table_attributes='class="twophase-table"',
        uuid=f"{crc32(caption.encode()):08x}",  # the same table has the same HTML every time
        cell_ids=False,
    )
    styler.hide().format_index(lambda name: _cell(str(name)), axis="columns")
    display(HTML(styler.to_html()))


def _injected(inputs: Collection[str]) -> list[str]:
    """The names in the newest cell that papermill injected; older ones may have been mended."""
    cells = [source for source in inputs if re.match(r"\s*# Parameters\s*$", source, re.MULTILINE)]
    return assigned(cells[-1]) if cells else []


def _checked(name: str, value: Any, kind: Any, or_preset: str) -> Any:
    if not isinstance(kind, type):
        if not callable(kind):
            return check_choice(name, value, kind)
        if isinstance(value, str):
            return kind(value)
    elif kind is list and isinstance(value, str) and value != "preset":
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval(value)
        if isinstance(value, list):
            return value
    elif kind is float and not isinstance(value, bool):
        try:
            return check_number(name, float(value))
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        # a text that is still "preset" was to be looked up, and this preset has no such entry
        if value != "preset":
            return value
    raise InputError(name, value, _KINDS.get(kind, "a text") + or_preset)


def _text(value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    return _number(float(value)) if pd.api.types.is_float(value) else _cell(str(value))


def _number(value: float) -> str:
    if 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}".replace("-", "−")
    return _powers(f"{value:.4g}").replace("-", "−")


def _powers(text: str) -> str:
    """A text in which numbers such as 1.2e-09 are set with a power of ten."""
    text = _POWER.sub(r"\1×10<sup>\2\3</sup>", text)
    return text.replace("<sup>-", "<sup>−")


def _cell(text: str) -> str:
    """A text as HTML, in which names with hyphens hold together."""
    shown = str(caption_html(text))
    # formulas and code have their own ways
    return shown if "<" in shown else _HYPHENATED.sub(_UNBROKEN, _powers(shown))


def _alignment(column: pd.Series) -> str:
    """Numbers stand to the right, also with a range or a unit, but not sentences that begin so."""
    plain = column.str.replace(r"<[^>]+>", "", regex=True).map(html.unescape)
    number = plain.str.match(r"[-−+<>≈]?\s?\d") & (plain.str.count(r"[^\W\d]{2,}") <= _FEW_WORDS)
    return (
        "right"
        if (number | plain.str.match(r"(?:–|nan|−?inf|missed|never|not.run)$")).all()
        else "left"
    )
