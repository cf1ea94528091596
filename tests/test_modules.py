"""Modules that make a loss differ from one evaluation to the next are found and named."""

import threading
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import twophase
from twophase.errors import InputError
from twophase.modules import RejectBatchStatistics, check_modules, evaluating


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Dropout2d(0.1)])
def test_modules_that_do_not_repeat_are_named(module):
    with pytest.raises(InputError, match=f"model: '{type(module).__name__} in training mode'"):
        check_modules(nn.Sequential(nn.Linear(2, 2), nn.Sequential(module)))
    check_modules(nn.Sequential(module).eval())


def test_modules_that_repeat_pass():
    check_modules(nn.Sequential(nn.Dropout(0.0), nn.LayerNorm(2), nn.GroupNorm(1, 2)))


def test_batch_statistics_are_found_where_there_is_no_model():
    """By what is computed, in this thread alone; frozen or absent ones do not matter."""
    inputs = torch.randn(4, 3)
    layers = nn.BatchNorm1d(3), nn.InstanceNorm1d(4), nn.BatchNorm1d(3, track_running_stats=False)
    model = nn.Sequential(nn.Linear(3, 3), *layers)
    with pytest.raises(InputError, match="^model: 'BatchNorm in training mode'"):
        with RejectBatchStatistics():
            model(inputs)
    model(inputs)
    layers[0].eval()
    with RejectBatchStatistics():
        model(inputs).sum().backward()


def test_a_second_phase_leaves_other_models_alone():
    """No hook on all modules: an unrelated model with dropout trains in another thread."""
    weight, ended, errors = nn.Parameter(torch.ones(3).double()), threading.Event(), []
    other = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))

    def train():
        while not ended.is_set():
            try:
                other(torch.ones(4, 3))
            except Exception as error:
                errors.append(error)

    def closure():
        time.sleep(1e-3)  # so that the other thread gets its turn
        return (weight**4).sum()

    thread = threading.Thread(target=train)
    thread.start()
    optimizer = twophase.SecondPhase([weight], max_iter=20)
    optimizer.step(closure)
    ended.set()
    thread.join()
    assert optimizer.result.passes > 20 and not errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer_of", [twophase.SecondPhase, partial(twophase.TwoPhase, switch=3, fallback=None)]
)
def test_compiled_models_are_compiled_once(optimizer_of):
    """Once with a graph and once without, whatever the line search asks for."""
    torch._dynamo.reset()
    compiled = CompileCounter()
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    inputs = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(8, 2)
    fast = torch.compile(model, backend=compiled)
    optimizer = optimizer_of(model.parameters())
    for _ in range(40):
        optimizer.step(lambda: (fast(inputs) - inputs.prod(1, keepdim=True)).square().mean())
    assert compiled.frame_count <= 2


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    model[1][0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes
