"""The rules of other tools against their definitions."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twophase.errors import InputError
from twophase.switching.heuristics import (
    GradientThreshold,
    LossVariance,
    Plateau,
    RelativeImprovement,
)
from twophase.switching.rules import first_switch

LOSSES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


def fired(rule, losses):
    return first_switch(rule, [(loss, 1.0) for loss in losses])


@settings(max_examples=60)
@given(losses=LOSSES, patience=st.integers(0, 8))
def test_plateau_is_torchs_own(losses, patience):
    """`ReduceLROnPlateau` halves the rate in the epoch after which the rule fires."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
    reduced = None
    for epoch, loss in enumerate(losses, 1):
        scheduler.step(loss)
        if optimizer.param_groups[0]["lr"] < 1:
            reduced = epoch
            break
    assert fired(Plateau(patience=patience), losses) == reduced


@given(losses=LOSSES, window=st.integers(2, 6))
def test_the_variance_is_that_of_the_last_losses(losses, window):
    threshold = 1.0
    expected = next(
        (
            end
            for end in range(window, len(losses) + 1)
            if np.var(losses[end - window : end]) < threshold * (1 - 1e-9)
        ),
        None,
    )
    assert fired(LossVariance(threshold, window), losses) == expected


@given(losses=LOSSES, window=st.integers(1, 5))
def test_the_improvement_is_that_of_two_windows(losses, window):
    means = {
        end: (np.mean(losses[end - 2 * window : end - window]), np.mean(losses[end - window : end]))
        for end in range(2 * window, len(losses) + 1)
    }
    expected = next((e for e, (old, new) in means.items() if 1 - new / old < 0.1), None)
    assert fired(RelativeImprovement(0.1, window), losses) == expected


def test_the_threshold_is_of_the_norm():
    rule = GradientThreshold(0.1)
    assert first_switch(rule, [(1.0, 0.2), (1.0, 0.1), (1.0, 0.09)]) == 3


@pytest.mark.parametrize(
    ("rule", "field", "value"),
    [
        (Plateau, "patience", -1),
        (Plateau, "threshold", 1.0),
        (LossVariance, "threshold", 0),
        (LossVariance, "window", 1),
        (RelativeImprovement, "threshold", -1),
        (RelativeImprovement, "window", 0),
        (GradientThreshold, "threshold", 0),
    ],
)
def test_settings_out_of_range_name_themselves(rule, field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        rule(**{field: value})


@pytest.mark.parametrize("rule", [Plateau, LossVariance, RelativeImprovement, GradientThreshold])
def test_numbers_that_are_none_are_refused(rule):
    with pytest.raises(InputError, match="^loss: "):
        rule().update(float("nan"), 1.0)


@pytest.mark.slow
def test_they_can_be_named_wherever_the_package_is():
    """On a command line, and in the configuration of a run."""
    program = "import twophase.settings as s, twophase; print(s.from_text('Plateau(3)'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "Plateau(patience=3, threshold=0.0001)\n", done.stderr
