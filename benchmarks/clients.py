"""One problem in every way to train it: DeepXDE, Lightning, a loop, `fit`, `minimize`.

−u'' = π² sin(πx) on (−1, 1) with u(±1) = 0: 64 points inside, 2 at the ends, a tanh network with
two layers of 32, float64, one thread. The loss is the mean squared residual plus the mean squared
value at the ends, as DeepXDE has it. The table has the relative L2 error against sin(πx) on 1,001
points, the passes over all points, and seconds.

    python benchmarks/clients.py --out reports/reference/clients

DeepXDE and Lightning are of the extra `test`.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

import twophase
from twophase.experiments.files import write_atomically, write_json
from twophase.experiments.provenance import of_script

os.environ.setdefault("DDE_BACKEND", "pytorch")
ADAM_STEPS, SECOND_STEPS, STEPS = 300, 300, 1000
SIZES = (1, 32), (32, 32), (32, 1)


class Outcome(NamedTuple):
    """What a way to train has come to."""

    error: float
    passes: int
    seconds: float


def network(seed: int) -> nn.Module:
    """1-32-32-1, tanh, Glorot's weights as in DeepXDE's default."""
    torch.manual_seed(seed)
    # drawn in float64, whatever torch's default is: DeepXDE sets that
    first, middle, last = (nn.Linear(*size, dtype=torch.float64) for size in SIZES)
    model = nn.Sequential(first, nn.Tanh(), middle, nn.Tanh(), last)
    for layer in model[::2]:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def points() -> tuple[Tensor, Tensor]:
    """64 points inside the interval, and its ends."""
    inside = torch.linspace(-1, 1, 66, dtype=torch.float64)[1:-1, None]
    return inside, torch.tensor([[-1.0], [1.0]], dtype=torch.float64)


def equation(model: Any, x: Tensor) -> Tensor:
    """−u'' − π² sin(πx)."""
    _, _, second = twophase.derivatives(model, x, order=2)
    return -second.sum(dim=1) - math.pi**2 * torch.sin(math.pi * x)


def terms() -> list[twophase.Term]:
    """The loss as a sum of squares."""
    inside, ends = points()
    return [twophase.Term(equation, inside), twophase.Term(lambda model, x: model(x), ends)]


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    """The same loss as a closure in plain torch."""
    inside, ends = points()

    def loss() -> Tensor:
        x = inside.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        residual = -second - math.pi**2 * torch.sin(math.pi * x)
        return residual.square().mean() + model(ends).square().mean()

    return loss


@torch.no_grad()
def error(model: Callable[[Tensor], Tensor]) -> float:
    """‖u − sin(πx)‖ / ‖sin(πx)‖ on 1,001 points."""
    x = torch.linspace(-1, 1, 1001, dtype=torch.float64)[:, None]
    exact = torch.sin(math.pi * x)
    return ((model(x) - exact).norm() / exact.norm()).item()


def backward(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A closure in the convention of torch's L-BFGS."""

    def closure() -> Tensor:
        model.zero_grad()
        found = loss()
        found.backward()
        return found

    return closure


def two_phase(model: nn.Module, closure: Callable[[], Tensor]) -> tuple[nn.Module, int]:
    """`TwoPhase` in a loop."""
    optimizer = twophase.TwoPhase(model.parameters())
    for _ in range(STEPS):
        optimizer.step(closure)
    optimizer.finish(closure)
    return model, optimizer.spent


def plain_loop(seed: int) -> tuple[nn.Module, int]:
    """`TwoPhase` in a loop, its closure without backward."""
    model = network(seed)
    return two_phase(model, loss_of(model))


def loop_of_torch(seed: int) -> tuple[nn.Module, int]:
    """`TwoPhase` in a loop, its closure with backward."""
    model = network(seed)
    return two_phase(model, backward(model, loss_of(model)))


def two_optimizers(seed: int) -> tuple[nn.Module, int]:
    """torch's Adam, then `SecondPhase`, in a loop."""
    model = network(seed)
    loss = loss_of(model)
    adam, second = torch.optim.Adam(model.parameters()), twophase.SecondPhase(model.parameters())
    for _ in range(ADAM_STEPS):
        adam.step(backward(model, loss))
    passes = 3 * ADAM_STEPS
    for _ in range(SECOND_STEPS):
        second.step(loss)
        passes += second.result.passes
    return model, passes


def torchs_lbfgs(seed: int) -> tuple[nn.Module, int]:
    """torch's Adam, then its L-BFGS, for as many steps of at most 20 iterations as need 3,000."""
    model, calls = network(seed), []
    closure = backward(model, loss_of(model))
    adam = torch.optim.Adam(model.parameters())
    for _ in range(ADAM_STEPS):
        adam.step(closure)
    lbfgs = torch.optim.LBFGS(
        model.parameters(), max_iter=20, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    while len(calls) < STEPS:
        lbfgs.step(lambda: (calls.append(1), closure())[1])
    return model, 3 * (ADAM_STEPS + len(calls))


def fit_closure(seed: int) -> tuple[nn.Module, int]:
    """`fit` with a closure."""
    model = network(seed)
    result = twophase.fit(model, loss_of(model), epochs=STEPS)
    return model, int(result.history.passes.sum())


def fit_squares(seed: int) -> tuple[nn.Module, int]:
    """`fit` with the loss as a sum of squares, for as many passes as the loop of full batches."""
    model = network(seed)
    settings = twophase.AdamSettings(batch_size=None)
    problem = twophase.LeastSquares(model, terms())
    result = twophase.fit(problem, epochs=STEPS, adam=settings)
    return model, int(result.history.passes.sum())


def minimize_squares(seed: int) -> tuple[nn.Module, int]:
    """`minimize`, the second phase alone, on the loss as a sum of squares."""
    model = network(seed)
    result = twophase.minimize(twophase.LeastSquares(model, terms()), passes=3 * STEPS)
    return model, result.passes


class _DeepXDE:
    """DeepXDE's own network, points and loss; its default float and device are global."""

    def __init__(self, seed: int):
        import deepxde as dde

        dde.config.set_default_float("float64")
        dde.config.set_random_seed(seed)
        interval = dde.geometry.Interval(-1, 1)

        def pde(x: Tensor, u: Tensor) -> Tensor:
            return -dde.grad.hessian(u, x) - math.pi**2 * torch.sin(math.pi * x)

        ends = dde.icbc.DirichletBC(interval, lambda x: 0, lambda x, on_boundary: on_boundary)
        data = dde.data.PDE(interval, pde, ends, num_domain=64, num_boundary=2)
        self.net = dde.nn.FNN([1, 32, 32, 1], "tanh", "Glorot normal")
        self.model = dde.Model(data, self.net)

    def train(self, optimizer: Any, iterations: int) -> None:
        self.model.compile(optimizer, lr=1e-3 if isinstance(optimizer, str) else None, verbose=0)
        self.model.train(iterations=iterations, display_every=iterations, verbose=0)


def deepxde_two(seed: int) -> tuple[nn.Module, int]:
    """DeepXDE: 300 iterations of its Adam, then 300 of `SecondPhase`."""
    own = _DeepXDE(seed)
    own.train("adam", ADAM_STEPS)
    second = twophase.SecondPhase(own.net.parameters())
    passes, step = [3 * ADAM_STEPS], second.step
    second.step = lambda closure: (step(closure), passes.append(second.result.passes))[0]
    own.train(second, SECOND_STEPS)
    return own.net, sum(passes)


def deepxde_one(seed: int) -> tuple[nn.Module, int]:
    """DeepXDE: 1,000 iterations of `TwoPhase`."""
    own = _DeepXDE(seed)
    optimizer = twophase.TwoPhase(own.net.parameters())
    own.train(optimizer, STEPS)
    return own.net, optimizer.spent


def lightning(seed: int) -> tuple[nn.Module, int]:
    """Lightning: 1,000 epochs of a full batch, automatic optimization, `TwoPhase`."""
    import logging

    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(seed)
            self.loss = loss_of(self.net)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.loss()

        def configure_optimizers(self) -> twophase.TwoPhase:
            return twophase.TwoPhase(self.parameters())

        def train_dataloader(self) -> list[int]:
            return [0]

    module = Module()
    trainer = pl.Trainer(
        max_epochs=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    optimizer = trainer.optimizers[0]
    return module.net, optimizer.spent


WAYS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "DeepXDE: Adam, then SecondPhase": deepxde_two,
    "DeepXDE: TwoPhase": deepxde_one,
    "Lightning: TwoPhase": lightning,
    "loop, plain closure: TwoPhase": plain_loop,
    "loop, closure with backward: TwoPhase": loop_of_torch,
    "loop: Adam, then SecondPhase": two_optimizers,
    "loop: Adam, then torch's L-BFGS": torchs_lbfgs,
    "fit with a closure": fit_closure,
    "fit with a sum of squares": fit_squares,
    "minimize, a sum of squares": minimize_squares,
}


def rows(seeds: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each way and seed."""
    for name in names:
        for seed in range(seeds):
            began = time.perf_counter()
            model, passes = WAYS[name](seed)
            found = Outcome(error(model), passes, time.perf_counter() - began)
            print(
                f"{name}, seed {seed}: {found.error:.2e}, {passes:,} passes, {found.seconds:.1f} s"
            )
            yield {"way": name, "seed": seed, **found._asdict()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all ways, or those that are named, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--way", nargs="+", default=list(WAYS), choices=list(WAYS))
    chosen = parser.parse_args(arguments)
    made = of_script("clients", arguments, ("deepxde", "lightning"))
    chosen.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows(chosen.seeds, chosen.way))
    write_atomically(chosen.out / "clients.csv", table.to_csv(index=False))
    write_json(chosen.out / "provenance.json", made)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
