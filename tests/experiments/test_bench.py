"""The benchmark: what it counts, against counts by hand, its files, and its errors."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.overrides import TorchFunctionMode

from twophase import (
    ConjugateDirection,
    Descent,
    GoldenSection,
    ParabolaFirst,
    StrongWolfe,
    device,
)
from twophase.__main__ import main
from twophase.examples import Examples
from twophase.experiments import bench, floor
from twophase.experiments.bench import LINE_SEARCHES
from twophase.experiments.floor import Speed
from twophase.objective import FunctionObjective
from twophase.problems import images, networks

pytestmark = pytest.mark.slow


def conjugate(line_search):
    return Descent(ConjugateDirection("PR+"), line_search)


def valley(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def bowl(x):
    return (x * x).sum()


class Tape(FunctionObjective):
    """A function that writes down what it is asked for."""

    def __init__(self, function):
        super().__init__(function)
        self.asked = []

    def value(self, x):
        self.asked.append(("f", x.clone()))
        return super().value(x)

    def value_and_gradient(self, x):
        self.asked.append(("g", x.clone()))
        return super().value_and_gradient(x)


@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_passes_are_one_per_value_and_three_per_gradient(name):
    tape = Tape(valley)
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    path = bench.descend(tape, x, conjugate(LINE_SEARCHES[name]), iterations=6)
    assert len(path.passes) == len(path.losses) == 6
    # the gradient at the start belongs to no iteration
    asked = [kind for kind, _ in tape.asked[1:]]
    assert sum(path.passes) == asked.count("f") + 3 * asked.count("g")
    if name.startswith("golden"):
        assert asked.count("g") == 6, "one gradient where each search ends"
    if name == "wolfe":
        assert asked.count("f") == 0
    assert min(valley(x).item() for _, x in tape.asked) == pytest.approx(min(path.losses))


def test_a_quadratic_takes_the_passes_that_one_works_out_by_hand():
    """On |x|² the vertex of the first step's parabola, which ends at loss 0, is the minimum."""
    tape = Tape(bowl)
    path = bench.descend(tape, torch.ones(2).double(), conjugate(StrongWolfe()), 1)
    assert path.passes == [3] and path.losses[0] == pytest.approx(0)
    parabola = Tape(lambda x: bowl(x) + 1)
    path = bench.descend(parabola, torch.ones(2).double(), conjugate(ParabolaFirst()), 1)
    # a forward trial, then a gradient at the vertex, which is the next iteration's
    assert path.passes == [1 + 3] and path.losses[0] == pytest.approx(1)


def test_a_descent_goes_on_to_the_target_but_not_for_ever():
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    settings = conjugate(StrongWolfe())
    short = bench.descend(FunctionObjective(valley), x, settings, 2)
    longer = bench.descend(FunctionObjective(valley), x, settings, 2, short.losses[-1] / 2)
    assert len(longer.passes) > 2 and longer.losses[-1] <= short.losses[-1] / 2 < longer.losses[-2]
    never = bench.descend(FunctionObjective(valley), x, settings, 2, -1.0)
    assert len(never.passes) == 2 * bench.PATIENCE and math.isnan(never.passes_to(-1.0))


def test_passes_to_a_loss_are_those_of_the_iterations_up_to_it():
    path = bench.Course([17, 16, 15], [0.9, 0.4, 0.1])
    assert [path.passes_to(t) for t in (0.9, 0.5, 0.4, 0.1)] == [17, 33, 33, 48]
    assert math.isnan(path.passes_to(0.01))


def test_rows_are_medians_and_quartiles():
    values = [5.0, 1.0, 2.0, 8.0]
    row = bench.summarise("m", "c", "u", values)
    assert (row.low, row.value, row.high, row.count) == (*np.quantile(values, (0.25, 0.5, 0.75)), 4)


def test_cg_holds_six_vectors_however_large_the_training_set():
    """While a gradient is made: the step's ends, a gradient, the direction, the sum and its parts.

    In a search: where it starts, a trial, two gradients and two directions.
    """
    width = 1024  # so that a part of a vector in float64 is small
    # of a chunk: what both layers make, and a gradient by one of them
    results = 1.1 * 3 * bench.CHUNK / width
    cpu = torch.device("cpu")
    golden, parabola = map(conjugate, (GoldenSection(), ParabolaFirst()))
    few, many = (bench.held(golden, width, k * bench.CHUNK, cpu, 4) for k in (1, 16))
    assert 5 < few <= 6 + results and many == pytest.approx(few, abs=1e-3)
    # the best trial and the last one have gradients, too
    assert few < bench.held(parabola, width, bench.CHUNK, cpu, 8) <= 9 + results


def test_memory_is_counted_for_few_and_for_many_examples():
    rows = bench.memory(256, torch.device("cpu"))
    vectors = [row.value for row in rows if row.unit == "vectors"]
    golden, parabola, bfgs = vectors
    assert 6 < golden <= parabola and bfgs - parabola >= 2 * bench.HISTORY - 2
    for row in rows:
        if row.unit == "times":
            assert "256 over 16 examples" in row.case and row.value == pytest.approx(1, abs=0.01)


def test_a_floor_is_by_the_speed_in_the_precision_of_what_it_is_the_floor_of(monkeypatch):
    """Adam's epoch is as torch is set, a gradient of the full loss in full precision."""
    seen = []

    def speed(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return Speed(1.0, 1.0)

    monkeypatch.setattr(bench, "speed", speed)
    network, inputs = torch.nn.Linear(2, 3), torch.ones(5, 2)
    torch.set_float32_matmul_precision("high")
    try:
        rows = bench.floors({"line": network}, Examples(inputs, torch.ones(5, 3)), 1)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["high", "highest", "highest", "highest"]
    assert rows[0].case == "Adam's epoch, line"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "results"
    assert main(["bench", "--preset", "smoke", "--device", "cpu", "--out", str(out)]) == 0
    return out


def test_the_command_leaves_a_table_and_where_it_comes_from(smoke):
    table = pd.read_csv(smoke / "bench.csv")
    assert tuple(table.columns) == bench.Row._fields
    searches = table[table.measure == "passes per iteration"].case.tolist()
    assert searches[:-2] == [f"PR+ with {name}" for name in LINE_SEARCHES]
    assert searches[-1].startswith("self-scaled BFGS with wolfe")
    assert table.measure.value_counts().to_dict() == {
        "passes per iteration": len(searches),
        "loss after as many iterations": len(searches),
        "passes to golden section's last loss": len(searches),
        "the same over golden section's": len(searches),
        "time of an evaluation": 2,
        "time of an Adam epoch": 8,
        "time of an Adam epoch over full precision": 4,
        "deviation of the first mini-batch": 4,
        "deviation after the epochs": 4,
        "loss after the epochs over full precision": 4,
        "peak memory of CG": 6,
        "time of a gradient": 2,
        "floating-point operations": 8,
        "launches": 8,
        "time": 8,
        "floor of the time": 8,
        "time over its floor": 8,
    }
    assert (table.dropna().low <= table.dropna().value).all()
    off = table[table.measure.str.startswith("deviation")].set_index("case").value
    assert (off.filter(like="BFloat16") > 1e-4).all() and (off.filter(like="TF32") < 1e-6).all()
    reference = table[table.measure.str.startswith("the same")].set_index("case").value
    assert reference[bench.REFERENCE] == 1
    facts = json.loads((smoke / "provenance.json").read_text())
    assert {"command", "revision", "versions", "device", "time", "seconds"} <= facts.keys()
    assert len(facts["load"]) == 3, "how busy the machine was when it began"
    assert facts["command"].startswith("python -m twophase bench --preset smoke")


def test_the_command_prints_a_line_per_result(capsys, smoke):
    table = pd.read_csv(smoke / "bench.csv")
    lines = bench.as_text(table).splitlines()
    assert len(lines) == len(table)
    missing = table.assign(value=math.nan, low=math.nan)
    assert all(line.endswith("not reached") for line in bench.as_text(missing).splitlines())


class FakeCuda(TorchFunctionMode):
    """While active, tensors live on the CPU, and say that they are on a CUDA device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        if function == torch.Tensor.device.__get__:
            return torch.device("cuda:0")
        kwargs.pop("pin_memory", None)
        kwargs = {name: self._moved(value) for name, value in kwargs.items()}
        return function(*map(self._moved, args), **kwargs)

    @staticmethod
    def _moved(value):
        cuda = isinstance(value, torch.device) and value.type == "cuda"
        return torch.device("cpu") if cuda else value


@pytest.fixture
def fake_cuda(monkeypatch):
    """A device whose clock goes on by a second each time it is asked, after it was waited for."""
    asked = []

    def now():
        asked.append("time")
        return float(asked.count("time"))

    for name, fake in {
        "device_count": lambda: 1,
        "get_device_name": lambda _: "fake",
        "get_device_properties": lambda _: SimpleNamespace(total_memory=8e10),
        "synchronize": lambda _: asked.append("wait"),
        "get_rng_state": lambda _: None,
        "set_rng_state": lambda *_: None,
        "is_current_stream_capturing": lambda: False,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=now))
    # which asks the device that is not there, by another name in other versions
    for name in dir(torch.optim.Optimizer):
        if name.endswith("graph_capture_health_check"):
            monkeypatch.setattr(torch.optim.Optimizer, name, lambda _: None)
    return asked


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_on_cuda_there_are_times_their_floor_and_the_ratio(fake_cuda, monkeypatch, tmp_path):
    width = 8
    monkeypatch.setitem(floor.WIDTHS, "cuda", width)
    monkeypatch.setitem(bench.SIZES, "smoke", bench.Size(8, 8, 1, 2, 3, (8, 16), (2, 4), 8))
    with FakeCuda():
        table = bench.run("smoke", device="cuda", out=tmp_path)
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert facts["device"] == "fake" and "--device cuda" in facts["command"]
    assert fake_cuda[::2].count("wait") == fake_cuda[1::2].count("time") == len(fake_cuda) // 2
    rows = table.pivot(index="case", columns="measure", values="value")
    rows = rows[rows["time over its floor"].notna()]
    whats = "Adam's epoch", "captured epoch", "gradient", "value", "CG's iteration"
    assert [sum(case.startswith(what) for case in rows.index) for what in whats] == [2] * 5
    # products of 8 by 8 matrices, and a thousand additions, took a second each, as all else
    rate, launch = 2 * width**3, 1 / floor.LAUNCHES
    least = np.maximum(rows["floating-point operations"] * 1e9 / rate, rows.launches * launch)
    assert (rows.time == 1).all() and (rows["floor of the time"] - least).abs().max() < 1e-9
    assert (rows["time over its floor"] * least - 1).abs().max() < 1e-9
    times = table[table.measure == "time"]
    assert (times.low == 1).all() and (times.high == 1).all() and (times["count"] == 2).all()
    # fused, Adam takes two launches beside those of forward and backward pass
    launches = rows.launches["Adam's epoch, one hidden layer"]
    assert launches < rows.launches["gradient, one hidden layer"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_bytes_give_the_examples_back(channels):
    inputs = torch.randn(5, channels, 4, 3, generator=torch.Generator().manual_seed(0))
    images = bench.PillowImages(inputs, torch.arange(5))
    assert len(images) == 5
    low, high = inputs.aminmax()
    for k in range(5):
        image, target = images[k]
        assert image.shape == (channels, 4, 3) and target == k
        # to the nearest of 256 levels
        assert (image - inputs[k]).abs().max() <= 0.501 * (high - low) / 255


def test_times_are_taken_in_turns(monkeypatch):
    """A clock that only the calls move: what a call takes is what it moves it by."""
    now, order = [0.0], []
    monkeypatch.setattr(bench, "clock", lambda device: now[0])

    def call(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    times = bench._times([call("a", 1.0), call("b", 4.0)], 2, torch.device("cpu"))
    assert times.tolist() == [[1.0, 1.0], [4.0, 4.0]]
    assert order == ["a", "b"] * 3, "one round is not measured"


def test_slopes_are_those_of_a_power_law(monkeypatch):
    asked = []

    def times(calls, repetitions, device):
        asked.append(len(calls))
        return np.array([[3 * k**0.7] * repetitions for k in (4, 40, 400)])

    monkeypatch.setattr(bench, "_times", times)
    network = networks.build("vit-nomlp-wkewq-wvwo1", 1, 10, seed=0)
    examples = images.load("digits", train_examples=8).train
    size = replace(bench.SIZES["smoke"], widths=(2, 4, 8), counts=(4, 40, 400))
    parameters, counts = bench.gradients(network, examples, size, torch.device("cpu"))
    assert counts.value == pytest.approx(0.7) and counts.count == size.repetitions
    # P = 64 w + w + w² + w + 10 w + 10
    p = [76 * width + width**2 + 10 for width in size.widths]
    slope, _ = np.polyfit(np.log(p), 0.7 * np.log((4, 40, 400)), 1)
    assert parameters.value == pytest.approx(slope)
    assert asked == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "paper"], "preset: 'paper' is not allowed; use one of smoke, quick"),
        (["--dataset", "digit"], "(did you mean 'digits'?)"),
        (["--model", "vit"], "model: 'vit' is not allowed; use one of vit-mlp"),
        (["--device", "tpu"], "device: 'tpu' is not allowed"),
        (["--speed"], "unrecognized arguments: --speed"),
    ],
)
def test_options_that_are_wrong_are_one_line(capsys, options, message):
    assert main(["bench", *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
