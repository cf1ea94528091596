"""The command line: what it leaves, every setting by name, errors in one line with exit code 2."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import twophase as tp
from twophase.__main__ import _config, _executor, build_parser, main
from twophase.errors import InputError
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import Local
from twophase.experiments.runs import run
from twophase.problems import networks
from twophase.problems.problem import ImageProblem, PhysicsProblem
from twophase.settings import from_dict

QUICK = ["--train-examples", "64", "--epochs", "4", "--switch", "2"]


def twophase(capsys, *arguments):
    """Exit code, what was printed, and the lines on stderr."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def history(folder):
    return pd.read_csv(folder / "history.csv")


def test_a_run_leaves_config_history_and_summary(tmp_path, capsys):
    out = tmp_path / "run"
    code, printed, _ = twophase(capsys, "run", *QUICK, "--seed", "3", "--out", str(out))
    assert code == 0
    assert visible(out) == ["config.json", "history.csv", "summary.json", "weights.pt"]
    config = json.loads((out / "config.json").read_text())
    assert config.pop("format") == 7
    problem = ImageProblem(train_examples=64)
    assert from_dict(config) == RunConfig(problem, 4, switch=tp.FixedEpoch(2), seed=3)
    table = history(out)
    assert table.epoch.tolist() == [1, 2, 3, 4]
    assert table.phase.tolist() == ["adam", "adam", "second", "second"]
    assert {"train_loss", "grad_norm", "passes", "seconds"} <= set(table.columns)
    summary = json.loads((out / "summary.json").read_text())
    last = table.iloc[-1]
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
        assert summary[name] == last[name]
    assert summary["parameters"] == 17930
    assert summary["q"] == networks.overdetermination(64, 10, 17930)
    assert (summary["swap_epoch"], summary["status"], summary["seed"]) == (2, "completed", 3)
    assert summary["passes"] == table.passes.sum()
    assert {"versions", "device", "git_revision"} <= set(summary)
    assert "completed after 4 epochs" in printed


def test_two_runs_with_one_seed_differ_in_seconds_only(tmp_path, capsys):
    for name in ("first", "second"):
        assert twophase(capsys, "run", *QUICK, "--out", str(tmp_path / name))[0] == 0
    first, second = (history(tmp_path / n).drop(columns="seconds") for n in ("first", "second"))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_finished_run_is_not_repeated_nor_overwritten(tmp_path, capsys):
    out = str(tmp_path / "run")
    twophase(capsys, "run", *QUICK, "--out", out)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert twophase(capsys, "run", *QUICK, "--out", out)[0] == 0
    code, _, errors = twophase(capsys, "run", *QUICK, "--seed", "1", "--out", out)
    assert code == 2
    assert errors == [
        f"twophase: error: out: {out!r} is not allowed; "
        "use a folder without another run (there seed is 0, here 1)"
    ]
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_loss_that_turns_nan_leaves_nothing_that_looks_finished(tmp_path, capsys):
    code, _, errors = twophase(
        *(capsys, "run", *QUICK, "--learning-rate", "1e30", "--batch-size", "16"),
        *("--out", str(tmp_path)),
    )
    assert code == 2
    assert len(errors) == 1
    assert "loss: nan is not allowed after epoch" in errors[0]
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "history.csv").exists()


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--model", "vit-mpl", "did you mean 'vit-mlp'?"),
        ("--problem", "minst", "digits, mnist, fashion-mnist, cifar10, cifar100, poisson"),
        ("--strategy", "adam+sgd", "one of adam, second, adam+second"),
        ("--epochs", "0", "a whole number of at least 1"),
        ("--epochs", "-3", "a whole number of at least 1"),
        ("--epochs", "ten", "a whole number"),
        ("--epochs", "1" + 30 * "0", "and at most 9223372036854775807"),
        ("--data", "", "the path of a folder or file"),
        ("--seed", "-1", "a whole number of at least 0"),
        ("--seed", "99999999999999999999", "a whole number of at least 0"),
        ("--batch-size", "0", "a whole number of at least 1"),
        ("--learning-rate", "-1", "above 0"),
        ("--switch", "4", "below the number of epochs, 4"),
        ("--switch", "Armijo", "Race(passes=30)"),
        ("--switch", "GoldenSection", "a switch rule"),
        ("--train-examples", "5000", "from 1 to 1437"),
        ("--second", "cg", "use default, paper, or a second phase"),
        ("--second", "GoldenSection", "use Automatic(...), Descent(...) or Lev"),
        ("--direction", "GoldenSection", "a direction rule"),
        ("--line-search", "LBFGSDirection", "a line search"),
        ("--line-search", "5", "a line search"),
        ("--preconditioner", "None", "AdamMoments() or Identity()"),
        ("--fallback", "20", "or None"),
        ("--dtype", "float16", "one of float32, float64"),
        ("--device", "tpu", "auto, cpu or cuda"),
        ("--epochs", "9" * 5000, "use a whole number of at most 19 digits"),
        ("--seed", "-" + "9" * 5000, "use a whole number of at most 19 digits"),
        ("--problem", "nofile", "or the path of a UTF-8 file"),
        ("--data", "a\0b", "use the path of a folder or file"),
    ],
)
def test_bad_input_is_one_line_with_field_value_and_what_is_allowed(
    tmp_path, capsys, option, value, allowed
):
    out = tmp_path / "run"
    code, _, errors = twophase(capsys, "run", *QUICK, option, value, "--out", str(out))
    assert code == 2
    assert len(errors) == 1
    assert option.strip("-").replace("-", "_") in errors[0].replace("-", "_")
    assert repr(value).strip("'")[:300] in errors[0]
    assert allowed in errors[0]
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "pattern"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch-size", "64"),
        ("--batch-size", "-1"),
        ("--train-examples", "0"),
        ("--validation-examples", "10"),
        ("--model", "gpt-1k"),
    ],
)
def test_what_a_problem_does_not_have_is_refused(tmp_path, capsys, command, option, value):
    out = tmp_path / "out"
    given = ["--problem", "poisson", option, value, "--out", str(out)]
    code, _, errors = twophase(capsys, command, *given)
    name = option.strip("-").replace("-", "_")
    assert (code, len(errors)) == (2, 1)
    assert f"{name}: " in errors[0]
    assert f"use nothing with poisson, which has no {name}" in errors[0]
    assert not out.exists()


def test_an_equation_needs_no_batch_size(tmp_path, capsys, monkeypatch):
    """Without the option the default of images is none of it."""
    chosen = []
    monkeypatch.setattr("twophase.experiments.pattern.config", lambda *given: chosen.append(given))
    monkeypatch.setattr("twophase.experiments.pattern.run", lambda *given: _stop())
    for problem in ("poisson", "digits"):
        twophase(capsys, "pattern", "--problem", problem, "--out", str(tmp_path / "out"))
    assert [adam.batch_size for _, _, adam, _ in chosen] == [None, 64]


def _stop():
    raise InputError("x", 1, "nothing")


@pytest.mark.parametrize(
    ("option", "value", "ending"),
    [
        ("--precision", "BFloat", "\"BFloat16(tolerance=0.05)\" (did you mean 'BFloat16'?)"),
        ("--precision", "BFloat16(tolerance=Foo)", "use the name of settings of this library"),
        ("--second", "Descent(direction=Foo)", "such as \"ConjugateDirection('FR')\""),
    ],
)
def test_a_name_that_nothing_has_gets_a_near_one_and_no_long_list(
    tmp_path, capsys, option, value, ending
):
    code, _, errors = twophase(capsys, "run", option, value, "--out", str(tmp_path / "o"))
    assert code == 2 and len(errors[0]) < 150 and errors[0].endswith(ending)


@pytest.mark.parametrize(
    ("option", "example"),
    [
        ("--switch", "Race(passes=30)"),
        ("--fallback", "Fallback(trial=5)"),
        ("--direction", "ConjugateDirection('FR')"),
        ("--line-search", "StrongWolfe(c2=0.1)"),
        ("--preconditioner", "AdamMoments(min_batches=1)"),
        ("--monitor", "FromBatches"),
        ("--precision", "BFloat16(tolerance=0.05)"),
        ("--second", "LevenbergMarquardt(damping=0.1)"),
    ],
)
def test_the_advice_fits_the_option(tmp_path, capsys, option, example):
    value = "Descent(" if option == "--second" else ""
    code, _, errors = twophase(capsys, "run", option, value, "--out", str(tmp_path / "out"))
    assert (code, len(errors)) == (2, 1)
    assert errors[0].endswith(f'is not allowed; use a text such as "{example}"')
    assert isinstance(config(option, example), RunConfig)


def test_the_advice_for_executors_is_an_executor(capsys):
    for text in ("", "Local("):
        code, _, errors = twophase(capsys, "regret", "--out", "x", "--executor", text)
        assert (code, len(errors)) == (2, 1)
        assert "use local, slurm, or such as Local(processes=4)" in errors[0]


COMMANDS = ["run", "table1", "compare", "regret", "pattern", "traces", "bench", "report", "sweep"]


def with_device(tmp_path, command, device):
    (tmp_path / "spec.yaml").write_text("seed: 0")
    more = [str(tmp_path / "spec.yaml")] if command == "sweep" else []
    return [command, *more, "--device", device, "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there_is_one_line_before_anything_is_made(tmp_path, capsys, command):
    for device in ("x", "cuda:77"):
        code, printed, errors = twophase(capsys, *with_device(tmp_path, command, device))
        assert (code, printed, len(errors)) == (2, "", 1)
        assert f"device: '{device}' is not allowed; use auto, cpu or cuda" in errors[0]
        assert not (tmp_path / "out").exists()


MANY = ["table1", "compare", "regret", "pattern", "sweep", "traces"]


@pytest.mark.parametrize("command", [*MANY, "report"])
def test_a_folder_that_cannot_be_is_one_line_before_anything_is_made(
    tmp_path, capsys, monkeypatch, command
):
    (tmp_path / "file").write_text("of a person's own")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    given = with_device(tmp_path, command, "cpu")[:-1]
    wrong = [tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link", Path("/dev/null")]
    for out in wrong:
        code, printed, errors = twophase(capsys, *given, str(out))
        assert (code, printed, len(errors)) == (2, "", 1)
        allowed = "is not allowed; use a folder that can be written to, there or new"
        assert errors[0] == f"twophase: error: out: '{out}' {allowed}"
    assert (tmp_path / "file").read_text() == "of a person's own"
    # as for who is not root
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    code, _, errors = twophase(capsys, *given, str(tmp_path / "a" / "b"))
    assert (code, len(errors)) == (2, 1) and "out: " in errors[0]
    assert not (tmp_path / "a").exists()


def test_so_is_one_for_the_runs(tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["regret", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "file")]
    code, _, errors = twophase(capsys, *command)
    assert (code, len(errors)) == (2, 1) and "work: '" in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", MANY)
def test_a_cluster_may_have_other_devices(tmp_path, capsys, monkeypatch, command):
    """The nodes' are not known here; what no machine has is told all the same."""
    monkeypatch.setenv("PATH", "")
    for device, field in (("cuda:77", "executor: "), ("cuda:x", "device: 'cuda:x'")):
        given = with_device(tmp_path, command, device)
        code, _, errors = twophase(capsys, *given, "--executor", "slurm")
        assert (code, len(errors)) == (2, 1)
        assert field in errors[0]


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("--switch", "GradientNormPeak(1.5)", "factor: 1.5"),
        ("--switch", "GradientNormPeak(factor=float('nan'))", "float"),
        ("--line-search", "GoldenSection(rtol=0)", "rtol: 0"),
        ("--line-search", "GoldenSection(tolerance=1e-2)", "tolerance"),
        ("--direction", "ConjugateDirection('CD')", "beta: 'CD'"),
        ("--direction", "ConjugateDirection(restart_every=0)", "restart_every: 0"),
        ("--direction", "SelfScaledBFGSDirection(", "direction: 'SelfScaledBFGSDirection('"),
    ],
)
def test_a_bad_part_of_the_method_is_one_line_that_names_it(tmp_path, capsys, option, value, field):
    out = tmp_path / "run"
    code, _, errors = twophase(capsys, "run", *QUICK, option, value, "--out", str(out))
    assert (code, len(errors)) == (2, 1)
    assert field in errors[0]
    assert not out.exists()


def config(*arguments):
    return _config(build_parser().parse_args(["run", "--out", "x", *arguments]))


def test_without_options_a_run_is_the_librarys_default():
    assert config() == RunConfig()


def test_the_paper_by_name():
    assert config("--second", "paper") == RunConfig(**tp.PAPER)
    other = config("--second", "paper", "--switch", "7", "--fallback", "Fallback(trial=3)")
    assert other.second == tp.PAPER["second"]
    assert (other.switch, other.fallback) == (tp.FixedEpoch(7), tp.Fallback(trial=3))


def test_every_part_of_the_method_can_be_chosen():
    given = config(
        *("--direction", "ConjugateDirection('FR', restart_every=9)"),
        *("--line-search", "ParabolaFirst(StrongWolfe(c2=0.2))", "--preconditioner", "Identity"),
        *("--switch", "NormVersusLoss(PeakTest(0.7))", "--fallback", "None"),
        *("--batch-size", "64", "--learning-rate", "0.01", "--seed", "5", "--dtype", "float64"),
    )
    second = tp.Descent(
        tp.ConjugateDirection("FR", restart_every=9), tp.ParabolaFirst(tp.StrongWolfe(c2=0.2))
    )
    assert given == RunConfig(
        adam=tp.AdamSettings(0.01, 64),
        second=second,
        switch=tp.NormVersusLoss(tp.PeakTest(0.7)),
        fallback=None,
        seed=5,
        dtype="float64",
    )


def test_strategies_and_problems_by_name():
    named = config("--second", "LevenbergMarquardt(damping=0.1)")
    assert named == RunConfig(second=tp.LevenbergMarquardt(damping=0.1))
    dense = config("--direction", "BroydenDirection")
    assert dense.second == replace(tp.SELF_SCALED_BFGS, direction=tp.BroydenDirection())
    with pytest.raises(InputError, match="^direction: .* nothing with --second LevenbergM"):
        config("--second", "LevenbergMarquardt", "--direction", "LBFGSDirection")
    assert config("--strategy", "adam").second is None
    assert config("--strategy", "second").adam is None
    for unused in (
        ("--strategy", "adam", "--switch", "3"),
        ("--strategy", "adam", "--second", "paper"),
        ("--strategy", "second", "--learning-rate", "0.1"),
        ("--strategy", "second", "--fallback", "None"),
    ):
        field = unused[2].strip("-").replace("-", "_")
        with pytest.raises(InputError, match=f"^{field}: .* nothing with strategy {unused[1]}$"):
            config(*unused)
    poisson = config("--problem", "poisson")
    assert (poisson.problem, poisson.adam.batch_size) == (PhysicsProblem("poisson"), None)


def test_the_version_is_there(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("twophase ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run"], "--out"),
        (["run", "--out", "x", "--epcohs", "3"], "unrecognized arguments: --epcohs 3"),
        (["report", "--preset", "fast"], "preset: 'fast' is not allowed; use one of"),
        (["download", "minst"], "dataset: 'minst' is not allowed"),
    ],
)
def test_the_command_line_is_explained_in_one_line(capsys, arguments, message):
    code, _, errors = twophase(capsys, *arguments)
    assert (code, len(errors)) == (2, 1)
    assert message in errors[0]


def test_a_missing_data_set_names_the_file_and_the_mend(tmp_path, capsys):
    code, _, errors = twophase(
        capsys, "run", "--problem", "mnist", "--data", str(tmp_path), "--out", str(tmp_path / "run")
    )
    assert (code, len(errors)) == (2, 1)
    assert "train-images-idx3-ubyte" in errors[0]
    assert "python -m twophase download mnist" in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, errors = twophase(capsys, "run", *QUICK, "--out", str(tmp_path / "file" / "run"))
    assert (code, len(errors)) == (2, 1)
    assert str(tmp_path / "file") in errors[0]


@pytest.mark.parametrize("damage", ["{", "", "[" * 100_000, "\ufeff{}"])
def test_a_damaged_config_is_named(tmp_path, damage):
    (tmp_path / "config.json").write_text(damage, encoding="utf-8")
    with pytest.raises(InputError, match="^out: .* its config.json is damaged"):
        run(RunConfig(epochs=1), tmp_path)


@pytest.mark.slow
def test_the_module_is_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "twophase", "run", "--epochs", "0", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_plot_draws_a_finished_run(tmp_path, capsys):
    out = tmp_path / "run"
    code, _, errors = twophase(capsys, "plot", str(out))
    assert (code, len(errors)) == (2, 1)
    assert "use the folder of a finished run" in errors[0]
    twophase(capsys, "run", *QUICK, "--out", str(out))
    assert twophase(capsys, "plot", str(out))[0] == 0
    assert (out / "grad_norm_over_loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["summary.json", "history.csv", "weights.pt"])
def test_files_of_somebody_else_are_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"^out: .* without a foreign {name}"):
        run(RunConfig(epochs=1), tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_summary_is_no_finished_run(tmp_path, capsys, damage):
    twophase(capsys, "run", *QUICK, "--out", str(tmp_path))
    (tmp_path / "summary.json").write_text(damage)
    code, _, errors = twophase(capsys, "plot", str(tmp_path))
    assert (code, len(errors)) == (2, 1)
    assert twophase(capsys, "run", *QUICK, "--out", str(tmp_path))[0] == 0
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "completed"


def test_report_is_quick_by_default(monkeypatch, capsys, tmp_path):
    calls = []
    monkeypatch.setattr(
        "twophase.reporting.report.build", lambda *args, **more: calls.append(args) or tmp_path
    )
    assert twophase(capsys, "report")[0] == 0
    assert calls == [("quick", None, None)]


def executor(*arguments):
    return _executor(build_parser().parse_args(arguments))


def test_commands_of_many_runs_take_an_executor():
    for command in (["table1"], ["compare", "--out", "x"], ["regret", "--out", "x"]):
        assert executor(*command) == Local(1)
        assert executor(*command, "--executor", "local") == Local()
        assert executor(*command, "--executor", "Local(3)") == Local(3)
    assert executor("sweep", "x.yaml", "--out", "x") == Local()
    assert executor("compare", "--out", "x", "--processes", "4") == Local(4)


def test_two_executors_are_one_too_many(capsys):
    code, _, errors = twophase(
        capsys, "compare", "--out", "x", "--processes", "2", "--executor", "local"
    )
    assert (code, len(errors)) == (2, 1)
    assert "processes: 2 is not allowed; use nothing with --executor" in errors[0]


@pytest.mark.parametrize("command", ["report", "table1", "compare", "regret", "sweep", "traces"])
def test_an_executor_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path, command):
    monkeypatch.setenv("PATH", "")
    spec = tmp_path / "spec.yaml"
    spec.write_text("seed: 0")
    out = tmp_path / "out"
    more = [str(spec)] if command == "sweep" else []
    for text in ("slurm", "Slurms"):
        code, _, errors = twophase(capsys, command, *more, "--executor", text, "--out", str(out))
        assert (code, len(errors)) == (2, 1)
        assert "executor: " in errors[0]
        assert not out.exists()


def test_the_report_hands_the_executor_to_the_ablations(monkeypatch, capsys, tmp_path):
    calls = []
    monkeypatch.setattr(
        "twophase.reporting.report.build", lambda *args, **more: calls.append(more) or tmp_path
    )
    assert twophase(capsys, "report", "--executor", "Local(2)")[0] == 0
    assert calls[0]["parameters"] == {"executor": "Local(2)"}


def test_the_same_command_runs_on_the_real_mnist(tmp_path, capsys):
    root = os.environ.get("TWOPHASE_DATA")
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip("TWOPHASE_DATA names no folder with MNIST")
    code, printed, _ = twophase(
        capsys, "run", *QUICK, "--problem", "mnist", "--out", str(tmp_path / "run")
    )
    assert code == 0
    assert "completed after 4 epochs" in printed


@pytest.mark.parametrize(
    "arguments",
    [["run", "--out", "a\0b"], ["run", "--out", ""], ["plot", "run", "--out", ""], ["plot", ""]],
)
def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, errors = twophase(capsys, *arguments)
    assert (code, len(errors)) == (2, 1)
    assert "use the path of a folder or file" in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["table1", "traces", "compare", "regret"])
def test_more_seeds_than_anybody_can_wait_for_are_refused(tmp_path, capsys, command):
    code, _, errors = twophase(capsys, command, "--seeds", "1000000000", "--out", str(tmp_path))
    assert (code, len(errors)) == (2, 1)
    assert "at least 1 and at most 10000" in errors[0]


def test_a_path_that_the_terminal_cannot_print(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(["plot", str(tmp_path / "ä")]) == 2
    terminal.flush()
    assert b"\\xe4" in terminal.buffer.getvalue()


OPTIONS = [
    "--problem", "--model", "--strategy", "--epochs", "--seed", "--dtype", "--batch-size",
    "--learning-rate", "--second", "--direction", "--line-search", "--preconditioner", "--switch",
    "--fallback", "--monitor", "--precision", "--keep", "--train-examples", "--validation-examples",
    "--device",
]  # fmt: skip
VALUES = ["", "None", "default", "paper", "-1", "1e400", "nan", "GoldenSection(", "Race(passes=0)"]
VALUES += ["Descent", "Fallback(trial='x')", "(((" * 200, "\x00", "Identity", "cuda:99", "poisson"]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from([*OPTIONS, "--frieze", ""]), st.sampled_from(VALUES) | st.text()),
        max_size=3,
    )
)
def test_any_command_line_is_a_configuration_or_one_line(capsys, monkeypatch, given):
    """What a run would do is not done here."""
    done = {"status": "", "epochs": 0, "passes": 0, "train_loss": 0.0}
    monkeypatch.setattr("twophase.experiments.runs.run", lambda *arguments: done)
    arguments = [part for pair in given for part in pair]
    code, _, errors = twophase(capsys, "run", *arguments, "--out", "there")
    assert (code, len(errors)) in ((0, 0), (2, 1))
