"""`TwoPhase` and `SecondPhase` in DeepXDE, for real."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("skopt", reason="DeepXDE is of the extra test")
pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
CLIENTS = HERE.parent.parent / "benchmarks" / "clients.py"
ENVIRONMENT = os.environ | {"DDE_BACKEND": "pytorch", "OMP_NUM_THREADS": "1"}


def run(*command):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def case(name):
    return json.loads(run(HERE / "deepxde_cases.py", name).splitlines()[-1])


@pytest.mark.parametrize("way", ["DeepXDE: Adam, then SecondPhase", "DeepXDE: TwoPhase"])
def test_poissons_equation_is_solved(way, tmp_path):
    """300 and 300 iterations, or 1,000 of one optimizer: a relative L2 error below 1e-4."""
    run(CLIENTS, "--out", tmp_path, "--seeds", "1", "--way", way)
    (row,) = csv.DictReader((tmp_path / "clients.csv").read_text().splitlines())
    assert float(row["error"]) < 1e-4
    assert json.loads((tmp_path / "provenance.json").read_text())["versions"]["deepxde"]


def test_burgers_equation_with_resampled_points():
    """Fresh points are noticed in the second phase, and training goes on from there."""
    found = case("resampled")
    assert found["steps"][-1] == 500
    assert set(found["moves"]) >= {200, 300, 400}
    assert found["losses"][-1] < 1e-2 * found["losses"][0]
    assert "the loss became another one" in found["report"]


def test_a_checkpoint_of_deepxdes_resumes_exactly():
    found = case("resumed")
    assert found["whole"] == found["resumed"]


def test_deepxdes_metrics_and_callbacks_see_the_training():
    found = case("watched")
    assert found["saved"] > 1 and len(found["errors"]) == len(found["steps"]) > 3
    assert found["errors"][-1] < 0.05 * found["errors"][0]


def test_deepxdes_decay_acts_on_adam():
    assert case("scheduled")["rate"] == 0.01 * 0.25
