"""Decoder-only transformers that foresee the next character of a text."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twophase.errors import check_choice, check_integer
from twophase.problems.networks import seeded


class Size(NamedTuple):
    """Width, layers and heads; P is about 12 · layers · width²."""

    width: int
    layers: int
    heads: int


# by the number of parameters, for about 100 characters and a context of 64
GPT_MODELS = {
    "gpt-10k": Size(16, 2, 2),
    "gpt-50k": Size(32, 3, 4),
    "gpt-200k": Size(64, 4, 4),
    "gpt-1m": Size(128, 5, 4),
    "gpt-10m": Size(320, 8, 8),
}


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and those before it.

    softmax(mask(Q K' / sqrt(d))) V per head of size d, then a linear map; [B, T, width] to itself.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inputs(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """y = x + attention(norm1(x));  layer(x) = y + mlp(norm2(y)), the MLP 4 times as wide, gelu."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        wide = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Logits [B, T, characters] of the next character, from the numbers [B, T] of those before.

    Learned embeddings of characters and of positions, pre-norm layers, a last LayerNorm and a
    linear map, without dropout. T is at most `context`. Sources: Vaswani et al., 2017; Radford et
    al., Language models are unsupervised multitask learners, 2019, whose normal initialisation of
    deviation 0.02 it has, divided by sqrt(2 · layers) where a layer adds to x.
    """

    def __init__(self, characters: int, context: int, size: Size):
        super().__init__()
        width, layers, heads = size
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.layers = nn.Sequential(*(DecoderLayer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                adds = name.endswith(("attention.output.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if adds else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.characters(numbers) + self.positions[: numbers.shape[1]]
        return self.head(self.norm(self.layers(x)))


def build(name: str, characters: int, context: int, seed: int) -> GPT:
    """A freshly initialised network of `GPT_MODELS`; the same `seed` gives the same weights.

    `InputError` for an unknown name, fewer than 2 characters, a context below 1, a negative seed.
    """
    size = GPT_MODELS[check_choice("model", name, GPT_MODELS)]
    check_integer("characters", characters, 2)
    check_integer("context", context, 1)
    with seeded(seed):
        return GPT(characters, context, size)
