"""The gap between training and validation over Q: by hand, and by small real runs."""

import pandas as pd
import pytest

from twophase.errors import InputError
from twophase.experiments import branches, generalisation, runs
from twophase.experiments.generalisation import ADAM, RACE, SWAP
from twophase.problems.networks import overdetermination
from twophase.problems.problem import ImageProblem


def table(*rows):
    columns = ["q", "strategy", "loss", "validation_loss"]
    made = pd.DataFrame(rows, columns=columns)
    return made.assign(dataset="d", model="m", examples=1, seed=0)


MADE_UP = table(
    (0.5, ADAM, 0.01, 0.05),
    (0.5, SWAP, 0.001, 0.06),
    (0.5, RACE, 0.02, 0.04),
    (20.0, ADAM, 0.02, 0.03),
    (20.0, SWAP, 0.01, 0.02),
    (20.0, RACE, 0.03, 0.031),
)


def test_the_gap_is_validation_minus_training():
    found = generalisation.with_gap(MADE_UP).gap
    assert found.tolist() == pytest.approx([0.04, 0.059, 0.02, 0.01, 0.01, 0.001])
    said = generalisation.gap_in_words(MADE_UP)
    assert f"for *{ADAM}* **−1** (median gap 0.04 at Q below 1, 0.01 at Q of 10 or more)" in said
    assert said.startswith("A larger Q goes with a smaller gap **nearly always**: the rank corr")
    assert said.endswith("All trainings with Q of 10 or more are of one network, m.")
    more = pd.concat([MADE_UP, MADE_UP[MADE_UP.q > 1].assign(q=30.0, model="n", validation_loss=9)])
    said = generalisation.gap_in_words(more)
    assert "**hardly**: " in said and said.endswith(" at Q of 10 or more).")


def test_phases_are_counted_by_q():
    ratios = generalisation.beside_adam(MADE_UP)
    swapped = ratios[ratios.strategy == SWAP].set_index("q")
    assert swapped.loss.to_dict() == pytest.approx({0.5: 0.1, 20.0: 0.5})
    said = generalisation.phases_in_words(MADE_UP)
    assert f"*{SWAP}* in 1 and 0 of 1 at Q below 1, 1 and 1 of 1 at Q of 10 or more" in said
    assert f"*{RACE}* in 0 and 1 of 1 at Q below 1, 0 and 0 of 1 at Q of 10 or more" in said


def test_settings_are_in_the_order_of_q():
    swapped = MADE_UP.assign(seed=1, loss=3 * MADE_UP.loss)
    both = pd.concat([swapped, MADE_UP])
    found = generalisation.by_setting(both, "loss")
    assert found.Q.tolist() == ["0.5", "20"]
    assert found[SWAP].tolist() == ["0.002", "0.02"]
    validated = generalisation.by_setting(both, "validation_loss")
    assert validated[ADAM].tolist() == ["0.05", "0.03"]
    assert validated[RACE].tolist() == ["0.04", "0.031"]
    assert found["network and examples"].tolist() == ["m, 1 d"] * 2
    exact = generalisation.by_setting(MADE_UP.assign(loss=1e-45), "loss")
    assert exact[ADAM].tolist() == ["<1e−30"] * 2


def test_gaps_and_losses_are_told_by_q():
    swapped, raced = (
        {
            row["Q"]: row
            for row in generalisation.by_q(MADE_UP).to_dict("records")
            if row["strategy"] == name
        }
        for name in (SWAP, RACE)
    )
    assert swapped["below 1"] == {
        **{"Q": "below 1", "strategy": SWAP, "median gap": "0.059", "gap above Adam's": "1 of 1"},
        **{"training loss: median": "0.001", "highest": "0.001", "training loss below": "1 of 1"},
        **{"validation loss below": "0 of 1"},
    }
    assert raced["of 10 or more"]["gap above Adam's"] == "0 of 1"
    narrower = MADE_UP.replace({"validation_loss": {0.02: 0.019}})
    said = generalisation.widened_in_words(narrower)
    assert said.startswith("It depends: at equal passes the gap is larger than Adam's by *swap at ")
    assert "in **1 of 2** trainings (median of the ratio: 1.2), by *race* in **0 of 2**" in said
    wider = MADE_UP.assign(validation_loss=MADE_UP.validation_loss + (MADE_UP.strategy != ADAM))
    assert generalisation.widened_in_words(wider).startswith("It widens it: ")


def test_fits_are_told_where_q_is_below_1():
    said = generalisation.fits_in_words(MADE_UP)
    assert f"*{SWAP}* comes to 0.001 in the median and 0.001 at worst, and in its worst" in said
    assert (
        f"*{RACE}* comes to 0.02 in the median and 0.02 at worst, and in its worst training beside "
        "Adam to 2.00 times Adam's loss" in said
    )


def test_sizes_cover_q_from_a_tenth_to_a_hundred():
    """P is 66 w + 10 of an `mlp-w` on images in 8 by 8 pixels and 10 classes, and a bias each."""
    small = {f"mlp-{w}": 65 * w + 11 * w - w + 10 for w in (4, 16)}
    sizes = generalisation.SIZES
    q = [
        overdetermination(count, 10, small[model])
        for dataset in sizes
        for model, counts in sizes[dataset].items()
        if model in small
        for count in counts
    ]
    assert min(q) < 0.15 and max(q) > 100


def test_problems_can_be_chosen():
    chosen = generalisation.problems(["digits"], ["mlp-4"], 64)
    assert [problem.train_examples for problem in chosen] == [4, 16, 64]


@pytest.mark.slow
def test_a_run_has_a_row_for_each_training(tmp_path):
    problems = [ImageProblem("digits", "mlp-4", count) for count in (4, 16)]
    place = branches.Place(tmp_path)
    found = generalisation.run(problems, 36, 2, place)
    assert len(found) == 2 * 2 * 3
    assert found.q.unique() == pytest.approx([40 / 310, 160 / 310])
    alone = generalisation._config(problems[1], 36, 1).trunk()
    _, summary = runs.read(place.folder(alone))
    row = found.query("examples == 16 and seed == 1 and strategy == @ADAM").iloc[0]
    assert (row.loss, row.validation_loss) == (summary["train_loss"], summary["validation_loss"])


def test_too_few_passes_are_refused(tmp_path):
    with pytest.raises(InputError, match="^passes: 3 "):
        generalisation.run([], 3, 1, branches.Place(tmp_path))
