"""What BatchNorm's statistics do to a loss, before and after a second phase that froze them."""

from collections.abc import Callable
from copy import deepcopy

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twophase.errors import InputError
from twophase.experiments import branches, runs
from twophase.experiments.config import RunConfig
from twophase.objectives import FullBatch

AS_GATHERED, OF_THE_BATCH, ANEW = "as gathered by Adam", "of the batch", "gathered anew"


def losses(loss: FullBatch) -> dict[str, float]:
    """The loss over all examples of a network with BatchNorm, by where its statistics come from.

    As they are, in evaluation, which is what a frozen second phase minimises; those of the batch of
    all examples, in training mode; and in evaluation with the statistics of all examples at these
    weights. The network is left as it is. `InputError` for one without BatchNorm.
    """
    model = deepcopy(loss.model)
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        raise InputError("model", type(loss.model).__name__, "a network with BatchNorm")
    found = {AS_GATHERED: _mean(model.eval(), loss)}
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a mean over what is seen, not a moving one
    found[OF_THE_BATCH] = _mean(model.train(), loss)
    found[ANEW] = _mean(model.eval(), loss)
    return found


@torch.no_grad()
def _mean(model: nn.Module, of: FullBatch) -> float:
    """The loss of a model over all examples in one batch."""
    chosen: Callable[[Tensor, Tensor], Tensor] = of.loss
    return chosen(model(of.inputs).double(), of.targets).item()


def before_and_after(config: RunConfig, place: branches.Place) -> pd.DataFrame:
    """`losses` where Adam stops, and where the second phase ends, of a run that is made if need be.

    `config` freezes the statistics and has a fixed swap. `TwoPhaseError` if the run failed.
    """
    done = branches.run([config], place)
    branches.check(done)
    state = branches.state_for(config, place)
    trainer = runs.restore(config.trunk(), state, place.root, place.device)
    before = losses(trainer.objective)
    weights = torch.load(done[0].folder / "weights.pt", weights_only=True)
    trainer.model.load_state_dict(weights)
    rows = {"where Adam stops": before, "where the second phase ends": losses(trainer.objective)}
    return pd.DataFrame(rows).T.rename_axis("statistics").reset_index()


def in_words(table: pd.DataFrame) -> str:
    """A sentence on what `before_and_after` shows: what a second phase has done to each loss."""
    before, after = (row for _, row in table.iloc[:, 1:].iterrows())
    ways = {
        AS_GATHERED: "with the statistics that Adam gathered",
        OF_THE_BATCH: "with those of the batch",
        ANEW: "with those gathered anew",
    }
    said = [
        f"{way} it {'falls' if after[name] < before[name] else 'rises'} from {before[name]:.2g} to "
        f"{after[name]:.2g}"
        for name, way in ways.items()
    ]
    kept = after[ANEW] < before[ANEW]
    return (
        f"The second phase minimises the first of these losses: {'; '.join(said)}. What it has "
        f"gained {'stays' if kept else 'is lost'} when the statistics are gathered anew."
    )
