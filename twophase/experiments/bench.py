"""How fast the machinery is, as ratios of what runs side by side in one process.

Times are compared in turns, repetition by repetition, so that what else the machine does meets both
sides; passes and live tensors are counted, and do not depend on the machine.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, TensorDataset

from twophase.adam import Adam, AdamSettings
from twophase.device import clock, device_name, resolve_device
from twophase.directions import ConjugateDirection, LBFGSDirection, SelfScaledBFGSDirection
from twophase.errors import check_choice
from twophase.examples import Examples
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.progress import track
from twophase.experiments.provenance import git_revision, now, versions
from twophase.full_batch import FullBatch
from twophase.line_search import GoldenSection, ParabolaFirst, StrongWolfe
from twophase.losses import mse
from twophase.objective import Objective, evaluate
from twophase.preconditioner import AdamMoments, Identity, from_moments
from twophase.problems import images, networks
from twophase.problems.images import DATASETS
from twophase.second_phase import Descent, Status, iterate

REFERENCE = "PR+ with golden"
LINE_SEARCHES = {
    "golden": GoldenSection(rtol=1e-2),
    "golden-tight": GoldenSection(rtol=1e-8),
    "parabola": ParabolaFirst(),
    "wolfe": StrongWolfe(),
}
# A median of passes is over the iterations after these.
FIRST_ITERATIONS = 10
# How many times as many iterations as golden section's a search may take to reach its loss.
PATIENCE = 5
# Of BFGS, where memory is counted: it is full soon.
HISTORY = 5


@dataclass(frozen=True)
class Size:
    """How much a preset measures."""

    examples: int  # of the data set at most, but for the Adam epoch
    epoch_examples: int  # of the data set at most, for the Adam epoch
    adam_epochs: int  # before the line searches are compared
    iterations: int  # of CG with golden section; see `line_searches`
    repetitions: int  # of whatever is timed
    widths: tuple[int, ...]  # of the networks for time against P
    counts: tuple[int, ...]  # K for time against K; examples come again where there are fewer
    memory_width: int  # of the network whose vectors are counted


SIZES = {
    "smoke": Size(48, 64, 1, 2, 2, (8, 80), (2, 20), 64),
    "quick": Size(2048, 10_000, 30, 25, 9, (64, 128, 256, 512, 1024), (144, 1440, 14400), 1024),
}


class Row(NamedTuple):
    """One result: what was measured, for which case, its median, quartiles and their number.

    `low` and `high` are missing for what is counted once.
    """

    measure: str
    case: str
    value: float
    low: float
    high: float
    count: int
    unit: str


def summarise(measure: str, case: str, unit: str, values: Sequence[float]) -> Row:
    """The median and the quartiles of some values as a row."""
    if not len(values):
        return Row(measure, case, math.nan, math.nan, math.nan, 0, unit)
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Row(measure, case, median, low, high, len(values), unit)


def run(
    preset: str = "quick",
    dataset: str = "digits",
    model: str = "vit-nomlp-wkewq-wvwo1",
    root: Path | None = None,
    device: str | torch.device = "auto",
    out: Path | None = None,
) -> pd.DataFrame:
    """Measure everything, and keep the results where a folder is given.

    Args:
        preset: smoke (seconds, for tests) or quick (minutes).
        dataset, model, root, device: see `ImageProblem` and `twophase.experiments.runs.run`.
        out: folder for `bench.csv` and `provenance.json`; None: none is written.

    Returns:
        A row for each result; columns are the fields of `Row`.

    Raises:
        InputError, DataError, OSError: as `twophase.experiments.runs.run` does.
    """
    size = SIZES[check_choice("preset", preset, SIZES)]
    check_choice("dataset", dataset, DATASETS)
    check_choice("model", model, networks.MODELS)
    chosen = resolve_device(device)
    loaded = images.load(dataset, root, chosen)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    network = networks.build(model, loaded.channels, loaded.classes, seed=0).to(chosen)
    examples, epoch = (_first(loaded.train, n) for n in (size.examples, size.epoch_examples))
    began, rows = clock(chosen), []
    parts = (
        lambda: line_searches(deepcopy(network), examples, size.adam_epochs, size.iterations),
        lambda: evaluations(deepcopy(network), examples, size.repetitions),
        lambda: adam_epochs(
            {model: network, "one hidden layer": one_hidden_layer(epoch, loaded.classes)},
            epoch,
            math.ceil(size.repetitions / 2),
        ),
        lambda: memory(size.memory_width, chosen),
        lambda: [time_against_parameters(size.widths, size.repetitions, chosen)],
        lambda: [time_against_examples(network, examples, size.counts, size.repetitions)],
    )
    for part in track(parts, len(parts), "parts of the benchmark"):
        rows += part()
    table = pd.DataFrame(rows, columns=Row._fields)
    if out is not None:
        facts = {
            "command": f"python -m twophase bench --preset {preset} --dataset {dataset} "
            f"--model {model} --device {chosen} --out {out.as_posix()}",
            "size": asdict(size),
            "revision": git_revision(),
            "versions": versions(),
            "device": device_name(chosen),
            "time": now(),
            "seconds": round(clock(chosen) - began),
        }
        write_json(out / "provenance.json", facts)
        write_atomically(out / "bench.csv", table.to_csv(index=False, float_format="%.4g"))
    return table


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal: a line for each result, with its quartiles where it has some."""
    names = [f"{row.measure}: {row.case}" for row in table.itertuples()]
    width = max(map(len, names))
    lines = []
    for name, row in zip(names, table.itertuples(), strict=True):
        spread = f" ({row.low:.3g} to {row.high:.3g}, {row.count} values)"
        value = "not reached" if math.isnan(row.value) else f"{row.value:.3g} {row.unit}"
        lines.append(f"{name:<{width}}  {value}{'' if math.isnan(row.low) else spread}")
    return "\n".join(lines)


def line_searches(
    network: nn.Module, examples: Examples, adam_epochs: int, iterations: int
) -> list[Row]:
    """Passes per CG iteration, loss per iteration, and passes to golden section's last loss.

    All start from the weights that Adam leaves. An iteration's passes are those of its line search
    and of the gradient at its end. Medians and quartiles are over the iterations after the first
    ten, or over all of a run that has no more. Losses are compared iteration by iteration, over
    those that golden section and the other both made.

    The network is trained, for `adam_epochs` first. Golden section makes so many `iterations`; the
    others stop at its last loss, after at least as many and at most `PATIENCE` times as many.
    """
    adam = Adam(network, mse, AdamSettings(), torch.Generator().manual_seed(0))
    for _ in range(adam_epochs):
        adam.epoch(examples.inputs, examples.targets)
    objective = FullBatch(network, mse, examples.inputs, examples.targets)
    x = objective.vector.read()
    inverse = from_moments(adam.optimizer, objective.vector.parameters)
    quasi_newton = {
        "L-BFGS with wolfe, preconditioned": LBFGSDirection(),
        "self-scaled BFGS with wolfe, preconditioned (the default)": SelfScaledBFGSDirection(),
    }
    phases = {
        f"PR+ with {name}": Descent(ConjugateDirection("PR+"), search)
        for name, search in LINE_SEARCHES.items()
    } | {
        name: Descent(direction, StrongWolfe(), AdamMoments())
        for name, direction in quasi_newton.items()
    }
    reference = descend(objective, x, phases.pop(REFERENCE), iterations)
    target = reference.losses[-1]
    paths = {REFERENCE: reference}
    for name, chosen in phases.items():
        scales = None if chosen.preconditioner == Identity() else inverse
        paths[name] = descend(objective, x, chosen, iterations, target, scales)
    rows = []
    for name, path in paths.items():
        late = path.passes[FIRST_ITERATIONS:] or path.passes
        rows.append(summarise("passes per iteration", name, "passes", late))
    for name, path in paths.items():
        ratios = [own / golden for own, golden in zip(path.losses, reference.losses, strict=False)]
        rows.append(summarise("loss after as many iterations", name, "times golden's", ratios))
    spent = {name: path.passes_to(target) for name, path in paths.items()}
    for name, passes in spent.items():
        ratio = passes / spent[REFERENCE]
        rows.append(_once("passes to golden section's last loss", name, passes, "passes"))
        rows.append(_once("the same over golden section's", name, ratio, "times"))
    return rows


class Course(NamedTuple):
    """What iterations cost, and the loss after each."""

    passes: list[int]
    losses: list[float]

    def passes_to(self, target: float) -> float:
        """Passes until the loss was at most `target`; nan if it never was."""
        for done, loss in enumerate(self.losses, 1):
            if loss <= target:
                return sum(self.passes[:done])
        return math.nan


def descend(
    objective: Objective,
    x: Tensor,
    descent: Descent,
    iterations: int,
    target: float = math.inf,
    inverse: Tensor | None = None,
) -> Course:
    """Iterations from x [P] until the loss is at most `target`, with what each costs.

    At least so many `iterations` are made, and at most `PATIENCE` times as many; fewer where the
    phase can do no more. The gradient at x belongs to none of them.
    """
    point, state, costs, losses = evaluate(objective, x), None, [], []
    while len(costs) < iterations or (losses[-1] > target and len(costs) < PATIENCE * iterations):
        before = objective.passes.total
        iteration = iterate(objective, point, state, descent, inverse)
        if iteration.status is not Status.MOVED:
            break
        point, state = iteration.point or evaluate(objective, iteration.x), iteration.state
        costs.append(objective.passes.total - before)
        losses.append(point.value)
    return Course(costs, losses)


def evaluations(network: nn.Module, examples: Examples, repetitions: int) -> list[Row]:
    """Time of an objective's evaluation over that of bare torch on the same examples.

    Bare torch is the model on all examples at once, the loss and its number, and for the gradient
    the backward pass into the parameters' `grad`.
    """
    inputs, targets = examples.inputs, examples.targets
    objective = FullBatch(network, mse, inputs, targets)
    x = objective.vector.read()

    @torch.no_grad()
    def forward() -> float:
        return mse(network(inputs), targets).item()

    def forward_backward() -> float:
        network.zero_grad()
        loss = mse(network(inputs), targets)
        loss.backward()
        return loss.item()

    device = inputs.device
    values = _ratios(lambda: objective.value(x), forward, repetitions, device)
    gradients = _ratios(
        lambda: objective.value_and_gradient(x), forward_backward, repetitions, device
    )
    measure = "time of an evaluation"
    return [
        summarise(measure, "value over torch forward", "times", values),
        summarise(
            measure,
            "value_and_gradient over torch forward and backward",
            "times",
            gradients,
        ),
    ]


def adam_epochs(
    networks: Mapping[str, nn.Module], examples: Examples, repetitions: int
) -> list[Row]:
    """Time of an epoch of `Adam` over that of the usual loop with a DataLoader.

    The usual loop shuffles the examples on the CPU with `DataLoader(shuffle=True)`; its Adam is
    torch's with default settings. It is measured twice: with the examples in a `TensorDataset`,
    and with `PillowImages`, as torchvision's data sets give them. Both sides train a copy of the
    network in batches of 512. Where both compute on the CPU, a loop can only be beaten by its share
    of loading, which is measured, too.

    The examples are images [K, channels, height, width] on the networks' device.
    """
    inputs, targets = examples.inputs.cpu(), examples.targets.cpu()
    kinds = {"tensors": TensorDataset(inputs, targets), "images": PillowImages(inputs, targets)}
    measure, rows = "time of an Adam epoch", []
    for name, network in networks.items():
        ours, *others = _adam_rounds(network, examples, list(kinds.values()), repetitions)
        for kind, loop, loading in zip(kinds, others[::2], others[1::2], strict=True):
            cases = {
                f"{name}, over a loop with DataLoader of {kind}": ours,
                f"{name}, loading of {kind} alone over that loop": loading,
            }
            for case, times in cases.items():
                ratios = [a / b for a, b in zip(times, loop, strict=True)]
                rows.append(summarise(measure, case, "times", ratios))
    return rows


class PillowImages(Dataset):
    """Examples as torchvision's data sets keep and give them: bytes, made a tensor one by one.

    Each is a Pillow image that passes through `ToTensor` and `Normalize`, by which it gets its
    values back, up to the 256 levels of a byte.

    The inputs are images [N, channels, height, width], 1 or 3 channels, on the CPU.
    """

    def __init__(self, inputs: Tensor, targets: Tensor):
        # takes seconds to import
        from torchvision.transforms import Compose, Normalize, ToTensor

        low, high = (float(bound) for bound in inputs.aminmax())
        span = high - low or 1.0
        levels = ((inputs - low) / span * 255).round().to(torch.uint8)
        # Pillow has no axis of channels where there is only one
        self._images = (levels[:, 0] if levels.shape[1] == 1 else levels.movedim(1, 3)).numpy()
        self._targets = targets
        self._transform = Compose([ToTensor(), Normalize(-low / span, 1 / span)])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(self._images[index])
        return self._transform(image), self._targets[index]


def one_hidden_layer(examples: Examples, classes: int) -> nn.Module:
    """A small network on the examples' device, whose epochs are mostly loading."""
    inputs = examples.inputs[0].numel()
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, classes), nn.Softmax(-1)
    )
    return network.to(examples.inputs.device)


def _adam_rounds(
    network: nn.Module, examples: Examples, datasets: Sequence[Dataset], repetitions: int
) -> list[list[float]]:
    """Seconds of our epochs, and for each data set of the usual loop and of its loading alone."""
    settings, device = AdamSettings(), examples.inputs.device
    adam = Adam(deepcopy(network), mse, settings, torch.Generator().manual_seed(0))
    calls = [partial(adam.epoch, examples.inputs, examples.targets)]
    for dataset in datasets:
        loader = DataLoader(dataset, batch_size=settings.batch_size, shuffle=True)
        calls += [
            partial(_usual_epoch, *_usual(network, settings), loader, device),
            partial(_load, loader),
        ]
    return [list(times) for times in zip(*_times(calls, repetitions, device), strict=True)]


def _usual(network: nn.Module, settings: AdamSettings) -> tuple[nn.Module, torch.optim.Adam]:
    copy = deepcopy(network)
    return copy, torch.optim.Adam(copy.parameters(), lr=settings.learning_rate)


def _usual_epoch(
    network: nn.Module, optimizer: torch.optim.Adam, loader: DataLoader, device: torch.device
) -> None:
    for inputs, targets in loader:
        optimizer.zero_grad()
        mse(network(inputs.to(device)), targets.to(device)).backward()
        optimizer.step()


def _load(loader: DataLoader) -> None:
    for _ in loader:
        pass


def memory(width: int, device: torch.device) -> list[Row]:
    """Peak memory of the CG phase beyond model and data, in vectors of length P.

    Live tensors are counted after each operation, in a network so wide that its parameters
    outweigh the results of 16 examples; what an operation needs for itself is not seen. With 16
    times as many examples, in chunks as large, the peak is to be the same.

    P is about the square of the network's width.
    """
    few, many = 16, 256
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(many, 1, generator=generator).to(device)
    cases = {
        "PR+ with parabola": Descent(ConjugateDirection("PR+"), ParabolaFirst()),
        f"self-scaled BFGS with history {HISTORY}": Descent(
            SelfScaledBFGSDirection(HISTORY), StrongWolfe()
        ),
    }
    rows = []
    for name, settings in cases.items():
        peaks = []
        for count in (few, many):
            network = _network(1, width, 1, device)
            batch = inputs[:count]
            targets = torch.sin(6 * batch)
            objective = FullBatch(network, nn.functional.mse_loss, batch, targets, few)
            vector = networks.parameter_count(network) * objective.vector.dtype.itemsize
            with LiveBytes() as live:
                descend(objective, objective.vector.read(), settings, 3 * HISTORY)
            peaks.append(live.peak / vector)
        measure = "peak memory of CG"
        rows.append(_once(measure, f"{name}, {few} examples", peaks[0], "vectors"))
        case = f"{name}, {many} over {few} examples"
        rows.append(_once(measure, case, peaks[1] / peaks[0], "times"))
    return rows


class LiveBytes(TorchDispatchMode):
    """While active, follows the memory of the tensors that operations make; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is_strided(leaf)}
        results = operation(*args, **(kwargs or {}))
        self._live = {a: kept for a, kept in self._live.items() if not kept[0].expired()}
        for tensor in filter(_is_strided, tree_leaves(results)):
            # a view of what was there before is no new memory
            if _address(tensor) not in given:
                storage = tensor.untyped_storage()
                self._live[_address(tensor)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return results


def time_against_parameters(widths: Sequence[int], repetitions: int, device: torch.device) -> Row:
    """Time of a gradient against P: the slope of their logarithms, 1 where they are proportional.

    Networks with two hidden layers of these widths, 64 inputs and 10 outputs, on 1,024 random
    examples; what does not depend on P makes the slope smaller.
    """
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(1024, 64, generator=generator), torch.zeros(1024, 10)
    models = [_network(64, width, 10, device) for width in widths]
    objectives = [
        FullBatch(network, nn.functional.mse_loss, inputs.to(device), targets.to(device))
        for network in models
    ]
    parameters = [networks.parameter_count(network) for network in models]
    return _slope("P", parameters, objectives, repetitions)


def time_against_examples(
    network: nn.Module, examples: Examples, counts: Sequence[int], repetitions: int
) -> Row:
    """Time of a gradient against K: the slope of their logarithms, 1 where they are proportional.

    Examples are taken again and again where there are fewer than a count K.
    """
    indices = [torch.arange(count, device=examples.inputs.device) for count in counts]
    objectives = [
        FullBatch(network, mse, *(t[i % len(examples)] for t in vars(examples).values()))
        for i in indices
    ]
    return _slope("K", counts, objectives, repetitions)


def _slope(
    name: str, sizes: Sequence[int], objectives: Sequence[FullBatch], repetitions: int
) -> Row:
    """The slope of log time over log size, by least squares, for each repetition."""
    device = objectives[0].inputs.device
    calls = [partial(o.value_and_gradient, o.vector.read()) for o in objectives]
    rounds = _times(calls, repetitions, device)
    slopes = [float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) for times in rounds]
    case = f"slope against {name}, {min(sizes)} to {max(sizes)}"
    return summarise("time of a gradient", case, "", slopes)


def _ratios(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    repetitions: int,
    device: torch.device,
) -> list[float]:
    return [a / b for a, b in _times((ours, theirs), repetitions, device)]


def _times(
    calls: Sequence[Callable[[], object]], repetitions: int, device: torch.device
) -> list[list[float]]:
    """Seconds of each call in each repetition; the calls take turns, after one round unmeasured."""
    rounds = []
    for _ in range(repetitions + 1):
        times = []
        for call in calls:
            began = clock(device)
            call()
            times.append(clock(device) - began)
        rounds.append(times)
    return rounds[1:]


def _network(inputs: int, width: int, outputs: int, device: torch.device) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).to(device)


def _first(examples: Examples, count: int) -> Examples:
    return Examples(examples.inputs[:count], examples.targets[:count])


def _once(measure: str, case: str, value: float, unit: str) -> Row:
    return Row(measure, case, value, math.nan, math.nan, 1, unit)


def _is_strided(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
