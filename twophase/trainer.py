"""The two-phase loop for a model and data, with all of its settings."""

import torch
from torch import nn

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.data_objectives import Data, data_objectives
from twophase.distributed import bare, check_shared
from twophase.errors import check_call, check_integer, check_type
from twophase.least_squares import LeastSquares
from twophase.loop import Loop
from twophase.losses import Loss, mse
from twophase.modules import check_modules
from twophase.monitor import Exact, Monitor
from twophase.phases import AdamPhase, DescentPhase, Phase, check_phases
from twophase.record import ADAM, SECOND
from twophase.rehearsal import rehearse
from twophase.second_phase import Minimizer
from twophase.switching import Fallback, Race, SwitchRule


class Trainer(Loop):
    """Two-phase training, epoch by epoch; `twophase.fit` runs one to its end.

    The model is trained in place, in the mode (train or eval) it comes in; losses and norms are
    measured in eval mode. `InputError` where an argument is out of range, both phases are None, or
    model, loss and data do not go together, which a few examples show (see `rehearse`).

    Args:
        model: any module with float32 or float64 parameters of one dtype. A second phase needs one
            without dropout or BatchNorm in training mode. Or a `LeastSquares`, which is trained
            where it is; `data` and `device` are not for it.
        data: what to train on: tensors (inputs [K, ...], targets [K, ...]) or a `Dataset` with
            training and validation examples, in memory; a torch `DataLoader`, or `Dataset` of
            pairs, which is read in each pass (see `Streamed`); or a closure that returns the loss
            of all of it, with or without calling backward (see `ClosureObjective`): then an epoch
            of Adam is one step along its gradient. Floating-point tensors take the model's dtype.
        validation: what else to look at after each epoch, in the same forms.
        adam, second: settings of the two phases; None: the phase is left out.
        switch: the rule that ends the first phase, or its number of epochs; by default a `Race`,
            which `fit` tells how long the training is, and which else plans for 900 passes.
        fallback: when the second phase hands back to Adam, since its own results speak against the
            hypothesis; None: never, as in the paper.
        keep: "train": trials are judged by the training loss, and the weights in the end are the
            last, or the second phase's if Adam took over again and ended above them. "validation":
            trials are judged by the validation loss, and the weights are those of the epoch with
            the lowest one. The default does not look at validation data, so that they stay data
            that the training has not seen.
        monitor: how loss and norm of Adam's mini-batch epochs become known: `Exact`, or for nothing
            `FromBatches`. With one batch of all examples they are at hand.
        freeze: whether the second phase runs in eval mode: with the statistics that BatchNorm has
            gathered under Adam, and without dropout. Else a model with such modules in training
            mode is refused, since its loss does not repeat itself.
        loss: mean loss over a batch's examples, `loss(outputs, targets)`, so that chunks of a batch
            add up; not a mean over weights of classes. Default: `twophase.mse`, the paper's.
        seed: of the order of mini-batches; a DataLoader has its own.
        device, chunk_size: see `resolve_device` and `FullBatch`.
    """

    def __init__(
        self,
        model: nn.Module | LeastSquares,
        data: Data | None = None,
        *,
        validation: Data | None = None,
        adam: AdamSettings | None = AdamSettings(),
        second: Minimizer | None = DEFAULT,
        switch: SwitchRule | Race | int = Race(),
        fallback: Fallback | None = Fallback(),
        keep: str = "train",
        monitor: Monitor = Exact(),
        freeze: bool = False,
        loss: Loss = mse,
        seed: int = 0,
        device: str | torch.device = "auto",
        chunk_size: int | None = None,
    ):
        check_integer("seed", seed, 0)
        check_phases(adam, second)
        check_type("monitor", monitor, Monitor)
        check_type("freeze", freeze, bool)
        check_call("loss", loss, "a function: (outputs, targets)")
        objective, self.validation = data_objectives(
            model, data, validation, loss, device, chunk_size
        )
        given = adam, second, switch, fallback, monitor, loss, f"{keep=}, {freeze=}, {seed=}"
        check_shared(objective, given, data=objective, validation=self.validation)
        self.model = model.model if isinstance(model, LeastSquares) else bare(model)
        self.device = objective.vector.parameters[0].device
        if second is not None and not freeze:
            check_modules(self.model)
        rehearse(objective, second is not None, freeze or second is None)
        rehearse(self.validation, second=False, eval_mode=True)
        first = None if adam is None else AdamPhase(objective, adam, seed, monitor)
        phases: dict[str, Phase] = {} if first is None else {ADAM: first}
        if second is not None:
            phases[SECOND] = DescentPhase(objective, second, first, freeze)
        super().__init__(objective, phases, switch, fallback, monitor, self.validation, keep)
