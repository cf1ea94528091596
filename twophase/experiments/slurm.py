"""Jobs on a Slurm cluster: submitit submits them, and what they leave tells how they ended."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
import torch
from filelock import FileLock, Timeout
from submitit.core.utils import DelayedSubmission, FailedJobError

from twophase.errors import InputError, TwoPhaseError
from twophase.experiments.executors import Job, Outcome, Slurm, attempt

# Looks at the queue are seldom where nothing happens, as a cluster's administrators wish.
_SHORTEST_PAUSE, _LONGEST_PAUSE, _GROWTH = 1.0, 20.0, 1.3
# A shared disk can show a file later than the queue shows the end of the job that wrote it.
_LOOKS_FOR_A_RESULT = 3
_MOST_ALLOTMENTS = 1000


@dataclass(frozen=True)
class _Work:
    """What a node runs."""

    job: Job
    threads: int

    def __call__(self) -> Outcome:
        # submitit ignores the signal of scancel, so that a job would live on for half a minute
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(self.threads)
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        return attempt(self.job)

    def checkpoint(self) -> DelayedSubmission:
        """What goes on when the job's time is up; submitit asks for it."""
        return DelayedSubmission(self)


class Cluster:
    """The jobs of one folder, which also holds those that an earlier process has submitted.

    `InputError` where another process submits from that folder.
    """

    def __init__(self, settings: Slurm, folder: Path):
        self._settings, self._folder = settings, folder.resolve() / "slurm"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / ".lock", timeout=0)
        self._submitted: dict[str, tuple[Job, submitit.SlurmJob]] = {}
        self._missed: Counter[str] = Counter()
        self._pause, self.running = _SHORTEST_PAUSE, 0
        self._executor = self._submitter()
        try:
            self._lock.acquire()
        except Timeout:
            allowed = "a folder from which no other process submits"
            raise InputError("out", str(folder), allowed) from None
        self._earlier = self._found()

    @property
    def busy(self) -> int:
        return len(self._submitted)

    @property
    def free(self) -> int:
        return self._settings.parallel - self.busy

    def start(self, jobs: Sequence[Job]) -> None:
        """Take over the jobs that are in the queue already, submit the others as one array."""
        new = [job for job in jobs if job not in self._earlier]
        at_work = [(job, self._earlier.pop(job)) for job in jobs if job in self._earlier]
        if new:
            at_work += zip(new, self._submit(new), strict=True)
            self._pause = _SHORTEST_PAUSE
        self._submitted |= {each.job_id: (job, each) for job, each in at_work}

    def finished(self) -> list[Outcome]:
        time.sleep(self._pause)
        states = self._queue()
        if states is None:
            states = dict.fromkeys(self._submitted, "?")
        self.running = sum(states.get(each) == "RUNNING" for each in self._submitted)
        found = [self._outcome(name, states) for name in list(self._submitted)]
        outcomes = [outcome for outcome in found if outcome is not None]
        self._pause = min(_LONGEST_PAUSE, _GROWTH * self._pause)
        if outcomes:
            self._pause = _SHORTEST_PAUSE
        return outcomes

    def close(self) -> None:
        names = [*self._submitted, *(each.job_id for each in self._earlier.values())]
        if names:
            subprocess.run(["scancel", *names], check=False)
        self._lock.release()

    def _submitter(self) -> submitit.SlurmExecutor:
        wanted = self._settings
        executor = submitit.SlurmExecutor(self._folder, max_num_timeout=_MOST_ALLOTMENTS)
        executor.update_parameters(
            job_name="twophase",
            time=wanted.minutes,
            cpus_per_task=wanted.cpus,
            mem=f"{wanted.memory}GB",
            array_parallelism=wanted.parallel,
            # newer versions do not hand it on from the job to its steps
            srun_args=[f"--cpus-per-task={wanted.cpus}"],
            **({"partition": wanted.partition} if wanted.partition else {}),
            **({"gpus_per_node": wanted.gpus} if wanted.gpus else {}),
        )
        return executor

    def _submit(self, jobs: Sequence[Job]) -> list[submitit.SlurmJob]:
        try:
            # also from within a job of the cluster
            with submitit.helpers.clean_env(), self._executor.batch():
                return [self._executor.submit(_Work(job, self._settings.cpus)) for job in jobs]
        except FailedJobError as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            raise TwoPhaseError(f"Slurm takes no job: {said[-1]}") from None

    def _found(self) -> dict[Job, submitit.SlurmJob]:
        """The jobs of this folder that are in the queue; what others have left is removed."""
        found, queued = {}, self._queue()
        if queued is None:
            raise TwoPhaseError("Slurm does not answer: squeue failed")
        for path in self._folder.glob("*_submitted.pkl"):
            name = path.name.removesuffix("_submitted.pkl")
            each = submitit.SlurmJob(self._folder, name)
            if queued.get(name, "COMPLETING") == "COMPLETING":
                self._remove(name)
                continue
            try:
                found[each.submission().function.job] = each
            # of another version of this package
            except Exception:
                each.cancel(check=False)
        return found

    def _remove(self, name: str) -> None:
        for path in self._folder.glob(f"{name}_*"):
            path.unlink(missing_ok=True)

    def _queue(self) -> dict[str, str] | None:
        """The state of each of the user's jobs; None where Slurm does not answer."""
        who = ["--user", str(os.getuid())]
        command = ["squeue", "--noheader", "--array", *who, "--format", "%i %T"]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode != 0:
            return None
        return dict(line.split(maxsplit=1) for line in said.stdout.splitlines())

    def _outcome(self, name: str, states: dict[str, str]) -> Outcome | None:
        job, each = self._submitted[name]
        lost = False
        if not each.paths.result_pickle.exists():
            self._missed[name] = 0 if name in states else self._missed[name] + 1
            lost = self._missed[name] >= _LOOKS_FOR_A_RESULT
            if not lost:
                return None
        del self._submitted[name]
        if not lost:
            try:
                outcome = each.result()
            except FailedJobError:
                pass
            else:
                self._remove(name)
                return outcome._replace(job=job)
        written = (each.stderr() or "").strip().splitlines()[-1:]
        said = f": {written[0]}" if written else ""
        return Outcome(job, error=f"Slurm job {name} ended early{said} ({each.paths.stderr})")
