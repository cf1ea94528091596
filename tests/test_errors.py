"""Errors of users: one line with the field, the value and what is allowed."""

import copy
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import (
    DataError,
    InputError,
    NonFiniteError,
    TwoPhaseError,
    check_choice,
    check_integer,
    check_number,
)

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none())
)


@pytest.mark.slow
@given(value=st.one_of(ANYTHING, st.integers(10**300, 10**320)))
def test_a_number_is_in_its_range_or_refused_in_one_line(value):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = number and math.nextafter(0, 1) <= value <= 1
    if inside:
        assert check_number("field", value, above=0, maximum=1) == value
    else:
        with pytest.raises(InputError) as error:
            check_number("field", value, above=0, maximum=1)
        assert str(error.value).startswith(f"field: {value!r} is not allowed; use a finite number")
        assert str(error.value).count("\n") == repr(value).count("\n")


@given(value=ANYTHING, minimum=st.integers(-5, 5))
def test_a_whole_number_is_large_enough_or_refused(value, minimum):
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and minimum <= value < 2**63:
        assert check_integer("field", value, minimum) == value
    else:
        with pytest.raises(InputError, match="^field: .* is not allowed; use a whole number of at"):
            check_integer("field", value, minimum)


def test_numbers_of_numpy_are_told_what_to_become():
    with pytest.raises(InputError, match=r"use a whole number of at least 0, as int\(np.int64\(3"):
        check_integer("field", np.int64(3), 0)
    with pytest.raises(InputError, match=r"use a finite number, as float\(np.float32\(0.5"):
        check_number("field", np.float32(0.5))


@pytest.mark.parametrize("value", [10**400, math.inf, -math.inf, math.nan])
def test_numbers_beyond_the_floats_are_not_finite(value):
    with pytest.raises(InputError, match="use a finite number$"):
        check_number("field", value)
    assert check_number("field", sys.float_info.max) == sys.float_info.max


def test_a_choice_suggests_what_was_meant():
    assert check_choice("beta", "FR", ["FR", "PR+"]) == "FR"
    with pytest.raises(InputError, match=r"one of FR, PR\+ \(did you mean 'PR\+'\?\)"):
        check_choice("beta", "PR", ["FR", "PR+"])
    with pytest.raises(InputError, match=r"one of FR, PR\+$"):
        check_choice("beta", ["x"], ["FR", "PR+"])


def test_an_input_error_is_a_value_error_with_its_parts():
    """One base class for all that the command line turns into a line."""
    error = InputError("epochs", 0, "a whole number of at least 1")
    assert str(error) == "epochs: 0 is not allowed; use a whole number of at least 1"
    assert (error.field, error.value, error.allowed) == (
        "epochs",
        0,
        "a whole number of at least 1",
    )
    assert isinstance(error, ValueError)
    for kind in (InputError, DataError, NonFiniteError):
        assert issubclass(kind, TwoPhaseError)


def test_a_value_of_many_lines_or_characters_is_shown_in_one():
    assert "\n" not in str(InputError("loss", torch.ones(3, 3), "a number"))
    assert len(str(InputError("loss", list(range(10_000)), "a number"))) < 500


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_an_error_can_be_copied_and_sent(copied):
    """Also one whose value cannot be: what other processes meet has the words and the field."""
    error = InputError("loss", lambda outputs: outputs, "a function")
    error.records = (1, 2)
    found = copied(error)
    assert type(found) is InputError and str(found) == str(error)
    assert (found.field, found.allowed, found.records) == ("loss", "a function", (1, 2))
    assert found.value == repr(error.value)
