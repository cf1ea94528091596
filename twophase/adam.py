"""Phase 1: Adam over the mini-batches of an objective."""

import logging
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, is_dataclass
from itertools import chain, islice
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from twophase.errors import InputError, check_integer, check_number
from twophase.monitor import EpochMeans
from twophase.precision import AsSet, Full, Precision, Reduced, deviation
from twophase.settings import Settings
from twophase.steps import Capture, Step, Trainable, in_cuda_graph, step_for, sweep

log = logging.getLogger("twophase")


@dataclass(frozen=True)
class AdamSettings(Settings):
    """Settings of the Adam phase (Kingma and Ba, 2015); `InputError` for a value out of range.

    The defaults are torch's, since the paper does not print its learning rate, and the paper's
    batch size (section 4). A `batch_size` of None: all examples in one batch.

    Mini-batches have a `precision`: what torch is set to, autocast included (`AsSet`), or `Full`,
    or `BFloat16` or `TF32` as long as loss and gradient stay within a tolerance. It counts for them
    alone; the full loss is always in full precision, also where an epoch is one batch of all.
    """

    learning_rate: float = 1e-3
    batch_size: int | None = 512
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    precision: Precision = AsSet()
    added: ClassVar = ("precision",)

    def __post_init__(self) -> None:
        # at most what torch, which divides it by 1 - beta1, can hold in float32
        check_number("learning_rate", self.learning_rate, above=0, maximum=1e30)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise InputError("betas", self.betas, "two numbers of at least 0 and below 1")
        for beta in self.betas:
            check_number("betas", beta, minimum=0, below=1)
        check_number("eps", self.eps, above=0)
        if not isinstance(self.precision, Precision) or not is_dataclass(self.precision):
            raise InputError("precision", self.precision, "AsSet(), Full(), BFloat16() or TF32()")


class Adam:
    """torch's Adam (on CUDA fused, and its step captured) and the shuffled epochs of its training.

    Each epoch draws one permutation of the examples from `generator` (see `Shuffled`). Nothing
    waits for the device inside an epoch: data in memory are there already, the order is copied from
    pinned memory, fused Adam counts its steps on the device, and no loss is read. `capture` makes
    of a step what is replayed, see `CapturedStep`; None: a CUDA graph on CUDA, else nothing.

    A reduced precision is compared with the full one on the first mini-batch of epochs 1, 2, 4, 8
    and so on; where loss or gradient is off by more than its tolerance, the rest is in full
    precision, and the log says so.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        settings: AdamSettings,
        generator: torch.Generator,
        capture: Capture | None = None,
    ):
        self.generator = generator
        self.batch_size, self.precision = settings.batch_size, settings.precision
        self._asked, self.epochs = settings.precision, 0
        parameters = [p for p in parameters if p.requires_grad]
        if isinstance(self.precision, Reduced) and parameters[0].dtype == torch.float64:
            raise InputError("precision", self.precision, "AsSet() or Full() in float64")
        cuda = parameters[0].device.type == "cuda"
        self.capture = capture or (in_cuda_graph if cuda else None)
        self._step: Step | None = None
        self.optimizer = torch.optim.Adam(
            parameters,
            lr=float(settings.learning_rate),
            betas=settings.betas,
            eps=float(settings.eps),
            fused=cuda,
        )

    def epoch(self, objective: Trainable, means: EpochMeans | None = None) -> None:
        """One pass over the examples of an objective, whose parameters this Adam trains."""
        batches = iter(objective.mini_batches(self.batch_size, self.generator))
        if isinstance(self.precision, Reduced) and (self.epochs + 1).bit_count() == 1:
            for first in islice(batches, 1):
                self._compare(self._step_of(objective), first, self.precision.tolerance)
                batches = chain((first,), batches)
        sweep(self._step_of(objective), batches, means)
        self.epochs += 1

    def _compare(self, step: Step, batch: Any, tolerance: float) -> None:
        """Go on in full precision where the step's is too far from it on a mini-batch."""
        off, failed = deviation(step, batch)
        if off <= tolerance:
            return
        if failed or step.objective.processes.rank == 0:
            why = failed or f"loss or gradient is off by {off:.2g} of its size"
            log.warning(
                "epoch %d of Adam: full precision from here on; in %s: %s",
                *(self.epochs + 1, self.precision, why),
            )
        self.precision, self._step = Full(), None

    def _step_of(self, objective: Trainable) -> Step:
        if self._step is None or not self._step.fits(objective):
            self._step = step_for(objective, self.optimizer, self.precision, self.capture)
        return self._step

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments, which further epochs change, and the generator's state."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epochs": self.epochs,
            "lost": self.precision != self._asked,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        load(self.optimizer, state["optimizer"])
        self._step = None  # its tensors are others now
        self.epochs = check_integer("epochs", state.get("epochs", 0), 0)
        self.precision = Full() if state.get("lost") else self._asked
        self.generator.set_state(state["generator"].cpu())


def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state; an exception where one of torch's own could not step from it."""
    optimizer.load_state_dict(state)
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    # torch looks at no shape and no number, so a copy makes an odd and an even step
    copies: dict[int, Any] = {}
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        copies[id(parameter)] = copied = parameter.detach().clone()
        copied.grad = torch.zeros_like(copied)
    trial = deepcopy(optimizer, copies)
    trial.step()
    trial.step()
