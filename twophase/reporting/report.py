"""Runs every numbered notebook and leaves one HTML report for each, with an index."""

import hashlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from filelock import FileLock
from nbformat import NotebookNode

from twophase.device import device_name, resolve_device
from twophase.errors import InputError, TwoPhaseError, check_choice, check_integer
from twophase.experiments import provenance
from twophase.experiments.files import (
    clear_unfinished,
    project_folder,
    read_json,
    unfinished,
    write_atomically,
    write_json,
)
from twophase.experiments.progress import duration, read_progress, show_status
from twophase.reporting.execution import PROGRESS, UNFINISHED, Kernels, one_line
from twophase.reporting.html import contents_html, opening, page_html
from twophase.reporting.notebook import assigned, resolve_preset

_RECORDS = "index.json"
# more of them wait for memory rather than for a core
_MOST_JOBS = 4
_CORES = os.cpu_count() or 1


class ReportError(TwoPhaseError):
    """At least one notebook failed; the message says which, in which cell, and why."""


@dataclass(frozen=True)
class _Source:
    """A notebook that can be run; `expected` seconds by preset are from its own metadata."""

    path: Path
    title: str
    question: str
    parameters: frozenset[str]
    expected: Mapping[str, float]
    page: str = ""  # the page's name where it is not the notebook's

    @property
    def name(self) -> str:
        return self.page or self.path.stem


@dataclass(frozen=True)
class _Record:
    """A notebook's last good report, and a failure since, with `when`, `preset` and `error`.

    Pages of a sweep, which no folder of notebooks lists, have title and question here.
    """

    finished: str = ""
    preset: str = ""
    seconds: float = 0.0
    failure: dict[str, str] | None = None
    title: str = ""
    question: str = ""

    @property
    def took(self) -> str:
        return duration(self.seconds)


@dataclass(frozen=True)
class _Job:
    """What one call of `build` asks for.

    `device` is in words, `threads` are those of each kernel (None: as many as torch takes), and
    `sources` are all notebooks, for the index.
    """

    folder: Path
    preset: str
    parameters: Mapping[str, object]
    device: str
    threads: int | None
    sources: Sequence[_Source]

    def injected(self, source: _Source) -> dict[str, object]:
        given = {name: v for name, v in self.parameters.items() if name in source.parameters}
        return {"preset": self.preset} | given

    def failed(self, source: _Source) -> Path:
        return self.folder / "notebooks" / f"{source.name}.failed.ipynb"

    def expected_seconds(self, source: _Source) -> float | None:
        record = _load_records(self.folder).get(source.name, _Record())
        known = record.finished and record.preset == self.preset
        return record.seconds if known else source.expected.get(self.preset)


def build(
    preset: str = "quick",
    out: str | os.PathLike[str] | None = None,
    notebooks: Sequence[str] | None = None,
    parameters: Mapping[str, object] | None = None,
    device: str = "auto",
    jobs: int | None = None,
    project: str | os.PathLike[str] | None = None,
) -> Path:
    """Execute the numbered notebooks, leave a page for each and an index; return the index.

    A notebook runs in this Python environment, in its own folder. Its page, the executed notebook
    (in `out/notebooks`) and the index are replaced when they are whole. Where a notebook fails its
    old page stays, the index says so, and the others still run. Progress goes to stderr; the time
    left is known where a notebook has run with this preset before, or gives it in its metadata:
    `"twophase": {"seconds": {"quick": 90}}`.

    Args:
        preset: see `twophase.reporting.notebook.resolve_preset`.
        out: the folder for the reports; by default `reports` in the project's folder.
        notebooks: which to run, by number ("03") or name ("03-images"); by default all.
        parameters: other parameters to set, each in the notebooks that have it.
        device: auto, cpu or cuda; set in the notebooks that have such a parameter.
        jobs: how many notebooks run at a time, with an equal share of the cores each; by default
            up to 4 on a CPU, as many as it has cores, and 1 on a GPU, which they would share.
        project: the folder with `notebooks`; by default this source tree, else the working folder.

    Raises:
        InputError, OSError: an argument is not allowed, `out` cannot be written to; nothing ran.
        ReportError: at least one notebook failed; the others have run.
    """
    preset = resolve_preset(preset)
    place = resolve_device(device)
    if jobs is None:
        jobs = min(_CORES, _MOST_JOBS) if place.type == "cpu" else 1
    check_integer("jobs", jobs, 1)
    root = Path(project or project_folder() or Path()).resolve()
    sources = [_read(path) for path in sorted(root.glob("notebooks/[0-9][0-9]-*.ipynb"))]
    if not sources:
        allowed = "a folder with notebooks/NN-name.ipynb (run it in the source tree)"
        raise InputError("project", str(root), allowed)
    chosen = _choose(sources, notebooks)
    wanted = dict(parameters or {})
    known = sorted(frozenset().union(*(source.parameters for source in chosen)) - {"preset"})
    for name in wanted:
        check_choice("parameter", name, known)
    if device != "auto":
        wanted["device"] = device
    folder = (root / "reports" if out is None else Path(out)).resolve()
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    clear_unfinished(folder)

    # its log repeats, in more lines, what the status and the index say
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    jobs = min(jobs, len(chosen))
    # several kernels share the cores; a single one takes what torch takes
    threads = max(1, _CORES // jobs) if jobs > 1 else None
    # a person's own choice stands
    threads = _own_threads() or threads
    job = _Job(
        folder, preset, wanted, provenance.words(device_name(place, threads)), threads, sources
    )
    failed = _Build(job, chosen, jobs).run()
    if failed:
        reasons = "; ".join(f"{name}, {error}" for name, error in failed.items())
        raise ReportError(f"{len(failed)} of {len(chosen)} notebooks failed: {reasons}")
    return folder / "index.html"


@dataclass(frozen=True)
class Page:
    """A notebook with parameters of its own, whose page in `out` stands beside those of others.

    `parameters` are JSON. The name tells apart notebooks as they are now, presets and parameters.
    """

    path: Path
    preset: str
    parameters: str
    swept: str  # those that differ from page to page, in words
    out: Path
    device: str

    @cached_property
    def name(self) -> str:
        code = [cell.source for cell in nbformat.read(self.path, as_version=4).cells]
        content = json.dumps([*code, self.preset, self.parameters]).encode()
        return f"{self.path.stem}-{hashlib.sha256(content).hexdigest()[:8]}"

    def seconds(self) -> float | None:
        """How long it took, where the page is there."""
        record = _load_records(self.out).get(self.name, _Record())
        there = record.finished and not record.failure and (self.out / f"{self.name}.html").exists()
        return record.seconds if there else None


def pages(spec: Any, out: Path, device: str = "auto") -> list[Page]:
    """The pages of a sweep of a notebook, see `twophase.experiments.sweep.Spec`.

    `InputError` for a notebook that cannot be read and a parameter that it does not have.
    """
    source = _read(spec.notebook)
    for name in (*spec.shared, *spec.swept):
        check_choice("parameter", name, sorted(source.parameters - {"preset"}))
    resolve_device(device)
    more = {"device": device} if "device" in source.parameters and device != "auto" else {}
    preset, found = resolve_preset(spec.preset or "auto"), []
    for point in spec.points():
        words = ", ".join(f"`{name} = {value}`" for name, value in point.items())
        given = json.dumps(more | dict(spec.shared) | point)
        found.append(Page(spec.notebook, preset, given, words, out.resolve(), device))
    return found


def build_page(page: Page) -> float:
    """Execute a notebook, put its page and its row in the index; return the seconds it took.

    It waits for another process that makes the same page. `ReportError` where it fails; the index
    says so, and an older page stays.
    """
    (page.out / "notebooks").mkdir(parents=True, exist_ok=True)
    with FileLock(page.out / "notebooks" / f".{page.name}.lock"):
        return page.seconds() or _build_page(page)


def _build_page(page: Page) -> float:
    source = _read(page.path)
    source = replace(source, title=f"{source.title} ({page.swept})", page=page.name)
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    place, threads = resolve_device(page.device), _own_threads()
    words = provenance.words(device_name(place, threads))
    job = _Job(page.out, page.preset, json.loads(page.parameters), words, threads, [source])
    began = time.monotonic()
    error = _Build(job, [source], 1).publish(source)
    if error:
        raise ReportError(error)
    return time.monotonic() - began


def _read(path: Path) -> _Source:
    try:
        notebook = nbformat.read(path, as_version=4)
        tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
        declared = frozenset(name for cell in tagged for name in assigned(cell.source))
    except Exception as error:  # nbformat lets through whatever a malformed file provokes
        raise InputError("notebook", path.name, "a Jupyter notebook that can be read") from error
    if "preset" not in declared:
        allowed = "one with a cell tagged 'parameters' that sets preset"
        raise InputError("notebook", path.name, allowed)
    expected = notebook.metadata.get("twophase", {}).get("seconds", {})
    title, question = opening(notebook, path.stem)
    # the number is what other notebooks name it by
    title = f"{path.stem[:2]} · {title}"
    return _Source(path, title, question, declared, expected)


def _own_threads() -> int | None:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else None


def _choose(sources: list[_Source], names: Sequence[str] | None) -> list[_Source]:
    if names is None:
        return sources
    known = [key for source in sources for key in (source.name, source.name[:2])]
    wanted = {check_choice("notebook", name.zfill(2), known) for name in names}
    return [source for source in sources if wanted & {source.name, source.name[:2]}]


class _Build:
    """The notebooks of one call of `build`, `jobs` at a time, and how far they are."""

    def __init__(self, job: _Job, chosen: Sequence[_Source], jobs: int):
        self._job, self._jobs = job, jobs
        # several kernels share the cores; a single one takes what torch takes
        self._kernels = Kernels(job.threads)
        self._expected = {source.name: job.expected_seconds(source) for source in chosen}
        self._running: dict[str, tuple[float, Path]] = {}  # since when, and its progress file
        self._waiting = list(self._expected)
        self._began = time.monotonic()
        # the longest first, so that none runs alone at the end
        self._order = sorted(chosen, key=lambda source: -(self._expected[source.name] or 0.0))

    def run(self) -> dict[str, str]:
        """Run them all; return what went wrong with which, in one line each."""
        with show_status(self.status, sys.stderr) as say, ThreadPoolExecutor(self._jobs) as pool:
            try:
                errors = list(pool.map(partial(self.publish, say=say), self._order))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._kernels.stop()
                raise
        by_name = {source.name: error for source, error in zip(self._order, errors, strict=True)}
        return {name: by_name[name] for name in self._expected if by_name[name]}

    def publish(
        self, source: _Source, say: Callable[[str], None] = lambda text: None
    ) -> str | None:
        """Run one notebook and put its page in place; return what went wrong, in one line."""
        job, began, error = self._job, time.monotonic(), None
        with TemporaryDirectory(unfinished(), ".", job.folder) as folder:
            scratch = Path(folder)
            self._running[source.name] = began, scratch / PROGRESS
            self._waiting.remove(source.name)
            try:
                notebook = self._kernels.execute(source.path, job.injected(source), scratch)
                done = _Record(_now(), job.preset, time.monotonic() - began)
                _publish(job, source, done, notebook)
                job.failed(source).unlink(missing_ok=True)
                _update_index(job, source, **asdict(done))
            # one notebook's trouble, whatever it is, must not cost the reports of the others
            except Exception as caught:
                if self._kernels.stopped:
                    return None
                error = one_line(caught, scratch)
                _keep_failure(job, source, error, scratch)
        del self._running[source.name]
        finished = len(self._expected) - len(self._waiting) - len(self._running)
        became = f" failed, {error}" if error else f": done in {done.took}"
        say(f"[{finished}/{len(self._expected)}] {source.name}{became}")
        return error

    def status(self) -> str:
        """The line on the terminal: the notebooks that run, where they are, the time left."""
        now = time.monotonic()
        left = [self._expected[name] for name in list(self._waiting)]
        words, step_lefts = [], []
        for name, (began, file) in list(self._running.items()):
            state = read_progress(file)
            step_lefts.append(state and state.left)
            words.append(f"{name} ({state})" if state else name)
            expected = self._expected[name]
            left.append(expected and max(expected - (now - began), step_lefts[-1] or 0.0))
        finished = len(self._expected) - len(self._waiting) - len(words)
        words = [f"{finished} of {len(self._expected)} done", *words]
        words.append(f"{duration(now - self._began)} so far")
        if None not in left:
            longest = max(left, default=0.0)
            words.append(f"about {duration(max(longest, sum(left) / self._jobs))} left")
        elif step_lefts and None not in step_lefts:
            words.append(f"about {duration(max(step_lefts))} left in this step")
        return " · ".join(words)


def _keep_failure(job: _Job, source: _Source, error: str, scratch: Path) -> None:
    if (scratch / UNFINISHED).exists():
        os.replace(scratch / UNFINISHED, job.failed(source))
    failure = {"when": _now(), "preset": job.preset, "error": error}
    _update_index(job, source, failure=failure)


def _publish(job: _Job, source: _Source, record: _Record, notebook: NotebookNode) -> None:
    summary = f"{record.finished} · preset {record.preset} · {record.took} · {job.device}"
    injected = ", ".join(f"{name} = {value}" for name, value in job.injected(source).items())
    facts = {
        "Notebook": f"{source.path.name}, with {injected}",
        "Device": job.device,
        "System": platform.platform(),
        "Versions": ", ".join(" ".join(pair) for pair in provenance.versions().items()),
        "Revision": provenance.git_revision() or "not known",
    }
    links = {each.path.stem[:2]: f"{each.name}.html" for each in job.sources if not each.page}
    page = page_html(notebook, source.title, source.path.parent, summary, facts, links)
    for part in (notebook, *notebook.cells):
        # names of temporary files, and times that differ from run to run
        part.metadata.pop("papermill", None)
    executed = nbformat.writes(notebook) + "\n"
    write_atomically(job.folder / f"{source.name}.html", page)
    write_atomically(job.folder / "notebooks" / f"{source.name}.ipynb", executed)


def _load_records(folder: Path) -> dict[str, _Record]:
    """The records of the index; those that cannot be read start anew, their pages are there."""
    stored, found = read_json(folder / _RECORDS), {}
    for name, fields in stored.items():
        # a failure is one of texts, seconds are a number, and finite
        with suppress(TypeError, ValueError, OverflowError, AttributeError, KeyError):
            record = _Record(**fields)
            failure = record.failure or {"when": "", "preset": "", "error": ""}
            texts = [record.finished, record.preset, *(failure[n] for n in ("when", "preset"))]
            if all(isinstance(text, str) for text in texts) and record.took:
                found[name] = record
    return found


def _update_index(job: _Job, source: _Source, **changes: object) -> None:
    """Note what became of a notebook; other calls of `build` may write to the same folder."""
    if source.page:
        changes |= {"title": source.title, "question": source.question}
    with FileLock(job.folder / ".lock"):
        records = _load_records(job.folder)
        records[source.name] = replace(records.get(source.name, _Record()), **changes)
        stored = {name: asdict(record) for name, record in records.items()}
        write_json(job.folder / _RECORDS, stored)
        listed = {each.name: each for each in job.sources if not each.page}
        for name, record in records.items():
            if record.title:
                path = Path(f"{name}.ipynb")
                listed[name] = _Source(path, record.title, record.question, frozenset(), {})
        rows = [(each, records.get(name, _Record())) for name, each in listed.items()]
        write_atomically(job.folder / "index.html", contents_html(rows, _now()))


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
