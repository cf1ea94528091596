"""What the notebooks share: checked parameters, computed sentences, figures and tables."""

import ast
import base64
import html
import io
import math
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import make_dataclass
from difflib import get_close_matches
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from twophase.errors import InputError, check_choice, check_number

PRESETS = ("smoke", "quick", "paper")
PRESET_VARIABLE = "TWOPHASE_PRESET"

# 160 dots per inch stay sharp on screens of high density and in print
_DOTS_PER_INCH = 160
_CSS_PIXELS_PER_INCH = 96
# papermill marks the cell that it injects with exactly this first line
_INJECTED = "# Parameters"
_KINDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    bool: "True or False",
    list: "a list",
}


def resolve_preset(preset: str) -> str:
    """Return the name of the preset that `preset` stands for.

    `"auto"` stands for the environment variable `TWOPHASE_PRESET` and, where that is not set,
    for `"quick"`.

    Raises:
        InputError: the name, or the variable's value, is none of smoke, quick, paper.

    >>> resolve_preset("smoke")
    'smoke'
    >>> resolve_preset("fast")
    Traceback (most recent call last):
    ...
    twophase.errors.InputError: preset: 'fast' is not allowed; use one of auto, smoke, quick, paper
    """
    if preset == "auto" and os.environ.get(PRESET_VARIABLE):
        return check_choice(PRESET_VARIABLE, os.environ[PRESET_VARIABLE], PRESETS)
    chosen = check_choice("preset", preset, ("auto", *PRESETS))
    return "quick" if chosen == "auto" else chosen


def parameters(
    namespace: Mapping[str, Any],
    /,
    presets: Mapping[str, Mapping[str, Any]],
    **declared: type | Collection[str],
) -> Any:
    """Check a notebook's parameters and return them as one frozen object.

    It belongs in the cell after the one tagged `parameters`. A parameter whose value is the
    string `"preset"` takes its value from the table of the chosen preset; the table's other
    entries become attributes, too. `preset` is always declared (see `resolve_preset`).

    Args:
        namespace: the notebook's `globals()`.
        presets: for each preset (smoke, quick, paper) its table of values.
        **declared: for each parameter its type (`int`, `float`, `str`, `bool`, `list`) or the
            collection of strings it may be. An `int` and a string such as `"1e-3"`, which is
            what YAML makes of that number, are accepted as `float`; a `bool` is not an `int`.

    Returns:
        A frozen dataclass with the parameters as attributes: `p.preset`, `p.epochs`, ...

    Raises:
        InputError: a parameter is missing, has the wrong type or is not among its choices, or
            papermill has injected one that is not declared.

    >>> cell = {"preset": "smoke", "epochs": "preset", "rate": "1e-3"}
    >>> tables = {"smoke": {"epochs": 2}, "quick": {"epochs": 20}, "paper": {"epochs": 500}}
    >>> p = parameters(cell, tables, epochs=int, rate=float)
    >>> p
    Parameters(preset='smoke', epochs=2, rate=0.001)
    >>> parameters(cell | {"epochs": 0.5}, tables, epochs=int, rate=float)
    Traceback (most recent call last):
    ...
    twophase.errors.InputError: epochs: 0.5 is not allowed; use a whole number, or "preset"
    """
    names = ["preset", *(name for name in declared if name != "preset")]
    _check_injected(namespace, names)
    for name in names:
        if name not in namespace:
            raise InputError(name, None, "a value in the parameters cell")
    preset = resolve_preset(namespace["preset"])
    table = presets.get(preset, {})
    values = {"preset": preset}
    for name in names[1:]:
        value = namespace[name]
        if isinstance(value, str) and value == "preset" and name in table:
            value = table[name]
        values[name] = _converted(name, value, declared[name], name in table)
    values |= {name: value for name, value in table.items() if name not in values}
    return make_dataclass("Parameters", values, frozen=True)(**values)


def assignments(source: str) -> Iterator[tuple[str, object]]:
    r"""Yield the name and the value of each assignment in a parameters cell.

    A value that is no literal is given as its source text.

    Args:
        source: Python code; only assignments at its top level count.

    >>> dict(assignments("epochs: int = 3  # a number\nrate = 1 / 2"))
    {'epochs': 3, 'rate': '1 / 2'}
    """
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            targets = [statement.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, _literal(statement.value)


def say(text: str) -> None:
    """Show Markdown that was computed, so that no number in a sentence is typed by hand.

    Args:
        text: Markdown; `$...$` is mathematics, as in a Markdown cell.

    >>> say(f"Adam needed **{2 + 2}** epochs.")
    <IPython.core.display.Markdown object>
    """
    display(Markdown(text))


def figure(fig: Figure, caption: str) -> None:
    """Show a figure with its caption and close it, so that it is shown once.

    The caption is also the figure's alternative text.

    Args:
        fig: a matplotlib figure.
        caption: one or two plain sentences; `` `code` `` and `$mathematics$` are understood.

    >>> from matplotlib import pyplot
    >>> fig, axes = pyplot.subplots()
    >>> figure(fig, "An empty pair of axes.")
    <IPython.core.display.HTML object>
    """
    markup = _figure_html(fig, caption)
    plt.close(fig)
    display(HTML(markup))


def table(frame: pd.DataFrame, caption: str) -> None:
    """Show a table with its caption; numbers to four digits, aligned to the right.

    The index is shown unless it is the plain 0, 1, 2, ...; columns of strings are shown as they
    are, which is the way to choose another number format.

    Args:
        frame: rows and columns as they shall be read; column names are the headings.
        caption: one or two plain sentences; `` `code` `` and `$mathematics$` are understood.

    >>> table(pd.DataFrame({"method": ["Adam", "CG"], "loss": [0.125, 1e-9]}), "Final losses.")
    <IPython.core.display.HTML object>
    """
    display(HTML(_table_html(frame, caption)))


def _check_injected(namespace: Mapping[str, Any], names: list[str]) -> None:
    # only the newest injected cell counts: in a live kernel older ones may have been mended
    sources = [source for source in namespace.get("In", ()) if _is_injected(source)]
    for name, value in assignments(sources[-1]) if sources else ():
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(
                f"parameter {name}", value, f"one of the parameters {', '.join(names)}{hint}"
            )


def _is_injected(source: str) -> bool:
    return source.lstrip().partition("\n")[0].rstrip() == _INJECTED


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _converted(name: str, value: Any, kind: type | Collection[str], has_preset: bool) -> Any:
    if not isinstance(kind, type):
        return check_choice(name, value, kind)
    if kind is float and not isinstance(value, bool):
        try:
            return check_number(name, float(value))
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        # a text that is still "preset" was to be looked up, and this preset has no such entry
        if value != "preset":
            return value
    raise InputError(name, value, _KINDS[kind] + (', or "preset"' if has_preset else ""))


def _inline(text: str) -> str:
    """Plain text with `code` as HTML; `$...$` is left to whoever typesets mathematics."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _figure_html(fig: Figure, caption: str) -> str:
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", facecolor="white")
    picture = file.getvalue()
    # the width in pixels is at a fixed place in a PNG's header
    (pixels,) = struct.unpack(">I", picture[16:20])
    width = round(pixels * _CSS_PIXELS_PER_INCH / _DOTS_PER_INCH)
    data = base64.b64encode(picture).decode()
    alt = html.escape(re.sub(r"[`$]", "", caption))
    return (
        '<figure class="twophase-figure" style="margin: 0.5em 0">'
        f'<img alt="{alt}" width="{width}" style="max-width: 100%; height: auto" '
        f'src="data:image/png;base64,{data}">'
        f'<figcaption style="max-width: 46em">{_inline(caption)}</figcaption></figure>'
    )


def _table_html(frame: pd.DataFrame, caption: str) -> str:
    plain_index = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    shown = frame if plain_index else frame.reset_index()
    columns = [[_text(value) for value in shown.iloc[:, i]] for i in range(shown.shape[1])]
    styles = [f'style="text-align: {_alignment(column)}"' for column in columns]
    headings = (_heading(name) for name in shown.columns)
    head = "".join(
        f'<th scope="col" {style}>{heading}</th>'
        for style, heading in zip(styles, headings, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td {style}>{cell}</td>" for style, cell in zip(styles, row, strict=True))
        + "</tr>"
        for row in zip(*columns, strict=True)
    )
    return (
        '<table class="twophase-table">'
        f'<caption style="text-align: left; max-width: 46em">{_inline(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _heading(name: object) -> str:
    parts = name if isinstance(name, tuple) else (name,)
    return _inline(" ".join(str(part) for part in parts if str(part)))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _inline(value)
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if pd.api.types.is_float(value):
        return _number(float(value))
    return _inline(str(value))


def _number(value: float) -> str:
    if math.isfinite(value) and 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}".replace("-", "−")
    mantissa, _, exponent = f"{value:.4g}".replace("-", "−").partition("e")
    if not exponent:
        return mantissa
    sign = "−" if exponent[0] == "−" else ""
    return f"{mantissa}×10<sup>{sign}{exponent[1:].lstrip('0')}</sup>"


def _alignment(column: list[str]) -> str:
    numeric = all(re.match(r"[-−+<>≈]?\s?\d|–$|nan$|−?inf$", cell) for cell in column)
    return "right" if numeric else "left"
