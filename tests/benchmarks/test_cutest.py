"""The benchmark on CUTEst problems: what is counted, what ends a run, and who is run."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import rosen, rosen_der

PROJECT = Path(__file__).parents[2]
sys.path.append(str(PROJECT / "benchmarks"))
cutest = importlib.import_module("cutest")

OWN = {name: method for name, method in cutest.METHODS.items() if name.startswith("twophase")}


@pytest.fixture(autouse=True)
def rosenbrock(monkeypatch):
    problem = SimpleNamespace(x0=np.array([-1.2, 1.0]), fun=rosen, grad=rosen_der)
    monkeypatch.setattr(cutest, "load", lambda name: problem)


@pytest.fixture(scope="module")
def kept():
    table = pd.read_csv(PROJECT / "reports" / "reference" / "cutest" / "runs.csv")
    return table[table.problem == "ROSENBR"].set_index("method")


def test_every_optimizer_needs_what_it_needed_in_the_kept_results(kept):
    for row in cutest.run("ROSENBR", OWN):
        assert row["solved"] and not row["error"]
        assert row["f"] == pytest.approx(kept.f[row["method"]], rel=0.05)
        assert row["g"] == pytest.approx(kept.g[row["method"]], rel=0.05)


def test_scipys_evaluations_are_counted(kept):
    (row,) = cutest.run("ROSENBR", {"scipy": cutest.scipys})
    assert row["solved"] and (row["f"], row["g"]) == (kept.f["scipy, CG"], kept.g["scipy, CG"])
    assert row["passes"] == row["f"] + 2 * row["g"]


def test_the_kept_results_are_of_the_same_methods(kept):
    assert set(kept.index) == set(cutest.METHODS)


def test_a_run_ends_with_its_budget(monkeypatch):
    monkeypatch.setattr(cutest, "MAX_EVALUATIONS", 20)
    (row,) = cutest.run("ROSENBR", {"ours": cutest.ours})
    assert not row["solved"] and row["f"] + row["g"] == 21


def test_a_crash_is_a_result():
    def broken(counted, x0):
        raise ValueError("no idea\nat all")

    (row,) = cutest.run("ROSENBR", {"broken": broken})
    assert not row["solved"] and row["error"] == "ValueError: no idea"
