"""Weights that a training sets aside: where Adam stood, and what was lowest."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from twophase.errors import InputError, check_choice, check_integer, check_number
from twophase.parameters import ParameterVector
from twophase.switching.rules import moved

NAMES = SWAP, BEST = "swap", "best"


class Kept(NamedTuple):
    """Weights [P] set aside, the loss that they are judged by, the epoch that ended there.

    With the model's buffers, such as the statistics of BatchNorm, at that time.
    """

    x: Tensor
    loss: float
    epoch: int
    buffers: Sequence[Tensor] = ()


class Weights:
    """What is set aside, by name, and from where the coming epoch starts if not from the last."""

    def __init__(self, vector: ParameterVector):
        self.vector = vector
        self.kept: dict[str, Kept] = {}
        self.coming: Kept | None = None

    def put(self, name: str, kept: Kept) -> None:
        """Set weights aside in place of those of that name, with the model's present buffers."""
        self.kept[name] = kept._replace(buffers=self.vector.read_buffers())

    def put_if_lower(self, kept: Kept) -> None:
        """Set weights aside as the best, unless lower ones are."""
        if BEST not in self.kept or kept.loss < self.kept[BEST].loss:
            self.put(BEST, kept)

    def forget_losses(self, before: float, now: float) -> None:
        """The loss has become another one: none is the best any more, Adam's is moved."""
        self.kept.pop(BEST, None)
        if SWAP in self.kept:
            swap = self.kept[SWAP]
            self.kept[SWAP] = swap._replace(loss=moved(swap.loss, before, now))

    def go_to(self, name: str) -> Kept:
        """Let the coming epoch start from there; until then the model has the last epoch's."""
        self.coming = self.kept[name]
        return self.coming

    def begin(self, by_adam: bool) -> bool:
        """An epoch begins: give the model the weights it starts from; whether they are others."""
        if by_adam:
            self.kept.pop(SWAP, None)  # Adam stands there, or has left it for good
        moved = self.coming is not None
        if self.coming is not None:
            self.restore(self.coming)
        return moved

    def lowest(self) -> Kept | None:
        """The lowest of the best and, while a second phase or its return is last, Adam's."""
        aside = [self.kept[name] for name in (BEST, SWAP) if name in self.kept]
        return min(aside, key=lambda kept: kept.loss, default=None)

    def restore(self, kept: Kept) -> None:
        """Give the model these weights, for good."""
        self.vector.write(kept.x)
        self.vector.write_buffers(kept.buffers)
        self.coming = None

    def state_dict(self) -> dict[str, Any]:
        """The weights set aside, for a file."""
        coming = None if self.coming is None else self.coming._asdict()
        return {"kept": {name: k._asdict() for name, k in self.kept.items()}, "coming": coming}

    def load_state_dict(self, state: Mapping[str, Any], last_epoch: int) -> None:
        """Take the weights of a state in place of those of a replay of its records.

        A replay has the last epoch's weights under every name. `InputError` where that is wrong
        since the state has none: it is of a training that set nothing aside there.
        """

        def there(fields: Mapping[str, Any]) -> Kept:
            loss = check_number("loss", fields["loss"])
            epoch = check_integer("epoch", fields["epoch"], 1)
            if epoch > last_epoch:
                raise InputError("epoch", epoch, f"at most {last_epoch}")
            buffers = self.vector.taken_buffers(fields.get("buffers", ()))
            return Kept(self.vector.taken(fields["x"]), loss, epoch, buffers)

        for name, kept in self.kept.items():
            if name not in state["kept"] and kept.epoch != last_epoch:
                lacks = f"without the weights of epoch {kept.epoch}"
                raise InputError("state", lacks, "one of a training with this switch and keep")
        found = {check_choice("state", name, NAMES): there(k) for name, k in state["kept"].items()}
        self.kept |= found
        self.coming = None if state["coming"] is None else there(state["coming"])
