"""What a computation cannot be faster than: its floating-point operations and launches, counted.

On a device with peak rate F [operations/s] and time t [s] to launch one kernel, N operations in n
launches take at least

    floor = max(N / F, n · t)

with N that of matrix products, convolutions and attention, which torch's `FlopCounterMode` counts,
and n that of torch operations that make or change numbers, one kernel each; where torch fuses less,
or moves much memory, the floor is lower than what can be reached. F and t are measured beside it.

On CUDA t is that of additions in place called from Python, one by one. It is no lower bound where
others launch: autograd does so from C++, and a graph that is replayed takes less for each kernel.
There the second term says what launching costs as it is done here, and a ratio may be below 1.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from twophase.device import clock
from twophase.errors import InputError
from twophase.experiments.config import RunConfig
from twophase.losses import mse
from twophase.objectives.full_batch import FullBatch
from twophase.problems import networks
from twophase.problems.image_files import SOURCES

# A square product large enough for the peak rate, and short enough to repeat: about 0.1 s.
WIDTHS = {"cpu": 1024, "cuda": 8192}
LAUNCHES = 1000
# Attention on the CPU, which the counter does not know, by shapes, as that on CUDA.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


class Launches(TorchDispatchMode):
    """While active, counts in `count` the operations that make or change numbers; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(results) if isinstance(one, Tensor)]
        self.count += bool(made or operation._schema.is_mutable) and not operation.is_view
        return results


class Work(NamedTuple):
    """Floating-point operations and launches."""

    operations: int
    launches: int


class Speed(NamedTuple):
    """Floating-point operations a second, and seconds a launch."""

    rate: float
    launch: float

    def floor(self, work: Work) -> float:
        """The least seconds that the work takes."""
        return max(work.operations / self.rate, work.launches * self.launch)


# The rate in float32 without TF32, by NVIDIA's data sheet (SXM); the launch is assumed.
H100 = Speed(67e12, 5e-6)


def work_of(call: Callable[[], object]) -> Work:
    """What a call asks of a device, by making it once."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops, Launches() as launches:
        call()
    return Work(flops.get_total_flops(), launches.count)


def speed(device: torch.device, dtype: torch.dtype, repetitions: int) -> Speed:
    """The best of some products of square matrices, and of some rows of additions to a number."""
    width = WIDTHS[device.type]
    square = torch.ones(width, width, device=device, dtype=dtype)
    number = torch.zeros(1, device=device, dtype=dtype)

    def product() -> None:
        torch.mm(square, square)

    def additions() -> None:
        for _ in range(LAUNCHES):
            number.add_(1)

    rate = 2 * width**3 / _best(product, device, repetitions)
    return Speed(rate, _best(additions, device, repetitions) / LAUNCHES)


def _best(call: Callable[[], None], device: torch.device, repetitions: int) -> float:
    """The least seconds of a call, after one that is not measured."""
    call()
    seconds = []
    for _ in range(repetitions):
        began = clock(device)
        call()
        seconds.append(clock(device) - began)
    return min(seconds)


def pairs(configs: Iterable[RunConfig], values: int = 13, speed: Speed = H100) -> pd.DataFrame:
    """Counts of pairs of trainings, Adam alone and Adam, then CG, and their least minutes on paper.

    A row for each configuration, an image problem with a fixed swap: of all epochs of Adam, and of
    CG's iterations after the swap, with a gradient and so many `values` each (13: about what golden
    section takes), the operations, launches and minutes, and the sum of both, since Adam's epochs
    before the swap are shared. What only records need, the second phase's own vectors, and reading
    memory do not count. Nothing is trained, and no data are read. `InputError` without a swap.
    """
    rows = []
    for config in configs:
        if config.swap_epoch is None:
            raise InputError("switch", config.switch, "a fixed epoch, between both phases")
        problem = config.problem
        source = SOURCES[problem.dataset]
        model = networks.build(problem.model, source.channels, source.classes, seed=0)
        images = torch.zeros(2, source.channels, networks.IMAGE_SIZE, networks.IMAGE_SIZE)
        examples = problem.train_examples or source.examples
        step, iteration = step_and_iteration(model, images, values)
        batches = math.ceil(examples / (config.adam.batch_size or examples))
        row = {"dataset": problem.dataset, "model": problem.model}
        for name, one, times, launches in (
            ("adam", step, config.epochs, batches),
            ("cg", iteration, config.epochs - config.swap_epoch, 1),
        ):
            share = one.operations // len(images) * examples
            work = Work(times * share, times * launches * one.launches)
            row |= {f"{name}_operations": work.operations, f"{name}_launches": work.launches}
            row |= {f"{name}_minutes": speed.floor(work) / 60}
        rows.append(row | {"minutes": row["adam_minutes"] + row["cg_minutes"]})
    return pd.DataFrame(rows)


def step_and_iteration(model: nn.Module, inputs: Tensor, values: int) -> tuple[Work, Work]:
    """Of a mini-batch of Adam, fused as on CUDA, and of a gradient and so many values of the loss.

    Operations are proportional to the examples; launches are those of any number in one chunk.
    """
    objective = FullBatch(model, mse, inputs, torch.zeros(len(inputs)).long(), len(inputs))
    adam = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        adam.zero_grad()
        objective.batch_loss(torch.arange(len(inputs))).backward()
        adam.step()

    step()  # which makes the moments
    x = objective.vector.read()
    batch = work_of(step)
    gradient, value = (
        work_of(partial(call, x)) for call in (objective.value_and_gradient, objective.value)
    )
    return batch, Work(*(g + values * v for g, v in zip(gradient, value, strict=True)))
