"""The full loss in full precision, whatever torch is set to, and torch as it was afterwards."""

import threading

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from twophase import AdamSettings, InputError, LeastSquares, SecondPhase, Term, TwoPhase, fit
from twophase.adam import Adam
from twophase.losses import mse
from twophase.objective import FunctionObjective
from twophase.objectives import ClosureObjective, FullBatch, Streamed
from twophase.parameters import ParameterVector
from twophase.precision import full_precision

NEW = hasattr(torch.backends, "fp32_precision")
# each after what it falls back on
SETTINGS = [
    *(("generic", "all"), ("cuda", "all"), ("mkldnn", "all")),
    *(("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")),
    *(("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")),
] * NEW
DEVICES = ("cpu", "cuda")
backends = torch.backends


def read(backend, operation):
    return torch._C._get_fp32_precision_getter(backend, operation)


def write(backend, operation, precision):
    torch._C._set_fp32_precision_setter(backend, operation, precision)


def told(function):
    try:
        return function()
    except RuntimeError:
        return "mixed"


def state():
    """All that torch tells of its precision."""
    older = torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32
    casting = [torch.is_autocast_enabled(device) for device in DEVICES]
    return [read(*setting) for setting in SETTINGS], [told(one) for one in older], casting


def reduced():
    """What is computed in less than float32 now."""
    found = {setting for setting in SETTINGS if read(*setting) in ("tf32", "bf16")}
    found |= {device for device in DEVICES if torch.is_autocast_enabled(device)}
    found |= {"products"} if told(torch.get_float32_matmul_precision) != "highest" else set()
    return found | ({"cudnn"} if told(lambda: backends.cudnn.allow_tf32) else set())


def as_at_first():
    """As torch is when a process starts."""
    for device in DEVICES:
        torch.set_autocast_enabled(device, False)
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for setting in SETTINGS:
        write(*setting, "tf32" if setting in (("cuda", "conv"), ("cuda", "rnn")) else "none")


@pytest.fixture(autouse=True)
def torch_as_at_first():
    as_at_first()
    yield
    as_at_first()


def probed():
    """What torch tells now, and after changes, which show what falls back on what."""
    found = [state()]
    for precision in ("tf32", "ieee") * NEW:
        for parent in SETTINGS[:3]:
            write(*parent, precision)
            found.append(state())
    for precision in ("tf32", "ieee") * NEW:
        for layer in ("conv", "rnn"):
            write("cuda", layer, precision)
        found.append(state())
    for backend in ("cuda", "mkldnn") * NEW:
        write(backend, "matmul", "ieee")
        found.append(state())
    return found


def nothing():
    pass


def medium():
    torch.set_float32_matmul_precision("medium")


def high_without_cudnn():
    torch.set_float32_matmul_precision("high")
    backends.cudnn.allow_tf32 = False


def allowed():
    backends.cuda.matmul.allow_tf32 = True


def autocast():
    for device in DEVICES:
        torch.set_autocast_enabled(device, True)


def all_tf32():
    backends.fp32_precision = "tf32"


def all_bf16():
    backends.fp32_precision = "bf16"


def cuda():
    backends.cudnn.fp32_precision = "tf32"
    backends.cuda.matmul.fp32_precision = "tf32"


def layers():
    backends.cudnn.conv.fp32_precision = "ieee"
    backends.cudnn.rnn.fp32_precision = "ieee"


def cpu():
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.mkldnn.conv.fp32_precision = "bf16"
    backends.mkldnn.rnn.fp32_precision = "bf16"
    write("mkldnn", "all", "tf32")


def both_for_products():
    torch.set_float32_matmul_precision("high")
    backends.cuda.matmul.fp32_precision = "ieee"


def both_for_convolutions():
    backends.cudnn.allow_tf32 = False
    backends.cudnn.conv.fp32_precision = "tf32"


def both_for_recurrent_layers():
    backends.cudnn.allow_tf32 = False
    backends.cudnn.rnn.fp32_precision = "tf32"


def both_for_all():
    torch.set_float32_matmul_precision("medium")
    backends.fp32_precision = "bf16"
    backends.mkldnn.matmul.fp32_precision = "tf32"
    backends.cudnn.conv.fp32_precision = "none"


OLDER = [nothing, medium, high_without_cudnn, allowed, autocast]
NEWER = [
    *(all_tf32, all_bf16, cuda, layers, cpu),
    *(both_for_products, both_for_convolutions, both_for_recurrent_layers, both_for_all),
]
users = pytest.mark.parametrize("choose", OLDER + NEWER * NEW, ids=lambda choose: choose.__name__)


@users
@pytest.mark.parametrize("interrupted", [False, True])
def test_all_is_full_inside_and_as_it_was_afterwards(choose, interrupted):
    choose()
    expected = probed()
    as_at_first()
    choose()
    try:
        with full_precision():
            assert not reduced()
            with full_precision():
                assert not reduced()
            assert not reduced()
            if interrupted:
                raise KeyError
    except KeyError:
        assert interrupted
    assert probed() == expected


@users
def test_what_is_set_inside_is_gone_afterwards(choose):
    choose()
    expected = probed()
    as_at_first()
    choose()
    with full_precision():
        torch.set_float32_matmul_precision("medium")
        backends.cudnn.allow_tf32 = True
        with full_precision():
            assert not reduced()
        assert torch.get_float32_matmul_precision() == "medium" and backends.cudnn.allow_tf32
    assert probed() == expected


def test_threads_that_overlap_leave_all_as_it_was():
    """The one that began first ends first: the other one's precision stays until it ends."""
    torch.set_float32_matmul_precision("medium")
    expected = state()
    began, ended, seen = threading.Event(), threading.Event(), []

    @full_precision()
    def other():
        began.set()
        assert ended.wait(60)
        seen.append(reduced())

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        assert began.wait(60)
    assert not reduced()
    ended.set()
    thread.join()
    assert seen == [set()] and state() == expected


def test_a_decorated_function_is_full_each_time_it_is_called():
    seen = full_precision()(reduced)
    torch.set_float32_matmul_precision("medium")
    assert seen() == seen() == set()
    assert "products" in reduced()


def choose_all():
    """Everything at once: products, convolutions, and autocast."""
    medium()
    autocast()


class Spy(nn.Module):
    """A network that writes down what is reduced forwards and backwards, with how many inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.seen = []

    def forward(self, inputs):
        self.look(inputs)
        outputs = self.net(inputs)
        if outputs.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(outputs):
            outputs.register_hook(lambda gradient: self.look(inputs))
        return outputs

    def look(self, inputs):
        self.seen.append((len(inputs), frozenset(reduced())))

    @property
    def found(self):
        """What was reduced in each of the calls, which are forgotten."""
        found, self.seen = self.seen, []
        return {what for _, what in found}


INPUTS = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS.prod(dim=1, keepdim=True).sin()
FULL = {frozenset()}


def residual(model, points):
    return model(points[0]) - points[1]


def closure_of(model, calls_backward):
    def closure():
        loss = mse(model(INPUTS), TARGETS)
        if calls_backward:
            loss.backward()
        return loss

    return closure


def closure_objective(model, calls_backward):
    return ClosureObjective(ParameterVector(model.parameters()), closure_of(model, calls_backward))


OBJECTIVES = {
    "full batch": lambda model: FullBatch(model, mse, INPUTS, TARGETS),
    "streamed": lambda model: Streamed(model, mse, DataLoader(TensorDataset(INPUTS, TARGETS), 8)),
    "least squares": lambda model: LeastSquares(model, [Term(residual, (INPUTS, TARGETS))]),
    "closure": lambda model: closure_objective(model, False),
    "closure with backward": lambda model: closure_objective(model, True),
    "function": lambda model: FunctionObjective(
        lambda x: torch.func.functional_call(model, {"net.0.weight": x.reshape(4, 2)}, INPUTS).sum()
    ),
}
EVALUATIONS = {
    "full batch": ["value", "value_and_gradient", "score", "measure", "hessian_vector"],
    "streamed": ["value", "value_and_gradient", "score", "measure", "hessian_vector"],
    "least squares": ["value", "value_and_gradient", "score", "measure", "residuals", "linearize"]
    + ["pull", "push"],
    "closure": ["value", "value_and_gradient", "score", "measure"],
    "closure with backward": ["value", "value_and_gradient", "score", "measure"],
    "function": ["value", "value_and_gradient", "hessian_vector"],
}


def evaluate(objective, name, x):
    arguments = {
        "hessian_vector": (x, torch.ones_like(x)),
        "pull": (x, torch.ones(24, dtype=torch.float64)),
        "push": (x, torch.ones_like(x)),
    }
    return getattr(objective, name)(*arguments.get(name, (x,)))


def start_of(objective):
    return objective.vector.read() if hasattr(objective, "vector") else torch.ones(8)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in EVALUATIONS.items() for name in names]
)
def test_every_evaluation_of_the_full_loss_is_full(kind, name):
    model = Spy()
    objective = OBJECTIVES[kind](model)
    choose_all()
    before = state()
    for _ in range(2):  # the second one may know more
        evaluate(objective, name, start_of(objective))
    assert model.found == FULL and state() == before


@pytest.mark.parametrize("direct", [True, False])
def test_a_linearization_is_full_whichever_way_it_is_made(direct, monkeypatch):
    model = Spy()
    objective = LeastSquares(model, [Term(residual, (INPUTS, TARGETS))])
    monkeypatch.setattr(LeastSquares, "direct", direct)
    choose_all()
    objective.check_jacobian()
    assert objective.size == (24, 17)
    objective.linearize(objective.vector.read())
    assert model.found == FULL


@pytest.mark.parametrize("kind", ["full batch", "streamed", "least squares"])
def test_mini_batches_are_as_torch_is_set(kind):
    model = Spy()
    objective = OBJECTIVES[kind](model)
    choose_all()
    expected = frozenset(reduced())
    adam = Adam(model.parameters(), AdamSettings(batch_size=8), torch.Generator())
    adam.epoch(objective)
    assert model.found == {expected}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_evaluation_that_fails_leaves_torch_as_it_was(kind, monkeypatch):
    model = Spy()
    objective = OBJECTIVES[kind](model)
    choose_all()
    before = state()

    def fail(inputs):
        raise KeyError("no such input")

    monkeypatch.setattr(model, "look", fail)
    for name in ("value", "value_and_gradient"):
        with pytest.raises((KeyError, InputError), match="no such input"):
            evaluate(objective, name, start_of(objective))
        assert state() == before


@pytest.mark.parametrize("calls_backward", [False, True])
@pytest.mark.parametrize("optimizer_of", [SecondPhase, TwoPhase])
def test_steps_of_full_batches_are_full(optimizer_of, calls_backward):
    """Adam's, too, whose gradient is that of the full loss."""
    model = Spy()
    optimizer = optimizer_of(model.parameters())
    closure = closure_of(model, calls_backward)
    choose_all()
    before = state()
    for _ in range(3):
        optimizer.step(closure)
        assert model.found == FULL and state() == before


def test_epochs_of_the_optimizer_are_full_at_their_end_alone():
    model = Spy()
    optimizer = TwoPhase(model.parameters(), batches=3, switch=1)
    choose_all()
    expected = frozenset(reduced())
    for epoch in range(3):
        for some in torch.arange(24).split(8) if epoch == 0 else ():
            optimizer.step(lambda some=some: mse(model(INPUTS[some]), TARGETS[some]))
        assert model.found == ({expected} if epoch == 0 else set())
        optimizer.end_epoch(closure_of(model, False))
        assert model.found == FULL
    assert [record.phase for record in optimizer.records] == ["adam", "second", "second"]


def test_a_training_is_full_but_for_adams_batches():
    model = Spy()
    choose_all()
    before, expected = state(), frozenset(reduced())
    history = fit(
        model, (INPUTS, TARGETS), validation=(INPUTS[:6], TARGETS[:6]), epochs=4, device="cpu",
        adam=AdamSettings(batch_size=8), switch=2,
    ).history  # fmt: skip
    assert history.phase.tolist() == ["adam"] * 2 + ["second"] * 2
    batches = [what for count, what in model.seen if count == 8]
    others = [what for count, what in model.seen if count != 8]
    assert len(batches) == 2 * 3 * 2  # forwards and backwards
    assert set(batches) == {expected} and set(others) == FULL and state() == before


def products():
    # torch leaves smaller ones as they are
    return nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512)), (512,), 512


def convolutions():
    layers = nn.Conv2d(16, 24, 3), nn.Tanh(), nn.Conv2d(24, 8, 3), nn.Flatten(), nn.Linear(2048, 3)
    return nn.Sequential(*layers), (16, 20, 20), 3


# a network, its inputs and outputs, and what reduces the precision of its operations
REDUCED = {"products": (products, medium), "convolutions": (convolutions, cpu)}


@pytest.mark.parametrize("name", list(REDUCED)[: 1 + NEW])
def test_losses_are_the_same_to_the_bit(name):
    build, choose = REDUCED[name]
    generator = torch.manual_seed(0)
    model, shape, width = build()
    inputs, targets = (torch.randn(128, *n, generator=generator) for n in (shape, (width,)))
    objectives = {
        "full batch": FullBatch(model, mse, inputs, targets),
        "least squares": LeastSquares(model, [Term(residual, (inputs, targets))]),
        "closure": ClosureObjective(
            ParameterVector(model.parameters()), lambda: mse(model(inputs), targets)
        ),
    }
    found = []
    for change in (nothing, choose):
        change()
        values = {"outputs": model(inputs).tolist()}
        for kind, objective in objectives.items():
            x = objective.vector.read()
            value, gradient = objective.value_and_gradient(x)
            values[kind] = [value, objective.resolution, objective.value(x), gradient.tolist()]
        found.append(values)
    if found[0].pop("outputs") == found[1].pop("outputs"):
        pytest.skip("bfloat16 inside of float32 operations changes nothing on this CPU")
    assert found[0] == found[1]


@pytest.mark.parametrize("calls_backward", [False, True])
def test_steps_under_autocast_are_those_without(calls_backward):
    losses = []
    for enabled in (False, True):
        model = Spy()
        optimizer, closure = SecondPhase(model.parameters()), closure_of(model, calls_backward)
        with torch.autocast("cpu", torch.bfloat16, enabled):
            losses.append([optimizer.step(closure).item() for _ in range(8)])
    assert losses[0] == losses[1] and losses[0][-1] < 0.5 * losses[0][0]


LOSSES = {"mean squares": (mse, TARGETS), "classes": (cross_entropy, (TARGETS[:, 0] > 0).long())}


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_phase_under_autocast_is_that_without(name):
    loss, targets = LOSSES[name]
    histories = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2 if "c" in name else 1))
        with torch.autocast("cpu", torch.bfloat16, enabled):
            done = fit(model, (INPUTS, targets), loss=loss, epochs=8, adam=None, device="cpu")
        histories.append(done.history)
    first, second = histories
    assert first.train_loss.tolist() == second.train_loss.tolist()
    assert first.grad_norm.tolist() == second.grad_norm.tolist()
    assert first.train_loss.iloc[-1] < 0.5 * first.train_loss.iloc[0]


def test_compiled_models_are_compiled_once_with_a_graph_and_once_without():
    """Where products are reduced for Adam's batches, the full loss is that without all the same."""
    counts, losses = [], []
    for choose in (nothing, medium):
        torch._dynamo.reset()
        compiled = CompileCounter()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        fast = torch.compile(model, backend=compiled)
        objective = FullBatch(fast, mse, INPUTS, TARGETS)
        choose()
        x = objective.vector.read()
        objective.batch_loss(torch.arange(24)).backward()
        losses.append([objective.value(x), *objective.value_and_gradient(x)[1].tolist()])
        counts.append(compiled.frame_count)
    assert losses[0] == losses[1]
    assert counts[0] <= 2


def subnormal():
    """The square of 1e-20 in float32, 1e-40: 0 where such numbers are flushed."""
    return torch.full((3,), 1e-20).square().sum().item()


@pytest.fixture
def flushable():
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("before", [False, True])
def test_subnormal_numbers_are_0_inside_and_as_before_afterwards(before, flushable):
    torch.set_flush_denormal(before)
    expected = subnormal()
    assert (expected == 0) == before
    with pytest.raises(KeyError), full_precision():
        assert subnormal() == 0
        with full_precision():
            assert subnormal() == 0
        assert subnormal() == 0
        raise KeyError
    assert subnormal() == expected
