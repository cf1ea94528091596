"""What second phases are compared with: each goes on from the same weights, on a budget of passes.

A competitor is settings with a method `run(trainer, journal)`, for a trainer that stands at the end
of the shared prefix of Adam, and a journal, which counts passes and seconds and ends the method
when the budget is spent.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from twophase.adam import sweep
from twophase.device import clock
from twophase.errors import NonFiniteError, check_integer, check_number
from twophase.objective import GRADIENT_PASSES, evaluate
from twophase.objectives.full_batch import FullBatch
from twophase.phases import DescentPhase
from twophase.record import ADAM
from twophase.second_phase import Minimizer, Status
from twophase.settings import Settings
from twophase.trainer import Trainer

# Mini-batch methods are measured, and curves kept, each time the passes have grown by this part.
SPACING = 0.02


class Progress(NamedTuple):
    """Passes and seconds since the prefix, and the lowest training loss so far."""

    passes: int
    seconds: float
    loss: float


class BudgetSpent(Exception):
    """The journal's way to end a method, whoever's code it is in."""


class Journal:
    """The lowest loss against passes and seconds, of one method from the prefix on.

    All methods are judged by the lowest loss that was seen, since whoever looks at the loss can
    keep those weights. Full-batch methods know theirs at each evaluation; mini-batch methods are
    looked at whenever the passes have grown by 2 %, and at the end, by a forward pass that neither
    passes nor seconds count.

    The `budget` is in passes, at least 3, one full-batch gradient or mini-batch epoch, else
    `InputError`; `loss` is that at the end of the prefix; seconds wait for work on the `device`.
    """

    def __init__(self, budget: int, loss: float, device: torch.device):
        self.budget = check_integer("passes", budget, GRADIENT_PASSES)
        self.device = device
        self.rows = [Progress(0, 0.0, loss)]
        self._lowest = Progress(0, 0.0, loss)
        self._paused = 0.0
        self._began = clock(device)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Seconds in here count for nobody."""
        began = clock(self.device)
        yield
        self._paused += clock(self.device) - began

    def due(self, passes: int, step: int = 0) -> bool:
        """Whether the curve lacks a point here, or could not have one `step` passes later."""
        last = self.rows[-1].passes
        next_one = min(max(last + 1, (1 + SPACING) * last), self.budget)
        return passes >= next_one or passes + step > self.budget

    def saw(self, passes: int, loss: float) -> None:
        """A loss was met, after so many passes; `BudgetSpent` where there are not so many."""
        if passes > self.budget:
            raise BudgetSpent
        seconds = clock(self.device) - self._began - self._paused
        lower = loss < self._lowest.loss
        self._lowest = Progress(passes, seconds, loss if lower else self._lowest.loss)
        if self.due(passes):
            self.rows.append(self._lowest)

    def end(self) -> None:
        """Keep what was met last, if the curve does not end there yet."""
        if self._lowest.passes > self.rows[-1].passes:
            self.rows.append(self._lowest)


class Competitor(Settings):
    """A method to compare a second phase with; `package` must be installed for it (None: nothing).

    Each is a frozen dataclass, and listed in `twophase.experiments.comparison.METHODS`.
    """

    package: ClassVar[str | None] = None

    @abstractmethod
    def run(self, trainer: Trainer, journal: Journal) -> None:
        """Go on until the journal ends it, or nothing more can be done."""


@dataclass(frozen=True)
class AdamGoesOn(Competitor):
    """Adam goes on, its learning rate times a constant factor, above 0."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        check_number("factor", self.factor, above=0)

    def run(self, trainer: Trainer, journal: Journal) -> None:
        optimizer = trainer.phases[ADAM].adam.optimizer
        rate = self.factor * optimizer.param_groups[0]["lr"]
        _mini_batches(trainer, journal, optimizer, lambda share: self._rate(rate, share))

    def _rate(self, rate: float, share: float) -> float:
        return rate


@dataclass(frozen=True)
class AdamCosine(AdamGoesOn):
    """Adam goes on, its rate times factor · (1 + cos(π · share of the budget)) / 2.

    Loshchilov and Hutter (2017), without restarts.
    """

    def _rate(self, rate: float, share: float) -> float:
        return rate * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class SGD(Competitor):
    """Stochastic gradient descent with momentum 0.9 and a constant rate, on the same batches."""

    rate: float = 1.0

    def run(self, trainer: Trainer, journal: Journal) -> None:
        parameters = trainer.objective.vector.parameters
        optimizer = torch.optim.SGD(parameters, lr=self.rate, momentum=0.9)
        _mini_batches(trainer, journal, optimizer, lambda share: self.rate)


@dataclass(frozen=True)
class TorchLBFGS(Competitor):
    """`torch.optim.LBFGS` with its strong Wolfe search, in one long step without tolerances.

    With `max_iter=1` for each step it would evaluate every point twice, and without a `max_eval`
    that follows `max_iter` have no line search left.
    """

    history_size: int = 100

    def run(self, trainer: Trainer, journal: Journal) -> None:
        x = nn.Parameter(trainer.objective.vector.read())
        seen = _seen(trainer.objective, journal)
        optimizer = torch.optim.LBFGS(
            [x],
            max_iter=journal.budget,
            max_eval=journal.budget,
            tolerance_grad=0,
            tolerance_change=0,
            history_size=self.history_size,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            value, x.grad = seen(x.detach())
            return value

        optimizer.step(closure)


@dataclass(frozen=True)
class ScipyCG(Competitor):
    """`scipy.optimize.minimize(method="CG")`, PR+ with a strong Wolfe search, in float64."""

    c2: float = 0.4

    def run(self, trainer: Trainer, journal: Journal) -> None:
        # it ends by itself where its search finds no lower loss
        seen = _seen(trainer.objective, journal)
        x = trainer.objective.vector.read()

        def function(values: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = seen(torch.from_numpy(values).to(x))
            return value, gradient.double().cpu().numpy()

        options = {"gtol": 0.0, "maxiter": journal.budget, "c2": self.c2}
        start = x.double().cpu().numpy()
        with np.errstate(all="ignore"):
            optimize.minimize(function, start, jac=True, method="CG", options=options)


@dataclass(frozen=True)
class TorchminCG(Competitor):
    """The CG of pytorch-minimize, PR+ with a strong Wolfe search; it has no settings."""

    package = "torchmin"

    def run(self, trainer: Trainer, journal: Journal) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, for what the package uses
            from torchmin import minimize

        seen = _seen(trainer.objective, journal)
        minimize(
            lambda x: _Differentiable.apply(x, seen),
            trainer.objective.vector.read(),
            "cg",
            options={"gtol": 0.0, "max_iter": journal.budget},
        )


def go_on(second: Minimizer | Competitor, trainer: Trainer, budget: int) -> list[Progress]:
    """The curve of a second phase, or of a competitor, from where the trainer stands.

    The trainer, of Adam alone with at least an epoch behind it, is used up. The curve ends early
    where the method gave up, or where the loss was no longer finite. `InputError` for a budget
    below 3 passes.
    """
    objective = trainer.objective
    journal = Journal(budget, objective.value(objective.vector.read()), trainer.device)
    with suppress(BudgetSpent, NonFiniteError):
        if isinstance(second, Minimizer):
            _descend(second, trainer, journal)
        else:
            second.run(trainer, journal)
    journal.end()
    return journal.rows


def _descend(second: Minimizer, trainer: Trainer, journal: Journal) -> None:
    """The second phase of `fit`; it ends early where it finds that it can do no more."""
    objective = trainer.objective
    phase = DescentPhase(objective, second, trainer.phases[ADAM])
    before = objective.passes.total
    point = evaluate(objective, objective.vector.read())
    while (work := phase.epoch(point)).status is Status.MOVED:
        point = work.point or evaluate(objective, work.x)
        journal.saw(objective.passes.total - before, point.value)


def _mini_batches(
    trainer: Trainer,
    journal: Journal,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
) -> None:
    """Epochs of a first-order optimizer, whose rate follows from the share of the budget spent."""
    objective, source = trainer.objective, trainer.phases[ADAM].adam
    spent, loss = 0, 0.0
    while math.isfinite(loss):
        for group in optimizer.param_groups:
            group["lr"] = rate(spent / journal.budget)
        batches = objective.mini_batches(source.batch_size, source.generator)
        sweep(objective, optimizer, batches)
        spent += GRADIENT_PASSES
        if journal.due(spent, GRADIENT_PASSES):
            with journal.paused():
                loss = objective.value(objective.vector.read())
            journal.saw(spent, loss)


def _seen(objective: FullBatch, journal: Journal) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Loss and gradient for foreign code, each evaluation in the journal."""
    before = objective.passes.total

    def evaluation(x: Tensor) -> tuple[float, Tensor]:
        value, gradient = objective.value_and_gradient(x)
        journal.saw(objective.passes.total - before, value)
        return value, gradient

    return evaluation


class _Differentiable(torch.autograd.Function):
    """A loss whose gradient is computed with it; backward only hands it out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: Callable[[Tensor], tuple[float, Tensor]]) -> Tensor:
        value, gradient = seen(x.detach())
        ctx.save_for_backward(gradient)
        return x.new_tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream.to(gradient) * gradient, None
