"""What a training has reached within its passes, with all that its switch has cost."""

import math
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from twophase.experiments.config import RunConfig
from twophase.objective import GRADIENT_PASSES
from twophase.record import ADAM, SECOND, TRIAL, way_of
from twophase.second_phase import Status
from twophase.switching import Action, Told, course


class End(NamedTuple):
    """The weights that a training ends with when its passes are spent.

    `swap_epoch` is the epoch from whose weights the second phase first took over; None where the
    passes were spent before.
    """

    swap_epoch: int | None
    epoch: int
    loss: float
    validation_loss: float | None
    spent: int
    reading: int
    trials: int  # those that were lost, or not over yet
    returned: int  # those of second phases that were left for Adam


def end(history: pd.DataFrame, config: RunConfig) -> End:
    """What a history of the configuration has reached within its budget; see `along`."""
    *_, (_, found) = along(history, config)
    return found


def charged(history: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
    """The passes and seconds that a run has spent up to each epoch, what its switch reads included.

    Reading takes as many seconds as Adam took for so many passes. Rows are those of `along`.
    """
    adam = history[history.phase == ADAM]
    pace = adam.seconds.sum() / max(adam.passes.sum(), 1)
    reading = np.array([found.reading for _, found in along(history, config)])
    spent = history[["passes", "seconds"]].cumsum().iloc[: len(reading)]
    return spent.assign(passes=spent.passes + reading, seconds=spent.seconds + pace * reading)


def along(history: pd.DataFrame, config: RunConfig) -> Iterator[tuple[Any, End]]:
    """What a history of the configuration has reached, epoch by epoch, within its budget.

    With the record whose weights a training that ended there would have. These are the last
    weights, or those of a trial or a second phase before, or Adam's before the present one, if
    lower; or by `config.keep` those of the lowest validation loss. Passes for reading are those of
    `twophase.Trainer.spent`, by a replay of the rule and the fallback.
    """
    planned = course(config.rule, config.fallback)
    measured = history.monitor_passes[history.phase == ADAM]
    at_hand = config.monitor.exact and measured.lt(GRADIENT_PASSES).all()
    free = at_hand or not (config.monitor.exact or planned.exact)
    spent, best, swap, started = 0, None, None, False
    swap_epoch: int | None = None
    lost, trial, returned, second = 0, 0, 0, 0
    loss = attrgetter(f"{config.keep}_loss")
    for row in history.itertuples():
        seen = row.train_loss, row.grad_norm, row.passes
        told = Told(*seen, judged=loss(row), status=Status(row.status), way=way_of(row))
        won = False
        if row.phase == ADAM:
            planned.adam(told)
            lost, trial, returned, second = lost + trial, 0, returned + second, 0
        else:
            won = planned.second(told).action is Action.ADOPT
            if row.phase == TRIAL:
                trial += row.passes
            else:
                second += row.passes
            if won:  # the trial is a part of the second phase
                trial, second = 0, trial
        spent += row.passes
        reading = 0 if free or config.second is None else planned.reading
        if config.budget is not None and spent + reading > config.budget and started:
            return
        started = True
        if swap_epoch is None and swap is not None and (row.phase == SECOND or won):
            swap_epoch = swap.epoch
        eligible = row.phase != ADAM or config.keep == "validation"
        if eligible and (best is None or loss(row) < loss(best)):
            best = row
        swap = row if row.phase == ADAM else swap
        # Adam's weights before a trial or a second phase are at hand while that lasts
        aside = [one for one in (best, swap) if one is not None and loss(one) < loss(row)]
        kept = min(aside, key=loss, default=row)
        validation = float(kept.validation_loss)
        validation_loss = validation if math.isfinite(validation) else None
        costs = spent, reading, lost + trial, returned
        yield kept, End(swap_epoch, kept.epoch, kept.train_loss, validation_loss, *costs)
