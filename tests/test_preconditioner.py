"""The preconditioner that Adam leaves: what Adam itself scales its steps with."""

import pytest
import torch
from torch import nn

from twophase.errors import InputError
from twophase.preconditioner import AdamMoments, Identity, from_moments


def trained(steps=3):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    adam = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        adam.zero_grad()
        model(torch.ones(4, 3).double()).square().sum().backward()
        adam.step()
    return model, adam


def test_the_preconditioner_is_what_adam_scales_its_steps_with():
    """Without momentum, Adam's step is −rate · M⁻¹ g."""
    model = nn.Linear(3, 2).double()
    adam = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.0, 0.9))
    for _ in range(4):
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        adam.zero_grad()
        model(torch.ones(4, 3).double()).square().sum().backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        adam.step()
        step = nn.utils.parameters_to_vector(model.parameters()).detach() - before
        inverse = from_moments(adam, model.parameters(), damping=0)
        torch.testing.assert_close(step, -0.01 * inverse * gradient)


def test_damping_bounds_the_scales_and_serves_unused_parameters():
    model, adam = trained()
    spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    adam.add_param_group({"params": [spare]})
    parameters = [*model.parameters(), spare]
    plain, damped = (1 / from_moments(adam, parameters, damping=d) for d in (0, 0.5))
    torch.testing.assert_close(damped, plain + 0.5 * (plain - 1e-8).mean())
    assert (damped[-2:] >= 0.5 * (plain - 1e-8).mean()).all()


def test_a_wrong_preconditioner_is_explained():
    model, adam = trained()
    other = nn.Linear(3, 2)
    sgd = torch.optim.SGD(model.parameters())
    for optimizer, parameters in ((adam, other.parameters()), (sgd, model.parameters())):
        with pytest.raises(InputError, match="^preconditioner: .* an Adam that has trained"):
            from_moments(optimizer, parameters)
    with pytest.raises(InputError, match="^preconditioner: 'an Adam without a step'"):
        from_moments(torch.optim.Adam(model.parameters()), model.parameters())
    with pytest.raises(InputError, match="^damping: -1 is not allowed"):
        from_moments(adam, model.parameters(), damping=-1)


def test_the_identity_is_no_preconditioner():
    model, adam = trained()
    assert Identity().inverse(adam, model.parameters(), batches=5) is None


@pytest.mark.parametrize("min_batches", [1, 2, 4])
def test_moments_count_from_so_many_batches_on(min_batches):
    model, adam = trained()
    rule = AdamMoments(damping=0.3, min_batches=min_batches)
    for batches in (1, 2, 3, 4, 5):
        inverse = rule.inverse(adam, model.parameters(), batches)
        assert (inverse is None) == (batches < min_batches)
    assert torch.equal(inverse, from_moments(adam, model.parameters(), 0.3))


def test_parameters_without_a_gradient_are_left_out():
    model, adam = trained()
    whole = from_moments(adam, model.parameters(), damping=0)
    model.weight.requires_grad_(False)
    assert torch.equal(from_moments(adam, model.parameters(), damping=0), whole[6:])


@pytest.mark.parametrize(("field", "value"), [("damping", -1), ("min_batches", 0)])
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=f"^{field}: {value!r} is not allowed"):
        AdamMoments(**{field: value})
