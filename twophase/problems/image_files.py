"""Image data sets as files: what each consists of, whether it is whole, where it comes from.

A further data set is one entry in `SOURCES`. Only `download` touches the network.
"""

import gzip
import hashlib
import http.client
import io
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
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from twophase.errors import DataError, check_choice

# Changing it would change which digits are held out, and so every number measured on them.
_DIGITS_SPLIT_SEED = 0

# images [N, channels, 32, 32] and their labels [N], int64
Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class DataFile:
    """A file below the data root, with the size in bytes and the md5 of its unpacked content.

    With `gz_size` the file may also (or only) be there as `path`.gz, of that many bytes as
    published; other compressions of the right content are accepted.
    """

    path: str
    size: int
    md5: str
    gz_size: int | None = None


@dataclass(frozen=True)
class Source:
    """How a data set is stored, read and downloaded.

    `read` turns the contents of `files`, in their order, into the training and the validation
    split (or None). `fetch` downloads what is not yet there into a folder; `archives` are the files
    in which it looks first. A source without `files` needs no download. `examples` and `channels`
    are those of the training images, for who wants to know before anything is read.
    """

    classes: int
    read: Callable[[Sequence[bytes]], tuple[Split, Split | None]]
    files: tuple[DataFile, ...] = ()
    archives: tuple[str, ...] = ()
    fetch: Callable[[Path], None] | None = None
    examples: int = 0
    channels: int = 1


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
        # Unpickling can run any code: `read` has let through nothing but known bytes.
        entries = [pickle.loads(batch, encoding="latin1") for batch in batches]
        images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        return images, np.concatenate([entry[label_key] for entry in entries]).astype(np.int64)

    return split(contents[:-1]), split(contents[-1:])


def _fetch(torchvision_class: str, folder: Path) -> None:
    # Imported here because loading data needs no torchvision, which takes seconds to import.
    from torchvision import datasets

    getattr(datasets, torchvision_class)(folder, download=True)


def _idx_source(folder: str, *facts: tuple[str, int, str, int]) -> Source:
    files = tuple(DataFile(f"{folder}/raw/{path}", *sums) for path, *sums in facts)
    archives = tuple(f"{file.path}.gz" for file in files)
    return Source(10, _read_idx, files, archives, partial(_fetch, folder), 60000)


def _cifar_source(classes: int, folder: str, key: str, *facts: tuple[str, int, str]) -> Source:
    files = tuple(DataFile(f"{folder}/{path}", *sums) for path, *sums in facts)
    archives, fetch = (f"cifar-{classes}-python.tar.gz",), partial(_fetch, f"CIFAR{classes}")
    return Source(classes, partial(_read_cifar, key), files, archives, fetch, 50000, channels=3)


# md5 of CIFAR's files: torchvision's train_list and test_list. md5 of the unpacked MNIST and
# Fashion-MNIST files: taken from .gz files that have the md5 of torchvision's resources.
SOURCES: dict[str, Source] = {
    "digits": Source(10, _read_digits, examples=1437),
    "mnist": _idx_source(
        "MNIST",
        ("train-images-idx3-ubyte", 47040016, "6bbc9ace898e44ae57da46a324031adb", 9912422),
        ("train-labels-idx1-ubyte", 60008, "a25bea736e30d166cdddb491f175f624", 28881),
        ("t10k-images-idx3-ubyte", 7840016, "2646ac647ad5339dbf082846283269ea", 1648877),
        ("t10k-labels-idx1-ubyte", 10008, "27ae3e4e09519cfbb04c329615203637", 4542),
    ),
    "fashion-mnist": _idx_source(
        "FashionMNIST",
        ("train-images-idx3-ubyte", 47040016, "f4a8712d7a061bf5bd6d2ca38dc4d50a", 26421880),
        ("train-labels-idx1-ubyte", 60008, "9018921c3c673c538a1fc5bad174d6f9", 29515),
        ("t10k-images-idx3-ubyte", 7840016, "8181f5470baa50b63fa0f6fddb340f0a", 4422102),
        ("t10k-labels-idx1-ubyte", 10008, "15d484375f8d13e6eb1aabb0c3f46965", 5148),
    ),
    "cifar10": _cifar_source(
        *(10, "cifar-10-batches-py", "labels"),
        ("data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", 31035696, "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        ("test_batch", 31035526, "40351d587109b95175f43aff81a1287e"),
    ),
    "cifar100": _cifar_source(
        *(100, "cifar-100-python", "fine_labels"),
        ("train", 155249918, "16019d7e3df5f24257cddd939b257f8d"),
        ("test", 31049707, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
}


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder that holds the data sets; it need not be there.

    `root` if given; else the environment variable TWOPHASE_DATA if it is set and not empty; else
    data/ in the source tree that this package runs from, or in the working directory without one.
    """
    chosen = root if root is not None else os.environ.get("TWOPHASE_DATA")
    if chosen:
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path()) / "data"


class _Checked(NamedTuple):
    """One form of a file: its unpacked content, and what is wrong with it ("" if nothing)."""

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
            # no more than belongs there, whatever it unpacks to
            content = gzip.GzipFile(fileobj=io.BytesIO(stored)).read(file.size + 1)
        except (OSError, EOFError, zlib.error):
            content = b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == file.md5:
        return _Checked(path, content, "")
    wrong = f"size {size} instead of {expected}" if size != expected else "a different checksum"
    return _Checked(path, b"", f"has {wrong}")


def _check_forms(root: Path, file: DataFile) -> list[_Checked]:
    """All forms that are there of a file; the last possible one, as missing, if none is."""
    path = root / file.path
    forms = [path] if file.gz_size is None else [path, path.with_name(path.name + ".gz")]
    there = [_check(form, file) for form in forms if os.path.lexists(form)]
    return there or [_Checked(forms[-1], b"", "is missing")]


def _mend(name: str, root: Path) -> str:
    """The command that repairs a data set below `root`."""
    command = f"python -m twophase download {name}"
    return command if root == data_root() else f"{command} --data {shlex.quote(str(root))}"


def read(name: str, root: str | os.PathLike | None = None) -> tuple[Split, Split | None]:
    """A data set's training and validation split, from files that are checked by size and md5.

    `DataError` names a file that is missing or damaged, and the command that mends it.
    """
    source, folder = SOURCES[check_choice("dataset", name, SOURCES)], data_root(root)
    contents = []
    for file in source.files:
        forms = _check_forms(folder, file)
        for form in forms:
            if form.problem:
                raise DataError(f"{form.path} {form.problem}; mend it with: {_mend(name, folder)}")
        contents.append(forms[0].content)
    return source.read(contents)


def download(name: str, root: str | os.PathLike | None = None) -> Path:
    """Download or repair a data set; the folder that holds the data sets, made if need be.

    torchvision fetches into a temporary folder below `data_root(root)`; missing or damaged files
    are replaced only once all new ones are verified, and good ones stay untouched. `DataError` if
    the network, the disk or the new files fail.
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
