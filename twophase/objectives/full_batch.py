"""The mean loss over examples in memory, as an objective."""

import math
from collections.abc import Iterable
from functools import cached_property

from torch import Tensor, nn

from twophase.errors import check_integer
from twophase.examples import Examples, Shuffled
from twophase.losses import Loss
from twophase.objectives.chunks import LARGEST_PROBE, bytes_per_example, chunk_bytes
from twophase.objectives.mean_loss import MeanLoss


class FullBatch(Shuffled, MeanLoss):
    """The mean loss over examples in memory; see `MeanLoss`.

    Inputs and targets [K, ...] are on the model's device. `chunk_size` examples per forward pass,
    at least 1, bound the memory and change results by rounding only. None: so many that a chunk has
    `chunk_bytes` of intermediate results, by model, shapes and device alone, so that a run that
    goes on later makes the same choice.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Tensor,
        targets: Tensor,
        chunk_size: int | None = None,
    ):
        super().__init__(model, loss)
        self.inputs, self.targets = inputs, targets
        self.classes = Examples(inputs, targets).has_labels
        if chunk_size is not None:
            # in place of the property's own choice
            self.chunk_size = check_integer("chunk_size", chunk_size, 1)

    @cached_property
    def chunk_size(self) -> int:
        """Examples per forward pass: as given, else chosen when it is first asked for."""
        count = len(self.inputs)
        if count <= LARGEST_PROBE:
            return max(1, count)
        needed = count * bytes_per_example(self.model, self.part, self.inputs, self.targets)
        chunks = max(1, math.ceil(needed / chunk_bytes(self.inputs.device)))
        # equal chunks: a short last one would use a processor badly
        return math.ceil(count / chunks)

    @property
    def count(self) -> int:
        """Examples K."""
        return len(self.inputs)

    @property
    def shared(self) -> tuple[Tensor, ...]:
        return self.inputs, self.targets

    def batch_loss(self, batch: Tensor, some: slice = slice(None)) -> Tensor:
        """The mean loss of the examples with indices [B], in the model's dtype, with its graph."""
        chosen = batch[some]
        return self.loss(self.model(self.inputs[chosen]), self.targets[chosen])

    def sample(self) -> tuple[Tensor, Tensor]:
        """The first examples, and of labels those with the smallest and the largest one."""
        chosen = {0, self.count - 1}
        if self.classes:
            chosen |= {int(self.targets.argmin()), int(self.targets.argmax())}
        found = sorted(chosen)
        return self.inputs[found], self.targets[found]

    def _examples(self, part: float = 1) -> Iterable[tuple[Tensor, Tensor]]:
        size, own = max(1, int(self.chunk_size * part)), self.processes.share(self.count)
        return zip(self.inputs[own].split(size), self.targets[own].split(size), strict=True)
