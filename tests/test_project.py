"""README, .ci/run, pyproject and environment.yml say the same; the tree is as README says."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml

from twophase.experiments import comparison, profiles, runs, statistics
from twophase.problems import networks
from twophase.switch import GradientNormPeak

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
TOP_LEVEL = {
    *("notebooks", "twophase", "data", "reports", "tests", "environment.yml", "README.md"),
    *("benchmarks", "pyproject.toml", "conftest.py", "LICENSE", ".ci", ".gitignore"),
}


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def requirement(text):
    """Name and lower bound of a requirement; conda calls torch pytorch."""
    name, bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)", text).groups()
    return {"pytorch": "torch"}.get(name, name), bound


def test_ci_runs_the_readmes_test_command():
    commands = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    main_job, tests = (block.strip() for block in code_blocks("bash")[:2])
    assert tests == commands[-1]
    assert main_job == "python -m pip install -e . && python -m twophase report"
    assert 'python3 -m venv "$environment"' in commands
    assert 'export PATH="$environment/bin:$PATH"' in commands
    assert "set -euo pipefail" in commands


def test_readme_names_the_python_that_pyproject_asks_for():
    wanted = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"Python {wanted} or newer" in README


def test_environment_yml_is_pyproject_in_condas_words():
    project = PYPROJECT["project"]
    wanted = {
        requirement(text)
        for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]
    }
    listed = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf-8"))
    packages = [*listed["dependencies"][:-1], *listed["dependencies"][-1]["pip"]]
    assert "--editable ." in packages
    assert f"python{project['requires-python']}" in packages
    found = {requirement(p) for p in packages if re.match(r"(?!python\b)[\w-]+>=", p)}
    assert found == wanted


def test_the_readmes_python_runs():
    """All its blocks in one process, one after the other, as a reader would paste them."""
    blocks = "\n".join(code_blocks("python"))
    assert "ConjugateGradient" in blocks
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", blocks], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_readme_names_every_notebook_and_every_link_is_there():
    for notebook in NOTEBOOKS:
        assert f"notebooks/{notebook.name}" in README
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target


def test_the_top_level_is_what_it_should_be():
    listing = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listing.stdout.splitlines()} == TOP_LEVEL


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.cells[0].cell_type == "markdown"
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    assert any("assert " in cell.source for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_the_style_is_ruffs(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_numbers_under_readmes_figure_are_its_runs():
    folder = PROJECT / "reports" / "reference" / "digits-vit-mlp"
    history, summary = runs.read(folder)
    text = " ".join(README.split())
    peak = int(history.epoch[history.grad_norm.idxmax()])
    rule = GradientNormPeak()
    decisions = [rule.update(*row) for row in history[["train_loss", "grad_norm"]].values]
    fired = 1 + [decision.switch for decision in decisions].index(True)
    assert f"The norm peaks after epoch {peak}." in text
    assert f"The swap was set after epoch {summary['swap_epoch']}," in text
    assert summary["swap_epoch"] / summary["epochs"] == 0.3
    assert f"would have fired after epoch {fired}," in text


def kept_comparison(name, passes):
    """What each method of a kept comparison cost, and the medians as README writes them."""
    kept = comparison.load(PROJECT / "reports" / "reference" / name)
    kept = kept[(kept.seed != comparison.TUNING_SEED) & (kept.method != "adam-twice")]
    found = profiles.costs(kept, passes)
    keys = ["problem", "model", "method"]
    rows = profiles.ratios(found, keys).set_index(keys).iterrows()
    return found, {key: profiles.as_ratio(row).text.split(" (")[0] for key, row in rows}


SMALL = "vit-nomlp-wkewq-wvwo1"


def missed(found, problem, method):
    """On how many of how many seeds."""
    of = found[(found.problem == problem) & (found.model == SMALL) & (found.method == method)]
    return int(np.isinf(of.ratio).sum()), len(of)


def test_the_ratios_in_the_readme_are_those_of_the_kept_comparisons():
    readme = " ".join(README.split())
    words = ("no", "one", "two", "three")
    found, digits = kept_comparison("fair-comparison", 1000)
    for model in networks.MODELS:
        assert f"{model} {digits['digits', model, 'default']}" in readme
    assert f"torch's L-BFGS needs {digits['digits', SMALL, 'torch-lbfgs']}" in readme
    assert f"Adam with a tuned rate {digits['digits', SMALL, 'adam-tuned']}" in readme
    own, golden = (missed(found, "digits", method) for method in ("default", "golden"))
    assert f"misses that loss on {words[own[0]]} of three seeds" in readme
    assert f"golden section misses on {words[golden[0]]}." in readme
    assert own[1] == golden[1] == 3
    found, images = kept_comparison("fair-comparison-mnist-cifar", 600)
    for method, verb in (("default", "it needs"), ("torch-lbfgs", "torch's L-BFGS")):
        pair = [images[problem, SMALL, method] for problem in ("mnist", "cifar10")]
        assert f"{verb} {pair[0]} and {pair[1]}" in readme
    assert missed(found, "mnist", "golden") == (2, 3)
    assert missed(found, "cifar10", "golden") == (3, 3)


def test_the_ratios_of_the_physics_informed_networks_are_those_of_the_kept_map():
    readme = " ".join(README.split())
    kept = comparison.load(PROJECT / "reports" / "reference" / "payoff-map")
    to_adam, to_rival = [], []
    for problem in ("poisson", "burgers"):
        of = kept[(kept.problem == problem) & (kept.dtype == "float64")]
        found = profiles.costs(of, 3000)
        ratio = statistics.ratio_of(found.ratio[found.method == "default"])
        to_adam.append(ratio.text.split(" (")[0])
        to_rival.append(profiles.against(of, 3000).text.split(" (")[0])
    assert f"it needs {to_adam[0]} and {to_adam[1]} of the passes of full-batch Adam" in readme
    assert f"and {to_rival[0]} and {to_rival[1]} of those of torch's L-BFGS" in readme
