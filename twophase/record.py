"""What is kept of an epoch."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from twophase.errors import InputError
from twophase.objective import Way

if TYPE_CHECKING:
    import pandas as pd

# the phases of a history; a trial is of the second phase, which may end behind Adam
ADAM, TRIAL, SECOND = "adam", "trial", "second"


@dataclass(frozen=True)
class Record:
    """One epoch: an Adam epoch is a sweep of mini-batches, one of the second phase an iteration.

    Losses, accuracies (share in 0..1, None without classes) and the gradient norm (loss per unit
    of parameter, of the full training loss) are those at the end of the epoch. `passes` counts the
    epoch's optimisation in sweeps over the training set (forward 1, forward with backward 3), and
    `seconds` its wall time; `monitor_passes` counts what it took beyond that to fill the record,
    above all Adam's gradient norm. The gradient at a swap counts in both, since the rule needs it
    and the second phase starts from it; the one after a last epoch of the second phase starts
    nothing and counts in neither. `step_size` and `evaluations` are the line search's. `status` is
    a `twophase.second_phase.Status`; `note` says why a phase ended, or which one begins and why.
    The last four are the `twophase.objective.Way` of an epoch of Adam, None where the gradient
    before or after it was not measured.
    """

    epoch: int
    phase: str
    train_loss: float
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    grad_norm: float
    step_size: float | None
    evaluations: int
    passes: int
    monitor_passes: int
    seconds: float
    status: str
    note: str
    step_norm: float | None = None
    slope: float | None = None
    curvature: float | None = None
    alignment: float | None = None

    @property
    def way(self) -> Way | None:
        """The way of an epoch of Adam, where the gradients before and after it are known."""
        return way_of(self)


def read_record(content: dict[str, Any], number: int) -> Record:
    """The record of an epoch from a state; `InputError` where a field is not what it should be."""
    record = Record(**content)
    for part in fields(Record):
        kind: Any = part.type
        value = getattr(record, part.name)
        if not isinstance(value, kind):
            raise InputError(part.name, value, f"what is of {kind}")
    if record.epoch != number:
        raise InputError("epoch", record.epoch, str(number))
    return record


def way_of(row: Any) -> Way | None:
    """The way of a record, or of a history's row that has it; None where it is not known."""
    numbers = [getattr(row, name, None) for name in Way._fields]
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    return Way(*known) if len(known) == len(numbers) else None


def table(records: Iterable[Record]) -> "pd.DataFrame":
    """Records as a table, a row per epoch and a column per field."""
    import pandas as pd  # half a second, for those who want the table

    rows = [asdict(record) for record in records]
    return pd.DataFrame(rows, columns=[part.name for part in fields(Record)])
