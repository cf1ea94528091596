"""Trainings to be made by one process and by several, and what is to be the same of them.

`python -m torch.distributed.run --nproc-per-node=2 scenarios.py FOLDER` leaves what each process
has found in FOLDER/RANK.pt.
"""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import twophase
from twophase import AdamSettings, LeastSquares, SecondPhase, Term, TwoPhase, derivatives
from twophase.adam import Adam
from twophase.distributed import apart, processes
from twophase.errors import TwoPhaseError
from twophase.least_squares.normal_equations import Direct
from twophase.objectives import ClosureObjective, FullBatch, Streamed

ADAM = AdamSettings(1e-2, 8)
cross_entropy = nn.functional.cross_entropy


def network(*more, dtype=torch.float64, outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), *more, nn.Linear(7, outputs)).to(dtype)


def examples(count=37, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 2, generator=generator, dtype=dtype)
    return inputs, (inputs.norm(dim=1) > 1).long() + (inputs[:, 0] > 1).long()


class Unnumbered(IterableDataset):
    """Examples that can only be read one after the other."""

    def __iter__(self):
        yield from zip(*examples(), strict=True)


def evaluations(objective):
    """All that an objective over examples can be asked."""
    x = objective.vector.read()
    score = objective.score(x)
    point, accuracy = objective.measure(x)
    direction = torch.cos(torch.arange(len(x), dtype=x.dtype))
    return {
        "value": objective.value(x),
        "loss": score.loss,
        "accuracies": [score.accuracy, accuracy],
        "measured": point.value,
        "resolution": point.resolution,
        "gradient": point.gradient,
        "hessian": objective.hessian_vector(x, direction),
        "passes": objective.passes.total,
    }


def full_batch(count=37):
    return evaluations(FullBatch(network(), cross_entropy, *examples(count), chunk_size=5))


def streamed(source, size=None):
    return evaluations(Streamed(network(), cross_entropy, source(), size))


def heat(model=None, columns=1, count=13):
    """A sum of squares of two terms, with a weight, whose residuals have `columns` each."""
    model = model or network(outputs=columns)
    points = torch.linspace(-1, 1, 2 * count, dtype=torch.float64).view(count, 2)

    def inside(model, points):
        u, du, ddu = derivatives(model, points, order=2)
        return du[:, 0] - ddu[:, 1] + u**2

    def border(model, points):
        return model(points) - 1

    return LeastSquares(model, [Term(inside, points), Term(border, points[:3], 10.0)], 4)


MANY = 77  # points of `heat` that make more residuals than parameters


def systems(problem, at):
    """What the normal equations say of a step, however much of the Jacobian is at hand."""
    direct = Direct(problem, at)
    step, gain = direct.step(0.1 * direct.largest)
    return [direct.largest, step, gain, direct.correction(step, 0.1 * direct.largest)]


def sums_of_squares(columns=1, count=13):
    """A Jacobian of which all is kept, or the own rows, or the square, and one not made."""
    problem = heat(columns=columns, count=count)
    x, rows = problem.vector.read(), torch.arange(problem.size[0], dtype=torch.float64).sin()
    vector = torch.arange(len(problem.vector.read()), dtype=torch.float64).cos()
    found = {"value": problem.value(x), "residuals": problem.residuals(x)}
    found |= {"pull": problem.pull(x, rows), "push": problem.push(x, vector)}
    found["with gradient"] = problem.value_and_gradient(x)
    whole, squared = problem._together(x), problem._squared(x)
    found["linearized"] = [(at.residuals, at.gradient) for at in (whole, squared)]
    found["sloped"] = problem._sloped(x)[1:3]
    found["jacobian"] = whole.jacobian, squared.squared
    for at in (whole, squared, squared._replace(jacobian=None)):
        found[f"systems {len(found)}"] = systems(problem, at)
    return found


def training(model=None, data=None, count=37, keys=("train_loss", "grad_norm"), **settings):
    """What `fit` reports, and the weights that it leaves."""
    model = network() if model is None else model
    data = examples(count) if data is None else data()
    settings = {"adam": ADAM, "epochs": 14, "switch": 8, "loss": cross_entropy} | settings
    module = model.model if isinstance(model, LeastSquares) else model
    result = twophase.fit(model, None if isinstance(model, LeastSquares) else data, **settings)
    weights = nn.utils.parameters_to_vector(module.parameters()).detach()
    found = {key: torch.tensor(result.history[key].tolist()) for key in keys}
    buffers = [buffer.double() for buffer in module.buffers()]
    return found | {"weights": weights, "buffers": buffers, "phases": list(result.history.phase)}


def alone_in_minimize():
    problem = heat()
    found = twophase.minimize(problem, passes=60)
    timed = twophase.minimize(heat(), seconds=0.5)
    return {"loss": found.loss, "x": found.x, "status": str(timed.status)}


def own_share(*tensors):
    """What a loop of one's own takes: equal parts."""
    here = processes().share(len(tensors[0]))
    return [tensor[here] for tensor in tensors]


def closure_of(model, calls_backward, inputs, targets):
    def closure():
        loss = nn.functional.cross_entropy(model(inputs), targets)
        if calls_backward:
            for parameter in model.parameters():
                parameter.grad = None
            loss.backward()
        return loss

    return closure


def loop(make, wrap, calls_backward, steps=30):
    """A loop of one's own, over equal shares, with or without DistributedDataParallel."""
    model = network()
    wrapped = DistributedDataParallel(model) if wrap and dist.is_initialized() else model
    optimizer = make(model.parameters())
    closure = closure_of(wrapped, calls_backward, *own_share(*examples(36)))
    losses = torch.stack([optimizer.step(closure) for _ in range(steps)])
    return {"losses": losses, "weights": nn.utils.parameters_to_vector(model.parameters()).detach()}


def mini_batches(wrap):
    """`TwoPhase` over mini-batches, of each of which a process has a half."""
    model = network()
    wrapped = DistributedDataParallel(model) if wrap and dist.is_initialized() else model
    optimizer = TwoPhase(model.parameters(), 1e-2, batches=3, switch=5)
    inputs, targets = examples(36)
    whole = closure_of(wrapped, True, *own_share(inputs, targets))
    for _ in range(9):
        if optimizer.phase == "adam":
            for batch in torch.arange(36).split(12):
                optimizer.step(closure_of(wrapped, True, *own_share(inputs[batch], targets[batch])))
        optimizer.end_epoch(whole)
    return {"losses": torch.tensor(optimizer.history.train_loss.tolist())}


class Experts(nn.Module):
    """Two of them, of which one is asked by some examples only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.usual, self.rare = (nn.Linear(2, 3).double() for _ in range(2))

    def forward(self, inputs):
        rare = inputs[:, 0] > 1
        outputs = self.usual(inputs)
        return outputs + rare[:, None] * self.rare(inputs) if rare.any() else outputs


def experts(make, backward=False):
    """Sorted, so that all examples that ask for the second one are in the last share."""
    model, (inputs, targets) = Experts(), examples(36)
    order = inputs[:, 0].argsort()
    closure = closure_of(model, backward, *own_share(inputs[order], targets[order]))
    if make is twophase.fit:
        found = twophase.fit(model, closure, epochs=14, switch=8)
        return {"losses": torch.tensor(found.history.train_loss.tolist())}
    optimizer = make(model.parameters())
    return {"losses": torch.stack([optimizer.step(closure) for _ in range(12)])}


def dead_units():
    """The last batch has one example, for which no unit of this network is alive."""
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    inputs, targets = examples(33)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 1]]))
        model[0].bias.zero_()
        inputs = torch.where(torch.arange(33)[:, None] % 8 == 0, -inputs.abs(), inputs.abs())
    return training(model, lambda: (inputs, targets), epochs=10)


def wrapped(count=37, batch_size=7):
    """`fit` of a model in DistributedDataParallel, with batches that have no equal shares."""
    model = network()
    model = DistributedDataParallel(model) if dist.is_initialized() else model
    return training(model, count=count, adam=AdamSettings(1e-2, batch_size))


def begun_apart(make):
    """An optimizer that is made among the others, and steps apart."""
    model, (inputs, targets) = network(), examples(36)
    optimizer = make(model.parameters())
    with apart():
        closure = closure_of(model, False, inputs, targets)
        return {"losses": torch.stack([optimizer.step(closure) for _ in range(12)])}


def dataset(**of_loader):
    data = TensorDataset(*examples())
    return DataLoader(data, **of_loader) if of_loader else data


SCENARIOS = {
    "examples in memory": full_batch,
    "a single example": partial(full_batch, 1),
    "a dataset": partial(streamed, dataset, 4),
    "a loader": partial(streamed, partial(dataset, batch_size=6, shuffle=True)),
    "examples without numbers": partial(streamed, lambda: DataLoader(Unnumbered(), 4)),
    "sums of squares": sums_of_squares,
    "sums of several squares": partial(sums_of_squares, 2),
    "sums of many squares": partial(sums_of_squares, 2, MANY),
    "both phases": training,
    "a batch of one": partial(training, count=33),
    "the race": partial(training, epochs=36, switch=twophase.Race(passes=9)),
    "norms from mini-batches": partial(training, monitor=twophase.FromBatches()),
    "validation": partial(
        training, validation=examples(9), keep="validation", keys=("train_loss", "validation_loss")
    ),
    "a dataset that is read": partial(training, data=dataset),
    "batch statistics": lambda: training(network(nn.BatchNorm1d(7)), freeze=True),
    "squares": lambda: training(heat(), epochs=12, switch=6, adam=AdamSettings(1e-2, 5)),
    "many squares": lambda: training(heat(count=MANY), epochs=12, switch=6),
    "minimize": alone_in_minimize,
    "conjugate gradient": partial(training, **twophase.PAPER | {"switch": 8}),
    **{
        f"{name}, {kind}{', wrapped' if wrap else ''}": partial(loop, make, wrap, backward)
        for name, make in (("TwoPhase", TwoPhase), ("SecondPhase", SecondPhase))
        for kind, backward in (("plain closure", False), ("backward", True))
        for wrap in (False, True)
    },
    **{f"experts, {make.__name__}": partial(experts, make) for make in (SecondPhase, TwoPhase)},
    "experts, backward": partial(experts, TwoPhase, True),
    "experts, fit": partial(experts, twophase.fit),
    "dead units": dead_units,
    "fit, wrapped": wrapped,
    "fit, wrapped, a batch of one": partial(wrapped, 33, 8),
    "SecondPhase begun apart": partial(begun_apart, SecondPhase),
    "TwoPhase begun apart": partial(begun_apart, TwoPhase),
    "mini-batches": partial(mini_batches, False),
    "mini-batches, wrapped": partial(mini_batches, True),
}


def evaluated():
    """All that asks for losses, gradients and products once, by name."""
    full = FullBatch(network(), cross_entropy, *examples(), chunk_size=5)
    read = Streamed(network(), cross_entropy, dataset(), 4)
    x, vector = full.vector.read(), torch.ones(full.vector.read().shape, dtype=torch.float64)
    closure = ClosureObjective(full.vector, closure_of(full.model, False, *examples()))
    for name, one in (("full", full), ("read", read), ("closure", closure)):
        yield f"value, {name}", partial(one.value, x)
        yield f"gradient, {name}", partial(one.value_and_gradient, x)
        yield f"score, {name}", partial(one.score, x)
        yield f"measure, {name}", partial(one.measure, x)
    yield "Hessian-vector product", partial(full.hessian_vector, x, vector)
    for name, count in (("few", 13), ("many", MANY)):
        squares = heat(count=count)
        y, rows = squares.vector.read(), squares.residuals(squares.vector.read())
        yield f"value, {name} squares", partial(squares.value, y)
        yield f"residuals, {name} squares", partial(squares.residuals, y)
        yield f"gradient, {name} squares", partial(squares.value_and_gradient, y)
        yield f"Jacobian, {name} squares", partial(squares.linearize, y)
        yield f"slope, {name} squares", partial(squares._sloped, y)
        yield f"J'u, {name} squares", partial(squares.pull, y, rows)
        yield f"Jv, {name} squares", partial(squares.push, y, y)
    for name, one in (("full", full), ("read", read), ("squares", squares)):
        adam = Adam(one.vector.parameters, AdamSettings(batch_size=None), torch.Generator())
        yield f"mini-batch, {name}", partial(adam.epoch, one)


def exchanges():
    """How often the processes meet, in any way, in each of these."""
    names = ["all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier", "reduce"]
    names += ["broadcast_object_list", "all_gather_into_tensor", "reduce_scatter", "send", "recv"]
    found = {}
    for name, act in evaluated():
        with ExitStack() as stack:
            calls = {
                one: stack.enter_context(patch.object(dist, one, wraps=getattr(dist, one)))
                for one in names
            }
            act()
        found[name] = {one: call.call_count for one, call in calls.items() if call.called}
    return found


# the work of what torch does not count by itself
IN_PLACE = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}


def products():
    """Floating-point operations of the products in a step of Levenberg-Marquardt, by shape of J."""
    found = {}
    for name, problem in (
        ("tall", heat(network(nn.Linear(7, 7)), count=900)),
        ("wide", heat(network(nn.Linear(7, 400), nn.Linear(400, 7)), count=90)),
    ):
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            systems(problem, problem.linearize(problem.vector.read()))
        found[name] = counter.get_total_flops()
    return found


def of_its_own(rank):
    """A training that is this process's alone."""
    with apart():
        return training(network(seed=rank))


def mistakes(rank):
    """What is wrong in several processes, each with its one line; all of them go on."""
    half = examples(40)[0][rank::2], examples(40)[1][rank::2]
    mixed = tuple(one.flip(0) if rank else one for one in examples(40))

    def shuffled():
        torch.manual_seed(rank)
        return dataset(batch_size=8, shuffle=True)

    def frozen():
        model = network()
        torch.manual_seed(rank)
        model[0] = nn.Linear(2, 7).double().requires_grad_(False)
        return model

    def normed():
        norm = nn.BatchNorm1d(7)
        norm.running_mean.fill_(rank)
        return norm

    def weighted():
        problem = heat()
        problem._terms[1] = (*problem._terms[1][:2], 10.0 + rank)
        return twophase.minimize(problem, passes=10)

    def sharded():
        model = network()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        return SecondPhase(model.parameters())

    made = {
        "sharded parameters": sharded,
        "another order": lambda: training(data=lambda: mixed),
        "another order for validation": lambda: training(validation=mixed),
        "an order of its own": lambda: training(data=shuffled),
        "a dataset of other examples": lambda: training(data=lambda: TensorDataset(*mixed)),
        "another weight": weighted,
        "another seed": lambda: training(seed=rank),
        "another switch": lambda: training(switch=6 + rank),
        "another length": lambda: training(epochs=14 + rank),
        "another batch size": lambda: training(adam=AdamSettings(1e-2, 8 * (rank + 1))),
        "another width": lambda: training(network(nn.Linear(7, 6 + rank), nn.Linear(6 + rank, 7))),
        "another phase in a loop": lambda: SecondPhase(
            (model := network()).parameters(), [twophase.SELF_SCALED_BFGS, twophase.DEFAULT][rank]
        ).step(closure_of(model, False, *examples())),
        "other batches in a loop": lambda: TwoPhase(
            (model := network()).parameters(), batches=2 + rank
        ).step(closure_of(model, False, *examples())),
        "data of its own": lambda: training(data=lambda: half),
        "other weights": lambda: training(network(seed=rank)),
        "other weights for a closure": lambda: twophase.fit(
            model := network(seed=rank), closure_of(model, False, *examples()), epochs=9
        ),
        "other frozen weights": lambda: training(frozen()),
        "other statistics": lambda: training(network(normed()).eval()),
        "other weights in a loop": lambda: SecondPhase(
            (model := network(seed=rank)).parameters()
        ).step(closure_of(model, False, *examples())),
        "a shared sampler": lambda: training(
            data=lambda: DataLoader(
                dataset(), 8, sampler=torch.utils.data.DistributedSampler(dataset())
            )
        ),
    }
    found = {}
    for name, make in made.items():
        try:
            make()
            found[name] = "nothing was said"
        except TwoPhaseError as error:
            found[name] = str(error)
    return found


class InFloat32(nn.Module):
    """What cannot be computed in bfloat16, where there is anything to compute."""

    def forward(self, inputs):
        if inputs.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return inputs


def reduced(tolerance, *more):
    """Mini-batches of one example, of which one process has nothing, in bfloat16."""
    adam = AdamSettings(1e-2, 1, precision=twophase.BFloat16(tolerance))
    model, data = network(*more, dtype=torch.float32), partial(examples, 9, dtype=torch.float32)
    return training(model, data, adam=adam, epochs=3, switch=2)


def main(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {name: make() for name, make in SCENARIOS.items()}
    found["float32"] = training(
        network(dtype=torch.float32), partial(examples, dtype=torch.float32)
    )
    found["bfloat16"], found["not near enough"] = reduced(0.5), reduced(1e-6)
    found["no bfloat16"] = reduced(0.5, InFloat32())
    found["of its own"], found["mistakes"] = of_its_own(rank), mistakes(rank)
    found["exchanges"], found["products"] = exchanges(), products()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
