"""The two-phase loop: Algorithm 1 step by step, records, resume and branches, errors."""

import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import twophase
from twophase.adam import Adam, AdamSettings
from twophase.cg import CGSettings, iterate
from twophase.device import resolve_device
from twophase.errors import InputError, NonFiniteError
from twophase.examples import Dataset, Examples
from twophase.line_search.golden_section import LINE_SEARCHES, GoldenSection
from twophase.line_search.line import SearchStatus
from twophase.objective import FullBatch, evaluate
from twophase.problems import networks
from twophase.switch import GradientNormPeak
from twophase.training import Trainer, fit, run


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2), nn.Softmax(dim=1))


def rings(count=96, seed=1):
    """Points inside and outside the unit circle: two classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 1.5 * torch.randn(count, 2, generator=generator)
    return Examples(inputs, (inputs.norm(dim=1) > 1.5).long())


def dataset():
    return Dataset("rings", rings(), rings(40, seed=2), classes=2)


ADAM = AdamSettings(learning_rate=0.01, batch_size=20)
GOLDEN = CGSettings(line_search=GoldenSection())


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def without_seconds(result):
    return result.history.drop(columns="seconds")


def test_the_adam_phase_is_a_plain_torch_loop():
    """The loop a user would write, over the same batches: equal to the last bit."""
    data = rings()
    ours = network()
    fit(ours, data, epochs=3, strategy="adam", adam=ADAM, seed=7, device="cpu")
    plain = network()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        order = torch.randperm(96, generator=generator)
        for first in range(0, 96, 20):
            batch = order[first : first + 20]
            one_hot = functional.one_hot(data.targets[batch], 2).float()
            loss = functional.mse_loss(plain(data.inputs[batch]), one_hot)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(flat(ours), flat(plain))


def test_the_cg_phase_is_cg_on_the_full_batch():
    data = rings()
    ours = network()
    result = fit(ours, data, epochs=5, strategy="cg", device="cpu")
    model = network()
    objective = FullBatch(model, twophase.mse, data.inputs, data.targets)
    point, memory = evaluate(objective, objective.vector.read()), None
    for record in result.records:
        iteration = iterate(objective, point, memory, CGSettings())
        point, memory = evaluate(objective, iteration.x), iteration.memory
        assert (record.train_loss, record.evaluations) == (point.value, iteration.evaluations)
    assert torch.equal(flat(ours), point.x)


def test_switches_as_algorithm_1_says():
    result = fit(network(), rings(), epochs=60, switch=GradientNormPeak(0.95), adam=ADAM)
    history = result.history
    rule = GradientNormPeak(0.95)
    fired = next(r.epoch for r in result.records if rule.update(r.train_loss, r.grad_norm).switch)
    assert result.swap_epoch == fired < 60
    assert (history.phase[:fired] == "adam").all()
    assert (history.phase[fired:] == "cg").all()
    assert history.note[fired - 1].startswith("switch: at or below 0.95 of its peak")


def test_records_hold_what_they_say():
    model, data = network(), dataset()
    result = fit(model, data, epochs=6, switch=3, adam=ADAM, cg=GOLDEN)
    last = result.records[-1]
    train = FullBatch(model, twophase.mse, data.train.inputs, data.train.targets)
    (_, loss, gradient, _), accuracy = train.measure(train.vector.read())
    validation = FullBatch(model, twophase.mse, data.validation.inputs, data.validation.targets)
    assert last.train_loss == loss
    assert last.train_accuracy == accuracy
    assert last.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-6)
    assert (last.validation_loss, last.validation_accuracy) == validation.score(
        validation.vector.read()
    )
    assert [r.phase for r in result.records] == ["adam"] * 3 + ["cg"] * 3
    assert [r.epoch for r in result.records] == [1, 2, 3, 4, 5, 6]
    assert all(r.passes == 3 and r.monitor_passes == 3 for r in result.records[:3])
    assert all(r.passes == 3 + r.evaluations > 3 for r in result.records[3:])
    assert [r.monitor_passes for r in result.records[3:]] == [1, 0, 0]
    assert all(r.seconds > 0 for r in result.records)
    assert (result.status, result.swap_epoch) == ("completed", 3)


@pytest.mark.parametrize(
    ("strategy", "switch", "more", "less"),
    # Adam's own passes go through no objective; the gradient after the last CG epoch of a golden
    # section starts no further iteration; the one at a swap counts for the rule and for CG
    [("adam", None, 0, 4 * 3), ("cg", None, 3, 0), ("adam+cg", 2, 3, 2 * 3 + 3)],
)
@pytest.mark.parametrize("search", ["golden", "parabola", "wolfe"])
def test_passes_are_what_the_objective_counted(strategy, switch, more, less, search):
    if search != "golden":
        more = 0  # the gradient at the end is the search's own
    settings = CGSettings(line_search=LINE_SEARCHES[search])
    trainer = Trainer(network(), rings(), strategy=strategy, switch=switch, cg=settings)
    result = run(trainer, 4)
    recorded = sum(r.passes + r.monitor_passes for r in result.records)
    assert trainer.objective.passes.total == recorded + more - less


def test_seconds_are_those_of_the_optimization(monkeypatch):
    """A clock that ticks once a reading: one tick an Adam epoch, and for CG its gradient's, too."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("twophase.training.clock", lambda device: float(next(ticks)))
    settings = dict(epochs=6, switch=3, adam=ADAM, device="cpu")
    result = fit(network(), rings(), **settings, cg=GOLDEN)
    assert [r.seconds for r in result.records] == [1, 1, 1, 2, 2, 2]
    result = fit(network(), rings(), **settings)
    # its search ends with the gradient that the next epoch starts from
    assert [r.seconds for r in result.records] == [1, 1, 1, 2, 1, 1]


def test_cg_never_raises_the_loss():
    result = fit(network(), rings(), epochs=30, strategy="cg")
    losses = result.history.train_loss
    assert (losses.diff()[1:] < 0).all()


@pytest.mark.parametrize("strategy", ["adam", "cg", "adam+cg"])
def test_one_seed_gives_one_history(strategy):
    switch = 4 if strategy == "adam+cg" else None
    first, second = (
        fit(network(), dataset(), epochs=8, strategy=strategy, switch=switch, seed=3, adam=ADAM)
        for _ in range(2)
    )
    assert without_seconds(first).equals(without_seconds(second))


def saved(state):
    """A state that went through a file without pickled code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("epochs", [2, 4, 6])
def test_a_state_resumes_exactly(epochs):
    settings = dict(switch=4, adam=ADAM, seed=5)
    straight = Trainer(network(), dataset(), **settings)
    expected = run(straight, 9)
    first = Trainer(network(), dataset(), **settings)
    run(first, epochs)
    second = Trainer(network(seed=1), dataset(), **settings)
    second.load_state_dict(saved(first.state_dict()))
    assert without_seconds(run(second, 9)).equals(without_seconds(expected))
    assert torch.equal(flat(second.model), flat(straight.model))


def test_a_branch_equals_the_run_in_one_piece():
    prefix = Trainer(network(), dataset(), strategy="adam", adam=ADAM)
    run(prefix, 4)
    branch = Trainer(network(seed=1), dataset(), switch=4, adam=ADAM)
    state = prefix.state_dict()
    run(prefix, 6)
    branch.load_state_dict(state)
    whole = fit(network(), dataset(), epochs=9, switch=4, adam=ADAM)
    assert without_seconds(run(branch, 9)).equals(without_seconds(whole))
    with pytest.raises(InputError, match="^state: 'epoch 3 in phase adam'"):
        Trainer(network(), dataset(), switch=2).load_state_dict(state)


def test_a_state_is_a_snapshot():
    trainer = Trainer(network(), dataset(), strategy="adam", adam=ADAM)
    run(trainer, 2)
    state = trainer.state_dict()
    straight = run(trainer, 5)
    again = Trainer(network(seed=1), dataset(), strategy="adam", adam=ADAM)
    again.load_state_dict(state)
    assert without_seconds(run(again, 5)).equals(without_seconds(straight))


def test_one_state_serves_several_trainers():
    """Each goes on from a copy: the first to train must not move the moments of the second."""
    prefix = Trainer(network(), dataset(), strategy="adam", adam=ADAM)
    run(prefix, 2)
    state = prefix.state_dict()
    twins = [Trainer(network(seed=1), dataset(), strategy="adam", adam=ADAM) for _ in range(2)]
    for twin in twins:
        twin.load_state_dict(state)
    first, second = (without_seconds(run(twin, 6)) for twin in twins)
    assert first.equals(second)
    assert first.equals(without_seconds(run(prefix, 6)))


@pytest.mark.parametrize(
    "settings",
    [CGSettings("PR+", preconditioner="adam"), CGSettings()],
    ids=["cg", "lbfgs"],
)
@pytest.mark.parametrize("epochs", [3, 4, 7])
def test_a_preconditioned_run_resumes_exactly(settings, epochs):
    arguments = dict(switch=3, adam=ADAM, cg=settings)
    straight = run(Trainer(network(), dataset(), **arguments), 9)
    stopped, resumed = (Trainer(network(), dataset(), **arguments) for _ in range(2))
    run(stopped, epochs)
    resumed.load_state_dict(stopped.state_dict())
    assert without_seconds(run(resumed, 9)).equals(without_seconds(straight))


def test_the_preconditioner_is_adams_at_the_swap():
    settings = CGSettings()
    trainer = Trainer(network(), dataset(), switch=3, adam=ADAM, cg=settings)
    run(trainer, 3)
    before = trainer.objective.vector.read()
    gradient = trainer._point.gradient
    optimizer = trainer.phases["adam"].adam.optimizer
    moments = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in optimizer.state])
    steps = optimizer.state[next(iter(optimizer.state))]["step"].item()
    root = (moments / (1 - 0.999**steps)).sqrt()
    scale = root + 0.1 * root.mean() + 1e-8
    record = trainer.epoch()
    torch.testing.assert_close(
        trainer.objective.vector.read() - before, -record.step_size * gradient / scale
    )


def test_full_batches_leave_no_preconditioner_unless_it_is_asked_for():
    def weights(cg, batch_size):
        model = network()
        fit(model, dataset(), epochs=8, switch=3, adam=AdamSettings(batch_size=batch_size), cg=cg)
        return flat(model)

    examples = len(dataset().train)
    plain, asked = CGSettings(preconditioner="none"), CGSettings(preconditioner="adam")
    for batch_size, same in ((examples, plain), (examples - 1, asked)):
        assert torch.equal(weights(CGSettings(), batch_size), weights(same, batch_size))
    assert not torch.equal(weights(asked, examples), weights(plain, examples))


def test_cg_alone_has_no_adam_to_precondition_it():
    plain, asked = network(), network()
    settings = dict(epochs=4, strategy="cg")
    fit(plain, rings(), **settings, cg=CGSettings(preconditioner="none"))
    fit(asked, rings(), **settings, cg=CGSettings(preconditioner="adam"))
    assert torch.equal(flat(plain), flat(asked))


def test_a_rule_can_serve_several_runs():
    rule = GradientNormPeak(0.95)
    first, second = (fit(network(), rings(), epochs=50, switch=rule, adam=ADAM) for _ in range(2))
    assert first.swap_epoch == second.swap_epoch
    assert rule.peak == 0


def test_cg_that_can_do_no_more_ends_the_run():
    class Stuck(GoldenSection):
        def __call__(self, line, first_step):
            return line.failure(SearchStatus.RESOLUTION)

    result = fit(network(), rings(), epochs=9, strategy="cg", cg=CGSettings(line_search=Stuck()))
    assert (result.status, len(result.records)) == ("resolution", 1)
    assert "arithmetic" in result.message == result.records[-1].note


def test_the_models_mode_is_kept_and_measured_in_eval_mode():
    model = nn.Sequential(nn.Dropout(0.5), network())
    result = fit(model, rings(), epochs=1, strategy="adam", adam=ADAM)
    assert model.training
    exact = FullBatch(model.eval(), twophase.mse, *vars(rings()).values())
    assert result.records[0].train_loss == exact.value(exact.vector.read())


def test_a_model_that_breaks_cg_is_refused_before_training():
    model = nn.Sequential(nn.Dropout(0.5), network())
    before = flat(model)
    with pytest.raises(InputError, match="Dropout in training mode"):
        fit(model, rings(), epochs=5)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("strategy", ["adam", "cg"])
def test_a_loss_that_turns_nan_names_the_epoch(strategy):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        spoiled = math.nan if len(calls) > 12 else 1.0
        return spoiled * twophase.mse(outputs, targets)

    with pytest.raises(
        NonFiniteError, match=rf"loss: nan is not allowed after epoch \d \({strategy}"
    ):
        fit(network(), rings(), epochs=9, strategy=strategy, loss=loss, adam=ADAM)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("epochs", {"epochs": 0}),
        ("epochs", {"epochs": 1.5}),
        ("strategy", {"strategy": "adam+sgd"}),
        ("switch", {"switch": 0}),
        ("switch", {"switch": 9}),
        ("switch", {"switch": 3, "strategy": "cg"}),
        ("chunk_size", {"chunk_size": 0}),
        ("device", {"device": "tpu"}),
        ("switch", {"switch": 2.0}),
        ("seed", {"seed": -1}),
    ],
)
def test_arguments_out_of_range_name_themselves(field, arguments):
    with pytest.raises(InputError, match=f"^{field}: .* is not allowed; use "):
        fit(network(), rings(), **({"epochs": 9} | arguments))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_follows_the_cpu():
    here, there = (
        fit(
            network().double(),
            rings().to(device, torch.float64),
            epochs=8,
            switch=4,
            adam=ADAM,
            device=device,
        ).history.train_loss
        for device in ("cpu", "cuda")
    )
    assert here.to_numpy() == pytest.approx(there.to_numpy(), rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_adam_epoch_never_waits_for_the_gpu():
    data, model = rings(), network().cuda()
    adam = Adam(model, twophase.mse, AdamSettings(), torch.Generator())
    inputs, targets = data.inputs.cuda(), data.targets.cuda()
    adam.epoch(inputs, targets)
    torch.cuda.set_sync_debug_mode("error")
    try:
        adam.epoch(inputs, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_adam_epoch_reads_no_number_from_the_device():
    """Tensors on the device "meta" have no numbers: to read one raises."""
    model = networks.build("vit-nomlp-wkewq-wvwo1", 1, 10, seed=0).to("meta")
    adam = Adam(model, twophase.mse, AdamSettings(batch_size=4), torch.Generator())
    inputs = torch.zeros(10, 1, 32, 32, device="meta")
    adam.epoch(inputs, torch.zeros(10, dtype=torch.int64, device="meta"))


def test_data_of_another_kind_is_explained():
    for data in ([1, 2], (torch.ones(3, 2),), torch.ones(3, 2), {"inputs": 1}):
        with pytest.raises(InputError, match="^data: "):
            fit(network(), data, epochs=2)


def test_auto_takes_the_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


def test_separable_classes_in_float32_train_to_the_end():
    """The loss has no minimum, and steps grow without bound."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 2, generator=generator)
    data = (inputs, (inputs[:, 0] > 0).long())
    result = fit(
        nn.Linear(2, 2), data, epochs=60, switch=5, loss=functional.cross_entropy, device="cpu"
    )
    assert math.isfinite(result.records[-1].train_loss)
