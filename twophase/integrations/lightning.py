"""Two-phase training of mini-batches in Lightning: a callback beside the optimizer `TwoPhase`."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.utils.data import DataLoader

from twophase.errors import InputError
from twophase.modules import evaluating
from twophase.objectives.streamed import in_order
from twophase.optimizers import TwoPhase
from twophase.record import ADAM


class TwoPhaseCallback(Callback):
    """Tells a `TwoPhase` of the loss over all mini-batches, and makes its second phase.

    For a module whose `configure_optimizers` returns `TwoPhase(self.parameters())`, with automatic
    optimization and more than one batch in an epoch (with one, the optimizer needs no callback):

        trainer = Trainer(max_epochs=200, callbacks=[TwoPhaseCallback()])

    After the last batch of an epoch, before validation, `training_step` is called for all batches
    once more, in eval mode and without logging, weighted by their sizes; in the second phase as
    often as its line search asks, while the epoch's own batches are left out. It logs "loss",
    "grad_norm" and "passes" after a prefix "twophase/". Checkpoints of Lightning resume it.

    `InputError` where the optimizer is another one, or the training has several processes.
    """

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell the optimizer how many batches there are; leave them out in the second phase."""
        trainer.estimated_stepping_batches  # noqa: B018 (loads the data, so that they are counted)
        optimizer = module.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, TwoPhase):
            found = type(optimizer).__name__
            raise InputError("configure_optimizers", found, "one that returns twophase.TwoPhase")
        if trainer.world_size > 1:
            raise InputError("devices", trainer.world_size, "one: there is one loss to minimise")
        if optimizer.batches != trainer.num_training_batches:
            optimizer.batches = int(trainer.num_training_batches)
        self._step, self._optimizer = module.training_step, optimizer
        if optimizer.batches > 1:
            module.training_step = self._training_step  # type: ignore[method-assign]
            module.optimizer_step = self._optimizer_step  # type: ignore[method-assign]

    def _training_step(self, *arguments: Any, **named: Any) -> Any:
        return self._step(*arguments, **named) if self._optimizer.phase == ADAM else None

    def _optimizer_step(
        self, epoch: int, index: int, optimizer: Any, closure: Callable[[], Any]
    ) -> None:
        if self._optimizer.phase == ADAM:
            optimizer.step(closure=closure)
            return
        with warnings.catch_warnings():  # of a training step that returns nothing
            warnings.simplefilter("ignore")
            closure()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, *batch: Any, **named: Any
    ) -> None:
        """After the last batch: what the epoch has come to, or an iteration of the second phase."""
        if self._optimizer.batches == 1 or not trainer.is_last_batch:
            return
        record = self._optimizer.end_epoch(lambda: self._full_loss(trainer, module))
        seen = {"loss": record.train_loss, "grad_norm": record.grad_norm}
        seen["passes"] = float(self._optimizer.loop.spent)
        module.log_dict({f"twophase/{k}": v for k, v in seen.items()}, on_step=False, on_epoch=True)

    @torch.enable_grad()
    def _full_loss(self, trainer: Trainer, module: LightningModule) -> Tensor:
        """The mean loss over all examples, in float64, with its gradient in the parameters."""
        loader: Any = trainer.train_dataloader
        loader = in_order(loader) if isinstance(loader, DataLoader) else loader
        count = 0
        total = torch.zeros((), dtype=torch.float64, device=module.device)
        with evaluating(module), _quiet(module):
            for index, batch in enumerate(islice(loader, self._optimizer.batches)):
                there = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                loss = self._step(there, index)
                loss = loss["loss"] if isinstance(loss, dict) else loss
                size = extract_batch_size(there)
                (size * loss).backward()
                total += size * loss.detach()
                count += size
        for parameter in self._optimizer.objective.vector.parameters:
            if parameter.grad is not None:
                parameter.grad /= count
        return total / count

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """The module is as it was."""
        for name in ("training_step", "optimizer_step"):
            module.__dict__.pop(name, None)


@contextmanager
def _quiet(module: LightningModule) -> Iterator[None]:
    """Without logging: the same step may be made many times."""
    names = ("log", "log_dict")
    for name in names:
        setattr(module, name, lambda *arguments, **named: None)
    try:
        yield
    finally:
        for name in names:
            module.__dict__.pop(name, None)
