"""What a result stands on: package versions, the revision of the code, the device, the time."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("twophase", "torch", "torchvision", "numpy", "pandas", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on.

    >>> sorted(versions())[:3]
    ['numpy', 'pandas', 'python']
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def git_revision() -> str | None:
    """The commit of the code, with "-dirty" after it where files differ; None without git.

    >>> revision = git_revision()
    >>> revision is None or len(revision) >= 40
    True
    """
    folder = Path(__file__).parent
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(describe, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def now() -> str:
    """The time in UTC, to the second, as ISO 8601.

    >>> now()[10]
    'T'
    """
    return datetime.now(UTC).isoformat(timespec="seconds")
