"""Payoffs: the forecast is Adam's trend, and every second phase has its own."""

from dataclasses import replace

import pytest

from twophase.payoff import Payoff, forecast, payoffs
from twophase.record import Record


def record(epoch: int, phase: str, loss: float, passes: int = 3) -> Record:
    return Record(epoch, phase, loss, None, None, None, 1.0, None, 0, passes, 0, 0.0, "moved", "")


def power_law(epochs: int, start: int = 1) -> list[Record]:
    """Adam whose loss is 1 / passes exactly."""
    return [record(n, "adam", 1 / (3 * n)) for n in range(start, start + epochs)]


def test_a_power_law_is_foreseen_exactly():
    records = [*power_law(20), record(21, "second", 0.01, 10), record(22, "second", 0.008, 30)]
    assert forecast(records[:20], 40) == pytest.approx(1 / (60 + 40), rel=1e-9)
    (found,) = payoffs(records)
    assert found == Payoff(21, 22, 40, 0.008, pytest.approx(1 / (60 + 40), rel=1e-9))
    assert found.pays and "from epoch 21 on" in found.text


def test_a_loss_above_the_forecast_does_not_pay():
    (found,) = payoffs([*power_law(20), record(21, "second", 0.012, 40)])
    assert not found.pays and found.text.startswith("the second phase does not pay")


def test_the_lowest_loss_of_the_phase_counts():
    records = [*power_law(20), record(21, "second", 0.001, 10), record(22, "second", 0.5, 10)]
    assert payoffs(records)[0].loss == 0.001


def test_each_phase_is_judged_by_all_of_adam_before_it():
    first = [*power_law(10), record(11, "second", 0.02, 30)]
    # back at the weights of the swap, Adam goes on with its own law
    again = [replace(r, epoch=r.epoch + 1) for r in power_law(10, start=11)]
    found = payoffs([*first, *again, record(22, "second", 0.004, 40)])
    assert [(p.first_epoch, p.passes) for p in found] == [(11, 30), (22, 40)]
    assert [p.foreseen for p in found] == pytest.approx([1 / 60, 1 / 100])


def test_losses_below_zero_have_a_trend_of_their_own():
    records = [record(n, "adam", 1.0 - n) for n in range(1, 9)] + [record(9, "second", -30.0)]
    (found,) = payoffs(records)
    assert found.pays and -30 < found.foreseen < -7


@pytest.mark.parametrize("phase", ["adam", "second"])
def test_one_phase_alone_has_no_payoff(phase):
    assert payoffs([record(n, phase, 1 / n) for n in range(1, 5)]) == []
