"""The methods of a comparison: settings by number, and how far tuning looks."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase import Race
from twophase.errors import InputError
from twophase.experiments.comparison import prefix
from twophase.experiments.competitors import SGD, AdamWFromStart, Competitor
from twophase.experiments.methods import METHODS, Candidates, Ladder
from twophase.line_search import GoldenSection
from twophase.problems.problem import ImageProblem
from twophase.second_phase import Minimizer
from twophase.settings import from_dict
from twophase.switching import Fallback

RATES = Ladder((SGD, lambda factor: AdamWFromStart(factor)), 10.0, lowest=-2, highest=1)


@pytest.mark.parametrize("name", METHODS)
def test_candidates_are_different_settings_that_json_holds(name):
    candidates = METHODS[name].candidates
    found = [candidates[number] for number in candidates.first]
    assert len(found) == len(set(found)) in (1, 3, 6)
    assert len({type(candidate) for candidate in found}) == 1
    for candidate in found:
        assert isinstance(candidate, Minimizer | Competitor)
        assert from_dict(json.loads(json.dumps(candidate.to_dict()))) == candidate


def test_a_ladder_counts_its_rungs_from_the_middle():
    found = [RATES[number] for number in (0, 2, 4, 6)]
    assert found == [SGD(1.0), SGD(0.1), SGD(10.0), SGD(0.01)]
    assert [RATES[n] for n in (1, 3, 5)] == [AdamWFromStart(rate) for rate in (1.0, 0.1, 10.0)]
    assert list(RATES.first) == [0, 1, 2, 3, 4, 5]


def test_beside_a_rung_are_those_of_its_kind_below_and_above():
    assert [RATES[n] for n in RATES.beside(0)] == [SGD(0.1), SGD(10.0)]
    assert [RATES[n] for n in RATES.beside(3)] == [AdamWFromStart(0.01), AdamWFromStart(1.0)]
    assert [RATES[n] for n in RATES.beside(4)] == [SGD(1.0)], "the ladder ends here"
    assert Candidates((SGD(), SGD(0.1))).beside(1) == []


@given(st.integers(1, 4), st.data())
def test_rungs_and_numbers_are_one_to_one(kinds, data):
    ladder = Ladder(tuple(SGD for _ in range(kinds)), 2.0)
    number = data.draw(st.integers(0, 17 * kinds - 1))
    kind, rung = ladder._place(number)
    assert ladder._number(kind, rung) == number and -8 <= rung <= 8
    for beside in ladder.beside(number):
        assert number in ladder.beside(beside)
    with pytest.raises(InputError, match="^candidate: "):
        ladder[17 * kinds]


@pytest.mark.parametrize("candidates", [Candidates((SGD(),)), RATES])
@pytest.mark.parametrize("number", [-1, 8, 99])
def test_a_number_out_of_range_is_told(candidates, number):
    with pytest.raises(InputError, match=f"^candidate: {number} "):
        candidates[number]


def test_the_papers_tolerances_are_all_within_reach():
    golden = METHODS["golden"].candidates
    found, number = [], 2
    while more := [n for n in golden.beside(number) if n > number]:
        number = more[-1]
        found.append(golden[number].line_search)
    assert found[-1] == GoldenSection(1e-8) and len(found) == 5
    assert golden[1].line_search == GoldenSection(0.1)


def test_a_method_that_switches_by_itself_trains_the_prefix_too():
    start = prefix(ImageProblem("digits", "mlp-4", 64), 5, batch_size=16)
    config = METHODS["race"].config(start, 0, 90)
    assert (config.epochs, config.budget, config.passes) == (35, 105, None)
    assert (config.switch, config.fallback) == (Race(), Fallback())
    assert replace(config.trunk(), epochs=5) == start
    assert METHODS["race"].starts_over and METHODS["adamw-from-start"].starts_over
    assert not METHODS["adam"].starts_over and not METHODS["default"].starts_over
