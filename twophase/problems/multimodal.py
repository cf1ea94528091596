"""Sums of squares of one to ten parameters whose global minimum is known, for methods that seek it.

Residuals and Jacobian are there in numpy, too, in closed form: foreign methods then are not slowed
down by autograd, which costs more than such a small network.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from twophase.errors import InputError, check_integer
from twophase.least_squares import LeastSquares, Term
from twophase.problems import landscape
from twophase.problems.toys import TanhTask

# Teacher: hidden units, and where its examples are.
UNITS, INPUTS = 3, np.linspace(-2, 2, 24)[:, None]
# A neuron in conflict: two inputs on each axis, and the ranges of their targets.
CONFLICT, FIRST, OTHER = (4.0, 0.4), (0.2, 0.6), (-0.8, -0.4)
# Random points of the box whose median loss, less the minimum, is the scale of a problem.
POINTS = 1001


@dataclass(frozen=True, eq=False)
class Multimodal:
    """Mean squared error of a layer of tanh units over n parameters w in the box |wᵢ| ≤ 4.

    L(w) = (1/R) Σᵢ (v' tanh(W xᵢ + b) + c − rᵢ)² with the weights θ = (W, b, v, c) = D w + offset,
    of shape [P]: W [K, d], b [K], v [K], c; `inputs` x [R, d], `targets` r [R], `directions` D
    [P, n]. Where units can be exchanged, or change their sign, there are several minimizers;
    `minimizer` [n] is one of those with the lowest loss there is, `minimum`. All float64.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    directions: np.ndarray
    offset: np.ndarray
    units: int
    minimizer: np.ndarray
    half_width = 4.0

    @property
    def size(self) -> int:
        """The number n of parameters."""
        return self.directions.shape[1]

    @cached_property
    def minimum(self) -> float:
        """The lowest loss there is."""
        return float(np.square(self.residuals(self.minimizer)).mean())

    @cached_property
    def scale(self) -> float:
        """The median loss of random points of the box, less the minimum."""
        points = self.starts(np.random.default_rng(0), POINTS)
        return float(np.median(self.loss(torch.from_numpy(points)))) - self.minimum

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """The box, as scipy takes it."""
        return [(-self.half_width, self.half_width)] * self.size

    def starts(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Points [count, n] that are uniform in the box."""
        return generator.uniform(-self.half_width, self.half_width, (count, self.size))

    def residuals(self, w: np.ndarray) -> np.ndarray:
        """Outputs minus targets [R] at w [n]."""
        hidden, out, shift = self._layer(w, self.inputs, self.directions, self.offset)
        return hidden @ out + shift - self.targets

    def jacobian(self, w: np.ndarray) -> np.ndarray:
        """The derivatives [R, n] of the residuals by w [n]."""
        hidden, out, _ = self._layer(w, self.inputs, self.directions, self.offset)
        slope = (1 - hidden**2) * out
        weights = (slope[:, :, None] * self.inputs[:, None, :]).reshape(len(hidden), -1)
        ones = np.ones((len(hidden), 1))
        return np.concatenate([weights, slope, hidden, ones], axis=1) @ self.directions

    def loss(self, w: Tensor) -> Tensor:
        """L(w) [...] at w [..., n], with its graph."""
        return self._rows(w, self._tensors[0], self._tensors[1]).square().mean(dim=-1)

    def least_squares(self, start: np.ndarray) -> LeastSquares:
        """The loss as a `LeastSquares`, whose model's only parameter begins at `start` [n]."""
        model = _Weights(torch.tensor(start, dtype=torch.float64))
        return LeastSquares(model, [Term(lambda of, data: self._rows(of.w, *data), self._examples)])

    @property
    def _examples(self) -> tuple[Tensor, Tensor]:
        return self._tensors[0], self._tensors[1]

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        arrays = self.inputs, self.targets, self.directions, self.offset
        return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)

    def _rows(self, w: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden, out, shift = self._layer(w, inputs, *self._tensors[2:])
        return (hidden * out[..., None, :]).sum(dim=-1) + shift - targets

    def _layer(self, w, inputs, directions, offset):
        """tanh(W x + b) [..., R, K], v [..., K] and c [..., 1], all of numpy or all of torch."""
        theta, width = w @ directions.T + offset, self.units * inputs.shape[1]
        weights = theta[..., :width].reshape(*w.shape[:-1], self.units, -1).swapaxes(-1, -2)
        bias, out = theta[..., width : width + self.units], theta[..., width + self.units : -1]
        tanh = torch.tanh if isinstance(w, Tensor) else np.tanh
        return tanh(inputs @ weights + bias[..., None, :]), out, theta[..., -1:]


class _Weights(nn.Module):
    def __init__(self, w: Tensor):
        super().__init__()
        self.w = nn.Parameter(w)


def planted(size: int, seed: int) -> Multimodal:
    """A network of three tanh units that is to find its teacher: the minimum is 0.

    Of its ten weights the first `size` are sought, the others known: (w₁, b₁, v₁), (w₂, b₂, v₂),
    (w₃, b₃, v₃), c. The teacher, drawn by `seed`, has |w| and |v| in (0.5, 2), b in (−2, 2) and c
    in (−1, 1); 24 inputs are spaced evenly from −2 to 2.
    """
    if check_integer("size", size, 1) > 3 * UNITS + 1:
        raise InputError("size", size, f"at most {3 * UNITS + 1} parameters")
    generator = np.random.default_rng(seed)
    scales = generator.choice([-1, 1], (2, UNITS)) * generator.uniform(0.5, 2, (2, UNITS))
    biases, shift = generator.uniform(-2, 2, UNITS), generator.uniform(-1, 1, 1)
    teacher = np.concatenate([scales[0], biases, scales[1], shift])
    order = [*np.arange(3 * UNITS).reshape(3, UNITS).T.flatten(), 3 * UNITS]
    sought = np.eye(len(teacher))[:, order[:size]]
    known = teacher * (1 - sought.sum(axis=1))
    targets = np.tanh(INPUTS * scales[0] + biases) @ scales[1] + shift
    return Multimodal("planted", INPUTS, targets, sought, known, UNITS, teacher @ sought)


def conflict(size: int, seed: int) -> Multimodal:
    """A tanh neuron of `size` weights with targets in conflict: 2ⁿ minima, one of them global.

    On each axis j of its inputs there are two examples whose targets no weight θⱼ fits, so that the
    loss is a sum of losses of one weight, with two minima each (after Auer, Herbster and Warmuth,
    Exponentially many local minima for single neurons, 1996). The weights are θ = Q w + offset with
    a random rotation Q and offset, drawn by `seed` like the targets: axes and centre of the box are
    nothing special. The minima of one weight are found by root finding.
    """
    check_integer("size", size, 1)
    generator = np.random.default_rng(seed)
    signs, axes = generator.choice([-1, 1], size), np.eye(size)
    inputs = np.concatenate([x * signs[:, None] * axes for x in CONFLICT])
    targets = np.stack([generator.uniform(*span, size) for span in (FIRST, OTHER)])
    pairs = zip(signs[:, None] * CONFLICT, targets.T, strict=True)
    lowest = np.array([_lowest(TanhTask(*map(torch.from_numpy, pair))) for pair in pairs])
    rotation, offset = _rotation(size, generator), generator.uniform(-1.5, 1.5, size)
    others = np.array([0.0, 1.0, 0.0])  # b, v, c
    directions = np.concatenate([rotation, np.zeros((3, size))])
    minimizer = rotation.T @ (lowest - offset)
    known = np.concatenate([offset, others])
    return Multimodal("conflict", inputs, targets.flatten(), directions, known, 1, minimizer)


PROBLEMS = {"planted": planted, "conflict": conflict}


def _lowest(task: TanhTask) -> float:
    minima = landscape.profile(task, -30.0, 30.0, 601).minima
    return min(minima, key=lambda p: task(torch.tensor(p, dtype=torch.float64)).item())


def _rotation(size: int, generator: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(generator.standard_normal((size, size)))
    return q * np.sign(np.diag(r))
