"""Quasi-Newton directions d = −H g with H from the last steps alone: L-BFGS, plain and scaled."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from twophase.directions.direction import (
    Direction,
    State,
    at_most_one,
    gradient_change,
    quasi_newton,
    scaled,
    steepest_descent,
)
from twophase.errors import check_integer
from twophase.objective import Point
from twophase.settings import Settings

# What pairs may take where no history is given, and the fewest and the most that are kept then.
HISTORY_BYTES = 3 * 2**24
HISTORY_BOUNDS = (10, 300)
# Rows that are gathered in a block, which a new row copies, before they join the block before it,
# and the numbers up to which that is copied then. A longer row is a block of its own: a block goes
# with its last row only, and copies of large ones would take the memory of as many vectors.
GATHERED, COPIED = 8, 2**17
# Numbers that are made float64 at a time.
CONVERTED = 2**18


def capacity(history_size: int | None, vector: Tensor) -> int:
    """Pairs of vectors like `vector` that are kept: `history_size`, or as many as fit into 48 MiB.

    Without a size at least 10 (Nocedal and Wright, section 7.2, find 3 to 20 useful) and at most
    300: more would take no small part of a gradient's time on small networks.
    """
    if history_size is not None:
        return history_size
    fitting = HISTORY_BYTES // (2 * vector.numel() * vector.element_size())
    return min(max(fitting, HISTORY_BOUNDS[0]), HISTORY_BOUNDS[1])


class Pair(NamedTuple):
    """A step s [P], the change y [P] of gradients, s'y, y'M⁻¹y, and what H grew by before it."""

    step: Tensor
    change: Tensor
    curvature: float
    square: float
    growth: float


class History(NamedTuple):
    """The last m steps s and gradient changes y, oldest first, and their inner products.

    The rows of S and Y [m, P] are in blocks. `numbers` [m, 3] are s'y, y'M⁻¹y and the factor by
    which H grew after the pair. `cross` [., kept + 1] has a row for each pair so far, up to `row`:
    at its end the products of y with the last steps, up to s'y. It is shared with the histories
    before and after, each of which sees its own rows alone; `written` [1] counts those of all.
    """

    steps: tuple[Tensor, ...]
    changes: tuple[Tensor, ...]
    numbers: Tensor
    cross: Tensor
    written: Tensor
    row: int

    @classmethod
    def empty(cls, vector: Tensor) -> Self:
        """No pair yet, of vectors on the device of `vector`."""
        none = torch.zeros(0, 3, dtype=torch.float64, device=vector.device)
        return cls((), (), none, none, torch.zeros(1, dtype=torch.int64), 0)

    @property
    def size(self) -> int:
        """The number of pairs."""
        return len(self.numbers)

    def after(self, gradient: Tensor, pair: Pair | None, kept: int) -> tuple[Self, Tensor]:
        """The history with another pair, if any, and S g [m] for g [P].

        Of more than `kept` pairs the oldest goes. All products take one pass over S.
        """
        if pair is None:
            return self, products(self.steps, gradient)[0]
        old = max(0, self.size + 1 - kept)
        steps = _with_row(self.steps, pair.step, old)
        changes = _with_row(self.changes, pair.change, old)
        on_steps, column = products(steps, gradient, pair.change.double())
        numbers = torch.cat([self.numbers[old:], column.new_tensor([[*pair[2:4], 1.0]])])
        numbers[:-1, 2] *= pair.growth
        return type(self)(steps, changes, numbers, *self._with_products(column, kept)), on_steps

    def _with_products(self, column: Tensor, kept: int) -> tuple[Tensor, Tensor, int]:
        """`cross`, `written` and `row` with another row, in place where it is nobody's yet."""
        cross, written, row, before = self.cross, self.written, self.row, len(column) - 1
        if cross.shape[1] != kept + 1 or row == len(cross) or row != written.item():
            cross = column.new_zeros(2 * kept, kept + 1)
            if before:
                _window(cross, before, before).copy_(_window(self.cross, row, before).tril())
            row, written = before, torch.zeros_like(written)
        cross[row, -len(column) :] = column
        return cross, written.fill_(row + 1), row + 1

    def multiply(self, v: Tensor, on_steps: Tensor, pair: int, inverse: Tensor | None) -> Tensor:
        """H v in float64 for v [P], given S v [m].

        H is the pairs' BFGS matrix on γ M⁻¹, γ = s'y / y'M⁻¹y of a pair, in the compact form (Byrd,
        Nocedal and Schnabel, Representations of quasi-Newton matrices and their use in limited
        memory methods, 1994) with growths. With R the upper triangle of S Y', D its diagonal, and Γ
        the growth after each pair,

            α = R⁻¹ S v,  u = γ Γ₀ M⁻¹ (v − Y'α),  H v = u + S'δ,  R'δ = D Γ α − Y u.
        """
        curvatures, squares, grown = self.numbers.T
        scaling = grown[0] * curvatures[pair] / squares[pair]
        lower = _window(self.cross, self.row, self.size)
        weights = _solved(lower.T, on_steps, upper=True)
        rest = scaling * scaled(v - _combined(self.changes, weights), inverse)
        right = curvatures * grown * weights - products(self.changes, rest)[0]
        return rest + _combined(self.steps, _solved(lower, right, upper=False))


def products(blocks: tuple[Tensor, ...], *vectors: Tensor) -> list[Tensor]:
    """The inner products [m] of all rows with each of some float64 vectors [P]."""
    parts = (part.double() for block in blocks for part in _parts(block))
    found = [[part @ vector for vector in vectors] for part in parts]
    return [torch.cat(one) for one in zip(*found, strict=True)] or [vectors[0][:0]] * len(vectors)


def _combined(blocks: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """The sum of all rows, each times its weight, in float64."""
    parts = [part for block in blocks for part in _parts(block)]
    total = weights.new_zeros(parts[0].shape[1])
    for part, share in zip(parts, weights.split([len(part) for part in parts]), strict=True):
        total.addmv_(part.double().T, share)
    return total


def _parts(block: Tensor) -> tuple[Tensor, ...]:
    if block.dtype == torch.float64:
        return (block,)
    return block.split(max(1, CONVERTED // block.shape[1]))


def _with_row(blocks: tuple[Tensor, ...], row: Tensor, old: int) -> tuple[Tensor, ...]:
    """The blocks with another row, without the first `old` rows."""
    if blocks and len(blocks[-1]) < GATHERED and row.numel() < COPIED:
        blocks = (*blocks[:-1], torch.cat([blocks[-1], row[None]]))
    else:
        if blocks[1:] and blocks[-2].numel() < COPIED:
            blocks = (*blocks[:-2], torch.cat(blocks[-2:]))
        blocks = (*blocks, row[None])
    for _ in range(old):
        first = blocks[0][1:]
        blocks = (first, *blocks[1:]) if len(first) else blocks[1:]
    return blocks


def _window(cross: Tensor, row: int, size: int) -> Tensor:
    """The last products up to a row as a lower triangle [size, size]: R'; the rest is anything."""
    # rows that are shorter by one than those of `cross` put what ends them on the diagonal
    width = cross.shape[1]
    return cross.as_strided((size, size), (width - 1, 1), (row - size + 1) * width - 1)


def _solved(triangle: Tensor, right: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(triangle, right[:, None], upper=upper)[:, 0]


@dataclass(frozen=True)
class LBFGSDirection(Settings):
    """d = −H g with the BFGS matrix H of the last `history_size` steps, built on γ M⁻¹.

    Nocedal and Wright, algorithm 7.4, with γ = s'y / y'M⁻¹y from the last step s and difference y
    of gradients (their equation 7.20); see `History.multiply`. Pairs (s, y) without positive
    curvature s'y are left out. The first trial step is 1. A `history_size` of None: see `capacity`.
    """

    history_size: int | None = None
    _scaled_by: ClassVar[int] = -1  # the pair of γ: the newest

    def __post_init__(self) -> None:
        if self.history_size is not None:
            check_integer("history_size", self.history_size, 1)

    def __call__(self, point: Point, last: State, inverse: Tensor | None) -> Direction:
        gradient = point.gradient.double()
        history = History(**last.memory) if last.memory else History.empty(point.gradient)
        kept = capacity(self.history_size, point.gradient)
        history, on_steps = history.after(gradient, self._pair(point, last, inverse), kept)
        if not history.size:
            return steepest_descent(point.gradient, inverse)
        product = history.multiply(gradient, on_steps, self._scaled_by, inverse)
        return quasi_newton(product, point, last, inverse, history._asdict(), self._first_step)

    def _pair(self, point: Point, last: State, inverse: Tensor | None) -> Pair | None:
        """What the last step adds to the history."""
        found = gradient_change(point, last, inverse)
        # the square of y can be lost where the curvature is not
        if found is None or not found[3] > 0:
            return None
        step, change, curvature, square = found
        return Pair(step, change, curvature, square, self._growth(last, curvature))

    def _growth(self, last: State, curvature: float) -> float:
        return 1.0

    def _first_step(self, last: State, slope: float, end: float) -> float:
        return 1.0


@dataclass(frozen=True)
class SelfScaledBFGSDirection(LBFGSDirection):
    """d = −H g with the self-scaled BFGS matrix H, in a limited memory as `LBFGSDirection`'s.

    Each update first multiplies H by 1/τ >= 1,

        H ← (1 − ρ s y') H (1 − ρ y s') / τ + ρ s s',  ρ = 1 / s'y,  τ = min(1, s'y / s'H⁻¹s),

    which makes H as large as the curvature s'y along the step s asks for, where BFGS corrects it
    along s alone (Al-Baali, Numerical experience with a class of self-scaling quasi-Newton
    algorithms, 1998; for physics-informed networks Urbán, Stefanou and Pons, 2025). H begins as
    γ M⁻¹ with γ = s'y / y'M⁻¹y of the oldest step that is kept. Since s = −t H g, the size
    s'H⁻¹s = −t g's is known. H is large where nothing is known yet, so that a step of 1 is mostly
    too long at first: the first trial is the `expected_step`, up to 1.
    """

    _scaled_by = 0  # the oldest

    def _growth(self, last: State, curvature: float) -> float:
        """1 / τ = max(1, s'H⁻¹s / s'y) for the H that made the step."""
        return max(1.0, -last.step * last.step * last.slope / curvature)

    def _first_step(self, last: State, slope: float, end: float) -> float:
        return at_most_one(last, slope, end)
