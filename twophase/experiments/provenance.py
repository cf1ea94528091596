"""What a result stands on: package versions, the revision of the code, the time."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from twophase.device import device_name
from twophase.experiments.files import digest_of, project_folder, read_json, write_json

PACKAGES = ("twophase", "torch", "torchvision", "numpy", "pandas", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    missing = "not installed as a package"
    found = {package: _version(package) or missing for package in PACKAGES}
    return {"python": platform.python_version()} | found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


def command(script: str, arguments: Sequence[str] | None) -> str:
    """How a script in `benchmarks/` was called; arguments None: those of this process."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", f"benchmarks/{script}.py", *given])


def of_script(
    script: str, arguments: Sequence[str] | None, packages: Iterable[str] = ()
) -> dict[str, Any]:
    """What a benchmark on the CPU says of itself, before its results change the tree.

    `packages` are other ones whose versions matter; those that are not installed are left out.
    """
    known = {name: found for name in packages if (found := _version(name))}
    said = facts(command(script, arguments), device_name(torch.device("cpu")))
    return said | {"versions": said["versions"] | known}


def load() -> list[float] | None:
    """Processes that ran or wanted to, in the mean of the last 1, 5 and 15 minutes, if known."""
    return [round(one, 1) for one in os.getloadavg()] if hasattr(os, "getloadavg") else None


def facts(called: str, device: str) -> dict[str, Any]:
    """Command, revision, versions, device, hardware and time of what is made here and now."""
    return {
        "command": called,
        "revision": git_revision(),
        "versions": versions(),
        "device": device,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "time": now(),
    }


def tables(folder: Path) -> dict[str, str | None]:
    """The digests of a folder's tables."""
    return {path.name: digest_of(path) for path in folder.glob("*.csv")}


def add(note: Path, said: dict[str, Any]) -> None:
    """Write what is said of the newest rows of tables; what was said before stays as `earlier`."""
    before = read_json(note)
    earlier = before.pop("earlier", [])
    write_json(note, said | ({"earlier": [*earlier, before]} if before else {}))


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
