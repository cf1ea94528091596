"""Two rows of a published table of physics-informed networks, with peers, on one core.

The problems, initial weights and points are those of Dangel, Müller and Zeinhofer (Kronecker-
factored approximate curvature for physics-informed neural networks, arXiv 2405.15603): a network
2-64-1 with tanh in float64, 900 points inside and 120 on the border, soft conditions, full batch;
the error is the root mean square over 9,000 other points. That they are the same is checked by the
loss before the first step, which is printed to the last digit in their results.

    python benchmarks/published_table.py --seconds 120
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import scipy.optimize
import torch
from torch import Tensor, nn

import twophase as tp
from twophase.device import device_name
from twophase.experiments.files import write_atomically
from twophase.experiments.provenance import git_revision, now, versions

INSIDE, BORDER, OTHERS = 900, 120, 9000
COLUMNS = ["problem", "method", "passes", "seconds", "loss", "error"]


@dataclass(frozen=True)
class Row:
    """A problem as the published runs begin it, and the loss that they print for its start."""

    name: str
    first_loss: float
    make: Callable[[], tuple[nn.Module, list[tp.Term], Tensor, Tensor]]

    def start(self) -> tuple[tp.LeastSquares, Callable[[], float]]:
        """The problem with its initial weights, and the error of its model's present ones."""
        model, terms, points, exact = self.make()
        problem = tp.LeastSquares(model, terms)
        found = problem.value(problem.vector.read())
        if not math.isclose(found, self.first_loss, rel_tol=1e-14):
            raise SystemExit(f"{self.name}: the first loss is {found}, not {self.first_loss}")

        @torch.no_grad()
        def error() -> float:
            return (model(points) - exact).square().mean().sqrt().item()

        return problem, error


def poisson() -> tuple[nn.Module, list[tp.Term], Tensor, Tensor]:
    """−Δu = 2π² Π sin(πx_i) on the unit square, u = 0 on its border."""

    def solution(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x).prod(dim=1, keepdim=True)

    model, inside = _network(), torch.rand(INSIDE, 2)
    border, others = _border(BORDER, 2), torch.rand(OTHERS, 2)
    source = 2 * math.pi**2 * solution(inside)

    def residual(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        _, _, second = tp.derivatives(model, given[0])
        return second.sum(dim=1) + given[1]

    terms = [tp.Term(residual, _doubles(inside, source), 0.5)]
    terms.append(tp.Term(_away, _doubles(border, solution(border)), 0.5))
    others = others.double()
    return model, terms, others, solution(others)


def heat() -> tuple[nn.Module, list[tp.Term], Tensor, Tensor]:
    """u_t = u_xx / 4 for (t, x) in the unit square, u(0, x) = sin(πx), u = 0 at x = 0 and 1."""

    def solution(p: Tensor) -> Tensor:
        return torch.exp(-(math.pi**2) / 4 * p[:, :1]) * torch.sin(math.pi * p[:, 1:])

    model, inside, times = _network(), torch.rand(INSIDE, 2), torch.rand(BORDER // 2, 1)
    sides = torch.cat([times, _border(BORDER // 2, 1)], dim=1)
    begin = torch.cat([torch.zeros(BORDER // 2, 1), torch.rand(BORDER // 2, 1)], dim=1)
    known, others = torch.cat([sides, begin]), torch.rand(OTHERS, 2).double()

    def residual(model: nn.Module, points: Tensor) -> Tensor:
        _, first, second = tp.derivatives(model, points)
        return first[:, 0] - second[:, 1] / 4

    terms = [tp.Term(residual, inside.double(), 0.5)]
    terms.append(tp.Term(_away, _doubles(known, solution(known)), 0.5))
    return model, terms, others, solution(others)


ROWS = [
    Row("1: Poisson 2D", 48.92347435353573, poisson),
    Row("3: heat 1+1D", 0.13810716338990703, heat),
]


@dataclass
class Curve:
    """Loss and error of a run at moments a tenth apart, with a clock that stops meanwhile."""

    error: Callable[[], float]
    limit: float
    rows: list[tuple[float, ...]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    due: float = 0.05

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def over(self) -> bool:
        return self.seconds >= self.limit

    def saw(self, passes: int, loss: float) -> None:
        """Take a row if one is due; the model has the weights of that loss."""
        seconds = self.seconds
        if seconds >= min(self.due, self.limit):
            self.due = 1.1 * max(self.due, seconds)
            self.rows.append((passes, seconds, loss, self.error()))
            self.began += self.seconds - seconds


Method = Callable[[tp.LeastSquares, Curve], None]


def ours(second: object) -> Method:
    """A second phase of this library."""

    def run(problem: tp.LeastSquares, curve: Curve) -> None:
        def see(found: tp.Minimum) -> None:
            problem.vector.write(found.x)
            curve.saw(found.passes, found.loss)
            if curve.over:
                raise TimeoutError

        try:
            tp.minimize(problem, second=second, callback=see)
        except TimeoutError:
            pass

    return run


def _torchs(make: Callable[..., torch.optim.Optimizer], cosine: bool = False) -> Method:
    def run(problem: tp.LeastSquares, curve: Curve) -> None:
        optimizer, first = make(problem.vector.parameters), problem.passes.total

        def closure() -> Tensor:
            loss, gradient = problem.value_and_gradient(problem.vector.read())
            parts = gradient.split([p.numel() for p in problem.vector.parameters])
            for parameter, part in zip(problem.vector.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
            curve.saw(problem.passes.total - first, loss)
            return torch.tensor(loss, dtype=torch.float64)

        rate = optimizer.param_groups[0]["lr"]
        while not curve.over:
            if cosine:
                share = min(1.0, curve.seconds / curve.limit)
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
            optimizer.step(closure)

    return run


def scipys(problem: tp.LeastSquares, curve: Curve) -> None:
    """scipy's BFGS with a dense matrix."""
    first = problem.passes.total

    def function(x):
        loss, gradient = problem.value_and_gradient(torch.from_numpy(x).clone())
        curve.saw(problem.passes.total - first, loss)
        if curve.over:
            raise TimeoutError
        return loss, gradient.numpy()

    options = {"gtol": 0, "maxiter": 10**9}
    try:
        x = problem.vector.read().numpy()
        scipy.optimize.minimize(function, x, jac=True, method="BFGS", options=options)
    except TimeoutError:
        pass


def lbfgs(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """torch's, with a history and a line search as its users set them."""
    options = {"history_size": 100, "line_search_fn": "strong_wolfe", "tolerance_grad": 0}
    return torch.optim.LBFGS(parameters, max_iter=20, max_eval=25, tolerance_change=0, **options)


METHODS: dict[str, Method] = {
    "twophase, picked": ours(None),
    "twophase, self-scaled BFGS": ours(tp.DEFAULT),
    "scipy, BFGS": scipys,
    "torch, L-BFGS": _torchs(lbfgs),
    "Adam": _torchs(torch.optim.Adam),
    "Adam, cosine decay": _torchs(torch.optim.Adam, cosine=True),
}
# Seconds to errors, and the lowest, of energy natural gradient descent in the published table: the
# best of about 100 tuned runs of 1,000 s each on an RTX 6000.
PUBLISHED = {
    "1: Poisson 2D": {"1e-05": 59, "1e-06": 94, "1e-07": 219, "lowest": 6.1e-8},
    "3: heat 1+1D": {"1e-05": 38, "1e-06": 96, "1e-07": 202, "lowest": 2.8e-8},
}


def _network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).double()


def _border(count: int, size: int) -> Tensor:
    points = torch.rand(count, size)
    axes, sides = torch.randint(0, size, (count,)), torch.randint(0, 2, (count,))
    points[torch.arange(count), axes] = sides.float()
    return points


def _doubles(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


def _away(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
    return model(given[0]) - given[1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/reference/published-table"))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each run")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    chosen = parser.parse_args(arguments)
    revision, tables = git_revision(), []
    for row in ROWS:
        for name in chosen.methods:
            problem, error = row.start()
            curve = Curve(error, chosen.seconds)
            METHODS[name](problem, curve)
            table = pd.DataFrame(curve.rows, columns=COLUMNS[2:])
            tables.append(table.assign(problem=row.name, method=name)[COLUMNS])
            last = table.iloc[-1]
            print(f"{row.name}, {name}: error {last.error:.2g} after {last.passes:.0f} passes")
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = pd.concat(tables).to_csv(index=False, float_format="%.5g")
    facts = {
        "command": " ".join(
            ["python", "benchmarks/published_table.py", *(arguments or sys.argv[1:])]
        ),
        "revision": revision,
        "versions": versions(),
        "device": device_name(torch.device("cpu")),
        "time": now(),
        "published": PUBLISHED,
    }
    write_atomically(chosen.out / "curves.csv", text)
    write_atomically(chosen.out / "provenance.json", json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
