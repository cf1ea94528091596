"""The methods of a fair comparison, and the settings that tuning may choose for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from twophase.automatic import DEFAULT
from twophase.directions import ConjugateDirection
from twophase.errors import InputError
from twophase.experiments.competitors import (
    SGD,
    AdamCosine,
    AdamGoesOn,
    AdamWFromStart,
    Competitor,
    ScipyCG,
    TorchLBFGS,
    TorchminCG,
)
from twophase.experiments.config import RunConfig
from twophase.line_search import GoldenSection, ParabolaFirst, StrongWolfe
from twophase.objective import GRADIENT_PASSES
from twophase.preconditioner import AdamMoments, Identity
from twophase.second_phase import SELF_SCALED_BFGS, Descent, Minimizer
from twophase.switching import Fallback, Race

Candidate = Minimizer | Competitor
# No ladder is climbed further than so many rungs from what is shipped.
FURTHEST = 8


@dataclass(frozen=True)
class Candidates:
    """A method's settings by number, 0 as shipped; tuning tries all of them.

    `InputError` for a number that there is not.
    """

    settings: tuple[Candidate, ...]

    def __getitem__(self, number: int) -> Candidate:
        if not 0 <= number < len(self.settings):
            allowed = f"one of {', '.join(map(str, range(len(self.settings))))}"
            raise InputError("candidate", number, allowed)
        return self.settings[number]

    @property
    def first(self) -> Sequence[int]:
        """The numbers that tuning begins with."""
        return range(len(self.settings))

    def beside(self, number: int) -> list[int]:
        """The numbers that must be worse before tuning may end with this one."""
        return []


@dataclass(frozen=True)
class Ladder:
    """Settings of one or more kinds along a scale, as far up and down as tuning has to look.

    A kind makes settings of a factor; rung r has the factor step^r, from `lowest` to `highest`.
    Rung r of kind k has the number len(kinds) · place + k, where the rungs 0, −1, 1, −2, 2, … have
    the places 0, 1, 2, 3, 4, …. Rung 0 of the first kind is as shipped.
    """

    kinds: tuple[Callable[[float], Candidate], ...]
    step: float
    lowest: int = -FURTHEST
    highest: int = FURTHEST

    def __getitem__(self, number: int) -> Candidate:
        kind, rung = self._place(number)
        if number < 0 or not self.lowest <= rung <= self.highest:
            allowed = f"a rung from {self.lowest} to {self.highest}"
            raise InputError("candidate", number, allowed)
        return self.kinds[kind](self.step**rung)

    @property
    def first(self) -> Sequence[int]:
        """The numbers of the three middle rungs of each kind."""
        return range(3 * len(self.kinds))

    def beside(self, number: int) -> list[int]:
        """The numbers of the rungs below and above."""
        kind, rung = self._place(number)
        rungs = [one for one in (rung - 1, rung + 1) if self.lowest <= one <= self.highest]
        return [self._number(kind, one) for one in rungs]

    def _place(self, number: int) -> tuple[int, int]:
        place, kind = divmod(number, len(self.kinds))
        return kind, (place + 1) // 2 * (-1 if place % 2 else 1)

    def _number(self, kind: int, rung: int) -> int:
        return len(self.kinds) * (2 * abs(rung) - (rung < 0)) + kind


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Args:
        label: for figures and tables.
        candidates: for tuning to choose from.
        times: its budget, in multiples of the others'.
        switch: when it leaves Adam by itself, on the way from the first epoch on, where it does not
            begin at the end of the prefix.
    """

    label: str
    candidates: Candidates | Ladder
    times: int = 1
    switch: Race | None = None

    @property
    def installed(self) -> bool:
        """Whether the packages that it needs are here."""
        package = getattr(self.candidates[0], "package", None)
        return package is None or find_spec(package) is not None

    @property
    def tuned(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.candidates.first) > 1

    @property
    def starts_over(self) -> bool:
        """Whether its curve does not begin with the loss at the end of the prefix."""
        return self.switch is not None or getattr(self.candidates[0], "starts_over", False)

    def config(self, prefix: RunConfig, candidate: int, passes: int) -> RunConfig:
        """The method after a prefix of Adam, with so many passes from there."""
        second = self.candidates[candidate]
        if self.switch is None:
            return replace(prefix, second=second, passes=self.times * passes)
        budget = GRADIENT_PASSES * prefix.epochs + self.times * passes
        raced = {"switch": self.switch, "fallback": Fallback(), "budget": budget}
        return replace(prefix, second=second, epochs=budget // GRADIENT_PASSES, **raced)


def _fixed(*settings: Candidate) -> Candidates:
    return Candidates(settings)


def _golden(factor: float) -> Descent:
    return Descent(ConjugateDirection("PR+"), GoldenSection(_rounded(1e-2 / factor)))


def _lbfgs(factor: float) -> TorchLBFGS:
    return TorchLBFGS(round(_rounded(100 * factor)))


def _rounded(value: float) -> float:
    """A power of ten, or three times one."""
    return float(f"{value:.1g}")


def _from_start(weight_decay: float, cosine: bool) -> Callable[[float], AdamWFromStart]:
    return lambda factor: AdamWFromStart(_rounded(1e-3 * factor), cosine, weight_decay)


def _scaled(kind: Callable[[float], Candidate]) -> Callable[[float], Candidate]:
    return lambda factor: kind(_rounded(factor))


# by about √10
_HALF_A_DECADE = 10**0.5
METHODS: dict[str, Method] = {
    "adam": Method("Adam, constant rate", _fixed(AdamGoesOn())),
    "adam-twice": Method("Adam, twice the passes", _fixed(AdamGoesOn()), times=2),
    "adam-tuned": Method("Adam, tuned rate", Ladder((_scaled(AdamGoesOn),), _HALF_A_DECADE)),
    "adam-cosine": Method("Adam, cosine decay", Ladder((_scaled(AdamCosine),), _HALF_A_DECADE)),
    "adam-from-start": Method(
        "Adam from the start, tuned",
        Ladder((_from_start(0.0, True), _from_start(0.0, False)), _HALF_A_DECADE),
    ),
    "adamw-from-start": Method(
        "AdamW from the start, tuned",
        Ladder((_from_start(1e-2, True), _from_start(1e-2, False)), _HALF_A_DECADE),
    ),
    "sgd": Method("SGD with momentum", Ladder((_scaled(SGD),), _HALF_A_DECADE)),
    # tolerances from 0.1 to 1e-8; the paper names none
    "golden": Method("CG, golden section (paper)", Ladder((_golden,), 10.0, -1, 6)),
    "cg": Method(
        "CG, parabola, preconditioned",
        _fixed(
            *(
                Descent(ConjugateDirection(beta), ParabolaFirst(), AdamMoments(min_batches=1))
                for beta in ("PR+", "HS-DY", "HZ")
            )
        ),
    ),
    "default": Method("default second phase", _fixed(DEFAULT)),
    "race": Method("default, automatic switch", _fixed(DEFAULT), switch=Race()),
    "default-tuned": Method(
        "default second phase, tuned",
        _fixed(
            SELF_SCALED_BFGS,
            replace(SELF_SCALED_BFGS, line_search=StrongWolfe(c2=0.5)),
            replace(SELF_SCALED_BFGS, preconditioner=Identity()),
        ),
    ),
    # the most steps that it may remember: 30,000 are more than are made
    "torch-lbfgs": Method("torch L-BFGS", Ladder((_lbfgs,), _HALF_A_DECADE, -4, 4)),
    "scipy-cg": Method("scipy CG", _fixed(*map(ScipyCG, (0.4, 0.1, 0.9)))),
    "torchmin-cg": Method("pytorch-minimize CG", _fixed(TorchminCG())),
}
