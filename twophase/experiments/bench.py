"""How fast the machinery is, as ratios of what runs side by side in one process.

Times are compared in turns, repetition by repetition, so that what else the machine does meets both
sides; passes and live tensors are counted, and do not depend on the machine.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from twophase.adam import Adam, AdamSettings
from twophase.device import clock, device_name, resolve_device
from twophase.directions import ConjugateDirection, LBFGSDirection, SelfScaledBFGSDirection
from twophase.errors import check_choice
from twophase.examples import Examples
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.floor import speed, work_of
from twophase.experiments.live_bytes import LiveBytes
from twophase.experiments.progress import track
from twophase.experiments.provenance import facts, load
from twophase.line_search import GoldenSection, ParabolaFirst, StrongWolfe
from twophase.losses import mse
from twophase.minimization import minimize
from twophase.objective import Objective, evaluate
from twophase.objectives.full_batch import FullBatch
from twophase.precision import TF32, BFloat16, Full, deviation, full_precision
from twophase.preconditioner import Identity, from_moments
from twophase.problems import images, networks
from twophase.second_phase import SELF_SCALED_BFGS, Descent, Minimizer, Status, iterate
from twophase.steps import Step

REFERENCE = "PR+ with golden"
LINE_SEARCHES = {
    "golden": GoldenSection(rtol=1e-2),
    "golden-tight": GoldenSection(rtol=1e-8),
    "parabola": ParabolaFirst(),
    "wolfe": StrongWolfe(),
}
FIRST_ITERATIONS = 10  # a median of passes is over those after them
PATIENCE = 5  # times as many iterations as golden section's may a search take to reach its loss
HISTORY = 5  # of BFGS, where memory is counted: it is full soon
CHUNK = 16  # examples at a time, where memory is counted


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
    """One result: what was measured, for which case, its median, quartiles and their number."""

    measure: str
    case: str
    value: float
    low: float  # missing, as `high` is, for what is counted once
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
    """Measure everything: a row for each result, with the fields of `Row`.

    `preset` is smoke (seconds, for tests) or quick (minutes); the folder `out` gets `bench.csv` and
    `provenance.json`. For the rest and the errors see `twophase.experiments.runs.run`.
    """
    size = SIZES[check_choice("preset", preset, SIZES)]
    chosen = resolve_device(device)
    loaded = images.load(dataset, root, chosen)
    network = networks.build(model, loaded.channels, loaded.classes, seed=0).to(chosen)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    examples, epoch = (
        Examples(loaded.train.inputs[:count], loaded.train.targets[:count])
        for count in (size.examples, size.epoch_examples)
    )
    # a small network, whose epochs are mostly loading
    small = _tanh_network(epoch.inputs[0].numel(), 64, loaded.classes)
    small = nn.Sequential(nn.Flatten(), *small, nn.Softmax(-1)).to(chosen)
    trained = {model: network, "one hidden layer": small}
    parts = (
        lambda: line_searches(deepcopy(network), examples, size.adam_epochs, size.iterations),
        lambda: evaluations(deepcopy(network), examples, size.repetitions),
        lambda: adam_epochs(trained, epoch, math.ceil(size.repetitions / 2)),
        lambda: precisions(trained, epoch, math.ceil(size.repetitions / 2)),
        lambda: memory(size.memory_width, chosen),
        lambda: gradients(network, examples, size, chosen),
        lambda: floors(trained, epoch, math.ceil(size.repetitions / 2)),
    )
    began, before = clock(chosen), load()
    rows = [row for part in track(parts, label="parts of the benchmark") for row in part()]
    table = pd.DataFrame(rows)
    if out is not None:
        called = f"python -m twophase bench --preset {preset} --dataset {dataset} --model {model}"
        called += f" --device {chosen} --out {out.as_posix()}"
        more = {"size": asdict(size), "seconds": round(clock(chosen) - began), "load": before}
        write_json(out / "provenance.json", facts(called, device_name(chosen)) | more)
        write_atomically(out / "bench.csv", table.to_csv(index=False, float_format="%.4g"))
    return table


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal: a line for each result, with its quartiles where it has some."""
    names = table.measure + ": " + table.case
    lines = []
    for name, row in zip(names.str.ljust(names.str.len().max()), table.itertuples(), strict=True):
        spread = f" ({row.low:.3g} to {row.high:.3g}, {row.count} values)"
        value = "not reached" if math.isnan(row.value) else f"{row.value:.3g} {row.unit}"
        lines.append(f"{name}  {value}{'' if math.isnan(row.low) else spread}")
    return "\n".join(lines)


def line_searches(
    network: nn.Module, examples: Examples, adam_epochs: int, iterations: int
) -> list[Row]:
    """Passes per CG iteration, loss per iteration, and passes to golden section's last loss.

    All start from the weights that Adam leaves after `adam_epochs`. Golden section makes so many
    `iterations`; the others stop at its last loss, see `descend`. An iteration's passes are those
    of its line search and of the gradient at its end; the first ten do not count where there are
    more. Losses are compared iteration by iteration, over those that both made.
    """
    objective = FullBatch(network, mse, examples.inputs, examples.targets)
    adam = Adam(network.parameters(), AdamSettings(), torch.Generator().manual_seed(0))
    for _ in range(adam_epochs):
        adam.epoch(objective)
    x = objective.vector.read()
    inverse = from_moments(adam.optimizer, objective.vector.parameters)
    phases = {
        f"PR+ with {name}": Descent(ConjugateDirection("PR+"), search)
        for name, search in LINE_SEARCHES.items()
    }
    phases |= {
        "L-BFGS with wolfe, preconditioned": replace(SELF_SCALED_BFGS, direction=LBFGSDirection()),
        "self-scaled BFGS with wolfe, preconditioned (the default)": SELF_SCALED_BFGS,
    }
    reference = descend(objective, x, phases.pop(REFERENCE), iterations)
    target = reference.losses[-1]
    paths = {REFERENCE: reference}
    for name, phase in phases.items():
        scales = None if phase.preconditioner == Identity() else inverse
        paths[name] = descend(objective, x, phase, iterations, target, scales)
    rows = []
    for name, path in paths.items():
        late = path.passes[FIRST_ITERATIONS:] or path.passes
        rows.append(summarise("passes per iteration", name, "passes", late))
    for name, path in paths.items():
        ratios = [own / golden for own, golden in zip(path.losses, reference.losses, strict=False)]
        rows.append(summarise("loss after as many iterations", name, "times golden's", ratios))
    for name, path in paths.items():
        passes = path.passes_to(target)
        ratio = passes / reference.passes_to(target)
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
        state = iteration.state  # the one before need not be kept while a gradient is made
        point = iteration.point or evaluate(objective, iteration.x)
        costs.append(objective.passes.total - before)
        losses.append(point.value)
    return Course(costs, losses)


def evaluations(network: nn.Module, examples: Examples, repetitions: int) -> list[Row]:
    """Time of an objective's evaluation over that of bare torch on all examples at once."""
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

    cases = {
        "value over torch forward": (objective.value, forward),
        "value_and_gradient over torch forward and backward": (
            objective.value_and_gradient,
            forward_backward,
        ),
    }
    rows = []
    for case, (ours, theirs) in cases.items():
        own, bare = _times((partial(ours, x), theirs), repetitions, inputs.device)
        rows.append(summarise("time of an evaluation", case, "times", own / bare))
    return rows


def adam_epochs(
    networks: Mapping[str, nn.Module], examples: Examples, repetitions: int
) -> list[Row]:
    """Time of an epoch of `Adam` over that of the usual loop with a DataLoader.

    Both train a copy of the network in batches of 512. The usual loop, with torch's Adam, shuffles
    the images on the CPU, as a `TensorDataset` and as `PillowImages`. Where both compute on the
    CPU, a loop can only be beaten by its share of loading, which is measured, too.
    """
    settings, device = AdamSettings(), examples.inputs.device
    data = examples.inputs.cpu(), examples.targets.cpu()
    loaders = {
        kind: DataLoader(dataset(*data), settings.batch_size, shuffle=True)
        for kind, dataset in (("tensors", TensorDataset), ("images", PillowImages))
    }
    rows = []
    for name, network in networks.items():
        objective = FullBatch(deepcopy(network), mse, examples.inputs, examples.targets)
        adam = Adam(objective.model.parameters(), settings, torch.Generator().manual_seed(0))
        calls = [partial(adam.epoch, objective)]
        for loader in loaders.values():
            # an empty deque takes all batches and keeps none
            calls += [_usual_epoch(network, settings, loader, device), partial(deque, loader, 0)]
        ours, *others = _times(calls, repetitions, device)
        for kind, loop, loading in zip(loaders, others[::2], others[1::2], strict=True):
            for case, times in (
                (f"{name}, over a loop with DataLoader of {kind}", ours),
                (f"{name}, loading of {kind} alone over that loop", loading),
            ):
                rows.append(summarise("time of an Adam epoch", case, "times", times / loop))
    return rows


def precisions(
    networks: Mapping[str, nn.Module], examples: Examples, repetitions: int
) -> list[Row]:
    """An epoch of Adam in bfloat16 and in TF32, over one in full precision.

    Deviations are those of `twophase.precision.deviation`, on the first examples, at the start and
    after the few epochs that are timed; losses are computed in full precision. No deviation is too
    large here.
    """
    rows, device = [], examples.inputs.device
    first = torch.arange(min(512, len(examples)), device=device)
    for name, network in networks.items():
        steps, calls = [], []
        for precision in (Full(), BFloat16(tolerance=0.99), TF32(tolerance=0.99)):
            objective = FullBatch(deepcopy(network), mse, examples.inputs, examples.targets)
            settings = AdamSettings(precision=precision)
            adam = Adam(objective.vector.parameters, settings, torch.Generator().manual_seed(0))
            steps.append(Step(objective, adam.optimizer, precision))
            calls.append(partial(adam.epoch, objective))
        before = [deviation(step, first)[0] for step in steps]
        times = _times(calls, repetitions, device)
        losses = [step.objective.value(step.objective.vector.read()) for step in steps]
        for number, step in list(enumerate(steps))[1:]:
            case, ratios = f"{type(step.precision).__name__}, {name}", times[number] / times[0]
            loss = losses[number] / losses[0]
            rows += [
                summarise("time of an Adam epoch over full precision", case, "times", ratios),
                _once("deviation of the first mini-batch", case, before[number], "of its size"),
                _once("deviation after the epochs", case, deviation(step, first)[0], "of its size"),
                _once("loss after the epochs over full precision", case, loss, "times"),
            ]
    return rows


class PillowImages(Dataset):
    """Examples as torchvision's data sets keep and give them: bytes, made a tensor one by one.

    Each passes through `ToTensor` and `Normalize`, by which it gets its values back, up to the 256
    levels of a byte. `inputs` are images [N, channels, height, width], 1 or 3 channels, on the CPU.
    """

    def __init__(self, inputs: Tensor, targets: Tensor):
        # takes seconds to import
        from torchvision.transforms import Compose, Normalize, ToTensor

        low, high = (float(bound) for bound in inputs.aminmax())
        span = high - low or 1.0
        levels = ((inputs - low) / span * 255).round().to(torch.uint8)
        # Pillow has no axis of channels where there is only one
        self._images = levels.movedim(1, 3).squeeze(3).numpy()
        self._targets = targets
        self._transform = Compose([ToTensor(), Normalize(-low / span, 1 / span)])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._transform(Image.fromarray(self._images[index])), self._targets[index]


def _usual_epoch(
    network: nn.Module, settings: AdamSettings, loader: DataLoader, device: torch.device
) -> Callable[[], None]:
    network = deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)

    def epoch() -> None:
        for inputs, targets in loader:
            optimizer.zero_grad()
            mse(network(inputs.to(device)), targets.to(device)).backward()
            optimizer.step()

    return epoch


def memory(width: int, device: torch.device) -> list[Row]:
    """Peak memory of the CG phase beyond model and data, in vectors of length P.

    Live tensors are counted after each operation, in a network so wide that its parameters, about
    width², outweigh the results of 16 examples; what an operation needs for itself is not seen.
    With 16 times as many examples, in chunks as large, the peak is to be the same.
    """
    few, many = CHUNK, 16 * CHUNK
    cases = {
        "PR+ with golden": Descent(ConjugateDirection("PR+"), GoldenSection()),
        "PR+ with parabola": Descent(ConjugateDirection("PR+"), ParabolaFirst()),
        f"self-scaled BFGS with history {HISTORY}": replace(
            SELF_SCALED_BFGS, direction=SelfScaledBFGSDirection(HISTORY)
        ),
    }
    rows = []
    for name, settings in cases.items():
        peaks = [held(settings, width, count, device, 3 * HISTORY) for count in (few, many)]
        once = partial(_once, "peak memory of CG")
        rows.append(once(f"{name}, {few} examples", peaks[0], "vectors"))
        rows.append(once(f"{name}, {many} over {few} examples", peaks[1] / peaks[0], "times"))
    return rows


def held(
    second: Minimizer, width: int, examples: int, device: torch.device, iterations: int
) -> float:
    """The peak of some iterations on so many examples, in vectors of length P; see `memory`."""
    inputs = torch.rand(examples, 1, generator=torch.Generator().manual_seed(0)).to(device)
    network = _tanh_network(1, width, width, 1).to(device)
    objective = FullBatch(network, nn.functional.mse_loss, inputs, torch.sin(6 * inputs), CHUNK)
    with LiveBytes() as live:
        minimize(objective, iterations=iterations, second=second)
    return live.peak / objective.vector.read().nbytes


def gradients(
    network: nn.Module, examples: Examples, size: Size, device: torch.device
) -> list[Row]:
    """Time of a gradient against P and against K: the slope of their logarithms, by least squares.

    It is 1 where they are proportional; what does not depend on P or K makes it smaller. P is that
    of networks with two hidden layers, on 1,024 random examples.
    """
    inputs = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0)).to(device)
    targets = torch.zeros(1024, 10, device=device)
    models = [_tanh_network(64, width, width, 10).to(device) for width in size.widths]
    wider = [FullBatch(model, nn.functional.mse_loss, inputs, targets) for model in models]
    indices = [torch.arange(count, device=device) % len(examples) for count in size.counts]
    longer = [FullBatch(network, mse, examples.inputs[i], examples.targets[i]) for i in indices]
    rows = []
    for name, sizes, objectives in (
        ("P", list(map(networks.parameter_count, models)), wider),
        ("K", size.counts, longer),
    ):
        calls = [partial(o.value_and_gradient, o.vector.read()) for o in objectives]
        times = _times(calls, size.repetitions, device)
        slopes, _ = np.polyfit(np.log(sizes), np.log(times), 1)
        case = f"slope against {name}, {min(sizes)} to {max(sizes)}"
        rows.append(summarise("time of a gradient", case, "", slopes))
    return rows


def floors(networks: Mapping[str, nn.Module], examples: Examples, repetitions: int) -> list[Row]:
    """What an epoch of Adam, a value, a gradient and an iteration of CG ask for, time and floor.

    See `twophase.experiments.floor`. All are of the networks' own dtype; each time is held against
    the device's speed in the same precision, as it was found just before. The iteration is the
    second of CG with golden section, made again and again, with the gradient where it ends. Where
    steps of Adam are captured, an epoch of such is held against the floor of a plain one.
    """
    rows, device = [], examples.inputs.device
    for name, network in networks.items():
        objective = FullBatch(deepcopy(network), mse, examples.inputs, examples.targets)
        weights, settings = objective.vector.parameters, AdamSettings()
        plain, quick = (Adam(weights, settings, torch.Generator().manual_seed(0)) for _ in range(2))
        plain.capture = None
        for adam in (plain, quick):
            adam.epoch(objective)  # the first makes the moments, and captures
        x = objective.vector.read()
        calls = {
            "Adam's epoch": partial(plain.epoch, objective),
            "gradient": partial(objective.value_and_gradient, x),
            "value": partial(objective.value, x),
            "CG's iteration": _second_iteration(objective, x),
        }
        asked = {what: work_of(call) for what, call in calls.items()}
        if quick.capture is not None:
            calls["captured epoch of Adam"] = partial(quick.epoch, objective)
            asked["captured epoch of Adam"] = asked["Adam's epoch"]
        for what, call in calls.items():
            case, work = f"{what}, {name}", asked[what]
            found = speed if "Adam" in what else full_precision()(speed)
            floor = found(device, objective.vector.dtype, repetitions).floor(work)
            (times,) = _times([call], repetitions, device)
            rows += [
                _once("floating-point operations", case, work.operations / 1e9, "billions"),
                _once("launches", case, work.launches, "operations of torch"),
                summarise("time", case, "s", times),
                _once("floor of the time", case, floor, "s"),
                summarise("time over its floor", case, "times", times / floor),
            ]
    return rows


def _second_iteration(objective: Objective, x: Tensor) -> Callable[[], None]:
    """An iteration of CG from where the first has led, and the gradient at its end."""
    descent = Descent(ConjugateDirection("PR+"), LINE_SEARCHES["golden"])
    first = iterate(objective, evaluate(objective, x), None, descent)
    point = evaluate(objective, first.x)

    def iteration() -> None:
        evaluate(objective, iterate(objective, point, first.state, descent).x)

    return iteration


def _times(
    calls: Sequence[Callable[[], object]], repetitions: int, device: torch.device
) -> np.ndarray:
    """Seconds [calls, repetitions]; the calls take turns, after one round unmeasured."""
    times = np.empty((len(calls), repetitions + 1))
    for turn, index in np.ndindex(times.T.shape):
        began = clock(device)
        calls[index]()
        times[index, turn] = clock(device) - began
    return times[:, 1:]


def _tanh_network(*widths: int) -> nn.Sequential:
    with networks.seeded(0):
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def _once(measure: str, case: str, value: float, unit: str) -> Row:
    return Row(measure, case, value, math.nan, math.nan, 1, unit)
