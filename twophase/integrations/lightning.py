"""Two-phase training of mini-batches in Lightning: a callback beside the optimizer `TwoPhase`."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import signature
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
from twophase.precision import full_precision
from twophase.record import ADAM


class TwoPhaseCallback(Callback):
    """Tells a `TwoPhase` of the loss over all mini-batches, and makes its second phase.

    For a module whose `configure_optimizers` returns `TwoPhase(self.parameters())`, with automatic
    optimization and more than one batch in an epoch (with one, the optimizer needs no callback):

        trainer = Trainer(max_epochs=200, callbacks=[TwoPhaseCallback()])

    After the last batch of an epoch, before validation, `training_step` is called for all batches
    once more, in eval mode and without logging, weighted by their sizes; in the second phase as
    often as its line search asks, while the epoch's own batches are left out. Lightning's mixed
    precision is for Adam's batches alone. It logs "loss", "grad_norm" and "passes" after a prefix
    "twophase/". Checkpoints of Lightning resume it. When the training ends the module has the
    weights that are to be kept, as after `fit`; checkpoints of before have the last ones.

    Metrics that `training_step` updates see these calls, too; what it logs itself stays as it was
    at Adam's last batch, so let callbacks monitor "twophase/loss" or a validation loss.

    `InputError` where the optimizer is another one, gradients are accumulated over batches, not all
    batches are taken in each epoch, or the training has several processes.
    """

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell the optimizer how many batches there are; leave them out in the second phase."""
        optimizer = module.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, TwoPhase):
            found = type(optimizer).__name__
            raise InputError("configure_optimizers", found, "one that returns twophase.TwoPhase")
        batches = self._batches(trainer, module)
        if optimizer.batches != batches:
            optimizer.batches = batches
        _restore(module)
        self._step, self._optimize = module.training_step, module.optimizer_step
        self._optimizer, self._source, self._open = optimizer, None, False
        self._indexed = len(signature(self._step).parameters) > 1
        if batches > 1:
            module.training_step = _by_adam(self._step, optimizer)  # type: ignore[method-assign]
            module.optimizer_step = self._optimizer_step  # type: ignore[assignment,method-assign]

    def _batches(self, trainer: Trainer, module: LightningModule) -> int:
        """How many there are in each epoch, all of them every time; `InputError` else."""
        if trainer.world_size > 1:
            raise InputError("devices", trainer.world_size, "one: there is one loss to minimise")
        if not module.automatic_optimization:
            raise InputError("automatic_optimization", False, "True, or no callback")
        if trainer.accumulate_grad_batches != 1:
            found = trainer.accumulate_grad_batches
            raise InputError("accumulate_grad_batches", found, "1: Adam takes each batch")
        trainer.fit_loop.setup_data()
        batches, loader = trainer.num_training_batches, trainer.train_dataloader
        every: int | None = None
        with suppress(TypeError):  # of a loader that does not know its length
            every = len(loader)  # type: ignore[arg-type]
        run: Any = trainer  # not all that it has is annotated
        tried = every is not None and run.fast_dev_run  # of so many batches, in passes, too
        if isinstance(loader, dict) or (every != batches and not tried):
            taken = f"{type(loader).__name__} of which {batches} batches are taken"
            options = "no limit_train_batches, no overfit_batches"
            allowed = f"a DataLoader of a known length, all of it ({options})"
            raise InputError("train_dataloader", taken, allowed)
        return int(batches)

    def _optimizer_step(
        self, epoch: int, index: int, optimizer: Any, closure: Callable[[], Any]
    ) -> None:
        if self._optimizer.phase == ADAM:
            self._optimize(epoch, index, optimizer, closure)
            return
        with warnings.catch_warnings():  # of a training step that returns nothing
            warnings.simplefilter("ignore")
            closure()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last batch: what the epoch has come to, or an iteration of the second phase."""
        if self._optimizer.batches > 1:
            self._open = True
            if trainer.is_last_batch:
                self._end_epoch(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """An epoch that `on_train_batch_start` has ended early, by -1, ends here."""
        stopped = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if self._open and not stopped:
            self._end_epoch(trainer, module)

    def _end_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        self._open = False
        record = self._optimizer.end_epoch(lambda: self._full_loss(trainer, module))
        seen = {"loss": record.train_loss, "grad_norm": record.grad_norm}
        seen["passes"] = float(self._optimizer.loop.spent)
        module.log_dict({f"twophase/{k}": v for k, v in seen.items()}, on_step=False, on_epoch=True)

    @torch.enable_grad()
    def _full_loss(self, trainer: Trainer, module: LightningModule) -> Tensor:
        """The mean loss over all examples, in float64, with its gradient in the parameters."""
        # once, not in each pass: it may have workers to start
        if trainer.train_dataloader is not self._source:
            self._source = loader = trainer.train_dataloader
            self._all = in_order(loader) if isinstance(loader, DataLoader) else loader
        run: Any = trainer
        few, count = int(trainer.num_training_batches) if run.fast_dev_run else None, 0
        total = torch.zeros((), dtype=torch.float64, device=module.device)
        with evaluating(module), _quiet(module):
            for index, batch in enumerate(islice(self._all, few)):
                batch = trainer.precision_plugin.convert_input(batch)
                batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
                there = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                with trainer.precision_plugin.train_step_context(), full_precision():
                    loss = self._step(there, index) if self._indexed else self._step(there)
                loss = loss["loss"] if isinstance(loss, dict) else loss
                if not isinstance(loss, Tensor):
                    raise InputError("training_step", loss, "a loss for every batch")
                size = extract_batch_size(there)
                (size * loss).backward()
                total += size * loss.detach()
                count += size
        for parameter in self._optimizer.objective.vector.parameters:
            if parameter.grad is not None:
                parameter.grad /= count
        return total / count

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Give the module the weights that are to be kept, unless it ends within an epoch."""
        aside = self._optimizer.loop.weights.lowest()
        if aside is not None and not self._open:
            _restore(module)
            self._optimizer.finish(lambda: self._full_loss(trainer, module))

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """The module is as it was."""
        _restore(module)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """The module is as it was."""
        _restore(module)


def _by_adam(step: Callable[..., Any], optimizer: TwoPhase) -> Callable[..., Any]:
    """A training step that does nothing in the second phase; Lightning looks at its arguments."""

    @wraps(step)
    def training_step(*arguments: Any, **named: Any) -> Any:
        return step(*arguments, **named) if optimizer.phase == ADAM else None

    return training_step


def _restore(module: LightningModule) -> None:
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
