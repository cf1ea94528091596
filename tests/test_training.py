"""`fit`: Algorithm 1 step by step, the paper's settings, what its outcome holds, and errors."""

import math
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import twophase
from twophase import (
    PAPER,
    AdamMoments,
    AdamSettings,
    ConjugateDirection,
    Descent,
    Fallback,
    FixedEpoch,
    GoldenSection,
    GradientNormPeak,
    Identity,
    LeastSquares,
    Term,
    Trainer,
    fit,
)
from twophase.automatic import DEFAULT
from twophase.errors import InputError, NonFiniteError
from twophase.examples import Dataset, Examples
from twophase.line_search import SearchStatus
from twophase.objective import evaluate
from twophase.objectives.full_batch import FullBatch
from twophase.payoff import payoffs
from twophase.record import ADAM, SECOND, Record
from twophase.second_phase import SELF_SCALED_BFGS, iterate
from twophase.training import run

PLAIN_CG = PAPER["second"]
PHASES = {"adam": {"second": None}, "second": {"adam": None}}


def without_seconds(result):
    return result.history.drop(columns="seconds")


# ---- the two phases -----------------------------------------------------------------------------


def test_the_adam_phase_is_a_plain_torch_loop(network, rings, adam, flat):
    """The loop a user would write, over the same batches: equal to the last bit."""
    data = rings()
    ours = network()
    fit(ours, data, epochs=3, second=None, adam=adam, seed=7, device="cpu")
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


@pytest.mark.parametrize("descent", [SELF_SCALED_BFGS, PLAIN_CG], ids=["default", "paper"])
def test_the_second_phase_is_its_iterations_on_the_full_batch(network, rings, flat, descent):
    data = rings()
    ours = network()
    result = fit(ours, data, epochs=5, adam=None, second=descent, device="cpu")
    model = network()
    objective = FullBatch(model, twophase.mse, data.inputs, data.targets)
    point, state = evaluate(objective, objective.vector.read()), None
    for record in result.records:
        iteration = iterate(objective, point, state, descent)
        point, state = evaluate(objective, iteration.x), iteration.state
        assert (record.train_loss, record.evaluations) == (point.value, iteration.evaluations)
        assert (record.step_size, record.status) == (iteration.step, iteration.status)
    assert torch.equal(flat(ours), point.x)


def test_switches_as_algorithm_1_says(network, rings, adam):
    rule = GradientNormPeak(0.95)
    result = fit(network(), rings(), epochs=60, switch=rule, fallback=None, adam=adam)
    history = result.history
    fired = next(r.epoch for r in result.records if rule.update(r.train_loss, r.grad_norm).switch)
    assert result.swap_epoch == fired < 60
    assert (history.phase[:fired] == "adam").all()
    assert (history.phase[fired:] == "second").all()
    assert history.note[fired - 1].startswith("switch: at or below 0.95 of its peak")


def test_the_paper_is_its_rule_its_second_phase_and_no_way_back(network, rings, adam, flat):
    """The literal rule at 0.9, then PR+ with golden section to the end, whatever comes of it."""
    assert PAPER == {
        "switch": GradientNormPeak(factor=0.9),
        "second": Descent(ConjugateDirection(beta="PR+"), GoldenSection(rtol=1e-2)),
        "fallback": None,
    }
    with pytest.raises(TypeError):
        PAPER["fallback"] = Fallback()
    paper = network()
    result = fit(paper, rings(), epochs=40, adam=adam, **PAPER)
    trace = [(r.train_loss, r.grad_norm) for r in result.records]
    fired = twophase.switching.rules.first_switch(GradientNormPeak(0.9), trace)
    assert result.swap_epoch == fired < 35
    assert [r.phase for r in result.records] == ["adam"] * fired + ["second"] * (40 - fired)
    # the same by hand: Adam alone, and conjugate gradient as an optimizer of its own
    model, data = network(), rings()
    fit(model, data, epochs=fired, adam=adam, second=None)
    objective = FullBatch(model, twophase.mse, data.inputs, data.targets)
    point, state = evaluate(objective, objective.vector.read()), None
    for record in result.records[fired:]:
        done = iterate(objective, point, state, PLAIN_CG)
        point, state = evaluate(objective, done.x), done.state
        assert record.train_loss == point.value
        # no search by slopes: forward trials, and one gradient
        assert record.passes == done.evaluations + 3
    assert torch.equal(flat(paper), point.x)


def test_the_default_has_a_way_back_whatever_the_rule(network, rings):
    for switch in (3, FixedEpoch(3), GradientNormPeak(), twophase.Race()):
        assert Trainer(network(), rings(), switch=switch).course.fallback == Fallback()
        assert Trainer(network(), rings(), switch=switch, fallback=None).course.fallback is None
    assert Trainer(network(), rings(), **PAPER).course.fallback is None


@pytest.mark.parametrize("arguments", PHASES.values(), ids=PHASES)
def test_a_training_may_have_one_phase(network, rings, adam, arguments):
    result = fit(network(), rings(), **{"epochs": 3, "adam": adam} | arguments)
    phase = SECOND if arguments.get("adam", adam) is None else ADAM
    assert [r.phase for r in result.records] == [phase] * 3
    assert (result.swap_epoch, len(result.changes), result.payoffs) == (None, 0, [])
    assert (result.status, result.message) == ("completed", "all 3 epochs were run")


def test_a_training_has_a_phase(network, rings):
    with pytest.raises(InputError, match="^second: None is not allowed"):
        fit(network(), rings(), epochs=3, adam=None, second=None)


def test_the_second_phase_never_raises_the_loss(network, rings):
    for descent in (DEFAULT, PLAIN_CG):
        result = fit(network(), rings(), epochs=30, adam=None, second=descent)
        assert (result.history.train_loss.diff()[1:] < 0).all()


def test_full_batches_leave_no_preconditioner_unless_it_is_asked_for(network, dataset, flat):
    def weights(preconditioner, batch_size):
        model = network()
        second = Descent(SELF_SCALED_BFGS.direction, SELF_SCALED_BFGS.line_search, preconditioner)
        adam = AdamSettings(batch_size=batch_size)
        fit(model, dataset, epochs=8, switch=3, adam=adam, second=second, fallback=None)
        return flat(model)

    examples = len(dataset.train)
    default, plain, asked = DEFAULT.preconditioner, Identity(), AdamMoments(min_batches=1)
    for batch_size, same in ((examples, plain), (None, plain), (examples - 1, asked)):
        assert torch.equal(weights(default, batch_size), weights(same, batch_size))
    assert not torch.equal(weights(asked, examples), weights(plain, examples))


def test_a_second_phase_alone_has_no_adam_to_precondition_it(network, rings, flat):
    weights = []
    for preconditioner in (Identity(), AdamMoments(min_batches=1)):
        model = network()
        second = Descent(SELF_SCALED_BFGS.direction, SELF_SCALED_BFGS.line_search, preconditioner)
        fit(model, rings(), epochs=4, adam=None, second=second)
        weights.append(flat(model))
    assert torch.equal(*weights)


def test_a_rule_can_serve_several_runs(network, rings, adam):
    rule = GradientNormPeak(0.95)
    first, second = (fit(network(), rings(), epochs=50, switch=rule, adam=adam) for _ in range(2))
    assert first.swap_epoch == second.swap_epoch
    # it has seen nothing of the runs' norms, which would make this one a fall
    assert not rule.update(1.0, 1e-9).switch


class Stuck(GoldenSection):
    """A search that finds no step."""

    def __call__(self, line, first_step):
        return line.failure(SearchStatus.RESOLUTION)


def test_a_second_phase_that_can_do_no_more_ends_the_run(network, rings):
    second = Descent(ConjugateDirection(), Stuck())
    result = fit(network(), rings(), epochs=9, adam=None, second=second)
    assert (result.status, len(result.records)) == ("resolution", 1)
    assert "arithmetic" in result.message == result.records[-1].note


@pytest.mark.parametrize("arguments", [*PHASES.values(), {"switch": 4}], ids=[*PHASES, "both"])
def test_one_seed_gives_one_history(network, dataset, adam, arguments):
    settings = {"epochs": 8, "seed": 3, "adam": adam} | arguments
    first, second = (fit(network(), dataset, **settings) for _ in range(2))
    assert without_seconds(first).equals(without_seconds(second))


def test_separable_classes_in_float32_train_to_the_end():
    """The loss has no minimum, and steps grow without bound."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 2, generator=generator)
    data = (inputs, (inputs[:, 0] > 0).long())
    for fallback in (None, Fallback()):
        result = fit(
            nn.Linear(2, 2),
            data,
            epochs=60,
            switch=5,
            fallback=fallback,
            loss=functional.cross_entropy,
            device="cpu",
        )
        assert math.isfinite(result.records[-1].train_loss)


# ---- its outcome --------------------------------------------------------------------------------


def test_records_hold_what_they_say(network, dataset, adam):
    model = network()
    result = fit(model, dataset, epochs=6, switch=3, adam=adam, second=PLAIN_CG, fallback=None)
    last = result.records[-1]
    train = FullBatch(model, twophase.mse, dataset.train.inputs, dataset.train.targets)
    point, accuracy = train.measure(train.vector.read())
    held_out = dataset.validation
    validation = FullBatch(model, twophase.mse, held_out.inputs, held_out.targets)
    assert last.train_loss == point.value
    assert last.train_accuracy == accuracy
    assert last.grad_norm == pytest.approx(point.gradient.norm().item(), rel=1e-6)
    assert (last.validation_loss, last.validation_accuracy) == validation.score(
        validation.vector.read()
    )
    assert [r.phase for r in result.records] == ["adam"] * 3 + ["second"] * 3
    assert [r.epoch for r in result.records] == [1, 2, 3, 4, 5, 6]
    assert all(r.passes == 3 and r.monitor_passes == 3 for r in result.records[:3])
    assert all(r.passes == 3 + r.evaluations > 3 for r in result.records[3:])
    assert [r.monitor_passes for r in result.records[3:]] == [1, 0, 0]
    assert all(r.seconds > 0 for r in result.records)
    assert (result.status, result.swap_epoch) == ("completed", 3)


def test_a_history_is_a_row_for_each_record(network, rings, adam):
    result = fit(network(), rings(), epochs=5, switch=3, adam=adam, fallback=None)
    assert list(result.history.columns) == [field.name for field in fields(Record)]
    for record, (_, row) in zip(result.records, result.history.iterrows(), strict=True):
        assert row.epoch == record.epoch and row.train_loss == record.train_loss
    assert result.changes.to_numpy().tolist() == [[3, "adam", result.records[2].note]]
    assert result.final == result.records[-1]
    assert result.payoffs == payoffs(result.records) and len(result.payoffs) == 1
    assert result.message.endswith(result.payoffs[0].text)


def test_a_run_without_a_switch_says_so(network, rings, adam):
    result = fit(network(), rings(), epochs=2, adam=adam)
    assert result.swap_epoch is None
    said = "; no switch: Adam has 6 passes, the next trial is at 30 or later"
    assert said in result.message
    result = fit(network(), rings(), epochs=2, adam=adam, switch=twophase.SmoothedNormPeak())
    assert "; no switch: no clear rise" in result.message


def test_every_epoch_is_handed_on_as_it_ends(network, rings, adam):
    """To `on_epoch`, and through `progress`, which is told how many are to come."""
    seen, bars = [], []

    def progress(epochs, total):
        bars.append(total)
        for record in epochs:
            assert record not in seen
            yield record

    settings = {"adam": adam, "switch": 2, "fallback": None}
    result = fit(network(), rings(), epochs=4, on_epoch=seen.append, progress=progress, **settings)
    assert tuple(seen) == result.records and bars == [4]
    trainer = Trainer(network(), rings(), **settings)
    run(trainer, 1)
    assert len(run(trainer, 4, progress=progress).records) == 4
    assert bars == [4, 3]


# ---- data and errors ----------------------------------------------------------------------------


def test_the_three_kinds_of_data_are_one(network, rings):
    examples = rings()
    kinds = [
        examples,
        (examples.inputs, examples.targets),
        Dataset("rings", examples, None, classes=2),
        Examples(examples.inputs.double(), examples.targets),
    ]
    losses = [
        fit(network(), data, epochs=2, adam=None).history.train_loss.tolist() for data in kinds
    ]
    assert all(found == losses[0] for found in losses)


def test_data_of_another_kind_is_explained(network):
    for data in ([1, 2], (torch.ones(3, 2),), torch.ones(3, 2), {"inputs": 1}):
        with pytest.raises(InputError, match="^data: "):
            fit(network(), data, epochs=2)


@pytest.mark.parametrize("name", PHASES)
def test_a_loss_that_turns_nan_names_the_epoch(network, rings, adam, name):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        spoiled = math.nan if len(calls) > 12 else 1.0
        return spoiled * twophase.mse(outputs, targets)

    settings = {"epochs": 9, "loss": loss, "adam": adam} | PHASES[name]
    message = rf"loss: nan is not allowed after epoch \d \({name}"
    with pytest.raises(NonFiniteError, match=message):
        fit(network(), rings(), **settings)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("epochs", {"epochs": 0}),
        ("epochs", {"epochs": 1.5}),
        ("adam", {"adam": "adam"}),
        ("second", {"second": "cg"}),
        ("second", {"second": GoldenSection()}),
        ("switch", {"switch": 0}),
        ("switch", {"switch": 9}),
        ("switch", {"switch": FixedEpoch(9)}),
        ("switch", {"switch": 2.0}),
        ("switch", {"switch": None}),
        ("switch", {"switch": GradientNormPeak}),
        ("fallback", {"fallback": "yes"}),
        ("fallback", {"fallback": True}),
        ("chunk_size", {"chunk_size": 0}),
        ("device", {"device": "tpu"}),
        ("seed", {"seed": -1}),
    ],
)
def test_arguments_out_of_range_name_themselves(network, rings, field, arguments):
    with pytest.raises(InputError, match=f"^{field}: .* is not allowed; use "):
        fit(network(), rings(), **({"epochs": 9} | arguments))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_follows_the_cpu(network, rings, adam):
    here, there = (
        fit(
            network().double(),
            rings().to(device, torch.float64),
            epochs=8,
            switch=4,
            adam=adam,
            device=device,
        ).history.train_loss
        for device in ("cpu", "cuda")
    )
    assert here.to_numpy() == pytest.approx(there.to_numpy(), rel=1e-6)


def line_through(targets):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x = torch.linspace(-1, 1, len(targets), dtype=torch.float64)[:, None]
    return model, x, LeastSquares(model, [Term(lambda m, p: m(p[0]) - p[1], (x, targets))])


@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_least_squares_is_trained_as_its_examples_are(batch_size):
    """Adam by Adam's batches, then the same second phase: the histories are those of tensors."""
    targets = torch.sin(torch.linspace(-3, 3, 16, dtype=torch.float64))[:, None]
    settings = {"epochs": 12, "switch": 6, "adam": AdamSettings(0.01, batch_size), "fallback": None}
    model, x, problem = line_through(targets)
    found = fit(problem, **settings)
    other, *_ = line_through(targets)
    expected = fit(other, (x, targets), loss=nn.functional.mse_loss, **settings)
    for name in ("train_loss", "grad_norm"):
        ours, theirs = found.history[name], expected.history[name]
        assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), rel=1e-6)
    assert found.history.phase.tolist() == expected.history.phase.tolist()
    assert found.final.train_loss == pytest.approx(problem.value(problem.vector.read()), rel=1e-12)
    assert found.final.train_loss < 0.1 * found.records[5].train_loss


def test_a_least_squares_resumes_exactly():
    targets = torch.sin(torch.linspace(-3, 3, 16, dtype=torch.float64))[:, None]
    settings = {"switch": 4, "adam": AdamSettings(0.01, 8)}
    whole = Trainer(line_through(targets)[2], **settings)
    run(whole, 14)
    for epochs in (2, 4, 6, 9):
        first = Trainer(line_through(targets)[2], **settings)
        run(first, epochs)
        second = Trainer(line_through(targets)[2], **settings)
        second.load_state_dict(first.state_dict())
        run(second, 14)
        plain = [[replace(r, seconds=0.0) for r in t.history] for t in (whole, second)]
        assert plain[0] == plain[1]


def test_data_that_do_not_go_with_the_model_are_one_line():
    model, x, problem = line_through(torch.zeros(4, 1).double())
    with pytest.raises(InputError, match="^data: 'tuple' is not allowed; use None"):
        fit(problem, (x, x), epochs=2)
    with pytest.raises(InputError, match="^data: None is not allowed; use tensors"):
        fit(model, epochs=2)
    with pytest.raises(InputError, match="^validation: 'a LeastSquares of another model'"):
        fit(model, (x, x), epochs=2, validation=line_through(torch.zeros(4, 1).double())[2])
    with pytest.raises(InputError, match="^device: 'bla'"):
        fit(problem, epochs=2, device="bla")
    with pytest.raises(InputError, match="^terms: 'all of weight 0'"):
        LeastSquares(model, [Term(lambda m, p: m(p), x, weight=0)])


def batch_norm():
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2)
    return torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()


def test_a_frozen_second_phase_lowers_the_loss_of_eval_mode():
    """BatchNorm keeps the statistics that Adam left; the modes are afterwards as before."""
    inputs = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    data = inputs, inputs.prod(dim=1, keepdim=True)
    mse, adam = torch.nn.functional.mse_loss, AdamSettings(0.01, 16)
    settings = dict(epochs=20, adam=adam, loss=mse, fallback=None)
    with pytest.raises(InputError, match="freeze=True"):
        fit(batch_norm(), data, switch=8, **settings)
    model = batch_norm()
    history = fit(model, data, switch=8, freeze=True, **settings).history
    alone = batch_norm()
    fit(alone, data, second=None, **(settings | {"epochs": 8}))
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(model[1], name), getattr(alone[1], name))
    second = history.train_loss[7:].tolist()
    assert second == sorted(second, reverse=True) and second[-1] < 0.9 * second[0]
    assert all(module.training for module in model.modules())
    model.eval()
    with torch.no_grad():
        assert mse(model(inputs), data[1]).item() == pytest.approx(second[-1], rel=1e-12)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, twophase.NonFiniteError])
def test_what_was_reached_is_in_the_error(network, rings, adam, error):
    def stop(record):
        if record.epoch == 3:
            raise error

    with pytest.raises(error) as raised:
        fit(network(), rings(), epochs=5, adam=adam, on_epoch=stop)
    assert [record.epoch for record in raised.value.records] == [1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("loss", "mse"), ("loss", lambda outputs: outputs), ("on_epoch", 3), ("progress", 3)],
        *[("progress", int), ("progress", len), ("progress", lambda records: records)],
        ("progress", lambda records, total: None),
        *[("freeze", 1), ("adam", torch.ones(2)), ("second", torch.ones(2))],
    ],
)
def test_arguments_of_another_kind_name_themselves(network, rings, field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        fit(network(), rings(), epochs=2, **{field: value})
    with pytest.raises(InputError, match="^model: "):
        fit(torch.ones(2), rings(), epochs=2)


def test_targets_that_are_infinite_are_no_model_that_does_not_repeat_itself():
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NonFiniteError, match="^loss: inf is not allowed"):
        fit(nn.Linear(3, 1), (inputs, torch.full((20, 1), math.inf)), epochs=9, switch=3)


def test_a_validation_closure_needs_no_graph(network, rings):
    """As everybody writes it, under `no_grad`."""
    inputs, targets = rings().inputs, rings().targets
    data = inputs[:40], targets[:40]
    found = []
    for context in (torch.no_grad, nullcontext):
        model = network()

        def closure(model=model, context=context):
            with context():
                return twophase.mse(model(inputs[40:]), targets[40:])

        adam = AdamSettings(batch_size=20)
        done = fit(model, data, validation=closure, epochs=6, switch=4, adam=adam)
        found.append(done.history.validation_loss)
    assert found[0].equals(found[1]) and found[0].notna().all()


def test_data_without_values_are_refused(network, rings):
    data = rings().inputs.to("meta"), rings().targets.to("meta")
    with pytest.raises(InputError, match="^data: 'tensors on meta'"):
        fit(network(), data, epochs=2)
    with pytest.raises(InputError, match="^validation: 'tensors on meta'"):
        fit(network(), rings(), validation=data, epochs=2)
