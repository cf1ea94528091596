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

from twophase.device import clock
from twophase.errors import NonFiniteError, check_integer, check_number
from twophase.objective import GRADIENT_PASSES, evaluate
from twophase.objectives.full_batch import FullBatch
from twophase.phases import DescentPhase
from twophase.record import ADAM
from twophase.second_phase import Minimizer, Status
from twophase.settings import Settings
from twophase.steps import Step, sweep
from twophase.trainer import Trainer

# Mini-batch methods are measured, and curves kept, each time the passes have grown by this part.
SPACING = 0.02


class Progress(NamedTuple):
    """Passes and seconds since the prefix, and the lowest training loss so far.

    With the validation loss and accuracy of its weights, None where there are no such examples.
    """

    passes: int
    seconds: float
    loss: float
    validation_loss: float | None = None
    accuracy: float | None = None


class BudgetSpent(Exception):
    """The journal's way to end a method, whoever's code it is in."""


class Journal:
    """The lowest loss against passes and seconds, of one method from the prefix on.

    All methods are judged by the lowest loss that was seen, since whoever looks at the loss can
    keep those weights. Full-batch methods know theirs at each evaluation; mini-batch methods are
    looked at whenever the passes have grown by 2 %, and at the end, by a forward pass that neither
    passes nor seconds count. Nor do they count what `validate` takes, which is asked at each point
    of the curve for loss and accuracy at the weights [P] of the lowest training loss.

    The `budget` is in passes, at least 3, one full-batch gradient or mini-batch epoch, else
    `InputError`; `head` are the passes before it, of a method that starts over. Seconds wait for
    work on the `device`.
    """

    def __init__(
        self,
        budget: int,
        device: torch.device,
        validate: Callable[[Tensor], tuple[float | None, float | None]] = lambda x: (None, None),
        head: int = 0,
    ):
        self.budget = check_integer("passes", budget, GRADIENT_PASSES)
        self.head, self.device, self.validate = head, device, validate
        self.rows: list[Progress] = []

    def begin(self, loss: float, x: Tensor) -> None:
        """Costs count from here, where the prefix has ended with a loss at weights x [P]."""
        self.rows, self._lowest, self._best = [], Progress(0, 0.0, loss), x.clone()
        self._paused, self._began = 0.0, clock(self.device)
        self._keep()

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

    def saw(self, passes: int, loss: float, x: Tensor) -> None:
        """A loss was met at weights x [P], after so many passes.

        `BudgetSpent` where there are not so many.
        """
        if passes > self.budget:
            raise BudgetSpent
        seconds = clock(self.device) - self._began - self._paused
        lower = loss < self._lowest.loss
        if lower:
            self._best = x.clone()
        self._lowest = Progress(passes, seconds, loss if lower else self._lowest.loss)
        if self.due(passes):
            self._keep()

    def end(self) -> None:
        """Keep what was met last, if the curve does not end there yet."""
        if self._lowest.passes > self.rows[-1].passes:
            self._keep()

    def _keep(self) -> None:
        with self.paused():
            last = self.rows[-1] if self.rows else None
            if last is not None and self._lowest.loss == last.loss:
                found = last.validation_loss, last.accuracy
            else:
                found = self.validate(self._best)
        self.rows.append(Progress(*self._lowest[:3], *found))


class Competitor(Settings):
    """A method to compare a second phase with; `package` must be installed for it (None: nothing).

    Each is a frozen dataclass, and listed in `twophase.experiments.methods.METHODS`. One that
    `starts_over` is given the trainer before its first epoch, and trains the prefix, too.
    """

    package: ClassVar[str | None] = None
    starts_over: ClassVar[bool] = False

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
class AdamWFromStart(Competitor):
    """AdamW in place of the prefix and of what follows it, with a rate of its own.

    Loshchilov and Hutter (2019). The rate is constant, or falls by `cosine` decay over the whole
    training; `weight_decay` is decoupled from the gradient; without it, this is Adam.
    """

    rate: float = 1e-3
    cosine: bool = True
    weight_decay: float = 0.0

    starts_over: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("rate", self.rate, above=0)
        check_number("weight_decay", self.weight_decay, minimum=0)

    def run(self, trainer: Trainer, journal: Journal) -> None:
        optimizer = torch.optim.AdamW(
            trainer.objective.vector.parameters, lr=self.rate, weight_decay=self.weight_decay
        )
        _mini_batches(trainer, journal, optimizer, self._rate_at)

    def _rate_at(self, share: float) -> float:
        return self.rate * ((1 + math.cos(math.pi * share)) / 2 if self.cosine else 1)


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


def starts_over(second: Any) -> bool:
    """Whether a method trains the prefix, too."""
    return isinstance(second, Competitor) and second.starts_over


def go_on(
    second: Minimizer | Competitor, trainer: Trainer, budget: int, head: int = 0
) -> list[Progress]:
    """The curve of a second phase, or of a competitor, from where the trainer stands.

    The trainer, of Adam alone with at least an epoch behind it, is used up. For a competitor that
    starts over it has none behind it, and the curve begins after `head` passes. A curve ends
    early where the method gave up, or where the loss was no longer finite; its first loss is inf
    where it was that before it began. `InputError` for a budget below 3 passes.
    """
    objective = trainer.objective
    journal = Journal(budget, trainer.device, lambda x: _validated(trainer, x), head)
    with suppress(BudgetSpent, NonFiniteError):
        if not head:
            x = objective.vector.read()
            journal.begin(objective.value(x), x)
        if isinstance(second, Minimizer):
            _descend(second, trainer, journal)
        else:
            second.run(trainer, journal)
    if not journal.rows:
        return [Progress(0, 0.0, math.inf)]
    journal.end()
    return journal.rows


def _validated(trainer: Trainer, x: Tensor) -> tuple[float | None, float | None]:
    """Validation loss and accuracy at weights x [P]; the model has its own again afterwards."""
    vector = trainer.objective.vector
    own = vector.read()
    try:
        return trainer.watch.validate(x)
    except NonFiniteError:
        return math.inf, None
    finally:
        vector.write(own)


def _descend(second: Minimizer, trainer: Trainer, journal: Journal) -> None:
    """The second phase of `fit`; it ends early where it finds that it can do no more."""
    objective = trainer.objective
    phase = DescentPhase(objective, second, trainer.phases[ADAM])
    before = objective.passes.total
    point = evaluate(objective, objective.vector.read())
    while (work := phase.epoch(point)).status is Status.MOVED:
        point = work.point or evaluate(objective, work.x)
        journal.saw(objective.passes.total - before, point.value, point.x)


def _mini_batches(
    trainer: Trainer,
    journal: Journal,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
) -> None:
    """Epochs of a first-order optimizer, whose rate follows from the share of all passes spent.

    Passes are negative up to where the journal begins.
    """
    objective, source = trainer.objective, trainer.phases[ADAM].adam
    step = Step(objective, optimizer, source.precision)
    spent, loss = -journal.head, 0.0
    while math.isfinite(loss):
        for group in optimizer.param_groups:
            group["lr"] = rate((spent + journal.head) / (journal.budget + journal.head))
        batches = objective.mini_batches(source.batch_size, source.generator)
        sweep(step, batches)
        spent += GRADIENT_PASSES
        x = objective.vector.read()
        if spent == 0:
            loss = objective.value(x)
            if math.isfinite(loss):
                journal.begin(loss, x)
        elif spent > 0 and journal.due(spent, GRADIENT_PASSES):
            with journal.paused():
                loss = objective.value(x)
            journal.saw(spent, loss, x)


def _seen(objective: FullBatch, journal: Journal) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Loss and gradient for foreign code, each evaluation in the journal."""
    before = objective.passes.total

    def evaluation(x: Tensor) -> tuple[float, Tensor]:
        value, gradient = objective.value_and_gradient(x)
        journal.saw(objective.passes.total - before, value, x)
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
