"""Seconds of a full-batch gradient and its like: one process, several, and one with more threads.

OMP_NUM_THREADS=1 python benchmarks/processes.py

Each way is a launch of its own, in turns, so that what else the machine does meets all of them. A
launch warms up, then times each kind of work; its figure is the fastest of the repetitions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from twophase import LeastSquares, Term, derivatives, mse
from twophase.adam import Adam, AdamSettings
from twophase.distributed import processes
from twophase.distributed.launch import joined
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.provenance import of_script
from twophase.objectives import FullBatch
from twophase.problems import networks

OUT = Path(__file__).resolve().parent.parent / "reports" / "reference" / "processes"
MODEL, IMAGES, POINTS = "vgg5-max-relu", 8192, 20_000
# Processes, and threads of each.
WAYS = [(1, 1), (2, 1), (1, 2)]


def work(scale: float) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, by name; `scale` makes the problems smaller, for a test."""
    generator = torch.Generator().manual_seed(0)
    images, points = int(IMAGES * scale), int(POINTS * scale)
    model = networks.build(MODEL, channels=1, classes=10, seed=0)
    inputs = torch.randn(images, 1, 32, 32, generator=generator)
    targets = torch.randint(10, (images,), generator=generator)
    examples = FullBatch(model, mse, inputs, targets)
    x = examples.vector.read()
    yield f"gradient, {MODEL}", lambda: examples.value_and_gradient(x)
    yield f"loss, {MODEL}", lambda: examples.value(x)
    adam = Adam(model.parameters(), AdamSettings(), torch.Generator().manual_seed(0))
    yield f"Adam's epoch, {MODEL}", lambda: adam.epoch(examples)
    problem = equation(points, generator)
    y = problem.vector.read()

    def jacobian() -> object:
        problem._last = None  # the last one is kept
        return problem.linearize(y)

    yield "gradient, Poisson's equation", lambda: problem.value_and_gradient(y)
    yield "J and J'J, Poisson's equation", jacobian


def equation(count: int, generator: torch.Generator) -> LeastSquares:
    """−Δu = f in two dimensions, on a network of 609 parameters in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), *_layers(), nn.Linear(16, 1)).double()
    points = torch.rand(count, 2, generator=generator, dtype=torch.float64)

    def residual(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
        return derivatives(model, points, order=2)[2].sum(dim=(1, 2)) + points.prod(dim=1).sin()

    return LeastSquares(model, [Term(residual, points)])


def _layers() -> Iterator[nn.Module]:
    for _ in range(2):
        yield from (nn.Linear(16, 16), nn.Tanh())


def timed(scale: float, repetitions: int) -> dict[str, float]:
    """The fewest seconds of each kind of work in this process."""
    found = {}
    for name, act in work(scale):
        act()
        seconds = []
        for _ in range(repetitions):
            began = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - began)
        found[name] = min(seconds)
    return found


def launch(count: int, threads: int, scale: float, repetitions: int) -> dict[str, float]:
    """`timed` in the first of some processes, each with so many threads."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={count}", __file__, "--worker", str(out)]
        command += ["--scale", str(scale), "--repetitions", str(repetitions)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        # on a busy machine processes may fail to find each other
        for _ in range(2):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if not done.returncode:
                break
        else:
            sys.exit(done.stderr)
        return json.loads(out.read_text())


def as_rows(found: dict[str, float], turn: int, count: int, threads: int) -> list[dict]:
    way = {"turn": turn, "processes": count, "threads": threads}
    return [way | {"work": name, "seconds": seconds} for name, seconds in found.items()]


def speedups(table: pd.DataFrame) -> pd.DataFrame:
    """By how much each way is faster than one process of one thread: median and range of turns."""
    keys = ["work", "turn"]
    alone = table[table.processes.eq(1) & table.threads.eq(1)].set_index(keys).seconds
    others = table[table.processes.gt(1) | table.threads.gt(1)].set_index(keys)
    faster = others.assign(faster=alone.reindex(others.index) / others.seconds)
    return (
        faster.groupby(["work", "processes", "threads"], sort=False)
        .faster.agg(["median", "min", "max", "count"])
        .reset_index()
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of examples")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        with joined("cpu"):
            found = timed(options.scale, options.repetitions)
            if processes().rank == 0:
                write_json(options.worker, found)
        return
    facts, rows = of_script("processes", arguments), []
    for turn in range(options.turns):
        for count, threads in WAYS:
            found = launch(count, threads, options.scale, options.repetitions)
            rows += as_rows(found, turn, count, threads)
            print(f"turn {turn + 1}: {count} x {threads}", found, flush=True)
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "seconds.csv", table.to_csv(index=False, float_format="%.4g"))
    write_json(options.out / "provenance.json", facts | {"turns": options.turns})
    print(speedups(table).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
