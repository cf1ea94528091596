"""Progress of a loop in plain text: a bar for a person, a line of JSON for the report's runner."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Protocol, TextIO, TypeVar

# the plain bar, not tqdm.auto: widgets are lost when a notebook is exported
from tqdm import tqdm

PROGRESS_VARIABLE = "TWOPHASE_PROGRESS"
# often enough to look alive, seldom enough to cost nothing
_SECONDS_BETWEEN_WRITES = 0.2
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_LINES = 20.0
# back to the line's beginning and clear it
_REWRITE = "\r\x1b[2K"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Progress:
    """How far a loop has come.

    Attributes:
        label: what the loop does, in a word or two.
        done: steps that are finished.
        total: steps in all; None where that is not known.
        elapsed: seconds since the loop began.

    >>> Progress("adam", done=10, total=40, elapsed=5.0).left
    15.0
    """

    label: str
    done: int
    total: int | None
    elapsed: float

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the pace so far; None where that is not known.

        >>> Progress("adam", done=0, total=40, elapsed=0.0).left is None
        True
        """
        if self.total is None or self.done == 0:
            return None
        return self.elapsed / self.done * max(self.total - self.done, 0)


def track(items: Iterable[Item], total: int | None = None, label: str = "") -> Iterator[Item]:
    """Yield the items and show how far the loop over them has come.

    In a terminal and in a notebook it is a text bar on stderr with the time left, elsewhere
    nothing. Where the environment variable `TWOPHASE_PROGRESS` names a file, nothing is printed
    and the file holds the current `Progress` as a line of JSON, renewed at most five times a
    second.

    Args:
        items: what to loop over.
        total: the number of items; by default `len(items)` where it has a length.
        label: what the loop does, in a word or two.

    Yields:
        The items, unchanged.

    >>> sum(track([1, 2, 3], label="adding"))
    6
    """
    if total is None:
        with suppress(TypeError):
            total = len(items)
    with closing(_reporter(label, total)) as reporter:
        for item in items:
            yield item
            reporter.update()


def read_progress(path: Path) -> Progress | None:
    """Return what a loop wrote to the progress file last, None where there is nothing yet.

    Args:
        path: the file that `TWOPHASE_PROGRESS` names.

    >>> read_progress(Path("not-there.json")) is None
    True
    """
    try:
        return Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


class _Reporter(Protocol):
    def update(self) -> object: ...
    def close(self) -> None: ...


def _reporter(label: str, total: int | None) -> _Reporter:
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        return _File(Path(path), label, total)
    silent = not (sys.stderr.isatty() or _in_notebook())
    return tqdm(total=total, desc=label or None, disable=silent, dynamic_ncols=sys.stderr.isatty())


def _in_notebook() -> bool:
    # without IPython in memory there is no notebook, and importing it would cost half a second
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


class _File:
    """Keeps the progress file up to date."""

    def __init__(self, path: Path, label: str, total: int | None):
        self._path = path
        self._began = time.monotonic()
        self._last_write = self._began
        self._state = Progress(label, 0, total, 0.0)
        _replace(path, self._state)

    def update(self) -> None:
        now = time.monotonic()
        state = self._state
        self._state = Progress(state.label, state.done + 1, state.total, now - self._began)
        if now - self._last_write >= _SECONDS_BETWEEN_WRITES:
            _replace(self._path, self._state)
            self._last_write = now

    def close(self) -> None:
        _replace(self._path, self._state)


def _replace(path: Path, state: Progress) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    # a full disk or a vanished folder must not end the training whose progress this is
    with suppress(OSError):
        unfinished.write_text(json.dumps(asdict(state)) + "\n")
        os.replace(unfinished, path)


@contextmanager
def show_status(status: Callable[[], str], stream: TextIO) -> Iterator[Callable[[str], None]]:
    r"""Show a changing status while the block runs; yields a function that prints a lasting line.

    In a terminal one line is rewritten twice a second; elsewhere the status is printed every 20
    seconds.

    Args:
        status: called, from another thread, for the text to show: one line.
        stream: where to write.

    >>> import io
    >>> stream = io.StringIO()
    >>> with show_status(lambda: "half way", stream) as say:
    ...     say("finished")
    >>> stream.getvalue()
    'half way\nfinished\n'
    """
    terminal = stream.isatty()
    ended = threading.Event()
    lock = threading.Lock()

    def write(text: str) -> None:
        # a closed pipe must not end the work whose progress this is
        with lock, suppress(OSError, ValueError):
            stream.write(text)
            stream.flush()

    def show() -> None:
        line = status()
        write(_REWRITE + line[: get_terminal_size().columns - 1] if terminal else line + "\n")

    def repeat() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS if terminal else _SECONDS_BETWEEN_LINES):
            show()

    show()
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield lambda text: write((_REWRITE if terminal else "") + text + "\n")
    finally:
        ended.set()
        thread.join()
        if terminal:
            write(_REWRITE)
