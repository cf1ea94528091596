"""The mean loss of a model over a whole data set, as an objective."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from twophase.distributed import bare, processes
from twophase.errors import InputError
from twophase.losses import Loss
from twophase.modules import evaluating
from twophase.objective import Passes, Point, round_off
from twophase.parameters import ParameterVector
from twophase.precision import full_precision

# Rounding error of a network's outputs in units of the dtype's spacing; measured 3 to 9 for the
# paper's networks, untrained and trained.
OUTPUT_ROUNDING = 12.0


class Score(NamedTuple):
    """Mean loss over a set, and the share of examples classified correctly (None: no classes)."""

    loss: float
    accuracy: float | None


class HitCount:
    """Counts the examples whose target class is among their `top` largest outputs.

    It takes outputs [B, classes] and integer targets [B]; other batches do not count.
    """

    def __init__(self, top: int = 1):
        self.top = top
        self.hits: Tensor | int = 0
        self.examples: Tensor | int = 0

    def __call__(self, outputs: Any, targets: Tensor) -> None:
        classes = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1
        if not classes or targets.is_floating_point() or targets.ndim != 1:
            return
        best = outputs.detach().topk(self.top, dim=1).indices
        self.hits = self.hits + (best == targets[:, None]).sum()
        self.examples += len(targets)

    def share(self) -> float | None:
        """Hits per example, in 0..1; None before a batch with classes."""
        return float(self.hits) / int(self.examples) if self.examples else None


class MeanLoss(ABC):
    """The mean loss of a model over a whole data set, evaluated in chunks, wherever these are from.

    L(x) = (1/K) Σ_k loss(model_x(input_k), target_k), for a loss of mean reduction. Outputs are
    converted to float64 before the loss, and chunks are summed in float64: near a minimum a line
    search compares values that differ by less than float32 resolves. The model computes in
    `full_precision`, but for mini-batches. Each evaluation leaves its `x` in the model. `value` and
    `value_and_gradient` are in the model's own mode (train or eval), `score` and `measure`, which
    fill records, in eval mode. Several processes evaluate a share of the examples each.
    """

    def __init__(self, model: nn.Module, loss: Loss):
        self.model, self.loss = bare(model), loss
        # a loss with weights of its own must take float64 outputs, too
        self._loss64 = deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
        self.vector = ParameterVector(model.parameters(), model.buffers())
        self.processes = processes()
        self.passes = Passes()
        self.resolution = round_off(self.vector.dtype)

    classes: bool  # whether targets are labels, so that there is an accuracy

    @property
    @abstractmethod
    def count(self) -> int:
        """Examples K."""

    @property
    @abstractmethod
    def shared(self) -> tuple[Tensor, ...]:
        """What must be the same in all processes, as far as it is at hand."""

    @property
    def own_count(self) -> int:
        """Those of this process."""
        own = self.processes.share(self.count)
        return own.stop - own.start

    @abstractmethod
    def batch_count(self, size: int | None) -> int:
        """Mini-batches of `size` examples each (None: all) in an epoch."""

    @abstractmethod
    def mini_batches(self, size: int | None, generator: torch.Generator) -> Iterable[Any]:
        """The mini-batches of an epoch, each with a length, on the model's device."""

    @abstractmethod
    def batch_loss(self, batch: Any, some: slice = slice(None)) -> Tensor:
        """The mean loss of a mini-batch, or some of its examples, in the model's dtype."""

    @abstractmethod
    def sample(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a few examples, on the model's device."""

    @abstractmethod
    def _examples(self, part: float = 1) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's examples in chunks, or in such a part of a chunk, on the model's device.

        The first dimension of inputs and targets is theirs.
        """

    def value(self, x: Tensor) -> float:
        """Loss at `x` [P]: one forward pass, without a graph."""
        return self._forward(x, None)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient [P] at `x` [P]: one forward and backward pass."""
        return self._forward_backward(x, None)

    @full_precision()
    @torch.enable_grad()
    def hessian_vector(self, x: Tensor, vector: Tensor) -> Tensor:
        """Hessian at `x` [P] times a vector [P], H v = (1/K) Σ_k ∇²loss_k(x) v, exact."""
        self.passes.hessian_vector += 1
        self.vector.write(x)
        product = torch.zeros_like(x)
        # the graph holds about four times as much as a gradient's; chosen before another kernel
        # changes what there is to count
        examples = self._examples(part=1 / 4)
        # the fast kernels of attention have no second derivative
        with sdpa_kernel(SDPBackend.MATH):
            for part, _ in self._parts(None, examples):
                product += self.vector.hessian_vector(part, vector)
        return self.processes.sums([product], x)[0]

    def score(self, x: Tensor, top: int = 1) -> Score:
        """Loss and top-`top` accuracy at `x` [P], in eval mode: one forward pass."""
        hits = HitCount(top)
        with evaluating(self.model):
            loss = self._forward(x, hits)
        return Score(loss, hits.share())

    def measure(self, x: Tensor) -> tuple[Point, float | None]:
        """Point and accuracy at `x` [P], in eval mode: one forward and backward pass."""
        hits = HitCount()
        with evaluating(self.model):
            value, gradient = self._forward_backward(x, hits)
        return Point(x, value, gradient, self.resolution), hits.share()

    @full_precision()
    @torch.no_grad()
    def _forward(self, x: Tensor, hits: HitCount | None) -> float:
        self.passes.forward += 1
        self.vector.write(x)
        value = sum(part for part, _ in self._parts(hits))
        return float(self._total(x, hits, torch.as_tensor(value, dtype=torch.float64))[0])

    @full_precision()
    @torch.enable_grad()
    def _forward_backward(self, x: Tensor, hits: HitCount | None) -> tuple[float, Tensor]:
        self.passes.forward += 1
        self.passes.backward += 1
        self.vector.write(x)
        gradient = torch.zeros_like(x)
        value = squares = torch.zeros((), dtype=torch.float64, device=x.device)
        for part, outputs in self._parts(hits):
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                (slope,) = self.vector.add_gradient(gradient, part, outputs)
                squares = squares + (slope.double() * outputs.detach()).square().sum()
            else:
                self.vector.add_gradient(gradient, part)
            value = value + part.detach()
        gradient, value, squares = self._total(x, hits, gradient, value, squares)
        # the only wait for the device
        loss, square = torch.stack((value, squares)).tolist()
        self.resolution = self._resolution(loss, square**0.5)
        return loss, gradient

    def _total(self, x: Tensor, hits: HitCount | None, *parts: Tensor) -> Sequence[Tensor]:
        """The parts, and hits, of all processes."""
        if hits is None:
            return self.processes.sums(parts, x)
        *sums, hits.hits, hits.examples = self.processes.sums([*parts, hits.hits, hits.examples], x)
        return sums

    def _resolution(self, value: float, sensitivity: float) -> float:
        """Relative noise of the loss by rounding errors of the outputs o.

        `sensitivity` is sqrt(Σ (∂L/∂o · o)²), the loss's change by errors of relative size 1.
        """
        if not (sensitivity > 0 and value != 0):
            return round_off(self.vector.dtype)
        noise = OUTPUT_ROUNDING * torch.finfo(self.vector.dtype).eps * sensitivity
        return max(noise / abs(value), round_off(torch.float64))

    def _parts(
        self, hits: HitCount | None, examples: Iterable[tuple[Tensor, Tensor]] | None = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """Each chunk's contribution to the mean loss, a float64 scalar, and its outputs."""
        seen = 0
        for inputs, targets in self._examples() if examples is None else examples:
            if not len(inputs):  # of a process that has no example
                continue
            loss, outputs = self.part(inputs, targets)
            if hits is not None:
                hits(outputs, targets)
            seen += len(inputs)
            yield loss * (len(inputs) / self.count), outputs
        if seen != self.own_count:
            allowed = f"all {self.own_count} in each, the first dimension of inputs, no drop_last"
            raise InputError("data", f"{seen} examples in a pass", allowed)

    def part(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Any]:
        """The mean loss of some examples in float64, and their outputs."""
        outputs = self.model(inputs)
        return self._loss64(_float64(outputs), _float64(targets)), outputs


def _float64(value: Any) -> Any:
    """Real tensors in float64; what else a model may return, such as a tuple, as it is."""
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if real else value
