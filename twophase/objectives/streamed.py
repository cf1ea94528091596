"""The mean loss over examples that are read in each pass, and need not fit into memory."""

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.distributed import DistributedSampler

from twophase.distributed import Processes
from twophase.errors import InputError, check_integer
from twophase.examples import Examples
from twophase.losses import Loss
from twophase.objectives.chunks import LARGEST_PROBE
from twophase.objectives.mean_loss import MeanLoss

# Examples a chunk, where neither a loader nor the user says how many.
CHUNK = 512

Source = DataLoader[Any] | TorchDataset[Any]


class Streamed(MeanLoss):
    """The mean loss over a `DataLoader`, or a `Dataset` of pairs (input, target); see `MeanLoss`.

    Mini-batches are the loader's, in its order; those of a dataset are drawn as those of examples
    in memory. A pass for the full loss is `in_order`, `chunk_size` examples at a time (None: as
    many as the loader takes, or 512). `InputError` where a batch is no pair of tensors.

    Several processes read a share of the examples each, where they can be read by their numbers;
    else all read all of them, and take every so-manieth batch.
    """

    def __init__(self, model: nn.Module, loss: Loss, source: Source, chunk_size: int | None = None):
        super().__init__(model, loss)
        if chunk_size is not None:
            check_integer("chunk_size", chunk_size, 1)
        self.source, self._all = source, in_order(source, chunk_size)
        self._begin = self._pair(_first(self._all))
        self.classes = self._begin.has_labels

    @cached_property
    def count(self) -> int:
        """Examples K, by the length of the dataset, or else counted in a pass."""
        return sum(self._sizes) if _unnumbered(self._all) else _count(self._all)

    @cached_property
    def _sizes(self) -> list[int]:
        """Examples of each batch of a loader that must be read to know them."""
        return [len(batch[0]) for batch in self._all]

    @cached_property
    def _own(self) -> Iterable[Any]:
        """What this process reads in a pass."""
        return _part(self._all, self.processes)

    @cached_property
    def own_count(self) -> int:
        """Those of this process, as `count`."""
        return self.count if self._own is self._all else _count(self._own)

    def batch_count(self, size: int | None) -> int:
        """Mini-batches of an epoch: the loader's own, or those of `size` examples of a dataset."""
        if isinstance(self.source, DataLoader):
            if not _endless(self.source):
                return len(self.source)
            if self.source.batch_size is None:  # the dataset makes them
                return len(self._sizes)
            size = self.source.batch_size
        return math.ceil(self.count / (size or self.count))

    def mini_batches(self, size: int | None, generator: torch.Generator) -> Iterator[Examples]:
        """The mini-batches of an epoch, on the model's device."""
        source = self.source
        if not isinstance(source, DataLoader):
            order = torch.randperm(self.count, generator=generator).tolist()
            source = DataLoader(source, size or self.count, sampler=order, generator=_generator())
        return map(self._pair, source)

    @property
    def shared(self) -> tuple[Tensor, ...]:
        examples = self.source.dataset if isinstance(self.source, DataLoader) else self.source
        if isinstance(examples, TensorDataset):
            return *examples.tensors, *_drawn_from(self.source)
        return self._begin.inputs, self._begin.targets, *_drawn_from(self.source)

    def batch_loss(self, batch: Examples, some: slice = slice(None)) -> Tensor:
        """The mean loss of some examples, in the model's dtype, with its graph."""
        return self.loss(self.model(batch.inputs[some]), batch.targets[some])

    def sample(self) -> tuple[Tensor, Tensor]:
        """The first examples of the first batch."""
        return self._begin.inputs[:LARGEST_PROBE], self._begin.targets[:LARGEST_PROBE]

    def _examples(self, part: float = 1) -> Iterable[tuple[Tensor, Tensor]]:
        for chunk in map(self._pair, self._own):
            size = max(1, int(len(chunk) * part))
            yield from zip(chunk.inputs.split(size), chunk.targets.split(size), strict=True)

    def _pair(self, batch: Any) -> Examples:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) for part in batch):
            raise InputError("data", type(batch).__name__, "batches (inputs, targets) of tensors")
        device, dtype = self.vector.parameters[0].device, self.vector.dtype
        # a loader that pins makes a new copy of each batch, to which nobody writes
        return Examples(*batch).to(device, dtype, non_blocking=self._all.pin_memory)


def in_order(source: Source, size: int | None = None) -> DataLoader[Any]:
    """All examples of a dataset, or of a loader, once each and always in the same order.

    A loader with a sampler of another kind than torch's own, or without indices, is taken as it is.
    """
    if not isinstance(source, DataLoader):
        return DataLoader(source, size or CHUNK, generator=_generator())
    dataset, sampler = source.dataset, source.sampler
    if isinstance(sampler, DistributedSampler):
        allowed = "one without: processes share each batch and each pass"
        raise InputError("data", "a DataLoader with a DistributedSampler", allowed)
    if isinstance(dataset, IterableDataset) or source.batch_size is None:
        return source
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, list(sampler.indices))
    elif isinstance(sampler, RandomSampler):
        if sampler.replacement or sampler.num_samples != len(dataset):  # type: ignore[arg-type]
            return source
    elif not isinstance(sampler, SequentialSampler) or len(sampler) != len(dataset):  # type: ignore
        return source
    return _sequential(source, dataset, size)


def _sequential(source: DataLoader[Any], dataset: Any, size: int | None = None) -> DataLoader[Any]:
    """A loader of a dataset from its first example to its last, else as `source`."""
    return DataLoader(
        dataset,
        size or source.batch_size,
        collate_fn=source.collate_fn,
        num_workers=source.num_workers,
        pin_memory=source.pin_memory,
        timeout=source.timeout,
        worker_init_fn=source.worker_init_fn,
        multiprocessing_context=source.multiprocessing_context,
        prefetch_factor=source.prefetch_factor,
        persistent_workers=source.num_workers > 0,
        generator=_generator(),
    )


class _Strided:
    """Every so-manieth batch of a loader whose examples have no numbers, from this process's on."""

    def __init__(self, loader: DataLoader[Any], here: Processes):
        self.loader, self.here = loader, here

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.here.rank, None, self.here.count)


def _part(loader: DataLoader[Any], here: Processes) -> Iterable[Any]:
    """What a process reads in a pass."""
    if here.count == 1:
        return loader
    if loader.batch_size is None or not isinstance(loader.sampler, SequentialSampler):
        return _Strided(loader, here)
    own = here.share(len(loader.dataset))  # type: ignore[arg-type]
    return _sequential(loader, Subset(loader.dataset, range(own.start, own.stop)))


def _drawn_from(source: Source) -> list[Tensor]:
    """The state of the generator from which a loader that shuffles takes its order."""
    if not (isinstance(source, DataLoader) and isinstance(source.sampler, RandomSampler)):
        return []
    own = source.sampler.generator or source.generator
    return [torch.get_rng_state() if own is None else own.get_state()]


def _generator() -> torch.Generator:
    """A generator for what a loader draws, so that it does not draw from torch's global one."""
    return torch.Generator()


def _endless(loader: DataLoader[Any]) -> bool:
    """Whether it does not know its length."""
    return isinstance(loader.dataset, IterableDataset)


def _unnumbered(loader: DataLoader[Any]) -> bool:
    """Whether its examples cannot be counted or asked for by their numbers."""
    return _endless(loader) or loader.batch_size is None


def _first(loader: DataLoader[Any]) -> Any:
    """A batch, if possible of two examples and without starting workers."""
    if _unnumbered(loader):
        for batch in loader:
            return batch
    elif len(loader.sampler):  # type: ignore[arg-type]
        return loader.collate_fn([loader.dataset[i] for i in islice(loader.sampler, 2)])
    raise InputError("data", f"{type(loader.dataset).__name__} of no example", "at least one")


def _count(loader: Iterable[Any]) -> int:
    """Examples, by the length of the dataset or else in a pass."""
    if not isinstance(loader, DataLoader) or _unnumbered(loader):
        return sum(len(batch[0]) for batch in loader)
    return len(loader.sampler)  # type: ignore[arg-type]
