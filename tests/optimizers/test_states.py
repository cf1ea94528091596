"""Optimizer states that are damaged, forged or of something else: refused whole, in one line."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss

import twophase
from twophase.errors import InputError, TwoPhaseError

OPTIMIZERS = {
    "second": twophase.SecondPhase,
    "l-bfgs": twophase.SelfScaledBFGS,
    "two": partial(twophase.TwoPhase, switch=2, fallback=None),
    "two, batches": partial(twophase.TwoPhase, batches=2, switch=2),
    "adam": torch.optim.Adam,
}
OWN = [name for name in OPTIMIZERS if name != "adam"]


def trained(name, steps, dtype=torch.float64, width=2):
    """An optimizer after some steps on a small network, and what makes more of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).to(dtype)
    inputs = torch.linspace(-1, 1, 6, dtype=dtype)[:, None]
    optimizer = OPTIMIZERS[name](model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), inputs**2)
        loss.backward()
        return loss

    def step(count):
        for number in range(count):
            optimizer.step(closure)
            if getattr(optimizer, "batches", 1) == 2 and number % 2:
                optimizer.end_epoch(closure)
        return [parameter.detach().clone() for parameter in model.parameters()]

    step(steps)
    return optimizer, step


def state_of(optimizer):
    return copy.deepcopy(optimizer.state_dict())


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "other", [("adam", torch.float64, 2), (None, torch.float32, 2), (None, torch.float64, 3)]
)
def test_a_state_of_something_else_is_refused_and_nothing_changes(name, other):
    """Of Adam, of another dtype, of another network."""
    kind, dtype, width = other
    foreign, _ = trained(kind or name, 6, dtype, width)
    optimizer, step = trained(name, 6)
    _, unharmed = trained(name, 6)
    with pytest.raises(InputError, match="^state: "):
        optimizer.load_state_dict(state_of(foreign))
    assert same(step(4), unharmed(4))


def places(value, path=()):
    """The paths to all parts of a state."""
    yield path
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list | tuple) else parts
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(value, path, change):
    """A copy of a state with another part at a path."""
    if not path:
        return change(value)
    key, *rest = path
    if isinstance(value, dict):
        return value | {key: changed(value[key], rest, change)}
    parts = list(value)
    parts[key] = changed(parts[key], rest, change)
    return type(value)(parts)


GARBAGE = [
    None, 0, -1, 7, 1.5, float("nan"), float("inf"), "x", "", [], {}, (), True, 10**30,
    torch.ones(3), torch.ones(()), torch.ones(2, 2), torch.zeros(0), [1], {"x": 1},
]  # fmt: skip


@pytest.mark.parametrize("steps", [0, 1])
def test_numbers_by_which_a_later_step_would_divide_by_zero_are_refused(steps):
    """Adam's 1 - β^t is zero at every other step t for β = -1."""
    optimizer, _ = trained("two", steps)
    other, _ = trained("two", 2)
    path = ("twophase", "loop", "phases", "adam", "optimizer", "param_groups", 0, "betas", 0)
    with pytest.raises(InputError):
        other.load_state_dict(changed(state_of(optimizer), path, lambda part: -1))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_change_of_a_state_is_refused_or_can_be_gone_on_from(data):
    """A refused one leaves the optimizer as it was."""
    name = data.draw(st.sampled_from(OWN))
    optimizer, _ = trained(name, data.draw(st.integers(0, 6)))
    other, step = trained(name, 2)
    before = step(0)
    state = state_of(optimizer)
    path = data.draw(st.sampled_from(sorted(places(state), key=str)))
    value = data.draw(st.sampled_from(GARBAGE))
    changes = {
        "garbage": lambda part: value,
        "half": lambda part: (
            part[: len(part) // 2]
            if hasattr(part, "__getitem__")
            and not isinstance(part, dict)
            and getattr(part, "ndim", 1)
            else value
        ),
        "float32": lambda part: part.float() if isinstance(part, torch.Tensor) else value,
        "without": lambda part: dict(list(part.items())[1:]) if isinstance(part, dict) else value,
    }
    state = changed(state, path, changes[data.draw(st.sampled_from(sorted(changes)))])
    try:
        other.load_state_dict(state)
    except InputError as error:
        assert "\n" not in str(error)
        assert same(before, step(0))
    try:
        step(5)
    except TwoPhaseError as error:
        assert "\n" not in str(error)
