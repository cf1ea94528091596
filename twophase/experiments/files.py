"""Files that are either whole or not there."""

import json
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that whatever happens there is the old file or the new one, whole.

    Text is encoded as UTF-8. The content goes to a temporary file beside it, which is flushed to
    the disk and renamed.

    Args:
        path: the file; its folder must be there.
        content: all of it.

    Raises:
        OSError: the folder cannot be written to or the disk is full; the old file is intact.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_atomically(path, "whole")
    >>> path.read_text()
    'whole'
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


def project_folder() -> Path | None:
    """The source tree that this package runs from, known by its pyproject.toml; None if none.

    Returns:
        The folder that holds `twophase`; None for an installed copy of the package.

    >>> folder = project_folder()
    >>> folder is None or (folder / "twophase").is_dir()
    True
    """
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").is_file() else None


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically, indented, in the order given.

    Args:
        path: the file; its folder must be there.
        content: what JSON can hold.

    Raises:
        OSError: the folder cannot be written to or the disk is full; the old file is intact.
        TypeError: the content holds what JSON cannot; the old file is intact.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "summary.json"
    >>> write_json(path, {"epochs": 3})
    >>> json.loads(path.read_text())
    {'epochs': 3}
    """
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
