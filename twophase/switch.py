"""When to leave Adam: rules that read one loss and one gradient norm per epoch."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from twophase.errors import InputError, check_integer, check_number


class Decision(NamedTuple):
    """Whether to switch to the second phase now, and why or why not."""

    switch: bool
    reason: str


class SwitchRule(Protocol):
    """What the two-phase loop asks of a rule: one update per epoch, and a copy that is new.

    >>> class LowLoss:
    ...     def update(self, loss, grad_norm):
    ...         return Decision(loss < 0.1, f"loss {loss:g}")
    ...
    ...     def fresh(self):
    ...         return LowLoss()
    >>> LowLoss().update(0.05, 1.0)
    Decision(switch=True, reason='loss 0.05')
    """

    def update(self, loss: float, grad_norm: float) -> Decision:
        """Take one epoch's loss and gradient norm; decide whether to switch now."""
        ...

    def fresh(self) -> Self:
        """The same rule with nothing seen yet."""
        ...


@dataclass
class GradientNormPeak:
    """Algorithm 1 of the paper, literally: switch when the norm falls to `factor` of its maximum.

    gn_max ← max(gn, gn_max); switch when gn <= factor · gn_max, with gn the gradient norm of the
    full training loss at the end of an epoch (loss per unit of parameter). The rule is a pure
    object: it touches neither model nor data, and replays over a recorded trace. Beware: the small
    dip of the norm just after the initialisation can satisfy the literal rule.

    Args:
        factor: in (0, 1], the paper's gn_fact; default 0.9, the paper's value. At 1 the rule
            switches after the first epoch, whose norm is its own peak.
        peak: the largest norm seen so far; 0 for a rule that has seen nothing.

    Raises:
        InputError: the factor is out of range; in `update`, a loss or norm is not finite or a norm
            below zero.

    >>> rule = GradientNormPeak()
    >>> [rule.update(loss, norm).switch for loss, norm in [(3, 1.0), (2, 2.0), (1, 1.7)]]
    [False, False, True]
    """

    factor: float = 0.9
    peak: float = 0.0

    def __post_init__(self):
        check_number("factor", self.factor, above=0, maximum=1)
        check_number("peak", self.peak, minimum=0)

    def update(self, loss: float, grad_norm: float) -> Decision:
        """Take one epoch's loss and gradient norm; decide whether to switch now.

        Raises:
            InputError: a number is not finite, or the norm is below 0.

        >>> rule = GradientNormPeak(factor=0.5)
        >>> rule.update(1.0, 4.0).switch, rule.update(0.9, 1.5).reason
        (False, 'at or below 0.5 of its peak: gradient norm 1.5, peak 4, level 2')
        """
        _check_finite("loss", loss)
        _check_finite("grad_norm", grad_norm)
        if grad_norm < 0:
            raise InputError("grad_norm", grad_norm, "a norm of at least 0")
        self.peak = max(self.peak, grad_norm)
        level = self.factor * self.peak
        seen = f"gradient norm {grad_norm:.4g}, peak {self.peak:.4g}, level {level:.4g}"
        if grad_norm <= level:
            return Decision(True, f"at or below {self.factor:g} of its peak: {seen}")
        return Decision(False, f"above {self.factor:g} of its peak: {seen}")

    def fresh(self) -> "GradientNormPeak":
        """A rule of the same factor that has seen nothing."""
        return GradientNormPeak(self.factor)


@dataclass
class FixedEpoch:
    """Switch after a given number of epochs, as the paper's Table 1 does.

    Args:
        epoch: the last epoch of the first phase, at least 1.
        seen: epochs seen so far.

    Raises:
        InputError: `epoch` is below 1.

    >>> rule = FixedEpoch(2)
    >>> [rule.update(1.0, 1.0).switch for _ in range(2)]
    [False, True]
    """

    epoch: int
    seen: int = 0

    def __post_init__(self):
        check_integer("swap_epoch", self.epoch, 1)

    def update(self, loss: float, grad_norm: float) -> Decision:
        """Count one epoch; decide whether it was the last of the first phase.

        >>> FixedEpoch(1).update(loss=0.5, grad_norm=2.0)
        Decision(switch=True, reason='epoch 1, fixed swap at 1')
        """
        self.seen += 1
        return Decision(self.seen >= self.epoch, f"epoch {self.seen}, fixed swap at {self.epoch}")

    def fresh(self) -> "FixedEpoch":
        """A rule of the same epoch that has seen nothing."""
        return FixedEpoch(self.epoch)


def _check_finite(field: str, number: float) -> None:
    if not math.isfinite(number):
        raise InputError(field, number, "a finite number")
