"""Other ways to the global minimum of a small sum of squares, in evaluations, beside the method.

All search the box of a `Multimodal` problem and are counted alike, in passes over its examples: a
value or the residuals 1, a value with gradient 3, residuals with Jacobian 3, also where they are
asked for one after the other at the same point. What twophase evaluates is counted by its own
`Passes`, which has the same prices and never takes a value back.
"""

import math
import warnings
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy import optimize

import twophase as tp
from twophase.errors import check_integer
from twophase.experiments.competitors import BudgetSpent
from twophase.problems.multimodal import Multimodal
from twophase.second_phase import Minimizer

# The global minimum is found where the loss is that near to it, in parts of the problem's scale;
# its basin, as a rule, where it is that near.
TOLERANCE, NEAR = 1e-6, 1e-2
# Gradient norm at which a start of the second phase ends.
STILL = 1e-7


class Search(NamedTuple):
    """What a search has come to: the lowest loss over evaluations, a row where it fell."""

    evaluations: np.ndarray
    lowest: np.ndarray
    spent: int
    starts: int

    def reached(self, goal: float) -> float:
        """The evaluations after which the loss was at most `goal`; inf where it never was."""
        there = np.flatnonzero(self.lowest <= goal)
        return float(self.evaluations[there[0]]) if len(there) else math.inf


class Meter:
    """Evaluates a problem for a method, counts, and keeps the lowest loss.

    `BudgetSpent` where `evaluations` are spent, or the loss is down to `goal`.
    """

    def __init__(self, problem: Multimodal, evaluations: float = math.inf, goal: float = -math.inf):
        self.problem, self.budget, self.goal = problem, evaluations, goal
        self.spent, self.starts, self.lowest = 0, 0, math.inf
        self.rows: list[tuple[int, float]] = []
        self._at = self._residuals = np.empty(0)

    def saw(self, spent: int, loss: float) -> None:
        """A loss was met, for so many evaluations."""
        self.spent += spent
        if self.spent > self.budget:
            raise BudgetSpent
        if loss < self.lowest:
            self.lowest = loss
            self.rows.append((self.spent, loss))
        if loss <= self.goal:
            raise BudgetSpent

    def residuals(self, w: np.ndarray) -> np.ndarray:
        """Residuals [R] at w [n]: one evaluation."""
        self._at, self._residuals = w.copy(), self.problem.residuals(w)
        self.saw(1, float(np.square(self._residuals).mean()))
        return self._residuals

    def value(self, w: np.ndarray) -> float:
        """The loss at w [n]: one evaluation."""
        return float(np.square(self.residuals(w)).mean())

    def jacobian(self, w: np.ndarray) -> np.ndarray:
        """The residuals' Jacobian [R, n]: two evaluations at the point last seen, else three."""
        if not np.array_equal(w, self._at):
            self.residuals(w)
        found = self.problem.jacobian(w)
        self.saw(2, math.inf)
        return found

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """The gradient [n]; it counts like the Jacobian."""
        jacobian = self.jacobian(w)
        return 2 / len(jacobian) * (self._residuals @ jacobian)

    def value_and_gradient(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient [n]: three evaluations."""
        return self.value(w), self.gradient(w)


@dataclass(frozen=True)
class Method:
    """A way to the global minimum; `package` must be installed for it (None: nothing)."""

    package: ClassVar[str | None] = None

    @property
    def installed(self) -> bool:
        """Whether it can be run here."""
        return self.package is None or find_spec(self.package) is not None

    def run(self, problem: Multimodal, seed: int, evaluations: int) -> Search:
        """Search until the minimum is found, the evaluations are spent, or it ends by itself."""
        check_integer("evaluations", evaluations, 3)
        meter = Meter(problem, evaluations, problem.minimum + TOLERANCE * problem.scale)
        with suppress(BudgetSpent), np.errstate(all="ignore"):
            self.search(meter, np.random.default_rng(seed))
        times, losses = np.array(meter.rows).T
        return Search(times, losses, int(min(meter.spent, meter.budget)), meter.starts)

    @abstractmethod
    def search(self, meter: Meter, generator: np.random.Generator) -> None:
        """Go on until the meter ends it, or nothing more can be done."""


@dataclass(frozen=True)
class MultiStart(Method):
    """A local method from random points of the box, one after the other."""

    def search(self, meter: Meter, generator: np.random.Generator) -> None:
        while True:
            meter.starts += 1
            self.descend(meter, meter.problem.starts(generator, 1)[0])

    @abstractmethod
    def descend(self, meter: Meter, start: np.ndarray) -> np.ndarray:
        """Where the local method ends from a start, both [n]."""


@dataclass(frozen=True)
class TwoPhase(MultiStart):
    """`twophase.fit` from each start: Adam, then the second phase; or Adam alone.

    A start ends where the second phase can do no more or its `passes` are spent: here another start
    is the way back. Adam's rate of 0.3 was the best of 0.01, 0.03, 0.1 and 0.3 on the planted
    networks of ten parameters.
    """

    rate: float = 0.3
    passes: int = 600
    settings: dict[str, Any] = field(
        default_factory=lambda: {"second": replace(tp.DEFAULT, tolerance_grad=STILL)}
    )

    def descend(self, meter: Meter, start: np.ndarray) -> np.ndarray:
        squares, told = meter.problem.least_squares(start), _Told(meter)
        adam = tp.AdamSettings(self.rate, batch_size=None)
        given = {"fallback": None, "device": "cpu"} | self.settings

        def on_epoch(record: tp.Record) -> None:
            told(squares.passes.total, record.train_loss)

        tp.fit(squares, passes=self.passes, adam=adam, on_epoch=on_epoch, **given)
        return squares.vector.read().numpy()


@dataclass(frozen=True)
class SecondPhaseAlone(MultiStart):
    """`twophase.minimize` from each start, until it can do no more, or `passes` are spent."""

    second: Minimizer = replace(tp.DEFAULT, tolerance_grad=STILL)
    passes: int = 600

    def descend(self, meter: Meter, start: np.ndarray) -> np.ndarray:
        squares, told = meter.problem.least_squares(start), _Told(meter)
        found = tp.minimize(
            squares,
            passes=self.passes,
            second=self.second,
            callback=lambda so_far: told(so_far.passes, so_far.loss),
        )
        return found.x.numpy()


@dataclass(frozen=True)
class ScipyLevenbergMarquardt(MultiStart):
    """`scipy.optimize.least_squares(method="lm")`, MINPACK's (Moré 1978), from each start."""

    def descend(self, meter: Meter, start: np.ndarray) -> np.ndarray:
        jacobian = meter.jacobian
        return optimize.least_squares(meter.residuals, start, jac=jacobian, method="lm").x


@dataclass(frozen=True)
class SimulatedAnnealing(Method):
    """`scipy.optimize.dual_annealing`: generalized annealing with L-BFGS-B (Xiang et al. 1997)."""

    def search(self, meter: Meter, generator: np.random.Generator) -> None:
        meter.starts, bounds = 1, meter.problem.bounds
        local = {"method": "L-BFGS-B", "jac": meter.gradient, "bounds": bounds}
        optimize.dual_annealing(
            meter.value, bounds, maxiter=10**9, maxfun=10**9, minimizer_kwargs=local, rng=generator
        )


@dataclass(frozen=True)
class BasinHopping(Method):
    """`scipy.optimize.basinhopping`: L-BFGS-B from random steps (Wales and Doye 1997).

    Steps of up to 2, a quarter of the box, were better than 1 and scipy's 0.5 on the planted
    networks.
    """

    step: float = 2.0

    def search(self, meter: Meter, generator: np.random.Generator) -> None:
        meter.starts, problem = 1, meter.problem
        local = {"method": "L-BFGS-B", "jac": True, "bounds": problem.bounds}
        optimize.basinhopping(
            meter.value_and_gradient,
            problem.starts(generator, 1)[0],
            niter=10**9,
            stepsize=self.step,
            minimizer_kwargs=local,
            rng=generator,
        )


@dataclass(frozen=True)
class Direct(Method):
    """`scipy.optimize.direct`: divided rectangles (Jones et al. 1993), values only, no chance."""

    def search(self, meter: Meter, generator: np.random.Generator) -> None:
        meter.starts = 1
        endless = {"maxfun": 10**5, "maxiter": 10**6, "vol_tol": 0.0, "len_tol": 0.0}
        optimize.direct(meter.value, meter.problem.bounds, **endless)


@dataclass(frozen=True)
class Shgo(Method):
    """`scipy.optimize.shgo`: simplicial homology, then SLSQP (Endres et al. 2018), no chance.

    100 points an iteration, scipy's number for Sobol points, which take too long from about eight
    parameters on; it ends by itself after ten iterations, which is enough to spend any budget here
    but for few parameters.
    """

    def search(self, meter: Meter, generator: np.random.Generator) -> None:
        meter.starts = 1
        options = {"jac": meter.gradient}
        optimize.shgo(meter.value, meter.problem.bounds, n=100, iters=10, options=options)


@dataclass(frozen=True)
class Bayesian(Method):
    """Expected improvement of a Gaussian process (Jones et al. 1998), by bayesian-optimization.

    Five random points, as is the package's default; a later one is the best of 1,000 random points
    and one descent, a tenth of its default, which makes it several times as fast. The work for a
    point still grows with the cube of those before, so that there are at most `most`. Expected
    improvement was better than the package's upper confidence bound on the planted networks.
    """

    package = "bayes_opt"
    most: int = 50

    def search(self, meter: Meter, generator: np.random.Generator) -> None:
        from bayes_opt import BayesianOptimization
        from bayes_opt.acquisition import ExpectedImprovement

        meter.starts, names = 1, [f"w{i}" for i in range(meter.problem.size)]
        meter.budget = min(meter.budget, self.most)
        rule = ExpectedImprovement(xi=0.0)
        rule.suggest = partial(rule.suggest, n_random=1000, n_smart=1)
        found = BayesianOptimization(
            lambda **w: -meter.value(np.array([w[name] for name in names])),
            dict(zip(names, meter.problem.bounds, strict=True)),
            acquisition_function=rule,
            random_state=int(generator.integers(2**31)),
            verbose=0,
            allow_duplicate_points=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a process that does not converge
            found.maximize(init_points=5, n_iter=self.most)


PAPERS = {key: tp.PAPER[key] for key in ("switch", "second")}
# Those that start locally, many times, and those that search the box as a whole.
LOCAL: dict[str, Method] = {
    "Adam, then second phase": TwoPhase(),
    "Adam, then CG, as in the paper": TwoPhase(settings=PAPERS),
    "second phase alone": SecondPhaseAlone(),
    "Adam alone": TwoPhase(settings={"second": None}),
    "scipy's Levenberg–Marquardt": ScipyLevenbergMarquardt(),
}
GLOBAL: dict[str, Method] = {
    "simulated annealing": SimulatedAnnealing(),
    "basin hopping": BasinHopping(),
    "DIRECT": Direct(),
    "SHGO": Shgo(),
    "Bayesian optimisation": Bayesian(),
}
METHODS = LOCAL | GLOBAL


class _Told:
    """Tells a meter what twophase, which counts by itself, has spent since the last time."""

    def __init__(self, meter: Meter):
        self.meter, self.before = meter, 0

    def __call__(self, passes: int, loss: float) -> None:
        spent, self.before = passes - self.before, passes
        self.meter.saw(spent, loss)
