"""Losses that are sums of squared residuals, with the residuals' Jacobian."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from twophase.distributed import bare, processes
from twophase.errors import InputError, check_integer, check_type
from twophase.examples import Shuffled
from twophase.least_squares.linearization import Linearization
from twophase.least_squares.term import Parametrized, Rows, Term
from twophase.modules import evaluating
from twophase.objective import Passes, Point, round_off
from twophase.objectives.chunks import LARGEST_PROBE, bytes_per_example, chunk_bytes
from twophase.objectives.mean_loss import Score
from twophase.parameters import ParameterVector, check_held
from twophase.precision import full_precision

# What the rows of a Jacobian may take while they are made, and what a whole one may.
JACOBIAN_CHUNK_BYTES, JACOBIAN_BYTES = 64 * 2**20, 2**30
# Multiplications that normal equations of R residuals and P parameters may take, min(R, P)² times
# max(R, P): a few seconds on one core.
NORMAL_WORK = 5e10


class Piece(NamedTuple):
    """Some points of a term, the rows of ρ and J that they make, and the factor of these."""

    term: Rows
    points: tuple[Tensor, ...]
    here: slice
    scale: float


# Rows of ρ: where they are, their numbers, and the factor that these still need.
Chunk = tuple[slice, Tensor, float]


class LeastSquares(Shuffled):
    """A loss Σ_terms weight · mean(residual(model, points)²) of a model's parameters.

    It is an `Objective` with the residuals' Jacobian, for `twophase.minimize`. All residuals,
    scaled by sqrt(weight / number) of their term, are ρ [R], so that the loss is ‖ρ‖²; terms of
    weight 0 are left out. Sums are in float64; the model computes in `full_precision`, but for
    mini-batches. Real points take the model's dtype, and all points its device. An evaluation
    leaves its `x` in the model.

    `chunk_size` points of a term are evaluated at a time; None: as many as `chunk_bytes` holds. The
    Jacobian is made by `torch.func`, a row for each residual, and counts as the gradient does; with
    k residuals for each point as k backward passes. Several processes have a share of the points
    of each term, and of J'J or JJ'; ρ and the factors of these are whole in each, J where R < P.

    >>> line = nn.Linear(1, 1).double()
    >>> x = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    >>> data = Term(lambda model, points: model(points) - 2 * points, x)
    >>> problem = LeastSquares(line, [data])
    """

    def __init__(self, model: nn.Module, terms: Sequence[Term], chunk_size: int | None = None):
        check_type("model", model, nn.Module)
        if not isinstance(terms, Sequence):
            raise InputError("terms", terms, "a list of Term(residual, points, weight)")
        for term in terms:
            if not isinstance(term, Term):
                raise InputError("terms", term, "a list of Term(residual, points, weight)")
        given = chunk_size if chunk_size is None else check_integer("chunk_size", chunk_size, 1)
        self.model = model = bare(model)
        check_held(p for p in model.parameters() if p.requires_grad)
        self.vector = ParameterVector(model.parameters(), model.buffers())
        self._names = [f"model.{n}" for n, p in model.named_parameters() if p.requires_grad]
        self.passes, self.resolution = Passes(), round_off(self.vector.dtype)
        self._given = given
        self.processes = processes()
        self._terms = [
            (Rows(model, term), tuple(map(self._there, term.tensors)), term.weight)
            for term in terms
            if term.weight > 0
        ]
        if not self._terms:
            found = "all of weight 0" if terms else []
            raise InputError("terms", found, "at least one term of a weight above 0")
        self._last: Linearization | None = None

    classes = False  # there is no accuracy

    @property
    def shared(self) -> tuple[Tensor, ...]:
        """What must be the same in all processes."""
        weights = torch.tensor([weight for _, _, weight in self._terms], dtype=torch.float64)
        return weights, *(tensor for _, tensors, _ in self._terms for tensor in tensors)

    @property
    def count(self) -> int:
        """Points of all terms."""
        return sum(len(tensors[0]) for _, tensors, _ in self._terms)

    def batch_loss(self, batch: Tensor, some: slice = slice(None)) -> Tensor:
        """The loss over the points with indices [B], with its graph; on average the whole loss.

        Points are counted from the first term's on. A term's part is its weight times the mean over
        its points in the batch, times their share of the batch over that of all points.
        """
        batch = batch[some]
        loss, first, every = batch.new_zeros((), dtype=self.vector.dtype), 0, len(batch)
        for module, tensors, weight in self._terms:
            count = len(tensors[0])
            chosen = batch[(batch >= first) & (batch < first + count)] - first
            first += count
            if len(chosen):
                share = len(chosen) / every * self.count / count
                loss = loss + share * weight * module(*(t[chosen] for t in tensors)).square().mean()
        return loss

    def measure(self, x: Tensor) -> tuple[Point, None]:
        """The point at `x` [P], in eval mode, no accuracy: one forward and backward pass."""
        with evaluating(self.model):
            return Point(x, *self.value_and_gradient(x), self.resolution), None

    def score(self, x: Tensor) -> Score:
        """The loss at `x` [P], in eval mode, and no accuracy: one forward pass."""
        with evaluating(self.model):
            return Score(self.value(x), None)

    def value(self, x: Tensor) -> float:
        """The loss at `x` [P]: one forward pass."""
        residuals = self.residuals(x)
        return torch.dot(residuals, residuals).item()

    @torch.no_grad()
    def residuals(self, x: Tensor) -> Tensor:
        """ρ [R] at `x` [P] in float64: one forward pass."""
        self.passes.forward += 1
        self.vector.write(x)
        return self._gathered(x, self._chunks())

    @full_precision()
    def _gathered(self, x: Tensor, chunks: Iterable[Chunk]) -> Tensor:
        """All processes' rows [R]; without a term there is one, which is 0."""
        residuals = torch.zeros(max(1, self.size[0]), dtype=torch.float64, device=x.device)
        for here, rows, scale in chunks:
            residuals[here] = rows * scale
        return self.processes.sums([residuals], x)[0]

    @full_precision()
    @torch.enable_grad()
    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient [P] at `x` [P]: one forward and backward pass."""
        self.passes.forward += 1
        self.passes.backward += 1
        self.vector.write(x)
        value, gradient = x.new_zeros((), dtype=torch.float64), torch.zeros_like(x)
        for _, rows, scale in self._chunks():
            part = (rows * scale).square().sum()
            if not part.requires_grad:
                mode = " (in inference mode)" * torch.is_inference_mode_enabled()
                allowed = "residuals computed from the parameters"
                raise InputError("residual", f"one without a graph{mode}", allowed)
            value += part.detach()
            self.vector.add_gradient(gradient, part)
        value, gradient = self.processes.sums([value, gradient], x)
        return float(value), gradient

    def linearize(self, x: Tensor, counted: bool = True) -> Linearization:
        """ρ and J at `x` [P], in float64; the last one is kept, and not computed again."""
        if self._last is not None and torch.equal(self._last.x, x):
            return self._last
        self._last = None
        self.vector.write(x)
        if counted:
            self.passes.forward += 1
            self.passes.backward += self.columns if self.direct else 1
        if not self.direct:
            self._last = self._sloped(x)
        else:
            tall = self.size[0] >= self.size[1]
            self._last = self._squared(x) if tall else self._together(x)
        return self._last

    def pull(self, x: Tensor, rows: Tensor) -> Tensor:
        """J'u [P] in float64 at `x` [P] for u [R]: one forward and backward pass."""
        self.passes.forward += 1
        self.passes.backward += 1
        self.vector.write(x)
        return self._pulled(x, lambda here, part: rows[here])[1]

    def push(self, x: Tensor, vector: Tensor) -> Tensor:
        """J v [R] in float64 at `x` [P] for v [P], in forward mode; it counts as a gradient."""
        self.passes.forward += 1
        self.passes.backward += 1
        self.vector.write(x)
        parameters = self.vector.parameters
        tangents = vector.to(x.dtype).split([p.numel() for p in parameters])
        given = {
            name: (parameter.detach(), tangent.view_as(parameter))
            for name, parameter, tangent in zip(self._names, parameters, tangents, strict=True)
        }
        # the fast kernels of attention have no forward mode
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return self._gathered(x, self._chunks(given))

    @property
    def keeps_jacobian(self) -> bool:
        """Whether J is at most 1 GiB; else only J'J is made."""
        rows, columns = self.size
        return 8 * rows * columns <= JACOBIAN_BYTES

    @property
    def direct(self) -> bool:
        """Whether normal equations, in the smaller of R and P, are made within a few seconds."""
        few, many = sorted(self.size)
        return (self.keeps_jacobian or few == self.size[1]) and few**2 * many <= NORMAL_WORK

    def check_jacobian(self) -> None:
        """`NoJacobianError` where the first points of a term show that there is none."""
        for module, tensors, _ in self._terms:
            module.jacobians(self._values, tuple(t[:2] for t in tensors))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Residuals R and parameters P."""
        rows = sum(len(tensors[0]) * width for (_, tensors, _), width in self._widths)
        return rows, sum(p.numel() for p in self.vector.parameters)

    def _together(self, x: Tensor) -> Linearization:
        # without a term there is one residual, which is 0
        residuals = torch.zeros(max(1, self.size[0]), dtype=torch.float64, device=x.device)
        jacobian = residuals.new_zeros(len(residuals), len(x))
        for here, rows, blocks, scale in self._jacobian():
            residuals[here] = rows
            _fill(jacobian[here], blocks, scale)
        jacobian, residuals = self.processes.sums([jacobian, residuals], x)
        return Linearization(x, residuals, 2 * (jacobian.T @ residuals), jacobian)

    def _squared(self, x: Tensor) -> Linearization:
        gradient = torch.zeros_like(x).double()
        squared, residuals = gradient.new_zeros(len(x), len(x)), gradient.new_zeros(self.size[0])
        own, first = torch.zeros_like(residuals, dtype=torch.bool), 0
        for piece in self._pieces(self._chunk_sizes):
            own[piece.here] = True
        kept = gradient.new_zeros(int(own.sum()), len(x)) if self.keeps_jacobian else None
        for here, rows, blocks, scale in self._jacobian():
            room = rows.new_empty(len(rows), len(x)) if kept is None else kept[first:][: len(rows)]
            jacobian, first = _fill(room, blocks, scale), first + len(rows)
            squared.addmm_(jacobian.T, jacobian)
            gradient += 2 * (jacobian.T @ rows)
            residuals[here] = rows
        squared, gradient, residuals = self.processes.sums([squared, gradient, residuals], x)
        return Linearization(x, residuals, gradient, kept, squared, own)

    def _sloped(self, x: Tensor) -> Linearization:
        residuals, pulled = self._pulled(x, lambda here, part: part.detach())
        return Linearization(x, residuals, 2 * pulled, None)

    @full_precision()
    @torch.enable_grad()
    def _pulled(
        self, x: Tensor, weights: Callable[[slice, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """ρ [R] and J'u [P] for the weights u of each part of ρ, by its place and itself."""
        pulled = torch.zeros_like(x).double()
        residuals = pulled.new_zeros(self.size[0])
        for here, rows, scale in self._chunks():
            part = scale * rows
            self.vector.add_gradient(pulled, torch.dot(part, weights(here, part)))
            residuals[here] = part.detach()
        residuals, pulled = self.processes.sums([residuals, pulled], x)
        return residuals, pulled

    @cached_property
    def _widths(self) -> list[tuple[Any, int]]:
        """Each term with its number k of residuals for a point."""
        with torch.no_grad():
            return [(term, term[0].width(term[1])) for term in self._terms]

    @cached_property
    def columns(self) -> int:
        """Backward passes of a Jacobian: the residuals k of a point, a mean over the points."""
        return max(1, round(self.size[0] / self.count)) if self.count else 1

    def _there(self, tensor: Tensor) -> Tensor:
        first = self.vector.parameters[0]
        return tensor.detach().to(first.device, first.dtype if tensor.is_floating_point() else None)

    def _pieces(self, sizes: Iterable[int]) -> Iterator[Piece]:
        """This process's points of each term, at most so many at a time."""
        first = 0
        for ((module, tensors, weight), width), size in zip(self._widths, sizes, strict=True):
            count = len(tensors[0])
            own = self.processes.share(count)
            for start in range(own.start, own.stop, size):
                stop = min(start + size, own.stop)
                here = slice(first + width * start, first + width * stop)
                points = tuple(t[start:stop] for t in tensors)
                yield Piece(module, points, here, math.sqrt(weight / (count * width)))
            first += width * count

    def _chunks(self, along: Parametrized | None = None) -> Iterator[Chunk]:
        """This process's parts of ρ: where they are, residuals in float64, and their factor.

        With parameters and their tangents `along`, the residuals' derivatives along these.
        """
        for module, points, here, scale in self._pieces(self._chunk_sizes):
            rows = module(*points) if along is None else module.slope(along, points)
            yield here, rows.double().reshape(-1), scale

    @property
    def _values(self) -> dict[str, Tensor]:
        """The parameters by their names, to take derivatives by."""
        values = (p.detach() for p in self.vector.parameters)
        return dict(zip(self._names, values, strict=True))

    @cached_property
    def _chunk_sizes(self) -> list[int]:
        return [self._given or self._chosen(*term[:2]) for term in self._terms]

    def _chosen(self, module: nn.Module, tensors: tuple[Tensor, ...]) -> int:
        count = len(tensors[0])
        if count <= LARGEST_PROBE:
            return count
        needed = count * bytes_per_example(self.model, module, *tensors)
        chunks = max(1, math.ceil(needed / chunk_bytes(tensors[0].device)))
        return math.ceil(count / chunks)

    def _jacobian(self) -> Iterator[tuple[slice, Tensor, list[Tensor], float]]:
        """This process's parts of ρ: where they are, their numbers, and those of J, not yet scaled.

        These are a matrix for each parameter, whose columns are its numbers, and a factor for all.
        """
        parameters = self._values
        length = sum(p.numel() * p.element_size() for p in parameters.values())
        size = max(1, JACOBIAN_CHUNK_BYTES // length)
        # the fast kernels of attention have no rule for vmap
        with sdpa_kernel(SDPBackend.MATH):
            for module, points, here, scale in self._pieces([size] * len(self._terms)):
                jacobians, found = module.jacobians(parameters, points)
                blocks = [jacobians[name].flatten(2).flatten(0, 1) for name in self._names]
                yield here, scale * found.double().reshape(-1), blocks, scale


def _fill(jacobian: Tensor, blocks: list[Tensor], scale: float) -> Tensor:
    """Write the blocks of some rows of J, scaled, side by side into a float64 matrix."""
    places = jacobian.split([block.shape[1] for block in blocks], dim=1)
    for place, block in zip(places, blocks, strict=True):
        place.copy_(block).mul_(scale)
    return jacobian
