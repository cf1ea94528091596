"""Checkpoints of a run: whole or not there, verified before use, and never executed as code."""

import hashlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from twophase.errors import DataError
from twophase.experiments.files import clear_unfinished, write_atomically

_MAGIC = b"twophase checkpoint 1\n"
_KEPT = 2  # the newest, and the one before it in case that is damaged

log = logging.getLogger("twophase")


def save(folder: Path, epoch: int, state: dict) -> Path:
    """Write a state as the newest checkpoint of a run, and drop all but the one before it.

    What there is of later epochs could not be used, or the run would be there by now; it goes, too.
    The state after `epoch` epochs holds tensors, numbers, strings, lists and dicts of them. Where
    it cannot be written (`OSError`), older ones are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{epoch:06d}.ckpt"
    write(path, state)
    numbered = _numbered(folder)
    last = numbered.index(path) + 1
    for other in numbered[: max(0, last - _KEPT)] + numbered[last:]:
        other.unlink(missing_ok=True)
    return path


def write(path: Path, state: dict) -> None:
    """Write a state as for `save` to a file of its own, which that does not drop."""
    content = io.BytesIO()
    torch.save(state, content)
    payload = content.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically(path, _MAGIC + digest + b"\n" + payload)


def load(path: Path) -> dict:
    """Read a state that `save` or `write` made, its tensors to the CPU, wherever they were.

    `DataError` where the file is missing, of another version, truncated or altered.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"checkpoint {path}: {error.strerror}") from error
    digest, separator, payload = content.removeprefix(_MAGIC).partition(b"\n")
    whole = hashlib.sha256(payload).hexdigest().encode() == digest
    if not content.startswith(_MAGIC) or not separator or not whole:
        raise DataError(f"checkpoint {path} is damaged or of another version; delete it")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a forged content provokes
        reason = str(error).partition("\n")[0]
        raise DataError(f"checkpoint {path} holds no state ({reason}); delete it") from error
    if not isinstance(state, dict):
        raise DataError(f"checkpoint {path} holds no state; delete it")
    return state


def whole(folder: Path) -> Iterator[tuple[Path, dict]]:
    """The states that are whole, the newest first; a damaged one is named in the log."""
    for path in reversed(_numbered(folder)):
        try:
            yield path, load(path)
        except DataError as error:
            log.warning("%s; it is passed over", error)


def clear(folder: Path) -> None:
    """Drop the checkpoints of a finished run, and their folder if nothing else is in it."""
    for path in _numbered(folder):
        path.unlink(missing_ok=True)
    clear_unfinished(folder, age=0)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _numbered(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.glob("epoch-*.ckpt") if re.fullmatch(r"epoch-\d+\.ckpt", p.name)
    )
