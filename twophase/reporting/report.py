"""Runs every numbered notebook and leaves one HTML report for each, with an index."""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import papermill
from filelock import FileLock
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from twophase.device import device_name, resolve_device
from twophase.errors import InputError, TwoPhaseError, check_choice
from twophase.experiments import provenance
from twophase.experiments.files import project_folder, write_atomically, write_json
from twophase.experiments.progress import PROGRESS_VARIABLE, read_progress, show_status
from twophase.reporting.html import contents_html, opening, page_html
from twophase.reporting.notebook import assigned, resolve_preset

_RECORDS = "index.json"
# in the temporary folder of a notebook
_UNFINISHED, _LOG, _PROGRESS = "notebook.ipynb", "kernel.log", "progress.json"


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

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class _Record:
    """A notebook's last good report, and a failure since, with `when`, `preset` and `error`."""

    finished: str = ""
    preset: str = ""
    seconds: float = 0.0
    failure: dict[str, str] | None = None

    @property
    def took(self) -> str:
        return _duration(self.seconds)


@dataclass(frozen=True)
class _Job:
    """What one call of `build` asks for; `device` is in words, `sources` are for the index."""

    folder: Path
    preset: str
    parameters: Mapping[str, object]
    device: str
    sources: Sequence[_Source]

    def injected(self, source: _Source) -> dict[str, object]:
        given = {name: v for name, v in self.parameters.items() if name in source.parameters}
        return {"preset": self.preset} | given

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
        project: the folder with `notebooks`; by default this source tree, else the working folder.

    Raises:
        InputError, OSError: an argument is not allowed, `out` cannot be written to; nothing ran.
        ReportError: at least one notebook failed; the others have run.
    """
    preset = resolve_preset(preset)
    where = device_name(resolve_device(device))
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

    # its log repeats, in more lines, what the status and the index say
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    job = _Job(folder, preset, wanted, where, sources)
    errors = [_run(job, chosen, position) for position in range(len(chosen))]
    failed = [f"{s.name}, {error}" for s, error in zip(chosen, errors, strict=True) if error]
    if failed:
        raise ReportError(f"{len(failed)} of {len(chosen)} notebooks failed: {'; '.join(failed)}")
    return folder / "index.html"


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
    return _Source(path, *opening(notebook, path.stem), declared, expected)


def _choose(sources: list[_Source], names: Sequence[str] | None) -> list[_Source]:
    if names is None:
        return sources
    known = [key for source in sources for key in (source.name, source.name[:2])]
    wanted = {check_choice("notebook", name.zfill(2), known) for name in names}
    return [source for source in sources if wanted & {source.name, source.name[:2]}]


def _run(job: _Job, chosen: Sequence[_Source], position: int) -> str | None:
    """Run one notebook and put its page in place; return what went wrong, in one line."""
    source = chosen[position]
    label = f"[{position + 1}/{len(chosen)}] {source.name}"
    failed = job.folder / "notebooks" / f"{source.name}.failed.ipynb"
    expected = [job.expected_seconds(source) for source in chosen[position:]]
    began = time.monotonic()
    with TemporaryDirectory(prefix=".unfinished-", dir=job.folder) as name:
        scratch = Path(name)
        status = partial(_status, label, began, expected, scratch / _PROGRESS)
        with show_status(status, sys.stderr) as say:
            try:
                notebook = _execute(job, source, scratch)
                done = _Record(_now(), job.preset, time.monotonic() - began)
                _publish(job, source, done, notebook)
            # one notebook's trouble, whatever it is, must not cost the reports of the others
            except Exception as error:
                reason = _one_line(error, scratch / _LOG)
                if (scratch / _UNFINISHED).exists():
                    os.replace(scratch / _UNFINISHED, failed)
                failure = {"when": _now(), "preset": job.preset, "error": reason}
                _update_index(job, source, failure=failure)
                say(f"{label} failed, {reason}")
                return reason
            failed.unlink(missing_ok=True)
            _update_index(job, source, **asdict(done))
            say(f"{label}: done in {done.took}")
            return None


def _execute(job: _Job, source: _Source, scratch: Path) -> NotebookNode:
    environment = {
        # torch's waiting threads shall sleep: spinning ones slow a busy machine down many times
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        PROGRESS_VARIABLE: str(scratch / _PROGRESS),
        # a person's own choice of windows for figures is of no use here
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    with (scratch / _LOG).open("w") as log:
        launch = {"env": environment, "cwd": source.path.parent, "stdout": log, "stderr": log}
        return papermill.execute_notebook(
            source.path,
            scratch / _UNFINISHED,
            parameters=job.injected(source),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            # a busy machine with a cold disk can take minutes to import what a kernel needs
            start_timeout=300,
            shutdown_kernel="immediate",
            kernel_manager_class=_kernel_manager(launch),
        )


def _kernel_manager(launch: Mapping[str, object]) -> type[AsyncKernelManager]:
    """A manager for kernels of this very interpreter, whatever kernels the user has installed."""

    class Manager(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict())

        async def start_kernel(self, **options: object) -> None:
            await super().start_kernel(**options, **launch)

    return Manager


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
    page = page_html(notebook, source.title, source.path.parent, summary, facts)
    for part in (notebook, *notebook.cells):
        # names of temporary files, and times that differ from run to run
        part.metadata.pop("papermill", None)
    executed = nbformat.writes(notebook) + "\n"
    write_atomically(job.folder / f"{source.name}.html", page)
    write_atomically(job.folder / "notebooks" / source.path.name, executed)


def _one_line(error: Exception, log: Path) -> str:
    if isinstance(error, PapermillExecutionError):
        cell = error.source.strip().partition("\n")[0]
        parts = [f"cell [{error.exec_count}] {cell!r}", error.ename, error.evalue]
    else:
        # the last line that the kernel wrote to its own stderr, but for its remarks on the network
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        last = [line for line in lines if line.strip() and "[IPKernelApp]" not in line][-1:]
        parts = [type(error).__name__, str(error), *last]
    return ": ".join(part.strip().partition("\n")[0] for part in parts if part.strip())


def _load_records(folder: Path) -> dict[str, _Record]:
    try:
        stored = json.loads((folder / _RECORDS).read_text(encoding="utf-8"))
        return {name: _Record(**fields) for name, fields in stored.items()}
    # without a readable one the index starts anew; the pages are there all the same
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _update_index(job: _Job, source: _Source, **changes: object) -> None:
    """Note what became of a notebook; other calls of `build` may write to the same folder."""
    with FileLock(job.folder / ".lock"):
        records = _load_records(job.folder)
        records[source.name] = replace(records.get(source.name, _Record()), **changes)
        stored = {name: asdict(record) for name, record in records.items()}
        write_json(job.folder / _RECORDS, stored)
        rows = [(each, records.get(each.name, _Record())) for each in job.sources]
        write_atomically(job.folder / "index.html", contents_html(rows, _now()))


def _status(label: str, began: float, expected: Sequence[float | None], progress: Path) -> str:
    """The line on the terminal; `expected` are the notebook's seconds and those of the rest."""
    elapsed = time.monotonic() - began
    state = read_progress(progress)
    step_left = state.left if state else None
    words = [label, *([str(state)] if state else []), f"{_duration(elapsed)} so far"]
    if None not in expected:
        left = max(expected[0] - elapsed, step_left or 0.0) + sum(expected[1:])
        words.append(f"about {_duration(left)} left")
    elif step_left is not None:
        words.append(f"about {_duration(step_left)} left in this step")
    return " · ".join(words)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
