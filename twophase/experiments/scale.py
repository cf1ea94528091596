"""Time and memory of both phases over parameters P and examples K, and what follows for more.

Networks of two hidden layers of tanh units, 32 inputs and one output, on random examples with a
mean squared error, in float32: their time is that of matrix products, as in most networks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from twophase.adam import Adam, AdamSettings
from twophase.device import clock
from twophase.directions import ConjugateDirection, SelfScaledBFGSDirection
from twophase.errors import InputError, check_choice, check_integer, check_number
from twophase.experiments.live_bytes import LiveBytes
from twophase.experiments.progress import track
from twophase.least_squares import LevenbergMarquardt
from twophase.line_search import GoldenSection, StrongWolfe
from twophase.minimization import Minimum, minimize
from twophase.objective import GRADIENT_PASSES
from twophase.objectives import FullBatch
from twophase.problems import networks
from twophase.second_phase import Descent, Minimizer

INPUTS = 32
ADAM = "Adam (an epoch)"
GAUSS_NEWTON = "Levenberg–Marquardt"
PHASES: dict[str, Minimizer] = {
    "CG (golden section)": Descent(ConjugateDirection("PR+"), GoldenSection()),
    # a step more is two vectors more
    "limited memory (2 steps)": Descent(SelfScaledBFGSDirection(2), StrongWolfe()),
    GAUSS_NEWTON: LevenbergMarquardt(),
}
# About how many gradients each takes.
KINDS = dict(zip((ADAM, *PHASES), (1, 5, 2, 50), strict=True))
# Iterations that are made, of which the first, with what is made once, is not timed.
ITERATIONS = 3
BYTES = 4  # of a number
# Parameters and examples from which on passes tell what those of more will be: below them
# Levenberg–Marquardt builds its matrices.
LARGE = 50_000, 1000


@dataclass(frozen=True)
class Cluster:
    """Devices for the extrapolation: floating-point operations and bytes per second, of each.

    Defaults: 2e14 operations a second, a fifth of an H100's peak in bf16 (NVIDIA's data sheet: 989
    TFLOP/s), 25 GB/s between devices (a 200 Gbit/s link each) and 80 GB of memory.
    """

    devices: int = 64
    operations: float = 2e14
    bandwidth: float = 25e9
    memory: float = 80e9

    def __post_init__(self) -> None:
        check_integer("devices", self.devices, 1)
        for name in ("operations", "bandwidth", "memory"):
            check_number(name, getattr(self, name), above=0)

    def pass_seconds(self, parameters: float, examples: float) -> float:
        """A gradient of all examples: 6 operations for each parameter and example."""
        return 6 * parameters * examples / (self.devices * self.operations)

    def reduce_seconds(self, parameters: float, size: int = 8) -> float:
        """A ring all-reduce of a vector: each device sends and takes it nearly twice."""
        return 2 * (1 - 1 / self.devices) * parameters * size / self.bandwidth


def width_of(parameters: int) -> int:
    """The width of the hidden layers of the network with about so many parameters."""
    linear = INPUTS + 3  # w² + (inputs + 3) w + 1
    return max(1, round((math.sqrt(linear**2 + 4 * parameters) - linear) / 2))


def problem(parameters: int, examples: int) -> FullBatch:
    """A network of about `parameters`, with `examples` to fit."""
    width = width_of(parameters)
    generator = torch.Generator().manual_seed(0)
    with networks.seeded(0):
        hidden = nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
        model = nn.Sequential(*hidden, nn.Linear(width, 1))
    inputs = torch.randn(examples, INPUTS, generator=generator)
    noise = torch.randn(examples, 1, generator=generator)
    return FullBatch(model, nn.functional.mse_loss, inputs, inputs[:, :1].sin() + noise)


def run(
    parameters: Iterable[int], examples: Iterable[int], most: float, kinds: Iterable[str] = KINDS
) -> pd.DataFrame:
    """A row for each number of parameters and examples, and each kind of epoch or iteration.

    Left out is what takes more than `most` in gradients times parameters times examples.
    `seconds` and `passes` are means of the timed ones; `peak` are the bytes of tensors that live
    beside model and data, Adam's moments among them, counted in runs of their own, in which nothing
    is timed. `InputError` for a number below 1, or where all is left out.
    """
    parameters, examples = (
        [check_integer(name, one, 1) for one in given]
        for name, given in (("parameters", parameters), ("examples", examples))
    )
    check_number("most", most, above=0)
    cells = [
        (p, k, kind)
        for p, k, kind in product(parameters, examples, kinds)
        if p * k * KINDS[check_choice("kind", kind, KINDS)] <= most
    ]
    if not cells:
        raise InputError("most", most, "a number that leaves something to be measured")
    return pd.DataFrame([_measured(*cell) for cell in track(cells, label="measurements")])


def _measured(parameters: int, examples: int, kind: str) -> dict[str, Any]:
    seconds, passes = _work(problem(parameters, examples), kind)
    objective = problem(parameters, examples)
    size = sum(p.numel() for p in objective.vector.parameters)
    with LiveBytes() as live:
        _work(objective, kind)
    cell = {"kind": kind, "parameters": size, "examples": examples}
    return cell | {"seconds": seconds, "passes": passes, "peak": live.peak}


def _work(objective: FullBatch, kind: str) -> tuple[float, float]:
    """Seconds and passes of an epoch or iteration, a mean over all but the first."""
    return _adam(objective) if kind == ADAM else _second(objective, PHASES[kind])


def _adam(objective: FullBatch) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    adam = Adam(objective.vector.parameters, AdamSettings(), generator)
    device = objective.vector.parameters[0].device
    times = [clock(device)]
    for _ in range(ITERATIONS):
        adam.epoch(objective)
        times.append(clock(device))
    return (times[-1] - times[1]) / (ITERATIONS - 1), 3.0


def _second(objective: FullBatch, second: Minimizer) -> tuple[float, float]:
    seen: list[tuple[int, float, int]] = []  # without the vectors

    def note(found: Minimum) -> None:
        seen.append((found.iterations, found.seconds, found.passes))

    last = minimize(objective, iterations=ITERATIONS, second=second, callback=note)
    if last.iterations < 2:  # it has ended
        return last.seconds, float(last.passes)
    iterations, seconds, passes = seen[0]
    made = last.iterations - iterations
    return (last.seconds - seconds) / made, (last.passes - passes) / made


def exponents(table: pd.DataFrame, least: float = 0.02) -> pd.DataFrame:
    """For each kind seconds ≈ c · P^p · K^k, by least squares of the logarithms, and the misfit.

    Cells below `least` seconds are left out, where what does not depend on P and K has a part.
    `misfit` is the largest factor between a measurement and its fit.
    """
    rows = []
    for kind, cells in table[table.seconds >= least].groupby("kind", sort=False):
        logs = np.log(cells[["parameters", "examples", "seconds"]].to_numpy(float))
        varied = (np.ptp(logs[:, :2], axis=0) > 0).all()
        if len(cells) < 4 or not varied:
            continue
        design = np.column_stack([np.ones(len(cells)), logs[:, :2]])
        found, *_ = np.linalg.lstsq(design, logs[:, 2], rcond=None)
        misfit = np.exp(np.abs(design @ found - logs[:, 2]).max())
        rows.append((kind, *found[1:], math.exp(found[0]), misfit, len(cells)))
    names = ["kind", "exponent of P", "exponent of K", "c", "misfit", "cells"]
    return pd.DataFrame(rows, columns=names)


def vectors(table: pd.DataFrame) -> pd.DataFrame:
    """The peak memory in vectors of length P, by kind, at its largest P and fewest examples."""
    found = table.assign(vectors=table.peak / (BYTES * table.parameters))
    found = found.sort_values(["parameters", "examples"], ascending=[False, True])
    chosen = found.drop_duplicates("kind")[["kind", "parameters", "examples", "vectors"]]
    return chosen.set_index("kind").reindex(table.kind.unique()).reset_index()


def on_paper(
    table: pd.DataFrame,
    parameters: float,
    examples: float,
    cluster: Cluster,
    batch: int = 2**16,
    large: tuple[float, float] = LARGE,
) -> pd.DataFrame:
    """An epoch and an iteration on a cluster: seconds of computing and of exchange, memory, ratio.

    `passes` are the median of those measured with at least `large` parameters and examples,
    `fewest` and `most` their range in gradients, of 3 passes each; vectors are those at the largest
    P of each kind. Seconds are those of 6 P K operations a gradient, not of the fitted `exponents`:
    these are of one core, and below 1 where it is not busy with small products, or above it with
    few examples, where vectors take longer than passes; neither is so for a large network and many
    examples.
    Each evaluation of the second phase has one all-reduce (of a loss alone it is a few bytes), an
    epoch of Adam one for each of its mini-batches. `memory` are the bytes of a device that holds
    all vectors, the model and Adam's moments where they are used; `fits` says whether it has them.
    `over_adam` is the time in epochs of Adam with the exchange, which is not hidden behind the
    computing (without it, it is the number of gradients); `balance` are the examples at which an
    iteration's exchange takes as long as its computing (an epoch of Adam has none: both grow with
    them).
    """
    held = vectors(table).set_index("kind").vectors
    seen = table[(table.parameters >= large[0]) & (table.examples >= large[1])]
    rows = []
    for kind, cells in seen.groupby("kind", sort=False):
        passes, fewest, most = cells.passes.agg(["median", "min", "max"])
        gradients = math.ceil(examples / batch) if kind == ADAM else _gradients(kind, passes)
        size = BYTES if kind == ADAM else 8  # sums of the second phase are in float64
        compute = passes / 3 * cluster.pass_seconds(parameters, examples)
        exchange = gradients * cluster.reduce_seconds(parameters, size)
        memory = (1 + held[kind]) * BYTES * parameters
        fits, balance = memory <= cluster.memory, examples * exchange / compute
        balance = math.nan if kind == ADAM else balance
        gradients = [of / GRADIENT_PASSES for of in (fewest, most)]
        row = *gradients, compute, exchange, memory, fits, balance
        rows.append((kind, passes, *row))
    names = ["kind", "passes", "fewest", "most", "computing", "exchange", "memory", "fits"]
    names.append("balance")
    found = pd.DataFrame(rows, columns=names)
    if ADAM not in set(found.kind):
        raise InputError("table", f"one of {', '.join(found.kind)}", f"one with {ADAM!r}, too")
    adam = found[found.kind == ADAM].iloc[0]
    return found.assign(
        over_adam=(found.computing + found.exchange) / (adam.computing + adam.exchange)
    )


def to_read(paper: pd.DataFrame) -> pd.DataFrame:
    """What `on_paper` found with units, a range where passes have one, and words for `fits`."""
    balance = [about(examples) if examples > 0 else "–" for examples in paper.balance]
    return pd.DataFrame(
        {
            "kind": paper.kind,
            "computing, s": paper.computing.map(_plain),
            "exchange, s": paper.exchange.map(_plain),
            "memory, GB": (paper.memory / 1e9).map("{:.0f}".format),
            "fits": paper.fits.map({True: "yes", False: "no"}),
            "balance, examples": balance,
            "computing / Adam's": [epochs_text(row) for row in paper.itertuples()],
            "both / Adam's": paper.over_adam.map(_plain),
        }
    )


def epochs_text(row: Any, iterations: int = 1) -> str:
    """Some iterations of a row of `on_paper` in epochs of Adam by computing alone, with a range."""
    return " to ".join(dict.fromkeys(_plain(iterations * of) for of in (row.fewest, row.most)))


def about(number: float) -> str:
    """A large number to two digits."""
    return f"{float(f'{number:.2g}'):,.0f}"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _gradients(kind: str, passes: float) -> float:
    """Gradients in an iteration: one; for products of Levenberg–Marquardt one in three passes."""
    return max(1.0, passes / GRADIENT_PASSES) if kind == GAUSS_NEWTON else 1.0
