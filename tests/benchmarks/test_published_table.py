"""The published problems begin as published; the script leaves curves and where they come from."""

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

PROJECT = Path(__file__).parents[2]
sys.path.append(str(PROJECT / "benchmarks"))
published_table = importlib.import_module("published_table")


@pytest.mark.parametrize("row", published_table.ROWS, ids=lambda row: row.name)
def test_the_first_loss_is_the_published_one_to_the_last_digit(row):
    problem, error = row.start()
    # sums of another order, as on another processor, differ in the last digits
    assert problem.value(problem.vector.read()) == pytest.approx(row.first_loss, rel=1e-14)
    assert problem.size == (1020, 257)
    assert 0.1 < error() < 2


@pytest.mark.slow
def test_the_script_leaves_curves_and_where_they_come_from(tmp_path):
    published_table.main(["--seconds", "0.4", "--out", str(tmp_path)])
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert set(curves.method) == set(published_table.METHODS)
    for _, of in curves.groupby(["problem", "method"]):
        assert of.seconds.is_monotonic_increasing and of.passes.is_monotonic_increasing
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert {"command", "revision", "versions", "published"} <= facts.keys()
