"""README's tables of results: cells of what never switched, of misses, and of few runs."""

import importlib
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
results = importlib.import_module("results")


def test_no_number_is_left_to_be_filled_in():
    assert not re.findall(r"\{.*?\}", results.overview() + results.results())


def test_a_cell_says_its_number_only_where_it_is_not_the_expected_one():
    ratios = pd.Series([0.5, 0.25, 1.0])
    assert results.cell(ratios, 3) == "0.50 (0.25 to 1.00)"
    assert results.cell(ratios[:1], 3) == "0.50; n = 1"
    assert results.cell(ratios[:0], 3) == "–"


@pytest.mark.parametrize(
    ("switched", "text"),
    [
        ([False, False], "never switched (3.00, 2.00 to 4.00)"),
        ([False, True], "3.00 (2.00 to 4.00); switched on 1 of 2"),
        ([True, True], "3.00 (2.00 to 4.00)"),
    ],
)
def test_what_never_switched_is_said_to_be_neither_ahead_nor_behind(switched, text):
    ratios, told = pd.DataFrame({"race": [2.0, 4.0]}), pd.DataFrame({"race": switched})
    assert results._beside(ratios, "race", told) == text
    assert results._beside(ratios, "race", pd.DataFrame()) == "3.00 (2.00 to 4.00)"
    assert results._beside(ratios, "another", told) == "–"


def test_kept_races_that_never_switched_are_named():
    rows = list(results.overview_table())
    never = [row.split("|")[1:3] for row in rows if "never switched" in row]
    assert never == [
        [" gpt-50k, text, 128 windows ", f" {of} "] for of in ("training", "validation")
    ]
    assert len({row.count("|") for row in rows}) == 1


def test_a_tuned_rate_that_is_torchs_is_named():
    rows = [row for row in results.costs_table() if "torch's rate was the best" in row]
    assert [row.split(",")[0] for row in rows] == ["| mnist", "| cifar10"]
    assert "| 3 seeds, 3 swaps |" in "".join(results.costs_table())
