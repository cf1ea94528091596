"""Texts as characters: windows of a context, each with the characters that follow."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from twophase.errors import DataError, InputError, check_choice, check_integer
from twophase.examples import Dataset, Examples

# The documentation that ships with CPython, some 465,000 characters of English: no download.
TOPICS = "topics"
# Of the text, at its end, what validates.
VALIDATION_SHARE = 0.1


class Corpus(NamedTuple):
    """A text as numbers [N] of its characters, and the characters in the order of their numbers."""

    numbers: Tensor
    characters: str


def is_text(name: str) -> bool:
    """Whether a name is that of a text: "topics", or the path of a file."""
    return name == TOPICS or Path(name).is_file() or Path(name).suffix == ".txt"


def read(name: str, root: Path | None = None) -> Corpus:
    """The characters of `pydoc_data.topics` for "topics", else of a UTF-8 file.

    A relative path is one from the working folder, or else from the data folder `root`. `DataError`
    where there is no such file, or it is not UTF-8; `InputError` where it has fewer than two
    different characters.
    """
    text = _topics() if name == TOPICS else _file(name, root)
    characters = "".join(sorted(set(text)))
    if len(characters) < 2:
        raise InputError("text", name, "a text with at least two different characters")
    numbers = {character: number for number, character in enumerate(characters)}
    return Corpus(torch.tensor([numbers[character] for character in text]), characters)


def load(
    name: str,
    context: int,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    train_examples: int | None = None,
    seed: int = 0,
    validation_examples: int | None = None,
) -> Dataset:
    """Windows of a text: inputs and targets [N, context] of characters, the targets one later.

    Windows follow each other without overlap; the last tenth of the text validates. A subset of
    `train_examples` or `validation_examples` windows is drawn from `seed`, and a smaller one is
    part of a larger one; None: all. `classes` is the number of different characters.

    `InputError` where the text has no window for training and one for validation, or not as many
    as are asked for.
    """
    check_integer("context", context, 1)
    corpus = read(name, root)
    cut = round((1 - VALIDATION_SHARE) * len(corpus.numbers))
    sizes = {"train_examples": train_examples, "validation_examples": validation_examples}
    parts = []
    for part, field in zip(corpus.numbers.tensor_split([cut]), sizes, strict=True):
        windows = _windows(part, context)
        if len(windows) == 0:
            found = f"one of {len(corpus.numbers)} characters"
            allowed = f"one of at least {_least(context)} for windows of {context}"
            raise InputError("text", found, allowed)
        parts.append(_subset(field, windows, sizes[field], seed).to(device))
    train, validation = (Examples(part[:, :-1], part[:, 1:]) for part in parts)
    return Dataset(Path(name).name, train, validation, len(corpus.characters))


def _least(context: int) -> int:
    """Characters from which on both parts have a window of `context` and one character more."""
    return round((context + 1) / VALIDATION_SHARE + 0.5)


def _windows(numbers: Tensor, context: int) -> Tensor:
    """[N, context + 1]: the last character of a window is the first of the next."""
    count = (len(numbers) - 1) // context
    if count < 1:
        return numbers.new_zeros(0, context + 1)
    return numbers[: count * context + 1].unfold(0, context + 1, context)


def _subset(field: str, windows: Tensor, count: int | None, seed: int) -> Tensor:
    if count is None:
        return windows.contiguous()
    check_integer(field, count, 1)
    if count > len(windows):
        raise InputError(field, count, f"a whole number from 1 to {len(windows)}")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[:count].sort().values].contiguous()


def _topics() -> str:
    from pydoc_data.topics import topics  # half a megabyte

    return "\n".join(topics[name] for name in sorted(topics))


def _file(name: str, root: Path | None) -> str:
    path = Path(name)
    if not path.is_absolute() and not path.is_file() and root is not None:
        path = Path(root) / name
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"is not UTF-8 (byte {error.start}); save it as UTF-8"
    except OSError as error:
        found = f"cannot be read ({error.strerror}); name a file"
    raise DataError(f"text: {path} {found}")


def check_name(name: str) -> str:
    """Return a name of a text, or raise `InputError`."""
    return name if is_text(name) else check_choice("text", name, [TOPICS, "a path to a .txt file"])
