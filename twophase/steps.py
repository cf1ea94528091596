"""Steps of a first-order optimizer over mini-batches, plain or captured in a CUDA graph.

A GPU replays a graph in one launch, where a plain step of a small network takes hundreds.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from twophase.distributed import Processes, adds_up
from twophase.examples import Shuffled
from twophase.monitor import EpochMeans
from twophase.parameters import ParameterVector
from twophase.precision import AsSet, Precision, undrawn

log = logging.getLogger("twophase")
# Plain steps of the first mini-batches: they choose kernels and make the optimizer's state.
FIRST = 3
# A captured step is the plain one where it changes each tensor as that does, by this part of the
# change: the kernels are the same, and only the order of sums in some of them may vary.
AGREE = 1e-3
# Makes of a step without arguments what repeats it; the step itself need not run meanwhile.
Capture = Callable[[Callable[[], None], Optimizer], Callable[[], None]]


class Trainable(Protocol):
    """What steps ask of an objective: mini-batches, and the loss of one."""

    model: nn.Module
    vector: ParameterVector
    processes: Processes

    def mini_batches(self, size: int | None, generator: torch.Generator) -> Iterable[Any]:
        """The mini-batches of an epoch, each with a length, on the model's device."""

    def batch_loss(self, batch: Any, some: slice = slice(None)) -> Tensor:
        """The loss over a mini-batch, or some of its examples, with its graph."""


class Step:
    """A step of an optimizer for a mini-batch.

    Several processes share its examples, or all take all of them, where these do not add up.
    """

    def __init__(self, objective: Trainable, optimizer: Optimizer, precision: Precision = AsSet()):
        self.objective, self.optimizer, self.precision = objective, optimizer, precision
        self.splits = adds_up(objective.model)

    def fits(self, objective: Trainable) -> bool:
        """Whether it is the step of an objective as it is now."""
        return objective is self.objective

    def __call__(self, batch: Any, means: EpochMeans | None = None) -> None:
        """Make it; `means` takes loss and gradient."""
        self.plain(batch, means)

    def plain(self, batch: Any, means: EpochMeans | None = None) -> None:
        """Make it operation by operation."""
        own = self.share(batch)
        loss = self.mean(self.own_loss(batch, own, self.precision), own)
        if means is not None:
            means.add(loss, len(batch))
        self.optimizer.step()

    def share(self, batch: Any) -> slice:
        """The examples of a mini-batch that are this process's."""
        return self.objective.processes.share(len(batch)) if self.splits else slice(0, len(batch))

    def own_loss(self, batch: Any, own: slice, precision: Precision) -> Tensor:
        """The loss of this process's share, after its backward pass; 0 where it has none."""
        # autocast around the training would go on with copies of weights as they were
        torch.clear_autocast_cache()
        self.optimizer.zero_grad()
        device = self.objective.vector.parameters[0].device
        loss = torch.zeros((), device=device)
        if own.start < own.stop:
            with precision.around(device):
                with precision.casting(device):
                    loss = self.objective.batch_loss(batch, own)
                loss.backward()
        return loss

    def mean(self, loss: Tensor, own: slice) -> Tensor:
        """The loss over all shares, and so the parameters' `grad`."""
        parameters = self.objective.vector.parameters
        return self.objective.processes.mean(parameters, loss, own.stop - own.start)


class CapturedStep(Step):
    """The same, but captured once and then replayed for mini-batches of that size, indices [B].

    It first makes the step both ways from one state. Where they differ, or nothing can be captured,
    as of a model that reads a number, steps stay plain, and the log says why. So do those of a
    shorter last mini-batch, and those whose gradients are looked at.
    """

    def __init__(
        self, objective: Trainable, optimizer: Optimizer, precision: Precision, capture: Capture
    ):
        super().__init__(objective, optimizer, precision)
        self.capture, self.modes = capture, self._modes()
        self.made, self.tried = 0, False
        self.batch = torch.empty(0)
        self.replay: Callable[[], None] | None = None

    def fits(self, objective: Trainable) -> bool:
        # a replay has the modes of what was captured
        return super().fits(objective) and self.modes == self._modes()

    def __call__(self, batch: Tensor, means: EpochMeans | None = None) -> None:
        self.batch = self.batch if self.made else batch.clone()
        self.made += 1
        if means is not None or len(batch) != len(self.batch):
            self.plain(batch, means)
        elif self.replay is not None:
            self.batch.copy_(batch)
            self.replay()
        elif self.made > FIRST and not self.tried:
            self._begin(batch)
        else:
            self.plain(batch)

    def _begin(self, batch: Tensor) -> None:
        self.tried, tensors = True, self._tensors()
        self.batch.copy_(batch)
        before = [tensor.clone() for tensor in tensors]
        with undrawn(batch.device):
            self.plain(batch)
        after = [tensor.clone() for tensor in tensors]
        _write(tensors, before)
        try:
            self.replay = self.capture(lambda: self.plain(self.batch), self.optimizer)
            self.replay()
            if _agree(before, after, tensors):
                return
            reason = "it makes another step"
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
        log.warning("Adam's step is not captured in a CUDA graph, but stays plain: %s", reason)
        self.replay = None
        _write(tensors, before)
        self.plain(batch)

    def _modes(self) -> list[bool]:
        return [module.training for module in self.objective.model.modules()]

    def _tensors(self) -> list[Tensor]:
        """All that a step changes."""
        vector, state = self.objective.vector, self.optimizer.state.values()
        moments = [part for one in state for part in one.values() if isinstance(part, Tensor)]
        return [*vector.parameters, *vector.buffers, *moments]


def in_cuda_graph(step: Callable[[], None], optimizer: Optimizer) -> Callable[[], None]:
    """A CUDA graph of a step of torch's fused Adam (PyTorch's notes on CUDA, whole networks)."""
    graph, groups = torch.cuda.CUDAGraph(), optimizer.param_groups
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        with torch.cuda.graph(graph):
            step()
    finally:
        # on a CPU, where a saved state may go, there is no such optimizer
        for group, own in zip(groups, before, strict=True):
            group["capturable"] = own
    return graph.replay


def step_for(
    objective: Trainable, optimizer: Optimizer, precision: Precision, capture: Capture | None
) -> Step:
    """The step of an objective, captured where one process has its mini-batches as indices."""
    if capture is None or objective.processes.count > 1 or not isinstance(objective, Shuffled):
        return Step(objective, optimizer, precision)
    return CapturedStep(objective, optimizer, precision, capture)


@torch.enable_grad()
def sweep(step: Step, batches: Iterable[Any], means: EpochMeans | None = None) -> None:
    """A step for each mini-batch."""
    for batch in batches:
        step(batch, means)


@torch.no_grad()
def _write(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def _agree(before: list[Tensor], after: list[Tensor], found: list[Tensor]) -> bool:
    """Whether all tensors have changed as they did before; NaN is no agreement."""
    return all(
        (own.double() - new.double()).norm() <= AGREE * (new.double() - old.double()).norm()
        for old, new, own in zip(before, after, found, strict=True)
    )
