"""Competitors spend what they evaluate, and do what they are named for."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.errors import InputError
from twophase.experiments import competitors
from twophase.experiments.competitors import (
    SGD,
    AdamCosine,
    AdamGoesOn,
    AdamWFromStart,
    BudgetSpent,
    Journal,
    TorchLBFGS,
    go_on,
)
from twophase.experiments.methods import METHODS
from twophase.precision import BFloat16, Full
from twophase.second_phase import SELF_SCALED_BFGS
from twophase.switching.rules import FixedEpoch
from twophase.trainer import Trainer

BUDGET = 60
AVAILABLE = [name for name, method in METHODS.items() if method.installed]


def trainer_at_prefix(
    epochs: int = 5, batch_size: int = 8, dtype=torch.float64, validation=None
) -> Trainer:
    """A small regression, after some epochs of Adam."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 3, generator=generator, dtype=dtype)
    targets = torch.sin(inputs.sum(1, keepdim=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    trainer = Trainer(
        model,
        (inputs, targets),
        second=None,
        loss=nn.functional.mse_loss,
        adam=AdamSettings(1e-2, batch_size),
        device="cpu",
        validation=validation,
    )
    for _ in range(epochs):
        trainer.epoch()
    return trainer


HERE = torch.zeros(2)


def journal_of(budget: int, **more) -> Journal:
    """A journal that begins with a loss of 1."""
    journal = Journal(budget, torch.device("cpu"), **more)
    journal.begin(1.0, HERE)
    return journal


def test_a_journal_keeps_the_lowest_loss_and_points_two_percent_apart():
    journal = journal_of(10_000)
    for passes in range(3, 10_001, 3):
        journal.saw(passes, 1.0 / passes if passes % 2 else 2.0, HERE)
    journal.end()
    passes = [row.passes for row in journal.rows]
    assert passes[0] == 0 and passes[-1] == 9_999
    assert all(b - a >= 3 and (a < 150 or b <= 1.02 * a + 3) for a, b in itertools.pairwise(passes))
    for row in journal.rows[1:]:
        odd = max(n for n in range(3, row.passes + 1, 3) if n % 2)
        assert row.loss == 1.0 / odd


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40))
def test_the_losses_of_a_journal_never_rise(losses):
    journal = journal_of(3 * len(losses))
    for number, loss in enumerate(losses, 1):
        journal.saw(3 * number, loss, HERE)
    journal.end()
    assert journal.rows[-1].loss == min([1.0, *losses])
    assert all(b.loss <= a.loss for a, b in itertools.pairwise(journal.rows))


def test_a_journal_does_not_count_what_lies_beyond_the_budget():
    journal = journal_of(10)
    with pytest.raises(BudgetSpent):
        journal.saw(11, 0.1, HERE)
    journal.end()
    assert [row.loss for row in journal.rows] == [1.0]


def test_seconds_stand_still_while_a_journal_pauses(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(competitors, "clock", lambda device: float(next(ticks)))
    journal = journal_of(10)  # 0; validation 1 to 2
    with journal.paused():  # 3 to 4
        pass
    journal.saw(3, 0.5, HERE)  # 5, of which 2 were paused
    assert journal.rows[-1].seconds == 3.0


def test_a_journal_asks_for_the_validation_of_the_lowest_losss_weights():
    asked = []

    def validate(x):
        asked.append(x.tolist())
        return float(x.sum()), 0.5

    journal = journal_of(1000, validate=validate)
    x = torch.tensor([1.0, 1.0])
    journal.saw(3, 0.5, x)
    x += 6.0  # weights in memory that a method writes to
    journal.saw(6, 0.7, x)
    journal.saw(9, 0.2, x)
    assert [row[:1] + row[2:] for row in journal.rows] == [
        (0, 1.0, 0.0, 0.5),
        (3, 0.5, 2.0, 0.5),
        (6, 0.5, 2.0, 0.5),
        (9, 0.2, 14.0, 0.5),
    ]
    assert asked == [[0, 0], [1, 1], [7, 7]], "no weights twice"
    journal.saw(600, 0.2, x)
    journal.saw(603, 0.1, x)  # between two points of the curve
    x += 6.0
    journal.saw(620, 0.3, x)
    assert journal.rows[-1][2:] == (0.1, 14.0, 0.5)


def test_a_budget_below_one_epoch_is_refused():
    with pytest.raises(InputError, match="passes: 2"):
        go_on(DEFAULT, trainer_at_prefix(), 2)


@pytest.mark.parametrize("name", AVAILABLE)
def test_what_a_method_spends_is_what_it_evaluates(name, monkeypatch):
    trainer = trainer_at_prefix()
    objective, method = trainer.objective, METHODS[name]
    sweeps, spent, losses = [], [0], [objective.value(objective.vector.read())]
    real_sweep, real_gradient = competitors.sweep, objective.value_and_gradient
    before = objective.passes.total + 1  # go_on looks once at the start

    def counted_sweep(*arguments):
        sweeps.append(1)
        real_sweep(*arguments)

    def counted_gradient(x):
        value, gradient = real_gradient(x)
        spent.append(objective.passes.total - before)
        losses.append(value)
        return value, gradient

    monkeypatch.setattr(competitors, "sweep", counted_sweep)
    monkeypatch.setattr(objective, "value_and_gradient", counted_gradient)
    budget = method.times * BUDGET
    second = method.candidates[0]
    # of Levenberg–Marquardt, which would be chosen, no gradients are seen here
    rows = go_on(SELF_SCALED_BFGS if second == DEFAULT else second, trainer, budget)
    assert rows[0].passes == 0 and rows[0].loss == losses[0]
    assert all(b.loss <= a.loss and b.passes > a.passes for a, b in itertools.pairwise(rows))
    assert rows[-1].passes <= budget
    if sweeps:
        assert rows[-1].passes == 3 * len(sweeps) - 3  # the last one was beyond the budget
    else:
        # every point is where a gradient was just computed, and no lower loss was met by then
        assert {row.passes for row in rows} <= set(spent)
        for row in rows:
            met = [loss for at, loss in zip(spent, losses, strict=True) if at <= row.passes]
            assert row.loss in losses and row.loss >= min(met)
        assert rows[-1].passes >= budget - 20


@pytest.mark.parametrize("kind", [AdamGoesOn, AdamCosine])
@pytest.mark.parametrize("factor", [0, -1.0, math.nan])
def test_adam_needs_a_rate_above_zero(kind, factor):
    with pytest.raises(InputError, match="factor: "):
        kind(factor)


def test_adam_goes_on_as_if_nobody_had_looked():
    expected = trainer_at_prefix(epochs=5 + BUDGET // 3)
    trainer = trainer_at_prefix(epochs=5)
    rows = go_on(AdamGoesOn(), trainer, BUDGET)
    losses = [record.train_loss for record in expected.history[5:]]
    assert rows[-1].passes == BUDGET
    assert rows[-1].loss == min(losses)


@pytest.mark.parametrize("precision", [Full(), BFloat16()])
def test_adam_goes_on_in_its_precision(precision, monkeypatch):
    trainer, seen = trainer_at_prefix(), []
    trainer.phases["adam"].adam.precision = precision
    monkeypatch.setattr(competitors, "sweep", lambda step, batches: seen.append(step.precision))
    go_on(AdamGoesOn(), trainer, 12)
    assert set(seen) == {precision}


@pytest.mark.parametrize(
    ("second", "rates"),
    [
        (AdamGoesOn(3.0), [3e-2] * 5),
        (AdamCosine(3.0), [1.5e-2 * (1 + math.cos(math.pi * share / 4)) for share in range(5)]),
        (SGD(0.1), [0.1] * 5),
    ],
)
def test_rates_follow_their_formulas(second, rates, monkeypatch):
    found = []
    monkeypatch.setattr(
        competitors,
        "sweep",
        lambda step, batches: found.append(step.optimizer.param_groups[0]["lr"]),
    )
    go_on(second, trainer_at_prefix(), 12)
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("cosine", [True, False])
def test_adamw_from_the_start_is_torchs_over_the_whole_training(cosine):
    """Its curve begins where the prefix of the others ends."""
    head, budget, rate = 15, 30, 3e-3
    trainer, expected = trainer_at_prefix(epochs=0), trainer_at_prefix(epochs=0)
    rows = go_on(AdamWFromStart(rate, cosine, 0.1), trainer, budget, head)
    objective, adam = expected.objective, expected.phases["adam"].adam
    optimizer = torch.optim.AdamW(objective.vector.parameters, lr=rate, weight_decay=0.1)
    losses = []
    for epoch in range(15):
        optimizer.param_groups[0]["lr"] = rate * (
            (1 + math.cos(math.pi * epoch / 15)) / 2 if cosine else 1
        )
        for batch in objective.mini_batches(8, adam.generator):
            optimizer.zero_grad()
            nn.functional.mse_loss(
                expected.model(objective.inputs[batch]), objective.targets[batch]
            ).backward()
            optimizer.step()
        losses.append(objective.value(objective.vector.read()))
    assert [row.passes for row in rows] == list(range(0, 31, 3))
    lowest = list(itertools.accumulate(losses[4:], min))
    assert [row.loss for row in rows] == pytest.approx(lowest, rel=1e-12)


def test_what_diverges_before_the_curve_begins_has_no_loss():
    (row,) = go_on(AdamWFromStart(1e300, False), trainer_at_prefix(epochs=0), 30, 15)
    assert row == (0, 0.0, math.inf, None, None)


@pytest.mark.parametrize("second", [AdamGoesOn(), TorchLBFGS(), SELF_SCALED_BFGS])
def test_looking_at_validation_changes_nothing(second):
    """And it is that of the weights with the lowest training loss."""
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    plain = go_on(second, trainer_at_prefix(), BUDGET)
    looked = trainer_at_prefix(validation=(inputs, torch.sin(inputs.sum(1, keepdim=True))))
    rows = go_on(second, looked, BUDGET)
    drop = [(row.passes, row.loss) for row in rows]
    assert drop == [(row.passes, row.loss) for row in plain]
    assert all(row.validation_loss is None for row in plain)
    losses = {row.loss for row in rows}
    assert 1 < len({row.validation_loss for row in rows}) <= len(losses)
    start = trainer_at_prefix()
    expected = nn.functional.mse_loss(start.model(inputs), torch.sin(inputs.sum(1, keepdim=True)))
    assert rows[0].validation_loss == pytest.approx(expected.item(), rel=1e-12)


def test_torch_lbfgs_is_torchs_own_run_in_one_step():
    trainer = trainer_at_prefix()
    x = nn.Parameter(trainer.objective.vector.read())
    lowest = []

    def closure():
        value, x.grad = trainer.objective.value_and_gradient(x.detach())
        lowest.append(value)
        return torch.tensor(value, dtype=torch.float64)

    optimizer = torch.optim.LBFGS(
        [x], max_iter=99, max_eval=BUDGET // 3, tolerance_grad=0, tolerance_change=0,
        history_size=100, line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimizer.step(closure)
    rows = go_on(TorchLBFGS(), trainer_at_prefix(), BUDGET)
    assert rows[-1].loss == min(lowest[: BUDGET // 3])


def test_the_second_phase_is_that_of_fit():
    trainer = trainer_at_prefix()
    branch = Trainer(
        trainer.model,
        (trainer.objective.inputs, trainer.objective.targets),
        switch=FixedEpoch(5),
        fallback=None,
        loss=nn.functional.mse_loss,
        adam=AdamSettings(1e-2, 8),
        device="cpu",
    )
    branch.load_state_dict(trainer.state_dict())
    spent = lowest = 0
    while spent <= BUDGET:
        rows_end = (spent, lowest)
        record = branch.epoch()
        spent, lowest = spent + record.passes, record.train_loss
    rows = go_on(DEFAULT, trainer_at_prefix(), BUDGET)
    assert (rows[-1].passes, rows[-1].loss) == rows_end


def test_a_method_that_diverges_ends_with_what_it_had():
    rows = go_on(SGD(1e30), trainer_at_prefix(), BUDGET)
    assert math.isfinite(rows[-1].loss) and rows[-1].passes < BUDGET
