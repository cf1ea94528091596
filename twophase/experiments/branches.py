"""Many runs that share Adam's epochs: each trajectory of Adam is trained once, others branch off.

Comparisons are then paired, run by run, and what Adam did before a swap costs nothing again. Every
run has a folder named by its configuration, so that many can be made in any number of sittings.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock

from twophase.errors import TwoPhaseError
from twophase.experiments import runs
from twophase.experiments.config import RunConfig, digest
from twophase.experiments.executors import ALONE, Executor, Job, Outcome
from twophase.record import way_of
from twophase.switching.rules import FixedEpoch, Seen, SwitchRule, first_switch

log = logging.getLogger("twophase")

_END = "end"


def digest_name(config: RunConfig) -> str:
    """A run's folder: named by what it is and by its digest."""
    return f"{config.name.replace(' ', '-')}-{digest(config)}"


@dataclass(frozen=True)
class Place:
    """Where runs are kept and made.

    Args:
        out: the folder of the runs' folders; made if it is not there.
        root: the data folder; None: see `twophase.problems.images.load`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        name: a run's folder below `out`; different for different configurations.
        kept: epochs of Adam alone whose states stay, beside those where other runs leave.
        beyond: whether runs may go on beyond their budgets, so that all share Adam's epochs; what
            they have reached within them is then for `reached` to tell.
    """

    out: Path
    root: Path | None = None
    device: str | torch.device = "auto"
    name: Callable[[RunConfig], str] = digest_name
    kept: tuple[int, ...] = ()
    beyond: bool = True

    def folder(self, config: RunConfig) -> Path:
        return self.out / self.name(config)

    def standing_for(self, config: RunConfig) -> RunConfig:
        """The run whose folder holds a configuration's results, once its trunk is finished.

        Where digests name the folders, runs that take the same course are one.
        """
        if not self.shares_adam(config) or self.name is not digest_name:
            alone = config.second is None
            return replace(config.trunk(), budget=config.budget) if alone else config
        return settled(config, trace(runs.read(self.folder(config.trunk()))[0]))

    def shares_adam(self, config: RunConfig) -> bool:
        """Whether a run begins with epochs of a trunk here."""
        return config.shares_adam and (self.beyond or config.budget is None)

    def run(self, config: RunConfig, **branches: Any) -> dict[str, Any]:
        """`twophase.experiments.runs.run` here; it waits for another process that does the same."""
        folder = self.folder(config)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            return runs.run(config, folder, self.root, self.device, **branches)


class RunsFailed(TwoPhaseError):
    """Some of many runs have failed; the others are there."""

    exit_code = 1


class Done(NamedTuple):
    """A configuration that was run: its folder, which runs of the same course share.

    `error` is the reason why the run failed, else empty.
    """

    config: RunConfig
    folder: Path
    error: str = ""

    @property
    def label(self) -> str:
        """Problem, phases and seed, for logs."""
        return f"{self.config.name} seed {self.config.seed}"


def run(
    configs: Sequence[RunConfig],
    place: Place,
    executor: Executor = ALONE,
    on_done: Callable[[Done], None] | None = None,
) -> list[Done]:
    """Run what is not finished of many configurations, each trajectory of Adam once.

    A run that fails is named in the log and in its `Done`, of which each configuration has one, in
    their order; the others still run. But where a file cannot be written (`OSError`), the runs
    after it are not run.

    Args:
        configs: a configuration that comes twice is run once.
        executor: where they run; with several at a time seconds are those of a busy machine.
        on_done: called after each, in the order in which they are done.
    """
    total, found = len(dict.fromkeys(configs)), {}
    for number, done in enumerate(results(configs, place, executor), 1):
        failed = f" failed: {done.error}" if done.error else ""
        log.warning("[%d/%d] %s%s", number, total, done.label, failed)
        found[done.config] = done
        if on_done is not None:
            on_done(done)
    return [found[config] for config in configs]


def results(
    configs: Iterable[RunConfig],
    place: Place,
    executor: Executor = ALONE,
    on_running: Callable[[int], None] = lambda running: None,
) -> Iterator[Done]:
    """Run as `run` does; yield each configuration once, when it is done.

    `on_running` is told how many jobs are being computed.
    """
    work = _Work(configs, place)
    jobs = work.first()
    yield from work.told()
    for _ in executor.run(jobs, place.out, work.then, on_running):
        yield from work.told()


def check(done: Iterable[Done]) -> None:
    """Raise `RunsFailed` if a run has, naming the first."""
    done = list(done)
    failed = [one for one in done if one.error]
    if failed:
        first = f"{failed[0].label}: {failed[0].error}"
        raise RunsFailed(f"{len(failed)} of {len(done)} runs failed; first {first}")


def settled(config: RunConfig, trace: Iterable[Seen]) -> RunConfig:
    """The run that takes the same course as `config`, named by the epoch of its swap.

    Without the way back to Adam a rule does nothing but choose that epoch: rules that choose the
    same one are one run, and where none is chosen before the end the run is Adam's own. `config`
    begins with Adam; `trace` is of its trunk, see the function of that name.
    """
    if config.second is None:
        return config.trunk()
    if config.fallback is not None or config.passes is not None:
        return config
    epoch = first_switch(config.switch, trace)
    if epoch is None or epoch >= config.epochs:
        return config.trunk()
    return replace(config, switch=FixedEpoch(epoch))


def run_trunk(trunk: RunConfig, branches: Iterable[RunConfig], place: Place) -> None:
    """Train a run of Adam alone and keep its state where other runs leave it, and at its end.

    The branches are configurations of both phases, whether they will be run or not. A second
    process that wants the same trunk waits for the first.
    """
    rules = [config.switch for config in branches if config.passes is None]
    rules += [FixedEpoch(epoch) for epoch in place.kept if epoch <= trunk.epochs]
    leaving = {_branch_name(rule): rule for rule in rules}
    place.run(trunk, branches=leaving | {_END: FixedEpoch(trunk.epochs)})


def state_for(config: RunConfig, place: Place) -> Path:
    """The state of a finished trunk from which a run goes on: at its swap, or at the end.

    Where the trunk was finished before anybody asked for that swap, its first epochs are trained
    once more, into a folder beside it, for all the runs that will ask. `InputError` for a trunk
    that is not finished.
    """
    trunk = config.trunk()
    folder = place.folder(trunk)
    epoch = None
    if config.passes is None:
        epoch = first_switch(config.switch, trace(runs.read(folder)[0]))
    kept = runs.branch_file(folder, _END if epoch is None else _branch_name(config.switch))
    if not kept.exists():
        first = replace(trunk, epochs=epoch or trunk.epochs)
        beside = folder.with_name(f"{folder.name}-first-{first.epochs}")
        there = str(beside.relative_to(place.out))
        run_trunk(first, [], replace(place, name=lambda _: there, kept=()))
        kept = runs.branch_file(beside, _END)
    return kept


def trace(history: Any) -> list[Seen]:
    """The epochs' (training loss, gradient norm, way), as switch rules see them."""
    return [(row.train_loss, row.grad_norm, way_of(row)) for row in history.itertuples()]


class _Work:
    """The jobs of some configurations: trunks first, each one's members as soon as it is there."""

    def __init__(self, configs: Iterable[RunConfig], place: Place):
        self._place = place
        self._families: dict[RunConfig, list[RunConfig]] = {}
        for config in dict.fromkeys(configs):
            trunk = config.trunk() if place.shares_adam(config) else config
            self._families.setdefault(trunk, []).append(config)
        # for each run under way those whose course it is
        self._standing: dict[RunConfig, list[RunConfig]] = {}
        self._done: list[Done] = []

    def told(self) -> list[Done]:
        """What is done and was not told before."""
        done, self._done = self._done, []
        return done

    def first(self) -> list[Job]:
        """The jobs that wait for no other."""
        jobs = []
        for trunk, members in self._families.items():
            if not self._place.shares_adam(trunk) or self._is_there(trunk):
                jobs += self._members(trunk)
            else:
                jobs.append(Job(_run_first, (trunk, tuple(members), self._place)))
        return jobs

    def then(self, outcome: Outcome) -> list[Job]:
        """The jobs that waited for an outcome."""
        config = outcome.job.arguments[0]
        if outcome.job.function is _run_first:
            if not outcome.error:
                return self._members(config)
            self._tell(self._families[config], outcome.error)
        else:
            folder = self._place.folder(config)
            self._tell(self._standing.pop(config), outcome.error, folder)
        return []

    def _members(self, trunk: RunConfig) -> list[Job]:
        """A job for each course that is still to be run from a trunk."""
        jobs = []
        for member in self._families[trunk]:
            try:
                same = self._place.standing_for(member)
                if same.second is same.budget is None or self._is_there(same):
                    self._tell([member], "", self._place.folder(same))
                    continue
            except TwoPhaseError as error:
                self._tell([member], str(error))
                continue
            if same not in self._standing:
                jobs.append(Job(_run_member, (same, member, self._place)))
            self._standing.setdefault(same, []).append(member)
        return jobs

    def _is_there(self, config: RunConfig) -> bool:
        # a file may hold something else by now
        if getattr(config.problem, "is_of_a_file", False):
            return False
        try:
            return runs.finished(config, self._place.folder(config)) is not None
        # its job will say why
        except TwoPhaseError:
            return False

    def _tell(self, configs: Iterable[RunConfig], error: str, folder: Path | None = None) -> None:
        self._done += [Done(each, folder or self._place.folder(each), error) for each in configs]


def _run_first(trunk: RunConfig, members: Sequence[RunConfig], place: Place) -> None:
    run_trunk(trunk, [member for member in members if member.second is not None], place)


def _run_member(same: RunConfig, config: RunConfig, place: Place) -> None:
    """A run that stands for a configuration, whose trunk is finished."""
    if place.shares_adam(same):
        place.run(same, branch_from=state_for(config, place))
    else:
        place.run(same)


def _branch_name(rule: SwitchRule) -> str:
    """By the rule alone: runs that differ in the second phase only leave with one state."""
    if isinstance(rule, FixedEpoch):
        return f"epoch-{rule.epoch}"
    return f"{type(rule).__name__}-{digest(rule)}"
