"""Files that are either whole or not there; the source tree, and what lies in it."""

import json
import os
import tempfile
from pathlib import Path

import pandas as pd

from twophase.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that whatever happens there is the old file or the new one, whole.

    Text is encoded as UTF-8. The content goes to a temporary file beside it, which is flushed to
    the disk and renamed. `OSError` where the folder is missing or full; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
