"""Two processes compute what one computes, and say so where they cannot."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from twophase.distributed import ALONE, Processes, apart, processes
from twophase.distributed.processes import Group, fingerprint
from twophase.errors import ProcessError

sys.path.insert(0, str(Path(__file__).parent))
import scenarios  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
PLAIN = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def same(found, expected, where=""):
    """Numbers, tensors and containers of them, to 1e-11 of their largest."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(same(found[key], expected[key], f"{where}/{key}") for key in expected)
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        return all(same(a, b, where) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, torch.Tensor | float):
        a, b = (torch.as_tensor(one).double() for one in (found, expected))
        assert a.shape == b.shape and bool(((a - b).abs() <= 1e-11 * b.abs().max()).all()), (
            f"{where}: {a} instead of {b}"
        )
        return True
    assert found == expected, where
    return True


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, "--nproc-per-node=2", scenarios.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=PLAIN, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_two_processes_find_what_one_finds(name, of_two):
    expected = scenarios.SCENARIOS[name]()
    for found in of_two:
        assert same(found[name], expected, name)


@pytest.mark.slow
def test_processes_stay_the_same_to_the_last_bit(of_two):
    for name in [*scenarios.SCENARIOS, "float32", "bfloat16", "not near enough", "no bfloat16"]:
        first, second = ([*_tensors(found[name])] for found in of_two)
        assert len(first) == len(second) > 0
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name


def _tensors(found):
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, dict | list | tuple):
        for one in found.values() if isinstance(found, dict) else found:
            yield from _tensors(one)


@pytest.mark.slow
def test_processes_leave_a_reduced_precision_together(of_two):
    """Also where it fails in one of them alone: that one would be an exchange ahead."""
    for found in of_two:
        full, failing = found["not near enough"], found["no bfloat16"]
        assert torch.equal(full["train_loss"], failing["train_loss"])
        assert not torch.equal(full["train_loss"], found["bfloat16"]["train_loss"])


@pytest.mark.slow
def test_a_training_apart_is_each_ones_own(of_two):
    for rank, found in enumerate(of_two):
        assert same(found["of its own"], scenarios.of_its_own(rank))


@pytest.mark.slow
def test_an_evaluation_is_one_exchange(of_two):
    for found in of_two:
        assert found["exchanges"] == {name: {"all_reduce": 1} for name, _ in scenarios.evaluated()}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_products_of_the_normal_equations_are_shared(shape, of_two):
    """Cholesky factors, which are not, are not counted here."""
    alone = scenarios.products()[shape]
    assert all(found["products"][shape] < 0.6 * alone for found in of_two)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words",
    [
        ("data of its own", "data: 'other numbers in other processes.*use all of them in each"),
        ("sharded parameters", "params: 'sharded parameters' .* whole ones in each process"),
        ("another order", "data: 'other numbers in other processes"),
        ("another order for validation", "validation: 'other numbers in other processes"),
        ("an order of its own", "data: 'other numbers in other processes"),
        ("a dataset of other examples", "data: 'other numbers in other processes"),
        ("another weight", "problem: 'other numbers in other processes"),
        ("another seed", "processes: .*seed=1 in process 1.* use .*seed=0, as in process 0"),
        ("another switch", "processes: '7 in process 1' is not allowed; use 6, as in process 0"),
        ("another length", "processes: '15 epochs, None passes in process 1'"),
        ("another batch size", "processes: .*batch_size=16.* use .*batch_size=8"),
        ("another width", "processes: 'parameters .*in process 1"),
        ("another phase in a loop", "processes: 'Automatic.* use Descent"),
        ("other batches in a loop", "processes: 'batches=3 in process 1' .* use batches=2"),
        ("other weights", "model: 'other numbers in other processes.* wrap the model in Dist"),
        ("other weights for a closure", "model: 'other numbers in other processes"),
        ("other frozen weights", "model: 'other numbers in other processes"),
        ("other statistics", "model: 'other numbers in other processes"),
        ("other weights in a loop", "parameters: they differ between the processes"),
        ("a shared sampler", "DistributedSampler' is not allowed; use one without"),
    ],
)
def test_what_does_not_go_together_is_one_clear_line(name, words, of_two):
    for found in of_two:
        said = found["mistakes"][name]
        assert re.search(words, said) and "\n" not in said


def test_without_a_group_a_process_is_alone():
    assert processes() is ALONE
    with apart():
        assert processes() is ALONE
    parts = [torch.ones(3), 2]
    assert ALONE.sums(parts, torch.zeros(1)) is parts
    assert ALONE.agreed(lambda: "made") == "made"


class Asked(TorchFunctionMode):
    """Notes the names of the functions of torch that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **kwargs or {})


@pytest.fixture
def group(monkeypatch):
    """A group without others, and tensors without numbers: to read one is an error of torch."""
    monkeypatch.setattr(dist, "all_reduce", lambda flat: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    parameters = [torch.ones(3, device="meta", requires_grad=True) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return Group(), parameters


def test_a_mini_batch_waits_for_no_device(group):
    """Nothing is read, and nothing copied from the host, for which torch would wait, too."""
    here, parameters = group
    with Asked() as asked:
        here.mean(parameters, torch.ones((), device="meta"), 7)
    assert "cat" in asked.names
    assert not asked.names & {"tensor", "as_tensor", "new_tensor", "to", "item", "tolist", "cpu"}


def test_an_error_in_reading_what_was_exchanged_is_explained(group):
    """NCCL may say so late where another process is lost."""
    here, parameters = group
    lost = "^processes: the connection to another one is lost: .*last checkpoint \\(.*meta tensors"
    with pytest.raises(ProcessError, match=lost):
        here.sums([torch.ones(2, device="meta")], parameters[0])
    parameters[1].grad = None
    with pytest.raises(ProcessError, match=lost.replace("meta tensors", "")):
        here.mean(parameters, torch.ones((), device="meta"), 7)


@given(st.integers(0, 100), st.integers(1, 9))
def test_shares_are_all_examples_once_and_nearly_equal(count, number):
    shares = []
    for rank in range(number):
        one = Processes()
        one.rank, one.count = rank, number
        shares.append(range(count)[one.share(count)])
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_a_fingerprint_of_data_tells_orders_apart(dtype):
    tensor = torch.tensor([[0, 1], [1, 1], [0, 0]]).to(dtype)
    other = tensor[[1, 0, 2]]
    assert int(fingerprint(tensor)) == int(fingerprint(other))
    assert int(fingerprint(tensor, ordered=True)) == int(fingerprint(tensor.clone(), ordered=True))
    assert int(fingerprint(tensor, ordered=True)) != int(fingerprint(other, ordered=True))
    for shape in ((), (0,), (0, 3), (2, 0)):
        assert fingerprint(torch.ones(shape, dtype=dtype), ordered=True).shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_a_fingerprint_tells_single_bits_apart(dtype):
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    other = tensor.clone()
    other.view(torch.uint8)[0] ^= 1
    assert int(fingerprint(tensor)) == int(fingerprint(tensor.clone()))
    assert int(fingerprint(tensor)) != int(fingerprint(other))
