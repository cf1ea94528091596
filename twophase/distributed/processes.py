"""The processes of one training: each evaluates its share of the examples, and all add them up.

With a process group of torch.distributed (`torchrun`, or `init_process_group` in a script) every
process holds the model and its optimizer, and each loss, gradient and Jacobian is a sum over the
shares: one all-reduce an evaluation. Whatever is decided is decided by these sums, so that all
processes do the same; a fingerprint of the parameters in every sum shows if they do not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from twophase.errors import InputError, ProcessError, TwoPhaseError

T = TypeVar("T")
# Fingerprints are whole numbers below this prime, so that float64 holds the sum of so many.
PRIME, MOST = 2**40 - 87, 2**13
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What a model and a field of data must be.
SEEDED = (
    "the same weights and buffers in each process: wrap the model in DistributedDataParallel, or "
    "build it after the same torch.manual_seed"
)
SHARED = "all of them in each process, which takes a share by itself"
APART = "with twophase.distributed.apart(): ... for a training of its own in each process"

_apart: ContextVar[bool] = ContextVar("apart", default=False)


class Processes:
    """The processes that share a training; this class: one alone, with nothing to exchange."""

    rank, count = 0, 1

    def share(self, count: int) -> slice:
        """Which of `count` examples are this process's: equal parts, the later the longer by 1."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def sums(self, parts: Sequence[Any], x: Tensor) -> Sequence[Any]:
        """Tensors, or numbers, added up over the processes, in float64 and their own dtype.

        One all-reduce. `ProcessError` where the parameters x [P] are not the same in all.
        """
        return parts

    def mean(self, parameters: Iterable[Tensor], loss: Tensor, size: int) -> Tensor:
        """Make the loss over `size` examples, and `grad`, those of all examples of a mini-batch.

        One all-reduce, in the parameters' dtype, and no wait for a device, unless torch waits for
        the exchange or a parameter was not used. Returns that loss.
        """
        return loss

    def agreed(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all; so is the `TwoPhaseError` or OSError it raises."""
        return make()

    def check_same(self, field: str, tensors: Iterable[Tensor], allowed: str) -> None:
        """`InputError` where processes hold other tensors, or in another order; one all-gather."""

    def check_alike(self, shapes: list[list[int]], settings: Iterable[Any]) -> None:
        """`InputError` where processes hold parameters of other shapes, or other settings.

        Settings are compared by what they say of themselves; one all-gather.
        """


ALONE = Processes()


class Group(Processes):
    """Those of torch's default process group; the sums are the same numbers in each."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def sums(self, parts: Sequence[Any], x: Tensor) -> Sequence[Any]:
        tensors = [_tensor(part, x.device) for part in parts]
        own = fingerprint(x)
        flat = torch.cat([part.detach().double().reshape(-1) for part in (*tensors, own)])
        with explained():
            dist.all_reduce(flat)
            same = bool(flat[-1] == self.count * own)  # the only wait for a device
        if not same:
            raise ProcessError(
                "parameters: they differ between the processes; wrap the model in "
                "DistributedDataParallel, or build it after the same torch.manual_seed, and use "
                f"as many threads in each, or {APART}"
            )
        sizes = [part.numel() for part in tensors]
        return [
            total.view_as(part).to(part.dtype)
            for total, part in zip(flat[:-1].split(sizes), tensors, strict=True)
        ]

    def mean(self, parameters: Iterable[Tensor], loss: Tensor, size: int) -> Tensor:
        parameters = list(parameters)
        used = [p.grad is not None for p in parameters]
        given = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # the loss, one, and who has used each parameter; copied from a list it would be waited for
        numbers = given[0].new_ones(2 + len(used))
        numbers[0] = loss.detach()
        for place, one in enumerate(used, 2):
            if not one:
                numbers[place].zero_()
        flat = size * torch.cat([part.reshape(-1) for part in (*given, numbers)])
        *means, numbers = flat.split([*(p.numel() for p in parameters), len(numbers)])
        with explained():
            dist.all_reduce(flat)
            if not all(used):  # only then it is waited for what others have used
                used = (numbers[2:] > 0).tolist()
        for parameter, mean, by_any in zip(parameters, means, used, strict=True):
            # a parameter that no process has used has no gradient, as alone
            parameter.grad = (mean / numbers[1]).view_as(parameter) if by_any else None
        return numbers[0] / numbers[1]

    def agreed(self, make: Callable[[], T]) -> T:
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except (TwoPhaseError, OSError) as error:
                box[1] = error
        with explained():
            dist.broadcast_object_list(box)
        made, failed = box
        if failed is not None:
            raise failed
        return made

    def check_same(self, field: str, tensors: Iterable[Tensor], allowed: str) -> None:
        own = [[list(t.shape), str(t.dtype), int(fingerprint(t, ordered=True))] for t in tensors]
        found = self._gathered(own)
        for rank, other in enumerate(found):
            if other != found[0]:
                first, shapes = ([one[0] for one in those] for those in (found[0], other))
                what = f"shapes {first} in process 0, {shapes} in process {rank}"
                raise InputError(field, f"other numbers in other processes: {what}", allowed)

    def check_alike(self, shapes: list[list[int]], settings: Iterable[Any]) -> None:
        found = self._gathered([f"parameters {shapes}", *map(_text, settings)])
        for rank, other in enumerate(found):
            for own, first in zip(other, found[0], strict=True):
                if own != first:
                    allowed = f"{first}, as in process 0, or {APART}"
                    raise InputError("processes", f"{own} in process {rank}", allowed)

    def _gathered(self, own: Any) -> list[Any]:
        found: list[Any] = [None] * self.count
        with explained():
            dist.all_gather_object(found, own)
        return found


def _tensor(part: Any, device: torch.device) -> Tensor:
    """A number in float64; a tensor as it is."""
    return part if isinstance(part, Tensor) else torch.tensor(part, dtype=torch.float64).to(device)


@contextmanager
def explained() -> Iterator[None]:
    """`ProcessError` for what torch says where the connection to another process is lost.

    With NCCL it may say so only where what was exchanged is read: that belongs inside.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch's DistError, or that the group is gone
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ProcessError(
            "processes: the connection to another one is lost: it has ended, did not answer "
            f"in time or does something else; a run goes on from its last checkpoint ({reason})"
        ) from error


def processes() -> Processes:
    """Those of the process group that is there now; `ALONE` without one, or in `apart`."""
    if _apart.get() or not dist.is_available() or not dist.is_initialized():
        return ALONE
    return Group() if dist.get_world_size() > 1 else ALONE


def check_shared(first: Any, settings: Iterable[Any] = (), **objectives: Any) -> None:
    """`InputError` where an objective, by its field, has other data in other processes.

    Also where settings are others, or the parameters or buffers of the `first` one's model.
    """
    here = processes()
    if (vector := getattr(first, "vector", None)) is not None and here.count > 1:
        here.check_alike(vector.shapes, settings)
        model = getattr(first, "model", None)
        own = (
            [*vector.parameters, *vector.buffers] if model is None else model.state_dict().values()
        )
        here.check_same("model", (one for one in own if isinstance(one, Tensor)), SEEDED)
    for field, one in objectives.items():
        if one is not None:
            processes().check_same(field, getattr(one, "shared", ()), SHARED)


@contextmanager
def apart() -> Iterator[None]:
    """Trainings that begin inside are each process's own, though there is a process group.

    One begins with `fit`, `Trainer`, `minimize`, or an optimizer's first step.

    >>> with apart():
    ...     processes() is ALONE
    True
    """
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def fingerprint(tensor: Tensor, ordered: bool = False) -> Tensor:
    """A whole number below `PRIME` [1], by all bits of a tensor, wherever these stand.

    `ordered`: also by the order of its rows.
    """
    flat = tensor.detach().reshape(-1)
    bits = flat.view(BITS.get(flat.element_size(), torch.uint8))
    if ordered and len(bits):
        rows = bits.reshape(len(tensor) if tensor.ndim else 1, -1).sum(1, dtype=torch.int64)
        # sums and products of int64 are modulo 2**64, in which odd factors lose no bit
        bits = rows * (2 * torch.arange(len(rows), device=rows.device) + 1)
    return bits.sum(dtype=torch.int64).remainder(PRIME).reshape(1)


def bare(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, whose work is done here; any other as it is."""
    if dist.is_available() and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.module
    return model


def _text(value: Any) -> str:
    """What a setting says of itself, without addresses of this process."""
    text = getattr(value, "__qualname__", None) or str(value)
    return type(value).__qualname__ if " at 0x" in text else text


def adds_up(model: nn.Module) -> bool:
    """Whether the loss of a mini-batch is a mean over its examples, each one by itself.

    It is not where BatchNorm gathers statistics; torch's SyncBatchNorm adds these up itself.
    """
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return not any(norm.training and not isinstance(norm, nn.SyncBatchNorm) for norm in norms)
