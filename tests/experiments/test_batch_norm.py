"""A loss by the statistics that BatchNorm takes, against their definitions."""

import pandas as pd
import pytest
import torch
from torch import nn

from twophase import AdamSettings
from twophase.errors import InputError
from twophase.experiments import batch_norm, branches, pattern
from twophase.objectives import FullBatch
from twophase.problems.problem import ImageProblem


@pytest.fixture
def loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs = 2 + 3 * torch.randn(50, 3, dtype=torch.float64)
    return FullBatch(model, nn.functional.mse_loss, inputs, inputs.prod(dim=1, keepdim=True))


def by_hand(loss, mean, variance):
    first, normal, _, last = loss.model
    hidden = (first(loss.inputs) - mean) / (variance + normal.eps).sqrt()
    outputs = last(torch.tanh(hidden * normal.weight + normal.bias))
    return nn.functional.mse_loss(outputs, loss.targets).item()


def test_the_three_losses_are_those_of_their_statistics(loss):
    first, normal, *_ = loss.model
    normal.running_mean += 0.5
    before = {name: value.clone() for name, value in loss.model.state_dict().items()}
    found = batch_norm.losses(loss)
    seen = first(loss.inputs)
    mean, variance = seen.mean(dim=0), seen.var(dim=0, unbiased=False)
    gathered = by_hand(loss, normal.running_mean, normal.running_var)
    assert found[batch_norm.AS_GATHERED] == pytest.approx(gathered)
    assert found[batch_norm.OF_THE_BATCH] == pytest.approx(by_hand(loss, mean, variance))
    # torch gathers the unbiased variance
    anew = by_hand(loss, mean, seen.var(dim=0))
    assert found[batch_norm.ANEW] == pytest.approx(anew)
    after = loss.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert loss.model.training


def test_without_batch_norm_there_is_nothing_to_compare():
    loss = FullBatch(nn.Linear(1, 1), nn.functional.mse_loss, torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(InputError, match="^model: 'Linear' is not allowed"):
        batch_norm.losses(loss)


@pytest.mark.parametrize(("anew", "verdict"), [(0.5, "stays"), (2.0, "is lost")])
def test_a_gain_is_lost_where_the_loss_with_new_statistics_rises(anew, verdict):
    ways = batch_norm.AS_GATHERED, batch_norm.OF_THE_BATCH, batch_norm.ANEW
    rows = [dict.fromkeys(ways, 1.0), dict(zip(ways, (0.1, 0.9, anew), strict=True))]
    table = pd.DataFrame(rows, index=["before", "after"]).rename_axis("statistics").reset_index()
    said = batch_norm.in_words(table)
    assert "that Adam gathered it falls from 1 to 0.1; with those of the batch it falls" in said
    assert f"What it has gained {verdict} when the statistics are gathered anew." in said


@pytest.mark.slow
def test_a_frozen_second_phase_lowers_the_loss_in_evaluation(tmp_path):
    problem = ImageProblem("digits", "resnet8", 8, 4)
    config = pattern.config(problem, 45, AdamSettings(batch_size=4), freeze=True)
    chosen = pattern.strategies(config)["three tenths"]
    found = batch_norm.before_and_after(chosen, branches.Place(tmp_path))
    before, after = found[batch_norm.AS_GATHERED]
    assert after < before
    assert list(found.columns[1:]) == [
        batch_norm.AS_GATHERED,
        batch_norm.OF_THE_BATCH,
        batch_norm.ANEW,
    ]
