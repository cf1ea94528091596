"""The networks of the paper: four small vision transformers and one VGG-style convolution net.

Sizes are fixed by the overdetermination Q = K M / P that the paper prints for every network and
data set: with the sizes below all 15 values come out to every printed digit. `_BUILDERS` is the
registry: a further model is one function (channels, classes) -> nn.Module and one entry.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twophase.errors import check_choice, check_integer

IMAGE_SIZE = 32
_PATCH, _WIDTH, _LAYERS, _HEADS = 8, 64, 3, 4


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention [B, T, width], the width split over heads."""
    split = (t.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for t in (queries, keys, values))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases; the paper's variants do without some matrices.

        softmax(X W_q (X W_k)^T / sqrt(d)) X W_v per head of size d, then W_o

    Maps [B, T, 64] to [B, T, 64] by up to four 64 x 64 matrices. Without `own_keys` one matrix
    makes both keys and queries, W_k = W_q, the paper's "wkewq"; without `own_values` the tokens
    themselves are the values, and there is neither W_v nor W_o, the paper's "wvwo1". Source:
    Vaswani et al., 2017.
    """

    def __init__(self, own_keys: bool = True, own_values: bool = True):
        super().__init__()
        square_map = partial(nn.Linear, _WIDTH, _WIDTH, bias=False)
        self.query = square_map()
        self.key = square_map() if own_keys else None
        self.value = square_map() if own_values else nn.Identity()
        self.output = square_map() if own_values else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        queries = self.query(x)
        keys = queries if self.key is None else self.key(x)
        return self.output(_attend(queries, keys, self.value(x)))


class EncoderLayer(nn.Module):
    """A transformer layer of attention followed by a multilayer perceptron (MLP), pre-norm.

        y = x + attention(norm1(x));  layer(x) = y + mlp(norm2(y)),  mlp: 64 -> 256 -> gelu -> 64

    Maps [B, T, 64] to [B, T, 64]. Source: Dosovitskiy et al., 2021.
    """

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention = attention
        self.mlp = nn.Sequential(
            nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class AttentionLayer(nn.Module):
    """A transformer layer without MLP.

        layer(x) = norm2(x + attention(norm1(x)))

    The paper prints no formula, but the parameter counts behind its Table 1 demand two LayerNorms
    per layer with and without MLP. The second one has nothing left to feed, so here it
    normalises what the layer hands on. Maps [B, T, 64] to [B, T, 64].
    """

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(x + self.attention(self.norm1(x)))


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """The fixed positional encoding of Vaswani et al., 2017, a tensor [length, width].

        P[t, 2i] = sin(t / 10000^(2i / width)),  P[t, 2i + 1] = cos(t / 10000^(2i / width))

    `width` is even; the numbers are computed in float64 and returned in the default dtype.
    """
    time = torch.arange(length, dtype=torch.float64)[:, None]
    angles = time * torch.exp(torch.arange(0, width, 2).double() * (-math.log(10000) / width))
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).to(torch.get_default_dtype())


class VisionTransformer(nn.Module):
    """A vision transformer that returns class probabilities.

    The 16 patches of 8 x 8 pixels and a learned class token, 17 tokens of width 64, pass three
    layers made by `layer`; softmax of a linear map of the class token gives the probabilities. The
    positional encoding is sinusoidal and not trained. Maps [B, channels, 32, 32] to [B, classes].
    Source: Dosovitskiy et al., 2021, with the sizes that the paper's Q demands.
    """

    def __init__(self, channels: int, classes: int, layer: Callable[[], nn.Module]):
        super().__init__()
        tokens = 1 + (IMAGE_SIZE // _PATCH) ** 2
        self.embedding = nn.Linear(channels * _PATCH**2, _WIDTH)
        self.class_token = nn.Parameter(0.02 * torch.randn(_WIDTH))
        self.register_buffer("positions", sinusoidal_positions(tokens, _WIDTH))
        self.layers = nn.Sequential(*(layer() for _ in range(_LAYERS)))
        self.head = nn.Linear(_WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(3, (-1, _PATCH)).unflatten(2, (-1, _PATCH))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        class_token = self.class_token.expand(len(images), 1, -1)
        tokens = torch.cat((class_token, self.embedding(patches)), 1) + self.positions
        return self.head(self.layers(tokens)[:, 0]).softmax(-1)


class _ChannelsLast(nn.Module):
    """Lay images out as [B, H, W, channels] in memory; shape and values stay."""

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu":
            return images
        # max_pool2d dominates on a CPU and is about twice as fast in this layout. With 1 channel
        # .contiguous(memory_format=torch.channels_last) would do nothing: strides are ambiguous.
        rows = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        return rows.permute(0, 3, 1, 2)


def _vgg5(channels: int, classes: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)

    return nn.Sequential(
        _ChannelsLast(),
        *block(channels, 32),
        *block(32, 64),
        *block(64, 64),
        nn.Flatten(),
        nn.Linear(64 * (IMAGE_SIZE // 8) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
        nn.Softmax(-1),
    )


def _mlp(channels: int, classes: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(IMAGE_SIZE // 8),
        nn.Flatten(),
        nn.Linear(64 * channels, width),
        nn.Tanh(),
        nn.Linear(width, classes),
        nn.Softmax(-1),
    )


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(8, channels // 4), channels)


def _resnet8(channels: int, classes: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """Three blocks of 16, 32 and 64 channels: He et al., 2015, section 4.2, with n = 1."""
    from torchvision.models import resnet  # a second, for those who want it

    def block(inputs: int, outputs: int) -> nn.Module:
        if inputs == outputs:
            return resnet.BasicBlock(inputs, outputs, norm_layer=norm)
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), norm(outputs))
        return resnet.BasicBlock(inputs, outputs, 2, shortcut, norm_layer=norm)

    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        norm(16),
        nn.ReLU(),
        *(block(inputs, outputs) for inputs, outputs in ((16, 16), (16, 32), (32, 64))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
        nn.Softmax(-1),
    )


def _resnet18(channels: int, classes: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """torchvision's, for small images: a first convolution of 3 × 3, no first pooling."""
    from torchvision.models import resnet

    network = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], num_classes=classes, norm_layer=norm)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return nn.Sequential(network, nn.Softmax(-1))


def _transformer(layer: Callable[[nn.Module], nn.Module], **attention: bool) -> partial:
    return partial(VisionTransformer, layer=lambda: layer(SelfAttention(**attention)))


_BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "vit-mlp": _transformer(EncoderLayer),
    "vit-nomlp": _transformer(AttentionLayer),
    "vit-nomlp-wkewq": _transformer(AttentionLayer, own_keys=False),
    "vit-nomlp-wkewq-wvwo1": _transformer(AttentionLayer, own_keys=False, own_values=False),
    "vgg5-max-relu": _vgg5,
}

# the paper's
MODELS = tuple(_BUILDERS)

# one hidden layer on the image in 8 by 8 pixels: P of 310 to 1,210 on the digits, for large Q
# residual networks, with BatchNorm, or with GroupNorm, which does not look at other examples
_BUILDERS |= {
    f"{name}{ending}": partial(builder, norm=norm)
    for name, builder in (("resnet8", _resnet8), ("resnet18", _resnet18))
    for ending, norm in (("", nn.BatchNorm2d), ("-groupnorm", _group_norm))
}
_BUILDERS |= {f"mlp-{width}": partial(_mlp, width=width) for width in (4, 8, 16)}
ALL_MODELS = tuple(_BUILDERS)


def build(name: str, channels: int, classes: int, seed: int) -> nn.Module:
    """A freshly initialised network: images [B, channels, 32, 32] to probabilities [B, classes].

    `name` is one of `ALL_MODELS`. The same `seed` gives the same float32 weights on the CPU. They
    follow PyTorch's defaults, the class token is normal with deviation 0.02. Raises `InputError`
    for an unknown name, fewer than 1 channel or 2 classes, a negative seed.
    """
    builder = _BUILDERS[check_choice("model", name, ALL_MODELS)]
    check_integer("channels", channels, 1)
    check_integer("classes", classes, 2)
    with seeded(seed):
        return builder(channels, classes)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While active, weights are drawn on the CPU from a seed; torch's global state is restored."""
    check_integer("seed", seed, 0)
    # Only the CPU's generator is saved, seeded and used: torch.manual_seed would reseed GPUs too.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def parameter_count(model: nn.Module) -> int:
    """P, the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def overdetermination(examples: int, outputs: int, parameters: int) -> float:
    """Q, the number of constraints per trainable parameter.

        Q = K M / P

    with K training examples, M outputs and P parameters, all at least 1; below 1 there are
    infinitely many solutions, most of which do not generalise. Source: the paper's equation 7.
    """
    check_integer("examples", examples, 1)
    check_integer("outputs", outputs, 1)
    check_integer("parameters", parameters, 1)
    return examples * outputs / parameters
