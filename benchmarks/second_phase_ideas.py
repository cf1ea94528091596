"""Ideas for the second phase that the library does not have, beside L-BFGS and Adam.

From one Adam prefix each, at equal passes (a forward is 1, a backward 2 more, and work on a part of
the training set counts as that part): gradients on a growing sample, truncated Gauss–Newton, and a
start from averaged or decayed Adam weights. The problems are networks of the paper on the digits,
and a smooth full-batch regression in float64. It leaves `curves.csv`, the lowest training loss
against the passes after the swap; what that holds is not run again.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, product, starmap
from pathlib import Path

import pandas as pd
import torch
from gauss_newton import TruncatedGaussNewton, cost_of_products, left_by_adam
from torch import Tensor, nn

from twophase import AdamMoments, Descent, LBFGSDirection, StrongWolfe, Trainer, mse
from twophase.directions import State
from twophase.examples import Dataset, Examples
from twophase.experiments import branches, comparison
from twophase.experiments.competitors import AdamGoesOn, Competitor, Journal, TorchLBFGS
from twophase.experiments.config import RunConfig
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.provenance import command
from twophase.objective import GRADIENT_PASSES, Point, evaluate, norm
from twophase.objectives.full_batch import FullBatch
from twophase.problems import networks
from twophase.problems.problem import DTYPES, ImageProblem, Task
from twophase.record import ADAM
from twophase.second_phase import Status, iterate
from twophase.settings import Settings

KEY = ["problem", "method", "seed", "swap_epoch"]
COLUMNS = (*KEY, "passes", "seconds", "loss")
# The library's second phase when the ideas were measured, preconditioned after full batches, too.
LBFGS = Descent(LBFGSDirection(history_size=100), StrongWolfe(), AdamMoments(min_batches=1))


@dataclass(frozen=True)
class TanhRegression(Settings):
    """sin(π a) cos(π b) on 1,024 points by a network 2-32-32-1 with tanh, in full batches."""

    name = "tanh-regression"
    full_batch = True

    def load(self, seed: int, dtype: str, device: torch.device, root: Path | None) -> Task:
        """The network with the weights of a seed, and the points that the seed draws."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = (nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
            model = nn.Sequential(*layers).to(DTYPES[dtype])
        inputs = 2 * torch.rand(1024, 2, generator=generator, dtype=torch.float64) - 1
        a, b = (math.pi * inputs).split(1, dim=1)
        targets = (a.sin() * b.cos()).contiguous()
        return Task(model, Dataset(self.name, Examples(inputs, targets), None, classes=1), mse)


@dataclass(frozen=True)
class FromAverage(Competitor):
    """L-BFGS from the mean of the weights after the last part of the prefix' epochs."""

    prefix: RunConfig
    part: float

    def run(self, trainer: Trainer, journal: Journal) -> None:
        with journal.paused():
            weights = trajectory(self.prefix)
        _descend(trainer, journal, self.mean(weights))

    def mean(self, weights: Sequence[Tensor]) -> Tensor:
        """The mean [P] of the last part of some weights [P]."""
        return torch.stack(weights[-max(1, round(self.part * len(weights))) :]).mean(dim=0)


@dataclass(frozen=True)
class AveragedAdam(FromAverage):
    """Adam goes on, looked at in the mean of the last part of all its epochs."""

    def run(self, trainer: Trainer, journal: Journal) -> None:
        with journal.paused():
            weights = list(trajectory(self.prefix))
        for epoch in count(1):
            weights.append(_epoch(trainer))
            _look(trainer, journal, GRADIENT_PASSES * epoch, self.mean(weights))


@dataclass(frozen=True)
class FromDecay(Competitor):
    """L-BFGS after further epochs of Adam, the rate of which falls linearly towards 0."""

    epochs: int = 30

    def run(self, trainer: Trainer, journal: Journal) -> None:
        for epoch in range(1, self.epochs + 1):
            for group in trainer.phases[ADAM].adam.optimizer.param_groups:
                group["lr"] *= (self.epochs + 1 - epoch) / (self.epochs + 2 - epoch)
            x = _epoch(trainer)
            _look(trainer, journal, GRADIENT_PASSES * epoch, x)
        _descend(trainer, journal, x, GRADIENT_PASSES * self.epochs)


@dataclass(frozen=True)
class GrowingSample(Competitor):
    """L-BFGS on a growing part of the examples, at last on all of them; its pairs stay.

    A part ends after `iterations`; None: where the norm of its gradient is no longer above that of
    its difference from the full one at the part's start, which costs 3 passes.
    """

    iterations: int | None = None
    seed: int = 0
    shares: tuple[float, ...] = (0.25, 0.5)

    def run(self, trainer: Trainer, journal: Journal) -> None:
        full, state, spent = trainer.objective, None, 0.0
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(full.inputs), generator=generator)
        x, inverse = full.vector.read(), left_by_adam(trainer)
        for share in self.shares:
            chosen = order[: round(share * len(order))]
            examples = full.inputs[chosen], full.targets[chosen]
            part = FullBatch(full.model, full.loss, *examples, full.chunk_size)
            point, smallest = evaluate(part, x), 0.0
            if self.iterations is None:
                smallest = norm(evaluate(full, x).gradient - point.gradient)
                spent += GRADIENT_PASSES
            for done, reached in enumerate(_steps(part, point, state, inverse)):
                point, state = reached[0], _carried(reached[1])
                _look(trainer, journal, spent + share * part.passes.total, point.x)
                if done == self.iterations or norm(point.gradient) <= smallest:
                    break
            spent, x = spent + share * part.passes.total, point.x
        _descend(trainer, journal, x, spent, state)


def ideas(prefix: RunConfig) -> dict[str, dict[str, Descent | Competitor]]:
    """All methods that may go on from a prefix: for each name of `--ideas` those with a label."""
    newton = partial(TruncatedGaussNewton, seed=prefix.seed)
    return {
        "baselines": {"Adam goes on": AdamGoesOn(), "L-BFGS, preconditioned": LBFGS},
        "growing": {"growing sample, by gradients": GrowingSample(None, prefix.seed)},
        "growing-fixed": {"growing sample, 20 iterations each": GrowingSample(20, prefix.seed)},
        "gauss-newton": {"Gauss-Newton, 512 examples": newton(512)},
        "gauss-newton-settings": {
            "Gauss-Newton, 256 examples": newton(256),
            "Gauss-Newton, 1024 examples": newton(1024),
            "Gauss-Newton, all examples": newton(),
            "Gauss-Newton, 512 examples, more damping": newton(512, damping=1.0),
            "Gauss-Newton, 512 examples, residual 0.01": newton(512, residual=0.01),
        },
        "averaged": {"L-BFGS from mean of last 20 %": FromAverage(prefix, 0.2)},
        "averaged-parts": {
            "L-BFGS from mean of last 10 %": FromAverage(prefix, 0.1),
            "L-BFGS from mean of last 50 %": FromAverage(prefix, 0.5),
        },
        "averaged-adam": {"Adam goes on, mean of last 20 %": AveragedAdam(prefix, 0.2)},
        "decayed": {"L-BFGS after a decay of 30 epochs": FromDecay(30)},
        "torch": {"torch L-BFGS": TorchLBFGS(100)},
    }


def start(network: str, swap: int, seed: int) -> RunConfig:
    """The prefix of a network on the digits, or of the regression."""
    if network == TanhRegression.name:
        return comparison.prefix(TanhRegression(), swap, seed, dtype="float64")
    return comparison.prefix(ImageProblem("digits", network), swap, seed)


def fresh(prefix: RunConfig) -> Trainer:
    """A trainer before the first epoch of a prefix."""
    cpu = torch.device("cpu")
    return prefix.trainer(prefix.problem.load(prefix.seed, prefix.dtype, cpu, None), cpu)


@cache
def trajectory(prefix: RunConfig) -> tuple[Tensor, ...]:
    """The weights [P] after each epoch, trained once more: runs keep the last ones only."""
    trainer = fresh(prefix)
    return tuple(_epoch(trainer) for _ in range(prefix.epochs))


def curves(found: pd.DataFrame) -> pd.DataFrame:
    """What a comparison found, as rows of `curves.csv`."""
    names = found.problem.str.cat(found.model, sep=" ").str.strip()
    losses = found.loss.map("{:.6g}".format).astype(float)
    table = found.assign(problem=names, loss=losses, passes=found.passes_spent.astype(float))
    return table[list(COLUMNS)].round({"passes": 1, "seconds": 2})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names, known = list(ideas(RunConfig())), [*networks.MODELS, TanhRegression.name]
    usual = ["vit-nomlp-wkewq-wvwo1", "vit-mlp"]
    parser.add_argument("--ideas", nargs="+", choices=names, default=names)
    parser.add_argument("--networks", nargs="+", choices=known, default=usual)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--swap", nargs="+", type=int, default=[100], help="epochs of Adam before")
    parser.add_argument("--passes", type=int, default=600, help="after the swap")
    parser.add_argument("--out", type=Path, default=Path("reports/reference/second-phase-ideas"))
    parser.add_argument("--prefixes", type=Path, default=Path("reports/second-phase-ideas"))
    chosen, began = parser.parse_args(arguments), time.perf_counter()
    path, notes = chosen.out / "curves.csv", chosen.out / "provenance.json"
    before = [pd.read_csv(path)] if path.exists() else []
    there = {key for table in before for key in table[KEY].itertuples(index=False, name=None)}
    todo, costs = [], {}
    for prefix in starmap(start, product(chosen.networks, chosen.swap, chosen.seeds)):
        problem, *key = prefix.problem.name, prefix.seed, prefix.epochs
        new = {k: v for idea in chosen.ideas for k, v in ideas(prefix)[idea].items()}
        new = {k: v for k, v in new.items() if (problem, k, *key) not in there}
        entries = comparison.variants(prefix, new, chosen.passes)
        todo += [entry for entry in entries if entry.method in new]
        if any(isinstance(method, TruncatedGaussNewton) for method in new.values()):
            costs[problem] = cost_of_products(fresh(prefix).objective)
    if not todo:
        return
    found = curves(comparison.run(todo, branches.Place(chosen.prefixes, device="cpu")))
    # before the results change the tree
    facts = comparison.facts([], "cpu", seconds=time.perf_counter() - began)
    kept = json.loads(notes.read_text()) if notes.exists() else {"commands": [], "costs": {}}
    kept["commands"].append(facts | {"command": command("second_phase_ideas", arguments)})
    kept["costs"] |= costs
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, pd.concat([*before, found]).to_csv(index=False))
    write_json(notes, kept)


def _epoch(trainer: Trainer) -> Tensor:
    """The weights [P] after one more epoch of Adam, 3 passes; nothing is measured."""
    trainer.phases[ADAM].adam.epoch(trainer.objective)
    return trainer.objective.vector.read()


def _look(trainer: Trainer, journal: Journal, spent: float, x: Tensor) -> None:
    """Measure the loss at x [P], where the curve lacks a point; that counts for nobody."""
    if journal.due(spent, GRADIENT_PASSES):
        with journal.paused():
            own = trainer.objective.vector.read()
            loss = trainer.objective.value(x)
            trainer.objective.vector.write(own)
        journal.saw(spent, loss, x)


def _descend(trainer: Trainer, journal: Journal, x: Tensor, spent=0.0, state=None) -> None:
    """L-BFGS from x [P] on, after passes spent before, until it ends or the journal ends it."""
    objective, before = trainer.objective, trainer.objective.passes.total - spent
    for point, _ in _steps(objective, evaluate(objective, x), state, left_by_adam(trainer)):
        journal.saw(objective.passes.total - before, point.value, point.x)


def _steps(part: FullBatch, point: Point, state: State | None, inverse: Tensor) -> Iterator:
    """The points of L-BFGS, and the state that it leaves at each, until it ends."""
    status = Status.MOVED
    while status is Status.MOVED:
        yield point, state
        iteration = iterate(part, point, state, LBFGS, inverse)
        status, state = iteration.status, iteration.state
        point = iteration.point or evaluate(part, iteration.x)


def _carried(state: State | None) -> State | None:
    """L-BFGS's pairs for another objective; a last step of 0 adds none."""
    if state is None or not state.memory:
        return None
    still = torch.zeros_like(state.x)
    return State(state.x, state.gradient, still, step=0.0, slope=0.0, memory=state.memory)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
