"""What a result stands on: package versions, the revision of the code, the time."""

import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from twophase.experiments.files import project_folder

PACKAGES = ("twophase", "torch", "torchvision", "numpy", "pandas", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def git_revision() -> str | None:
    """The commit of the source tree that runs, with "-dirty" after it where files differ.

    None without git, and for a copy inside somebody else's repository.
    """
    tree = project_folder()
    if tree is None:
        return None
    # with its own folder given, git does not go up to a repository that holds the tree
    command = ["git", f"--git-dir={tree / '.git'}", f"--work-tree={tree}", "describe", "--always"]
    command += ["--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def words(device: str) -> str:
    """The name of a device from a record, with a single thread in the singular."""
    return re.sub(r"\b1 threads\b", "1 thread", device)


def made_with(summaries: Iterable[Mapping[str, Any]]) -> str:
    """The devices, versions of torch and revisions of runs with these summaries, each once."""
    found = set()
    for run in summaries:
        commit, dash, dirty = str(run["git_revision"] or "unknown").partition("-")
        torch = run["versions"]["torch"]
        found.add(f"{words(run['device'])}, torch {torch}, revision {commit[:10]}{dash}{dirty}")
    return "; ".join(sorted(found))
