"""Recorded traces: what is committed, how they are judged, and how they are recorded."""

import json

import numpy as np
import pandas as pd
import pytest

from twophase.__main__ import main
from twophase.errors import InputError
from twophase.experiments import runs, traces
from twophase.experiments.branches import RunsFailed
from twophase.experiments.executors import Local
from twophase.switching.rules import FixedEpoch, GradientNormPeak, NormVersusLoss, SmoothedNormPeak


def test_the_committed_traces_are_complete():
    recorded = traces.committed()
    assert tuple(recorded.columns) == traces.COLUMNS
    groups = recorded.groupby(traces.KEY)
    expected = {
        (c.problem.dataset, c.problem.model, c.seed): c.epochs for c in traces.configs("paper")
    }
    assert {key: len(trace) for key, trace in groups} == expected
    assert recorded.model.nunique() >= 5 and recorded.dataset.nunique() >= 2
    assert np.isfinite(recorded[["loss", "grad_norm"]]).all(axis=None)
    assert (recorded[["loss", "grad_norm"]] > 0).all(axis=None)
    for _, trace in groups:
        assert trace.epoch.tolist() == list(range(1, len(trace) + 1))
        assert trace.loss.iloc[-1] < 0.5 * trace.loss.iloc[0]


@pytest.mark.slow
def test_on_the_committed_traces_the_robust_rules_fire_and_are_early_less_often():
    """They fire after the first clear peak; half of these traces have a higher one later."""
    rules = {"literal": GradientNormPeak(), "time": SmoothedNormPeak(), "loss": NormVersusLoss()}
    found = traces.outcomes(traces.committed(), rules)
    early = found.verdict.eq("early").groupby(found.rule).mean()
    assert early["literal"] > 0.9
    assert early["time"] < 0.5 and early["loss"] < 0.5
    fired = found.fired.notna().groupby(found.rule).mean()
    assert fired["time"] >= 0.9 and fired["loss"] >= 0.9


@pytest.mark.parametrize(
    ("fired", "verdict"),
    [(None, "never"), (9, "early"), (10, "in time"), (30, "in time"), (31, "late")],
)
def test_verdicts_follow_their_definition(fired, verdict):
    assert traces.verdict(fired, peak=10) == verdict


def test_smoothing_is_a_centred_mean():
    norms = np.random.default_rng(0).uniform(size=12)
    expected = [norms[max(0, i - 2) : i + 3].mean() for i in range(12)]
    assert traces.smoothed(norms) == pytest.approx(expected)
    assert traces.peak_epoch(norms) == int(np.argmax(expected)) + 1
    with pytest.raises(InputError, match="^window: "):
        traces.smoothed(norms, window=0)


def test_outcomes_and_counts_of_a_known_trace():
    norms = [1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    key = {"dataset": "d", "model": "m", "seed": 0}
    table = pd.DataFrame(key | {"epoch": range(1, 10), "loss": 1.0, "grad_norm": norms})
    found = traces.outcomes(table, {"at 2": FixedEpoch(2), "at 99": FixedEpoch(99)})
    assert found.verdict.tolist() == ["early", "never"]
    assert found.peak.tolist() == [5, 5] and found.fired.isna().tolist() == [False, True]
    assert traces.counts(found).to_numpy().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_artificial_traces_are_shapes_of_known_peaks_and_the_same_noise():
    made = traces.artificial(noise=0.3, seed=0)
    norms = made.pivot(index="epoch", columns=["model", "dataset"], values="grad_norm")
    assert tuple(made.columns) == traces.COLUMNS and norms.shape == (160, 12)
    smooth, noisy = (norms.xs(kind, axis=1, level="dataset") for kind in ("smooth", "noisy"))
    assert smooth.idxmax().to_dict() == {
        "a dip first": 30,
        "a plateau": 30,
        "two peaks, the first higher": 25,
        "two peaks, the second higher": 48,
        "no peak, rising": 160,
        "no peak, falling": 1,
    }
    assert smooth["a dip first"].idxmin() > 1
    logs = np.log(noisy / smooth)
    assert logs.to_numpy() == pytest.approx(np.tile(logs.iloc[:, [0]], 6))
    draws = np.random.default_rng(0).standard_normal(160)
    assert logs.iloc[:, 0].to_numpy() == pytest.approx(0.3 * draws)


def test_recording_resumes_and_keeps_the_weights_of_some_epochs(tmp_path, capsys):
    command = ["traces", "--preset", "smoke", "--model", "vit-nomlp-wkewq-wvwo1", "--seeds", "2"]
    assert main([*command, "--out", str(tmp_path), "--device", "cpu"]) == 0
    written = pd.read_csv(tmp_path / "grad_norm_traces.csv")
    assert written.groupby("seed").epoch.max().tolist() == [12, 12]
    (config, _) = traces.configs("smoke", models=["vit-nomlp-wkewq-wvwo1"], seeds=2)
    folder = tmp_path / traces.folder_name(config)
    kept = sorted(path.name for path in folder.glob("branch-epoch-*.ckpt"))
    assert len(kept) == sum(epoch <= 12 for epoch in traces.KEPT_EPOCHS)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("summary.json")}
    assert main([*command, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("summary.json")}


@pytest.mark.slow
def test_two_processes_record_the_same(tmp_path, capsys, monkeypatch):
    command = ["traces", "--preset", "smoke", "--model", "vit-nomlp-wkewq-wvwo1", "--seeds", "2"]
    command += ["--device", "cpu", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    monkeypatch.setattr(runs, "train", None)  # here, not in other processes
    assert main([*command, str(tmp_path / "two"), "--executor", "Local(2)"]) == 0
    one, two = (
        {path.relative_to(tmp_path / name): path for path in (tmp_path / name).rglob("*.ckpt")}
        for name in ("one", "two")
    )
    assert one.keys() == two.keys() and len(one) == 2 * 7
    tables = [tmp_path / name / "grad_norm_traces.csv" for name in ("one", "two")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    facts = json.loads((tmp_path / "two" / "provenance.json").read_text())
    assert facts["executor"] == str(Local(2)) and "Local(2)" in facts["command"]


@pytest.mark.slow
def test_traces_of_other_recordings_stay(tmp_path):
    first, second = traces.configs("smoke", models=["vit-nomlp-wkewq-wvwo1"], seeds=2)
    table = tmp_path / "grad_norm_traces.csv"
    traces.record([first], tmp_path, device="cpu")
    before = table.read_text()
    traces.record([second], tmp_path, device="cpu")
    assert table.read_text().startswith(before)
    assert pd.read_csv(table).groupby("seed").size().tolist() == [12, 12]
    both = table.read_bytes()
    traces.record([first], tmp_path, device="cpu")
    assert table.read_bytes() == both


def test_a_recording_that_fails_costs_no_other(tmp_path, monkeypatch):
    chosen = traces.configs("smoke", models=["vit-nomlp-wkewq-wvwo1"], seeds=2)
    (tmp_path / traces.folder_name(chosen[0])).parent.mkdir(parents=True)
    (tmp_path / traces.folder_name(chosen[0]) / "config.json").mkdir(parents=True)
    with pytest.raises(RunsFailed, match="^1 of 2 runs failed; first .* seed 0: "):
        traces.record(chosen, tmp_path, device="cpu")
    assert pd.read_csv(tmp_path / "grad_norm_traces.csv").seed.unique().tolist() == [1]


def test_unknown_names_are_one_line(capsys, tmp_path):
    assert main(["traces", "--dataset", "mnist", "--out", str(tmp_path)]) == 2
    assert "dataset: 'mnist' is not allowed; use one of digits" in capsys.readouterr().err
