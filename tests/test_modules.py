"""Modules that make a loss differ from one evaluation to the next are found and named."""

import pytest
import torch
from torch import nn

from twophase.errors import InputError
from twophase.modules import check_modules, evaluating, reject_unrepeatable_modules


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Dropout2d(0.1)])
def test_modules_that_do_not_repeat_are_named(module):
    with pytest.raises(InputError, match=f"model: '{type(module).__name__} in training mode'"):
        check_modules(nn.Sequential(nn.Linear(2, 2), nn.Sequential(module)))
    check_modules(nn.Sequential(module).eval())


def test_modules_that_repeat_pass():
    check_modules(nn.Sequential(nn.Dropout(0.0), nn.LayerNorm(2), nn.GroupNorm(1, 2)))


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.BatchNorm1d(3)])
def test_modules_that_run_are_found_where_there_is_no_model(module):
    """A frozen or unused one does not matter, and nothing is watched afterwards."""
    with pytest.raises(InputError, match=f"^model: '{type(module).__name__} in training mode'"):
        with reject_unrepeatable_modules():
            nn.Sequential(nn.Linear(3, 3), module)(torch.ones(2, 3))
    module(torch.ones(2, 3))
    with reject_unrepeatable_modules():
        module.eval()(torch.ones(2, 3))


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    model[1][0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes
