"""What the second phase is compared with: each method goes on from the same weights, on a budget.

A method is a function of a trainer that stands at the end of the shared prefix, and of a journal,
which counts passes and seconds and ends the method when the budget is spent.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from twophase.adam import sweep
from twophase.cg import CGSettings, Status
from twophase.device import clock
from twophase.errors import NonFiniteError, check_integer
from twophase.line_search.golden_section import resolve
from twophase.line_search.wolfe import StrongWolfe
from twophase.objective import FullBatch, evaluate
from twophase.training import GRADIENT_PASSES, CGPhase, Trainer

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

    Args:
        budget: passes, at least 3, one full-batch gradient or mini-batch epoch.
        loss: at the end of the prefix.
        device: the model's, whose work seconds wait for.

    Raises:
        InputError: the budget is too small.

    >>> journal = Journal(6, 1.0, torch.device("cpu"))
    >>> journal.saw(3, 0.5), journal.saw(6, 0.7)
    (None, None)
    >>> [(row.passes, row.loss) for row in journal.rows]
    [(0, 1.0), (3, 0.5), (6, 0.5)]
    >>> journal.saw(9, 0.1)
    Traceback (most recent call last):
    twophase.experiments.competitors.BudgetSpent
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
        return passes >= self._next or passes + step > self.budget

    def saw(self, passes: int, loss: float) -> None:
        """A loss was met, after so many passes since the prefix.

        Raises:
            BudgetSpent: these are more than there are; the loss does not count.
        """
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

    @property
    def _next(self) -> float:
        last = self.rows[-1].passes
        return min(max(last + 1, (1 + SPACING) * last), self.budget)


def adam(trainer: Trainer, journal: Journal, factor: float = 1.0) -> None:
    """Adam goes on, its learning rate times a constant factor."""
    optimizer = trainer.phases["adam"].adam.optimizer
    rate = factor * optimizer.param_groups[0]["lr"]
    _mini_batches(trainer, journal, optimizer, lambda share: rate)


def adam_cosine(trainer: Trainer, journal: Journal, factor: float = 1.0) -> None:
    """Adam goes on, its rate times factor · (1 + cos(π · share of the budget)) / 2.

    Loshchilov and Hutter (2017), without restarts.
    """
    optimizer = trainer.phases["adam"].adam.optimizer
    rate = factor * optimizer.param_groups[0]["lr"]
    _mini_batches(
        trainer, journal, optimizer, lambda share: rate * (1 + math.cos(math.pi * share)) / 2
    )


def sgd(trainer: Trainer, journal: Journal, rate: float = 1.0) -> None:
    """Stochastic gradient descent with momentum 0.9, on the same mini-batches."""
    optimizer = torch.optim.SGD(trainer.objective.vector.parameters, lr=rate, momentum=0.9)
    _mini_batches(trainer, journal, optimizer, lambda share: rate)


def second_phase(trainer: Trainer, journal: Journal, settings: CGSettings | None = None) -> None:
    """The second phase of `fit`; it ends early where it finds that it can do no more."""
    objective = trainer.objective
    phase = CGPhase(objective, settings or CGSettings(), seed=0)
    phase.follow(trainer.phases["adam"])
    before = objective.passes.total
    point = evaluate(objective, objective.vector.read())
    while True:
        work = phase.epoch(point)
        if work.status is not Status.MOVED:
            return
        point = work.point or evaluate(objective, work.x)
        journal.saw(objective.passes.total - before, point.value)


def torch_lbfgs(trainer: Trainer, journal: Journal, history: int = 100) -> None:
    """`torch.optim.LBFGS` with its strong Wolfe search, in one long step without tolerances.

    With `max_iter=1` for each step it would evaluate every point twice, and without a `max_eval`
    that follows `max_iter` have no line search left.
    """
    x = nn.Parameter(trainer.objective.vector.read())
    seen = _seen(trainer.objective, journal)
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=journal.budget,
        max_eval=journal.budget,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=history,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, x.grad = seen(x.detach())
        return value

    optimizer.step(closure)


def scipy_cg(trainer: Trainer, journal: Journal, c2: float = 0.4) -> None:
    """`scipy.optimize.minimize(method="CG")`, PR+ with a strong Wolfe search, in float64."""
    seen = _seen(trainer.objective, journal)
    x = trainer.objective.vector.read()

    def function(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = seen(torch.from_numpy(values).to(x))
        return value, gradient.double().cpu().numpy()

    # ends by itself where its search finds no lower loss
    options = {"gtol": 0.0, "maxiter": journal.budget, "c2": c2}
    with np.errstate(all="ignore"):
        optimize.minimize(
            function, x.double().cpu().numpy(), jac=True, method="CG", options=options
        )


def torchmin_cg(trainer: Trainer, journal: Journal) -> None:
    """The CG of pytorch-minimize, PR+ with a strong Wolfe search; it has no settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, for what the package still uses
        from torchmin import minimize

    seen = _seen(trainer.objective, journal)
    options = {"gtol": 0.0, "max_iter": journal.budget}
    minimize(
        lambda x: _Differentiable.apply(x, seen),
        trainer.objective.vector.read(),
        "cg",
        options=options,
    )


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        label: for figures and tables.
        run: see the functions of this module.
        candidates: the settings among which tuning may choose, the first as shipped.
        package: what must be installed, by its name for import; None: nothing more.
        times: its budget, in multiples of the others'.

    >>> METHODS["sgd"].label, len(METHODS["sgd"].candidates)
    ('SGD with momentum', 3)
    """

    label: str
    run: Callable[..., None]
    candidates: tuple[Mapping[str, object], ...] = field(default=({},))
    package: str | None = None
    times: int = 1

    @property
    def installed(self) -> bool:
        """Whether the method can run here."""
        return self.package is None or find_spec(self.package) is not None


def _paper(tolerance: float) -> dict[str, CGSettings]:
    return {"settings": CGSettings("PR+", resolve("golden", tolerance))}


def _conjugate(beta: str) -> dict[str, CGSettings]:
    return {"settings": CGSettings(beta, preconditioner="adam")}


_SECOND_PHASES = (
    CGSettings(),
    CGSettings(line_search=StrongWolfe(curvature=0.5)),
    CGSettings(preconditioner="none"),
)

METHODS: dict[str, Method] = {
    "adam": Method("Adam, constant rate", adam),
    "adam-twice": Method("Adam, twice the passes", adam, times=2),
    "adam-tuned": Method(
        "Adam, tuned rate", adam, tuple({"factor": factor} for factor in (1.0, 0.3, 3.0))
    ),
    "adam-cosine": Method(
        "Adam, cosine decay", adam_cosine, tuple({"factor": factor} for factor in (1.0, 3.0, 10.0))
    ),
    "sgd": Method("SGD with momentum", sgd, tuple({"rate": rate} for rate in (1.0, 0.1, 10.0))),
    "golden": Method(
        "CG, golden section (paper)", second_phase, tuple(map(_paper, (1e-2, 1e-1, 1e-3)))
    ),
    "cg": Method(
        "CG, parabola, preconditioned", second_phase, tuple(map(_conjugate, ("PR+", "HS-DY", "HZ")))
    ),
    "default": Method("default second phase", second_phase, ({"settings": CGSettings()},)),
    "default-tuned": Method(
        "default second phase, tuned",
        second_phase,
        tuple({"settings": settings} for settings in _SECOND_PHASES),
    ),
    "torch-lbfgs": Method(
        "torch L-BFGS", torch_lbfgs, tuple({"history": history} for history in (100, 30, 10))
    ),
    "scipy-cg": Method("scipy CG", scipy_cg, tuple({"c2": c2} for c2 in (0.4, 0.1, 0.9))),
    "torchmin-cg": Method("pytorch-minimize CG", torchmin_cg, package="torchmin"),
}


def go_on(method: Method, candidate: int, trainer: Trainer, budget: int) -> list[Progress]:
    """The curve of one method from where the trainer stands.

    Args:
        method: one of `METHODS`.
        candidate: the number of its settings.
        trainer: of strategy "adam", with at least an epoch behind it; it is used up.
        budget: passes of the comparison, of which the method gets `times` as many.

    Returns:
        The curve, which begins at passes 0; its losses never rise. It ends early where the method
        gave up, or where the loss was no longer finite.

    Raises:
        InputError: the budget is below 3 passes.

    >>> inputs = torch.linspace(-1, 1, 32).reshape(-1, 1)
    >>> trainer = Trainer(nn.Linear(1, 1), (inputs, 3 * inputs), strategy="adam")
    >>> trainer.epoch().phase
    'adam'
    >>> curve = go_on(METHODS["default"], 0, trainer, budget=30)
    >>> curve[0].loss > 1, curve[-1].loss < 1e-9, curve[-1].passes <= 30
    (True, True, True)
    """
    objective = trainer.objective
    journal = Journal(
        method.times * budget, objective.value(objective.vector.read()), trainer.device
    )
    try:
        method.run(trainer, journal, **method.candidates[candidate])
    except (BudgetSpent, NonFiniteError):
        pass
    journal.end()
    return journal.rows


def _mini_batches(
    trainer: Trainer,
    journal: Journal,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
) -> None:
    """Epochs of a first-order optimizer, whose rate follows from the share of the budget spent."""
    objective, source = trainer.objective, trainer.phases["adam"].adam
    inputs, targets, spent = objective.inputs, objective.targets, 0
    while True:
        for group in optimizer.param_groups:
            group["lr"] = rate(spent / journal.budget)
        batches = source.batches(len(inputs), inputs.device)
        sweep(trainer.model, objective.loss, optimizer, inputs, targets, batches)
        spent += GRADIENT_PASSES
        if not journal.due(spent, GRADIENT_PASSES):
            continue
        with journal.paused():
            loss = objective.value(objective.vector.read())
        journal.saw(spent, loss)
        if not math.isfinite(loss):
            return


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
    def forward(ctx, x: Tensor, seen: Callable[[Tensor], tuple[float, Tensor]]) -> Tensor:
        value, gradient = seen(x.detach())
        ctx.save_for_backward(gradient)
        return x.new_tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream.to(gradient) * gradient, None
