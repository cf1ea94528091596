"""Data sets: what is read, how it is split and standardised, and that damage never passes."""

import gzip
import hashlib
import os
import pickle
import shlex
import shutil
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from twophase.__main__ import main
from twophase.errors import DataError, InputError
from twophase.examples import Dataset, Examples
from twophase.problems import image_files
from twophase.problems.image_files import DataFile, Source, data_root, download
from twophase.problems.images import load

IDX_NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def md5(content):
    return hashlib.md5(content).hexdigest()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


TINY_ARRAYS = [
    pixels(6, 28, 28),
    np.array([0, 1, 2, 0, 1, 2], np.uint8),
    pixels(3, 28, 28, seed=1),
    np.array([2, 1, 0], np.uint8),
]
TINY = {f"MNIST/raw/{n}": idx(a) for n, a in zip(IDX_NAMES, TINY_ARRAYS, strict=True)}
TINY_GZ = {f"{path}.gz": gzip.compress(content, mtime=0) for path, content in TINY.items()}
TRAIN_IMAGES = "MNIST/raw/train-images-idx3-ubyte"


def write(root, contents):
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def no_fetch(_):
    raise AssertionError("nothing may be fetched")


def tiny_source(fetch=no_fetch):
    files = tuple(
        DataFile(path, len(content), md5(content), len(TINY_GZ[f"{path}.gz"]))
        for path, content in TINY.items()
    )
    return Source(3, image_files._read_idx, files, tuple(TINY_GZ), fetch)


@pytest.fixture
def register(monkeypatch):
    """Add a data set to the registry for one test."""
    return partial(monkeypatch.setitem, image_files.SOURCES)


@pytest.fixture
def tiny(register, tmp_path):
    register("tiny", tiny_source())
    return tmp_path


def in_memory(images, labels):
    validation = images[:2], labels[:2]
    return Source(int(labels.max()) + 1, lambda _: ((images, labels), validation))


# --- examples and data sets


@pytest.mark.parametrize(
    ("inputs", "targets", "field"),
    [
        (torch.zeros(0, 1), torch.zeros(0), "inputs"),
        (torch.tensor(1.0), torch.zeros(1), "inputs"),
        (torch.zeros(3, 1), torch.zeros(2), "targets"),
        (torch.zeros(3, 1), torch.tensor(1), "targets"),
    ],
)
def test_examples_want_one_target_per_input_and_at_least_one(inputs, targets, field):
    with pytest.raises(InputError, match=f"^{field}: "):
        Examples(inputs, targets)


def test_examples_move_keeps_labels_whole():
    moved = Examples(torch.ones(2, 3), torch.tensor([1, 0])).to("cpu", torch.float64)
    assert (moved.inputs.dtype, moved.targets.dtype) == (torch.float64, torch.int64)
    assert (
        Examples(torch.ones(2, 3), torch.ones(2, 1)).to("cpu", torch.float64).targets.dtype
        == torch.float64
    )


def test_dataset_counts_channels():
    examples = Examples(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))
    assert Dataset("x", examples, None, 2).channels == 3


# --- where data lies


def test_root_is_argument_then_environment_then_checkout_then_working_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TWOPHASE_DATA", "/from/environment")
    assert data_root("/given") == Path("/given")
    assert data_root() == Path("/from/environment")
    monkeypatch.setenv("TWOPHASE_DATA", "")
    assert data_root("~/x") == Path.home() / "x"
    module = tmp_path / "twophase" / "problems" / "image_files.py"
    monkeypatch.setattr(image_files, "__file__", str(module))
    assert data_root() == Path("data")
    (tmp_path / "pyproject.toml").touch()
    assert data_root() == tmp_path.resolve() / "data"


# --- digits


def undo_standardisation(examples, images):
    """Pixels of standardised examples, given the training images they were standardised by."""
    mean, deviation = images.mean((0, 2, 3)), images.std((0, 2, 3))
    x = examples.inputs.double().numpy()
    return x * deviation[:, None, None] + mean[:, None, None]


def enlarge(images):
    """Bilinear 8 -> 32 by definition: pixel centres at (i + 1/2) / 4 - 1/2, clamped."""
    centre = ((np.arange(32) + 0.5) / 4 - 0.5).clip(0, 7)
    weights = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(8)))
    return np.einsum("ia,jb,nab->nij", weights, weights, images)


def test_digits_are_scikit_learns_enlarged_and_split_in_shares():
    digits = load("digits", dtype=torch.float64)
    assert (len(digits.train), len(digits.validation)) == (1437, 360)
    assert (digits.classes, digits.channels, digits.name) == (10, 1, "digits")
    raw = load_digits()
    counts = np.bincount(raw.target)
    held_out = digits.validation.targets.bincount().numpy()
    assert (np.abs(held_out - counts * 360 / 1797) <= 1).all()
    # Each digit is in exactly one split: the rows, sorted, are scikit-learn's.
    x = torch.cat((digits.train.inputs, digits.validation.inputs))
    y = torch.cat((digits.train.targets, digits.validation.targets))
    expected = enlarge(raw.images)
    scale = expected.std() / x.std(correction=0).item()
    found = x.flatten(1).numpy() * scale
    found = found - found.min() + expected.min()
    order = np.lexsort(np.round(found, 6).T), np.lexsort(np.round(expected.reshape(1797, -1), 6).T)
    np.testing.assert_allclose(found[order[0]], expected.reshape(1797, -1)[order[1]], atol=1e-9)
    np.testing.assert_array_equal(y.numpy()[order[0]], raw.target[order[1]])


def test_digits_split_is_the_same_for_every_seed_and_release():
    targets = load("digits", seed=5, train_examples=10).validation.targets
    assert torch.equal(targets, load("digits").validation.targets)
    head = [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6, 6, 4, 5, 8, 1, 3, 5, 6]
    assert targets[:20].tolist() == head


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_have_the_dtype_and_targets_are_int64(dtype):
    digits = load("digits", dtype=dtype)
    assert digits.train.inputs.dtype == digits.validation.inputs.dtype == dtype
    assert digits.train.targets.dtype == digits.validation.targets.dtype == torch.int64


# --- what is read from files


@pytest.mark.parametrize("files", [TINY, TINY_GZ, TINY | TINY_GZ], ids=["raw", "gz", "both"])
def test_idx_images_get_a_border_of_zeros_and_training_statistics(tiny, files):
    write(tiny, files)
    loaded = load("tiny", tiny, dtype=torch.float64)
    padded = [np.pad(TINY_ARRAYS[i], ((0, 0), (2, 2), (2, 2)))[:, None] for i in (0, 2)]
    for examples, expected, labels in zip(
        (loaded.train, loaded.validation), padded, TINY_ARRAYS[1::2], strict=True
    ):
        np.testing.assert_allclose(
            undo_standardisation(examples, padded[0].astype(float)), expected, atol=1e-9
        )
        assert examples.targets.tolist() == labels.tolist()
    assert (loaded.classes, loaded.channels) == (3, 1)
    assert contents(tiny) == files  # nothing is extracted: the folder may be read-only


@pytest.mark.parametrize("label_key", ["labels", "fine_labels"])
def test_cifar_batches_are_read_channel_by_channel(register, tmp_path, label_key):
    def batch(pictures, labels):
        rows = pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1)
        return pickle.dumps({"data": rows, label_key: labels})

    pictures = pixels(5, 32, 32, 3)
    batches = {
        "a": batch(pictures[:2], [4, 3]),
        "b": batch(pictures[2:4], [2, 1]),
        "test": batch(pictures[4:], [0]),
    }
    write(tmp_path, batches)
    files = tuple(DataFile(path, len(c), md5(c)) for path, c in batches.items())
    register("tiny", Source(5, partial(image_files._read_cifar, label_key), files))
    loaded = load("tiny", tmp_path, dtype=torch.float64)
    expected = pictures.transpose(0, 3, 1, 2).astype(float)
    for examples, part in ((loaded.train, expected[:4]), (loaded.validation, expected[4:])):
        np.testing.assert_allclose(undo_standardisation(examples, expected[:4]), part, atol=1e-9)
    assert loaded.train.targets.tolist() == [4, 3, 2, 1]
    assert loaded.validation.targets.tolist() == [0]
    assert loaded.channels == 3


def test_training_inputs_have_mean_0_and_deviation_1_per_channel(register):
    images = pixels(50, 3, 32, 32) // np.array([1, 2, 5], np.uint8)[:, None, None]
    register("tiny", in_memory(images, np.arange(50)))
    inputs = load("tiny").train.inputs.double()
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    deviation = inputs.std((0, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.ones(3).double(), atol=1e-6, rtol=0)


def test_a_data_set_may_lack_a_validation_split(register):
    images, labels = pixels(4, 1, 32, 32), np.arange(4)
    register("tiny", Source(4, lambda _: ((images, labels), None)))
    assert load("tiny").validation is None


# --- subsets


LABELS = np.repeat([0, 1, 2], [100, 60, 40])


@pytest.fixture
def shares(register):
    register("shares", in_memory(pixels(200, 1, 32, 32), LABELS))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(count=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_subset_keeps_the_classes_shares_and_the_inputs(shares, count, seed):
    full, subset = load("shares"), load("shares", train_examples=count, seed=seed)
    assert len(subset.train) == count
    found = subset.train.targets.bincount(minlength=3)
    assert ((found - count * torch.tensor([0.5, 0.3, 0.2])).abs() <= 1).all()
    # The very rows of the full set, each at most once, in file order.
    rows = (subset.train.inputs[:, None, 0, 0] == full.train.inputs[None, :, 0, 0]).all(-1)
    index = rows.int().argmax(1)
    assert (rows.sum(1) == 1).all() and (index.diff() > 0).all()
    assert torch.equal(subset.train.targets, full.train.targets[index])
    assert torch.equal(subset.validation.inputs, full.validation.inputs)


def test_subset_is_decided_by_the_seed_and_grows_by_adding(shares):
    def rows(count, seed):
        inputs = load("shares", train_examples=count, seed=seed).train.inputs
        return {tuple(row) for row in inputs[:, 0, 0].tolist()}

    assert rows(20, 1) == rows(20, 1) != rows(20, 2)
    assert rows(20, 1) < rows(21, 1) < rows(120, 1)


def test_loading_leaves_global_random_numbers_alone(shares):
    state = torch.random.get_rng_state()
    load("shares", train_examples=5)
    load("digits")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("field", ["train_examples", "validation_examples"])
@pytest.mark.parametrize("count", [0, -1, 201, 1.5, True, "10"])
def test_subset_size_out_of_range_is_named(shares, field, count):
    with pytest.raises(InputError, match=f"^{field}: {count!r} .* whole number"):
        load("shares", **{field: count})


def test_validation_subset_keeps_the_rest_as_it_is():
    full, subset = load("digits"), load("digits", validation_examples=90, seed=1)
    assert torch.equal(subset.train.inputs, full.train.inputs)
    assert len(subset.validation) == 90
    found = subset.validation.targets.bincount(minlength=10)
    assert ((found - full.validation.targets.bincount(minlength=10) / 4).abs() <= 1).all()


def test_unknown_name_and_negative_seed_are_named():
    for function in (load, download):
        with pytest.raises(InputError, match=r"^dataset: 'mnits' .* \(did you mean 'mnist'\?\)"):
            function("mnits")
    with pytest.raises(InputError, match="^seed: -1 "):
        load("digits", seed=-1)


# --- damage


def damaged(content, how):
    middle = len(content) // 2
    return {
        "truncated": content[:middle],
        "empty": b"",
        "longer": content + b"x",
        "altered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }[how]


@pytest.mark.parametrize("files", [TINY, TINY_GZ, TINY | TINY_GZ], ids=["raw", "gz", "both"])
@pytest.mark.parametrize("how", ["truncated", "empty", "longer", "altered"])
@pytest.mark.parametrize("index", range(4))
def test_any_damaged_file_is_named_with_its_mend(tiny, files, how, index):
    write(tiny, files)
    path = list(files)[index]
    bad = damaged(files[path], how)
    (tiny / path).write_bytes(bad)
    with pytest.raises(DataError) as error:
        load("tiny", tiny)
    if how == "altered":
        problem = "has a different checksum"
    else:
        problem = f"has size {len(bad)} instead of {len(files[path])}"
    command = f"python -m twophase download tiny --data {tiny}"
    assert str(error.value) == f"{tiny / path} {problem}; mend it with: {command}"


def test_missing_file_is_named_with_its_mend(tiny, monkeypatch):
    write(tiny, TINY)
    (tiny / TRAIN_IMAGES).unlink()
    monkeypatch.setenv("TWOPHASE_DATA", str(tiny))
    with pytest.raises(DataError) as error:
        load("tiny")
    command = "python -m twophase download tiny"
    assert str(error.value) == f"{tiny / TRAIN_IMAGES}.gz is missing; mend it with: {command}"


def test_unreadable_file_is_named(tiny):
    write(tiny, TINY)
    (tiny / TRAIN_IMAGES).unlink()
    (tiny / TRAIN_IMAGES).mkdir()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte cannot be read \(Is a dir"):
        load("tiny", tiny)


def test_gz_of_the_right_content_in_another_compression_is_right(tiny):
    write(tiny, {f"{path}.gz": gzip.compress(c, 1, mtime=9) for path, c in TINY.items()})
    assert load("tiny", tiny).train.targets.tolist() == TINY_ARRAYS[1].tolist()


def test_a_gzip_bomb_is_not_unpacked(tiny):
    write(tiny, TINY_GZ)
    (tiny / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(bytes(2**25), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz has "):
        load("tiny", tiny)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_gz_of_other_content_is_wrong(tiny):
    write(tiny, TINY_GZ)
    other = gzip.compress(damaged(TINY[TRAIN_IMAGES], "altered"), mtime=0)
    (tiny / f"{TRAIN_IMAGES}.gz").write_bytes(other)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz has "):
        load("tiny", tiny)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(list(TINY | TINY_GZ)), st.floats(0, 1, exclude_max=True), st.integers(1, 255)
)
def test_no_altered_byte_ever_changes_what_is_loaded(tiny, path, where, change):
    files = TINY if path in TINY else TINY_GZ
    write(tiny, files)
    content = bytearray(files[path])
    content[int(where * len(content))] ^= change
    (tiny / path).write_bytes(content)
    try:
        loaded = load("tiny", tiny, dtype=torch.float64)
    except DataError:
        pass
    else:  # some bytes of a gzip header, such as the time, mean nothing
        assert path in TINY_GZ
        original = image_files._read_idx(list(TINY.values()))
        found = undo_standardisation(loaded.validation, original[0][0].astype(float))
        np.testing.assert_allclose(found, original[1][0], atol=1e-9)
    finally:
        shutil.rmtree(tiny / "MNIST")


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_altered_pickles_are_never_unpickled(register, tmp_path):
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(str(mark)))
    (tmp_path / "batch").write_bytes(bomb)
    file = DataFile("batch", len(bomb), md5(b"what it should be"))
    read = partial(image_files._read_cifar, "labels")
    register("tiny", Source(2, read, (file, file)))
    with pytest.raises(DataError, match="batch has a different checksum"):
        load("tiny", tmp_path)
    assert not mark.exists()
    # The mark does tell: with the bomb's own md5 it goes off.
    known = replace(file, md5=md5(bomb))
    register("tiny", Source(2, read, (known, known)))
    with pytest.raises(TypeError):
        load("tiny", tmp_path)
    assert mark.exists()


# --- download


def fetch(files):
    return lambda folder: write(folder, files)


def test_download_brings_what_is_missing_and_then_does_nothing(register, tmp_path):
    root = tmp_path / "new" / "data"
    register("tiny", tiny_source(fetch(TINY | TINY_GZ | {"MNIST/readme": b"hello"})))
    assert download("tiny", root) == root
    assert contents(root) == TINY | TINY_GZ | {"MNIST/readme": b"hello"}
    register("tiny", tiny_source(no_fetch))
    download("tiny", root)
    assert len(load("tiny", root).train) == 6
    assert [p.name for p in root.iterdir()] == ["MNIST"]  # no temporary folder stays


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("path", [TRAIN_IMAGES, f"{TRAIN_IMAGES}.gz"])
def test_download_mends_the_bad_file_and_touches_no_other(register, tmp_path, how, path):
    files = TINY | TINY_GZ
    write(tmp_path, files | {"MNIST/raw/mine": b"mine"})
    if how == "missing":
        (tmp_path / TRAIN_IMAGES).unlink()
        (tmp_path / f"{TRAIN_IMAGES}.gz").unlink()
    else:
        (tmp_path / path).write_bytes(damaged(files[path], how))
    before = {p: p.stat().st_ino for p in tmp_path.rglob("*") if p.is_file()}
    register("tiny", tiny_source(fetch(files | {"MNIST/raw/mine": b"theirs"})))
    download("tiny", tmp_path)
    assert contents(tmp_path) == files | {"MNIST/raw/mine": b"mine"}
    changed = {p for p, inode in before.items() if p.stat().st_ino != inode}
    assert changed == (set() if how == "missing" else {tmp_path / path})


def test_download_of_damaged_files_changes_nothing(register, tmp_path):
    bad = TINY | {TRAIN_IMAGES: b"bad"}
    write(tmp_path, bad)
    register("tiny", tiny_source(fetch(TINY | {TRAIN_IMAGES: b"also bad"})))
    with pytest.raises(DataError) as error:
        download("tiny", tmp_path)
    size = len(TINY[TRAIN_IMAGES])
    problem = f"the downloaded file {TRAIN_IMAGES} has size 8 instead of {size}"
    assert str(error.value) == f"tiny: {problem}; try again later"
    assert contents(tmp_path) == bad


@pytest.mark.parametrize("error", [OSError("no\nroute"), RuntimeError("no\nroute"), EOFError("no")])
def test_download_that_fails_is_one_line_and_changes_nothing(register, tmp_path, error):
    def fail(folder):
        write(folder, TINY)
        raise error

    register("tiny", tiny_source(fail))
    with pytest.raises(DataError, match=r"^tiny could not be downloaded into \S+: no( route)?$"):
        download("tiny", tmp_path)
    assert contents(tmp_path) == {}


def test_download_lets_the_fetcher_see_copies_of_archives(register, tmp_path):
    write(tmp_path, TINY_GZ | {TRAIN_IMAGES: b"bad"})
    seen = {}

    def unpack(folder):
        seen.update(contents(folder))
        write(folder, dict.fromkeys(TINY_GZ, b"overwritten"))
        write(folder, TINY | TINY_GZ)

    register("tiny", tiny_source(unpack))
    download("tiny", tmp_path)
    assert seen == TINY_GZ
    assert contents(tmp_path) == TINY | TINY_GZ


def test_torchvision_mends_from_a_good_archive_without_the_network(register, tmp_path, monkeypatch):
    resources = [(Path(path).name, md5(content)) for path, content in TINY_GZ.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://not-asked/"])
    register("tiny", tiny_source(image_files.SOURCES["mnist"].fetch))
    write(tmp_path, TINY | TINY_GZ | {TRAIN_IMAGES: b"bad"})
    download("tiny", tmp_path)
    assert contents(tmp_path) == TINY | TINY_GZ


def test_the_command_in_the_message_mends(register, tmp_path):
    root = tmp_path / "with space"
    register("tiny", tiny_source(fetch(TINY)))
    with pytest.raises(DataError) as error:
        load("tiny", root)
    python, _, module, *arguments = shlex.split(str(error.value).split("mend it with: ")[1])
    assert (python, module) == ("python", "twophase")
    assert main(arguments) == 0
    assert len(load("tiny", root).train) == 6


def test_digits_need_no_download(tmp_path):
    assert download("digits", tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


# --- the registry, and the real data where there is some


def test_registry_agrees_with_torchvision():
    sets = torchvision.datasets
    for name, folder in (("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")):
        published = [f"{folder}/raw/{path}" for path, _ in getattr(sets, folder).resources]
        assert list(image_files.SOURCES[name].archives) == published
        assert [f"{file.path}.gz" for file in image_files.SOURCES[name].files] == published
    for name, cifar in (("cifar10", sets.CIFAR10), ("cifar100", sets.CIFAR100)):
        published = [
            (f"{cifar.base_folder}/{path}", checksum)
            for path, checksum in [*cifar.train_list, *cifar.test_list]
        ]
        assert [(file.path, file.md5) for file in image_files.SOURCES[name].files] == published
        assert image_files.SOURCES[name].archives == (cifar.filename,)


REAL_ROOT = os.environ.get("TWOPHASE_DATA")


@pytest.mark.parametrize(
    ("name", "train", "validation", "classes", "channels", "mean", "deviation"),
    [
        ("mnist", 60000, 10000, 10, 1, [0.1000], [0.2752]),
        ("fashion-mnist", 60000, 10000, 10, 1, [0.2190], [0.3318]),
        ("cifar10", 50000, 10000, 10, 3, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("cifar100", 50000, 10000, 100, 3, [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_real_data(name, train, validation, classes, channels, mean, deviation):
    first = image_files.SOURCES[name].files[0].path
    if not REAL_ROOT or not (Path(REAL_ROOT) / first).parent.is_dir():
        pytest.skip(f"{name} is not below TWOPHASE_DATA")
    loaded = load(name, train_examples=1000)
    assert (len(loaded.train), len(loaded.validation)) == (1000, validation)
    assert (loaded.classes, loaded.channels) == (classes, channels)
    assert loaded.train.inputs.shape[1:] == (channels, 32, 32)
    assert loaded.train.targets.bincount().shape == (classes,)
    # The darkest and lightest pixels, 0 and 255, give away mean and deviation in units of 1.
    low, high = loaded.validation.inputs.amin((0, 2, 3)), loaded.validation.inputs.amax((0, 2, 3))
    found = 1 / (high - low)
    torch.testing.assert_close(found, torch.tensor(deviation), atol=1e-4, rtol=0)
    torch.testing.assert_close(-low * found, torch.tensor(mean), atol=1e-4, rtol=0)
