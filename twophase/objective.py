"""A loss as a function of ONE flat parameter vector: all that CG and line search ever see."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twophase.errors import InputError, NonFiniteError, check_integer

Closure = Callable[[], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

# Rounding error of a network's outputs in units of the dtype's spacing; measured 3 to 9 for the
# five networks, untrained and trained (test_objective measures it again).
OUTPUT_ROUNDING = 12.0

# Bytes of what a chunk's forward pass produces. On a CPU 16 to 64 MiB, about its last cache, were
# the fastest for the networks of the paper and the whole batch up to twice as slow; of these the
# largest, because several threads wait for each other after every operation of a small chunk. A GPU
# takes as much as it has room for; backward pass and what else lives there need theirs.
CPU_CHUNK_BYTES = 64 * 2**20
CUDA_CHUNK_SHARE = 1 / 8


@dataclass
class Passes:
    """Work done, in sweeps over the training set: a forward pass is 1, a backward pass 2 more.

    A Hessian–vector product is 9: its second backward pass runs through a forward and a backward
    pass, 3 sweeps, and takes twice as long as these. On a CPU the vision transformers and VGG-5
    take 9.5 to 10 times a third of a gradient's seconds.

    >>> Passes(forward=14, backward=1).total
    16
    >>> Passes(hessian_vector=2).total
    18
    """

    forward: int = 0
    backward: int = 0
    hessian_vector: int = 0

    @property
    def total(self) -> int:
        """Forward passes, twice the backward passes and 9 times the Hessian–vector products."""
        return self.forward + 2 * self.backward + 9 * self.hessian_vector


class Point(NamedTuple):
    """A parameter vector [P] with the loss, the gradient [P] and the loss's resolution there.

    `resolution` is the relative change of the loss that cannot be told from none.

    >>> point = evaluate(FunctionObjective(lambda x: x @ x), torch.ones(2))
    >>> point.value, point.gradient, point.resolution == round_off(torch.float32)
    (2.0, tensor([2., 2.]), True)
    """

    x: Tensor
    value: float
    gradient: Tensor
    resolution: float


class Objective(Protocol):
    """What the second phase minimises; toys, closures and data sets differ only behind it.

    `resolution` is the relative change of the value below which two values cannot be told apart;
    `passes` counts the work done.

    >>> class Bowl:
    ...     def __init__(self):
    ...         self.passes, self.resolution = Passes(), round_off(torch.float64)
    ...
    ...     def value(self, x):
    ...         self.passes.forward += 1
    ...         return dot(x, x)
    ...
    ...     def value_and_gradient(self, x):
    ...         self.passes.backward += 1
    ...         return self.value(x), 2 * x
    >>> evaluate(Bowl(), torch.ones(2)).value
    2.0
    """

    passes: Passes
    resolution: float

    def value(self, x: Tensor) -> float:
        """Value at `x` [P]: one forward pass."""
        ...

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient [P] at `x` [P]: one forward and backward pass."""
        ...


class TwiceDifferentiable(Objective, Protocol):
    """An objective with second derivatives, for what looks at its curvature.

    >>> bowl: TwiceDifferentiable = FunctionObjective(lambda x: x @ x)
    >>> bowl.hessian_vector(torch.zeros(2), torch.ones(2))
    tensor([2., 2.])
    """

    def hessian_vector(self, x: Tensor, vector: Tensor) -> Tensor:
        """Product [P] of the Hessian at `x` [P] and a vector [P]: one Hessian–vector product."""
        ...


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two flat vectors, in float64 so that small float32 gradients keep theirs.

    >>> dot(torch.tensor([1e-25]), torch.tensor([1e-25])) > 0
    True
    """
    return torch.dot(a.double(), b.double()).item()


def norm(a: Tensor) -> float:
    """Euclidean norm of a flat vector, in float64.

    >>> norm(torch.tensor([3.0, 4.0]))
    5.0
    """
    return dot(a, a) ** 0.5


def round_off(dtype: torch.dtype) -> float:
    """Relative change that a value computed and returned in `dtype` can resolve (4 ulp).

    >>> round_off(torch.float64) < 1e-15
    True
    """
    return 4 * torch.finfo(dtype).eps


class ParameterVector:
    """The parameters of a model as one flat vector of length P, to read and to write.

    Parameters that do not require a gradient stay as they are.

    Raises:
        InputError: no parameter is left, dtypes or devices are mixed, or the dtype is neither
            float32 nor float64 (a line search cannot resolve a minimum in half precision).

    >>> vector = ParameterVector(nn.Linear(3, 2).parameters())
    >>> vector.read().shape
    torch.Size([8])
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise InputError("params", [], "at least one parameter that requires a gradient")
        kinds = sorted({f"{p.dtype} on {p.device}" for p in self.parameters})
        if len(kinds) > 1:
            raise InputError("params", ", ".join(kinds), "parameters of one dtype on one device")
        if self.parameters[0].dtype not in (torch.float32, torch.float64):
            raise InputError("params", kinds[0], "parameters in float32 or float64")

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of the parameters, float32 or float64."""
        return self.parameters[0].dtype

    def read(self) -> Tensor:
        """A copy of the parameters, shape [P].

        >>> ParameterVector([nn.Parameter(torch.eye(2)), nn.Parameter(torch.ones(1))]).read()
        tensor([1., 0., 0., 1., 1.])
        """
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    @torch.no_grad()
    def write(self, x: Tensor) -> None:
        """Set the parameters to the vector `x`, shape [P].

        >>> weight = nn.Parameter(torch.zeros(2, 2))
        >>> ParameterVector([weight]).write(torch.arange(4.0))
        >>> weight.tolist()
        [[0.0, 1.0], [2.0, 3.0]]
        """
        for parameter, part in zip(self.parameters, self._split(x), strict=True):
            parameter.copy_(part.view_as(parameter))

    def gradient(self, loss: Tensor) -> Tensor:
        """Gradient of a scalar, shape [P]; zero where the scalar does not depend on a parameter.

        >>> model = nn.Linear(2, 1)
        >>> ParameterVector(model.parameters()).gradient(model(torch.ones(1, 2)).sum())
        tensor([1., 1., 1.])
        """
        return self._flat(torch.autograd.grad(loss, self.parameters, allow_unused=True))

    def gradients(self, loss: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a scalar by a tensor on the way to it, and by the parameters [P].

        >>> model = nn.Linear(2, 1)
        >>> outputs = model(torch.ones(1, 2))
        >>> ParameterVector(model.parameters()).gradients(outputs.sum(), outputs)
        (tensor([[1.]]), tensor([1., 1., 1.]))
        """
        first, *rest = torch.autograd.grad(loss, [outputs, *self.parameters], allow_unused=True)
        return torch.zeros_like(outputs) if first is None else first, self._flat(rest)

    def hessian_vector(self, loss: Tensor, vector: Tensor) -> Tensor:
        """Hessian of a scalar times a vector [P]: the gradient of the gradient's inner product.

        H v = ∇(v'∇L), exact, by a second backward pass (Pearlmutter, 1994); zero where the
        scalar's gradient does not depend on a parameter.

        >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> vector = torch.tensor([1.0, 0.0])
        >>> ParameterVector([weight]).hessian_vector(weight.prod() ** 2, vector)
        tensor([8., 8.])
        """
        first = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        pairs = [
            (gradient, part.view_as(gradient))
            for gradient, part in zip(first, self._split(vector), strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(vector)
        gradients, parts = zip(*pairs, strict=True)
        return self._flat(torch.autograd.grad(gradients, self.parameters, parts, allow_unused=True))

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return torch.cat(
            [
                torch.zeros_like(p).reshape(-1) if g is None else g.to_dense().reshape(-1)
                for p, g in zip(self.parameters, gradients, strict=True)
            ]
        )

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, [p.numel() for p in self.parameters])


class FunctionObjective:
    """A differentiable function of a vector, such as the toys, as an objective.

    >>> objective = FunctionObjective(lambda x: (x**2).sum())
    >>> objective.value_and_gradient(torch.tensor([3.0], dtype=torch.float64))
    (9.0, tensor([6.], dtype=torch.float64))
    >>> objective.passes.total
    3
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function
        self.passes = Passes()
        self.resolution = round_off(torch.float64)

    @torch.no_grad()
    def value(self, x: Tensor) -> float:
        """Value at `x` [P]: one forward pass.

        >>> FunctionObjective(lambda x: x @ x).value(torch.ones(2))
        2.0
        """
        self.passes.forward += 1
        return self.function(x).item()

    @torch.enable_grad()
    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient [P] at `x` [P]: one forward and backward pass.

        >>> FunctionObjective(lambda x: x @ x).value_and_gradient(torch.ones(2))
        (2.0, tensor([2., 2.]))
        """
        self.passes.forward += 1
        self.passes.backward += 1
        leaf = x.detach().requires_grad_()
        value = self.function(leaf)
        self.resolution = round_off(value.dtype)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient

    @torch.enable_grad()
    def hessian_vector(self, x: Tensor, vector: Tensor) -> Tensor:
        """Hessian at `x` [P] times a vector [P]: one Hessian–vector product.

        >>> bowl = FunctionObjective(lambda x: (x**2).sum())
        >>> bowl.hessian_vector(torch.ones(2), torch.tensor([1.0, 0.0]))
        tensor([2., 0.])
        """
        self.passes.hessian_vector += 1
        leaf = nn.Parameter(x.detach())
        return ParameterVector([leaf]).hessian_vector(self.function(leaf), vector)


class ClosureObjective:
    """A torch closure that computes and returns the loss, and does NOT call backward.

    Its resolution follows from the dtype of the loss that the closure returns, at best that of
    the parameters. Every evaluation leaves its `x` in the parameters.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> objective = ClosureObjective(ParameterVector([weight]), lambda: weight @ weight)
    >>> objective.value_and_gradient(torch.ones(2))
    (2.0, tensor([2., 2.]))
    """

    def __init__(self, vector: ParameterVector, closure: Closure):
        self.vector = vector
        self.closure = closure
        self.passes = Passes()
        self.resolution = round_off(vector.dtype)

    @torch.no_grad()
    def value(self, x: Tensor) -> float:
        """Loss at `x` [P]: one call of the closure, without a graph.

        Raises:
            InputError: the closure calls backward or does not return a real scalar.

        >>> weight = nn.Parameter(torch.zeros(2))
        >>> objective = ClosureObjective(ParameterVector([weight]), lambda: weight @ weight)
        >>> objective.value(torch.ones(2))
        2.0
        """
        self.passes.forward += 1
        self.vector.write(x)
        with _explained():
            return self._loss().item()

    @torch.enable_grad()
    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient [P] at `x` [P]: one call of the closure and one backward pass.

        Raises:
            InputError: the closure calls backward, does not return a real scalar, or returns one
                without a graph.

        >>> weight = nn.Parameter(torch.zeros(2))
        >>> objective = ClosureObjective(ParameterVector([weight]), lambda: torch.tensor(1.0))
        >>> objective.value_and_gradient(torch.ones(2))
        Traceback (most recent call last):
        twophase.errors.InputError: closure: 'a loss without a graph' is not allowed; ...
        """
        self.passes.forward += 1
        self.passes.backward += 1
        self.vector.write(x)
        loss = self._loss()
        if not loss.requires_grad:
            raise InputError(
                "closure", "a loss without a graph", "a loss computed from the parameters"
            )
        with _explained():
            return loss.item(), self.vector.gradient(loss)

    def _loss(self) -> Tensor:
        loss = self.closure()
        scalar = isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()
        if not scalar:
            kind = type(loss).__name__
            if isinstance(loss, Tensor):
                kind = f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
            raise InputError("closure", kind, "a closure that returns the loss as a real scalar")
        self.resolution = max(round_off(loss.dtype), round_off(self.vector.dtype))
        return loss.reshape(())


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what torch says of a closure that calls backward into one clear line."""
    try:
        yield
    except RuntimeError as error:
        if "second time" not in str(error) and "does not require grad" not in str(error):
            raise
        raise InputError(
            "closure", "one that calls backward", "one that only returns the loss"
        ) from error


class Score(NamedTuple):
    """Mean loss over a set, and the share of examples classified correctly (None: no classes)."""

    loss: float
    accuracy: float | None


class FullBatch:
    """The mean loss of a model over a whole data set, evaluated in chunks.

    L(x) = (1/K) Σ_k loss(model_x(input_k), target_k). The model's outputs are converted to float64
    before the loss, and chunks are summed in float64 whatever the model's dtype: near a minimum a
    line search compares values that differ by less than float32 resolves.

    Args:
        model, loss: any `nn.Module`, and a loss with mean reduction, `loss(outputs, targets)`.
        inputs, targets: tensors [K, ...] on the model's device.
        chunk_size: examples per forward pass; bounds the memory, changes results by rounding only.
            Default None: chosen at the first evaluation, by the bytes of intermediate results per
            example (see `bytes_per_example`), so that a chunk has CPU_CHUNK_BYTES of them, or
            CUDA_CHUNK_SHARE of the GPU's memory. The choice follows from model, shapes and device
            alone, so that a run that goes on later makes the same.

    Raises:
        InputError: `ParameterVector` refuses the parameters, or `chunk_size` is below 1.

    >>> model = nn.Linear(2, 1)
    >>> full = FullBatch(model, nn.functional.mse_loss, torch.ones(5, 2), torch.ones(5, 1), 2)
    >>> value, gradient = full.value_and_gradient(full.vector.read())
    >>> gradient.shape
    torch.Size([3])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Tensor,
        targets: Tensor,
        chunk_size: int | None = None,
    ):
        self.model, self.loss = model, loss
        # a loss with weights of its own must take float64 outputs, too
        self._loss64 = deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
        self.inputs, self.targets = inputs, targets
        if chunk_size is not None:
            # in place of the property's own choice
            self.chunk_size = check_integer("chunk_size", chunk_size, 1)
        self.vector = ParameterVector(model.parameters())
        self.passes = Passes()
        self.resolution = round_off(self.vector.dtype)

    @cached_property
    def chunk_size(self) -> int:
        """Examples per forward pass: as given, else chosen when it is first asked for.

        >>> images = torch.zeros(5000, 64)
        >>> model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 64))
        >>> FullBatch(model, nn.functional.mse_loss, images, images).chunk_size < 5000
        True
        """
        count = len(self.inputs)
        if count <= LARGEST_PROBE:
            return max(1, count)
        needed = count * bytes_per_example(self.model, self._part, self.inputs, self.targets)
        chunks = max(1, math.ceil(needed / _chunk_bytes(self.inputs.device)))
        # equal chunks: a short last one would use a processor badly
        return math.ceil(count / chunks)

    def value(self, x: Tensor) -> float:
        """Loss at `x` [P], which the model keeps: one forward pass, without a graph.

        >>> model, inputs = nn.Linear(2, 1), torch.ones(5, 2)
        >>> full = FullBatch(model, nn.functional.mse_loss, inputs, torch.ones(5, 1))
        >>> full.value(torch.zeros(3))
        1.0
        """
        return self._forward(x, _ignore)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient [P] at `x` [P], which the model keeps: one forward and backward pass.

        >>> model, inputs = nn.Linear(2, 1), torch.ones(5, 2)
        >>> full = FullBatch(model, nn.functional.mse_loss, inputs, torch.ones(5, 1))
        >>> full.value_and_gradient(torch.zeros(3))
        (1.0, tensor([-2., -2., -2.]))
        """
        return self._forward_backward(x, _ignore)

    @torch.enable_grad()
    def hessian_vector(self, x: Tensor, vector: Tensor) -> Tensor:
        """Hessian of the loss at `x` [P], which the model keeps, times a vector [P].

        H v = (1/K) Σ_k ∇²loss_k(x) v, exact, and never a matrix: one Hessian–vector product. Its
        chunks are a quarter of `chunk_size`, because its graph holds about four times as much as
        that of a gradient.

        >>> model, inputs = nn.Linear(2, 1), torch.ones(5, 2)
        >>> full = FullBatch(model, nn.functional.mse_loss, inputs, torch.ones(5, 1))
        >>> full.hessian_vector(torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]))
        tensor([2., 2., 2.])
        """
        self.passes.hessian_vector += 1
        self.vector.write(x)
        product = torch.zeros_like(x)
        # chosen before another kernel changes what there is to count
        size = max(1, self.chunk_size // 4)
        # the fast kernels of attention have no second derivative
        with sdpa_kernel(SDPBackend.MATH):
            for part, _ in self._parts(_ignore, size):
                product += self.vector.hessian_vector(part, vector)
        return product

    def score(self, x: Tensor, top: int = 1) -> Score:
        """Loss and top-`top` accuracy at `x` [P], which the model keeps: one forward pass.

        `top` is at most the number of classes.

        >>> model, classes = nn.Linear(2, 2, bias=False), torch.tensor([0, 1])
        >>> full = FullBatch(model, nn.functional.cross_entropy, torch.eye(2), classes)
        >>> full.score(torch.tensor([1.0, 1.0, 0.0, 0.0])).accuracy
        0.5
        """
        hits = HitCount(top)
        loss = self._forward(x, hits)
        return Score(loss, hits.share())

    def measure(self, x: Tensor) -> tuple[Point, float | None]:
        """Point and accuracy at `x` [P], which the model keeps: one forward and backward pass.

        >>> model, classes = nn.Linear(2, 2, bias=False), torch.tensor([0, 1])
        >>> full = FullBatch(model, nn.functional.cross_entropy, torch.eye(2), classes)
        >>> point, accuracy = full.measure(torch.tensor([1.0, 0.0, 0.0, 1.0]))
        >>> point.gradient.shape, accuracy
        (torch.Size([4]), 1.0)
        """
        hits = HitCount()
        value, gradient = self._forward_backward(x, hits)
        return Point(x, value, gradient, self.resolution), hits.share()

    @torch.no_grad()
    def _forward(self, x: Tensor, tally: Callable[[Tensor, Tensor], None]) -> float:
        self.passes.forward += 1
        self.vector.write(x)
        return sum(part for part, _ in self._parts(tally, self.chunk_size)).item()

    @torch.enable_grad()
    def _forward_backward(
        self, x: Tensor, tally: Callable[[Tensor, Tensor], None]
    ) -> tuple[float, Tensor]:
        self.passes.forward += 1
        self.passes.backward += 1
        self.vector.write(x)
        gradient = torch.zeros_like(x)
        value = squares = torch.zeros((), dtype=torch.float64, device=x.device)
        for part, outputs in self._parts(tally, self.chunk_size):
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                slope, share = self.vector.gradients(part, outputs)
                squares = squares + (slope.double() * outputs.detach()).square().sum()
            else:
                share = self.vector.gradient(part)
            gradient += share
            value = value + part.detach()
        # the only wait for the device
        loss, square = torch.stack((value, squares)).tolist()
        self.resolution = self._resolution(loss, square**0.5)
        return loss, gradient

    def _resolution(self, value: float, sensitivity: float) -> float:
        """Relative noise of the loss that independent rounding errors of the outputs make.

        `sensitivity` is sqrt(Σ (∂L/∂o · o)²), the change of the loss by errors of relative size 1.
        """
        if not (sensitivity > 0 and value != 0):
            return round_off(self.vector.dtype)
        noise = OUTPUT_ROUNDING * torch.finfo(self.vector.dtype).eps * sensitivity
        return max(noise / abs(value), round_off(torch.float64))

    def _parts(
        self, tally: Callable[[Tensor, Tensor], None], size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each chunk's contribution to the mean loss, a float64 scalar, and its outputs."""
        count = len(self.inputs)
        chunks = zip(self.inputs.split(size), self.targets.split(size), strict=True)
        for inputs, targets in chunks:
            part, outputs = self._part(inputs, targets)
            tally(outputs, targets)
            yield part * (len(inputs) / count), outputs

    def _part(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of some examples in float64, and their outputs."""
        outputs = self.model(inputs)
        return self._loss64(_float64(outputs), _float64(targets)), outputs


# Examples of the larger of the two batches that `bytes_per_example` looks at.
LARGEST_PROBE = 4


def bytes_per_example(
    model: nn.Module, compute: Callable[[Tensor, Tensor], object], inputs: Tensor, targets: Tensor
) -> float:
    """Bytes of all tensors that one example more makes a forward pass produce.

    It is the difference between batches of 4 and of 2 examples, divided by 2: what does not depend
    on the batch cancels out. A graph with gradients holds most of these tensors until the backward
    pass. The model runs in eval mode, and modes and random numbers are afterwards as before.

    Args:
        model: whose modes to keep.
        compute: the forward pass on a batch, `compute(inputs, targets)`.
        inputs, targets: [K, ...] with K >= 4.

    >>> model = nn.Linear(3, 5)
    >>> bytes_per_example(model, lambda x, y: model(x), torch.ones(4, 3), torch.ones(4))
    20.0
    """
    small, large = LARGEST_PROBE // 2, LARGEST_PROBE
    cuda = [inputs.device] if inputs.device.type == "cuda" else []
    made = []
    with evaluating(model), torch.random.fork_rng(cuda), torch.enable_grad():
        for count in (small, large):
            with _Produced() as produced:
                compute(inputs[:count], targets[:count])
            made.append(produced.bytes)
    return max(0, made[1] - made[0]) / (large - small)


class _Produced(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, views once."""

    def __init__(self):
        super().__init__()
        # kept alive, so that no storage takes the address of another
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        self.kept += [
            t for t in tree_leaves(results) if isinstance(t, Tensor) and t.layout is torch.strided
        ]
        return results

    @property
    def bytes(self) -> int:
        storages = (tensor.untyped_storage() for tensor in self.kept)
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _chunk_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return CUDA_CHUNK_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CPU_CHUNK_BYTES


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for the time of a measurement; each module gets its own mode back.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class HitCount:
    """Counts the examples whose target class is among their `top` largest outputs.

    It is called with outputs [B, classes] and integer targets [B]; other batches do not count.

    >>> hits = HitCount()
    >>> hits(torch.tensor([[0.1, 0.9], [0.2, 0.8]]), torch.tensor([1, 0]))
    >>> hits.share()
    0.5
    """

    def __init__(self, top: int = 1):
        self.top = top
        self.hits: Tensor | None = None
        self.examples = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> None:
        classes = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1
        if not classes or targets.is_floating_point() or targets.ndim != 1:
            return
        best = outputs.detach().topk(self.top, dim=1).indices
        hits = (best == targets[:, None]).sum()
        self.hits = hits if self.hits is None else self.hits + hits
        self.examples += len(targets)

    def share(self) -> float | None:
        """Hits per example, in 0..1; None before a batch with classes."""
        return None if self.hits is None else self.hits.item() / self.examples


def start(objective: Objective, x: Tensor) -> Point:
    """Evaluate the first point of a CG run, after checking that the objective repeats itself.

    It costs one forward pass more than `evaluate`, and raises what that and `check_repeats` raise.

    >>> start(FunctionObjective(lambda x: x @ x), torch.ones(2)).gradient
    tensor([2., 2.])
    """
    point = evaluate(objective, x)
    check_repeats(objective, point)
    return point


def check_repeats(objective: Objective, point: Point) -> None:
    """Raise `InputError` when a second evaluation at a point disagrees; one forward pass.

    >>> bowl = FunctionObjective(lambda x: x @ x)
    >>> check_repeats(bowl, evaluate(bowl, torch.ones(2)))
    """
    again = objective.value(point.x)
    if not abs(again - point.value) <= 100 * objective.resolution * abs(point.value):
        raise InputError(
            "model",
            f"one with the losses {point.value:.9g} and {again:.9g} at the same parameters",
            "one that repeats itself: no dropout, no augmentation (call model.eval())",
        )


def evaluate(objective: Objective, x: Tensor) -> Point:
    """Evaluate loss and gradient at `x` [P].

    Raises:
        InputError: a module with dropout or BatchNorm runs in training mode.
        NonFiniteError: loss or gradient is not finite.

    >>> evaluate(FunctionObjective(lambda x: x @ x), torch.ones(2)).value
    2.0
    """
    point = observe(objective, x)
    check_finite(point.value, norm(point.gradient))
    return point


def observe(objective: Objective, x: Tensor) -> Point:
    """Evaluate loss and gradient at `x` [P], finite or not.

    Raises:
        InputError: a module with dropout or BatchNorm runs in training mode.

    >>> observe(FunctionObjective(lambda x: x.log().sum()), -torch.ones(1)).value
    nan
    """
    with _reject_unrepeatable_modules():
        value, gradient = objective.value_and_gradient(x)
    return Point(x, value, gradient, objective.resolution)


def check_finite(loss: float, grad_norm: float, where: str = "") -> None:
    """Raise `NonFiniteError` unless both numbers are finite.

    >>> check_finite(0.5, float("nan"), " after epoch 3")
    Traceback (most recent call last):
    twophase.errors.NonFiniteError: gradient norm: nan is not allowed after epoch 3; ...
    """
    for field, number in (("loss", loss), ("gradient norm", grad_norm)):
        if not abs(number) < float("inf"):
            raise NonFiniteError(
                f"{field}: {number} is not allowed{where}; use data, initial weights and "
                "a learning rate that keep it finite"
            )


@contextmanager
def _reject_unrepeatable_modules() -> Iterator[None]:
    """While active, raise `InputError` when a module runs whose output is not its parameters' own.

    A hook on all modules sees what a closure calls, where no model is at hand to inspect.
    """
    handle = nn.modules.module.register_module_forward_pre_hook(_reject_if_unrepeatable)
    try:
        yield
    finally:
        handle.remove()


def check_modules(model: nn.Module) -> None:
    """Raise `InputError` when a module of the model is dropout or BatchNorm in training mode.

    >>> check_modules(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval())
    """
    for module in model.modules():
        _reject_if_unrepeatable(module)


def _reject_if_unrepeatable(module: nn.Module, _inputs: object = None) -> None:
    drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.training and (drops or batch_norm):
        raise InputError(
            "model",
            f"{type(module).__name__} in training mode",
            "a model without dropout and BatchNorm in training mode under CG (call model.eval())",
        )


def _float64(value: object) -> object:
    """Real tensors in float64; what else a model may return, such as a tuple, as it is."""
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if real else value


def _ignore(_outputs: Tensor, _targets: Tensor) -> None:
    pass
