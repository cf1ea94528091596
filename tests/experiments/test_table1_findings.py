"""Table 1 for readers, against the committed rows, counted by hand."""

import json

import pandas as pd
import pytest

from twophase.errors import InputError
from twophase.experiments import runs, table1, traces
from twophase.experiments import table1_findings as findings
from twophase.experiments.files import project_folder

OUT = project_folder() / "reports" / "reference" / "table1-mnist-2048"


@pytest.fixture(scope="module")
def chosen():
    return findings.there(OUT, "fixed")


@pytest.fixture(scope="module")
def table(chosen):
    return table1.table(chosen, OUT)


def test_what_is_there_is_the_papers_table_and_more(tmp_path, chosen):
    paper = [config for config in chosen if config.seed == 0]
    assert chosen == paper == table1.configs(table1.PROTOCOLS["paper"])
    (tmp_path / "digits" / "vit-mlp" / "seed-2").mkdir(parents=True)
    more = findings.there(tmp_path, "rule")
    assert {config.seed for config in more} == {0, 1, 2}
    assert len(more) == 3 * (len(paper) + 5)
    assert {config.swap_epoch for config in more} == {None}


def test_runs_of_the_old_format_are_read(chosen):
    made = findings.made(chosen, OUT)
    assert made["data set"].tolist() == ["mnist"] * 10
    assert made.strategy.tolist() == ["adam", "adam+cg"] * 5
    assert made.swap.tolist() == ["–", "18"] * 5
    assert set(made.examples) == {2048} and set(made.epochs) == {60}
    first = made.iloc[0]
    assert first.minutes == pytest.approx(first.summary["seconds"] / 60, abs=0.05)


def test_nothing_there_is_nothing_shown(tmp_path):
    chosen = findings.there(tmp_path, "fixed")
    assert findings.made(chosen, tmp_path).empty
    assert findings.at_equal_cost(chosen, tmp_path).empty
    ratios = findings.advantages(table1.table(chosen, tmp_path))
    assert ratios.own.isna().all() and ratios.paper.notna().all()


def test_advantages_are_adams_loss_in_parts_of_the_others(table):
    found = findings.advantages(table)
    assert len(found) == 15 and found.index[0] == ("mnist", "vit-mlp")
    assert found.paper.iloc[0] == pytest.approx(0.0008 / 0.0001)
    losses = table.set_index(["model", "strategy"]).train_loss[:10]
    for _, model in found.index[:5]:
        expected = losses[model, "adam"] / losses[model, "adam+cg"]
        assert found.own["mnist", model] == pytest.approx(expected)
    assert found.own[5:].isna().all()


def test_at_equal_cost_both_have_what_adam_spent(chosen):
    found = findings.at_equal_cost(chosen, OUT)
    assert found["network"].tolist() == [config.problem.model for config in chosen[:5]]
    history, _ = runs.read(OUT / table1.folder_name(chosen[0]))
    assert found["passes of Adam"].tolist() == [180] * 5
    assert found["passes of both"][0] == history.passes.sum()
    spent, lowest = 0, 1.0
    for passes, loss in zip(history.passes, history.train_loss, strict=True):
        spent += passes
        lowest = min(lowest, loss) if spent <= 180 else lowest
    assert found["at equal passes"][0] == lowest > found["Adam, then CG"][0]
    there = history[history.train_loss == lowest].validation_loss
    assert found["val. loss at equal passes"][0] == there.item()


def test_what_was_not_run_says_so(table):
    shown = findings.beside_paper(table, {"train_accuracy": ("acc.", 3)})
    assert list(shown)[:3] == ["data set", "network", "strategy"]
    assert shown["acc."][:2].tolist() == [f"{of:.3f}" for of in table.train_accuracy[:2]]
    assert set(shown["acc."][10:]) == {"not run"}
    assert shown["paper's acc."][1] == "1.000"
    digits = table1.table(table1.configs(table1.PROTOCOLS["smoke"]), OUT)
    assert set(findings.beside_paper(digits, {"train_loss": ("loss", 4)})["paper's loss"]) == {"–"}


def test_texts_are_unbroken_and_numbers_stay():
    found = findings.unbroken(pd.DataFrame({"network": ["vit-mlp", "not run"], "loss": [-1, 2.5]}))
    assert found.network.tolist() == ["vit\u2011mlp", "not\u00a0run"]
    assert found["loss"].tolist() == [-1, 2.5]


def test_every_choice_has_a_row():
    found = findings.choices().set_index("choice")
    assert list(found.index) == list(table1.CHOICES)
    assert found.value["line search"] == "GoldenSection: rtol 0.01, max evaluations 100"
    assert found.value["initialisation"] == "–"


# -- the paper's length


@pytest.fixture
def begun(tmp_path):
    """A run of Adam that is on its way, one with CG that is finished, and one that has no epoch."""

    def make(strategy, name, phases):
        folder = tmp_path / "table" / "mnist" / "vit-mlp" / "seed-0" / strategy
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"epochs": 5, "seed": 0}))
        if name:
            rows = [
                (n, phase, 1 / n, 2 / n, 0.1 * n, 5.0 / n, 3 if phase == "adam" else 2, 360)
                for n, phase in enumerate(phases, 1)
            ]
            columns = ["epoch", "phase", "train_loss", "validation_loss"]
            columns += ["validation_accuracy", "grad_norm", "passes", "seconds"]
            pd.DataFrame(rows, columns=columns).to_csv(folder / name, index=False)
        return folder

    make("adam", "history.partial.csv", ["adam"] * 3)
    make("adam+cg-fixed", "history.csv", ["adam", "adam", "cg", "cg", "cg"])
    make("adam+cg-rule", "", [])
    return tmp_path


def test_long_runs_are_shown_as_far_as_they_are(begun):
    first, second = found = findings.long_runs(begun)
    assert (first.dataset, first.model, first.strategy) == ("mnist", "vit-mlp", "adam")
    assert second.history.phase.tolist() == ["adam", "adam", "second", "second", "second"]
    table = findings.how_far(found)
    assert table.epochs.tolist() == ["3/5", "5/5"]
    assert table["train loss"].tolist() == pytest.approx([1 / 3, 1 / 5])
    paper = table1.paper_table().set_index(["dataset", "model", "strategy"]).train_loss
    assert (table.passes.tolist(), table.hours.tolist()) == ([9, 12], [0.3, 0.5])
    assert table["paper's train loss"].tolist() == [
        paper["mnist", "vit-mlp", strategy] for strategy in ("adam", "adam+cg")
    ]
    norms = findings.norms_of(second)
    assert norms.grad_norm.tolist() == [5.0, 2.5] and list(norms.loss) == [1.0, 0.5]
    assert set(traces.COLUMNS) <= set(norms)


def test_long_runs_are_beside_adam_at_the_passes_of_the_shorter(begun):
    (row,) = findings.long_beside_adam(findings.long_runs(begun)).to_dict("records")
    # nine passes: Adam's three epochs; two of Adam's and one of CG
    assert (row["strategy"], row["passes"]) == ("adam+cg-fixed", 9)
    assert (row["Adam's train loss"], row["train loss"]) == pytest.approx((1 / 3, 1 / 3))
    assert row["val. loss"] == pytest.approx(2 / 3)
    words = findings.long_in_words(pd.DataFrame([row | {"val. loss": 1 / 3}]))
    assert "**1.00** times Adam's training loss and **0.50** times its validation" in words
    assert "after 9 passes" in words and "no run" in findings.long_in_words(pd.DataFrame())


def test_the_lowest_validation_loss_is_that_of_any_epoch_by_then_and_of_its_phase(begun):
    adam, both = findings.long_runs(begun)
    adam.history.loc[1, "validation_loss"] = 0.125
    both.history.loc[0, "validation_loss"] = 0.25
    beside = findings.long_beside_adam([adam, both])
    said = findings.lowest_in_words(beside)
    assert "is **0.2500** with both phases and **0.1250** with Adam alone" in said
    assert said.endswith("before the swap, in 1 of 1")
    assert beside["Adam's val. loss"].item() == pytest.approx(2 / 3)
    both.history.loc[2, "validation_loss"] = 0.2
    assert findings.lowest_in_words(findings.long_beside_adam([adam, both])).endswith("0 of 1")
    assert findings.lowest_in_words(pd.DataFrame()) == ""


def test_what_is_the_same_in_all_rows_is_said_once():
    rows = pd.DataFrame({"data set": ["mnist"] * 2, "network": ["a", "b"], "loss": [1.0, 1.0]})
    table, words = findings.without_constants(rows)
    assert (list(table), words) == (["network", "loss"], "Data set mnist")


def test_without_its_adam_a_long_run_is_beside_nothing(begun):
    second = findings.long_runs(begun)[1:]
    assert findings.long_beside_adam(second).empty
    other = second[0]._replace(strategy="adam+default-fixed")
    assert findings.how_far([other])["paper's train loss"].isna().all()


@pytest.mark.parametrize("content", ["[]", '{"epochs": null, "seed": 0}', "{"])
def test_a_damaged_long_run_is_named(begun, content):
    folder = begun / "table" / "mnist" / "vit-mlp" / "seed-0" / "adam"
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match="^results: .*adam' is not allowed; use a whole run"):
        findings.long_runs(begun)
