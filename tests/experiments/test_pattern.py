"""The pattern of the paper on a problem: by hand on made-up tables, and by a small real run."""

import numpy as np
import pandas as pd
import pytest
import torch

from twophase import AdamSettings
from twophase.__main__ import main
from twophase.errors import InputError
from twophase.experiments import branches, pattern, runs, traces
from twophase.experiments.files import project_folder, read_json
from twophase.experiments.pattern import ALONE, CG, RACE, Pattern
from twophase.objectives import FullBatch
from twophase.problems.problem import ImageProblem, PhysicsProblem

PROBLEM = ImageProblem("digits", "mlp-4", 48, 20)


def made_up(losses, validation=None, smallest=(-1.0, -1e-4)):
    """Two seeds; `losses` has for each strategy those of both."""
    validation = validation or losses
    rows = [
        {"seed": seed, "strategy": name, "swap_epoch": None if name == ALONE else 3 + seed}
        | {"epoch": 9, "loss": loss, "validation_loss": validation[name][seed]}
        | {"spent": 60, "reading": 0, "trials": 0}
        for name, of in losses.items()
        for seed, loss in enumerate(of)
    ]
    norms = [1, 2, 4, 8, 4, 2, 1, 0.5]
    seen = [
        {"dataset": "p", "model": f"seed {seed}", "seed": seed, "epoch": epoch}
        | {"loss": 1 / epoch, "grad_norm": norm}
        for seed, trace in enumerate((norms, norms + norms))
        for epoch, norm in enumerate(np.repeat(trace, 5), 1)  # smoothed over 5
    ]
    audits = [
        {"seed": seed, "at": "end", "epoch": 9, "loss": 0.1, "smallest": low, "largest": 1.0}
        | {"negative_share": 0.1, "negative_share_error": 0.186, "convexity": "?"}
        for seed, low in enumerate(smallest)
    ]
    return Pattern(*map(pd.DataFrame, (rows, seen, audits)))


LOSSES = {
    ALONE: (1.0, 2.0),
    RACE: (0.5, 3.0),
    **dict.fromkeys(pattern.RULES, (1.0, 2.0)),
    CG: (4.0, 4.0),
}


def test_problems_are_laid_side_by_side():
    found = made_up(LOSSES | {pattern.DEFAULT_AT_SHARE: (0.1, 0.1)})
    ends = found.ends
    never = ends.assign(swap_epoch=ends.swap_epoch.mask(ends.strategy == CG))
    for of, cg in ((found, "3.00"), (found._replace(ends=never), "never")):
        training, validation = pattern.overview({"made up": of}).to_dict("records")
        assert training == {
            **{"problem": "made up", "single hill": "1 of 2", "loss": "training"},
            **{"clearly non-convex in the end": "1 of 2"},
            **{RACE: "1.00", pattern.DEFAULT_AT_SHARE: "0.075", CG: cg},
        }
        assert validation == training | {"loss": "validation"}


@pytest.mark.parametrize(("words", "name"), pattern.KEPT.items())
def test_kept_patterns_are_whole(words, name):
    found = pattern.committed(name)
    command = read_json(project_folder() / f"reports/reference/{name}/provenance.json")["command"]
    assert f" {command.split('--train-examples ')[1].split()[0]} " in words
    assert "--learning-rate" not in command, "Adam's is the default"
    last = found.ends[found.ends.strategy == ALONE].set_index("seed")
    assert (pattern.adams_lowest(found).validation_loss <= last.validation_loss).all()
    assert found.ends.groupby("strategy").seed.nunique().eq(3).all()
    assert found.audits[found.audits["at"] == "end"].seed.nunique() == 3
    assert len(pattern.overview({name: found})) == 2
    assert "**Is the second phase ahead?** Losses in the end" in pattern.answers(found)


def test_losses_are_compared_with_adams_of_the_same_seed():
    found = pattern.beside_adam(made_up(LOSSES))
    assert ALONE not in set(found.strategy)
    assert found[found.strategy == RACE].loss.tolist() == [0.5, 1.5]
    assert found[found.strategy == CG].validation_loss.tolist() == [4, 2]
    assert found.switched.all()
    said = pattern.who_is_ahead(made_up(LOSSES, LOSSES | {RACE: (0.1, 0.2)}))
    assert "In training loss **0 of 5** strategies that switched end below Adam alone" in said
    assert "*race* 1.00 (1 of 2)" in said and "*three tenths, then CG* 3.00 (0 of 2)" in said
    assert (
        "In validation loss **1 of 5** strategies" in said
        and "on every seed. All that switched: *race* 0.10 (2 of 2)" in said
    )
    assert "ever switched" not in said and "last weights" not in said


def without_swaps(found, strategy, seeds=(0, 1)):
    """The same, but that the strategy never switched on some seeds."""
    never = found.ends.strategy.eq(strategy) & found.ends.seed.isin(seeds)
    return found._replace(ends=found.ends.assign(swap_epoch=found.ends.swap_epoch.mask(never)))


def test_who_never_switched_is_neither_ahead_nor_behind():
    found = without_swaps(made_up(LOSSES), RACE)
    said = pattern.who_is_ahead(found)
    assert "In training loss **0 of 4** strategies" in said and "*race* " not in said
    assert said.endswith("Never switched, and so are Adam with fewer epochs: *race*.")
    assert pattern.beside_adam(found).groupby("strategy").switched.all().sum() == 4
    # on one seed: the ratio is that of the other
    found = without_swaps(made_up(LOSSES), RACE, [1])
    assert "In training loss **1 of 5** strategies" in pattern.who_is_ahead(found)
    assert "*race* 0.50 (1 of 1)" in pattern.who_is_ahead(found)
    assert pattern.medians(found).loc[RACE, "training loss / Adam's"] == "0.50"
    assert pattern.medians(found).loc[RACE, "switched, seeds"] == "1 of 2"


def test_weights_with_the_lowest_validation_loss_are_not_beside_adams_last():
    by_validation = {pattern.BY_VALIDATION: (0.2, 0.4)}
    found = made_up(LOSSES | by_validation)
    for seeds in ([], [0, 1]):
        said = pattern.who_is_ahead(without_swaps(found, pattern.BY_VALIDATION, seeds))
        assert "In validation loss **0 of 5** strategies" in said
        assert "keeps those at which its own is lowest, and so comes to 0.20 of Adam's" in said
        assert said.count("*race by validation* 0.20 (2 of 2)") == (0 if seeds else 1)


def test_an_overfitted_adam_is_no_measure_of_a_validation_loss():
    """Adam after epoch 12 of seed 0 is known by a rule that never switched; a lost trial is not."""
    losses = {ALONE: (0.025, 0.0125), RACE: (1.0, 1.0), "plateau": (1 / 12, 9.0), CG: (1.0, 1.0)}
    validation = {ALONE: (5.0, 5.0), RACE: (2.0, 2.0), "plateau": (1.5, 0.1), CG: (1.4, 6.0)}
    found = without_swaps(made_up(losses, validation), "plateau")
    lowest = pattern.adams_lowest(found)
    assert lowest.epoch.to_dict() == {0: 12, 1: 80}
    assert lowest.validation_loss.to_dict() == {0: 1.5, 1: 5.0}
    said = pattern.who_is_ahead(found)
    assert "In validation loss **1 of 2** strategies" in said, "beside Adam's last weights"
    assert (
        "weights of Adam are overfitted** on **1 of 2** seeds: after epoch 12 it had 0.30" in said
    )
    assert "On every seed **0 of 2** strategies that switched end below this lowest loss" in said
    for last, words in ((1.6, "Adam are slightly overfitted** on"), (1.5, "")):
        validation[ALONE] = last, 1.0
        said = pattern.who_is_ahead(without_swaps(made_up(losses, validation), "plateau"))
        assert words in said and ("overfitted" in said) == bool(words)


def test_validation_of_one_setting_has_a_row_for_each_method():
    rows = [
        {
            "problem": "p",
            "model": "m",
            "train_examples": 9.0,
            "batch_size": 3.0,
            "seed": 0,
            "learning_rate": 1e-3,
            "dtype": "float32",
        }
        | {"swap_epoch": 1, "method": name, "passes": 9, "passes_spent": spent, "loss": 1 / spent}
        | {"seconds_spent": 1.0, "validation_loss": loss, "accuracy": None}
        for name, losses in {"adam": (3, 2.0001), "golden": (2.5, 2.2), "race": (1, 2)}.items()
        for spent, loss in zip((3, 6), losses, strict=True)
    ]
    found = pattern.in_validation(pd.DataFrame(rows), 6).set_index("method")
    assert found["validation loss"].tolist() == [2.0001, 2.2, 2]
    assert found["lowest on the way"].tolist() == [2.0001, 2.2, 1]
    first, second, third = found["passes / Adam's"]
    assert (first, second) == (1, "missed") and third < 1


def test_accuracies_are_beside_those_of_guessing():
    table = pd.DataFrame({"accuracy": [0.125, 0.0625]})
    said = pattern.beside_guessing(table, 10)
    assert said.startswith("Validation accuracies are 0.06 to 0.12, and guessing among 10 classes ")
    assert said.endswith(
        "has 0.10: nothing has learned to generalise here, and who is ahead is chance."
    )
    assert pattern.beside_guessing(table, 16).endswith("has 0.06: who is ahead may be chance.")


def test_the_learning_rate_is_said_to_be_untuned():
    for rate, words in (
        (0.02, "the kept runs, 0.02 in these."),
        (1e-3, "these and the kept runs."),
    ):
        said = pattern.rate_in_words(AdamSettings(rate))
        assert said.startswith(f"Adam's learning rate is 0.001, torch's default, in {words} It was")


def test_medians_are_over_the_seeds():
    found = pattern.medians(made_up(LOSSES))
    assert found.loc[RACE].tolist() == [1.75, 1.75, "1.00", "1.00", "2 of 2"]
    assert found.loc[ALONE].tolist() == [1.5, 1.5, "–", "–", "–"]
    assert list(found.index) == list(LOSSES)
    never = pattern.medians(without_swaps(made_up(LOSSES), CG)).loc[CG]
    assert never.tolist() == [4, 4, "–", "–", "never"]


def test_ends_and_peaks_say_who_never_switched():
    found = without_swaps(made_up(LOSSES), CG)
    shown = pattern.ends(found, 1).set_index("strategy")
    assert shown["swap after epoch"][[ALONE, RACE, CG]].tolist() == ["–", 4, "never"]
    assert list(shown) == ["swap after epoch", *pattern.LOSSES.values(), *pattern.COSTS.values()]
    peaks = pattern.peaks_to_read(without_swaps(found, RACE, [0]))
    assert peaks["swap: race"].tolist() == ["never", 4]
    assert peaks["epoch of the largest smoothed norm"].tolist() == [18, 18]
    assert peaks["norm in the end / largest"].tolist() == [0.5 / 8] * 2


def test_switches_are_a_row_for_each_seed_and_rule():
    found = pattern.switches(without_swaps(made_up(LOSSES), "smoothed", [1]))
    assert set(found.rule) == {*pattern.RULES, RACE} and len(found) == 8
    fired = found.set_index(["model", "rule"]).fired
    assert fired["seed 0", RACE] == 3 and fired["seed 1", "literal"] == 4
    assert pd.isna(fired["seed 1", "smoothed"])


def test_a_single_hill_is_told_from_two():
    found = made_up(LOSSES)
    assert pattern.peaks(found).hills.tolist() == [1, 2]
    said = pattern.single_peak(found)
    assert said.startswith("**On 1 of 2 seeds.** ")
    assert "a single clear hill on **1 of 2** seeds (2 hills on 1)." in said
    assert "at 0.062 of its largest smoothed value. Switches" in said
    assert "*race* after epoch 3, 4." in said


def test_a_norm_that_hardly_comes_down_has_no_peak_behind_it():
    found = made_up(LOSSES)
    rising = found.traces[found.traces.seed == 0]
    rising = rising.assign(grad_norm=np.r_[np.ones(35), 5, 50, 30, 5, 1])
    assert traces.hills(rising.grad_norm) == [39]
    said = pattern.single_peak(found._replace(traces=rising))
    assert said.startswith("**No.** ") and "a single clear hill on **1 of 1** seeds. In" in said
    assert "which on **1 of 1** seeds is in the last tenth of the epochs: it hardly falls" in said


def test_rules_that_never_switch_say_so():
    found = without_swaps(without_swaps(made_up(LOSSES), "smoothed"), "literal", [1])
    said = pattern.single_peak(found)
    assert "*smoothed* never;" in said and "*literal* after epoch 3, never on 1;" in said


def test_convexity_is_counted_by_place():
    said = pattern.how_convex(made_up(LOSSES))
    assert said.startswith("**No.** The loss is clearly non-convex, ")
    assert "where Adam ends on **1 of 2** seeds (median of λmin/λmax: −0.5)." in said
    found = made_up(LOSSES, smallest=(-1e-3, -1e-4))
    assert pattern.how_convex(found).startswith("**At all places no seed is clearly non-convex.** ")
    open_ = found.audits.assign(convexity=["not clearly negative", "undecided"], smallest=-5e-6)
    said = pattern.how_convex(found._replace(audits=open_))
    assert "on **0 of 2** seeds (undecided: seed 1; median of λmin/λmax: −5.0e−6)." in said
    more = pd.concat([found.audits, found.audits.assign(at=RACE, smallest=-1.0)])
    both = pattern.how_convex(found._replace(audits=more.reset_index(drop=True)))
    assert both.startswith("**Only where Adam ends no seed is clearly non-convex.** ")
    assert both.endswith(
        "λmin is negative in **2 of 2** audits there, and the negative eigenvalues are up to 0.1 "
        "± 0.19 of the sum of all |λ|."
    )
    assert "where *race* switches on **2 of 2** seeds" in both
    shown = pattern.curvature(found._replace(audits=more.assign(convexity="clearly negative")))
    assert set(shown["at"]) == {"end of Adam", RACE}
    assert set(shown["negative share"]) == {"0.1 ± 0.19"}
    assert set(shown.convexity) == {"clearly non-convex"}


@pytest.mark.parametrize(
    "norms, epochs",
    [
        ([1, 2, 3, 4, 5], []),
        ([5, 4, 3, 2, 1], []),
        ([1, 1.3, 1, 1.3, 1], []),
        ([1, 3, 1], [2]),
        ([1, 3, 1.5, 6, 1], [2, 4]),
        ([1, 3, 2.5, 6, 1], [4]),
    ],
)
def test_a_hill_rises_and_falls_by_half(norms, epochs):
    assert traces.hills(norms, window=1) == epochs
    assert traces.hills(np.array(norms) * 1e-6, window=1) == epochs, "in any unit"


def test_a_factor_of_a_hill_is_above_1():
    with pytest.raises(InputError, match="^factor: 1 "):
        traces.hills([1, 2, 1], factor=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = branches.Place(tmp_path_factory.mktemp("pattern"))
    config = pattern.config(PROBLEM, 45, AdamSettings(3e-3, 16))
    return config, place, pattern.run(config, 2, place)


@pytest.mark.slow
def test_a_run_asks_all_questions(run):
    config, place, found = run
    names = list(pattern.strategies(config))
    assert found.ends.groupby("seed").strategy.apply(list).tolist() == [names, names]
    assert (found.ends.spent + found.ends.reading <= 45).all()
    assert found.traces.groupby("seed").epoch.max().tolist() == [15, 15]
    history, _ = runs.read(place.folder(config.trunk()))
    assert found.traces[found.traces.seed == 0].loss.tolist() == history.train_loss.tolist()
    assert set(found.audits["at"]) >= {"end", "literal"}


@pytest.mark.slow
def test_an_audit_is_of_the_weights_after_its_epoch(run):
    """Loss and smallest eigenvalue are those of the dense Hessian of Adam's weights."""
    config, place, found = run
    row = found.audits[found.audits["at"].eq("end") & found.audits.seed.eq(0)].iloc[0]
    task = PROBLEM.load(0, "float32", torch.device("cpu"), None)
    weights = torch.load(place.folder(config.trunk()) / "weights.pt", weights_only=True)
    task.model.load_state_dict(weights)
    model, train = task.model.double(), task.data.train
    loss = FullBatch(model, task.loss, train.inputs.double(), train.targets)
    x = loss.vector.read()
    dense = torch.stack([loss.hessian_vector(x, e) for e in torch.eye(len(x), dtype=x.dtype)])
    values = torch.linalg.eigvalsh(dense)
    assert row.loss == pytest.approx(loss.value(x), rel=1e-5)
    assert row.smallest == pytest.approx(values[0].item(), abs=2e-3 * values[-1].item())
    assert row.largest == pytest.approx(values[-1].item(), rel=2e-3)


@pytest.mark.slow
def test_a_second_call_reads_what_is_there(run, monkeypatch):
    config, place, found = run
    monkeypatch.setattr(pattern, "Hessian", None)
    again = pattern.run(config, 2, place)
    for name, table in found._asdict().items():
        other = getattr(again, name)
        pd.testing.assert_frame_equal(other, table, check_dtype=False)


@pytest.mark.slow
def test_the_command_leaves_its_tables(tmp_path, capsys):
    options = "--problem digits --model mlp-4 --train-examples 24 --validation-examples 12"
    options += f" --passes 36 --seeds 1 --batch-size 12 --out {tmp_path / 'found'}"
    assert main(["pattern", *options.split()]) == 0
    assert "Switches: *literal*" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "found").iterdir()}
    assert written >= {"ends.csv", "traces.csv", "audits.csv", "provenance.json"}


def test_too_few_passes_are_refused(tmp_path):
    with pytest.raises(InputError, match="^passes: 20 "):
        pattern.config(PROBLEM, 20)
    with pytest.raises(InputError, match="^seeds: 0 "):
        pattern.run(pattern.config(PROBLEM, 60), 0, branches.Place(tmp_path))


def test_a_problem_without_validation_is_refused_before_anything_is_made():
    for problem in (PhysicsProblem("poisson"), ImageProblem(validation_examples=0)):
        with pytest.raises(InputError, match="^problem: .* use one with validation examples"):
            pattern.config(problem, 60)
