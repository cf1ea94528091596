"""The published problems begin as published; the script leaves curves and where they come from."""

import importlib
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

PROJECT = Path(__file__).parents[2]
sys.path.append(str(PROJECT / "benchmarks"))
physics_networks = importlib.import_module("physics_networks")


PACKAGE = importlib.util.find_spec("ssbroyden_optimistix")


@pytest.mark.parametrize("row", physics_networks.ROWS[:2], ids=lambda row: row.name)
def test_the_first_loss_is_the_published_one_to_the_last_digit(row):
    problem, error = row.start()
    # sums of another order, as on another processor, differ in the last digits
    assert problem.value(problem.vector.read()) == pytest.approx(row.first_loss, rel=1e-14)
    assert problem.size == (1020, 257)
    assert 0.1 < error() < 2


@pytest.mark.slow
def test_the_script_leaves_curves_and_where_they_come_from(tmp_path):
    methods = [
        name for name in physics_networks.METHODS if PACKAGE is not None or "opt" not in name
    ]
    row, own = physics_networks.ROWS[0].name, physics_networks.ROWS[-1].name
    arguments = ["--seconds", "0.4", "--out", str(tmp_path), "--problems", row, own]
    physics_networks.main([*arguments, "--methods", *methods])
    physics_networks.main([*arguments, "--seeds", "0", "1", "--methods", methods[0]])
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert set(curves.method) == set(methods) and set(curves.seed) == {0, 1}
    runs = curves.groupby(["problem", "method", "seed"])
    assert len(runs) == 2 * (len(methods) + 1)
    for _, of in runs:
        assert of.seconds.is_monotonic_increasing and of.passes.is_monotonic_increasing
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert len(facts["runs"]) == 2 and "published" in facts
    assert {"command", "revision", "versions"} <= facts["runs"][0].keys()


@pytest.mark.skipif(PACKAGE is None, reason="ssbroyden-optimistix is not installed")
def test_the_peer_counts_a_point_once():
    problem, error = physics_networks.ROWS[-1].start()
    real, seen = problem.value_and_gradient, []

    def counted(x):
        seen.append(x.clone())
        return real(x)

    problem.value_and_gradient = counted
    curve = physics_networks.Curve(error, 1.0)
    physics_networks.ssbroyden_optimistix(problem, curve)
    assert problem.passes.total == 3 * len(seen) > 30
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))
    assert curve.rows[-1][2] < curve.rows[0][2]
