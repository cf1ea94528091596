"""Image data sets as tensors: 32 x 32 pixels, standardised, resident on a device."""

import os

import numpy as np
import torch
from torch import Tensor

from twophase.errors import InputError, check_choice, check_integer
from twophase.examples import Dataset, Examples
from twophase.problems.image_files import SOURCES, Split, read

DATASETS = tuple(SOURCES)
# Images whose float64 copy stays in a CPU's cache: ten times as fast as chunks of thousands.
_CHUNK = 16


def load(
    name: str,
    root: str | os.PathLike | None = None,
    device: torch.device | str = "cpu",
    train_examples: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    validation_examples: int | None = None,
) -> Dataset:
    """A data set as standardised images [N, channels, 32, 32] with int64 labels [N].

        x = (pixel - mean) / standard deviation, per channel, over the training set's images

    digits: scikit-learn's 8 x 8 images, enlarged bilinearly, 1437 for training and 360 for
    validation, stratified, the same split always. mnist, fashion-mnist: 28 x 28, a border of two
    zeros added. cifar10, cifar100: three channels; cifar100 with its 100 fine labels. All but
    digits have the official test set as validation set.

    Mean and standard deviation are always those of the full training set at 32 x 32 pixels, so
    that runs on subsets of any size see the same validation inputs. Loading never downloads.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the data sets; None: see `image_files.data_root`.
        device, dtype: of inputs and labels; of the inputs.
        train_examples, validation_examples: take that many at random, each class in its share; a
            smaller subset of the same seed is part of a larger one. None: all.
        seed: of the subsets, at least 0.

    Raises:
        DataError: a file is missing, truncated or altered; see `image_files.read`.
        InputError: the name is unknown, or a number of examples or the seed out of range.
    """
    check_choice("dataset", name, SOURCES)
    check_integer("seed", seed, 0)
    sizes = {"train_examples": train_examples, "validation_examples": validation_examples}
    counts = {field: check_integer(field, n, 1) for field, n in sizes.items() if n is not None}
    parts = dict(zip(sizes, read(name, root), strict=True))
    mean, deviation = (s.to(dtype).to(device) for s in _statistics(parts["train_examples"][0]))
    for field, count in counts.items():
        parts[field] = _subset(field, parts[field], count, seed)

    def examples(images: np.ndarray, labels: np.ndarray) -> Examples:
        inputs = torch.from_numpy(images).to(device, dtype, copy=True)
        return Examples(inputs.sub_(mean).div_(deviation), torch.from_numpy(labels).to(device))

    train, validation = (part and examples(*part) for part in parts.values())
    return Dataset(name, train, validation, SOURCES[name].classes)


def _statistics(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, [channels, 1, 1] in float64."""
    chunks = torch.from_numpy(images).split(_CHUNK)
    values = images.size // images.shape[1]
    dims = (0, 2, 3)
    mean = sum(chunk.double().sum(dims, keepdim=True) for chunk in chunks) / values
    squares = sum((chunk.double() - mean).square().sum(dims, keepdim=True) for chunk in chunks)
    return mean[0], (squares / values).sqrt()[0]


def _stratified(labels: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """Indices, in file order, of `count` random examples that keep the classes' shares."""
    shuffled = torch.randperm(len(labels), generator=generator).numpy()
    # An example's place in its class, as a fraction: the lowest fractions share out the classes.
    fraction = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = shuffled[np.argsort(fraction[shuffled], kind="stable")]
    return np.sort(order[:count])


def _subset(field: str, split: Split | None, count: int, seed: int) -> Split:
    """`count` images and labels at random, each class in its share."""
    available = 0 if split is None else len(split[1])
    if count > available:
        allowed = f"a whole number from 1 to {available}" if available else "None: there are none"
        raise InputError(field, count, allowed)
    images, labels = split
    chosen = _stratified(labels, count, torch.Generator().manual_seed(seed))
    return images[chosen], labels[chosen]
