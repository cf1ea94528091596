"""The precision of mini-batches: as torch is set, full, or reduced within a tolerance."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from twophase.errors import check_number
from twophase.precision.full import allow_tf32, full_precision
from twophase.settings import Settings


class Precision(Settings):
    """Base of the precisions of mini-batches: what is `around` an evaluation and its forward."""

    def around(self, device: torch.device) -> AbstractContextManager[None]:
        """In which loss and gradient are computed."""
        return nullcontext()

    def casting(self, device: torch.device) -> AbstractContextManager[None]:
        """In which the loss is computed, inside of `around`."""
        return nullcontext()


@dataclass(frozen=True)
class AsSet(Precision):
    """What torch is set to, and autocast around the training."""


@dataclass(frozen=True)
class Full(Precision):
    """Float32 as float32, whatever torch is set to: `full_precision`."""

    def around(self, device: torch.device) -> AbstractContextManager[None]:
        return full_precision()


class Reduced(Precision):
    """Base of the precisions that hold while |L − L̃| <= tol · |L| and ‖g − g̃‖ <= tol · ‖g‖.

    L and g are loss and gradient of one mini-batch in full precision, L̃ and g̃ in this one. The
    default tolerance of 0.1, in (0, 1), turns a gradient by at most 6 degrees, far less than
    another mini-batch does. Parameters in float64 have none of them.
    """

    tolerance: float

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0, below=1)


@dataclass(frozen=True)
class BFloat16(Reduced):
    """Products and convolutions in bfloat16, 8 bits of mantissa, by torch's autocast.

    It need not be faster: on a CPU with such products VGG5 is, small transformers are much slower.
    `python -m twophase bench` measures it.
    """

    tolerance: float = 0.1

    def around(self, device: torch.device) -> AbstractContextManager[None]:
        return full_precision()

    def casting(self, device: torch.device) -> AbstractContextManager[None]:
        # a captured graph must cast the weights as they are
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True)
class TF32(Reduced):
    """Products and convolutions in TF32, 11 bits of mantissa, on CUDA; elsewhere it is `Full`.

    torch's settings are those of the process: another thread computes in TF32 meanwhile, too.
    """

    tolerance: float = 0.1

    @contextmanager
    def around(self, device: torch.device) -> Iterator[None]:
        with full_precision():
            allow_tf32(device.type == "cuda")
            try:
                yield
            finally:
                allow_tf32(False)
