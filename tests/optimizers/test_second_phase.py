"""The torch optimizers: what each of them runs, invariances, exact resume, and users' mistakes."""

import copy
import io

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn.functional import mse_loss

from twophase import (
    LBFGS,
    ConjugateDirection,
    ConjugateGradient,
    Descent,
    GoldenSection,
    LBFGSDirection,
    ParabolaFirst,
    SecondPhase,
    SelfScaledBFGS,
    SelfScaledBFGSDirection,
    StrongWolfe,
)
from twophase.automatic import DEFAULT
from twophase.errors import InputError, NonFiniteError
from twophase.objective import FunctionObjective, evaluate
from twophase.precision import full_precision
from twophase.problems import toys
from twophase.second_phase import SELF_SCALED_BFGS, iterate

OPTIMIZERS = [SecondPhase, ConjugateGradient, SelfScaledBFGS, LBFGS]
every_optimizer = pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
SEARCHES = {
    "golden": GoldenSection(),
    "golden-tight": GoldenSection(rtol=1e-8),
    "parabola": ParabolaFirst(),
    "wolfe": StrongWolfe(),
}
DIRECTIONS = {
    "cg": ConjugateDirection(),
    "lbfgs": LBFGSDirection(),
    "ssbfgs": SelfScaledBFGSDirection(),
}


# ---- what each of them runs ---------------------------------------------------------------------


def weight():
    return nn.Parameter(torch.ones(2, dtype=torch.float64))


def test_every_optimizer_runs_what_it_is_called():
    assert SecondPhase([weight()]).second == DEFAULT
    assert ConjugateGradient([weight()]).second == Descent(ConjugateDirection(), ParabolaFirst())
    assert SelfScaledBFGS([weight()]).second == Descent(SelfScaledBFGSDirection(), StrongWolfe())
    assert LBFGS([weight()]).second == Descent(LBFGSDirection(), StrongWolfe())
    search = GoldenSection(0.1)
    found = ConjugateGradient([weight()], "HZ", search, restart_every=7, powell=0.2).second
    assert found == Descent(ConjugateDirection("HZ", 7, 0.2), search)
    for optimizer_of, rule in ((SelfScaledBFGS, SelfScaledBFGSDirection), (LBFGS, LBFGSDirection)):
        found = optimizer_of([weight()], 5, search, tolerance_grad=1e-3).second
        assert found == Descent(rule(5), search, tolerance_grad=1e-3)


@pytest.mark.parametrize("line_search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_steps_are_iterations_of_the_second_phase(direction, line_search):
    """Bit for bit, with a gradient that is handed on or computed anew."""
    function, x = toys.rosenbrock(4), nn.Parameter(toys.rosenbrock(4).start.clone())
    descent = Descent(direction, line_search)
    optimizer = SecondPhase([x], descent)
    objective = FunctionObjective(function)
    point, state = evaluate(objective, x.detach().clone()), None
    for _ in range(12):
        loss = optimizer.step(lambda: function(x))
        iteration = iterate(objective, point, state, descent)
        result = optimizer.result
        assert torch.equal(x, iteration.x)
        assert loss.item() == result.loss == iteration.value
        assert result.gradient_norm == pytest.approx(point.gradient.norm().item())
        assert result.step_size == iteration.step
        assert (result.status, result.evaluations) == (iteration.status, iteration.evaluations)
        point = iteration.point or evaluate(objective, iteration.x)
        state = iteration.state


def rosenbrock_and_gradient(w):
    """Rosenbrock's function and its gradient by hand, in numpy."""
    here, after = w[:-1], w[1:]
    inner = after - here**2
    gradient = np.zeros_like(w)
    gradient[:-1] = -400 * here * inner - 2 * (1 - here)
    gradient[1:] += 200 * inner
    return float((100 * inner**2 + (1 - here) ** 2).sum()), gradient


BETAS = {
    "FR": lambda g, p: g @ g / (p @ p),
    "PR+": lambda g, p: max(0.0, g @ (g - p) / (p @ p)),
}


@pytest.mark.parametrize("start", [[-1.2, 1.0], [0.5, 2.0, -1.0, 0.3]])
@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
@pytest.mark.parametrize("beta", BETAS)
def test_one_iteration_is_the_papers_formula(beta, rtol, start):
    """d = −g + β d_previous, and a step within 2 · rtol of a minimum along d: numpy and scipy."""
    x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = ConjugateGradient([x], beta=beta, line_search=GoldenSection(rtol))
    previous = direction = None
    for _ in range(4):
        before = x.detach().numpy().copy()
        _, gradient = rosenbrock_and_gradient(before)
        if direction is None:
            direction = -gradient
        else:
            direction = -gradient + BETAS[beta](gradient, previous) * direction
        assert direction @ gradient < 0
        optimizer.step(lambda: toys.rosenbrock(len(start))(x))
        moved = x.detach().numpy() - before
        step = moved @ direction / (direction @ direction)
        assert np.linalg.norm(moved - step * direction) <= 1e-9 * np.linalg.norm(moved)
        assert step == pytest.approx(optimizer.result.step_size, rel=1e-9)

        def slope(t, before=before, direction=direction):
            return rosenbrock_and_gradient(before + t * direction)[1] @ direction

        minimum = brentq(slope, 0.9 * step, 1.1 * step)
        assert abs(step - minimum) <= 2 * rtol * minimum
        assert optimizer.result.loss == pytest.approx(rosenbrock_and_gradient(before + moved)[0])
        previous = gradient


def test_conjugate_gradient_never_runs_bfgs(monkeypatch):
    """Its second direction is −g + β d, and no quasi-Newton rule is ever asked."""

    def forbidden(*arguments):
        raise AssertionError("a quasi-Newton rule was asked for a direction")

    for rule in (LBFGSDirection, SelfScaledBFGSDirection):
        monkeypatch.setattr(rule, "__call__", forbidden)
    x = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = ConjugateGradient([x])
    assert type(optimizer.second.direction) is ConjugateDirection
    gradients, points = [], []
    for _ in range(2):
        points.append(x.detach().numpy().copy())
        gradients.append(rosenbrock_and_gradient(points[-1])[1])
        optimizer.step(lambda: toys.rosenbrock(2)(x))
    p, g = gradients
    d = -g + BETAS["PR+"](g, p) * -p
    moved = x.detach().numpy() - points[1]
    assert np.linalg.norm(moved - optimizer.result.step_size * d) <= 1e-9 * np.linalg.norm(moved)
    for _ in range(20):
        optimizer.step(lambda: toys.rosenbrock(2)(x))
    assert not optimizer.state_dict()["state"][0]["state"]["memory"]


# ---- invariances --------------------------------------------------------------------------------


def descend(parameters, function, scale=1.0, iterations=60):
    """Conjugate gradient by default to a gradient of 1e-6; how it ended, and where it went."""
    optimizer = ConjugateGradient(parameters, tolerance_grad=1e-6 * scale)
    path = []
    while optimizer.result is None or optimizer.result.status == "moved":
        if len(path) > iterations:
            break
        optimizer.step(lambda: scale * function(torch.cat([p.reshape(-1) for p in parameters])))
        path.append(torch.cat([p.detach().reshape(-1) for p in parameters]))
    return optimizer.result, torch.stack(path)


def bowl(seed):
    return toys.Quadratic.log_spaced(20, 1e3, torch.Generator().manual_seed(seed))


def ones():
    return nn.Parameter(torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradient_solves_a_quadratic_of_condition_1e3_in_60(seed, scale):
    """By default, whatever the unit of the loss."""
    result, _ = descend([ones()], bowl(seed), scale)
    assert result.status == "converged"
    assert result.gradient_norm <= 1e-6 * scale


@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradient_is_the_same_in_other_units_and_other_tensors(seed):
    """To the last bit: a power of two scales without rounding, and there is one vector."""
    _, path = descend([ones()], bowl(seed))
    for scale in (2.0**20, 2.0**-20):
        _, scaled = descend([ones()], bowl(seed), scale)
        assert torch.equal(scaled, path)
    whole = ones().detach()
    parts = [nn.Parameter(p.clone()) for p in (whole[:7].reshape(1, 7), whole[7:8], whole[8:])]
    _, cut = descend(parts, bowl(seed))
    assert torch.equal(cut, path)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def samples(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(50, 3, generator=generator, dtype=dtype)
    return inputs, torch.stack([inputs.prod(dim=1), inputs.sum(dim=1)], dim=1)


def train(model, steps, optimizer_of=SecondPhase, loss=mse_loss, groups=None, **settings):
    inputs, targets = samples(next(model.parameters()).dtype)
    optimizer = optimizer_of(groups or model.parameters(), **settings)
    losses = [optimizer.step(lambda: loss(model(inputs), targets)).item() for _ in range(steps)]
    return losses, optimizer


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


EVERY_BETA = [(ConjugateGradient, {"beta": beta}) for beta in ("FR", "PR", "PR+", "HZ")]


@pytest.mark.parametrize("scale", [1e6, 1e-6])
@pytest.mark.parametrize(
    ("optimizer_of", "settings"), [*EVERY_BETA, (SecondPhase, {}), (LBFGS, {})]
)
def test_the_scale_of_the_loss_does_not_matter(scale, optimizer_of, settings):
    plain, scaled = network(), network()
    train(plain, 8, optimizer_of, **settings)
    train(scaled, 8, optimizer_of, lambda y, t: scale * mse_loss(y, t), **settings)
    torch.testing.assert_close(flat(scaled), flat(plain), rtol=1e-6, atol=1e-8)


@every_optimizer
def test_the_cut_into_tensors_and_groups_does_not_matter(optimizer_of):
    """One weight matrix against its two halves: the iterates are equal to the last bit."""
    inputs, targets = samples()
    whole = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    upper, lower = (nn.Parameter(part.clone()) for part in whole.detach().split([1, 2]))
    one = optimizer_of([whole])
    two = optimizer_of([{"params": [upper]}, {"params": [lower]}])
    for _ in range(6):
        one.step(lambda: mse_loss((inputs @ whole).tanh(), targets))
        two.step(lambda: mse_loss((inputs @ torch.cat([upper, lower])).tanh(), targets))
        assert torch.equal(whole, torch.cat([upper, lower]))


@every_optimizer
def test_the_chunks_of_the_batch_do_not_matter(optimizer_of):
    plain, chunked = network(), network()
    inputs, targets = samples()

    def chunked_loss():
        parts = zip(inputs.split(7), targets.split(7), strict=True)
        return sum(mse_loss(chunked(x), t, reduction="sum") for x, t in parts) / targets.numel()

    train(plain, 10, optimizer_of)
    optimizer = optimizer_of(chunked.parameters())
    for _ in range(10):
        optimizer.step(chunked_loss)
    torch.testing.assert_close(flat(chunked), flat(plain), rtol=1e-6, atol=1e-8)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_lowers_the_loss_and_returns_it(dtype, optimizer_of):
    model = network(dtype)
    losses, _ = train(model, 30, optimizer_of)
    assert losses == sorted(losses, reverse=True)
    inputs, targets = samples(dtype)
    assert mse_loss(model(inputs), targets).item() == losses[-1]
    assert losses[-1] < 0.5 * losses[0]


class Recorded:
    """A closure that notes, for each call, whether a gradient was asked for."""

    def __init__(self, model):
        self.model, self.with_graph = model, []

    def __call__(self):
        inputs, targets = samples()
        loss = mse_loss(self.model(inputs), targets)
        self.with_graph.append(loss.requires_grad)
        return loss


def test_trial_points_of_golden_section_cost_a_forward_pass_only():
    closure = Recorded(network())
    optimizer = ConjugateGradient(closure.model.parameters(), line_search=GoldenSection())
    for _ in range(3):
        closure.with_graph.clear()
        optimizer.step(closure)
        assert sum(closure.with_graph) == 1
        # the search's trials, and in the first step the check that the loss repeats itself
        assert 0 <= len(closure.with_graph) - 1 - optimizer.result.evaluations <= 1
        assert optimizer.result.passes == len(closure.with_graph) + 2


@pytest.mark.parametrize("line_search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_passes_are_what_the_closure_was_asked_for(line_search, direction):
    closure = Recorded(network())
    optimizer = SecondPhase(closure.model.parameters(), Descent(direction, line_search))
    for _ in range(10):
        closure.with_graph.clear()
        optimizer.step(closure)
        forward, backward = len(closure.with_graph), sum(closure.with_graph)
        assert optimizer.result.passes == forward + 2 * backward


@pytest.mark.parametrize("optimizer_of", [SecondPhase, SelfScaledBFGS, LBFGS])
def test_no_gradient_is_computed_twice(optimizer_of):
    """A search by slopes starts from the gradient that the last one ended with.

    A step begins with a forward pass, which sees that the loss is still the same.
    """
    closure = Recorded(network())
    optimizer = optimizer_of(closure.model.parameters(), max_iter=3)
    optimizer.step(closure)
    for _ in range(10):
        closure.with_graph.clear()
        optimizer.step(closure)
        assert closure.with_graph == [False] + [True] * optimizer.result.evaluations


def through_a_file(content):
    """What a file without pickled code gives back."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(saved, steps, optimizer_of, **settings):
    """A new model and optimizer that go on from what was saved."""
    model = network()
    model.load_state_dict(saved["model"])
    optimizer = optimizer_of(model.parameters(), **settings)
    optimizer.load_state_dict(saved["optimizer"])
    inputs, targets = samples()
    for _ in range(steps):
        optimizer.step(lambda: mse_loss(model(inputs), targets))
    return model


RESUMES = [
    (SecondPhase, {}),
    (ConjugateGradient, {}),
    (ConjugateGradient, {"beta": "HZ", "restart_every": 4}),
    (SelfScaledBFGS, {"history_size": 3}),
    (LBFGS, {}),
]


@pytest.mark.parametrize(("optimizer_of", "settings"), RESUMES)
def test_a_state_dict_resumes_exactly(optimizer_of, settings):
    straight, first = network(), network()
    train(straight, 12, optimizer_of, **settings)
    _, optimizer = train(first, 5, optimizer_of, **settings)
    saved = {"model": first.state_dict(), "optimizer": optimizer.state_dict()}
    second = resumed(through_a_file(saved), 7, optimizer_of, **settings)
    assert torch.equal(flat(second), flat(straight))


@pytest.mark.parametrize(("optimizer_of", "settings"), RESUMES)
def test_a_preconditioned_state_resumes_exactly_without_its_adam(optimizer_of, settings):
    def prefix():
        model = network()
        adam = torch.optim.Adam(model.parameters())
        for _ in range(5):
            adam.zero_grad()
            mse_loss(model(samples()[0]), samples()[1]).backward()
            adam.step()
        return model, adam

    straight, adam = prefix()
    train(straight, 12, optimizer_of, preconditioner=adam, **settings)
    stopped, adam = prefix()
    _, optimizer = train(stopped, 5, optimizer_of, preconditioner=adam, **settings)
    saved = {"model": stopped.state_dict(), "optimizer": optimizer.state_dict()}
    model = resumed(through_a_file(saved), 7, optimizer_of, **settings)
    assert torch.equal(flat(model), flat(straight))
    plain, _ = prefix()
    train(plain, 12, optimizer_of, **settings)
    assert not torch.equal(flat(plain), flat(straight))


@every_optimizer
def test_restart_makes_other_data_safe(optimizer_of):
    model = network()
    inputs, targets = samples()
    optimizer = optimizer_of(model.parameters())
    for count in (20, 35, 50):
        for _ in range(5):
            optimizer.step(lambda n=count: mse_loss(model(inputs[:n]), targets[:n]))
        before = mse_loss(model(inputs), targets).item()
        optimizer.restart()
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    assert optimizer.result.loss < before
    assert optimizer.state_dict()["state"][0]["state"]["age"] == 0


@every_optimizer
def test_parameters_changed_between_steps_restart_the_direction(optimizer_of):
    model = network()
    _, optimizer = train(model, 4, optimizer_of)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight[0, 0] += 0.5
        other[0].weight[0, 0] += 0.5
    inputs, targets = samples()
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    train(other, 1, optimizer_of)
    gradient_step = flat(other)
    # the same direction −g; only the first trial step, hence the accuracy of the step, differs
    cosine = nn.functional.cosine_similarity(flat(model), gradient_step, dim=0)
    assert optimizer.state_dict()["state"][0]["state"]["age"] == 0
    assert cosine > 0.999


@every_optimizer
def test_an_added_group_joins_the_vector(optimizer_of):
    model = network()
    optimizer = optimizer_of(model[0].parameters())
    inputs, targets = samples()
    before = flat(model[2])
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    assert torch.equal(flat(model[2]), before)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert len(optimizer.param_groups) == 2
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    assert not torch.equal(flat(model[2]), before)


@every_optimizer
def test_unused_and_frozen_parameters_stay(optimizer_of):
    model = network()
    model[0].bias.requires_grad_(False)
    spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    frozen = model[0].bias.clone()
    train(model, 3, optimizer_of, groups=[*model.parameters(), spare])
    assert torch.equal(model[0].bias, frozen)
    assert torch.equal(spare, torch.ones(2, dtype=torch.float64))


@every_optimizer
def test_at_the_resolution_of_float32_it_says_so_and_stays(optimizer_of):
    model = nn.Linear(3, 2)
    inputs, targets = samples(torch.float32)
    optimizer = optimizer_of(model.parameters())

    def closure():
        return mse_loss(model(inputs), targets)

    while optimizer.result is None or optimizer.result.status == "moved":
        optimizer.step(closure)
    assert optimizer.result.status == "resolution"
    assert "arithmetic" in optimizer.result.message
    there = flat(model)
    optimizer.step(closure)
    assert torch.equal(flat(model), there)
    exact = torch.linalg.lstsq(
        torch.cat([inputs, torch.ones(50, 1)], dim=1).double(), targets.double()
    ).solution
    torch.testing.assert_close(model.weight.T.double(), exact[:3], rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.Dropout(0.1), "no dropout"),
        (nn.BatchNorm1d(8, dtype=torch.float64), "BatchNorm in training mode"),
    ],
    ids=["dropout", "batchnorm"],
)
def test_modules_that_do_not_repeat_are_named(layer, found):
    model = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)).double()
    before = flat(model)
    with pytest.raises(InputError, match=found):
        train(model, 1)
    assert torch.equal(flat(model), before)
    train(model.eval(), 1)
    assert not torch.equal(flat(model), before)


@every_optimizer
def test_functional_dropout_is_found_by_its_losses(optimizer_of):
    model = network()
    inputs, targets = samples()
    optimizer = optimizer_of(model.parameters())
    with pytest.raises(InputError, match="at the same parameters"):
        optimizer.step(lambda: mse_loss(nn.functional.dropout(model(inputs)), targets))


@every_optimizer
def test_an_error_in_the_closure_leaves_the_parameters_as_they_were(optimizer_of):
    model = network()
    inputs, targets = samples()
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 3:  # a trial, after the gradient and the check that it repeats itself
            raise KeyboardInterrupt
        return mse_loss(model(inputs), targets)

    before = flat(model)
    with pytest.raises(KeyboardInterrupt):
        optimizer_of(model.parameters()).step(closure)
    assert torch.equal(flat(model), before)


@every_optimizer
def test_wrong_closures_are_explained(optimizer_of):
    """See the tests of closures for more of them; the parameters stay as they are."""
    model = network()
    inputs, targets = samples()
    before = flat(model)

    def backward():
        loss = mse_loss(model(inputs), targets)
        loss.backward(retain_graph=True)
        loss.backward()
        return loss

    with pytest.raises(InputError, match="^closure: 'one that leaves 2 times the gradient"):
        optimizer_of(model.parameters()).step(backward)
    for arguments in ((None,), ()):
        with pytest.raises(InputError, match="^closure: None is not allowed"):
            optimizer_of(model.parameters()).step(*arguments)
    assert torch.equal(flat(model), before)


def test_a_nan_loss_is_an_error():
    model = network()
    inputs, _ = samples()
    with pytest.raises(NonFiniteError, match="loss: nan"):
        SecondPhase(model.parameters()).step(lambda: model(inputs).log().mean())


@every_optimizer
def test_wrong_parameters_are_explained(optimizer_of):
    single, double = nn.Linear(2, 2), nn.Linear(2, 2).double()
    closure = {"closure": lambda: torch.zeros(())}
    with pytest.raises(InputError, match="params: .* one dtype"):
        optimizer_of([*single.parameters(), *double.parameters()]).step(**closure)
    with pytest.raises(InputError, match="params: .* float32 or float64"):
        optimizer_of(nn.Linear(2, 2).half().parameters()).step(**closure)
    with pytest.raises(InputError, match="params: 'lr' is not allowed"):
        optimizer_of([{"params": single.parameters(), "lr": 0.1}])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gpu_follows_the_cpu(dtype, optimizer_of):
    here, there = network(dtype), network(dtype).cuda()
    inputs, targets = samples(dtype)
    train(here, 5, optimizer_of)
    optimizer = optimizer_of(there.parameters())
    for _ in range(5):
        optimizer.step(lambda: mse_loss(there(inputs.cuda()), targets.cuda()))
    rtol = 1e-2 if dtype is torch.float32 else 1e-6
    torch.testing.assert_close(flat(there).cpu(), flat(here), rtol=rtol, atol=rtol)


def with_dropout():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 2)).double()


def test_training_mode_is_found_at_any_step():
    model = with_dropout().eval()
    inputs, targets = samples()
    _, optimizer = train(model, 2)
    model.train()
    with pytest.raises(InputError, match="no dropout"):
        optimizer.step(lambda: mse_loss(model(inputs), targets))


def test_functional_dropout_is_found_after_a_resume():
    model = network()
    inputs, targets = samples()
    _, optimizer = train(model, 2)
    other = SecondPhase(model.parameters())
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(InputError, match="at the same parameters"):
        other.step(lambda: mse_loss(nn.functional.dropout(model(inputs)), targets))


def test_restart_every_reaches_the_directions():
    for steps, age in ((4, 1), (3, 0)):
        _, optimizer = train(network(), steps, ConjugateGradient, restart_every=2)
        assert optimizer.state_dict()["state"][0]["state"]["age"] == age


@pytest.mark.parametrize(("optimizer_of", "settings"), RESUMES)
def test_a_copy_goes_on_like_the_original(optimizer_of, settings):
    model = network()
    _, optimizer = train(model, 3, optimizer_of, **settings)
    twin_model, twin = copy.deepcopy((model, optimizer))
    inputs, targets = samples()
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    twin.step(lambda: mse_loss(twin_model(inputs), targets))
    assert twin.second == optimizer.second
    assert torch.equal(flat(twin_model), flat(model))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("line_search", {"line_search": 5}),
        ("beta", {"beta": "pr"}),
        ("restart_every", {"restart_every": 0}),
        ("powell", {"powell": -1}),
        ("tolerance_grad", {"tolerance_grad": -1.0}),
        ("preconditioner", {"preconditioner": torch.optim.SGD([weight()])}),
    ],
)
def test_arguments_out_of_range_name_themselves(field, arguments):
    with pytest.raises(InputError, match=f"^{field}: .* is not allowed"):
        ConjugateGradient([weight()], **arguments)


@pytest.mark.parametrize("second", [None, GoldenSection(), "cg", ConjugateDirection()])
def test_a_second_phase_is_a_minimizer(second):
    with pytest.raises(InputError, match="^second: .* use Automatic"):
        SecondPhase([weight()], second)


@pytest.mark.parametrize("second", [SELF_SCALED_BFGS, DEFAULT], ids=["limited", "dense"])
def test_a_float32_model_resumes_with_float64_memory(second, tmp_path):
    """The memory of curvature is float64, whatever the parameters are."""
    model = network().float()
    inputs, targets = (part.float() for part in samples())
    optimizer = SecondPhase(model.parameters(), second)
    for _ in range(6):
        optimizer.step(lambda: mse_loss(model(inputs), targets))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    other = network().float()
    again = SecondPhase(other.parameters(), second)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    for _ in range(6):
        optimizer.step(lambda: mse_loss(model(inputs), targets))
        again.step(lambda: mse_loss(other(inputs), targets))
        assert torch.equal(flat(model), flat(other))


# ---- closures of the other convention, and losses that change ------------------------------------


def with_backward(model, inputs, targets, detached=False):
    def closure():
        model.zero_grad()
        loss = mse_loss(model(inputs), targets)
        loss.backward()
        return loss.detach() if detached else loss

    return closure


def without_backward(model, inputs, targets):
    return lambda: mse_loss(model(inputs), targets)


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("line_search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_closures_with_and_without_backward_give_the_same_iterates(
    direction, line_search, detached
):
    """Bit for bit; each call with backward counts as an evaluation of a gradient."""
    models, data, calls = (network(), network()), samples(), []
    descent = Descent(direction, line_search)
    plain, other = (SecondPhase(model.parameters(), descent) for model in models)
    closure = with_backward(models[1], *data, detached)
    for _ in range(8):
        calls.clear()
        losses = plain.step(lambda: mse_loss(models[0](data[0]), data[1]))
        assert other.step(lambda: (calls.append(1), closure())[1]) == losses
        assert torch.equal(flat(models[0]), flat(models[1]))
        assert other.result.passes == 3 * len(calls)


@every_optimizer
def test_gradients_are_left_as_torchs_lbfgs_leaves_them(optimizer_of):
    """Those of the parameters' present values, where the search has them, else of those before."""
    for closure_of in (with_backward, without_backward):
        model, data = network(), samples()
        optimizer = optimizer_of(model.parameters())
        for _ in range(5):
            before = flat(model)
            optimizer.step(closure_of(model, *data))
            found = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            expected = []
            for at in (flat(model), before):
                again = network()
                nn.utils.vector_to_parameters(at, again.parameters())
                mse_loss(again(data[0]), data[1]).backward()
                expected.append(torch.cat([p.grad.reshape(-1) for p in again.parameters()]))
            near = [torch.allclose(found, e, rtol=1e-12, atol=1e-14) for e in expected]
            assert near[0] or (near[1] and optimizer_of is ConjugateGradient)


@pytest.mark.parametrize("kind", ["plain", "backward"])
@every_optimizer
def test_a_loss_that_has_changed_costs_a_restart(optimizer_of, kind):
    """The step after it is a first step: the same as that of a new optimizer."""
    model, generator = network(), torch.Generator().manual_seed(0)
    optimizer = optimizer_of(model.parameters())
    for step in range(24):
        if step % 6 == 0:
            inputs = torch.randn(50, 3, generator=generator, dtype=torch.float64)
            targets = torch.stack([inputs.prod(dim=1), inputs.sum(dim=1)], dim=1)
        twin = network()
        twin.load_state_dict(model.state_dict())
        closure_of = with_backward if kind == "backward" else without_backward
        closures = [closure_of(m, inputs, targets) for m in (model, twin)]
        before = closures[0]().item()
        loss = optimizer.step(closures[0]).item()
        assert loss < before and loss == closures[0]().item()
        assert optimizer.result.restarted is (step in (6, 12, 18))
        if step % 6 == 0:
            optimizer_of(twin.parameters()).step(closures[1])
            assert torch.equal(flat(model), flat(twin))


def test_the_same_loss_in_another_order_is_no_restart():
    """Rounding in float32 is no new loss."""
    model = network(torch.float32)
    inputs, targets = samples(torch.float32)
    optimizer = SecondPhase(model.parameters())
    for seed in range(30):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        optimizer.step(with_backward(model, inputs[order], targets[order]))
        assert not optimizer.result.restarted


@every_optimizer
def test_more_iterations_a_step_are_the_same_iterations(optimizer_of):
    models, data = (network(), network()), samples()
    one = optimizer_of(models[0].parameters())
    many = optimizer_of(models[1].parameters(), max_iter=7)
    for _ in range(3):
        last = [one.step(lambda: mse_loss(models[0](data[0]), data[1])) for _ in range(7)][-1]
        assert many.step(lambda: mse_loss(models[1](data[0]), data[1])) == last
        assert torch.equal(flat(models[0]), flat(models[1]))
    with pytest.raises(InputError, match="^max_iter: 0"):
        optimizer_of(models[0].parameters(), max_iter=0)


def hostile_closures(model):
    inputs, targets = samples()

    def loss():
        return mse_loss(model(inputs), targets)

    def changes():
        with torch.no_grad():
            model[0].weight.add_(1e-3)
        return loss()

    def twice():
        found = loss()
        found.backward(retain_graph=True)
        found.backward()
        return found

    def raises():
        raise ZeroDivisionError("in the middle")

    return {
        "changes the parameters": changes,
        "2 times the gradient": twice,
        "without a graph": lambda: loss().detach(),
        "nan": lambda: loss() * float("nan"),
        "in the middle": raises,
        "real scalar": lambda: model(inputs),
        "loss as a real scalar": lambda: model(inputs).square().sum().reshape(1).to_sparse(),
    }


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["plain", "backward"])
@pytest.mark.parametrize("message", hostile_closures(None))
@every_optimizer
def test_hostile_closures_leave_parameters_and_gradients(optimizer_of, message, kind, call):
    """From a call on, in the first step or within a search of a later one."""
    model = network()
    good = (with_backward if kind == "backward" else without_backward)(model, *samples())
    hostile = hostile_closures(model)[message]
    optimizer = optimizer_of(model.parameters())
    for steps in (0, 4):
        for _ in range(steps):
            optimizer.step(good)
        before, gradients = flat(model), [p.grad for p in model.parameters()]
        calls = []

        def closure(calls=calls):
            calls.append(1)
            return good() if len(calls) < call else hostile()

        try:
            optimizer.step(closure)
        except (InputError, NonFiniteError, ZeroDivisionError) as error:
            assert "\n" not in str(error)
            assert torch.equal(flat(model), before)
            assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
        else:
            # a search takes what is not finite as a wall, a value needs no graph, and a doubled
            # gradient is looked for at the first step only
            harmless = ("nan", "2 times the gradient", "without a graph")
            assert len(calls) < call or message in harmless
            assert torch.isfinite(flat(model)).all()


def test_amps_scaler_is_one_clear_line():
    model, data = network(torch.float32), samples(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def closure():
        model.zero_grad()
        loss = mse_loss(model(data[0]), data[1])
        scaler.scale(loss).backward()
        return loss

    with pytest.raises(InputError, match="leaves 1.0[23]e.03 times the gradient .* AMP"):
        SecondPhase(model.parameters()).step(closure)
    scaler.scale(mse_loss(model(data[0]), data[1])).backward()
    with pytest.raises(InputError, match="^closure: None .* GradScaler"):
        scaler.step(SecondPhase(model.parameters()))


@pytest.mark.parametrize("scheduler", ["StepLR", "ReduceLROnPlateau"])
def test_there_is_no_learning_rate_to_be_scheduled(scheduler):
    optimizer = SecondPhase(network().parameters())
    resumed = SecondPhase(network().parameters())
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        with pytest.raises(InputError, match="^optimizer: .* use no scheduler"):
            getattr(torch.optim.lr_scheduler, scheduler)(each, 1)


def test_a_parameter_frozen_on_the_way_does_not_fit_the_preconditioner():
    model, (inputs, targets) = network(), samples()
    adam = torch.optim.Adam(model.parameters())
    mse_loss(model(inputs), targets).backward()
    adam.step()
    optimizer = SecondPhase(model.parameters(), preconditioner=adam)
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    next(model.parameters()).requires_grad_(False)
    with pytest.raises(InputError, match="^params: .* of the preconditioner"):
        optimizer.step(lambda: mse_loss(model(inputs), targets))
    with pytest.raises(InputError, match="^preconditioner: 'adam'"):
        SecondPhase(model.parameters(), preconditioner="adam")


def test_lazy_parameters_have_no_shape_yet():
    with pytest.raises(InputError, match="^params: .* lazy module"):
        SecondPhase(nn.LazyLinear(2).parameters()).step(lambda: torch.zeros(()))


def test_a_loss_that_the_dtype_hardly_holds_is_at_its_resolution():
    """Or converged, where the CPU counts numbers as small as its gradient as 0."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = SecondPhase([weight])
    optimizer.step(lambda: 1e-40 * (weight**2).sum())
    with full_precision():
        gone = torch.full((3,), 1e-40).sum() == 0
    assert optimizer.result.status == ("converged" if gone else "resolution")
    assert torch.equal(weight, torch.ones(3))


def test_a_loss_that_the_dtype_holds_is_minimized_however_small_it_is():
    weight = nn.Parameter(torch.ones(3))
    optimizer = SecondPhase([weight])
    optimizer.step(lambda: 1e-37 * (weight**2).sum())
    assert optimizer.result.status == "moved"
    assert weight.abs().max() < 1e-6
