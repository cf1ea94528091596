"""Where many jobs run, by one interface: side by side on this machine, or on a Slurm cluster."""

import logging
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm

from twophase.errors import InputError, TwoPhaseError, check_integer
from twophase.settings import Settings, from_text

log = logging.getLogger("twophase")


class Job(NamedTuple):
    """A module's function and its arguments, which can be pickled and compared."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Outcome(NamedTuple):
    """What became of a job: its value, or why it failed in one line, and its seconds."""

    job: Job
    value: Any = None
    error: str = ""
    seconds: float = 0.0
    fatal: OSError | None = None  # files cannot be written, so that others need not try


class Slots(Protocol):
    """What jobs are given to: `free` more may start, `running` are being computed, `busy` all."""

    free: int
    running: int
    busy: int

    def start(self, jobs: Sequence[Job]) -> None: ...

    def finished(self) -> list[Outcome]:
        """Those that have ended since; waits a while where none has."""

    def close(self) -> None:
        """End what still runs."""


class Executor(Settings):
    """Base of the places where jobs run; each opens its `slots`."""

    shared = False  # whether other machines read and write the folders of runs

    def check(self) -> None:
        """Raise `InputError` where it cannot be used here."""

    def slots(self, folder: Path) -> Slots:
        raise NotImplementedError

    def run(
        self,
        jobs: Iterable[Job],
        folder: Path,
        then: Callable[[Outcome], Iterable[Job]] = lambda outcome: (),
        on_running: Callable[[int], None] = lambda running: None,
    ) -> Iterator[Outcome]:
        """The outcomes of jobs in the order in which they end; a job that fails ends no other.

        Where this process ends, by whatever signal, or the iterator is closed, the processes of
        `Local` end at once; jobs of `Slurm` are cancelled if there is time to, else the same call
        takes them over.

        Args:
            jobs: to start with, the first of them first.
            folder: what a cluster's nodes share, for its files.
            then: the jobs that an outcome makes possible; they are next.
            on_running: told how many jobs are being computed.

        Raises:
            OSError: a job could not write its files; the others are ended.
            TwoPhaseError: the executor is not there or refuses a job.
        """
        waiting = deque(jobs)
        if not waiting:
            return
        with closing(self.slots(folder)) as slots:
            while waiting or slots.busy:
                slots.start([waiting.popleft() for _ in range(min(slots.free, len(waiting)))])
                on_running(slots.running)
                outcomes = slots.finished()
                on_running(slots.running)
                for outcome in outcomes:
                    if outcome.fatal is not None:
                        raise outcome.fatal
                    waiting.extendleft(reversed(list(then(outcome))))
                    yield outcome


@dataclass(frozen=True)
class Local(Executor):
    """Processes on this machine, each of which runs one job at a time.

    Args:
        processes: at least 1; 1: jobs run in this process, with the threads that it has. None: one
            for each GPU, or without a GPU for each `threads` cores.
        threads: of each of several processes, at least 1.

    Several GPUs are dealt out to the processes in turn, which see no other.
    """

    processes: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        check_integer("threads", self.threads, 1)
        if self.processes is not None:
            check_integer("processes", self.processes, 1)

    def environments(self) -> list[dict[str, str]]:
        """For each process what its environment has beside that of this one."""
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        groups = max(1, _cores() // self.threads)
        count = self.processes or gpus or groups
        shared = {"OMP_NUM_THREADS": str(self.threads)}
        if gpus < 2:
            return [shared] * count
        names = visible.split(",")
        return [shared | {"CUDA_VISIBLE_DEVICES": names[i % gpus]} for i in range(count)]

    def slots(self, folder: Path) -> Slots:
        environments = self.environments()
        return _Here() if len(environments) == 1 else _Processes(environments, self.threads)


@dataclass(frozen=True)
class Slurm(Executor):
    """Jobs on a Slurm cluster, through submitit, in arrays; of the extra `slurm`.

    A job whose time is up goes on in a new one from its last checkpoint. Accounts and the like are
    taken from Slurm's own variables, such as SBATCH_ACCOUNT.

    Args:
        partition: "": the cluster's default.
        minutes, cpus, memory, gpus: of each job, the memory in GB.
        parallel: at most so many jobs in the queue at a time, at least 1.
    """

    partition: str = ""
    minutes: int = 60
    cpus: int = 1
    memory: int = 4
    gpus: int = 0
    parallel: int = 100

    shared = True

    def __post_init__(self) -> None:
        if not isinstance(self.partition, str):
            raise InputError("partition", self.partition, "a text")
        check_integer("gpus", self.gpus, 0)
        for name in ("minutes", "cpus", "memory", "parallel"):
            check_integer(name, getattr(self, name), 1)

    def check(self) -> None:
        if find_spec("submitit") is None:
            allowed = 'local, or install the package submitit: python -m pip install -e ".[slurm]"'
            raise InputError("executor", str(self), allowed)
        if shutil.which("sbatch") is None:
            raise InputError("executor", str(self), "local: there is no Slurm here")

    def slots(self, folder: Path) -> Slots:
        self.check()
        from twophase.experiments.slurm import Cluster

        return Cluster(self, folder)


# one after the other, as if there were no executor
ALONE = Local(1)


def named(text: str | Executor) -> Executor:
    """The executor of a text: local, slurm, or such as "Slurm(partition='debug', minutes=10)"."""
    known: dict[Any, Executor] = {"local": Local(), "slurm": Slurm()}
    allowed = "local, slurm, or such as Local(processes=4)"
    try:
        found = known.get(text) or (from_text(text, "executor") if isinstance(text, str) else text)
    except InputError as error:
        # what is no text of an object, not a field of one
        raise (InputError("executor", text, allowed) if error.value == text else error) from None
    if not isinstance(found, Executor):
        raise InputError("executor", text, allowed)
    return found


def attempt(job: Job) -> Outcome:
    """Run a job here and now; what it raises is its outcome."""
    began = time.monotonic()
    value, error, fatal = None, "", None
    try:
        value = job.function(*job.arguments)
    except TwoPhaseError as failed:
        error = str(failed)
    except OSError as failed:
        # a plain one, that goes to another process
        fatal = OSError(failed.errno or 0, failed.strerror or str(failed), failed.filename)
    except Exception as failed:
        log.warning("a job failed", exc_info=True)
        error = f"{type(failed).__name__}: {failed}".partition("\n")[0]
    return Outcome(job, value, error, time.monotonic() - began, fatal)


class _AtOnce:
    """So many slots, each of which computes at once what it is given, and holds it in `_jobs`."""

    def __init__(self, count: int):
        self._count = count
        self._jobs: Any

    @property
    def busy(self) -> int:
        return len(self._jobs)

    running = busy

    @property
    def free(self) -> int:
        return self._count - self.busy


class _Here(_AtOnce):
    """One slot, in this process."""

    def __init__(self) -> None:
        super().__init__(1)
        self._jobs: list[Job] = []

    def start(self, jobs: Sequence[Job]) -> None:
        self._jobs += jobs

    def finished(self) -> list[Outcome]:
        return [attempt(self._jobs.pop())]

    def close(self) -> None:
        pass


class _Processes(_AtOnce):
    """A process for each of some environments; one that dies costs its own job only.

    They hold the reading end of a pipe whose other end is here alone, and end when that is closed:
    by `close`, or by the system where this process is gone.
    """

    def __init__(self, environments: Sequence[dict[str, str]], threads: int):
        super().__init__(len(environments))
        self._environments, self._threads = environments, threads
        self._ended, self._alive = Pipe(duplex=False)
        # a pool of one process each, as a pool is lost with any of its processes
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._jobs: dict[Future, tuple[int, Job]] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        taken = {number for number, _ in self._jobs.values()}
        idle = [number for number in range(len(self._environments)) if number not in taken]
        for number, job in zip(idle, jobs, strict=False):
            with _uninterrupted():
                self._jobs[self._pool(number).submit(attempt, job)] = number, job

    def finished(self) -> list[Outcome]:
        done: set[Future] = set()
        while not done:
            # a second at most: the system may give Ctrl-C to a thread that does not wake this one
            done = wait(self._jobs, 1, FIRST_COMPLETED).done
        return [self._outcome(each) for each in done]

    def close(self) -> None:
        # also where all are idle: they would take seconds to end by themselves
        self._alive.close()
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        self._ended.close()

    def _pool(self, number: int) -> ProcessPoolExecutor:
        if number not in self._pools:
            given = self._ended, self._environments[number], self._threads
            self._pools[number] = ProcessPoolExecutor(1, get_context("spawn"), _enter, given)
        return self._pools[number]

    def _outcome(self, future: Future) -> Outcome:
        number, job = self._jobs.pop(future)
        try:
            return future.result()
        except BrokenProcessPool:
            self._pools.pop(number).shutdown()
            return Outcome(job, error="its process was killed, as the system does without memory")


def _enter(ended: Connection, environment: dict[str, str], threads: int) -> None:
    """What a process does first."""
    os.environ.update(environment)
    torch.set_num_threads(threads)
    # a lock between processes, tqdm's own choice, would be left over
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with, args=(ended,), daemon=True).start()


def _end_with(ended: Connection) -> None:
    ended.poll(None)
    os._exit(1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What is started within does not see Ctrl-C: the process that sees it ends the others."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
