"""The configuration of a run, checked as a whole before anything starts."""

import hashlib
import json
from dataclasses import asdict, dataclass

from twophase.adam import AdamSettings
from twophase.cg import CGSettings
from twophase.directions import BETA_RULES
from twophase.errors import InputError, check_choice, check_integer
from twophase.fallback import Fallback
from twophase.line_search.golden_section import resolve
from twophase.problems.images import DATASETS
from twophase.problems.networks import MODELS
from twophase.switch import FixedEpoch, SwitchRule, switch_rule
from twophase.training import STRATEGIES


@dataclass(frozen=True)
class RunConfig:
    """One training run: everything its history depends on, but for the device.

    Args:
        dataset, model: names in `images.DATASETS` and `networks.MODELS`.
        strategy: "adam", "cg" or "adam+cg".
        epochs: at least 1.
        seed: of initial weights, mini-batch order and training subset, at least 0.
        swap_epoch: Adam epochs before CG, below `epochs`; None: `rule` with `factor` decides.
        rule: a name in `twophase.switch.SWITCH_RULES`; default the robust one, "norm-peak" is the
            paper's Algorithm 1.
        factor: of the peak gradient norm, in (0, 1]; the paper's gn_fact 0.9.
        fallback: whether CG may hand back to Adam: "on", "off", or "auto", the default of
            `twophase.fit`: on with the two robust rules.
        batch_size, learning_rate: of Adam; see `AdamSettings`.
        beta, line_search, tolerance, restart_every: of CG; see `CGSettings` and
            `LINE_SEARCHES`. Defaults are the paper's; beta "none" with
            line_search "wolfe" is the default of `twophase.fit`, self-scaled BFGS; its
            checkpoints, two files and one written after each epoch, hold its steps, up to 256 MiB.
            A tolerance of None is the line search's own.
        train_examples, validation_examples: sizes of random subsets; None: all.

    Raises:
        InputError: a field is out of range; nothing has been loaded yet.

    >>> RunConfig(epochs=0)
    Traceback (most recent call last):
    twophase.errors.InputError: epochs: 0 is not allowed; use a whole number of at least 1
    """

    dataset: str = "digits"
    model: str = "vit-nomlp-wkewq-wvwo1"
    strategy: str = "adam+cg"
    epochs: int = 40
    seed: int = 0
    swap_epoch: int | None = None
    rule: str = "smoothed-norm-peak"
    factor: float = 0.9
    fallback: str = "auto"
    batch_size: int = 512
    learning_rate: float = 1e-3
    beta: str = "PR+"
    line_search: str = "golden"
    tolerance: float | None = None
    restart_every: int | None = None
    train_examples: int | None = None
    validation_examples: int | None = None

    def __post_init__(self):
        check_choice("dataset", self.dataset, DATASETS)
        check_choice("model", self.model, MODELS)
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("fallback", self.fallback, ("auto", "on", "off"))
        check_integer("epochs", self.epochs, 1)
        check_integer("seed", self.seed, 0)
        for field in ("train_examples", "validation_examples"):
            if getattr(self, field) is not None:
                check_integer(field, getattr(self, field), 1)
        check_choice("beta", self.beta, (*BETA_RULES, "none"))
        self._check_swap()
        self.adam()
        self.cg()

    def adam(self) -> AdamSettings:
        """The settings of the Adam phase.

        >>> RunConfig(learning_rate=0.01).adam().learning_rate
        0.01
        """
        return AdamSettings(self.learning_rate, self.batch_size)

    def cg(self) -> CGSettings:
        """The settings of the CG phase.

        >>> RunConfig(tolerance=1e-3).cg().line_search
        GoldenSection(tolerance=0.001, max_evaluations=100)
        >>> RunConfig(beta="none", line_search="wolfe").cg().rule == CGSettings().rule
        True
        """
        beta = None if self.beta == "none" else self.beta
        return CGSettings(beta, resolve(self.line_search, self.tolerance), self.restart_every)

    def switch(self) -> SwitchRule | None:
        """The rule that ends the first phase; None where there is only one phase.

        >>> RunConfig(swap_epoch=5).switch()
        FixedEpoch(epoch=5, seen=0)
        """
        if len(STRATEGIES[self.strategy]) == 1:
            return None
        if self.swap_epoch is not None:
            return FixedEpoch(self.swap_epoch)
        return switch_rule(self.rule, self.factor)

    def safe_way_back(self) -> Fallback | str | None:
        """The `fallback` that `Trainer` takes.

        >>> RunConfig(fallback="on").safe_way_back()
        Fallback(trial=5, max_switches=3, growth=2.0)
        """
        return {"on": Fallback(), "off": None, "auto": "auto"}[self.fallback]

    def to_dict(self) -> dict:
        """All fields, as config.json holds them.

        >>> RunConfig(epochs=3).to_dict()["epochs"]
        3
        """
        return asdict(self)

    def digest(self) -> str:
        """Eight characters that differ for different configurations, to name folders.

        >>> RunConfig(seed=1).digest() == RunConfig(seed=2).digest()
        False
        """
        content = json.dumps(self.to_dict(), sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:8]

    def _check_swap(self) -> None:
        switch_rule(self.rule, self.factor)
        if self.swap_epoch is None:
            return
        if len(STRATEGIES[self.strategy]) == 1:
            raise InputError(
                "swap_epoch", self.swap_epoch, f"none with strategy {self.strategy}: one phase only"
            )
        if check_integer("swap_epoch", self.swap_epoch, 1) >= self.epochs:
            raise InputError(
                "swap_epoch", self.swap_epoch, f"an epoch below the number of epochs, {self.epochs}"
            )
