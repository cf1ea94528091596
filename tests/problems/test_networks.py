"""The networks: sizes, formulas against independent ones, seeds, precision, derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from twophase.errors import InputError
from twophase.problems.networks import (
    MODELS,
    AttentionLayer,
    EncoderLayer,
    SelfAttention,
    VisionTransformer,
    build,
    overdetermination,
    parameter_count,
    sinusoidal_positions,
)

# data set -> training examples, channels, classes
DATA = {
    "MNIST": (60000, 1, 10),
    "CIFAR-10": (50000, 3, 10),
    "CIFAR-100": (50000, 3, 100),
}
# the paper's Table 1: data set, model, parameters, Q as printed
TABLE = [
    ("MNIST", "vit-mlp", 154058, "3.9"),
    ("MNIST", "vit-nomlp", 54794, "11.0"),
    ("MNIST", "vit-nomlp-wkewq", 42506, "14.1"),
    ("MNIST", "vit-nomlp-wkewq-wvwo1", 17930, "33.5"),
    ("MNIST", "vgg5-max-relu", 121994, "4.9"),
    ("CIFAR-10", "vit-mlp", 162250, "3.1"),
    ("CIFAR-10", "vit-nomlp", 62986, "7.9"),
    ("CIFAR-10", "vit-nomlp-wkewq", 50698, "9.9"),
    ("CIFAR-10", "vit-nomlp-wkewq-wvwo1", 26122, "19.1"),
    ("CIFAR-10", "vgg5-max-relu", 122570, "4.1"),
    ("CIFAR-100", "vit-mlp", 168100, "29.7"),
    ("CIFAR-100", "vit-nomlp", 68836, "72.6"),
    ("CIFAR-100", "vit-nomlp-wkewq", 56548, "88.4"),
    ("CIFAR-100", "vit-nomlp-wkewq-wvwo1", 31972, "156.4"),
    ("CIFAR-100", "vgg5-max-relu", 128420, "38.9"),
]


@pytest.mark.parametrize(("data", "name", "parameters", "printed"), TABLE)
def test_parameter_count_and_overdetermination_are_the_papers(data, name, parameters, printed):
    examples, channels, classes = DATA[data]
    count = parameter_count(build(name, channels, classes, seed=0))
    assert count == parameters
    assert f"{overdetermination(examples, classes, count):.1f}" == printed


def test_table_covers_every_model_on_every_data_set():
    assert {(data, name) for data, name, _, _ in TABLE} == {(d, m) for d in DATA for m in MODELS}


def test_parameter_count_leaves_out_frozen_parameters():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert parameter_count(layer) == 6


@pytest.mark.parametrize("arguments", [(0, 10, 5), (10, 0, 5), (10, 10, 0), (10.0, 10, 5)])
def test_overdetermination_wants_positive_whole_numbers(arguments):
    with pytest.raises(InputError, match="whole number"):
        overdetermination(*arguments)


def images(count=4, channels=1, dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, 32, 32, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_probabilities_that_depend_on_the_image(name, dtype):
    model = build(name, channels=3, classes=7, seed=0).to(dtype)
    outputs = model(images(channels=3, dtype=dtype))
    assert outputs.shape == (4, 7) and outputs.dtype == dtype
    assert (outputs > 0).all()
    torch.testing.assert_close(outputs.sum(1), torch.ones(4, dtype=dtype))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name):
    model = build(name, channels=1, classes=10, seed=0)
    model(images())[:, 3].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_examples_do_not_influence_each_other(name):
    model = build(name, channels=1, classes=10, seed=0).double()
    batch = images(dtype=torch.float64)
    torch.testing.assert_close(model(batch)[2:3], model(batch[2:3]))


@pytest.mark.parametrize("name", MODELS)
def test_seed_decides_the_weights_and_global_random_numbers_stay(name):
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = build(name, 1, 10, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    same, other = build(name, 1, 10, seed=5), build(name, 1, 10, seed=6)
    pairs = zip(first.state_dict().values(), same.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vit-nomlpp", 1, 10, 0), r"model: 'vit-nomlpp' .* \(did you mean 'vit-nomlp'\?\)"),
        (("vit-mlp", 0, 10, 0), "channels: 0 "),
        (("vit-mlp", 1, 1, 0), "classes: 1 "),
        (("vit-mlp", 1, 10, -1), "seed: -1 "),
    ],
)
def test_build_names_the_field_that_is_wrong(arguments, message):
    with pytest.raises(InputError, match=message):
        build(*arguments)


def test_positions_are_a_buffer_of_sines_and_cosines():
    table = sinusoidal_positions(17, 64)
    assert table.shape == (17, 64)
    t, i = 13, 5
    angle = torch.tensor(t / 10000 ** (2 * i / 64))
    torch.testing.assert_close(table[t, 2 * i], angle.sin())
    torch.testing.assert_close(table[t, 2 * i + 1], angle.cos())
    model = build("vit-mlp", 1, 10, seed=0)
    assert torch.equal(dict(model.named_buffers())["positions"], table)


def heads(x):
    return [x[..., 16 * h : 16 * (h + 1)] for h in range(4)]


def attention_by_definition(queries, keys, values):
    pairs = zip(heads(queries), heads(keys), heads(values), strict=True)
    return torch.cat([(q @ k.mT / 16**0.5).softmax(-1) @ v for q, k, v in pairs], -1)


def tokens():
    return torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_self_attention_is_the_definition_and_torchs():
    x, layer = tokens(), SelfAttention().double()
    q, k, v = (x @ w.weight.T for w in (layer.query, layer.key, layer.value))
    expected = attention_by_definition(q, k, v) @ layer.output.weight.T
    torch.testing.assert_close(layer(x), expected)
    oracle = nn.MultiheadAttention(64, 4, bias=False, batch_first=True, dtype=torch.float64)
    oracle.in_proj_weight.data = torch.cat(
        (layer.query.weight, layer.key.weight, layer.value.weight)
    ).detach()
    oracle.out_proj.weight.data = layer.output.weight.detach()
    torch.testing.assert_close(layer(x), oracle(x, x, x, need_weights=False)[0])


def test_shared_key_attention_uses_one_matrix_for_keys_and_queries():
    x, layer = tokens(), SelfAttention(own_keys=False).double()
    q, v = x @ layer.query.weight.T, x @ layer.value.weight.T
    expected = attention_by_definition(q, q, v) @ layer.output.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_token_attention_takes_the_tokens_as_values():
    x, layer = tokens(), SelfAttention(own_keys=False, own_values=False).double()
    q = x @ layer.query.weight.T
    torch.testing.assert_close(layer(x), attention_by_definition(q, q, x))


def test_encoder_layer_is_a_pre_norm_transformer_layer():
    x, layer = tokens(), EncoderLayer(SelfAttention()).double()
    y = x + layer.attention(F.layer_norm(x, (64,)))
    first, second = layer.mlp[0], layer.mlp[2]
    hidden = F.layer_norm(y, (64,)) @ first.weight.T + first.bias
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(layer(x), y + gelu @ second.weight.T + second.bias)


def test_layer_without_mlp_normalises_its_sum():
    x, layer = tokens(), AttentionLayer(SelfAttention(own_keys=False, own_values=False)).double()
    y = x + layer.attention(F.layer_norm(x, (64,)))
    torch.testing.assert_close(layer(x), F.layer_norm(y, (64,)))


def test_patches_are_the_8_by_8_squares_in_reading_order():
    model = VisionTransformer(3, 10, nn.Identity)
    seen = []
    model.layers.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    picture = images(count=2, channels=3)
    model(picture)
    weight = model.embedding.weight.reshape(64, 3, 8, 8)
    squares = F.conv2d(picture, weight, model.embedding.bias, stride=8).flatten(2).mT
    torch.testing.assert_close(seen[0][:, 1:], squares + model.positions[1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[0][1, 0], model.class_token + model.positions[0])


def test_probabilities_are_the_softmax_of_the_class_tokens_head():
    model = VisionTransformer(1, 10, nn.Identity)
    first = model.class_token + model.positions[0]
    expected = (model.head.weight @ first + model.head.bias).softmax(0)
    torch.testing.assert_close(model(images()), expected.expand(4, -1))


def test_vgg5_is_conv_relu_maxpool_three_times_and_two_linear_layers():
    model, x = build("vgg5-max-relu", 3, 10, seed=0), images(channels=3)
    expected = x
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 64, 64]
    for layer in convolutions:
        expected = F.conv2d(expected, layer.weight, layer.bias, padding=1).relu()
        expected = expected.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    first, second = (m for m in model if isinstance(m, nn.Linear))
    hidden = (expected.flatten(1) @ first.weight.T + first.bias).relu()
    expected = (hidden @ second.weight.T + second.bias).softmax(1)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_hessian_vector_product_matches_difference_of_gradients(name):
    model = build(name, channels=1, classes=10, seed=0).double()
    batch = images(count=2, dtype=torch.float64)
    weights = {key: p.detach() for key, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    direction = {
        key: torch.randn(p.shape, generator=generator, dtype=p.dtype) for key, p in weights.items()
    }

    def gradient(step):
        shifted = {key: (w + step * direction[key]).requires_grad_() for key, w in weights.items()}
        loss = (functional_call(model, shifted, (batch,)) - 0.1).square().sum()
        return shifted, torch.autograd.grad(loss, shifted.values(), create_graph=True)

    with sdpa_kernel(SDPBackend.MATH):
        shifted, at_zero = gradient(0.0)
        slope = sum((g * direction[k]).sum() for k, g in zip(shifted, at_zero, strict=True))
        product = torch.autograd.grad(slope, shifted.values())
        h = 1e-6
        ahead, behind = gradient(h)[1], gradient(-h)[1]
    exact = torch.cat([p.flatten() for p in product])
    difference = torch.cat(
        [((a - b) / (2 * h)).flatten() for a, b in zip(ahead, behind, strict=True)]
    )
    assert (exact - difference).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize(("name", "parameters"), [("mlp-4", 310), ("mlp-8", 610), ("mlp-16", 1210)])
def test_the_small_networks_have_one_hidden_layer_on_64_pixels(name, parameters):
    network = build(name, 1, 10, seed=0)
    assert parameter_count(network) == parameters
    images = torch.rand(3, 1, 32, 32)
    small = images.reshape(3, 8, 4, 8, 4).mean((2, 4)).reshape(3, 64)
    hidden, last = (layer for layer in network if isinstance(layer, nn.Linear))
    expected = last(torch.tanh(hidden(small))).softmax(1)
    torch.testing.assert_close(network(images), expected)


RESIDUAL = ["resnet8", "resnet8-groupnorm"]


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_give_probabilities(name):
    model = build(name, 1, 10, seed=0).double()
    images = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    outputs = model(images)
    assert outputs.shape == (6, 10)
    torch.testing.assert_close(outputs.sum(dim=1), torch.ones(6).double())
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 1 + 6 + 2  # with the shortcuts of two blocks
    assert model[:6](images).shape == (6, 64, 8, 8)


def test_resnet18_is_torchvisions_for_small_images():
    """He et al.'s 11.2 million parameters, and no pooling before the blocks."""
    from torchvision.models import resnet18

    model, theirs = build("resnet18", 3, 10, seed=0), resnet18(num_classes=10)
    stem = 64 * 3 * (49 - 9)
    assert parameter_count(model) == parameter_count(theirs) - stem
    features = model[0].layer1(model[0].maxpool(model[0].conv1(torch.zeros(1, 3, 32, 32))))
    assert features.shape == (1, 64, 32, 32)


def test_group_norm_does_not_look_at_other_examples():
    images = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, same in (("resnet8-groupnorm", True), ("resnet8", False)):
        model = build(name, 1, 10, seed=0)
        alone, together = model(images[:2]), model(images)[:2]
        assert torch.allclose(alone, together, atol=1e-5) is same
