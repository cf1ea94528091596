"""Rules that look at the way of an epoch: where Adam went, and the gradients before and after.

They are here to be measured beside the others. Where a source has no threshold, or one for single
steps, that is said.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import fmean

from twophase.errors import check_integer, check_number
from twophase.objective import GRADIENT_PASSES, Way
from twophase.settings import Settings, Stateful, state
from twophase.switching.rules import Decision, check_seen

UNKNOWN = Decision(False, "the gradients before and after the epoch are not known")


@dataclass(unsafe_hash=True)
class PositiveCurvature(Stateful, Settings):
    """Switch when the curvature along Adam's epochs was positive in the last `window` of them.

    s'(g₁ − g₀) > 0 for an epoch's step s and the gradients before and after it: what the paper's
    hypothesis asks for, along Adam's own path. No source has a window; 5 epochs in a row are rare
    where the sign is a matter of chance.
    """

    window: int = 5
    positive: int = state(default=0)

    price, sees_way = GRADIENT_PASSES, True

    def __post_init__(self) -> None:
        check_integer("window", self.window, 1)

    def update(self, loss: float, grad_norm: float, way: Way | None) -> Decision:
        check_seen(loss, grad_norm)
        if way is None:
            return UNKNOWN
        self.positive = self.positive + 1 if way.curvature > 0 else 0
        said = f"curvature {way.curvature:.4g} along the epoch, above 0 for {self.positive} epochs"
        return Decision(self.positive >= self.window, said)


@dataclass(unsafe_hash=True)
class ProjectedRate(Stateful, Settings):
    """SWATS: switch when the rate that gradient descent would need has settled.

    γ = s's / −s'g₀ is the rate at which a step along −g₀, projected on Adam's s, is s itself; λ is
    its mean with weights of `beta`, and the bias corrected. Switch when |λ − γ| < `threshold` after
    the first epoch. Source: Keskar and Socher (arXiv 1712.07628), algorithm 1, with its defaults,
    Adam's β₂ and 1e-9, for every step; here s is that of an epoch, which is a step in full batches.
    """

    threshold: float = 1e-9
    beta: float = 0.999
    mean: float = state(default=0.0)
    count: int = state(default=0)

    price, sees_way = GRADIENT_PASSES, True

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, above=0)
        check_number("beta", self.beta, minimum=0, below=1)

    def update(self, loss: float, grad_norm: float, way: Way | None) -> Decision:
        check_seen(loss, grad_norm)
        if way is None:
            return UNKNOWN
        if way.slope >= 0:
            return Decision(False, "the epoch went uphill at its start")
        rate = -way.step_norm / way.slope
        self.count += 1
        self.mean += (1 - self.beta) * (rate - self.mean)
        settled = self.mean / (1 - self.beta**self.count)
        said = f"projected rate {rate:.4g}, its mean {settled:.4g}"
        return Decision(self.count > 1 and abs(settled - rate) < self.threshold, said)


@dataclass(unsafe_hash=True)
class SignalToNoise(Stateful, Settings):
    """Switch when the gradients' signal-to-noise ratio has risen clearly from its lowest.

    Of two gradients in a row, ‖g₀ + g₁‖ / ‖g₁ − g₀‖, in geometric means over `window` epochs; it
    switches at `rise` times the lowest mean so far. Anagnostopoulos et al. (arXiv 2403.18494) see
    a fall, a plateau and an abrupt rise of the ratio over the mini-batches, and the fastest
    convergence after it; they have no threshold. A rise of 2 is as clear as a peak's here.
    """

    rise: float = 2.0
    window: int = 10
    before: float = state(default=0.0)  # the last gradient norm
    lowest: float = state(default=math.inf)
    logs: deque[float] = state(default_factory=deque)

    price, sees_way = GRADIENT_PASSES, True

    def __post_init__(self) -> None:
        check_number("rise", self.rise, above=1)
        check_integer("window", self.window, 1)

    def update(self, loss: float, grad_norm: float, way: Way | None) -> Decision:
        check_seen(loss, grad_norm)
        before, self.before = self.before, grad_norm
        if way is None or not before > 0:
            return UNKNOWN
        squares, product = before**2 + grad_norm**2, 2 * way.alignment * before * grad_norm
        # gradients that are alike to the last bit have as much signal as can be told
        noise = max(squares - product, squares * 1e-16)
        self.logs.append(math.log(max(squares + product, squares * 1e-16) / noise) / 2)
        if len(self.logs) > self.window:
            self.logs.popleft()
        if len(self.logs) < self.window:
            return Decision(False, f"{len(self.logs)} of {self.window} epochs")
        mean = math.exp(fmean(self.logs))
        self.lowest = min(self.lowest, mean)
        said = f"signal-to-noise ratio {mean:.4g}, lowest {self.lowest:.4g}"
        return Decision(mean >= self.rise * self.lowest, said)
