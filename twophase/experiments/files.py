"""Files that are either whole or not there; the source tree, and what lies in it."""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from twophase.errors import InputError

# the end of `unfinished`, with the place and number of the process that writes
_UNFINISHED = re.compile(r"\..+\.([0-9a-f]{8})\.(\d+)\.tmp")
_MINUTE, _DAY = 60.0, 86400.0


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that whatever happens there is the old file or the new one, whole.

    Text is encoded as UTF-8. The content goes to a temporary file beside it, which is flushed to
    the disk and renamed. `InputError` for what is no regular file; `OSError`, which names the file,
    where the folder is missing or full; the old file is intact. What killed processes have left in
    the folder is removed.
    """
    check_regular(path)
    clear_unfinished(path.parent)
    temporary = path.with_name(f".{path.name}{unfinished()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_rows(path: Path, table: pd.DataFrame, key: Sequence[str]) -> None:
    """Write a table as CSV, with the rows of other keys that the file has.

    It stands where the first row was that it replaces, or at the end. A file that cannot be read,
    or has no such columns, is replaced.
    """
    # as texts, so that no row changes that is not replaced
    new = _texts(io.StringIO(table.to_csv(index=False)))
    old = new.iloc[:0]
    with suppress(OSError, ValueError):
        old = _texts(path)
    if not set(key) <= set(old):
        old = new.iloc[:0]
    same = old.set_index(key).index.isin(new.set_index(key).index)
    at = int(same.argmax()) if same.any() else len(old)
    rows = pd.concat([old[:at], new, old[at:][~same[at:]]])
    columns = new.columns.union(old.columns, sort=False)
    write_atomically(path, rows[columns].to_csv(index=False))


def _texts(source: Path | io.StringIO) -> pd.DataFrame:
    return pd.read_csv(source, dtype=str, keep_default_na=False)


def check_regular(path: Path) -> None:
    """`InputError` where a path is that of a folder, a device or a pipe, not to be replaced."""
    if path.exists() and not path.is_file():
        raise InputError("file", str(path), "a regular file, or a path where nothing is")


def check_folder(field: str, path: Path) -> None:
    """`InputError` where a folder cannot be written to, or is not there and cannot be made."""
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(field, str(path), "a folder that can be written to, there or new")


@cache
def here() -> str:
    """Eight characters for all processes that tell each other apart by their numbers.

    They differ from machine to machine and, where Linux says so, from one start of it to the next
    and from container to container.
    """
    known = [platform.node()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:8]


def unfinished() -> str:
    """How names end of what this process is writing; they begin with a dot."""
    return f".{here()}.{os.getpid()}.tmp"


def clear_unfinished(folder: Path, age: float = _MINUTE) -> None:
    """Remove what killed processes have left half written in a folder, see `unfinished`.

    That is what has the number of no process of this machine, and was written here or not touched
    for `age` seconds, or what is a day old.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            found = _UNFINISHED.fullmatch(path.name)
            if found is None:
                continue
            old = time.time() - path.lstat().st_mtime
            dead = not _is_running(int(found[2]))
            if old > _DAY or (dead and (old >= age or found[1] == here())):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _is_running(process: int) -> bool:
    """Whether a process of this machine has that number; True where that is not known."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def digest_of(path: Path) -> str | None:
    """The SHA-256 of a file; None where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def write_sealed(path: Path, content: dict) -> None:
    """As `write_json`, with a digest by which `read_json` knows that all of it is there."""
    write_json(path, content | {"sha256": _digest(content)})


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file without its digest; empty where it is missing or damaged."""
    try:
        # a pipe would have to be waited for
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    seal = content.pop("sha256", None)
    return content if seal in (None, _digest(content)) else {}


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically, indented, in the order given."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def project_folder() -> Path | None:
    """The source tree that this package runs from: the folder with `twophase` and pyproject.toml.

    None for an installed copy of the package.
    """
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").is_file() else None


def committed_table(path: str) -> pd.DataFrame:
    """A CSV file of the source tree, such as `data/paper_table1.csv`; `InputError` without one."""
    folder = project_folder()
    if folder is None:
        raise InputError(path, None, "the source tree, which holds it")
    return pd.read_csv(folder / path)


def work_folder(path: str | Path | None, shared: bool = False) -> Path:
    """A folder for runs: `path`, from the project's folder; a temporary one for None or "".

    The nodes of a cluster share no temporary folder: where it is to be `shared` it is reports/runs.
    """
    path = path or ("reports/runs" if shared else None)
    return (project_folder() or Path()) / path if path else Path(tempfile.mkdtemp())
