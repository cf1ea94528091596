"""All of the method in one optimizer: the histories of `fit`, resuming, and users' mistakes."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import twophase
from twophase import (
    AdamSettings,
    ConjugateDirection,
    Descent,
    Fallback,
    FromBatches,
    GoldenSection,
    Race,
    SmoothedNormPeak,
    TwoPhase,
    fit,
)
from twophase.errors import InputError, NonFiniteError
from twophase.second_phase import SELF_SCALED_BFGS

CLOSURES = ["plain", "backward", "detached"]
every_closure = pytest.mark.parametrize("kind", CLOSURES)
# what `fit` counts beside the passes: the comparison with eval mode is for models it can see
SAME = ["epoch", "phase", "train_loss", "grad_norm", "step_size", "evaluations", "note", "passes"]


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 1)).to(dtype)


def samples(dtype=torch.float64, count=60):
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return inputs, (3 * inputs[:, :1]).sin() * inputs[:, 1:]


def closure_of(kind, model, inputs, targets):
    def plain():
        return mse_loss(model(inputs), targets)

    def backward():
        model.zero_grad()
        loss = plain()
        loss.backward()
        return loss.detach() if kind == "detached" else loss

    return plain if kind == "plain" else backward


def train(optimizer, closure, steps):
    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def same(ours, theirs, kind="plain", exact=True):
    """Rows of two histories; a closure that calls backward makes a loss as dear as a gradient."""
    theirs = theirs.head(len(ours))
    for name in SAME if kind == "plain" else SAME[:-1]:
        if exact or name in ("epoch", "phase", "passes"):
            assert ours[name].tolist() == pytest.approx(theirs[name].tolist(), nan_ok=True, abs=0)
            assert ours[name].astype(str).tolist() == theirs[name].astype(str).tolist(), name
        elif name in ("train_loss", "grad_norm"):
            assert ours[name].tolist() == pytest.approx(theirs[name].tolist(), rel=1e-6), name


SETTINGS = {
    "default switch": dict(second=SELF_SCALED_BFGS, switch=Race(length=150)),
    "fixed": dict(second=SELF_SCALED_BFGS, switch=5),
    "peak": dict(second=SELF_SCALED_BFGS, switch=SmoothedNormPeak()),
    "golden section": dict(
        second=Descent(ConjugateDirection(), GoldenSection()), switch=7, fallback=None
    ),
    "impatient": dict(
        second=SELF_SCALED_BFGS,
        switch=Race(passes=12, length=90, growth=1.5),
        fallback=Fallback(trial=1),
    ),
}


@every_closure
@pytest.mark.parametrize("name", SETTINGS)
def test_full_batches_have_the_history_of_fit_bit_for_bit(name, kind):
    settings, models = SETTINGS[name], (network(), network())
    data = samples()
    adam = AdamSettings(0.01, None)
    result = fit(models[0], data, epochs=90, adam=adam, loss=mse_loss, **settings)
    optimizer = TwoPhase(models[1].parameters(), 0.01, **settings)
    closure = closure_of(kind, models[1], *data)
    train(optimizer, closure, 90)
    same(optimizer.history, result.history, kind)
    assert optimizer.finish(closure).train_loss == result.final.train_loss
    assert torch.equal(flat(models[0]), flat(models[1]))
    assert result.history.phase.nunique() > 1 or name == "peak"


@pytest.mark.parametrize("name", ["default switch", "fixed"])
def test_fit_takes_the_same_closure(name):
    models, data = (network(), network()), samples()
    closure = closure_of("backward", models[0], *data)
    result = fit(models[0], closure, epochs=70, adam=AdamSettings(0.01), **SETTINGS[name])
    optimizer = TwoPhase(models[1].parameters(), 0.01, **SETTINGS[name])
    train(optimizer, closure_of("plain", models[1], *data), 70)
    same(optimizer.history, result.history)


def mini_batches(optimizer, model, data, epochs, kind="plain", lazy=True, size=16):
    """The loop of the docstring, in the order of `fit`; `lazy`: without looking at the phase."""
    inputs, targets = data
    generator = torch.Generator().manual_seed(0)
    full = closure_of(kind, model, inputs, targets)
    while len(optimizer.records) < epochs and not optimizer.loop.ended:
        if lazy or optimizer.phase == "adam":
            if optimizer.phase == "adam":
                order = torch.randperm(len(inputs), generator=generator).split(size)
            for batch in order:
                optimizer.step(closure_of(kind, model, inputs[batch], targets[batch]))
        optimizer.end_epoch(full)
    return optimizer


@pytest.mark.parametrize("monitor", [twophase.Exact(), FromBatches()])
@pytest.mark.parametrize("lazy", [True, False])
@every_closure
@pytest.mark.parametrize("name", SETTINGS)
def test_mini_batches_have_the_history_of_fit(name, kind, lazy, monitor):
    """To rounding; means over batches are over batches of one size."""
    models, data = (network(), network()), samples(count=64)
    settings = SETTINGS[name] | {"monitor": monitor}
    adam = AdamSettings(0.01, 16)
    result = fit(models[0], data, epochs=40, adam=adam, loss=mse_loss, **settings)
    optimizer = TwoPhase(models[1].parameters(), 0.01, batches=4, **settings)
    mini_batches(optimizer, models[1], data, 40, kind, lazy)
    same(optimizer.history, result.history, kind, exact=False)


def through_a_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("name", ["impatient", "default switch", "golden section"])
def test_it_resumes_exactly_after_any_step(name, batches):
    data, settings = samples(count=64), SETTINGS[name]

    def made():
        model = network()
        return model, TwoPhase(model.parameters(), 0.01, batches, **settings)

    def go_on(model, optimizer, epochs):
        closure = closure_of("plain", model, *data)
        for _ in range(epochs):
            if batches > 1 and optimizer.phase == "adam":
                for batch in torch.arange(64).split(16):
                    parts = data[0][batch], data[1][batch]
                    optimizer.step(closure_of("plain", model, *parts))
            optimizer.step(closure) if batches == 1 else optimizer.end_epoch(closure)
        return [flat(model), *(r.train_loss for r in optimizer.records)]

    model, whole = made()
    expected = go_on(model, whole, 60)
    for steps in (1, 3, 6, 9, 14, 21, 33, 45):
        first, second = made(), made()
        go_on(*first, steps)
        saved = through_a_file({"optimizer": first[1].state_dict()})
        second[1].load_state_dict(saved["optimizer"])
        assert torch.equal(flat(first[0]), flat(second[0]))
        found = go_on(*second, 60 - steps)
        assert torch.equal(found[0], expected[0])
        assert found[1:] == expected[1:]


def test_a_state_in_the_middle_of_an_epoch_resumes_exactly():
    data, monitor = samples(count=64), FromBatches()
    parts = [(data[0][b], data[1][b]) for b in torch.arange(64).split(16)]
    ends = []
    for halt in (False, True):
        model = network()
        optimizer = TwoPhase(model.parameters(), 0.01, 4, monitor=monitor)
        for index, part in enumerate(parts):
            if halt and index == 2:
                saved = through_a_file(optimizer.state_dict())
                model = network(seed=5)
                optimizer = TwoPhase(model.parameters(), 0.01, 4, monitor=monitor)
                optimizer.load_state_dict(saved)
            optimizer.step(closure_of("plain", model, *part))
        ends.append(optimizer.end_epoch(closure_of("plain", model, *data)))
    assert ends[0].train_loss == ends[1].train_loss and ends[0].grad_norm == ends[1].grad_norm


def test_states_of_something_else_are_one_line():
    model, other = network(), nn.Linear(2, 2).double()
    optimizer = TwoPhase(model.parameters())
    plain = torch.optim.Adam(model.parameters())
    version = optimizer.state_dict()
    version["twophase"]["version"] = 99
    for state in (plain.state_dict(), {}, None, [1], {"twophase": None}, {"twophase": {}}):
        with pytest.raises(InputError, match="^state: .* version 1"):
            optimizer.load_state_dict(state)
    with pytest.raises(InputError, match="^state: 99 is not allowed; .* version 1"):
        optimizer.load_state_dict(version)
    with pytest.raises(InputError, match="^state: .*params"):
        optimizer.load_state_dict(TwoPhase(other.parameters()).state_dict())
    with pytest.raises(InputError, match="^state: .*batches"):
        optimizer.load_state_dict(TwoPhase(model.parameters(), batches=3).state_dict())


def test_a_copy_goes_its_own_way():
    model, data = network(), samples()
    optimizer = TwoPhase(model.parameters(), 0.01, **SETTINGS["fixed"])
    train(optimizer, closure_of("plain", model, *data), 9)
    both = copy.deepcopy({"model": model, "optimizer": optimizer})
    train(optimizer, closure_of("plain", model, *data), 5)
    train(both["optimizer"], closure_of("plain", both["model"], *data), 5)
    assert torch.equal(flat(model), flat(both["model"]))


# ---- Adam's part --------------------------------------------------------------------------------


FIRST = {
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
}


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("name", FIRST)
def test_the_first_phase_is_that_optimizer(name, batches):
    """Bit for bit, with a scheduler; and whatever moments it leaves, the second phase starts."""
    data = samples(count=64)
    models = network(), network()
    plain = FIRST[name](models[0].parameters())
    optimizer = TwoPhase(
        models[1].parameters(), batches=batches, first=FIRST[name](models[1].parameters()),
        second=SELF_SCALED_BFGS, switch=6,
    )  # fmt: skip
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (plain, optimizer)]
    for epoch in range(8):
        for batch in torch.arange(64).split(64 // batches):
            parts = data[0][batch], data[1][batch]
            if epoch < 6:
                plain.step(closure_of("backward", models[0], *parts))
            optimizer.step(closure_of("backward", models[1], *parts))
        if batches > 1:
            optimizer.end_epoch(closure_of("backward", models[1], *data))
        for scheduler in schedulers:
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
        if epoch < 6:
            assert torch.equal(flat(models[0]), flat(models[1]))
    assert optimizer.phase == "second" and optimizer.history.phase.iloc[-1] == "second"


def test_groups_have_their_own_rates():
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = TwoPhase(groups, 0.01)
    before = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    train(optimizer, closure_of("plain", model, *samples()), 3)
    assert torch.equal(model[0].weight, before[0]) and not torch.equal(model[2].weight, before[1])


def test_adam_costs_what_it_costs_alone():
    """An evaluation a step; one that calls backward is looked at twice or more at the start."""
    data, model, calls = samples(), network(), []
    closure = closure_of("backward", model, *data)

    def counted():
        calls.append(1)
        return closure()

    optimizer = TwoPhase(model.parameters())
    optimizer.step(counted)
    assert len(calls) == 3 and optimizer.looks == 6
    calls.clear()
    train(optimizer, counted, 15)
    assert len(calls) == 15
    assert optimizer.history.passes.sum() == 45


def test_nothing_is_switched_off_where_a_parameter_needs_no_gradient():
    model = network()
    model[0].bias.requires_grad_(False)
    before = model[0].bias.clone()
    optimizer = TwoPhase(model.parameters(), 0.01, switch=5)
    train(optimizer, closure_of("backward", model, *samples()), 20)
    assert torch.equal(model[0].bias, before) and optimizer.phase == "second"


# ---- the loss and the parameters between two steps ----------------------------------------------


@every_closure
def test_a_loss_that_has_changed_is_noticed(kind):
    """Each step lowers the loss over the present data; the history says what became of it."""
    model, generator = network(), torch.Generator().manual_seed(0)
    optimizer = TwoPhase(model.parameters(), 0.01, switch=5, fallback=None)
    for step in range(40):
        if step % 8 == 0:
            inputs = torch.randn(60, 2, generator=generator, dtype=torch.float64)
            closure = closure_of(kind, model, inputs, inputs.prod(dim=1, keepdim=True))
        before = closure().item()
        loss = optimizer.step(closure).item()
        if optimizer.history.phase.iloc[-1:].tolist() == ["second"]:
            assert loss < before and loss == closure().item()
    assert [epoch for epoch, _, _ in optimizer.loop.moves] == [8, 16, 24, 32]
    assert "the loss became another one 4 times" in optimizer.report()


def test_a_loss_that_changes_with_every_step_is_warned_of_once(caplog):
    """Mini-batches without `batches=`."""
    model, (inputs, targets) = network(), samples()
    optimizer = TwoPhase(model.parameters(), 0.01, switch=2, fallback=None)
    for step in range(12):
        some = slice(5 * step, 5 * step + 30)
        optimizer.step(closure_of("plain", model, inputs[some], targets[some]))
    (said,) = [one.message for one in caplog.records if "became another" in one.message]
    assert "without `batches=`" in said


@every_closure
def test_parameters_that_have_changed_are_noticed(kind):
    model, data = network(), samples()
    closure = closure_of(kind, model, *data)
    optimizer = train(TwoPhase(model.parameters(), 0.01, switch=5, fallback=None), closure, 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    before = closure().item()
    assert optimizer.step(closure).item() < before
    assert [epoch for epoch, _, _ in optimizer.loop.moves] == [20]


def test_a_changed_loss_goes_on_exactly_after_a_resume():
    data, other = samples(), samples(count=30)
    ends = []
    for halt in (False, True):
        model = network()
        settings = SETTINGS["fixed"]
        optimizer = train(
            TwoPhase(model.parameters(), 0.01, **settings),
            closure_of("plain", model, *data), 15,
        )  # fmt: skip
        train(optimizer, closure_of("plain", model, *other), 3)
        if halt:
            saved = through_a_file(optimizer.state_dict())
            model = network(seed=3)
            optimizer = TwoPhase(model.parameters(), 0.01, **settings)
            optimizer.load_state_dict(saved)
        train(optimizer, closure_of("plain", model, *other), 20)
        ends.append((flat(model), optimizer.history.note.tolist(), optimizer.loop.moves))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


# ---- its end ------------------------------------------------------------------------------------


def test_where_the_second_phase_has_come_to_its_end_it_stays():
    """Adam is not about to get below a minimum to the last bit; a new loss makes it go on."""
    torch.manual_seed(0)
    line = nn.Linear(1, 1).double()
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    optimizer = TwoPhase(line.parameters())
    train(optimizer, lambda: mse_loss(line(x), 3 * x), 200)
    assert optimizer.ended and len(optimizer.records) < 80
    assert optimizer.spent == optimizer.loop.spent + optimizer.looks
    assert mse_loss(line(x), 3 * x).item() < 1e-20
    assert "ended: " in optimizer.report()
    train(optimizer, lambda: mse_loss(line(x), 5 * x), 30)
    assert mse_loss(line(x), 5 * x).item() < 1e-20


def test_finish_gives_back_the_second_phases_weights():
    """A rule that switches at once, and a way back that finds a reason at every iteration."""

    class Never(Fallback):
        def second(self, loss, grad_norm, passes, status=twophase.second_phase.Status.MOVED):
            done = super().second(loss, grad_norm, passes, status)
            return done._replace(switch=len(self._second) > 12, reason="enough")

    model, data = network(), samples()
    closure = closure_of("plain", model, *data)
    optimizer = TwoPhase(model.parameters(), 1e-5, switch=3, fallback=Never(max_switches=1))
    train(optimizer, closure, 30)
    assert optimizer.phase == "adam" and "return: enough" in optimizer.report()
    lowest = optimizer.history.train_loss.min()
    assert closure().item() > 1.5 * lowest
    record = optimizer.finish(closure)
    assert record.train_loss == lowest == pytest.approx(closure().item(), rel=1e-12)


def test_the_report_says_what_has_happened():
    model, data = network(), samples()
    optimizer = TwoPhase(model.parameters(), 0.01, switch=Race(length=150))
    assert "0 epochs" in optimizer.report() and "no epoch has ended" in optimizer.report()
    train(optimizer, closure_of("plain", model, *data), 60)
    text = optimizer.report()
    for part in ("trial: ", "switch: ", "the second phase pays", "next: second"):
        assert part in text
    assert len(optimizer.history) == len(optimizer.records) == 60


# ---- mistakes -----------------------------------------------------------------------------------


def twice(model, inputs, targets):
    loss = mse_loss(model(inputs), targets)
    loss.backward(retain_graph=True)
    loss.backward()
    return loss


def changed(model, inputs, targets):
    loss = mse_loss(model(inputs), targets)
    with torch.no_grad():
        model[0].weight.add_(1e-3)
    return loss


HOSTILE = {
    "2 times the gradient": twice,
    "changes the parameters": changed,
    "without a graph": lambda m, x, y: mse_loss(m(x), y).detach(),
    "real scalar": lambda m, x, y: m(x),
    "a loss without": lambda m, x, y: torch.zeros(()),
    "loss: nan": lambda m, x, y: mse_loss(m(x), y) * float("nan"),
    "loss: inf": lambda m, x, y: mse_loss(m(x), y) * float("inf"),
    "None": None,
}


@pytest.mark.parametrize("steps", [0, 3, 12])
@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_closures_are_one_line_and_change_nothing(message, steps):
    """From the start, under Adam and in the second phase; then a good closure goes on."""
    model, data = network(), samples()
    optimizer = TwoPhase(model.parameters(), 0.01, switch=6, second=SELF_SCALED_BFGS)
    good = closure_of("plain", model, *data)
    train(optimizer, good, steps)
    if steps and message == "2 times the gradient":
        return  # looked for at the start only
    before, count = flat(model).clone(), len(optimizer.records)
    hostile = HOSTILE[message]
    with pytest.raises((InputError, NonFiniteError), match=message) as caught:
        optimizer.step(hostile and (lambda: hostile(model, *data)))
    assert "\n" not in str(caught.value)
    assert torch.equal(flat(model), before) and len(optimizer.records) == count
    train(optimizer, good, 20)
    assert optimizer.phase == "second"


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("steps", [0, 4, 5, 6, 12])
def test_a_closure_that_raises_leaves_all_as_it_was(steps, at):
    """At each call within a step, also in the middle of a search; then the same history follows."""
    histories = []
    for fails in (False, True):
        model, data, calls = network(), samples(), []
        good = closure_of("plain", model, *data)
        optimizer = TwoPhase(model.parameters(), 0.01, switch=5, second=SELF_SCALED_BFGS)
        train(optimizer, good, steps)

        def failing(calls=calls, good=good):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return good()

        if fails:
            before = flat(model).clone()
            try:
                optimizer.step(failing)
            except KeyboardInterrupt:
                assert torch.equal(flat(model), before)
        train(optimizer, good, 25 - steps - (fails and len(calls) < at))
        histories.append(optimizer.history)
    length = min(map(len, histories))
    assert length > 20
    same(histories[0].head(length), histories[1].head(length))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lr=0), "lr: 0"),
        (dict(batches=0), "batches: 0"),
        (dict(second="bfgs"), "second: 'bfgs'"),
        (dict(switch="race"), "switch: 'race'"),
        (dict(fallback=3), "fallback: 3"),
        (dict(monitor=None), "monitor: None"),
        (dict(first="adam"), "first: 'str'"),
        (dict(first=torch.optim.LBFGS([nn.Parameter(torch.ones(1))])), "first: 'LBFGS'"),
        (dict(first=torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0)), "first: 'an optimizer"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(InputError, match=f"^{message}"):
        TwoPhase(network().parameters(), **settings)


def test_loops_that_are_wrong_are_one_line():
    model, data = network(), samples()
    closure = closure_of("plain", model, *data)
    with pytest.raises(InputError, match="^batches: 1 is not allowed; use the number"):
        TwoPhase(model.parameters()).end_epoch(closure)
    optimizer = TwoPhase(model.parameters(), batches=2)
    with pytest.raises(InputError, match="^end_epoch: .* use step"):
        optimizer.end_epoch(closure)
    train(optimizer, closure, 2)
    with pytest.raises(InputError, match="^batches: 'step 3 of an epoch' .* end_epoch"):
        optimizer.step(closure)
    with pytest.raises(InputError, match="^batches: 5"):
        optimizer.batches = 5
    with pytest.raises(InputError, match="^params: "):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(InputError, match="GradScaler"):
        optimizer.step()


def test_an_epoch_may_be_shorter_than_told():
    model, data = network(), samples()
    optimizer = TwoPhase(model.parameters(), batches=5)
    optimizer.step(closure_of("plain", model, *data))
    record = optimizer.end_epoch(closure_of("plain", model, *data))
    assert record.epoch == 1 and optimizer.phase == "adam"


def test_dropout_is_refused_in_the_second_phase():
    model = nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.5), nn.Linear(5, 1)).double()
    optimizer = TwoPhase(model.parameters(), switch=3)
    with pytest.raises(InputError, match="no dropout"):
        train(optimizer, closure_of("plain", model, *samples()), 6)


# ---- what fresh eyes broke ----------------------------------------------------------------------


def test_weights_kept_under_another_loss_are_not_given_back():
    model, data, extra = network(), samples(), [0.0]
    closure = closure_of("plain", model, *data)

    def moved():
        return closure() + extra[0]

    optimizer = TwoPhase(model.parameters(), 0.01, switch=5, fallback=None)
    train(optimizer, moved, 20)
    extra[0] = 1.0
    train(optimizer, moved, 20)
    last = closure().item()
    optimizer.finish(moved)
    assert closure().item() == last


def test_a_state_takes_the_place_of_an_open_step():
    model, data = network(), samples()
    closure = closure_of("plain", model, *data)
    optimizer = train(TwoPhase(model.parameters(), 0.01, switch=5), closure, 12)
    state = through_a_file(optimizer.state_dict())
    other = network(seed=2)
    resumed = TwoPhase(other.parameters(), 0.01, switch=5)
    train(resumed, closure_of("plain", other, *data), 3)
    resumed.load_state_dict(state)
    train(resumed, closure_of("plain", other, *data), 10)
    train(optimizer, closure, 10)
    same(resumed.history, optimizer.history)
    assert len(resumed.records) == len(optimizer.records) == 22


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("at", range(1, 30))
def test_an_interrupted_golden_section_leaves_no_trace(at, batches):
    """At each call of a step, also the gradient at its end; then the same iterations follow."""
    settings = dict(switch=4, second=Descent(ConjugateDirection(), GoldenSection()), fallback=None)
    histories = []
    for fails in (False, True):
        model, data, calls = network(), samples(), []
        closure = closure_of("plain", model, *data)
        optimizer = TwoPhase(model.parameters(), 0.01, batches, **settings)

        def epoch(full, optimizer=optimizer, closure=closure):
            if batches == 1:
                return optimizer.step(full)
            if optimizer.phase == "adam" and optimizer.steps.steps == 0:
                optimizer.step(closure)
            optimizer.end_epoch(full)

        for _ in range(7):
            epoch(closure)

        def failing(calls=calls, closure=closure):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return closure()

        done = 7
        if fails:
            try:
                epoch(failing)
                done += 1
            except KeyboardInterrupt:
                assert len(optimizer.records) == 7
        for _ in range(11 - done):
            epoch(closure)
        histories.append(optimizer.history)
    same(*histories)
    assert len(histories[0]) == len(histories[1]) == 11


def test_a_closing_look_that_fails_can_be_repeated():
    model, data = network(), samples()
    closure = closure_of("plain", model, *data)
    optimizer = TwoPhase(model.parameters(), batches=1 + 1)
    optimizer.step(closure)
    with pytest.raises(ZeroDivisionError):
        optimizer.end_epoch(lambda: 1 / 0)
    with pytest.raises(InputError, match="2 times the gradient"):
        optimizer.end_epoch(lambda: twice(model, *data))
    assert optimizer.records == ()
    assert optimizer.end_epoch(closure).epoch == 1


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_a_change_beside_a_resume_is_noticed(what):
    model, data, other = network(), samples(), samples(count=30)
    closure = closure_of("plain", model, *data)
    optimizer = train(TwoPhase(model.parameters(), 0.01, switch=5, fallback=None), closure, 15)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert train(optimizer, closure, 1).loop.moves == []
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    if what == "loss":
        closure = closure_of("plain", model, *other)
    else:
        with torch.no_grad():
            model[0].weight.add_(0.1)
    before = closure().item()
    assert optimizer.step(closure).item() < before
    assert [move[0] for move in optimizer.loop.moves] == [16]


def test_training_goes_on_after_the_end():
    model, data = network(), samples()
    closure = closure_of("plain", model, *data)
    optimizer = train(TwoPhase(model.parameters(), 0.01, switch=5), closure, 15)
    optimizer.finish(closure)
    before = closure().item()
    train(optimizer, closure, 5)
    assert closure().item() < before


def test_copies_and_pickles_with_a_scheduler_are_their_own():
    model, data = network(), samples()
    optimizer = TwoPhase(model.parameters(), 0.01)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    train(optimizer, closure_of("plain", model, *data), 3)
    before = flat(model)
    for copied in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        twin, other = copied
        train(other, closure_of("plain", twin, *data), 3)
        assert torch.equal(flat(model), before) and not torch.equal(flat(twin), before)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@every_closure
def test_a_parameter_without_a_gradient_has_none(kind, name, batches):
    """As in torch's loop: no decay and no momentum for a head that a step does not use."""
    heads = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)]).double()
        inputs, targets = samples()
        optimizer = FIRST[name](model.parameters())
        if ours:
            optimizer = TwoPhase(model.parameters(), batches=batches, first=optimizer)
        for step in range(6):
            head = model[0] if batches == 1 else model[step % 2]
            closure = closure_of(kind if ours else "backward", head, inputs, targets)
            if not ours:
                model.zero_grad()
            optimizer.step(closure)
            if ours and batches > 1 and step % 2:
                optimizer.end_epoch(closure_of("plain", model[0], inputs, targets))
        heads.append(flat(model))
    assert torch.equal(*heads)


def test_freezing_and_unfreezing_on_the_way_is_one_line():
    model, data = network(), samples()
    closure = closure_of("backward", model, *data)
    optimizer = train(TwoPhase(model.parameters(), 0.01), closure, 3)
    for needed in (False, True):
        model[0].bias.requires_grad_(needed)
        if not needed:
            with pytest.raises(InputError, match="^params: '3 tensors.* the 4 as at the start"):
                optimizer.step(closure)
    train(optimizer, closure, 1)


def test_a_loss_of_another_model_is_one_line():
    model, other, data = network(), network(seed=1), samples()
    message = "does not depend on the parameters|without a graph"
    for kind in CLOSURES:
        wrong = closure_of(kind, other, *data)
        for optimizer in (TwoPhase(model.parameters()), twophase.SecondPhase(model.parameters())):
            with pytest.raises(InputError, match=message):
                optimizer.step(wrong)
        with pytest.raises(InputError, match=message):
            fit(model, wrong, epochs=3)


def test_means_are_over_the_steps_that_were_made():
    model, (inputs, targets) = network(), samples(count=64)
    optimizer = TwoPhase(model.parameters(), 1e-12, batches=10, monitor=FromBatches())
    for batch in torch.arange(64).split(16):
        optimizer.step(closure_of("plain", model, inputs[batch], targets[batch]))
    record = optimizer.end_epoch(closure_of("plain", model, inputs, targets))
    loss = mse_loss(model(inputs), targets)
    size = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())]).norm()
    assert record.train_loss == pytest.approx(loss.item(), rel=1e-9)
    assert record.grad_norm == pytest.approx(size.item(), rel=1e-9)


def test_an_end_in_the_middle_of_an_epoch_is_one_line():
    model, data = network(), samples()
    optimizer = TwoPhase(model.parameters(), batches=3)
    optimizer.step(closure_of("plain", model, *data))
    with pytest.raises(InputError, match="^finish: 'after 1 steps of an epoch'"):
        optimizer.finish(closure_of("plain", model, *data))


def test_gradients_with_a_graph_are_saved_without_it():
    model, data = network(), samples()

    def closure():
        model.zero_grad()
        loss = mse_loss(model(data[0]), data[1])
        loss.backward(create_graph=True)
        return loss

    optimizer = train(TwoPhase(model.parameters(), 0.01, switch=4), closure, 10)
    assert through_a_file(optimizer.state_dict())["twophase"]["version"] == 1
    assert all(p.grad is None or not p.grad.requires_grad for p in model.parameters())


def test_a_state_that_does_not_fit_leaves_the_optimizer_as_it_was():
    model, data = network(), samples()
    closure = closure_of("plain", model, *data)
    optimizer = train(TwoPhase(model.parameters(), 0.01, switch=15), closure, 20)
    before, records = flat(model), optimizer.records
    other = train(TwoPhase(model.parameters(), 0.01, switch=3), closure, 10)
    wrong = through_a_file(other.state_dict())
    nn.utils.vector_to_parameters(before, model.parameters())
    damaged = through_a_file(optimizer.state_dict())
    del damaged["twophase"]["loop"]["aside"]
    sgd = TwoPhase(model.parameters(), first=torch.optim.SGD(model.parameters(), 0.1)).state_dict()
    for state in (wrong, damaged, sgd):
        with pytest.raises(InputError, match="^state: "):
            optimizer.load_state_dict(state)
        assert torch.equal(flat(model), before) and optimizer.records == records
    train(optimizer, closure, 3)
    assert len(optimizer.records) == 23


def test_losses_that_change_at_every_step_cost_no_more_later_on():
    """What was seen before is not gone through again."""
    fallback = Fallback()
    fallback.adam(1.0, 1.0, 3)
    fallback.swap()
    loss = 0.9
    for step in range(20_000):
        fallback.moved(loss, loss * (1.1 if step % 2 else 1 / 1.1))
        loss *= (1.1 if step % 2 else 1 / 1.1) * 0.9999
        decision = fallback.second(loss, 0.5, 3)
    assert "rose" not in decision.reason


def test_moved_losses_are_compared_in_proportion():
    """A loss ten times as high from some step on: the same decisions as without."""
    plain, scaled = Fallback(), Fallback()
    for fallback in (plain, scaled):
        for loss in (1.0, 0.8, 0.7, 0.65):
            fallback.adam(loss, 1.0, 3)
        fallback.swap()
    previous = math.nan
    for step in range(120):
        loss = 0.6 * (step + 1) ** -0.2
        factor = 10.0 if step > 30 else 1.0
        if step == 31:
            scaled.moved(previous, 10 * previous)
        previous = loss
        one, other = plain.second(loss, 0.5, 3), scaled.second(factor * loss, 0.5, 3)
        assert one.switch == other.switch
