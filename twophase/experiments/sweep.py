"""Sweeps: a YAML file of fields, each with a value or a list of them, is expanded and run."""

import json
import math
import re
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import yaml

from twophase.errors import InputError, check_choice
from twophase.experiments import branches, runs
from twophase.experiments.config import RunConfig
from twophase.experiments.executors import Executor, Job
from twophase.experiments.files import project_folder, write_atomically
from twophase.experiments.options import Options, changed, check_useful, lacking
from twophase.experiments.progress import Tally, silenced

MOST_RUNS = 10_000
# what a preset says where the file does not; notebooks have their own
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"epochs": 8, "train_examples": 48, "validation_examples": 90, "batch_size": 16},
    "quick": {"epochs": 80, "train_examples": 192, "validation_examples": 90, "batch_size": 32},
    "paper": {"epochs": 1000, "second": "paper"},
}
_OTHER_NUMBER = re.compile(r"[-+]?(0[\d_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)")
_OPTIONS = {field.name: field for field in fields(Options)}
_FIELDS = (*_OPTIONS, *(field.name for field in fields(RunConfig) if field.name not in _OPTIONS))
# texts that stand for objects; null is one of them
_OBJECTS = ("direction", "line_search", "preconditioner", "switch", "fallback")
_OBJECTS += ("monitor", "precision")
# what else is set by an option that is called otherwise
_SETS: dict[str, tuple[str, ...]] = {
    "problem": ("problem.dataset", "problem.equation", "problem.source"),
    **{n: (f"problem.{n}",) for n in ("model", "train_examples", "validation_examples")},
    **{name: (f"adam.{name}",) for name in ("batch_size", "learning_rate", "precision")},
    **{name: (f"second.{name}",) for name in ("direction", "line_search", "preconditioner")},
}
_TEXTS = ("problem", "model", "strategy", "dtype", "second", "keep")


@dataclass(frozen=True)
class Spec:
    """A sweep: the fields or parameters that all runs share, and those with several values.

    Args:
        shared: fields of `Options`, or of `RunConfig` and its parts, such as "switch.factor", with
            a value each; or parameters of a notebook.
        swept: the same with their values; the runs are the product, the last field the fastest.
        preset: of a notebook, and of `PRESETS`; "": none.
        notebook: None: configurations are swept.
    """

    shared: Mapping[str, Any]
    swept: Mapping[str, Sequence[Any]]
    preset: str = ""
    notebook: Path | None = None

    def points(self) -> list[dict[str, Any]]:
        """The swept fields of each run."""
        return [dict(zip(self.swept, each, strict=True)) for each in product(*self.swept.values())]

    def configs(self) -> list[RunConfig]:
        """The configurations; `InputError` for a value that is not allowed, before any is run."""
        given = {**self.shared, **self.swept}
        _check_once(given)
        _check_measured(given)
        found = [_config(self._fields(point)) for point in self.points()]
        strategies = self.swept.get("strategy", [self.shared.get("strategy", Options.strategy)])
        check_useful(strategies, given)
        return found

    def _fields(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """All fields of a run; of several problems each takes what it has of the shared ones."""
        problem = {**self.shared, **point}.get("problem", Options.problem)
        others = [each for each in self.swept.get("problem", []) if not lacking(each)]
        absent = lacking(problem)
        preset = {n: v for n, v in PRESETS.get(self.preset, {}).items() if n not in absent}
        shared = {n: v for n, v in self.shared.items() if n not in absent or not others}
        return {**preset, **shared, **point}


def read(path: Path) -> Spec:
    """The sweep of a YAML file; `InputError` for what is not allowed, `OSError` without a file.

    It maps fields to a value or a list of them, and may have `preset`; or it has a `notebook` and
    maps its `parameters` so. At most `MOST_RUNS` runs. It is read as data, never executed.
    """
    content = _load(path)
    preset = content.pop("preset", None)
    if preset is not None:
        check_choice("preset", preset, PRESETS)
    notebook = None
    if "notebook" in content:
        notebook = _notebook(content.pop("notebook"))
        for name in content:
            check_choice("field", name, ("notebook", "parameters", "preset"))
        content = content.get("parameters", {})
        if not isinstance(content, dict):
            raise InputError("parameters", content, "a mapping from parameters to values")
    swept = {name: _values(name, value) for name, value in content.items()}
    count = math.prod(map(len, swept.values()))
    if count > MOST_RUNS:
        raise InputError("spec", f"{count} runs", f"at most {MOST_RUNS} in one sweep")
    shared = {name: value for name, value in content.items() if not isinstance(value, list)}
    several = {name: values for name, values in swept.items() if name not in shared}
    return Spec(shared, several, preset or "", notebook)


def run(spec: Spec, place: branches.Place, executor: Executor) -> pd.DataFrame:
    """Run what is not finished of a sweep of configurations, and write `sweep.csv` in its folder.

    The runs are in folders named by their digests, see `branches.run`. The table has a row for each
    run: the swept fields; `folder`, `error` (empty, or the reason in one line) and all numbers of
    the run's summary. It is shown on stderr how far the sweep has come.
    """
    configs = spec.configs()
    # a row is a whole run, which ends with its budget
    place = replace(place, beyond=False)
    where: dict[RunConfig, list[int]] = {}
    for index, config in enumerate(configs):
        where.setdefault(config, []).append(index)

    def work(on_running: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
        for done in branches.results(configs, place, executor, on_running):
            row = {"folder": done.folder.name, "error": done.error, **_numbers(done)}
            for index in where[done.config]:
                yield index, row

    return _watched(spec, place.out, work)


class Page(Protocol):
    """A notebook with parameters, whose page may be there; see `twophase.reporting.report`."""

    @property
    def name(self) -> str: ...

    def seconds(self) -> float | None:
        """How long it took, where the page is there."""


def run_pages(
    spec: Spec,
    out: Path,
    pages: Sequence[Page],
    build: Callable[[Any], float],
    executor: Executor,
) -> pd.DataFrame:
    """Make the pages of a sweep of a notebook that are not there; for the table see `run`.

    `build` makes a page, a hashable object, and returns its seconds.
    """

    def row(page: Page, seconds: float | None, error: str = "") -> dict[str, Any]:
        return {"page": f"{page.name}.html", "error": error, "seconds": seconds}

    def work(on_running: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
        todo: dict[Hashable, int] = {}
        for index, page in enumerate(pages):
            seconds = page.seconds()
            if seconds is None:
                todo[page] = index
            else:
                yield index, row(page, seconds)
        jobs = [Job(build, (page,)) for page in todo]
        for outcome in executor.run(jobs, out, on_running=on_running):
            page = outcome.job.arguments[0]
            yield todo[page], row(page, outcome.value, outcome.error)

    return _watched(spec, out, work)


def label(point: Mapping[str, Any]) -> str:
    """A run by its swept fields, such as "seed=0, switch.factor=0.9"."""
    return ", ".join(f"{name}={value}" for name, value in point.items()) or "the only run"


def _watched(
    spec: Spec,
    out: Path,
    work: Callable[[Callable[[int], None]], Iterator[tuple[int, dict[str, Any]]]],
) -> pd.DataFrame:
    """The table of what some work yields, shown while it grows and written however it ends.

    Where it ends before any run is made, what was written before says more.
    """
    out.mkdir(parents=True, exist_ok=True)
    points, rows = spec.points(), {}
    tally = Tally(len(points))

    def write() -> pd.DataFrame:
        # what was asked for is not replaced by what the summary calls by the same name
        ordered = [points[i] | rows[i] | points[i] for i in sorted(rows)]
        # objects: a whole number stays one beside others and missing ones
        table = pd.DataFrame(ordered, dtype=object)
        write_atomically(out / "sweep.csv", table.to_csv(index=False))
        return table

    try:
        with silenced(), tally.shown(sys.stderr) as say:
            for index, row in work(tally.on_running):
                rows[index] = row
                tally.count(failed=bool(row["error"]))
                loss = row.get("train_loss")
                result = f"failed, {row['error']}" if row["error"] else "done"
                result += "" if loss is None else f", train loss {loss:.4g}"
                say(f"{label(points[index])}: {result}")
    except BaseException:
        if rows and tally.began:
            write()
        raise
    return write()


def _numbers(done: branches.Done) -> dict[str, Any]:
    """What is a number in the summary of a finished run."""
    if done.error:
        return {}
    summary = runs.read_summary(done.folder)
    return {
        name: value
        for name, value in summary.items()
        if isinstance(value, int | float) or value is None
    }


def _config(given: Mapping[str, Any]) -> RunConfig:
    options = {name: _option(name, value) for name, value in given.items() if name in _OPTIONS}
    config = Options(**options).config()
    # an object before its fields
    for name in sorted(given.keys() - _OPTIONS, key=lambda name: name.count(".")):
        check_choice("field", name.partition(".")[0], _FIELDS)
        config = changed(config, name, given[name])
    return config


def _check_once(given: Mapping[str, Any]) -> None:
    """`InputError` where two fields set the same, so that one of them would be of no effect.

    An object that is only named, such as "GradientNormPeak", leaves its fields to others.
    """
    for whole, part in permutations(given, 2):
        first, second = (_SETS.get(name, (name,)) for name in (whole, part))
        same = part not in _OPTIONS and not set(first).isdisjoint(second)
        inside = second[0].startswith(f"{first[0]}.")
        # options are taken first, so that a whole object would replace what they set
        lost = inside and part in _OPTIONS and whole not in _OPTIONS
        if same or lost or (inside and not _only_named(given[whole])):
            raise InputError(part, given[part], f"nothing with {whole}, which sets it")


def _check_measured(given: Mapping[str, Any]) -> None:
    """`InputError` for a switch or a way back where a second phase is measured in every run."""
    passes = given.get("passes")
    if None in (passes if isinstance(passes, list) else [passes]):
        return
    for name, value in given.items():
        if name.partition(".")[0] in ("switch", "fallback"):
            raise InputError(name, value, "nothing with passes, which measures after all epochs")


def _only_named(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(each, str) and "(" not in each for each in values)


def _option(name: str, value: Any) -> Any:
    """A value from YAML as the command line has it."""
    if isinstance(value, list):
        raise InputError(name, value, "one value in each run")
    if name in _OBJECTS:
        return str(value)
    if name in _TEXTS and not isinstance(value, str):
        raise InputError(name, value, "a text")
    return value


def _values(name: Any, value: Any) -> list[Any]:
    """The values of a field, each once."""
    values = value if isinstance(value, list) else [value]
    if not isinstance(name, str):
        raise InputError("field", name, "a name")
    if not 0 < len(values) <= MOST_RUNS:
        raise InputError(name, f"a list of {len(values)}", f"1 to {MOST_RUNS} values")
    seen = set()
    for each in values:
        if not _plain(each):
            raise InputError(name, type(each).__name__, "numbers, texts, true, false or null")
        if (text := json.dumps(each)) in seen:
            raise InputError(name, each, "each value once")
        seen.add(text)
    return values


def _plain(value: Any) -> bool:
    """Whether JSON can hold it, as a scalar or a list of scalars."""
    parts = value if isinstance(value, list) else [value]
    return all(part is None or isinstance(part, bool | int | float | str) for part in parts)


def _notebook(given: Any) -> Path:
    """A notebook's path from the working folder or the project's."""
    if isinstance(given, str):
        for folder in (Path(), project_folder() or Path()):
            if (folder / given).is_file():
                return (folder / given).resolve()
    raise InputError("notebook", given, "the path of a notebook that is there")


class _Loader(yaml.SafeLoader):
    """Plain data, in which a key comes once, and numbers are those of YAML 1.2.

    There 1e-3 is one; 010 and 1:30, in YAML 1.1 8 and 90, are texts here.
    """

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0] and _OTHER_NUMBER.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for each, _ in node.value:
            key = self.construct_object(each, deep=True)
            if isinstance(key, str) and key in seen:
                problem, mark = f"the key {key!r} comes twice", each.start_mark
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _load(path: Path) -> dict[Any, Any]:
    allowed = "a YAML file that maps fields to values"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError("spec", str(path), f"{allowed} ({line}{error.problem})") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError("spec", str(path), f"{allowed} ({reason})") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError):
        reason = "a value that is none of its tag's, such as !!int"
        raise InputError("spec", str(path), f"{allowed} ({reason})") from None
    if not isinstance(content, dict) or not content:
        raise InputError("spec", str(path), allowed)
    return content
