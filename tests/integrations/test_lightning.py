"""`SecondPhase`, `TwoPhase` and its callback in Lightning, for real."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import twophase
from twophase.errors import InputError

pl = pytest.importorskip("lightning.pytorch", reason="of the extra test")
from twophase.integrations.lightning import TwoPhaseCallback  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def samples(count=256):
    inputs = torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
    return inputs, (3 * inputs[:, :1]).sin() * inputs[:, 1:]


class Regression(pl.LightningModule):
    """A small regression; `optimizer_of` makes its optimizer."""

    def __init__(self, optimizer_of, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(2, 20), nn.Tanh(), nn.Dropout(dropout), nn.Linear(20, 1)
        )  # fmt: skip
        self.optimizer_of, self.steps = optimizer_of, 0

    def training_step(self, batch, index):
        self.steps += 1
        loss = mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.optimizer_of(self.parameters())


def trainer_of(epochs, *callbacks, **settings):
    settings = {"enable_checkpointing": False} | settings
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        **settings,
    )  # fmt: skip


def loaders(batch_size=256, shuffle=True):
    data = TensorDataset(*samples())
    generator = torch.Generator().manual_seed(0)
    train = DataLoader(data, batch_size, shuffle=shuffle, generator=generator)
    return train, DataLoader(data, 256)


def loss_of(module):
    with torch.no_grad():
        return mse_loss(module.net(samples()[0]), samples()[1]).item()


@pytest.mark.parametrize(
    "optimizer_of", [twophase.SecondPhase, twophase.SelfScaledBFGS, twophase.TwoPhase]
)
def test_a_full_batch_is_solved_by_automatic_optimization(optimizer_of):
    """100 steps of `SecondPhase`, 200 of `TwoPhase`: a mean squared error below 1e-4."""
    module = Regression(optimizer_of)
    trainer = trainer_of(200 if optimizer_of is twophase.TwoPhase else 100)
    trainer.fit(module, *loaders())
    assert loss_of(module) < 1e-4
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(loss_of(module), rel=1e-5)


def test_the_callback_makes_the_second_phase_of_mini_batches():
    module, callback = Regression(twophase.TwoPhase), TwoPhaseCallback()
    trainer = trainer_of(120, callback)
    step, optimize = module.training_step, module.optimizer_step
    trainer.fit(module, *loaders(32))
    optimizer = trainer.optimizers[0]
    assert optimizer.batches == 8 and optimizer.phase == "second"
    assert len(optimizer.records) == 120
    metrics = trainer.callback_metrics
    assert loss_of(module) < 1e-5
    assert metrics["val_loss"].item() == pytest.approx(loss_of(module), rel=1e-4)
    assert metrics["twophase/loss"].item() == pytest.approx(loss_of(module), rel=1e-4)
    assert metrics["twophase/passes"].item() == optimizer.loop.spent
    # nothing is left behind in the module
    assert module.training_step == step and module.optimizer_step == optimize
    assert "log" not in module.__dict__


def test_the_callbacks_epochs_are_those_of_fit():
    """Its full-batch losses and norms are those of the library's loop, to float32."""
    module = Regression(lambda p: twophase.TwoPhase(p, switch=5, second=twophase.SELF_SCALED_BFGS))
    trainer = trainer_of(8, TwoPhaseCallback())
    trainer.fit(module, loaders(32, shuffle=False)[0])
    twin = Regression(twophase.TwoPhase)
    optimizer = twophase.TwoPhase(
        twin.net.parameters(), batches=8, switch=5, second=twophase.SELF_SCALED_BFGS
    )
    inputs, targets = samples()
    for _ in range(8):
        for batch in torch.arange(256).split(32):
            optimizer.step(lambda b=batch: mse_loss(twin.net(inputs[b]), targets[b]))
        optimizer.end_epoch(lambda: mse_loss(twin.net(inputs), targets))
    found, expected = trainer.optimizers[0].history, optimizer.history
    assert found.phase.tolist() == expected.phase.tolist() == ["adam"] * 5 + ["second"] * 3
    for column in ("train_loss", "grad_norm"):
        assert found[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-3)


@pytest.mark.parametrize("batch_size, epochs", [(256, 150), (32, 45)])
def test_in_the_end_the_module_has_the_weights_that_are_kept(batch_size, epochs):
    """Of noise: the second phase is left for Adam, which ends above it; as `fit` would."""
    noise = torch.randn(256, 1, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(samples()[0], noise)
    module = Regression(lambda p: twophase.TwoPhase(p, lr=0.03, switch=10))
    loader = DataLoader(data, batch_size)
    trainer_of(epochs, TwoPhaseCallback()).fit(module, loader)
    optimizer = module.optimizers(use_pl_optimizer=False)
    with torch.no_grad():
        last = mse_loss(module.net(data.tensors[0]), noise).item()
    records = optimizer.records
    assert {r.phase for r in records} == {"adam", "second"}
    assert records[-1].train_loss > 1.0001 * last
    assert last == pytest.approx(min(r.train_loss for r in records), rel=1e-5)


def test_a_quick_try_of_lightnings_takes_its_batches_alone():
    module, seen = Regression(twophase.TwoPhase), []
    module.net.register_forward_hook(lambda net, inputs, outputs: seen.append(inputs[0][0, 0]))
    trainer_of(1, TwoPhaseCallback(), fast_dev_run=3).fit(module, loaders(32, shuffle=False)[0])
    assert len(module.optimizers(use_pl_optimizer=False).records) == 1
    assert set(map(float, seen)) == {float(samples()[0][first, 0]) for first in (0, 32, 64)}


def test_mixed_precision_is_for_adams_batches():
    """The full loss, which is in eval mode, is in float32 in either phase."""
    module, seen = Regression(lambda p: twophase.TwoPhase(p, switch=1, fallback=None)), set()
    module.net.register_forward_hook(
        lambda net, inputs, outputs: seen.add((net.training, outputs.dtype))
    )
    trainer = trainer_of(3, TwoPhaseCallback(), precision="bf16-mixed")
    trainer.fit(module, loaders(32)[0])
    assert trainer.optimizers[0].history.phase.tolist() == ["adam", "second", "second"]
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}


def test_the_second_phase_leaves_the_epochs_batches_out():
    module = Regression(lambda p: twophase.TwoPhase(p, switch=2, fallback=None))
    trainer = trainer_of(3, TwoPhaseCallback())
    seen = []

    class Count(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(module.steps)

    trainer.callbacks.append(Count())
    trainer.fit(module, loaders(32)[0])
    passes = trainer.optimizers[0].loop.objective.passes
    assert seen[-1] == 2 * 8 + 8 * passes.forward


def test_dropout_is_off_where_the_full_loss_is_measured():
    module = Regression(lambda p: twophase.TwoPhase(p, switch=3), dropout=0.2)
    trainer_of(8, TwoPhaseCallback()).fit(module, loaders(64)[0])
    assert module.training and all(m.training for m in module.modules())


@pytest.mark.parametrize("batch_size", [256, 64])
@pytest.mark.parametrize("epochs", [10, 30])
def test_a_checkpoint_of_lightnings_resumes_exactly(tmp_path, batch_size, epochs):
    """In Adam, and in the second phase."""

    def fitted(until, path=None, save=None):
        module = Regression(lambda p: twophase.TwoPhase(p, switch=20))
        saving = {"enable_checkpointing": save is not None, "default_root_dir": tmp_path}
        trainer = trainer_of(until, TwoPhaseCallback(), **saving)
        trainer.fit(module, loaders(batch_size, shuffle=False)[0], ckpt_path=path)
        if save is not None:
            trainer.save_checkpoint(save)
        return module, trainer.optimizers[0]

    fitted(epochs, save=tmp_path / "half.ckpt")
    whole, first = fitted(45)
    again, second = fitted(45, path=tmp_path / "half.ckpt")
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    losses = [[r.train_loss for r in o.records] for o in (first, second)]
    assert losses[0] == losses[1]


def test_what_stands_in_the_way_is_one_clear_line():
    with pytest.raises(InputError, match="neither|clipping"):
        trainer_of(3, gradient_clip_val=0.01).fit(Regression(twophase.SecondPhase), *loaders())
    with pytest.raises(InputError, match="^configure_optimizers: 'Adam'"):
        module = Regression(lambda p: torch.optim.Adam(p))
        trainer_of(3, TwoPhaseCallback()).fit(module, *loaders(32))


def test_no_warnings_are_left_from_our_side():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = Regression(lambda p: twophase.TwoPhase(p, switch=2))
        trainer_of(4, TwoPhaseCallback()).fit(module, loaders(64)[0])
    assert not [w for w in caught if "twophase" in str(w.filename) or "training_step" in str(w)]


def test_wrong_trainings_are_one_line():
    two_phase = {"optimizer_of": twophase.TwoPhase}
    for settings, message in (
        (dict(accumulate_grad_batches=2), "^accumulate_grad_batches: 2"),
        (dict(limit_train_batches=3), "^train_dataloader: .* of which 3 batches"),
    ):
        with pytest.raises(InputError, match=message):
            trainer_of(3, TwoPhaseCallback(), **settings).fit(Regression(**two_phase), *loaders(32))

    class Sometimes(Regression):
        def training_step(self, batch, index):
            return super().training_step(batch, index) if index % 2 else None

    with pytest.raises(InputError, match="NoneType"):
        trainer_of(3, TwoPhaseCallback()).fit(Sometimes(**two_phase), *loaders(32))


def test_the_length_may_be_given_in_steps():
    module = Regression(twophase.TwoPhase)
    trainer = trainer_of(-1, TwoPhaseCallback(), max_steps=24)
    trainer.fit(module, *loaders(32))
    assert len(trainer.optimizers[0].records) == 3


def test_hooks_of_the_module_count_in_the_full_loss_and_in_adams_steps():
    class Hooked(Regression):
        steps_of_adam = 0

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [2 * batch[0], batch[1]]

        def optimizer_step(self, epoch, index, optimizer, closure):
            self.steps_of_adam += 1
            super().optimizer_step(epoch, index, optimizer, closure)

        def training_step(self, batch):  # without an index
            return super().training_step(batch, 0)

    module = Hooked(twophase.TwoPhase)
    trainer = trainer_of(3, TwoPhaseCallback())
    trainer.fit(module, loaders(32)[0])
    inputs, targets = samples()
    with torch.no_grad():
        loss = mse_loss(module.net(2 * inputs), targets).item()
    assert trainer.optimizers[0].records[-1].train_loss == pytest.approx(loss, rel=1e-5)
    assert module.steps_of_adam == 24


def test_an_interrupted_training_leaves_the_module_as_it_was():
    class Once(Regression):
        def on_train_epoch_end(self):
            if self.current_epoch == 1 and not getattr(self, "raised", False):
                self.raised = True
                raise ZeroDivisionError

    module, callback = Once(twophase.TwoPhase), TwoPhaseCallback()
    with pytest.raises(ZeroDivisionError):
        trainer_of(4, callback).fit(module, loaders(32)[0])
    assert not {"training_step", "optimizer_step", "log"} & set(module.__dict__)
    trainer = trainer_of(2, callback)
    trainer.fit(module, loaders(32)[0])
    assert len(trainer.optimizers[0].records) == 2


def test_an_epoch_that_a_hook_ends_early_ends_there():
    """`on_train_batch_start` may return -1 to skip the rest of an epoch, or all of it."""

    class Skipping(Regression):
        def on_train_batch_start(self, batch, index):
            return -1 if index == (0 if self.current_epoch == 2 else 5) else None

    module = Skipping(lambda p: twophase.TwoPhase(p, switch=3, fallback=None))
    trainer = trainer_of(6, TwoPhaseCallback())
    trainer.fit(module, loaders(32)[0])
    phases = [record.phase for record in trainer.optimizers[0].records]
    assert phases == ["adam"] * 3 + ["second"] * 2
