"""Second phases and their competitors from one shared Adam prefix, at equal passes and seconds.

A comparison is a set of independent jobs: one setting, one method, one of its candidate settings.
Each leaves a file when it is done, so that a comparison can be made in any number of sittings.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock

from twophase.adam import AdamSettings
from twophase.cg import CGSettings
from twophase.device import device_name, resolve_device
from twophase.errors import InputError, check_choice, check_integer
from twophase.experiments import checkpoints
from twophase.experiments.competitors import METHODS, Method, go_on, second_phase
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.provenance import git_revision, now, versions
from twophase.losses import mse
from twophase.problems import images, networks, physics
from twophase.training import GRADIENT_PASSES, Trainer

log = logging.getLogger("twophase")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Saved curves keep points at which the passes have grown by this part.
SAVED_SPACING = 0.04
# Of weights, batches and subsets in the runs that tuning looks at, never in those it is judged by.
TUNING_SEED = 100
PROBLEMS = (*images.DATASETS, *physics.PROBLEMS)
# Networks from the quickest to the slowest pass.
SIZES = (
    *("vit-nomlp-wkewq-wvwo1", "vit-nomlp-wkewq", "vit-nomlp"),
    *("vit-mlp", "vgg5-max-relu"),
)


@dataclass(frozen=True)
class Setting:
    """A problem, and where on Adam's way through it the methods part.

    Args:
        problem: a data set of `twophase.problems.images.DATASETS`, or a full-batch problem of
            `twophase.problems.physics.PROBLEMS`.
        model: of `twophase.problems.networks.MODELS`, for a data set; "" for a full-batch problem.
        swap_epoch: epochs of the shared prefix of Adam, at least 1.
        seed: of initial weights, mini-batches and subset, at least 0.
        batch_size, learning_rate: of Adam; see `AdamSettings`. A full-batch problem takes its
            points in one batch, whatever `batch_size` says.
        train_examples: of a random subset; None: all. None for a full-batch problem.
        dtype: of the parameters, "float32" or "float64".

    Raises:
        InputError: a field is out of range.

    >>> Setting("digits", "vit-mlp", 100).name
    'digits vit-mlp'
    >>> Setting("digits", "resnet", 100)
    Traceback (most recent call last):
    twophase.errors.InputError: model: 'resnet' is not allowed; use one of vit-mlp, ...
    """

    problem: str
    model: str
    swap_epoch: int
    seed: int = 0
    batch_size: int = 512
    learning_rate: float = 1e-3
    train_examples: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("problem", self.problem, PROBLEMS)
        check_choice("model", self.model, networks.MODELS if self.images else ("",))
        check_integer("swap_epoch", self.swap_epoch, 1)
        check_integer("seed", self.seed, 0)
        AdamSettings(self.learning_rate, self.batch_size)
        if self.train_examples is not None:
            if not self.images:
                raise InputError("train_examples", self.train_examples, f"None with {self.problem}")
            check_integer("train_examples", self.train_examples, 1)
        check_choice("dtype", self.dtype, DTYPES)

    @property
    def images(self) -> bool:
        """Whether the problem is a data set of images."""
        return self.problem in images.DATASETS

    @property
    def name(self) -> str:
        """Problem and model, for readers."""
        return f"{self.problem} {self.model}".strip()

    def trainer(self, root: Path | None = None, device: str | torch.device = "auto") -> Trainer:
        """A trainer of Adam before its first epoch.

        Raises:
            DataError: a data file is missing or damaged.
            InputError: the subset is larger than the set.

        >>> Setting("digits", "vit-mlp", 1, train_examples=16).trainer(device="cpu").names
        ('adam',)
        """
        chosen, dtype = resolve_device(device), DTYPES[self.dtype]
        if self.images:
            dataset = images.load(
                self.problem, root, chosen, self.train_examples, self.seed, dtype=dtype
            )
            model = networks.build(self.model, dataset.channels, dataset.classes, self.seed)
            train, loss, batch_size = dataset.train, mse, self.batch_size
        else:
            problem = physics.PROBLEMS[self.problem](self.seed)
            model, train = problem.model, (problem.inputs, problem.targets)
            loss, batch_size = torch.nn.functional.mse_loss, len(problem.inputs)
        return Trainer(
            model.to(dtype),
            train,
            strategy="adam",
            loss=loss,
            adam=AdamSettings(self.learning_rate, batch_size),
            seed=self.seed,
            device=chosen,
        )


@dataclass(frozen=True)
class Plan:
    """A comparison: problems and networks, where the methods part, their budget, and the seeds.

    Args:
        problems, models: see `Setting`; full-batch problems take no model.
        swap_epoch, batch_size, train_examples: of every `Setting`.
        passes: each method's budget after the prefix, at least 3.
        seeds: 0, 1, ..., so many.
        dtype: of networks for images; full-batch problems take float64.

    Raises:
        InputError: a field is out of range.

    >>> [setting.seed for setting in PLANS["smoke"].settings()]
    [0, 1]
    """

    problems: tuple[str, ...]
    models: tuple[str, ...]
    swap_epoch: int
    passes: int
    seeds: int = 3
    batch_size: int = 512
    train_examples: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        check_integer("seeds", self.seeds, 1)
        check_integer("passes", self.passes, GRADIENT_PASSES)
        self.settings()

    def settings(self) -> list[Setting]:
        """All settings, seed by seed, so that a plan that is stopped has whole seeds.

        >>> len(Plan(("digits", "mnist"), ("vit-mlp",), swap_epoch=9, passes=30).settings())
        6
        """
        pairs = []
        for problem in self.problems:
            of_images = check_choice("problem", problem, PROBLEMS) in images.DATASETS
            pairs += [(problem, model) for model in (self.models if of_images else ("",))]
        return [self._setting(*pair, seed) for seed in range(self.seeds) for pair in pairs]

    def tuning(self) -> Setting:
        """Where the methods are tuned: on the first problem's smallest network.

        >>> PLANS["paper"].tuning().name
        'digits vit-nomlp-wkewq-wvwo1'
        """
        of_images = self.problems[0] in images.DATASETS
        smallest = min(self.models, key=SIZES.index) if of_images else ""
        return self._setting(self.problems[0], smallest, TUNING_SEED)

    def _setting(self, problem: str, model: str, seed: int) -> Setting:
        of_images = problem in images.DATASETS
        return Setting(
            problem,
            model,
            self.swap_epoch,
            seed,
            self.batch_size,
            train_examples=self.train_examples if of_images else None,
            dtype=self.dtype if of_images else "float64",
        )


PLANS = {
    "smoke": Plan(
        *(("digits",), ("vit-nomlp-wkewq-wvwo1",)),
        **{"swap_epoch": 2, "passes": 30, "seeds": 2, "batch_size": 16, "train_examples": 32},
    ),
    "quick": Plan(
        *(("digits",), ("vit-nomlp-wkewq-wvwo1",)),
        **{"swap_epoch": 60, "passes": 240, "batch_size": 64, "train_examples": 192},
    ),
    "paper": Plan(
        ("digits", "mnist", "cifar10"), tuple(networks.MODELS), swap_epoch=100, passes=1000
    ),
}


def plan(preset: str, **changes: object) -> Plan:
    """A preset's plan, with the fields that were given instead of its own.

    Args:
        preset: "smoke", "quick" or "paper".
        **changes: fields of `Plan`; None: the preset's.

    Raises:
        InputError: the preset is unknown, or a field is out of range.

    >>> plan("quick", seeds=1, passes=None).passes
    240
    >>> plan("quick", passes=2)
    Traceback (most recent call last):
    twophase.errors.InputError: passes: 2 is not allowed; use a whole number of at least 3
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(PLANS[check_choice("preset", preset, PLANS)], **given)


@dataclass(frozen=True)
class Job:
    """A method, with one of its candidate settings, on a setting, for a budget of passes.

    Raises:
        InputError: a field is out of range.

    >>> Job(Setting("digits", "vit-mlp", 100), "adam", 1, 300)
    Traceback (most recent call last):
    twophase.errors.InputError: candidate: 1 is not allowed; use one of 0 for method adam
    """

    setting: Setting
    method: str
    candidate: int
    passes: int

    def __post_init__(self):
        check_choice("method", self.method, METHODS)
        check_integer("passes", self.passes, GRADIENT_PASSES)
        candidates = range(len(METHODS[self.method].candidates))
        if self.candidate not in candidates:
            allowed = f"one of {', '.join(map(str, candidates))} for method {self.method}"
            raise InputError("candidate", self.candidate, allowed)

    @property
    def fields(self) -> dict:
        """All that the curve depends on, but for device and versions."""
        rest = {field.name: getattr(self, field.name) for field in fields(self)}
        return asdict(rest.pop("setting")) | rest

    @property
    def file_name(self) -> str:
        """By method and digest, also of what the candidate's settings come to."""
        candidate = METHODS[self.method].candidates[self.candidate]
        return f"{self.method}-{_digest(self.fields | {'settings': _resolved(candidate)})}.json"


def jobs(
    settings: Iterable[Setting],
    methods: Iterable[str],
    passes: int,
    candidates: dict[str, int] | None = None,
) -> list[Job]:
    """The comparison of methods on settings, of those whose package is installed.

    Args:
        settings: where the methods are to be compared.
        methods: names in `METHODS`.
        passes: the budget of each job, at least 3; see `Method.times`.
        candidates: the setting of each method, as `chosen` by tuning; default: as shipped.

    Returns:
        A job for each setting and method.

    Raises:
        InputError: a method is unknown, or a number out of range.

    >>> found = jobs([Setting("digits", "vit-mlp", 100)], ["adam", "default"], 300)
    >>> [(job.method, job.candidate) for job in found]
    [('adam', 0), ('default', 0)]
    """
    names = [check_choice("method", name, METHODS) for name in methods]
    here = [name for name in names if METHODS[name].installed]
    for name in set(names) - set(here):
        log.warning("%s left out: no package %s", name, METHODS[name].package)
    numbers = candidates or {}
    return [Job(s, name, numbers.get(name, 0), passes) for s in settings for name in here]


def tuning_jobs(setting: Setting, methods: Iterable[str], passes: int) -> list[Job]:
    """Every candidate of every method that has more than one, on the tuning seed.

    Args and errors as for `jobs`.

    >>> found = tuning_jobs(Setting("digits", "vit-mlp", 100), ["adam", "sgd"], 300)
    >>> [(job.method, job.candidate, job.setting.seed) for job in found]
    [('sgd', 0, 100), ('sgd', 1, 100), ('sgd', 2, 100)]
    """
    there = replace(setting, seed=TUNING_SEED)
    return [
        replace(job, candidate=number)
        for job in jobs([there], methods, passes)
        for number in range(len(METHODS[job.method].candidates))
        if len(METHODS[job.method].candidates) > 1
    ]


def chosen(curves: pd.DataFrame) -> dict[str, int]:
    """For each method the candidate with the lowest loss at the end of the tuning runs' budget.

    Args:
        curves: of `tuning_jobs`, from `run` or `load`.

    Returns:
        The candidate's number for each method.

    >>> curves = pd.DataFrame({"method": "sgd", "candidate": [0, 1, 1], "loss": [0.5, 0.9, 0.4]})
    >>> chosen(curves)
    {'sgd': 1}
    """
    lowest = curves.groupby(["method", "candidate"]).loss.min()
    return {method: int(of.idxmin()[1]) for method, of in lowest.groupby("method")}


def compare(
    plan: Plan,
    methods: Sequence[str],
    folder: Path,
    tune: bool = True,
    root: Path | None = None,
    device: str | torch.device = "auto",
    processes: int = 1,
) -> pd.DataFrame:
    """Tune every method alike, then run all of them on all settings.

    Args:
        plan: what to compare on, and for how many passes.
        methods: names in `METHODS`.
        tune: try each method's candidates once, on `Plan.tuning`, and take the best on all
            settings. False: all methods as shipped.
        folder, root, device, processes: see `run`.

    Returns:
        The curves, as from `run`, those of the tuning after the others.

    Raises:
        TwoPhaseError, OSError: as `jobs` and `run` do.

    >>> import tempfile
    >>> plan = replace(PLANS["smoke"], passes=6)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     curves = compare(plan, ["adam", "sgd"], Path(folder), device="cpu")
    >>> curves.groupby(["seed", "method"]).candidate.nunique().to_dict()
    {(0, 'adam'): 1, (0, 'sgd'): 1, (1, 'adam'): 1, (1, 'sgd'): 1, (100, 'sgd'): 3}
    """
    tried = tuning_jobs(plan.tuning(), methods, plan.passes) if tune else []
    numbers = {}
    if tried:
        numbers = chosen(run(tried, folder, root, device, processes))
        log.warning("tuning chose %s", numbers)
    todo = [*jobs(plan.settings(), methods, plan.passes, numbers), *tried]
    return run(todo, folder, root, device, processes)


def variants(
    setting: Setting,
    phases: Mapping[str, CGSettings],
    passes: int,
    folder: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> pd.DataFrame:
    """Second phases of any settings, and Adam going on, from one prefix.

    Args:
        setting: where they part.
        phases: the settings of each, by its label.
        passes: the budget of each, at least 3.
        folder, root, device: see `run`; only prefixes are kept in the folder.

    Returns:
        Curves as from `run`, with the labels in `method` and candidate 0.

    Raises:
        TwoPhaseError, OSError: as `run` does.

    >>> import tempfile
    >>> setting = Setting("digits", "vit-nomlp-wkewq-wvwo1", 1, train_examples=16)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     curves = variants(setting, {"FR": CGSettings("FR")}, 12, Path(out), device="cpu")
    >>> curves.method.unique().tolist()
    ['adam', 'FR']
    """
    folder.mkdir(parents=True, exist_ok=True)
    methods = {"adam": METHODS["adam"]}
    methods |= {
        label: Method(label, second_phase, ({"settings": phase},))
        for label, phase in phases.items()
    }
    frames = []
    for label, method in methods.items():
        curve = go_on(method, 0, prefix(setting, folder, root, device), passes)
        keys = asdict(setting) | {"method": label, "candidate": 0, "passes": passes}
        frames.append(_frame(keys, curve))
    return pd.concat(frames, ignore_index=True)


def in_words(candidate: Mapping[str, object]) -> str:
    """A candidate of `Method.candidates` for readers: what differs from the defaults.

    >>> [in_words(candidate) for candidate in METHODS["cg"].candidates]
    ['beta PR+, preconditioner adam', 'beta HS-DY, preconditioner adam', ...]
    """
    parts = []
    for name, value in candidate.items():
        parts += _given(value) if is_dataclass(value) else [f"{name} {value}"]
    return ", ".join(parts) or "as shipped"


def run(
    todo: Sequence[Job],
    folder: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
    processes: int = 1,
) -> pd.DataFrame:
    """Run what is not done of some jobs, each prefix once.

    Args:
        todo: from `jobs` and `tuning_jobs`.
        folder: of the jobs' files, for one device; made if it is not there.
        root: the data folder; None: see `twophase.problems.images.load`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        processes: that work side by side, each on one thread if there are several; seconds are
            then those of a busy machine.

    Returns:
        The curves of these jobs, a row for each point: the fields of setting and job, and
        `passes_spent` and `seconds` since the prefix, with the lowest training `loss` so far.

    Raises:
        InputError: a number is out of range.
        DataError: a data file is missing or damaged.
        OSError: a file cannot be written.

    >>> import tempfile
    >>> setting = Setting("digits", "vit-nomlp-wkewq-wvwo1", 1, train_examples=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     curves = run(jobs([setting], ["adam", "default"], 30), Path(folder), device="cpu")
    >>> (curves.groupby("method").passes_spent.max() <= 30).to_dict()
    {'adam': True, 'default': True}
    """
    check_integer("processes", processes, 1)
    folder.mkdir(parents=True, exist_ok=True)
    left = [job for job in todo if not (folder / job.file_name).exists()]
    if processes == 1:
        for number, job in enumerate(left, 1):
            _run_job(job, folder, root, device)
            _report(job, number, len(left))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn, torch.set_num_threads, (1,)) as pool:
            waiting = {pool.submit(_run_job, job, folder, root, device): job for job in left}
            for number, future in enumerate(as_completed(waiting), 1):
                future.result()
                _report(waiting[future], number, len(left))
    return pd.concat([_read(folder / job.file_name) for job in todo], ignore_index=True)


def save(curves: pd.DataFrame, folder: Path, facts: dict) -> None:
    """Write curves as two small tables, `runs.csv` and `curves.csv`, and `provenance.json`.

    Of each curve those points are kept at which the loss is lower than before and the passes have
    grown by 4 % or more, and its two ends; losses to five digits, seconds to three.

    Args:
        curves: from `run`.
        folder: made if it is not there.
        facts: of the provenance, such as the command and the hardware.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = [name for name in curves if name not in _MEASURED]
    numbers = curves.groupby(keys, sort=False, dropna=False).ngroup()
    runs = curves[keys].assign(run=numbers).drop_duplicates("run").set_index("run")
    points = curves[list(_MEASURED)].assign(run=numbers)
    points = pd.concat([_thinned(run) for _, run in points.groupby("run")]).set_index("run")
    points = points.assign(
        seconds=points.seconds.map("{:.3g}".format), loss=points.loss.map("{:.5g}".format)
    )
    write_atomically(folder / "runs.csv", runs.to_csv())
    write_atomically(folder / "curves.csv", points.to_csv())
    write_json(folder / "provenance.json", facts)


def load(folder: Path) -> pd.DataFrame:
    """The curves that `save` wrote.

    Raises:
        InputError: the folder does not hold them.

    >>> import tempfile
    >>> load(Path(tempfile.mkdtemp()))
    Traceback (most recent call last):
    twophase.errors.InputError: comparison: ... use a folder with runs.csv and curves.csv of ...
    """
    try:
        runs = pd.read_csv(folder / "runs.csv", index_col="run", keep_default_na=False)
        points = pd.read_csv(folder / "curves.csv")
    except (OSError, ValueError):
        runs = points = pd.DataFrame({"run": []})
    if runs.empty or set(points.run) != set(runs.index):
        allowed = "a folder with runs.csv and curves.csv of one comparison"
        raise InputError("comparison", str(folder), allowed)
    runs["train_examples"] = pd.to_numeric(runs.train_examples)
    return points.join(runs, on="run").drop(columns="run")


def facts(
    arguments: Sequence[str],
    device: str | torch.device = "auto",
    processes: int = 1,
    seconds: float | None = None,
) -> dict:
    """Provenance of results made here and now: command, revision, versions, hardware, time.

    Args:
        arguments: of `python -m twophase`.
        device, processes: see `run`.
        seconds: of wall time, for what was not there before.

    >>> facts(["compare", "--preset", "quick"], "cpu")["command"]
    'python -m twophase compare --preset quick'
    """
    return {
        "command": " ".join(["python -m twophase", *arguments]),
        "revision": git_revision(),
        "versions": versions(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": device_name(resolve_device(device)),
        "processes": processes,
        "wall_seconds": None if seconds is None else round(seconds),
        "time": now(),
    }


_MEASURED = ("passes_spent", "seconds", "loss")


def _run_job(job: Job, folder: Path, root: Path | None, device: str | torch.device) -> None:
    trainer = prefix(job.setting, folder, root, device)
    curve = go_on(METHODS[job.method], job.candidate, trainer, job.passes)
    content = {"job": job.fields, "curve": [list(point) for point in curve]}
    write_atomically(folder / job.file_name, json.dumps(content) + "\n")


def prefix(
    setting: Setting,
    folder: Path,
    root: Path | None = None,
    device: str | torch.device = "auto",
) -> Trainer:
    """The trainer at the end of the prefix, which whoever needs it first has trained.

    Args:
        setting: see `Setting`.
        folder: where states are kept; it must be there.
        root, device: see `run`.

    >>> import tempfile
    >>> setting = Setting("digits", "vit-nomlp-wkewq-wvwo1", 2, train_examples=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(prefix(setting, Path(folder), device="cpu").history)
    2
    """
    path = folder / f"prefix-{_digest(asdict(setting))}.ckpt"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            trainer = setting.trainer(root, device)
            for _ in range(setting.swap_epoch):
                trainer.epoch()
            checkpoints.write(path, trainer.state_dict())
    trainer = setting.trainer(root, device)
    trainer.load_state_dict(checkpoints.load(path))
    return trainer


def _read(path: Path) -> pd.DataFrame:
    content = json.loads(path.read_text())
    return _frame(content["job"], content["curve"])


def _frame(keys: Mapping[str, object], curve: Sequence[Sequence[float]]) -> pd.DataFrame:
    points = pd.DataFrame(curve, columns=list(_MEASURED))
    return pd.DataFrame([keys]).merge(points, how="cross")


def _resolved(candidate: Mapping[str, object]) -> str:
    """A candidate with the defaults that it takes."""
    parts = []
    for name, value in candidate.items():
        parts.append(f"{name}={value!r}")
        if isinstance(value, CGSettings):
            parts += [repr(value.rule), repr(value.search)]
            parts += [str(value.takes_moments(batches)) for batches in (1, 2)]
    return "; ".join(parts)


def _given(settings: object) -> list[str]:
    """The fields of a dataclass that differ from their defaults, as "name value"."""
    parts = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            shown = value
            if is_dataclass(value):
                shown = f"{type(value).__name__}({', '.join(_given(value))})"
            parts.append(f"{field.name.replace('_', ' ')} {shown}")
    return parts


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    kept, last = [0], len(curve) - 1
    for row, (passes, loss) in enumerate(zip(curve.passes_spent, curve.loss, strict=True)):
        before = curve.iloc[kept[-1]]
        apart = passes >= (1 + SAVED_SPACING) * before.passes_spent
        if row == last > 0 or (apart and loss < before.loss):
            kept.append(row)
    return curve.iloc[kept]


def _report(job: Job, number: int, total: int) -> None:
    log.warning(
        "[%d/%d] %s, swap %d, batch %d, seed %d: %s, candidate %d",
        *(number, total, job.setting.name, job.setting.swap_epoch, job.setting.batch_size),
        *(job.setting.seed, job.method, job.candidate),
    )


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
