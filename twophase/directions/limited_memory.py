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
from twophase.objective import Point, dot
from twophase.settings import Settings

# What pairs may take where no history is given, and the fewest and the most that are kept then.
HISTORY_BYTES = 2**28
HISTORY_BOUNDS = (10, 300)
# Rows in a block, or numbers if these are more: so many are copied where a pair is added.
BLOCK, BLOCK_NUMBERS = 8, 2**16
# Numbers that are made float64 at a time.
CONVERTED = 2**18


def capacity(history_size: int | None, vector: Tensor) -> int:
    """Pairs of vectors like `vector` that are kept: `history_size`, or as many as fit into 256 MiB.

    Without a size at least 10 (Nocedal and Wright, section 7.2, find 3 to 20 useful) and at most
    300: more would take no small part of a gradient's time on small networks.
    """
    if history_size is not None:
        return history_size
    fitting = HISTORY_BYTES // (2 * vector.numel() * vector.element_size())
    return min(max(fitting, HISTORY_BOUNDS[0]), HISTORY_BOUNDS[1])


class History(NamedTuple):
    """The last m steps s and gradient changes y, oldest first, and their inner products.

    The rows of S and Y [m, P] are kept in blocks, so that a pair is added without a copy of all.
    `cross` is S Y' and `squares` Y M⁻¹ Y', [m, m] in float64 (of `cross` the upper triangle alone
    is used); `growths` [m] are the factors by which H grew before each pair corrected it.
    """

    steps: tuple[Tensor, ...]
    changes: tuple[Tensor, ...]
    cross: Tensor
    squares: Tensor
    growths: Tensor

    @classmethod
    def empty(cls, vector: Tensor) -> Self:
        """No pair yet, of vectors on the device of `vector`."""
        none = torch.zeros(0, 0, dtype=torch.float64, device=vector.device)
        return cls((), (), none, none, none[0:0].reshape(0))

    @property
    def size(self) -> int:
        """The number of pairs."""
        return len(self.growths)

    def after(
        self,
        gradient: Tensor,
        pair: tuple[Tensor, Tensor] | None,
        growth: float,
        kept: int,
        inverse: Tensor | None,
    ) -> tuple[Self, Tensor, Tensor]:
        """The history with a pair more, if there is one, and S g and Y M⁻¹ g [m] for g [P].

        Of more than `kept` pairs the oldest goes. All products take one pass over S and Y.
        """
        steps, changes, vectors = self.steps, self.changes, [gradient]
        old = max(0, self.size + 1 - kept) if pair else 0
        if pair is not None:
            steps, changes = _with_row(steps, pair[0], old), _with_row(changes, pair[1], old)
            vectors.append(pair[1].double())
        on_steps = products(steps, vectors)
        on_changes = products(changes, [scaled(vector, inverse) for vector in vectors])
        history = self
        if pair is not None:
            growths = torch.cat([self.growths[old:], self.growths.new_tensor([growth])])
            growths[0] = 1  # before the oldest pair there is no matrix that could have grown
            history = type(self)(
                steps,
                changes,
                _bordered(self.cross[old:, old:], on_steps[:, 1]),
                _bordered(self.squares[old:, old:], on_changes[:, 1]),
                growths,
            )
        return history, on_steps[:, 0], on_changes[:, 0]

    def multiply(
        self, v: Tensor, on_steps: Tensor, on_changes: Tensor, pair: int, inverse: Tensor | None
    ) -> Tensor:
        """H v in float64 for v [P], given S v and Y M⁻¹ v [m].

        H is the pairs' BFGS matrix on γ M⁻¹, γ = s'y / y'M⁻¹y of a pair, in the compact form (Byrd,
        Nocedal and Schnabel, Representations of quasi-Newton matrices and their use in limited
        memory methods, 1994) with growths. With R the upper triangle of S Y', D its diagonal, and Γ
        the product of the growths after each pair,

            α = R⁻¹ S v,  u = γ Γ₀ M⁻¹ (v − Y'α),  H v = u + S'δ,  R'δ = D Γ α − Y u.
        """
        grown = self.growths.flip(0).cumprod(0).flip(0)
        after = torch.cat([grown[1:], torch.ones_like(grown[:1])])
        scaling = grown[0] * self.cross[pair, pair] / self.squares[pair, pair]
        weights = _solved(self.cross, on_steps, upper=True)
        on_rest = scaling * (on_changes - self.squares @ weights)
        right = self.cross.diagonal() * after * weights - on_rest
        shares = _solved(self.cross.T, right, upper=False)
        rest = v - _combined(self.changes, weights)
        return scaling * scaled(rest, inverse) + _combined(self.steps, shares)


def products(blocks: tuple[Tensor, ...], vectors: list[Tensor]) -> Tensor:
    """The inner products [m, n] of all rows with n float64 vectors [P]."""
    if not blocks:
        return vectors[0].new_zeros(0, len(vectors))
    parts = (part.double() for block in blocks for part in _parts(block))
    return torch.cat([torch.stack([part @ v for v in vectors], dim=1) for part in parts])


def _combined(blocks: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """The sum of all rows, each times its weight, in float64."""
    parts = [part for block in blocks for part in _parts(block)]
    shares = weights.split([len(part) for part in parts])
    total = torch.zeros_like(parts[0][0], dtype=torch.float64)
    for part, share in zip(parts, shares, strict=True):
        total.addmv_(part.double().T, share)
    return total


def _parts(block: Tensor) -> tuple[Tensor, ...]:
    if block.dtype == torch.float64:
        return (block,)
    return block.split(max(1, CONVERTED // block.shape[1]))


def _with_row(blocks: tuple[Tensor, ...], row: Tensor, old: int) -> tuple[Tensor, ...]:
    """The blocks with another row, without the first `old` rows."""
    if blocks and blocks[-1].numel() < max(BLOCK * len(row), BLOCK_NUMBERS):
        blocks = (*blocks[:-1], torch.cat([blocks[-1], row[None]]))
    else:
        blocks = (*blocks, row[None])
    for _ in range(old):
        first = blocks[0][1:]
        blocks = (first, *blocks[1:]) if len(first) else blocks[1:]
    return blocks


def _bordered(matrix: Tensor, column: Tensor) -> Tensor:
    """A symmetric matrix with another row and column, of n + 1 numbers that end on the diagonal."""
    wider = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
    wider[:, -1] = wider[-1, :] = column
    return wider


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
        pair = gradient_change(point, last)
        # the square of y can be lost where the curvature is not
        if pair is not None and not dot(pair[1], scaled(pair[1], inverse)) > 0:
            pair = None
        growth = 1.0 if pair is None else self._growth(*pair, last)
        kept = capacity(self.history_size, point.gradient)
        history, on_steps, on_changes = history.after(gradient, pair, growth, kept, inverse)
        if not history.size:
            return steepest_descent(point.gradient, inverse)
        product = history.multiply(gradient, on_steps, on_changes, self._scaled_by, inverse)
        return quasi_newton(product, point, last, inverse, history._asdict(), self._first_step)

    def _growth(self, step: Tensor, change: Tensor, last: State) -> float:
        return 1.0

    def _first_step(self, point: Point, last: State, slope: float) -> float:
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

    def _growth(self, step: Tensor, change: Tensor, last: State) -> float:
        """1 / τ = max(1, s'H⁻¹s / s'y) for the H that made the step."""
        return max(1.0, -last.step * dot(step, last.gradient) / dot(step, change))

    def _first_step(self, point: Point, last: State, slope: float) -> float:
        return at_most_one(point, last, slope)
