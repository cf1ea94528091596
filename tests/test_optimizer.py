"""The torch optimizer: known minima, invariances, exact resume, and what users do wrong."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import twophase
from twophase.cg import DIRECTIONS
from twophase.errors import InputError, NonFiniteError
from twophase.line_search.golden_section import LINE_SEARCHES
from twophase.problems import toys


def minimise(function, start, iterations, **settings):
    """Run the optimizer on a function of one vector; the vector, the optimizer, its work."""
    x = nn.Parameter(torch.as_tensor(start, dtype=torch.float64).clone())
    optimizer = twophase.ConjugateGradient([x], **settings)
    evaluations = 0
    for done in range(1, iterations + 1):
        optimizer.step(lambda: function(x))
        evaluations += optimizer.result.evaluations
        if optimizer.result.status != "moved":
            return x.detach(), optimizer, done - 1, evaluations
    return x.detach(), optimizer, iterations, evaluations


@pytest.mark.parametrize("seed", range(5))
def test_a_quadratic_of_condition_1e3_takes_at_most_40_iterations(seed):
    generator = torch.Generator().manual_seed(seed)
    bowl = toys.Quadratic.log_spaced(20, 1e3, generator)
    _, optimizer, iterations, _ = minimise(
        bowl, torch.ones(20), 100, line_search="golden-tight", zero_gradient_norm=1e-6
    )
    assert optimizer.result.status == "converged"
    assert optimizer.result.gradient_norm <= 1e-6
    assert iterations <= 40


@pytest.mark.parametrize("line_search", ["golden", "golden-tight"])
@pytest.mark.parametrize(
    ("function", "start", "minimum"),
    [
        (toys.rosenbrock(2), [-1.2, 1.0], [1.0, 1.0]),
        (toys.rosenbrock(10), [-1.2, 1.0] * 5, [1.0] * 10),
        (toys.beale(), [1.0, 1.0], [3.0, 0.5]),
    ],
    ids=["rosenbrock-2", "rosenbrock-10", "beale"],
)
def test_reaches_known_minima(function, start, minimum, line_search):
    x, *_ = minimise(function, start, 1500, line_search=line_search)
    torch.testing.assert_close(x, torch.tensor(minimum).double(), rtol=0, atol=1e-6)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def samples(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(50, 3, generator=generator, dtype=dtype)
    return inputs, torch.stack([inputs.prod(dim=1), inputs.sum(dim=1)], dim=1)


def train(model, steps, loss=mse_loss, groups=None, **settings):
    inputs, targets = samples(next(model.parameters()).dtype)
    optimizer = twophase.ConjugateGradient(groups or model.parameters(), **settings)
    losses = [optimizer.step(lambda: loss(model(inputs), targets)).item() for _ in range(steps)]
    return losses, optimizer


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("scale", [1e6, 1e-6])
@pytest.mark.parametrize("beta", ["FR", "PR", "PR+"])
def test_the_scale_of_the_loss_does_not_matter(scale, beta):
    plain, scaled = network(), network()
    train(plain, 8, beta=beta)
    train(scaled, 8, lambda y, t: scale * mse_loss(y, t), beta=beta)
    torch.testing.assert_close(flat(scaled), flat(plain), rtol=1e-6, atol=1e-8)


def test_the_cut_into_tensors_and_groups_does_not_matter():
    """One weight matrix against its two halves: the iterates are equal to the last bit."""
    inputs, targets = samples()
    whole = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    upper, lower = (nn.Parameter(part.clone()) for part in whole.detach().split([1, 2]))
    one = twophase.ConjugateGradient([whole])
    two = twophase.ConjugateGradient([{"params": [upper]}, {"params": [lower]}])
    for _ in range(6):
        one.step(lambda: mse_loss((inputs @ whole).tanh(), targets))
        two.step(lambda: mse_loss((inputs @ torch.cat([upper, lower])).tanh(), targets))
        assert torch.equal(whole, torch.cat([upper, lower]))


def test_the_chunks_of_the_batch_do_not_matter():
    plain, chunked = network(), network()
    inputs, targets = samples()

    def chunked_loss():
        parts = zip(inputs.split(7), targets.split(7), strict=True)
        return sum(mse_loss(chunked(x), t, reduction="sum") for x, t in parts) / targets.numel()

    train(plain, 10)
    optimizer = twophase.ConjugateGradient(chunked.parameters())
    for _ in range(10):
        optimizer.step(chunked_loss)
    torch.testing.assert_close(flat(chunked), flat(plain), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_lowers_the_loss_and_returns_it(dtype):
    model = network(dtype)
    losses, _ = train(model, 30)
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
    optimizer = twophase.ConjugateGradient(closure.model.parameters(), line_search="golden")
    for _ in range(3):
        closure.with_graph.clear()
        optimizer.step(closure)
        assert sum(closure.with_graph) == 1
        # the search's trials, and in the first step the check that the loss repeats itself
        assert 0 <= len(closure.with_graph) - 1 - optimizer.result.evaluations <= 1
        assert optimizer.result.passes == len(closure.with_graph) + 2


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_passes_are_what_the_closure_was_asked_for(line_search, direction):
    closure = Recorded(network())
    optimizer = twophase.ConjugateGradient(
        closure.model.parameters(), line_search=line_search, direction=direction
    )
    for _ in range(10):
        closure.with_graph.clear()
        optimizer.step(closure)
        forward, backward = len(closure.with_graph), sum(closure.with_graph)
        assert optimizer.result.passes == forward + 2 * backward


def test_no_gradient_is_computed_twice():
    """A search by slopes starts from the gradient that the last one ended with."""
    closure = Recorded(network())
    optimizer = twophase.ConjugateGradient(closure.model.parameters(), line_search="wolfe")
    optimizer.step(closure)
    for _ in range(10):
        closure.with_graph.clear()
        optimizer.step(closure)
        assert len(closure.with_graph) == optimizer.result.evaluations


def test_a_state_dict_resumes_exactly():
    straight = network()
    train(straight, 12)
    first = network()
    _, optimizer = train(first, 5)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = network()
    second.load_state_dict(saved["model"])
    resumed = twophase.ConjugateGradient(second.parameters())
    resumed.load_state_dict(saved["optimizer"])
    inputs, targets = samples()
    for _ in range(7):
        resumed.step(lambda: mse_loss(second(inputs), targets))
    assert torch.equal(flat(second), flat(straight))


@pytest.mark.parametrize("arguments", [{}, {"beta": "HZ"}, {"history": 3}, {"beta": "PR+"}])
def test_a_preconditioned_state_resumes_exactly_without_its_adam(arguments):
    def prefix():
        model = network()
        adam = torch.optim.Adam(model.parameters())
        for _ in range(5):
            adam.zero_grad()
            mse_loss(model(samples()[0]), samples()[1]).backward()
            adam.step()
        return model, adam

    straight, adam = prefix()
    train(straight, 12, preconditioner=adam, **arguments)
    stopped, adam = prefix()
    _, optimizer = train(stopped, 5, preconditioner=adam, **arguments)
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = network()
    model.load_state_dict(saved["model"])
    resumed = twophase.ConjugateGradient(model.parameters(), **arguments)
    resumed.load_state_dict(saved["optimizer"])
    inputs, targets = samples()
    for _ in range(7):
        resumed.step(lambda: mse_loss(model(inputs), targets))
    assert torch.equal(flat(model), flat(straight))
    plain, _ = prefix()
    train(plain, 12, **arguments)
    assert not torch.equal(flat(plain), flat(straight))


def test_restart_makes_other_data_safe():
    model = network()
    inputs, targets = samples()
    optimizer = twophase.ConjugateGradient(model.parameters())
    for count in (20, 35, 50):
        for _ in range(5):
            optimizer.step(lambda n=count: mse_loss(model(inputs[:n]), targets[:n]))
        before = mse_loss(model(inputs), targets).item()
        optimizer.restart()
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    assert optimizer.result.loss < before
    assert optimizer.state_dict()["state"][0]["memory"]["age"] == 0


def test_parameters_changed_between_steps_restart_the_direction():
    model = network()
    _, optimizer = train(model, 4)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight[0, 0] += 0.5
        other[0].weight[0, 0] += 0.5
    inputs, targets = samples()
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    train(other, 1)
    gradient_step = flat(other)
    # the same direction −g; only the first trial step, hence the accuracy of the step, differs
    cosine = nn.functional.cosine_similarity(flat(model), gradient_step, dim=0)
    assert optimizer.state_dict()["state"][0]["memory"]["age"] == 0
    assert cosine > 0.999


def test_an_added_group_joins_the_vector():
    model = network()
    optimizer = twophase.ConjugateGradient(model[0].parameters())
    inputs, targets = samples()
    before = flat(model[2])
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    assert torch.equal(flat(model[2]), before)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    assert not torch.equal(flat(model[2]), before)


def test_unused_and_frozen_parameters_stay():
    model = network()
    model[0].bias.requires_grad_(False)
    spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    frozen = model[0].bias.clone()
    train(model, 3, groups=[*model.parameters(), spare])
    assert torch.equal(model[0].bias, frozen)
    assert torch.equal(spare, torch.ones(2, dtype=torch.float64))


def test_at_the_resolution_of_float32_it_says_so_and_stays():
    model = nn.Linear(3, 2)
    inputs, targets = samples(torch.float32)
    optimizer = twophase.ConjugateGradient(model.parameters())

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
    "layer", [nn.Dropout(0.1), nn.BatchNorm1d(8, dtype=torch.float64)], ids=["dropout", "batchnorm"]
)
def test_modules_that_do_not_repeat_are_named(layer):
    model = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)).double()
    before = flat(model)
    with pytest.raises(InputError, match=f"{type(layer).__name__} in training mode"):
        train(model, 1)
    assert torch.equal(flat(model), before)
    train(model.eval(), 1)
    assert not torch.equal(flat(model), before)


def test_functional_dropout_is_found_by_its_losses():
    model = network()
    inputs, targets = samples()
    optimizer = twophase.ConjugateGradient(model.parameters())
    with pytest.raises(InputError, match="at the same parameters"):
        optimizer.step(lambda: mse_loss(nn.functional.dropout(model(inputs)), targets))


def test_an_error_in_the_closure_leaves_the_parameters_as_they_were():
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
        twophase.ConjugateGradient(model.parameters()).step(closure)
    assert torch.equal(flat(model), before)


def test_wrong_closures_are_explained():
    model = network()
    inputs, targets = samples()

    def backward():
        loss = mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    wrong = {
        "calls backward": backward,
        "without a graph": lambda: mse_loss(model(inputs), targets).detach(),
        "shape": lambda: (model(inputs) - targets) ** 2,
        "float": lambda: mse_loss(model(inputs), targets).item(),
    }
    for message, closure in wrong.items():
        with pytest.raises(InputError, match=f"^closure: .*{message}"):
            twophase.ConjugateGradient(model.parameters()).step(closure)
    with pytest.raises(InputError, match="^closure"):
        twophase.ConjugateGradient(model.parameters()).step(None)


def test_a_nan_loss_is_an_error():
    model = network()
    inputs, _ = samples()
    with pytest.raises(NonFiniteError, match="loss: nan"):
        twophase.ConjugateGradient(model.parameters()).step(lambda: model(inputs).log().mean())


def test_wrong_parameters_are_explained():
    single, double = nn.Linear(2, 2), nn.Linear(2, 2).double()
    closure = {"closure": lambda: torch.zeros(())}
    with pytest.raises(InputError, match="params: .* one dtype"):
        twophase.ConjugateGradient([*single.parameters(), *double.parameters()]).step(**closure)
    with pytest.raises(InputError, match="params: .* float32 or float64"):
        twophase.ConjugateGradient(nn.Linear(2, 2).half().parameters()).step(**closure)
    with pytest.raises(InputError, match="params: 'lr' is not allowed"):
        twophase.ConjugateGradient([{"params": single.parameters(), "lr": 0.1}])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gpu_follows_the_cpu(dtype):
    here, there = network(dtype), network(dtype).cuda()
    inputs, targets = samples(dtype)
    train(here, 5)
    optimizer = twophase.ConjugateGradient(there.parameters())
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
    with pytest.raises(InputError, match="Dropout in training mode"):
        optimizer.step(lambda: mse_loss(model(inputs), targets))


def test_functional_dropout_is_found_after_a_resume():
    model = network()
    inputs, targets = samples()
    _, optimizer = train(model, 2)
    resumed = twophase.ConjugateGradient(model.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    with pytest.raises(InputError, match="at the same parameters"):
        resumed.step(lambda: mse_loss(nn.functional.dropout(model(inputs)), targets))


def test_restart_every_reaches_the_directions():
    model = network()
    _, optimizer = train(model, 4, restart_every=2)
    assert optimizer.state_dict()["state"][0]["memory"]["age"] == 1
    _, optimizer = train(model, 3, restart_every=2)
    assert optimizer.state_dict()["state"][0]["memory"]["age"] == 0


def test_a_copy_goes_on_like_the_original():
    model = network()
    _, optimizer = train(model, 3, line_search="golden-tight", restart_every=5)
    twin_model, twin = copy.deepcopy((model, optimizer))
    inputs, targets = samples()
    optimizer.step(lambda: mse_loss(model(inputs), targets))
    twin.step(lambda: mse_loss(twin_model(inputs), targets))
    assert twin.settings == optimizer.settings
    assert torch.equal(flat(twin_model), flat(model))


def test_more_wrong_closures_are_explained():
    model = network()
    inputs, targets = samples()

    def keeps_the_graph():
        loss = mse_loss(model(inputs), targets)
        loss.backward(retain_graph=True)
        return loss

    with pytest.raises(InputError, match="^closure: .*calls backward"):
        twophase.ConjugateGradient(model.parameters()).step(keeps_the_graph)
    with pytest.raises(InputError, match="^closure: .*int64"):
        twophase.ConjugateGradient(model.parameters()).step(lambda: torch.ones(()).long())
    with pytest.raises(InputError, match="^closure"):
        twophase.ConjugateGradient(model.parameters()).step()
    with pytest.raises(InputError, match="^line_search: 5"):
        twophase.ConjugateGradient(model.parameters(), line_search=5)
