"""The ordered entries beneath a test for a peak, against Python's own sort."""

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase.switching import peak


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that short sequences are cut into many."""
    monkeypatch.setattr(peak, "LARGEST_BLOCK", 3)


@given(keys=st.lists(st.integers(0, 12), max_size=60), count=st.integers(1, 8))
def test_entries_are_those_of_a_sorted_list(keys, count):
    ordered, plain = peak.Ordered(), []
    for came, key in enumerate(keys):
        entry = key, came
        ordered.insert(entry)
        plain = sorted([*plain, entry])
        place = bisect_right(plain, entry)
        assert ordered.rank(entry) == place
        assert ordered.up_to(entry, count) == plain[max(0, place - count) : place]
    assert list(ordered) == plain and len(ordered) == len(plain)
    for key in range(-1, 14):
        assert ordered.rank((key, len(keys))) == bisect_right(plain, (key, len(keys)))
