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
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from twophase.device import device_name, resolve_device
from twophase.errors import InputError, TwoPhaseError, check_choice
from twophase.experiments import provenance
from twophase.experiments.files import project_folder, write_atomically, write_json
from twophase.experiments.progress import PROGRESS_VARIABLE, Progress, read_progress, show_status
from twophase.reporting.html import contents_html, opening, page_html
from twophase.reporting.notebook import assignments, resolve_preset

# a busy machine with a cold disk can take minutes to import what a kernel needs
_KERNEL_START_SECONDS = 300
_RECORDS = "index.json"


class ReportError(TwoPhaseError):
    """At least one notebook failed; the message says which, in which cell, and why.

    >>> issubclass(ReportError, TwoPhaseError)
    True
    """


def build(
    preset: str = "quick",
    out: str | os.PathLike[str] | None = None,
    notebooks: Sequence[str] | None = None,
    parameters: Mapping[str, object] | None = None,
    device: str = "auto",
    project: str | os.PathLike[str] | None = None,
) -> Path:
    """Execute the numbered notebooks and leave `index.html` and a page for each.

    A notebook runs in this Python environment, in its own folder, into a temporary file. Its
    page, the executed notebook (in `out/notebooks`) and the index are replaced in one step when
    they are whole. Where a notebook fails its old page stays, the index says so, and the others
    still run. Progress goes to stderr; the time left is known where a notebook has run with this
    preset before, or gives it in its metadata: `"twophase": {"seconds": {"quick": 90}}`.

    Args:
        preset: smoke, quick, paper, or auto (see `twophase.reporting.notebook.resolve_preset`).
        out: the folder for the reports; by default `reports` in the project's folder.
        notebooks: which to run, by number ("03") or name ("03-images"); by default all.
        parameters: other parameters to set, each in the notebooks that have it.
        device: auto, cpu or cuda; set in the notebooks that have such a parameter.
        project: the folder that holds `notebooks`; by default the source tree that this package
            lies in, and without one the working directory.

    Returns:
        The path of the index.

    Raises:
        InputError: the preset, a notebook, a parameter, the device or a folder is not allowed;
            nothing has run.
        ReportError: at least one notebook failed; the others have run.

    >>> build(preset="fast")
    Traceback (most recent call last):
    ...
    twophase.errors.InputError: preset: 'fast' is not allowed; use one of auto, smoke, quick, paper
    """
    preset = resolve_preset(preset)
    resolve_device(device)
    root = _project_folder(project)
    sources = [_read(path) for path in _numbered_notebooks(root / "notebooks")]
    chosen = _choose(sources, notebooks)
    wanted = dict(parameters or {})
    _check_parameters(chosen, wanted)
    folder = _output_folder(root / "reports" if out is None else Path(out))

    # its log repeats, in more lines, what the status and the index say
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    job = _Job(folder, preset, wanted, device)
    records = _load_records(folder)
    with TemporaryDirectory(prefix=".unfinished-", dir=folder) as scratch:
        for number, source in enumerate(chosen, 1):
            task = _Task(
                source.name,
                position=f"[{number}/{len(chosen)}]",
                began=time.monotonic(),
                expected=[_expected_seconds(preset, s, records) for s in chosen[number - 1 :]],
            )
            record = records.get(source.name, _Record())
            records[source.name] = _run(job, source, record, task, Path(scratch))
            _write_contents(folder, sources, records)
    _raise_for_failures({source.name: records[source.name].failure for source in chosen})
    return folder / "index.html"


@dataclass(frozen=True)
class _Source:
    """A notebook that can be run."""

    path: Path
    title: str
    question: str
    parameters: frozenset[str]
    # seconds by preset, as the notebook's own metadata gives them for the first run
    expected: Mapping[str, float]

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class _Job:
    """What one call of `build` asks for, the same for all notebooks."""

    folder: Path
    preset: str
    parameters: Mapping[str, object]
    device: str


@dataclass(frozen=True)
class _Failure:
    when: str
    preset: str
    error: str


@dataclass(frozen=True)
class _Record:
    """What the index knows of one notebook: its last good report, and a failure since."""

    finished: str = ""
    preset: str = ""
    seconds: float = 0.0
    failure: _Failure | None = None


@dataclass(frozen=True)
class _Task:
    """The notebook that runs now, for the line on the terminal."""

    name: str
    position: str
    began: float
    # seconds for this notebook and each one after it; None where that is not known
    expected: Sequence[float | None]


# -- before anything runs


def _project_folder(project: str | os.PathLike[str] | None) -> Path:
    if project is not None:
        return Path(project).resolve()
    return project_folder() or Path.cwd()


def _numbered_notebooks(folder: Path) -> list[Path]:
    found = sorted(folder.glob("[0-9][0-9]-*.ipynb"))
    if not found:
        raise InputError(
            "notebooks", str(folder), "a folder with NN-name.ipynb (run it in the source tree)"
        )
    return found


def _read(path: Path) -> _Source:
    try:
        notebook = nbformat.read(path, as_version=4)
        declared = {
            name
            for cell in notebook.cells
            if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", ())
            for name, _ in assignments(cell.source)
        }
    except Exception as error:  # nbformat lets through whatever a malformed file provokes
        raise InputError("notebook", path.name, "a Jupyter notebook that can be read") from error
    if "preset" not in declared:
        raise InputError(
            "notebook", path.name, "one with a cell tagged 'parameters' that sets preset"
        )
    about = opening(notebook, path.stem)
    expected = notebook.metadata.get("twophase", {}).get("seconds", {})
    return _Source(path, about.title, about.question, frozenset(declared), expected)


def _choose(sources: list[_Source], names: Sequence[str] | None) -> list[_Source]:
    if names is None:
        return sources
    known = [key for source in sources for key in (source.name, source.name[:2])]
    wanted = {check_choice("notebook", name, known) for name in names}
    return [source for source in sources if wanted & {source.name, source.name[:2]}]


def _check_parameters(sources: Sequence[_Source], parameters: Mapping[str, object]) -> None:
    known = sorted(frozenset().union(*(source.parameters for source in sources)) - {"preset"})
    for name in parameters:
        check_choice("parameter", name, known)


def _output_folder(folder: Path) -> Path:
    folder = folder.resolve()
    try:
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", str(folder), f"a folder to write in ({error.strerror})") from error
    return folder


# -- one notebook


def _run(job: _Job, source: _Source, record: _Record, task: _Task, scratch: Path) -> _Record:
    """Run one notebook and put its page in place; what went wrong is data for the index."""
    unfinished = scratch / source.path.name
    progress_file = scratch / f"{source.name}.json"
    failed = job.folder / "notebooks" / f"{source.name}.failed.ipynb"
    with show_status(lambda: _status(task, read_progress(progress_file)), sys.stderr) as say:
        try:
            notebook = _execute(job, source, unfinished, progress_file)
            done = replace(
                record,
                finished=_now(),
                preset=job.preset,
                seconds=time.monotonic() - task.began,
                failure=None,
            )
            _publish(job, source, done, notebook)
        # one notebook's trouble, whatever it is, must not cost the reports of the others
        except Exception as error:
            failure = _Failure(_now(), job.preset, _one_line(error, unfinished.with_suffix(".log")))
            if unfinished.exists():
                os.replace(unfinished, failed)
            say(f"{task.position} {source.name} failed, {failure.error}")
            return replace(record, failure=failure)
        failed.unlink(missing_ok=True)
        say(f"{task.position} {source.name}: done in {_duration(done.seconds)}")
        return done


def _execute(job: _Job, source: _Source, target: Path, progress_file: Path) -> NotebookNode:
    environment = {
        # torch's waiting threads shall sleep: spinning ones slow a busy machine down many times
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        PROGRESS_VARIABLE: str(progress_file),
        # a person's own choice of windows for figures is of no use here
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    with open(target.with_suffix(".log"), "w") as log:
        return papermill.execute_notebook(
            str(source.path),
            str(target),
            parameters=_injected(job, source),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=_KERNEL_START_SECONDS,
            shutdown_kernel="immediate",
            kernel_manager_class=_kernel_manager(
                env=environment, cwd=str(source.path.parent), stdout=log, stderr=log
            ),
        )


def _injected(job: _Job, source: _Source) -> dict[str, object]:
    wanted = {**job.parameters, **({} if job.device == "auto" else {"device": job.device})}
    known = {name: value for name, value in wanted.items() if name in source.parameters}
    return {"preset": job.preset} | known


def _kernel_manager(**launch: object) -> type[AsyncKernelManager]:
    """A manager for kernels of this very interpreter, whatever kernels the user has installed."""

    class Manager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

        async def start_kernel(self, **options: object) -> None:
            await super().start_kernel(**options, **launch)

    return Manager


def _publish(job: _Job, source: _Source, record: _Record, notebook: NotebookNode) -> None:
    device = device_name(resolve_device(job.device))
    took = _duration(record.seconds)
    summary = f"{record.finished} · preset {record.preset} · {took} · {device}"
    facts = {
        "Notebook": f"{source.path.name}, with {_listed(_injected(job, source), ' = ')}",
        "Finished": f"{record.finished}, after {took}",
        "Device": device,
        "System": platform.platform(),
        "Versions": _listed(provenance.versions(), " "),
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
        cell = f"cell [{error.exec_count}] {_first_line(error.source)!r}"
        return f"{cell}: {error.ename}: {_first_line(error.evalue)}".rstrip(": ")
    what = f"{type(error).__name__}: {_first_line(str(error))}".rstrip(": ")
    if isinstance(error, DeadKernelError):
        what = "the kernel died (out of memory?)"
    return ": ".join([what, *_last_words(log)])


def _last_words(log: Path) -> list[str]:
    """The last line that a kernel wrote to its own stderr, but for its remarks on the network."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line.strip() for line in lines if line.strip() and "[IPKernelApp]" not in line][-1:]


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


def _raise_for_failures(failures: Mapping[str, _Failure | None]) -> None:
    failed = {name: failure.error for name, failure in failures.items() if failure}
    if failed:
        listed = "; ".join(f"{name}, {error}" for name, error in failed.items())
        raise ReportError(f"{len(failed)} of {len(failures)} notebooks failed: {listed}")


# -- the index


def _load_records(folder: Path) -> dict[str, _Record]:
    try:
        stored = json.loads((folder / _RECORDS).read_text(encoding="utf-8"))
        return {
            name: _Record(**fields | {"failure": failure and _Failure(**failure)})
            for name, fields in stored.items()
            for failure in [fields["failure"]]
        }
    # without a readable one the index starts anew; the pages are there all the same
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write_contents(
    folder: Path, sources: Sequence[_Source], records: Mapping[str, _Record]
) -> None:
    rows = [
        {
            **asdict(source),
            **asdict(record),
            "name": source.name,
            "duration": _duration(record.seconds) if record.finished else "",
        }
        for source in sources
        for record in [records.get(source.name, _Record())]
    ]
    stored = {name: asdict(record) for name, record in records.items()}
    write_json(folder / _RECORDS, stored)
    write_atomically(folder / "index.html", contents_html(rows, _now()))


# -- words


def _status(task: _Task, progress: Progress | None) -> str:
    elapsed = time.monotonic() - task.began
    parts = [f"{task.position} {task.name}"]
    if progress:
        total = "" if progress.total is None else f"/{progress.total}"
        parts.append(f"{progress.label or 'step'} {progress.done}{total}")
    parts.append(f"{_duration(elapsed)} so far")
    step_left = progress.left if progress else None
    if None not in task.expected:
        this, *rest = task.expected
        left = max(this - elapsed, step_left or 0.0) + sum(rest)
        parts.append(f"about {_duration(left)} left")
    elif step_left is not None:
        parts.append(f"about {_duration(step_left)} left in this step")
    return " · ".join(parts)


def _expected_seconds(preset: str, source: _Source, records: Mapping[str, _Record]) -> float | None:
    record = records.get(source.name, _Record())
    if record.finished and record.preset == preset:
        return record.seconds
    return source.expected.get(preset)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _listed(facts: Mapping[str, object], between: str) -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in facts.items())


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
