"""Image data sets as tensors: verified files, 32 x 32 pixels, standardised, resident on a device.

`SOURCES` is the registry: a further data set is one entry. Loading never touches the network;
`download` is the only function that does.
"""

import gzip
import hashlib
import http.client
import os
import pickle
import shlex
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from twophase.errors import DataError, InputError, check_choice, check_integer
from twophase.examples import Dataset, Examples
from twophase.experiments.files import project_folder

# Changing it would change which digits are held out, and so every number measured on them.
_DIGITS_SPLIT_SEED = 0
# Images whose float64 copy stays in a CPU's cache: ten times as fast as chunks of thousands.
_CHUNK = 16


@dataclass(frozen=True)
class DataFile:
    """A file that a data set is read from: where it lies below the data root, its size, its md5.

    `size` in bytes and `md5` are those of the unpacked file. With `gz_size` the file may also
    (or only) be there as `path`.gz, of that many bytes as published; other compressions of the
    right content are accepted.

    >>> DataFile("MNIST/raw/t10k-labels-idx1-ubyte", 10008, "27ae3e4e...", gz_size=4542).path
    'MNIST/raw/t10k-labels-idx1-ubyte'
    """

    path: str
    size: int
    md5: str
    gz_size: int | None = None


# images [N, channels, 32, 32] and their labels [N]
Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Source:
    """How a data set is stored, read and downloaded: one entry of the registry `SOURCES`.

    `read` turns the contents of `files`, in their order, into the training and the validation
    split (or None), each a pair of images [N, channels, 32, 32] and int64 labels [N]. `fetch`
    downloads what is not yet there into a folder; `archives` are the files in which `fetch`
    looks first. A source without `files` needs no download.

    >>> SOURCES["cifar100"].classes
    100
    """

    classes: int
    read: Callable[[Sequence[bytes]], tuple[Split, Split | None]]
    files: tuple[DataFile, ...] = ()
    archives: tuple[str, ...] = ()
    fetch: Callable[[Path], None] | None = None


def _read_digits(_: Sequence[bytes]) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).reshape(-1, 1, 8, 8)
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False).numpy()
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=_DIGITS_SPLIT_SEED
    )
    labels = labels.astype(np.int64)
    return (images[train], labels[train]), (images[validation], labels[validation])


def _read_idx(contents: Sequence[bytes]) -> tuple[Split, Split]:
    def split(images: bytes, labels: bytes) -> Split:
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        padded = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)))
        return padded, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)

    return split(*contents[:2]), split(*contents[2:])


def _read_cifar(label_key: str, contents: Sequence[bytes]) -> tuple[Split, Split]:
    def split(batches: Sequence[bytes]) -> Split:
        # Unpickling can run any code: `_verified` has let through nothing but known bytes.
        entries = [pickle.loads(batch, encoding="latin1") for batch in batches]
        images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        return images, np.concatenate([entry[label_key] for entry in entries]).astype(np.int64)

    return split(contents[:-1]), split(contents[-1:])


def _fetch(torchvision_class: str, folder: Path) -> None:
    # Imported here because loading data needs no torchvision, which takes seconds to import.
    from torchvision import datasets

    getattr(datasets, torchvision_class)(folder, download=True)


def _idx_source(folder: str, facts: Sequence[tuple[str, int, str, int]]) -> Source:
    files = tuple(DataFile(f"{folder}/raw/{path}", *sums) for path, *sums in facts)
    archives = tuple(f"{file.path}.gz" for file in files)
    return Source(10, _read_idx, files, archives, partial(_fetch, folder))


# md5 of CIFAR's files: torchvision's train_list and test_list. md5 of the unpacked MNIST and
# Fashion-MNIST files: taken from .gz files that have the md5 of torchvision's resources.
SOURCES: dict[str, Source] = {
    "digits": Source(10, _read_digits),
    "mnist": _idx_source(
        "MNIST",
        [
            ("train-images-idx3-ubyte", 47040016, "6bbc9ace898e44ae57da46a324031adb", 9912422),
            ("train-labels-idx1-ubyte", 60008, "a25bea736e30d166cdddb491f175f624", 28881),
            ("t10k-images-idx3-ubyte", 7840016, "2646ac647ad5339dbf082846283269ea", 1648877),
            ("t10k-labels-idx1-ubyte", 10008, "27ae3e4e09519cfbb04c329615203637", 4542),
        ],
    ),
    "fashion-mnist": _idx_source(
        "FashionMNIST",
        [
            ("train-images-idx3-ubyte", 47040016, "f4a8712d7a061bf5bd6d2ca38dc4d50a", 26421880),
            ("train-labels-idx1-ubyte", 60008, "9018921c3c673c538a1fc5bad174d6f9", 29515),
            ("t10k-images-idx3-ubyte", 7840016, "8181f5470baa50b63fa0f6fddb340f0a", 4422102),
            ("t10k-labels-idx1-ubyte", 10008, "15d484375f8d13e6eb1aabb0c3f46965", 5148),
        ],
    ),
    "cifar10": Source(
        classes=10,
        read=partial(_read_cifar, "labels"),
        files=tuple(
            DataFile(f"cifar-10-batches-py/{path}", size, md5)
            for path, size, md5 in [
                ("data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f"),
                ("data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
                ("data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751"),
                ("data_batch_4", 31035696, "634d18415352ddfa80567beed471001a"),
                ("data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
                ("test_batch", 31035526, "40351d587109b95175f43aff81a1287e"),
            ]
        ),
        archives=("cifar-10-python.tar.gz",),
        fetch=partial(_fetch, "CIFAR10"),
    ),
    "cifar100": Source(
        classes=100,
        read=partial(_read_cifar, "fine_labels"),
        files=(
            DataFile("cifar-100-python/train", 155249918, "16019d7e3df5f24257cddd939b257f8d"),
            DataFile("cifar-100-python/test", 31049707, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        ),
        archives=("cifar-100-python.tar.gz",),
        fetch=partial(_fetch, "CIFAR100"),
    ),
}

DATASETS = tuple(SOURCES)


def data_root(root: str | os.PathLike | None = None) -> Path:
    """Return the folder that holds the data sets.

    Args:
        root: the folder, where one is chosen.

    Returns:
        `root` if given; else the environment variable TWOPHASE_DATA if it is set and not empty;
        else the folder data/ of the checkout that this package runs from (known by its
        pyproject.toml); else data/ in the working directory. It need not be there.

    >>> data_root("/somewhere").name
    'somewhere'
    """
    chosen = root if root is not None else os.environ.get("TWOPHASE_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return (project_folder() or Path()) / "data"


@dataclass(frozen=True)
class _Checked:
    """A file that exists: its unpacked content, and what is wrong with it ("" if nothing)."""

    path: Path
    content: bytes
    problem: str


def _check(path: Path, file: DataFile) -> _Checked:
    try:
        stored = path.read_bytes()
    except OSError as error:
        return _Checked(path, b"", f"cannot be read ({error.strerror})")
    content, size, expected = stored, len(stored), file.size
    if path.suffix == ".gz":
        expected = file.gz_size
        try:
            content = gzip.decompress(stored)
        except (OSError, EOFError, zlib.error):
            content = b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == file.md5:
        return _Checked(path, content, "")
    wrong = f"size {size} instead of {expected}" if size != expected else "a different checksum"
    return _Checked(path, b"", f"has {wrong}")


def _forms(root: Path, file: DataFile) -> list[Path]:
    """Every path that may hold the file."""
    path = root / file.path
    return [path] if file.gz_size is None else [path, path.with_name(path.name + ".gz")]


def _check_forms(root: Path, file: DataFile) -> list[_Checked]:
    """All that is there of a file, checked; the last possible form as missing if nothing is."""
    forms = _forms(root, file)
    there = [_check(path, file) for path in forms if os.path.lexists(path)]
    return there or [_Checked(forms[-1], b"", "is missing")]


def _verified(root: Path, file: DataFile, mend: str) -> bytes:
    """The file's content; `DataError` if it is missing or any form of it is damaged."""
    checked = _check_forms(root, file)
    for form in checked:
        if form.problem:
            raise DataError(f"{form.path} {form.problem}; mend it with: {mend}")
    return checked[0].content


def _mend(name: str, root: Path) -> str:
    """The command that repairs a data set below `root`."""
    command = f"python -m twophase download {name}"
    return command if root == data_root() else f"{command} --data {shlex.quote(str(root))}"


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


def load(
    name: str,
    root: str | os.PathLike | None = None,
    device: torch.device | str = "cpu",
    train_examples: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    validation_examples: int | None = None,
) -> Dataset:
    """Return a data set as standardised images [N, channels, 32, 32] with int64 labels [N].

        x = (pixel - mean) / standard deviation, per channel, over the training set's images

    digits: scikit-learn's 8 x 8 images, enlarged bilinearly, 1437 for training and 360 for
    validation, stratified, the same split always. mnist, fashion-mnist: 28 x 28, a border of two
    zeros added. cifar10, cifar100: three channels; cifar100 with its 100 fine labels. All but
    digits have the official test set as validation set.

    Mean and standard deviation are always those of the full training set at 32 x 32 pixels, so
    that runs on subsets of any size see the same validation inputs and their losses can be
    compared. Loading never downloads: every file is checked by size and md5 first.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the data sets; None: `data_root()`.
        device: where inputs and labels lie.
        train_examples: take that many training examples at random, each class in its share; a
            smaller subset of the same seed is part of a larger one. None: all.
        seed: of the subsets, at least 0.
        dtype: of the inputs.
        validation_examples: the same for the validation examples.

    Returns:
        The `Dataset`.

    Raises:
        DataError: a file is missing, truncated or altered; the message names it and the command
            that repairs it.
        InputError: the name is unknown, or a number of examples or the seed out of range.

    >>> digits = load("digits", train_examples=100)
    >>> digits.train.inputs.shape, len(digits.validation)
    (torch.Size([100, 1, 32, 32]), 360)
    """
    source = SOURCES[check_choice("dataset", name, SOURCES)]
    check_integer("seed", seed, 0)
    for field, count in _counts(train_examples, validation_examples):
        check_integer(field, count, 1)
    folder = data_root(root)
    mend = _mend(name, folder)
    train, validation = source.read([_verified(folder, file, mend) for file in source.files])
    mean, deviation = (s.to(dtype).to(device) for s in _statistics(train[0]))

    def examples(images: np.ndarray, labels: np.ndarray) -> Examples:
        inputs = torch.from_numpy(images).to(device, dtype, copy=True)
        return Examples(inputs.sub_(mean).div_(deviation), torch.from_numpy(labels).to(device))

    parts = {"train_examples": train, "validation_examples": validation}
    for field, count in _counts(train_examples, validation_examples):
        parts[field] = _subset(field, parts[field], count, seed)
    train, validation = parts.values()
    held_out = None if validation is None else examples(*validation)
    return Dataset(name, examples(*train), held_out, source.classes)


def _counts(train: int | None, validation: int | None) -> list[tuple[str, int]]:
    counts = {"train_examples": train, "validation_examples": validation}
    return [(field, count) for field, count in counts.items() if count is not None]


def _subset(
    field: str, images: tuple[np.ndarray, np.ndarray] | None, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` images and labels at random, each class in its share."""
    available = 0 if images is None else len(images[1])
    if count > available:
        allowed = f"a whole number from 1 to {available}" if available else "None: there are none"
        raise InputError(field, count, allowed)
    chosen = _stratified(images[1], count, torch.Generator().manual_seed(seed))
    return images[0][chosen], images[1][chosen]


def download(name: str, root: str | os.PathLike | None = None) -> Path:
    """Download or repair a data set and return the folder it lies in.

    Does nothing if every file is already right; digits needs no download. torchvision fetches
    into a temporary folder below `root`; a missing or damaged file is replaced only once all new
    ones are verified, and good files stay untouched.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the data sets, made if it is not there; None: `data_root()`.

    Returns:
        The folder that holds the data sets.

    Raises:
        DataError: the network, the disk or the new files fail.
        InputError: the name is unknown.

    >>> download("digits", "/somewhere").name
    'somewhere'
    """
    source = SOURCES[check_choice("dataset", name, SOURCES)]
    folder = data_root(root)
    damaged = {form.path for form in _bad_forms(folder, source)}
    if not damaged:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            _fetch_verified(name, source, folder, Path(temporary))
            _move_into_place(Path(temporary), folder, damaged)
    # torchvision raises RuntimeError, urllib OSError (URLError) or HTTPException
    except (RuntimeError, OSError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} could not be downloaded into {folder}: {reason}") from error
    return folder


def _bad_forms(root: Path, source: Source) -> list[_Checked]:
    return [form for file in source.files for form in _check_forms(root, file) if form.problem]


def _fetch_verified(name: str, source: Source, folder: Path, temporary: Path) -> None:
    # Copies, because torchvision overwrites an archive whose checksum is wrong.
    for archive in source.archives:
        if (folder / archive).is_file():
            (temporary / archive).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / archive, temporary / archive)
    source.fetch(temporary)
    for form in _bad_forms(temporary, source):
        relative = form.path.relative_to(temporary)
        raise DataError(f"{name}: the downloaded file {relative} {form.problem}; try again later")


def _move_into_place(temporary: Path, folder: Path, damaged: set[Path]) -> None:
    for new in sorted(path for path in temporary.rglob("*") if path.is_file()):
        target = folder / new.relative_to(temporary)
        if target in damaged or not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            # In two steps, because the target's folder may be a link to another disk.
            beside = target.with_name(f".{target.name}.new")
            shutil.move(new, beside)
            os.replace(beside, target)
