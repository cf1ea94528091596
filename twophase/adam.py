"""Phase 1: Adam over the mini-batches of an objective."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from twophase.errors import InputError, check_integer, check_number
from twophase.monitor import EpochMeans
from twophase.settings import Settings
from twophase.steps import Capture, Step, Trainable, in_cuda_graph, step_for, sweep


@dataclass(frozen=True)
class AdamSettings(Settings):
    """Settings of the Adam phase (Kingma and Ba, 2015); `InputError` for a value out of range.

    The defaults are torch's, since the paper does not print its learning rate, and the paper's
    batch size (section 4). A `batch_size` of None: all examples in one batch.

    Mini-batches are in the precision that torch is set to: TF32, bfloat16 in products, and autocast
    around the training count for them, not for the full loss (see `full_precision`).
    """

    learning_rate: float = 1e-3
    batch_size: int | None = 512
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

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


class Adam:
    """torch's Adam (on CUDA fused, and its step captured) and the shuffled epochs of its training.

    Each epoch draws one permutation of the examples from `generator` (see `Shuffled`). Nothing
    waits for the device inside an epoch: data in memory are there already, the order is copied from
    pinned memory, fused Adam counts its steps on the device, and no loss is read. `capture` makes
    of a step what is replayed, see `CapturedStep`; None: a CUDA graph on CUDA, else nothing.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        settings: AdamSettings,
        generator: torch.Generator,
        capture: Capture | None = None,
    ):
        self.generator = generator
        self.batch_size = settings.batch_size
        parameters = [p for p in parameters if p.requires_grad]
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
        batches = objective.mini_batches(self.batch_size, self.generator)
        if self._step is None or not self._step.fits(objective):
            self._step = step_for(objective, self.optimizer, self.capture)
        sweep(self._step, batches, means)

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments, which further epochs change, and the generator's state."""
        return {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        load(self.optimizer, state["optimizer"])
        self._step = None  # its tensors are others now
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
