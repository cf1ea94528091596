"""How many examples a forward pass takes at a time, by the memory that one of them needs."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twophase.modules import evaluating
from twophase.precision import full_precision

# Bytes of what a chunk's forward pass produces. On a CPU 16 to 64 MiB, about its last cache, were
# the fastest for the paper's networks, and the whole batch up to twice as slow; with the largest of
# these threads wait least. A GPU needs room for the backward pass and what else lives there.
CPU_CHUNK_BYTES = 64 * 2**20
CUDA_CHUNK_SHARE = 1 / 8
# Examples of the larger of the two batches that `bytes_per_example` looks at.
LARGEST_PROBE = 4


@full_precision()
def bytes_per_example(model: nn.Module, compute: Callable[..., object], *examples: Tensor) -> float:
    """Bytes of all tensors that one example more makes the pass `compute(*examples)` produce.

    It is the difference between batches of 4 and of 2 of the K >= 4 examples, divided by 2: what
    does not depend on the batch cancels out. The graph of a gradient holds most of these tensors.
    The model runs in eval mode; its modes and all random numbers are afterwards as before.
    """
    small, large = LARGEST_PROBE // 2, LARGEST_PROBE
    cuda = [examples[0].device] if examples[0].device.type == "cuda" else []
    made = []
    with evaluating(model), torch.random.fork_rng(cuda), torch.enable_grad():
        for count in (small, large):
            with _Produced() as produced:
                compute(*(tensor[:count] for tensor in examples))
            made.append(produced.bytes)
    return max(0, made[1] - made[0]) / (large - small)


class _Produced(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, views once."""

    def __init__(self) -> None:
        super().__init__()
        # kept alive, so that no storage takes the address of another
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = op(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor))
        self.kept += [tensor for tensor in tensors if tensor.layout is torch.strided]
        return results

    @property
    def bytes(self) -> int:
        sizes = {}
        for tensor in self.kept:
            storage = tensor.untyped_storage()
            # forward mode makes tensors of zeros that have no memory
            with suppress(RuntimeError):
                sizes[storage.data_ptr()] = storage.nbytes()
        return sum(sizes.values())


def chunk_bytes(device: torch.device) -> float:
    """What a chunk's forward pass may produce on a device."""
    if device.type == "cuda":
        return CUDA_CHUNK_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CPU_CHUNK_BYTES
