"""The benchmark of global searches: what it leaves, and that nothing is made twice."""

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from twophase.experiments.global_search import METHODS
from twophase.experiments.global_search_results import End

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
benchmark = importlib.import_module("global_search")
KEPT = Path(__file__).parents[2] / "reports" / "reference" / "global-search"


@pytest.mark.slow
def test_the_script_leaves_tables_and_makes_nothing_twice(tmp_path):
    size = ["--parameters", "1", "--seeds", "2", "--draws", "1", "--starts", "2"]
    own = "scipy's Levenberg–Marquardt"
    chosen = ["--problems", "conflict", *size, "--evaluations", "90", "--out", str(tmp_path)]
    benchmark.main([*chosen, "--methods", own])
    first = pd.read_csv(tmp_path / "searches.csv")
    assert first.seed.tolist() == [0, 1] and set(first.method) == {own}
    assert len(pd.read_csv(tmp_path / "ends.csv")) == 2
    benchmark.main([*chosen, "--methods", own, "DIRECT"])
    both = pd.read_csv(tmp_path / "searches.csv")
    pd.testing.assert_frame_equal(both[both.method == own], first)
    assert both.method.tolist() == [own, own, "DIRECT", "DIRECT"]
    assert len(pd.read_csv(tmp_path / "ends.csv")) == 2
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert ["DIRECT" in run["command"] for run in facts["commands"]] == [False, True]


def test_the_kept_results_are_of_these_methods_and_ends():
    searches, ends = (pd.read_csv(KEPT / name) for name in ("searches.csv", "ends.csv"))
    assert set(searches.method) <= set(METHODS) and set(ends.end) <= {end.value for end in End}
    assert searches.groupby("problem").seed.nunique().eq(3).all()
