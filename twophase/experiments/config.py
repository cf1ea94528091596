"""The configuration of a run: everything its results depend on, but for the device."""

import hashlib
import json
from dataclasses import dataclass, replace

import torch

from twophase.adam import AdamSettings
from twophase.automatic import DEFAULT
from twophase.errors import InputError, check_choice, check_integer
from twophase.experiments.competitors import Competitor
from twophase.loop import KEEP
from twophase.monitor import Exact, Monitor
from twophase.objective import GRADIENT_PASSES
from twophase.problems.problem import DTYPES, ImageProblem, Problem, Task
from twophase.second_phase import Minimizer
from twophase.settings import Settings
from twophase.switching import Fallback, FixedEpoch, Race, SwitchRule, planned
from twophase.trainer import Trainer

# In a comparison or a table: more would take years, and minutes to be listed.
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class RunConfig(Settings):
    """One run, made of objects that go to JSON; checked as a whole before anything is loaded.

    Args:
        problem: what is trained; see `twophase.problems.problem`.
        epochs: at least 1; of both phases, or with `passes` of Adam alone.
        adam, second, switch, fallback, keep, monitor, freeze: as for `twophase.fit`, and with its
            defaults; `**PAPER` gives the paper's. `adam` or `second` may be None, not both.
        passes: None: a training, with a history of its epochs. A number: a second phase, or a
            `Competitor` in its place, that is measured for so many passes after `epochs` epochs of
            Adam; `switch` and `fallback` are of no effect then.
        budget: of a training: the passes that end it before all `epochs` are run, see
            `twophase.fit`; None: no limit.
        seed: of initial weights, mini-batch order and subsets, at least 0.
        dtype: of the parameters, "float32" or "float64".

    `InputError` where a field is out of range, or fields do not go together.
    """

    problem: Problem = ImageProblem()
    epochs: int = 40
    adam: AdamSettings | None = AdamSettings()
    second: Minimizer | Competitor | None = DEFAULT
    switch: SwitchRule | Race = Race()
    fallback: Fallback | None = Fallback()
    keep: str = "train"
    monitor: Monitor = Exact()
    freeze: bool = False
    passes: int | None = None
    budget: int | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, 1)
        check_integer("seed", self.seed, 0)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("keep", self.keep, KEEP)
        if not isinstance(self.freeze, bool):
            raise InputError("freeze", self.freeze, "True or False")
        if self.budget is not None:
            check_integer("budget", self.budget, 1)
            if self.passes is not None:
                raise InputError("budget", self.budget, "None where passes are measured")
        self._check_kinds()
        if self.adam is None and self.second is None:
            raise InputError(
                "second", None, "a second phase, or settings of Adam: one phase at least"
            )
        if self.passes is not None:
            check_integer("passes", self.passes, GRADIENT_PASSES)
            if self.adam is None or self.second is None:
                raise InputError("passes", self.passes, "None where there is one phase only")
        elif isinstance(self.second, Competitor):
            raise InputError("passes", None, f"a number with {type(self.second).__name__}")
        elif self.swap_epoch is not None and self.swap_epoch >= self.epochs:
            allowed = f"an epoch below the number of epochs, {self.epochs}"
            raise InputError("switch", self.swap_epoch, allowed)

    @property
    def strategy(self) -> str:
        """The phases: "adam", "second" or "adam+second"."""
        phases = {"adam": self.adam, "second": self.second}
        return "+".join(name for name, settings in phases.items() if settings is not None)

    @property
    def swap_epoch(self) -> int | None:
        """The last epoch of Adam where it is given, and both phases are there; else None."""
        if self.strategy != "adam+second":
            return None
        if self.passes is not None:
            return self.epochs
        return self.switch.epoch if isinstance(self.switch, FixedEpoch) else None

    @property
    def rule(self) -> SwitchRule | Race:
        """The switch in a training of this length."""
        return planned(self.switch, self.epochs, self.budget)

    @property
    def name(self) -> str:
        """Problem and phases, for logs and folders."""
        return f"{self.problem.name} {self.strategy}"

    @property
    def shares_adam(self) -> bool:
        """Whether the run begins with epochs that a run of Adam alone has, too, up to one state."""
        leaves_once = self.passes is not None or not isinstance(self.switch, Race)
        return self.adam is not None and (self.second is None or leaves_once)

    def trunk(self) -> "RunConfig":
        """The run of Adam alone that a run shares its first epochs with.

        Runs that differ only in what comes after the swap, or in when it comes, have one trunk.
        """
        plain = RunConfig()
        plainly = {"switch": plain.switch, "fallback": plain.fallback}
        return replace(self, second=None, passes=None, budget=None, **plainly)

    def trainer(self, task: Task, device: torch.device) -> Trainer:
        """A trainer before its first epoch; of Adam alone where a second phase is measured."""
        second = self.second if isinstance(self.second, Minimizer) else None
        return Trainer(
            task.model,
            task.data,
            adam=self.adam,
            second=second if self.passes is None else None,
            switch=self.rule,
            fallback=self.fallback,
            keep=self.keep,
            monitor=self.monitor,
            freeze=self.freeze,
            loss=task.loss,
            seed=self.seed,
            device=device,
        )

    def _check_kinds(self) -> None:
        # which kinds are allowed, what they must be able to do, and how they are called
        kinds = {
            "adam": (AdamSettings | None, "", "AdamSettings or None"),
            "second": (Minimizer | Competitor | None, "", "a second phase, a Competitor or None"),
            "fallback": (Fallback | None, "", "a Fallback or None"),
            "switch": (Settings, "fresh", "a switch rule of the library"),
            "monitor": (Monitor, "", "Exact() or FromBatches()"),
            "problem": (Settings, "load", "an ImageProblem or a PhysicsProblem"),
        }
        for field, (kind, method, allowed) in kinds.items():
            value = getattr(self, field)
            if not isinstance(value, kind) or (method and not hasattr(value, method)):
                raise InputError(field, value, allowed)


def digest(settings: Settings) -> str:
    """Eight characters that differ for different settings, to name files and folders."""
    content = json.dumps(settings.to_dict(), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:8]
