"""Parameters are checked by name and type; figures and tables are plain, complete HTML."""

import base64
import html
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from twophase.errors import InputError
from twophase.reporting import notebook
from twophase.reporting.notebook import PRESET_VARIABLE, assigned, parameters, resolve_preset

TABLES = {
    "smoke": {"epochs": 2, "rates": [0.1]},
    "quick": {"epochs": 20, "rates": [0.1, 0.2]},
    "paper": {"epochs": 500, "rates": [0.1, 0.2]},
}


@pytest.fixture(autouse=True)
def no_preset_from_outside(monkeypatch):
    monkeypatch.delenv(PRESET_VARIABLE, raising=False)


def check(namespace, **declared):
    return parameters({"preset": "smoke"} | namespace, TABLES, **declared)


@pytest.mark.parametrize("name", ["smoke", "quick", "paper"])
def test_a_preset_fills_in_what_is_asked_of_it(name):
    p = parameters({"preset": name, "epochs": "preset", "seed": 3}, TABLES, epochs=int, seed=int)
    assert (p.preset, p.epochs, p.seed) == (name, TABLES[name]["epochs"], 3)
    assert p.rates == TABLES[name]["rates"], "entries that are no parameters can be used, too"


def test_a_number_goes_before_the_preset():
    assert check({"epochs": 7}, epochs=int).epochs == 7


def test_auto_is_the_environment_and_then_quick(monkeypatch):
    assert resolve_preset("auto") == "quick"
    monkeypatch.setenv(PRESET_VARIABLE, "paper")
    assert resolve_preset("auto") == "paper"
    assert resolve_preset("smoke") == "smoke"
    monkeypatch.setenv(PRESET_VARIABLE, "papre")
    with pytest.raises(InputError, match=r"TWOPHASE_PRESET: 'papre'.*did you mean 'paper'"):
        resolve_preset("auto")


@pytest.mark.parametrize(
    ("usual", "given", "expected"),
    [
        ([0, 1], "[2, 3]", [2, 3]),
        ([0.8], [1, "1e-3"], [1.0, 1e-3]),
        (["FR"], ["PR"], ["PR"]),
        ([64, "all"], ["all", 3], ["all", 3]),
        ([], ["any"], ["any"]),
        ([0, 1], [0, "a"], "field: 'a' is not allowed; use a whole number"),
        ([0, 1], "[0, 1.5]", "field: 1.5 is not allowed; use a whole number"),
        (["FR"], [1], "field: 1 is not allowed; use a text"),
        ([0, 1], 3, """field: 3 is not allowed; use a list, or "preset\""""),
    ],
)
def test_a_list_has_entries_like_the_presets(usual, given, expected):
    def checked():
        namespace = {"preset": "smoke", "field": given}
        return parameters(namespace, {"smoke": {"field": usual}}, field=list).field

    if isinstance(expected, list):
        assert checked() == expected
    else:
        with pytest.raises(InputError) as caught:
            checked()
        assert str(caught.value) == expected


def test_the_result_cannot_be_changed():
    with pytest.raises(AttributeError):
        check({"epochs": 7}, epochs=int).epochs = 8


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3, 3),
        (float, 0.5, 0.5),
        (float, 3, 3.0),
        (float, "1e-3", 1e-3),
        (str, "digits", "digits"),
        (str, "preset", None),
        (bool, True, True),
        (list, [1, 2], [1, 2]),
        (list, "[0, 1]", [0, 1]),
        (list, "['FR']", ["FR"]),
        (list, "0, 1", None),
        (list, "[0, 1", None),
        (list, "[seed]", None),
        (list, "preset", None),
        (("adam", "cg"), "cg", "cg"),
        (int, True, None),
        (int, 3.0, None),
        (int, "3", None),
        (int, "preset", None),
        (float, True, None),
        (float, "fast", None),
        (float, "preset", None),
        (float, float("nan"), None),
        (float, "inf", None),
        (float, None, None),
        (float, [1], None),
        (str, 3, None),
        (bool, 1, None),
        (bool, "True", None),
        (list, (1, 2), None),
        (("adam", "cg"), "sgd", None),
    ],
)
def test_types(kind, value, expected):
    if expected is None:
        with pytest.raises(InputError) as caught:
            check({"field": value}, field=kind)
        assert caught.value.field == "field"
        assert "\n" not in str(caught.value)
    else:
        result = check({"field": value}, field=kind).field
        assert result == expected
        assert type(result) is type(expected)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_arrives_the_same_as_number_and_as_text(value):
    assert check({"x": value}, x=float).x == value
    assert check({"x": repr(value)}, x=float).x == value


def test_a_missing_parameter():
    with pytest.raises(InputError, match="seed: None is not allowed; use a value in the param"):
        check({}, seed=int)


def injected(source):
    return {"In": ["", "preset = 'auto'\nepochs = 3", f"# Parameters\n{source}"]}


def test_an_unknown_injected_parameter_is_an_error_that_names_a_near_match():
    with pytest.raises(InputError) as caught:
        check({"epochs": 3} | injected("epochs = 3\nepoch = 5\n"), epochs=int)
    message = str(caught.value)
    assert message.startswith("parameter: 'epoch' is not allowed; use one of preset, epochs")
    assert "did you mean 'epochs'?" in message and "\n" not in message


@pytest.mark.parametrize("value", ["float('nan')", "-1", "[1, 2]", "{'a': None}", "1e-3"])
def test_every_value_that_papermill_writes_is_understood(value):
    assert check({"x": [1]} | injected(f"x = {value}"), x=list).x == [1]
    with pytest.raises(InputError, match="^parameter: 'y'"):
        check({"x": [1]} | injected(f"y = {value}"), x=list)


def test_the_cell_can_be_run_again_after_the_rest():
    later = [
        "import math",
        "rest = 1\nfor i in range(3):\n    rest += i",
        "# Parameters of the net",
    ]
    namespace = injected("epochs = 3")
    namespace["In"] += [*later, "p = notebook.parameters(...)"]
    assert check({"epochs": 3} | namespace, epochs=int).epochs == 3


def test_an_injected_cell_that_was_mended_counts_no_more():
    namespace = injected("epoch = 3")
    namespace["In"].append("# Parameters\nepochs = 3")
    assert check({"epochs": 3} | namespace, epochs=int).epochs == 3


def test_the_names_that_papermill_writes_are_those_that_are_checked():
    from papermill.translators import PythonTranslator

    values = {"epochs": 3, "rate": 1e-3, "nothing": None, "deep": {"a": [True, "x"]}}
    source = PythonTranslator.codify(values, "Parameters")
    assert assigned(source) == list(values)
    namespace = values | {"In": [source]}
    with pytest.raises(InputError, match="^parameter: 'nothing'"):
        check(namespace, epochs=int, rate=float)


def test_assignments_are_seen_that_papermills_inspection_drops():
    source = "a: int | None = None  # b = 3\nc: str = 'Peak(factor=0.9)'\nd = e = max(1, 2)\n"
    assert assigned(source) == ["a", "c", "d", "e"]


def peak(text):
    """A toy of the library's notation."""
    found = re.fullmatch(r"Peak\(factor=([\d.]+)\)", text)
    if not found:
        raise InputError("rule", text, "Peak(factor=...)")
    return float(found[1])


def test_a_function_makes_the_value_from_a_text():
    assert check({"rule": "Peak(factor=0.9)"}, rule=peak).rule == 0.9
    tables = {"smoke": {"rule": "Peak(factor=0.8)"}}
    namespace = {"preset": "smoke", "rule": "preset"}
    assert parameters(namespace, tables, rule=peak).rule == 0.8


@pytest.mark.parametrize("value", ["Peak()", "", "preset", 0.9, None, ["Peak(factor=0.9)"]])
def test_what_the_function_refuses_and_what_is_no_text_is_an_error_with_the_fields_name(value):
    with pytest.raises(InputError, match="^rule: ") as caught:
        check({"rule": value}, rule=peak)
    assert caught.value.field == "rule" and "\n" not in str(caught.value)


# -- what is shown


class Tags(HTMLParser):
    """Checks that tags are balanced, and collects attributes and texts."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.attributes, self.texts = [], {}, {}
        self.feed(markup)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes.setdefault(tag, []).append(dict(attributes))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would display."""
    calls = []
    monkeypatch.setattr(notebook, "display", calls.append)
    return calls


def test_say_shows_markdown(shown):
    notebook.say("**2** epochs")
    assert shown[0]._repr_markdown_() == "**2** epochs"


def test_a_figure_is_shown_once_with_its_caption_as_alternative_text(shown):
    fig, _ = plt.subplots(figsize=(4, 3))
    notebook.figure(fig, 'Where $a<b$ & "c", for `vit-mlp`.')
    assert not plt.fignum_exists(fig.number)
    tags = Tags(shown[0].data)
    (image,) = tags.attributes["img"]
    assert image["alt"] == 'Where a<b & "c", for vit-mlp.'
    assert "".join(tags.texts["figcaption"]) == 'Where  & "c", for .'
    assert tags.texts["code"] == ["vit-mlp"]
    assert (tags.texts["mi"], tags.texts["mo"]) == (["a", "b"], ["<"])
    picture = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert picture.startswith(b"\x89PNG")
    assert 300 < int(image["width"]) < 400, "about four inches of 96 pixels"
    assert int.from_bytes(picture[16:20]) // 2 == int(image["width"]), "twice as many dots"


def test_a_figure_that_pyplot_does_not_know(shown):
    fig = Figure(figsize=(2, 2))
    fig.add_subplot()
    notebook.figure(fig, "Empty.")
    assert len(shown) == 1


@pytest.fixture
def rows(shown):
    """A table's headings and cells, and how each column is aligned."""

    def parsed(frame):
        notebook.table(frame, "Caption.")
        markup = shown[-1].data
        tags = Tags(markup)
        assert tags.texts["caption"] == ["Caption."]
        sides = re.findall(r"\.col\d+ {\s+text-align: (\w+)", markup)
        texts = [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td.*?</td>", markup)]
        return tags.texts["th"], [html.unescape(text) for text in texts], sides

    return parsed


def test_a_table_keeps_text_and_aligns_numbers_to_the_right(rows):
    frame = pd.DataFrame({"model <1>": ["a_b_", "b*"], "P": [154058, 2], "share": ["1.5 %", "–"]})
    head, cells, sides = rows(frame)
    assert head == ["model <1>", "P", "share"]
    assert cells == ["a_b_", "154058", "1.5\N{NO-BREAK SPACE}%", "b*", "2", "–"]
    assert sides == ["left", "right", "right"]


@pytest.mark.parametrize(
    ("texts", "side"),
    [
        (["0.5 (0.4 to 0.6)", "missed"], "right"),
        (["<1e-06 (all seeds)", "3e-06", "<2"], "right"),
        (["3", "never"], "right"),
        (["0.002", "not\u00a0run"], "right"),
        (["2 of 3 seeds", "12 of 13 seeds"], "right"),
        (["4.2e-9 (60 s, 5,655 passes)"], "right"),
        (["0.5 times Adam's (0.4 to 0.6), lower"], "left"),
        (["0.5", "missed on 2 of 3 seeds"], "left"),
        (["$x$ and 2"], "left"),
    ],
)
def test_numbers_with_a_range_or_a_unit_are_no_prose(rows, texts, side):
    assert rows(pd.DataFrame({"a": texts}))[2] == [side]


def test_a_cell_breaks_neither_in_a_name_nor_in_a_range_nor_before_a_unit(shown):
    notebook.table(pd.DataFrame({"a-b": ["vit-nomlp, 0.5 (0.4 to a miss) 2 s", "`a-b` - c"]}), "C.")
    markup = shown[0].data
    held = re.findall(r'<span style="white-space: nowrap">(.*?)</span>', markup)
    assert held == ["a-b", "vit-nomlp"]
    assert "0.5 (0.4\xa0to\xa0a\xa0miss) 2\xa0s" in markup


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("1.7e-07", "1.7×10−7"),
        ("2.1e−5 (1e-06 to 4e+12)", "2.1×10−5 (1×10−6\xa0to\xa04×1012)"),
        ("commit 8e12ab, x1e5", "commit 8e12ab, x1e5"),
    ],
)
def test_numbers_in_texts_have_powers_of_ten_too(rows, text, reads):
    assert rows(pd.DataFrame({"a": [text]}))[1] == [reads]


def test_an_index_that_says_something_is_a_column(rows):
    named = pd.DataFrame({"loss": [1.5]}, index=pd.Index(["adam"], name="method"))
    assert rows(named)[:2] == (["method", "loss"], ["adam", "1.5"])
    twofold = pd.DataFrame({("loss", "train"): [1.0]}, index=[7])
    assert rows(twofold)[:2] == (["index", "loss", "train"], ["7", "1"])


def test_the_same_table_has_the_same_html(shown):
    for _ in range(2):
        notebook.table(pd.DataFrame({"a": [1]}), "Caption.")
    assert shown[0].data == shown[1].data


@pytest.mark.parametrize("column", [[], ["x", None], [1.0, 2.0]])
def test_any_column_can_be_shown(rows, column):
    assert len(rows(pd.DataFrame({"a": pd.Categorical(column)}))[1]) == len(column)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (-0.5, "−0.5"),
        (1234.5678, "1235"),
        (12345.678, "12,346"),
        (-12345.678, "−12,346"),
        (1.2e-9, "1.2×10−9"),
        (-3.25e12, "−3.25×1012"),
        (0.0, "0"),
        (np.float32(0.25), "0.25"),
        (float("nan"), "–"),
        (None, "–"),
        (float("inf"), "inf"),
        (True, "True"),
        (512, "512"),
    ],
)
def test_how_a_number_reads(rows, value, text):
    assert rows(pd.DataFrame({"a": [value]}))[1] == [text]


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_a_number_reads_to_four_digits(value):
    text = notebook._number(value)
    mantissa, _, exponent = text.replace(",", "").removesuffix("</sup>").partition("×10<sup>")
    read = float(f"{mantissa}e{exponent.replace('−', '-') or 0}")
    assert read == pytest.approx(value, rel=6e-4)
