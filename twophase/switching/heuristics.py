"""Rules of other tools, which read the loss or the norm and compare it with a threshold.

They are here to be measured beside the others; their thresholds are those of their sources, or the
field's usual ones where a source has none.
"""

from collections import deque
from dataclasses import dataclass
from statistics import fmean, pvariance

from twophase.errors import check_integer, check_number
from twophase.objective import GRADIENT_PASSES
from twophase.settings import Settings, Stateful, state
from twophase.switching.rules import Decision, check_seen


@dataclass(unsafe_hash=True)
class Plateau(Stateful, Settings):
    """Switch when the loss has not fallen by a share `threshold` for more than `patience` epochs.

    The test of torch's `ReduceLROnPlateau`, with its defaults, which users of Lightning ask for to
    change the optimizer (its issue 6829). For losses above 0.
    """

    patience: int = 10
    threshold: float = 1e-4
    best: float = state(default=float("inf"))
    waited: int = state(default=0)

    price = 1

    def __post_init__(self) -> None:
        check_integer("patience", self.patience, 0)
        check_number("threshold", self.threshold, minimum=0, below=1)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        if loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        said = f"no lower loss than {self.best:.4g} for {self.waited} of {self.patience} epochs"
        return Decision(self.waited > self.patience, said)


@dataclass(unsafe_hash=True)
class LossVariance(Stateful, Settings):
    """Switch when the variance of the last `window` losses is below `threshold`, as opifex does."""

    threshold: float = 1e-4
    window: int = 10
    losses: deque[float] = state(default_factory=deque)

    price = 1

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, above=0)
        check_integer("window", self.window, 2)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        self.losses.append(loss)
        if len(self.losses) > self.window:
            self.losses.popleft()
        variance = pvariance(self.losses)
        full = len(self.losses) == self.window
        said = f"variance {variance:.4g} of the last {len(self.losses)} losses"
        return Decision(full and variance < self.threshold, said)


@dataclass(unsafe_hash=True)
class RelativeImprovement(Stateful, Settings):
    """Switch when the mean loss of a window is hardly below that of the window before, as opifex.

    Windows of `window` epochs; hardly is by a share below `threshold`. For losses above 0.
    """

    threshold: float = 1e-3
    window: int = 10
    losses: deque[float] = state(default_factory=deque)

    price = 1

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, above=0)
        check_integer("window", self.window, 1)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        self.losses.append(loss)
        if len(self.losses) > 2 * self.window:
            self.losses.popleft()
        if len(self.losses) < 2 * self.window:
            return Decision(False, f"{len(self.losses)} of {2 * self.window} losses")
        seen = list(self.losses)
        before, after = fmean(seen[: self.window]), fmean(seen[self.window :])
        gain = 1 - after / before if before > 0 else 0.0
        return Decision(gain < self.threshold, f"the mean loss fell by a share of {gain:.4g}")


@dataclass(unsafe_hash=True)
class GradientThreshold(Stateful, Settings):
    """Switch when the gradient norm is below `threshold`, as opifex does."""

    threshold: float = 1e-3

    price = GRADIENT_PASSES

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, above=0)

    def update(self, loss: float, grad_norm: float) -> Decision:
        check_seen(loss, grad_norm)
        said = f"gradient norm {grad_norm:.4g}, threshold {self.threshold:g}"
        return Decision(grad_norm < self.threshold, said)
