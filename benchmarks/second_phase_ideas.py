"""Ideas for the second phase that the library does not have, beside L-BFGS and Adam.

From one Adam prefix each, at equal passes (a forward is 1, a backward 2 more, and work on a part of
the training set counts as that part): gradients on a growing sample, truncated Gauss–Newton, and a
start from averaged or decayed Adam weights. The problems are networks of the paper on the digits,
and a smooth full-batch regression in float64. It leaves `curves.csv`, the training loss against the
passes after the swap; what that holds is not run again.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from gauss_newton import GaussNewton, LevenbergMarquardt
from torch import Tensor, nn

from twophase.adam import AdamSettings
from twophase.cg import CGSettings, Status, iterate
from twophase.directions import Memory
from twophase.examples import Examples
from twophase.experiments import provenance
from twophase.experiments.files import write_atomically, write_json
from twophase.objective import FullBatch, evaluate, norm
from twophase.preconditioner import from_moments
from twophase.problems import images, networks
from twophase.training import GRADIENT_PASSES, Trainer

REGRESSION = "tanh-regression"
COLUMNS = ("problem", "method", "seed", "swap_epoch", "passes", "seconds", "loss")
ROWS = 60  # of a curve, about
KEY = ["problem", "method", "seed", "swap_epoch"]
# The library's default when the ideas were measured.
SETTINGS = CGSettings(direction="lbfgs", history=100)


@dataclass
class Start:
    """Adam at the swap: the trainer, and its weights [epochs, P] after each epoch so far."""

    trainer: Trainer
    weights: Tensor
    seed: int

    @property
    def objective(self) -> FullBatch:
        return self.trainer.objective

    @property
    def inverse(self) -> Tensor:
        """The preconditioner that Adam leaves now."""
        return from_moments(self._adam.optimizer, self.objective.vector.parameters)

    def epoch(self) -> Tensor:
        """The weights after one more epoch of Adam, 3 passes; nothing is measured."""
        self._adam.epoch(self.objective.inputs, self.objective.targets)
        return self.objective.vector.read()

    def scale_rate(self, factor: float) -> None:
        """Multiply Adam's learning rate."""
        for group in self._adam.optimizer.param_groups:
            group["lr"] *= factor

    @property
    def _adam(self):
        return self.trainer.phases["adam"].adam


# Passes since the swap, the weights [P], and their training loss where the method knows it.
Reached = tuple[float, Tensor, float | None]
Method = Callable[[Start, float], Iterator[Reached]]


def adam(start: Start, budget: float) -> Iterator[Reached]:
    """Adam goes on."""
    for epoch in range(1, int(budget) // GRADIENT_PASSES + 1):
        yield GRADIENT_PASSES * epoch, start.epoch(), None


def averaged_adam(start: Start, budget: float, part: float) -> Iterator[Reached]:
    """Adam goes on, looked at in the mean of the last part of all its epochs."""
    weights = list(start.weights)
    for epoch in range(1, int(budget) // GRADIENT_PASSES + 1):
        weights.append(start.epoch())
        yield GRADIENT_PASSES * epoch, _mean(weights, part), None


def second_phase(start: Start, budget: float) -> Iterator[Reached]:
    """L-BFGS, preconditioned by Adam's moments, also after full batches."""
    yield from _iterations(start.objective, start.objective.vector.read(), start.inverse, budget)


def from_average(start: Start, budget: float, part: float) -> Iterator[Reached]:
    """L-BFGS from the mean of the weights after the last part of the prefix' epochs."""
    x = _mean(start.weights, part)
    yield from _iterations(start.objective, x, start.inverse, budget)


def from_decay(start: Start, budget: float, epochs: int) -> Iterator[Reached]:
    """L-BFGS after further epochs of Adam, the rate of which falls linearly towards 0."""
    for epoch in range(1, epochs + 1):
        factor = (epochs + 1 - epoch) / (epochs + 2 - epoch)
        start.scale_rate(factor)
        x = start.epoch()
        yield GRADIENT_PASSES * epoch, x, None
    spent = GRADIENT_PASSES * epochs
    yield from _later(spent, _iterations(start.objective, x, start.inverse, budget - spent))


def growing_sample(
    start: Start, budget: float, shares: Sequence[float], iterations: int | None
) -> Iterator[Reached]:
    """L-BFGS on a growing part of the examples, at last on all of them.

    A part ends after `iterations`; None: where the norm of its gradient is no longer above that of
    its difference from the full one at the part's start, which costs 3 passes. The pairs of L-BFGS
    stay.
    """
    objective, inverse, spent = start.objective, start.inverse, 0.0
    generator = torch.Generator().manual_seed(start.seed)
    order = torch.randperm(len(objective.inputs), generator=generator)
    x, memory = objective.vector.read(), None
    for share in shares:
        part = _part(objective, order[: round(share * len(order))])
        first, point = part.passes.total, evaluate(part, x)
        smallest = 0.0
        if iterations is None:
            difference = evaluate(objective, x).gradient - point.gradient
            spent += GRADIENT_PASSES
            smallest = norm(difference)
        memory = _carried(memory)
        before, done, status = spent, 0, Status.MOVED
        while status is Status.MOVED and norm(point.gradient) > smallest:
            spent = before + share * (part.passes.total - first)
            if done == iterations or spent >= budget:
                break
            iteration = iterate(part, point, memory, SETTINGS, inverse)
            status, memory = iteration.status, iteration.memory
            point = iteration.point or evaluate(part, iteration.x)
            done += 1
            yield before + share * (part.passes.total - first), point.x, None
        spent, x = before + share * (part.passes.total - first), point.x
    yield from _later(spent, _iterations(objective, x, inverse, budget - spent, _carried(memory)))


def gauss_newton(start: Start, budget: float, **settings) -> Iterator[Reached]:
    """Truncated Gauss–Newton with Adam's preconditioner."""
    steps = LevenbergMarquardt(**settings)(start.objective, start.inverse, budget, start.seed)
    for passes, point in steps:
        yield passes, point.x, point.value


def torchs_lbfgs(start: Start, budget: float) -> Iterator[Reached]:
    """torch.optim.LBFGS, history 100, strong Wolfe; a step every 50 iterations."""
    objective, parameters = start.objective, start.objective.vector.parameters
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=50,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=100,
        line_search_fn="strong_wolfe",
    )
    spent = 0

    def closure() -> Tensor:
        nonlocal spent
        spent += GRADIENT_PASSES
        optimizer.zero_grad()
        loss = objective.loss(objective.model(objective.inputs), objective.targets)
        loss.backward()
        return loss

    while spent < budget:
        optimizer.step(closure)
        yield spent, objective.vector.read(), None


SHARES = (0.25, 0.5)
BASELINES: dict[str, Method] = {"Adam goes on": adam, "L-BFGS, preconditioned": second_phase}
IDEAS: dict[str, dict[str, Method]] = {
    "baselines": BASELINES,
    "growing": {
        "growing sample, by gradients": partial(growing_sample, shares=SHARES, iterations=None),
    },
    "growing-fixed": {
        "growing sample, 20 iterations each": partial(growing_sample, shares=SHARES, iterations=20),
    },
    "gauss-newton": {"Gauss-Newton, 512 examples": partial(gauss_newton, examples=512)},
    "gauss-newton-settings": {
        "Gauss-Newton, 256 examples": partial(gauss_newton, examples=256),
        "Gauss-Newton, 1024 examples": partial(gauss_newton, examples=1024),
        "Gauss-Newton, all examples": gauss_newton,
        "Gauss-Newton, 512 examples, more damping": partial(
            gauss_newton, examples=512, damping=1.0
        ),
        "Gauss-Newton, 512 examples, residual 0.01": partial(
            gauss_newton, examples=512, residual=0.01
        ),
    },
    "averaged": {
        "L-BFGS from mean of last 20 %": partial(from_average, part=0.2),
    },
    "averaged-parts": {
        "L-BFGS from mean of last 10 %": partial(from_average, part=0.1),
        "L-BFGS from mean of last 50 %": partial(from_average, part=0.5),
    },
    "averaged-adam": {"Adam goes on, mean of last 20 %": partial(averaged_adam, part=0.2)},
    "decayed": {"L-BFGS after a decay of 30 epochs": partial(from_decay, epochs=30)},
    "torch": {"torch L-BFGS": torchs_lbfgs},
}


def trainer_for(network: str, seed: int) -> Trainer:
    """Adam before its first epoch, on the CPU."""
    if network == REGRESSION:
        return _regression(seed)
    digits = images.load("digits")
    model = networks.build(network, digits.channels, digits.classes, seed)
    return Trainer(model, digits.train, strategy="adam", seed=seed, device="cpu")


def _regression(seed: int) -> Trainer:
    """sin(π a) cos(π b) on 1,024 points by a network 2-32-32-1 with tanh, in full batches."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        model = nn.Sequential(*layers).double()
    inputs = 2 * torch.rand(1024, 2, generator=generator, dtype=torch.float64) - 1
    angles = math.pi * inputs
    targets = (angles[:, :1].sin() * angles[:, 1:].cos()).contiguous()
    return Trainer(
        model,
        Examples(inputs, targets),
        strategy="adam",
        adam=AdamSettings(batch_size=len(inputs)),
        seed=seed,
        device="cpu",
    )


def prefix(network: str, seed: int, swap: int, folder: Path) -> dict:
    """State and weights after each epoch of Adam up to the swap; from the folder if it is there."""
    path = folder / f"{network}-seed-{seed}-swap-{swap}.pt"
    if not path.exists():
        trainer, weights = trainer_for(network, seed), []
        for _ in range(swap):
            trainer.epoch()
            weights.append(trainer.objective.vector.read())
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"state": trainer.state_dict(), "weights": torch.stack(weights)}, path)
    return torch.load(path)


def branch(network: str, seed: int, kept: dict) -> Start:
    """A trainer of its own at the swap."""
    trainer = trainer_for(network, seed)
    trainer.load_state_dict(kept["state"])
    return Start(trainer, kept["weights"], seed)


def curve(start: Start, method: Method, budget: float) -> list[tuple[float, float, float]]:
    """Rows (passes, seconds, loss); what only this record needs counts neither as pass nor time."""
    objective = start.objective
    monitor = FullBatch(objective.model, objective.loss, objective.inputs, objective.targets)

    def row(passes: float, seconds: float, x: Tensor, loss: float | None) -> tuple:
        own = objective.vector.read()
        loss = monitor.value(x) if loss is None else loss
        objective.vector.write(own)
        return passes, seconds, loss

    rows, due, seconds = [row(0.0, 0.0, objective.vector.read(), None)], 0.0, 0.0
    began = time.perf_counter()
    for passes, x, loss in method(start, budget):
        seconds += time.perf_counter() - began
        latest = passes, seconds, x, loss
        if passes >= due:
            rows.append(row(*latest))
            due = passes + budget / ROWS
        began = time.perf_counter()
    if latest[0] > rows[-1][0]:
        rows.append(row(*latest))
    return rows


def cost_of_products(start: Start) -> dict[str, float]:
    """Seconds for the graph and for a product of all examples, over a third of a gradient's."""
    objective = start.objective
    x = objective.vector.read()
    third = _best_seconds(lambda: objective.value_and_gradient(x)) / 3

    def graph() -> GaussNewton:
        return GaussNewton(objective.model, objective.vector, objective.inputs)

    product = graph()
    seconds = {"graph": _best_seconds(graph), "product": _best_seconds(lambda: product(x))}
    return {name: round(value / third, 2) for name, value in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ideas", nargs="+", choices=IDEAS, default=list(IDEAS))
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=[*networks.MODELS, REGRESSION],
        default=["vit-nomlp-wkewq-wvwo1", "vit-mlp"],
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--swap", nargs="+", type=int, default=[100], help="epochs of Adam before")
    parser.add_argument("--passes", type=int, default=600, help="after the swap")
    parser.add_argument("--out", type=Path, default=Path("reports/reference/second-phase-ideas"))
    parser.add_argument(
        "--prefixes", type=Path, default=Path("reports/second-phase-ideas"), help="Adam's weights"
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for network in chosen.networks:
        for swap in chosen.swap:
            for seed in chosen.seeds:
                _run(network, seed, swap, chosen, arguments or sys.argv[1:])


def _run(
    network: str, seed: int, swap: int, chosen: argparse.Namespace, arguments: Sequence[str]
) -> None:
    """All chosen methods from one prefix that are not in the table yet."""
    path = chosen.out / "curves.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    problem = network if network == REGRESSION else f"digits {network}"
    done = set(table[KEY].itertuples(index=False, name=None))
    kept = None
    for idea in chosen.ideas:
        for method, steps in IDEAS[idea].items():
            key = (problem, method, seed, swap)
            if key in done:
                continue
            kept = kept or prefix(network, seed, swap, chosen.prefixes)
            began = time.perf_counter()
            rows = curve(branch(network, seed, kept), steps, chosen.passes)
            new = pd.DataFrame(
                [(*key, round(p, 1), round(s, 2), float(f"{v:.6g}")) for p, s, v in rows],
                columns=COLUMNS,
            )
            table = new if table.empty else pd.concat([table, new], ignore_index=True)
            write_atomically(path, table.to_csv(index=False))
            _note(chosen.out, arguments, time.perf_counter() - began)
            print(*key, f"{rows[-1][0]:.0f} passes, loss {rows[-1][2]:.3g}", flush=True)
    if kept is not None and "gauss-newton" in chosen.ideas:
        _note(chosen.out, arguments, 0.0, {problem: cost_of_products(branch(network, seed, kept))})


def _note(
    folder: Path, arguments: Sequence[str], seconds: float, costs: dict | None = None
) -> None:
    """Add a run to the provenance: commands, with the seconds of all their runs together."""
    path = folder / "provenance.json"
    facts = json.loads(path.read_text()) if path.exists() else {"commands": [], "costs": {}}
    command = {
        "command": " ".join(["python", "benchmarks/second_phase_ideas.py", *arguments]),
        "revision": provenance.git_revision(),
    }
    last = facts["commands"][-1] if facts["commands"] else {}
    if not command.items() <= last.items():
        last = command | {"seconds": 0}
        facts["commands"].append(last)
    last["seconds"] = round(last["seconds"] + seconds, 1)
    last["time"] = provenance.now()
    facts["costs"] |= costs or {}
    facts["versions"] = provenance.versions()
    facts["hardware"] = f"{platform.machine()}, {os.cpu_count()} cores, one thread"
    write_json(path, facts)


def _iterations(
    objective: FullBatch, x: Tensor, inverse: Tensor, budget: float, memory: Memory | None = None
) -> Iterator[Reached]:
    """L-BFGS from x on, until it ends or the passes are spent."""
    first, point = objective.passes.total, evaluate(objective, x)
    spent = objective.passes.total - first
    yield spent, point.x, point.value
    while spent < budget:
        iteration = iterate(objective, point, memory, SETTINGS, inverse)
        if iteration.status is not Status.MOVED:
            return
        memory = iteration.memory
        point = iteration.point or evaluate(objective, iteration.x)
        spent = objective.passes.total - first
        yield spent, point.x, point.value


def _part(objective: FullBatch, chosen: Tensor) -> FullBatch:
    """The same model and loss on the chosen examples."""
    inputs, targets = objective.inputs[chosen], objective.targets[chosen]
    return FullBatch(objective.model, objective.loss, inputs, targets, objective.chunk_size)


def _carried(memory: Memory | None) -> Memory | None:
    """L-BFGS's pairs for another objective; a last step of 0 adds none."""
    if memory is None or not memory.pairs:
        return None
    still = torch.zeros_like(memory.x)
    return Memory(memory.x, memory.gradient, still, step=0.0, slope=0.0, pairs=memory.pairs)


def _later(spent: float, reached: Iterator[Reached]) -> Iterator[Reached]:
    """The same after passes spent before."""
    for passes, x, loss in reached:
        yield spent + passes, x, loss


def _mean(weights: Tensor | list[Tensor], part: float) -> Tensor:
    """The mean of the last part of the rows."""
    last = weights[-max(1, round(part * len(weights))) :]
    return (torch.stack(last) if isinstance(last, list) else last).mean(dim=0)


def _best_seconds(work: Callable[[], object], times: int = 4) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


if __name__ == "__main__":
    main()
