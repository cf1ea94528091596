"""The audit of recorded trajectories: what it measures, where, and that it resumes."""

import numpy as np
import pandas as pd
import pytest
import torch

from twophase.errors import InputError
from twophase.experiments import convexity_audit, runs, traces
from twophase.experiments.convexity_audit import Checkpoint
from twophase.experiments.hessian import Hessian
from twophase.objectives.full_batch import FullBatch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    (config,) = traces.configs("smoke", models=["vit-nomlp-wkewq-wvwo1"], seeds=1)
    traces.record([config], out, device="cpu")
    table = convexity_audit.audit_recording(
        config, out, device="cpu", epochs=(2, 5, 150), cg_iterations=(1,)
    )
    return config, out, table


def state(recording, epoch):
    config, out, _ = recording
    file = runs.branch_file(out / traces.folder_name(config), f"epoch-{epoch}")
    return runs.restore(config, file, device="cpu")


def rayleigh(full: FullBatch, x, v):
    return (v @ full.hessian_vector(x, v)).item() / (v @ v).item()


def test_a_row_is_the_audit_of_its_weights(recording):
    table = recording[2]
    assert table[["phase", "epoch", "iteration"]].to_numpy().tolist() == [
        ["adam", 2, 0],
        ["adam", 5, 0],
        ["cg", 5, 1],
    ]
    trace = traces.collect([recording[0]], recording[1]).set_index("epoch")
    for row in table[table.phase == "adam"].itertuples():
        assert row.loss == pytest.approx(trace.loss[row.epoch], rel=1e-4)
        assert row.gradient_norm == pytest.approx(trace.grad_norm[row.epoch], rel=1e-4)
        assert row.smallest < row.largest
    assert table.loss.iloc[2] < table.loss.iloc[1], "CG lowers the loss"


def test_curvature_along_adam_is_that_of_its_next_epoch(recording):
    trainer = state(recording, 5)
    x = trainer.objective.vector.read()
    trainer.epoch()
    step = trainer.objective.vector.read() - x
    row = recording[2].query("epoch == 5 and phase == 'adam'").iloc[0]
    assert row.along_adam == pytest.approx(rayleigh(trainer.objective, x, step), rel=1e-3)


def test_the_extremes_bound_the_curvature_of_any_vector(recording):
    trainer = state(recording, 5)
    x = trainer.objective.vector.read()
    row = recording[2].query("epoch == 5 and phase == 'adam'").iloc[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        v = torch.randn(x.shape, generator=generator)
        found = rayleigh(trainer.objective, x, v)
        assert row.smallest - row.smallest_error <= found <= row.largest + row.largest_error


def test_what_is_audited_is_not_audited_again(recording, monkeypatch):
    config, out, table = recording
    settings = {"device": "cpu", "epochs": (2, 5), "cg_iterations": (1,)}
    monkeypatch.setattr(Hessian, "audit", lambda *_, **__: pytest.fail("audited again"))
    again = convexity_audit.audit_recording(config, out, **settings)
    assert again.drop(columns="seconds").round(6).equals(table.drop(columns="seconds").round(6))


def test_cg_starts_where_the_robust_rule_has_fired():
    norms = np.concatenate([np.geomspace(1, 20, 10), np.geomspace(18, 0.5, 40)])
    trace = pd.DataFrame({"loss": np.linspace(1, 0.1, 50), "grad_norm": norms})
    found = convexity_audit.checkpoints(trace, [1, 10, 20, 30, 50], cg_iterations=[5, 20])
    assert [c for c in found if c.phase == "adam"] == [
        Checkpoint(e, 0) for e in (1, 10, 20, 30, 50)
    ]
    assert [c for c in found if c.phase == "cg"] == [Checkpoint(20, 5), Checkpoint(20, 20)]
    flat = trace.assign(grad_norm=1.0)
    assert convexity_audit.checkpoints(flat, [1, 10], [5])[-1] == Checkpoint(10, 5)


def test_the_turning_epoch_is_the_one_after_the_last_clearly_negative():
    path = pd.DataFrame(
        {"phase": "adam", "epoch": [1, 3, 7, 14], "largest": [1.0, 1.0, 10.0, 10.0]}
    )
    path["smallest"] = [-0.02, 0.5, -0.11, -0.09]
    assert convexity_audit.clearly_negative(path).tolist() == [True, False, True, False]
    assert convexity_audit.turning_epoch(path) == 14
    assert convexity_audit.turning_epoch(path, level=0.1) == 1
    assert convexity_audit.turning_epoch(path, level=1e-3) == np.inf
    assert convexity_audit.turning_epoch(path.assign(smallest=-100.0)) == np.inf, (
        "negative definite"
    )
    with pytest.raises(InputError, match="^level: "):
        convexity_audit.turning_epoch(path, level=0)


def test_a_switch_is_before_or_after_only_where_curvature_becomes_weak():
    fired = pd.DataFrame({"soon": [2, 9, 4], "seldom": [7, np.nan, np.nan]})
    found = convexity_audit.switches_beside(fired, pd.Series([7.0, 5.0, np.inf]))
    assert found.loc["soon"].tolist() == [1, 1, 1, 0]
    assert found.loc["seldom"].tolist() == [0, 1, 0, 2]


def test_the_committed_audit_belongs_to_the_committed_traces():
    audited, recorded = convexity_audit.committed(), traces.committed()
    merged = audited[audited.phase == "adam"].merge(
        recorded, on=["dataset", "model", "seed", "epoch"], suffixes=("", "_trace")
    )
    assert len(merged) == (audited.phase == "adam").sum()
    assert merged.loss.to_numpy() == pytest.approx(merged.loss_trace.to_numpy(), rel=1e-3)
    assert merged.gradient_norm.to_numpy() == pytest.approx(merged.grad_norm.to_numpy(), rel=1e-2)
    assert audited.dataset.nunique() >= 2
    assert (audited.smallest <= audited.largest).all()


def test_audits_of_other_recordings_stay(tmp_path, monkeypatch):
    def audited(config, *where):
        key = ("digits", config.problem.model, config.seed, "adam")
        return pd.DataFrame([(*key, 1, 0), (*key, 3, 0)], columns=convexity_audit.KEY)

    monkeypatch.setattr(convexity_audit, "audit_recording", audited)
    for models in (["vit-mlp"], ["vit-nomlp"], ["vit-mlp"]):
        chosen = traces.configs("smoke", models=models, seeds=2)
        assert len(convexity_audit.audit(chosen, tmp_path)) == 4
    written = pd.read_csv(tmp_path / "audit.csv")
    assert written.model.tolist() == ["vit-mlp"] * 4 + ["vit-nomlp"] * 4
    assert written.seed.tolist() == [0, 0, 1, 1] * 2


def test_an_unfinished_recording_is_named(tmp_path):
    (config,) = traces.configs("smoke", models=["vit-mlp"], seeds=1)
    with pytest.raises(InputError, match="^run: .* use the folder of a finished run"):
        convexity_audit.audit_recording(config, tmp_path)
