"""A run as a person names it: by numbers and texts, on the command line and in YAML."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import twophase as tp
from twophase.errors import InputError, check_choice
from twophase.experiments.config import RunConfig
from twophase.problems import physics
from twophase.problems.problem import Problem, named
from twophase.second_phase import Descent, check_minimizer
from twophase.settings import NAMED, from_dict, from_text, known_kinds

_DEFAULTS = {"second": tp.DEFAULT, "switch": tp.Race(), "fallback": tp.Fallback()}
_KNOWN: dict[str, dict[str, Any]] = {"default": _DEFAULTS, "paper": dict(tp.PAPER)}
EXAMPLES = {
    "second": "LevenbergMarquardt(damping=0.1)",
    "direction": "ConjugateDirection('FR')",
    "line_search": "StrongWolfe(c2=0.1)",
    "preconditioner": "AdamMoments(min_batches=1)",
    "switch": "Race(passes=30)",
    "fallback": "Fallback(trial=5)",
    "monitor": "FromBatches",
    "precision": "BFloat16(tolerance=0.05)",
}


@dataclass(frozen=True)
class Options:
    """The options of `python -m twophase run`, which make a `RunConfig`.

    Args:
        problem, model, train_examples, validation_examples: see `problem.named`.
        strategy: adam, second or adam+second.
        batch_size, learning_rate, precision: of Adam, the precision as a text; None: the usual
            batches, see `config`, in the precision that torch is set to.
        second: default, paper or a text such as "LevenbergMarquardt".
        direction, line_search, preconditioner, switch, fallback: texts; None: those of `second`.
        epochs, seed, dtype, freeze, monitor, keep: as for `RunConfig`, the monitor as a text.
    """

    problem: str = "digits"
    model: str | None = None
    train_examples: int | None = None
    validation_examples: int | None = None
    strategy: str = "adam+second"
    epochs: int = 40
    seed: int = 0
    dtype: str = "float32"
    batch_size: int | None = None
    learning_rate: float = 1e-3
    precision: str | None = None
    freeze: bool = False
    second: str = "default"
    direction: str | None = None
    line_search: str | None = None
    preconditioner: str | None = None
    switch: str | None = None
    fallback: str | None = None
    monitor: str = "Exact"
    keep: str = "train"

    def config(self, usual_batch: int = 512) -> RunConfig:
        """The library's defaults or the paper's, with what was given; `InputError` as there.

        `usual_batch` is the batch size where none is given. `InputError` also for what the problem
        does not have.
        """
        settings = self._method()
        check_choice("strategy", self.strategy, ("adam", "second", "adam+second"))
        if self.strategy == "adam":
            settings["second"] = None
        examples = self.train_examples, self.validation_examples
        problem = problem_named(self.problem, self.model, *examples)
        check_applies([self.problem], {name: getattr(self, name) for name in _OF_EXAMPLES})
        batch_size = usual_batch if self.batch_size is None else self.batch_size
        adam = tp.AdamSettings(
            self.learning_rate,
            None if problem.full_batch else batch_size,
            precision=object_of("AsSet" if self.precision is None else self.precision, "precision"),
        )
        return RunConfig(
            problem,
            self.epochs,
            None if self.strategy == "second" else adam,
            keep=self.keep,
            monitor=object_of(self.monitor, "monitor"),
            freeze=self.freeze,
            seed=self.seed,
            dtype=self.dtype,
            **settings,
        )

    def check_used(self) -> None:
        """`InputError` for an option that is given, and that the strategy has no use for."""
        usual = vars(Options(strategy=self.strategy))
        check_useful([self.strategy], {n: v for n, v in vars(self).items() if v != usual[n]})

    def _method(self) -> dict[str, Any]:
        """The second phase, the switch and the way back."""
        settings = dict(_KNOWN.get(self.second, _DEFAULTS))
        if self.second not in _KNOWN:
            if self.second.partition("(")[0] not in known_kinds():
                allowed = "default, paper, or a second phase such as LevenbergMarquardt"
                raise InputError("second", self.second, allowed)
            settings["second"] = object_of(self.second, "second")
            check_minimizer(settings["second"])
        for name in ("direction", "line_search", "preconditioner"):
            if getattr(self, name) is not None:
                part = object_of(getattr(self, name), name)
                whole = settings["second"]
                # what is not given is that of the default for large networks
                whole = tp.SELF_SCALED_BFGS if whole == tp.DEFAULT else whole
                if not isinstance(whole, Descent):
                    raise InputError(name, part, f"nothing with --second {self.second}")
                settings["second"] = replace(whole, **{name: part})
        for name in ("switch", "fallback"):
            if getattr(self, name) is not None:
                settings[name] = object_of(getattr(self, name), name)
        if isinstance(settings["switch"], int):
            settings["switch"] = tp.FixedEpoch(settings["switch"])
        return settings


# What a strategy of one phase does not need; a sweep over strategies has them for the others.
_UNUSED = {
    "adam": ("second", "direction", "line_search", "preconditioner", "switch", "fallback"),
    "second": ("batch_size", "learning_rate", "precision", "switch", "fallback"),
}
# What equations do not have: they are given whole, with their network and all their points.
_OF_EXAMPLES = ("model", "train_examples", "validation_examples", "batch_size", "precision")


def lacking(problem: Any) -> tuple[str, ...]:
    """The options that a problem of that name does not have."""
    return _OF_EXAMPLES if isinstance(problem, str) and problem in physics.PROBLEMS else ()


def check_applies(problems: Iterable[str], given: Mapping[str, Any]) -> None:
    """`InputError` for an option that is given, not None, and that none of some problems has."""
    problems = list(problems)
    for name, value in given.items():
        if value is not None and all(name in lacking(problem) for problem in problems):
            allowed = f"nothing with {', '.join(problems)}, which has no {name}"
            raise InputError(name, value, allowed)


def check_useful(strategies: Iterable[str], given: Mapping[str, Any]) -> None:
    """`InputError` for a field that is given, and that none of some strategies has a use for."""
    strategies = list(strategies)
    for name, value in given.items():
        if all(name.partition(".")[0] in _UNUSED.get(strategy, ()) for strategy in strategies):
            raise InputError(name, value, f"nothing with strategy {', '.join(strategies)}")


def problem_named(
    name: str,
    model: str | None,
    train_examples: int | None,
    validation_examples: int | None = None,
) -> Problem:
    """As `problem.named`, with what else a person may name."""
    try:
        return named(name, model, train_examples, validation_examples)
    except InputError as error:
        if error.field != "problem":
            raise
        raise InputError("problem", name, f"{error.allowed}, or the path of a UTF-8 file") from None


def object_of(text: str, field: str, example: str = "") -> Any:
    """As `from_text`; what cannot be read is told with an `example` that fits the field."""
    try:
        return from_text(text, field)
    except InputError as error:
        known = EXAMPLES | {field: example or EXAMPLES.get(field, "")}
        unknown = error.allowed.startswith(NAMED)
        if not known.get(error.field) or not (unknown or error.allowed.startswith("a text such")):
            raise
        near = error.allowed.removeprefix(NAMED) if unknown else ""
        allowed = f'a text such as "{known[error.field]}"{near}'
        raise InputError(error.field, error.value, allowed) from None


def changed(settings: Any, path: str, value: Any) -> Any:
    """The settings with another value of a field, or of a part's field, such as "switch.factor".

    A text such as "StrongWolfe(c2=0.1)" stands for that object, a list for a tuple. `InputError`
    for a field that is not there, and where the new value is not allowed.
    """
    name, _, rest = path.partition(".")
    names = []
    if is_dataclass(settings):
        names = [field.name for field in fields(settings) if field.init]
    if name not in names:
        there = f"fields of {type(settings).__name__}: {', '.join(names) or 'none'}"
        raise InputError("field", path, "nothing where all is None" if settings is None else there)
    if rest:
        value = changed(getattr(settings, name), rest, value)
    elif isinstance(value, str) and value.partition("(")[0] in known_kinds():
        value = object_of(value, name, value.partition("(")[0])
    return replace(settings, **{name: from_dict(value)})
