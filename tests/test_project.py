"""README, .ci/run, pyproject and environment.yml say the same; the tree is as README says."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from twophase.experiments import runs
from twophase.switching.rules import GradientNormPeak

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
TOP_LEVEL = {
    *("notebooks", "twophase", "data", "reports", "tests", "environment.yml", "README.md"),
    *("benchmarks", "pyproject.toml", "conftest.py", "LICENSE", ".ci", ".gitignore"),
    *("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", ".pre-commit-config.yaml"),
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


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path):
    """All its blocks in one process, one after the other, as a reader would paste them."""
    blocks = "\n".join(code_blocks("python"))
    assert "ConjugateGradient" in blocks
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", blocks],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
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
    there = {line.split("/")[0] for line in listing.stdout.splitlines()}
    assert there == TOP_LEVEL


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


@pytest.mark.slow
def test_the_results_in_the_readme_are_those_of_the_files():
    done = subprocess.run(
        [sys.executable, "benchmarks/results.py", "--check"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_first_words_agree_with_its_results():
    text = " ".join(README.split())
    counts = re.search(r"on (\d+) of the (\d+) problems where that was tried", text).groups()
    near, tried = (
        "no one two three four five six seven eight nine".split()[int(n)] for n in counts
    )
    assert f"on {near} of the {tried} image problems where that was tried" in text


def test_the_citation_is_the_papers():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PYPROJECT["project"]["version"]
    assert citation["preferred-citation"]["doi"] in README


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_articles(path):
    """At most 150 lines of code, and functions of at most eight lines."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(len(code_lines(cell)) for cell in code) <= 150
    for cell in code:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 8, node.name
