"""Searches for a global minimum: counts against calls, known minima, Hessians, and the words."""

import math
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from twophase.errors import InputError
from twophase.experiments import global_search
from twophase.experiments import global_search_results as results
from twophase.experiments.competitors import BudgetSpent
from twophase.experiments.global_search import GLOBAL, LOCAL, METHODS, TOLERANCE, Meter
from twophase.experiments.global_search_results import End
from twophase.experiments.hessian import Hessian
from twophase.objective import FunctionObjective
from twophase.problems.multimodal import Multimodal, conflict, planted

AVAILABLE = [name for name, method in METHODS.items() if method.installed]
# quicker, and no less counted
SHORT = {"Bayesian optimisation": replace(METHODS["Bayesian optimisation"], most=8)}
OWN = [name for name in LOCAL if "scipy" not in name]


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name not in OWN])
def test_foreign_methods_are_charged_for_every_call(name, monkeypatch):
    """One for residuals, two more for a Jacobian, however a package asks for them."""
    calls = []
    for kind, cost in (("residuals", 1), ("jacobian", 2)):
        own = getattr(Multimodal, kind)

        def counted(problem, w, own=own, cost=cost):
            calls.append(cost)
            return own(problem, w)

        monkeypatch.setattr(Multimodal, kind, counted)
    problem, method = conflict(2, seed=0), SHORT.get(name, METHODS[name])
    meter = Meter(problem, 200)
    with suppress(BudgetSpent):
        method.search(meter, np.random.default_rng(0))
    assert meter.spent == sum(calls) > 5
    assert (2 in calls) == (name not in ("DIRECT", "Bayesian optimisation"))


@pytest.mark.parametrize("name", OWN)
def test_twophase_is_charged_for_all_its_passes(name, monkeypatch):
    made, own = [], Multimodal.least_squares

    def kept(problem, start):
        made.append(own(problem, start))
        return made[-1]

    monkeypatch.setattr(Multimodal, "least_squares", kept)
    meter = Meter(conflict(2, seed=0), 500)
    with suppress(BudgetSpent):
        replace(METHODS[name], passes=200).search(meter, np.random.default_rng(0))
    assert len(made) == meter.starts > 1
    assert meter.spent == sum(squares.passes.total for squares in made)


def test_a_gradient_after_its_value_is_three_evaluations_and_alone_as_many():
    problem = planted(3, seed=0)
    w, other = problem.starts(np.random.default_rng(0), 2)
    meter = Meter(problem)
    value, gradient = meter.value_and_gradient(w)
    assert meter.spent == 3
    leaf = torch.from_numpy(w).requires_grad_()
    loss = problem.loss(leaf)
    loss.backward()
    assert value == pytest.approx(loss.item())
    np.testing.assert_allclose(gradient, leaf.grad)
    meter.gradient(other)
    assert meter.spent == 6


@pytest.mark.parametrize("name", AVAILABLE)
def test_each_method_finds_the_minimum_of_one_parameter(name):
    problem = planted(1, seed=1)
    found = METHODS[name].run(problem, seed=1, evaluations=400)
    goal = problem.minimum + TOLERANCE * problem.scale
    assert found.lowest[-1] <= goal
    assert found.reached(goal) == found.evaluations[-1] == found.spent <= 400
    assert (np.diff(found.lowest) < 0).all() and (np.diff(found.evaluations) > 0).all()
    assert found.reached(-1.0) == math.inf and found.reached(math.inf) == found.evaluations[0]


def test_a_search_spends_no_more_than_it_has():
    problem = conflict(8, seed=0)
    for name in ("DIRECT", "second phase alone"):
        found = METHODS[name].run(problem, seed=0, evaluations=60)
        assert found.spent == 60 and found.evaluations[-1] <= 60
    with pytest.raises(InputError, match="^evaluations: 2"):
        METHODS["DIRECT"].run(problem, seed=0, evaluations=2)


def test_starts_are_in_the_box_and_drawn_by_the_seed():
    problem, method = conflict(4, seed=0), METHODS["scipy's Levenberg–Marquardt"]
    first, same, other = (method.run(problem, seed, 300) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.lowest, same.lowest)
    assert first.lowest[0] != other.lowest[0]
    points = problem.starts(np.random.default_rng(0), 500)
    assert np.abs(points).max() <= problem.half_width < np.abs(points).max() + 0.1


def test_a_method_whose_package_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr(global_search, "find_spec", lambda package: None)
    chosen = {name: METHODS[name] for name in ("Bayesian optimisation", "basin hopping")}
    rows = list(results.searches(["planted"], [1], [0], 60, chosen))
    assert [row["method"] for row in rows] == ["basin hopping"]
    assert results.left_out(chosen) == (
        "Left out, because its package is not installed here: Bayesian optimisation."
    )
    monkeypatch.undo()
    assert results.left_out(GLOBAL if "Bayesian optimisation" in AVAILABLE else LOCAL) == ""


# ---- ends


def surface(loss):
    return SimpleNamespace(loss=loss, minimum=0.0, scale=1.0, half_width=4.0)


@pytest.mark.parametrize(
    ("loss", "least", "end"),
    [
        (lambda x, y: 0 * x + 1e-7 + x**2 + 3 * y**2, 2.0, End.GLOBAL),
        (lambda x, y: 0.5 + x**2 + 3 * y**2, 2.0, End.SPURIOUS),
        (lambda x, y: 0.5 + x**2 - 3 * y**2, -6.0, End.SADDLE),
        (lambda x, y: 0.5 + x**2 + y**4, 0.0, End.FLAT),
        (lambda x, y: 0.5 + x**2 + 3 * y**2 + 1e-3 * x, 2.0, End.MOVING),
    ],
)
def test_ends_are_classified_by_loss_gradient_and_hessian(loss, least, end):
    found = results.ends(surface(lambda w: loss(w[..., 0], w[..., 1])), np.zeros((1, 2))).iloc[0]
    assert found.end == end and not found.outside
    assert found.least_eigenvalue == pytest.approx(least, abs=1e-12)


def test_the_least_eigenvalue_is_that_of_the_hessians_products():
    problem = planted(5, seed=0)
    points = problem.starts(np.random.default_rng(0), 2)
    found = results.ends(problem, points)
    for w, least in zip(torch.from_numpy(points), found.least_eigenvalue, strict=True):
        products = Hessian(FunctionObjective(problem.loss), w).extremes(tolerance=1e-9)
        assert least == pytest.approx(products.smallest, rel=1e-6)


def test_the_ends_of_a_neuron_in_conflict_are_its_minima():
    """From both sides of the box, one of its two minima each."""
    (found,) = results.census(["conflict"], [1], [0], 8, {"alone": LOCAL["second phase alone"]})
    assert set(found.end) == {"global minimum", "spurious minimum"}
    assert (found.gap[found.end == "global minimum"] <= 1e-6).all()
    assert results.levels(found.gap[found.end == "spurious minimum"]) == 1
    assert results.levels([0.1, 0.1 + 1e-7, 0.3]) == 2 and results.levels([]) == 0


# ---- words


def table_of(cases):
    rows = [
        {"problem": "p", "parameters": size, "method": method, "seed": seed, "evaluations": count}
        for (method, size), counts in cases.items()
        for seed, count in enumerate(counts)
    ]
    return pd.DataFrame(rows)


def test_tables_have_medians_misses_and_growth():
    table = table_of({
        ("own", 1): [10, 20, 30], ("own", 3): [2000, math.inf, 180],
        ("other", 1): [math.inf, 5, math.inf], ("other", 3): [math.inf] * 3,
    })  # fmt: skip
    words = results.to_medians(table)
    assert words.loc[("p", "own")].tolist() == ["20", "2,000, 1 of 3 missed"]
    assert words.loc[("p", "other")].tolist() == ["2 of 3 missed", "3 of 3 missed"]
    grown = results.growth(table).set_index("method")
    assert grown.factor["own"] == pytest.approx(10) and math.isnan(grown.factor["other"])
    assert grown["largest n found"].to_dict() == {"own": "3", "other": "none"}
    assert grown.points.to_dict() == {"own": 2, "other": 0}
    gap = table_of({("own", n): [cost] for n, cost in ((1, 5), (2, math.inf), (3, 7))})
    assert results.growth(gap)["largest n found"].tolist() == ["3, not 2"]


def test_rows_are_in_the_order_of_the_methods():
    rows = pd.DataFrame({
        "problem": ["conflict", "planted", "planted", "planted"],
        "method": ["Adam alone", "DIRECT", "Adam, then second phase", "Adam, then second phase"],
        "parameters": [1, 1, 2, 1],
    })  # fmt: skip
    found = results.in_order(rows)
    assert found.problem.tolist() == ["planted"] * 3 + ["conflict"]
    assert found.method.tolist()[:3] == ["Adam, then second phase"] * 2 + ["DIRECT"]
    assert found.parameters.tolist() == [2, 1, 1, 1]


def test_the_verdict_names_who_is_first_and_where_two_phases_are():
    table = table_of({("own", 1): [30], ("other", 1): [10], ("third", 1): [math.inf]})
    text = results.verdict(table, own="own")
    assert "**p**, 1 parameter: the fewest evaluations: other, 10" in text
    assert "own is number 2 of 3 with 30, 3.0 times as many" in text
    assert text.endswith("Missed on most seeds: third.")
    table = table_of({("own", 1): [30], ("own", 2): [math.inf]})
    assert results.verdict(table, own="own").endswith(" With 2 parameters all miss.")
    assert "own misses it on most seeds" in results.verdict(
        table_of({("own", 2): [math.inf], ("other", 2): [10]}), own="own"
    )
    assert "nobody finds" in results.verdict(table_of({("own", 2): [math.inf]}), own="own")


def test_the_claim_is_put_in_numbers():
    def ends(kinds):
        return pd.DataFrame({
            "problem": "p", "parameters": [1, 1, 2, 2], "method": "m", "seed": 0, "end": kinds,
            "gap": [0.0, 0.2, 0.3, 0.4], "outside": False,
        })  # fmt: skip

    met = ends([End.GLOBAL, End.GLOBAL, End.SPURIOUS, End.SADDLE])
    text = results.claim(met)
    assert "**they are met**: 1 in spurious minima and 1 at saddle points; 2 in the global" in text
    assert "Spurious minima: 0 of 2 ends with 1 parameter, 1 of 2 with 2." in text
    assert "**none are met**" in results.claim(ends([End.GLOBAL, End.GLOBAL, End.FLAT, End.MOVING]))
    shown = results.to_shares(met).set_index("parameters")
    assert shown["spurious minimum"].tolist() == ["0 of 2", "1 of 2"]
    assert shown["spurious losses a draw"].tolist() == ["–", "1.0"]
    words = results.drawn(pd.concat([met, met.assign(method="other")]))
    assert "1 drawn problem for" in words and "2 starts each, the same for all 2 methods" in words
    assert "2 drawn problems for" in results.drawn(pd.concat([met, met.assign(seed=1)]))
