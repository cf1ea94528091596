"""What a computation cannot be faster than: its floating-point operations and launches, counted.

On a device with peak rate F [operations/s] and time t [s] to launch one kernel, N operations in n
launches take at least

    floor = max(N / F, n · t)

with N that of matrix products, convolutions and attention, which torch's `FlopCounterMode` counts,
and n that of torch operations that make or change numbers, one kernel each; where torch fuses less,
or moves much memory, the floor is lower than what can be reached. F and t are measured beside it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from twophase.device import clock

# A square product large enough for the peak rate, and short enough to repeat: about 0.1 s.
WIDTHS = {"cpu": 1024, "cuda": 8192}
LAUNCHES = 1000


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


def work_of(call: Callable[[], object]) -> Work:
    """What a call asks of a device, by making it once."""
    with FlopCounterMode(display=False) as flops, Launches() as launches:
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
