"""The method's annotations hold, by mypy with the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "twophase"
FOLDERS = (
    "directions", "distributed", "integrations", "least_squares", "line_search", "objectives",
    "optimizers", "precision", "switching",
)  # fmt: skip


@pytest.mark.slow
def test_the_methods_types_hold():
    folders = [PACKAGE, *(PACKAGE / name for name in FOLDERS)]
    method = [path for folder in folders for path in folder.glob("*.py")]
    method.remove(PACKAGE / "__main__.py")
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=PROJECT, capture_output=True, text=True
    )
    assert f"no issues found in {len(method)} source files" in done.stdout, done.stdout
