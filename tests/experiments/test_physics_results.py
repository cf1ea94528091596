"""Errors over the cost: levels reached, equal passes, and what others published."""

import json

import pandas as pd
import pytest

from twophase.errors import DataError
from twophase.experiments import physics_results
from twophase.experiments.files import project_folder

COLUMNS = ["problem", "method", "seed", "passes", "seconds", "loss", "error"]


@pytest.fixture
def results():
    rows = [
        *[("a", "ours", 0, 3 * n, n / 10, 10.0**-n, 10.0 ** (-n - 1)) for n in range(1, 7)],
        *[("a", "peer", 0, 3 * n, n / 5, 10.0 ** (-n / 2), 10.0 ** (-n / 2)) for n in range(1, 5)],
        *[("a", "ours", 1, 3, 0.1, 4.0, 1.0), ("a", "peer", 1, 6, 0.1, 2.0, 1.0)],
        ("b", "ours", 0, 3, 0.1, 1.0, 1.0),
    ]
    return physics_results.PhysicsResults(
        pd.DataFrame(rows, columns=COLUMNS), {"a": {"1e-05": 59, "lowest": 6e-8}}
    )


def test_levels_are_reached_where_the_error_is_first_that_low(results):
    shown = physics_results.to_errors(results).set_index(["problem", "method"])
    ours = shown.loc["a", "ours"]
    assert ours["1e-04"] == "0.3 s, 9" and ours["1e-07"] == "0.6 s, 18"
    assert ours["at the end"] == "1.0e-07 (1 s, 18)"
    assert list(shown.loc["a", "peer"][:2]) == ["–", "–"]
    published = shown.loc["a", physics_results.PUBLISHED]
    assert list(published) == ["–", "59 s", "–", "–", "6.0e-08 (1000 s)"]
    assert ("b", physics_results.PUBLISHED) not in shown.index
    larger = physics_results.to_errors(results, levels=(1e-2, 1e-5)).set_index(
        ["problem", "method"]
    )
    assert larger.loc["a", "ours"]["1e-02"] == "0.1 s, 3"
    assert list(larger.loc["a", physics_results.PUBLISHED])[:2] == ["–", "59 s"]


def test_the_winner_is_who_is_lowest_in_the_time_that_all_had(results):
    # ours is at 1e-7 in the end, but at 1e-5 when the other has had its time
    slow = results.curves.assign(seconds=results.curves.seconds * 5)
    longer = slow[(slow.problem == "a") & (slow.seed == 0)]
    other = pd.DataFrame([("a", "other", 0, 3, 2.0, 1.0, 2e-5)], columns=COLUMNS)
    found = physics_results.winners(results._replace(curves=pd.concat([longer, other])))
    assert found.values.tolist() == [["a", "2", "ours", "1.0e-05", "other", "2.0e-05"]]
    alone = physics_results.winners(results._replace(curves=other))
    assert alone.values.tolist() == [["a", "2", "other", "2.0e-05", "–", "–"]]


def test_losses_are_compared_in_the_seconds_that_all_had(results):
    seconds, words = physics_results.in_shared_seconds(results.curves[results.curves.seed == 0])
    # ours ends after 0.6 s, the peer after 0.8 s, of which it has had three points by then
    assert seconds == pytest.approx(0.6) and words == "1.0e-06, ours; 3.2e-02, peer"


def test_losses_are_compared_within_the_passes_that_both_made(results):
    pairs = physics_results.at_equal_passes(results, "ours", "peer")
    first, second = pairs.itertuples(index=False)
    assert first[:3] == ("a", 0, 12)
    assert first.here == pytest.approx(1e-4) and first.peer == pytest.approx(1e-2)
    assert first.ratio == pytest.approx(1e-2)
    assert second.passes == 3 and pd.isna(second.peer)  # the peer has no loss by then
    shown = physics_results.beside_the_peer(pairs.iloc[:1])
    assert shown.problem.tolist() == ["a", "all 1 runs"]
    assert shown.ratio[0] == "0.01 (0.01 to 0.01)"


def test_the_kept_results_fill_the_tables():
    kept = physics_results.load(project_folder() / "reports" / "reference" / "physics-networks")
    assert physics_results.PUBLISHED in set(physics_results.to_errors(kept).method)
    pairs = physics_results.at_equal_passes(kept)
    assert pairs.groupby("problem").seed.nunique().min() >= 3 and pairs.problem.nunique() >= 5


@pytest.mark.parametrize("content", [None, "[", "{}"])
def test_what_is_no_result_says_so(tmp_path, content):
    (tmp_path / "curves.csv").write_text(",".join(COLUMNS) + "\n")
    if content is not None:
        (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(DataError, match="no results of physics_networks.py"):
        physics_results.load(tmp_path)


def test_a_folder_without_curves_says_so(tmp_path):
    (tmp_path / "provenance.json").write_text(json.dumps({"published": {}}))
    with pytest.raises(DataError, match="no results"):
        physics_results.load(tmp_path)
