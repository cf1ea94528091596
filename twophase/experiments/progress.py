"""Progress of a loop in plain text: a bar for a person, a line of JSON for the report's runner."""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from pathlib import Path
from shutil import get_terminal_size
from tempfile import TemporaryDirectory
from typing import Any, TextIO, TypeVar

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
    """How far a loop has come: `done` of `total` steps (None: unknown) after `elapsed` seconds."""

    label: str  # in a word or two what the loop does
    done: int
    total: int | None
    elapsed: float

    def __str__(self) -> str:
        return f"{self.label or 'step'} {self.done}" + (f"/{self.total}" if self.total else "")

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the pace so far; None where that is not known."""
        if self.total is None or self.done == 0:
            return None
        return self.elapsed / self.done * max(self.total - self.done, 0)


def track(items: Iterable[Item], total: int | None = None, label: str = "") -> Iterator[Item]:
    """Yield the items and show how far the loop over them has come.

    In a terminal and in a notebook it is tqdm's text bar on stderr with the time left, elsewhere
    nothing. Where the environment variable `TWOPHASE_PROGRESS` names a file, nothing is printed
    and the file holds the current `Progress` as a line of JSON, renewed at most five times a
    second. `total` is by default `len(items)` where it has a length.
    """
    if path := os.environ.get(PROGRESS_VARIABLE):
        yield from _FileBar(Path(path), items, total=total, desc=label)
    else:
        # the processes of a pool would write over each other's bars
        terminal = sys.stderr.isatty() and parent_process() is None
        silent = not (terminal or _in_notebook())
        yield from tqdm(items, label or None, total, disable=silent, dynamic_ncols=terminal)


def read_progress(path: Path) -> Progress | None:
    """What a loop wrote to the progress file last; None where there is nothing yet."""
    try:
        return Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _in_notebook() -> bool:
    # without IPython in memory there is no notebook, and importing it would cost half a second
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


class _FileBar(tqdm):
    """A bar that keeps the progress file up to date and prints nothing."""

    def __init__(self, path: Path, items: Iterable, **options: Any):
        self._path = path
        options |= {"mininterval": _SECONDS_BETWEEN_WRITES, "miniters": 1, "file": io.StringIO()}
        super().__init__(items, **options)

    def display(self, *_: Any, **__: Any) -> None:
        state = Progress(self.desc, self.n, self.total, self.format_dict["elapsed"])
        unfinished = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        # a full disk or a vanished folder must not end the training whose progress this is
        with suppress(OSError):
            unfinished.write_text(json.dumps(asdict(state)) + "\n")
            os.replace(unfinished, self._path)


@contextmanager
def show_status(status: Callable[[], str], stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Show a changing status while the block runs; yields a function that prints a lasting line.

    In a terminal one line is rewritten twice a second; elsewhere the status is printed every 20
    seconds. `status` is called, from another thread, for the line to show.
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


@contextmanager
def silenced() -> Iterator[None]:
    """No loop shows a bar within, neither here nor in processes that are started here."""
    with TemporaryDirectory() as folder:
        given = os.environ.get(PROGRESS_VARIABLE)
        os.environ[PROGRESS_VARIABLE] = given or str(Path(folder) / "progress.json")
        try:
            yield
        finally:
            del os.environ[PROGRESS_VARIABLE]
            if given is not None:
                os.environ[PROGRESS_VARIABLE] = given


def duration(seconds: float) -> str:
    """Seconds for a reader, such as "1 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Tally:
    """How many of `total` runs are done, as rows of a table: one changes, one stays for each run.

    The time left is that of the runs left at the pace of those that have ended since `on_running`
    was called first, at `began`; those that were done before do not count for the pace.
    """

    _COLUMNS = ("time", "done", "running", "failed", "left", "time left")

    def __init__(self, total: int):
        self._total, self._done, self._failed, self._running = total, 0, 0, 0
        self._before, self.began = 0, 0.0

    def on_running(self, running: int) -> None:
        """Note how many jobs are being computed; the first call is the beginning."""
        if not self.began:
            self._before, self.began = self._done + self._failed, time.monotonic()
        self._running = running

    def count(self, failed: bool) -> None:
        """Note the end of a run."""
        self._failed += failed
        self._done += not failed

    def __str__(self) -> str:
        elapsed = time.monotonic() - self.began if self.began else 0.0
        ended = self._done + self._failed
        left = self._total - ended
        pace = elapsed / (ended - self._before) if ended > self._before else None
        time_left = "not known" if pace is None and left else duration((pace or 0) * left)
        counts = (self._done, self._running, self._failed, left)
        return self._row([duration(elapsed), *map(str, counts), time_left])

    @contextmanager
    def shown(self, stream: TextIO) -> Iterator[Callable[[str], None]]:
        """Show the table while the block runs; yields a function that adds a row with a remark."""
        stream.write(self._row(self._COLUMNS) + "  run\n")
        with show_status(lambda: str(self), stream) as write:

            def say(remark: str) -> None:
                # a long list of what was there before says nothing
                if self.began:
                    write(f"{self}  {remark}")

            yield say
            write(str(self))

    def _row(self, cells: Sequence[str]) -> str:
        widths = (11, 6, 8, 7, 6, 12)
        return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
