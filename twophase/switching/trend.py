"""Adam's trend: what it would reach with as many passes as a second phase takes."""

import math
from typing import NamedTuple

import numpy as np

# A trend is that of at least so many epochs, where there are as many.
SHORTEST_TREND = 3
# Adam never stops for good: a second phase that gains less than 5 % while the passes grow by a
# factor e must let it try.
LEAST_SLOPE = 0.05
# What Adam may promise on the logarithmic scale and still be a number on the loss's own.
LARGEST = math.log(np.finfo(float).max)


class Seen(NamedTuple):
    """A loss and the passes that its phase has spent on the way there.

    `shift` is how far the loss function's own changes had moved the second phase by then.
    """

    passes: int
    loss: float
    shift: float = 0.0


class Trend(NamedTuple):
    """Adam's ln(loss), or loss where one is not positive, as a straight line over ln(passes).

    It ends at `level` after `passes` passes and falls by `slope` per unit of ln(passes).
    """

    logarithmic: bool
    passes: int
    level: float
    slope: float

    @classmethod
    def of(cls, seen: list[Seen]) -> "Trend":
        """The least-squares line through the latter half of Adam's epochs, no flatter than 5 %."""
        logarithmic = all(one.loss > 0 for one in seen)
        least = LEAST_SLOPE if logarithmic else 0.0
        flat = cls(logarithmic, seen[-1].passes, 0.0, least)
        half = seen[-max(SHORTEST_TREND, math.ceil(len(seen) / 2)) :]
        levels = [flat.scale(one.loss) for one in half]
        if len(half) == 1:
            return flat._replace(level=levels[0])
        times = np.log([one.passes for one in half])
        rise, level = np.polyfit(times - times[-1], levels, 1)
        return flat._replace(level=float(level), slope=max(least, -float(rise)))

    def scale(self, loss: float) -> float:
        """The loss on the trend's scale."""
        return math.log(max(loss, np.finfo(float).tiny)) if self.logarithmic else loss

    def loss(self, level: float) -> float:
        """The loss at a level of the trend's scale."""
        return math.exp(min(level, LARGEST)) if self.logarithmic else level

    def gain(self, more: int) -> float:
        """By how much Adam would be lower with so many more passes, on the trend's scale."""
        return self.slope * math.log1p(more / self.passes)

    def promise(self, more: int) -> float:
        """What Adam would reach with so many more passes, on the trend's scale."""
        return self.level - self.gain(more)
