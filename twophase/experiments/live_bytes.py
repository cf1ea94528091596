"""The memory of the tensors that torch's operations make, counted on any device."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While active, follows the memory of the tensors that operations make; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = set(_storages((args, kwargs)))
        results = operation(*args, **(kwargs or {}))
        self._live = {a: kept for a, kept in self._live.items() if not kept[0].expired()}
        for address, storage in _storages(results).items():
            # a view of what was there before is no new memory
            if address not in given:
                self._live[address] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return results


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    """The memory of the tensors in a tree, by its address."""
    strided = [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.layout is torch.strided]
    found = {}
    for storage in (tensor.untyped_storage() for tensor in strided):
        # forward mode makes tensors of zeros that have no memory
        with suppress(RuntimeError):
            found[storage.data_ptr()] = storage
    return found
