"""Second phases and their peers on physics-informed networks, in one run on one core.

Two rows of a published table (Dangel, Müller and Zeinhofer, Kronecker-factored approximate
curvature for physics-informed neural networks, arXiv 2405.15603): a network 2-64-1 with tanh in
float64, 900 points inside and 120 on the border, soft conditions, full batch, from their initial
weights and points; the error is the root mean square over 9,000 other points. That they are the
same is checked by the loss before the first step, which is printed to the last digit in their
results. Beside them the problems of `twophase.problems.physics`, among them Burgers' equation at
viscosity 0.01/π; their error is relative. Results of other runs in the folder stay.

    python benchmarks/physics_networks.py --seconds 120
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import scipy.optimize
import torch
from torch import Tensor, nn

import twophase as tp
from twophase.experiments.files import write_atomically
from twophase.experiments.provenance import of_script
from twophase.problems import physics

INSIDE, BORDER, OTHERS = 900, 120, 9000
# Distributions of the peers, with their modules.
PEERS = {"scipy": "scipy", "jax": "jax", "ssbroyden-optimistix": "ssbroyden_optimistix"}
COLUMNS = ["problem", "method", "seed", "passes", "seconds", "loss", "error"]
Start = tuple[tp.LeastSquares, Callable[[], float]]


@dataclass(frozen=True)
class Row:
    """A problem as the published runs begin it, and the loss that they print for its start.

    That is seed 0; others have other weights and points.
    """

    name: str
    first_loss: float
    make: Callable[[int], tuple[nn.Module, list[tp.Term], Tensor, Tensor]]

    def start(self, seed: int = 0) -> Start:
        """The problem with its initial weights, and the error of its model's present ones."""
        model, terms, points, exact = self.make(seed)
        problem = tp.LeastSquares(model, terms)
        found = problem.value(problem.vector.read())
        if seed == 0 and not math.isclose(found, self.first_loss, rel_tol=1e-14):
            raise SystemExit(f"{self.name}: the first loss is {found}, not {self.first_loss}")

        @torch.no_grad()
        def error() -> float:
            return (model(points) - exact).square().mean().sqrt().item()

        return problem, error


@dataclass(frozen=True)
class OwnProblem:
    """A problem of `twophase.problems.physics`, by its name there."""

    name: str
    key: str

    def start(self, seed: int = 0) -> Start:
        """The problem with its initial weights, and the error of its model's present ones."""
        problem = physics.PROBLEMS[self.key](seed)
        return problem.loss(), problem.error


def poisson(seed: int) -> tuple[nn.Module, list[tp.Term], Tensor, Tensor]:
    """−Δu = 2π² Π sin(πx_i) on the unit square, u = 0 on its border."""

    def solution(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x).prod(dim=1, keepdim=True)

    model, inside = _network(seed), torch.rand(INSIDE, 2)
    border, others = _border(BORDER, 2), torch.rand(OTHERS, 2)
    source = 2 * math.pi**2 * solution(inside)

    def residual(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        _, _, second = tp.derivatives(model, given[0])
        return second.sum(dim=1) + given[1]

    terms = [tp.Term(residual, _doubles(inside, source), 0.5)]
    terms.append(tp.Term(_away, _doubles(border, solution(border)), 0.5))
    others = others.double()
    return model, terms, others, solution(others)


def heat(seed: int) -> tuple[nn.Module, list[tp.Term], Tensor, Tensor]:
    """u_t = u_xx / 4 for (t, x) in the unit square, u(0, x) = sin(πx), u = 0 at x = 0 and 1."""

    def solution(p: Tensor) -> Tensor:
        return torch.exp(-(math.pi**2) / 4 * p[:, :1]) * torch.sin(math.pi * p[:, 1:])

    model, inside, times = _network(seed), torch.rand(INSIDE, 2), torch.rand(BORDER // 2, 1)
    sides = torch.cat([times, _border(BORDER // 2, 1)], dim=1)
    begin = torch.cat([torch.zeros(BORDER // 2, 1), torch.rand(BORDER // 2, 1)], dim=1)
    known, others = torch.cat([sides, begin]), torch.rand(OTHERS, 2).double()

    def residual(model: nn.Module, points: Tensor) -> Tensor:
        _, first, second = tp.derivatives(model, points)
        return first[:, 0] - second[:, 1] / 4

    terms = [tp.Term(residual, inside.double(), 0.5)]
    terms.append(tp.Term(_away, _doubles(known, solution(known)), 0.5))
    return model, terms, others, solution(others)


ROWS: list[Row | OwnProblem] = [
    Row("1: Poisson 2D", 48.92347435353573, poisson),
    Row("3: heat 1+1D", 0.13810716338990703, heat),
    OwnProblem("Burgers, 0.01/π", "burgers-front"),
    OwnProblem("Burgers, 0.1/π", "burgers"),
    OwnProblem("Poisson 1D", "poisson"),
    OwnProblem("regression", "regression"),
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

    def restart(self) -> None:
        """Begin anew."""
        self.began, self.due = time.perf_counter(), 0.05
        self.rows.clear()

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


def ssbroyden_optimistix(problem: tp.LeastSquares, curve: Curve) -> None:
    """SSBroyden of that package (JAX), its settings as shipped; each evaluation is torch's.

    A point that it asks for again, as for its own records, counts once, and its compilation takes
    no time.
    """
    import jax
    import numpy as np
    import ssbroyden_optimistix as package
    from ssbroyden_optimistix import contrib

    first, known = problem.passes.total, {}

    def evaluate(x):
        key = np.asarray(x).tobytes()
        if key not in known:
            if len(known) == 1:
                curve.restart()  # its compilation is over
            loss, gradient = problem.value_and_gradient(torch.from_numpy(np.array(x)))
            curve.saw(problem.passes.total - first, loss)
            known[key] = np.float64(loss), gradient.numpy()
            if len(known) > 10:
                del known[next(iter(known))]
        return known[key]

    x = jax.numpy.asarray(problem.vector.read().numpy())
    shapes = jax.ShapeDtypeStruct((), x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype)
    function = jax.custom_vjp(lambda x: jax.pure_callback(evaluate, shapes, x)[0])
    function.defvjp(
        lambda x: jax.pure_callback(evaluate, shapes, x), lambda gradient, c: (c * gradient,)
    )
    solver = package.SSBroyden(rtol=0.0, atol=0.0)

    def over(*_):
        return len(known) > 1 and curve.over

    contrib.run(solver, function, x, maxiter=10**9, callback=over)


METHODS: dict[str, Method] = {
    "twophase, default": ours(tp.DEFAULT),
    "twophase, SSBroyden": ours(tp.Descent(tp.BroydenDirection(), tp.StrongWolfe())),
    "twophase, self-scaled BFGS": ours(tp.SELF_SCALED_BFGS),
    "scipy, BFGS": scipys,
    "ssbroyden-optimistix": ssbroyden_optimistix,
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


def _network(seed: int) -> nn.Module:
    torch.manual_seed(1 + seed)
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
    parser.add_argument("--out", type=Path, default=Path("reports/reference/physics-networks"))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each run")
    names = [row.name for row in ROWS]
    parser.add_argument("--problems", nargs="+", choices=names, default=names)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    chosen = parser.parse_args(arguments)
    facts = of_script("physics_networks", arguments, PEERS)
    chosen.out.mkdir(parents=True, exist_ok=True)
    done = _earlier(chosen.out / "provenance.json")
    for seed, row, name in itertools.product(chosen.seeds, ROWS, chosen.methods):
        if row.name not in chosen.problems:
            continue
        problem, error = row.start(seed)
        curve = Curve(error, chosen.seconds)
        METHODS[name](problem, curve)
        table = pd.DataFrame(curve.rows, columns=COLUMNS[3:])
        _keep(chosen.out / "curves.csv", table.assign(problem=row.name, method=name, seed=seed))
        content = {"runs": [*done, facts], "published": PUBLISHED}
        write_atomically(chosen.out / "provenance.json", json.dumps(content, indent=2) + "\n")
        last = table.iloc[-1]
        print(f"{row.name}, {name}, {seed}: error {last.error:.2g}, {last.passes:.0f} passes")


def _earlier(path: Path) -> list[dict[str, Any]]:
    """What earlier runs in the folder said of themselves."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def _keep(path: Path, table: pd.DataFrame) -> None:
    """Put a run's rows in the place of those that it had in the file, if any."""
    if path.exists():
        before, keys = pd.read_csv(path), ["problem", "method", "seed"]
        same = (before[keys] == table[keys].iloc[0]).all(axis=1)
        table = pd.concat([before[~same], table])
    write_atomically(path, table[COLUMNS].to_csv(index=False, float_format="%.5g"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
