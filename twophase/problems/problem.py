"""What a configuration can train: a problem gives a network, its examples and a loss."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from twophase.errors import check_choice, check_integer, check_number
from twophase.examples import Dataset, Examples
from twophase.least_squares import LeastSquares
from twophase.losses import Loss, cross_entropy, mse, next_character
from twophase.problems import gpt, images, networks, physics, text, toys
from twophase.settings import Settings

LOSSES: dict[str, Loss] = {"mse": mse, "cross-entropy": cross_entropy}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Task(NamedTuple):
    """A network before its first epoch, its data and loss; or a `LeastSquares`, which is all."""

    model: nn.Module | LeastSquares
    data: Dataset | None = None
    loss: Loss = mse


class Problem(Protocol):
    """What a configuration asks of a problem; settings, so that JSON can hold it.

    `full_batch` says whether its users train it on all examples at once, `validates` whether it has
    validation examples.
    """

    full_batch: bool

    @property
    def validates(self) -> bool: ...

    @property
    def name(self) -> str:
        """In a word or two, for tables and folders."""

    def load(self, seed: int, dtype: str, device: torch.device, root: Path | None) -> Task:
        """The task with the initial weights and subsets of a seed; errors as for `images.load`."""


class _OfExamples(Settings):
    """A problem of examples, some of which are for validation unless 0 of them are asked for."""

    validation_examples: int | None
    full_batch = False

    @property
    def validates(self) -> bool:
        return self.validation_examples != 0


@dataclass(frozen=True)
class ImageProblem(_OfExamples):
    """A network on a data set of images, by default with the paper's mean squared error.

    Args:
        dataset, model: names in `images.DATASETS` and `networks.ALL_MODELS`, else `InputError`.
        train_examples: size of a random training subset, at least 1; None: all.
        validation_examples: the same for the validation examples; 0: none of them.
        loss: mse or cross-entropy.
    """

    dataset: str = "digits"
    model: str = "vit-nomlp-wkewq-wvwo1"
    train_examples: int | None = None
    validation_examples: int | None = None
    loss: str = "mse"

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, images.DATASETS)
        check_choice("model", self.model, networks.ALL_MODELS)
        check_choice("loss", self.loss, LOSSES)
        _check_sizes(self.train_examples, self.validation_examples)

    @property
    def name(self) -> str:
        loss = "" if self.loss == "mse" else f" {self.loss}"
        return f"{self.dataset} {self.model}{loss}"

    def load(self, seed: int, dtype: str, device: torch.device, root: Path | None) -> Task:
        """The network and the examples; the subsets, too, are those of the seed."""
        data = images.load(
            *(self.dataset, root, device, self.train_examples, seed, DTYPES[dtype]),
            validation_examples=self.validation_examples or None,
        )
        data = _validated(data, self.validation_examples)
        model = networks.build(self.model, data.channels, data.classes, seed)
        return Task(model.to(DTYPES[dtype]), data, LOSSES[self.loss])


@dataclass(frozen=True)
class PhysicsProblem(Settings):
    """A small smooth problem with a known solution, by its name in `physics.PROBLEMS`."""

    equation: str = "poisson"

    full_batch = True
    validates = False

    def __post_init__(self) -> None:
        check_choice("equation", self.equation, physics.PROBLEMS)

    @property
    def name(self) -> str:
        return self.equation

    def load(self, seed: int, dtype: str, device: torch.device, root: Path | None) -> Task:
        """The network, and the points, which are the same for all seeds."""
        problem = physics.PROBLEMS[self.equation](seed)
        problem.model.to(device, DTYPES[dtype])
        return Task(problem.loss())


@dataclass(frozen=True)
class ToyProblem(Settings):
    """The loss of the paper's Figure 4, of one weight, with a second minimum where `c` > 1/2.

    A seed s begins at −2 − s/4, on the slope to the left. `c` is finite, else `InputError`.
    """

    c: float = 0.55

    full_batch = True
    validates = False

    def __post_init__(self) -> None:
        check_number("c", self.c)

    @property
    def name(self) -> str:
        return f"toy {self.c:g}"

    def load(self, seed: int, dtype: str, device: torch.device, root: Path | None) -> Task:
        """The loss as a network with one weight, and its one example."""
        model = toys.OneWeight(toys.TwoLayerTanh(self.c), start=-2.0 - seed / 4)
        examples = Examples(*toys.one_example()).to(device, DTYPES[dtype])
        data = Dataset(self.name, examples, None, classes=1)
        return Task(model.to(device, DTYPES[dtype]), data, toys.mean_output)


@dataclass(frozen=True)
class TextProblem(_OfExamples):
    """A transformer that foresees the next character of a text, by cross-entropy.

    Args:
        source: "topics", the documentation that ships with Python, or the path of a UTF-8 file.
        model: a name in `gpt.GPT_MODELS`, else `InputError`.
        context: characters that are seen at most, at least 1.
        train_examples, validation_examples: windows at random; None: all, 0: none of the latter.
    """

    source: str = text.TOPICS
    model: str = "gpt-50k"
    context: int = 64
    train_examples: int | None = None
    validation_examples: int | None = None

    @property
    def is_of_a_file(self) -> bool:
        """Whether its examples may be others tomorrow."""
        return self.source != text.TOPICS

    def __post_init__(self) -> None:
        text.check_name(self.source)
        check_choice("model", self.model, gpt.GPT_MODELS)
        check_integer("context", self.context, 1)
        _check_sizes(self.train_examples, self.validation_examples)

    @property
    def name(self) -> str:
        return f"{Path(self.source).stem} {self.model}"

    def load(self, seed: int, dtype: str, device: torch.device, root: Path | None) -> Task:
        """The network and the windows; the subsets, too, are those of the seed."""
        data = text.load(
            *(self.source, self.context, root, device, self.train_examples, seed),
            validation_examples=self.validation_examples or None,
        )
        data = _validated(data, self.validation_examples)
        model = gpt.build(self.model, data.classes, self.context, seed)
        return Task(model.to(DTYPES[dtype]), data, next_character)


def _validated(data: Dataset, validation_examples: int | None) -> Dataset:
    """The data, without those for validation where none of them are wanted."""
    return replace(data, validation=None) if validation_examples == 0 else data


def _check_sizes(train_examples: int | None, validation_examples: int | None) -> None:
    if train_examples is not None:
        check_integer("train_examples", train_examples, 1)
    if validation_examples is not None:
        check_integer("validation_examples", validation_examples, 0)


def named(
    name: str,
    model: str | None = None,
    train_examples: int | None = None,
    validation_examples: int | None = None,
) -> Problem:
    """The problem of that name: a data set's, an equation's, or a text's or text file's.

    `InputError` if there is none, or the model is not for it; None: the model that is usual for it.
    """
    if name in physics.PROBLEMS:
        return PhysicsProblem(name)
    settings = {"train_examples": train_examples, "validation_examples": validation_examples}
    settings |= {} if model is None else {"model": model}
    if text.is_text(name):
        return TextProblem(name, **settings)
    check_choice("problem", name, (*images.DATASETS, *physics.PROBLEMS, text.TOPICS))
    return ImageProblem(name, **settings)
