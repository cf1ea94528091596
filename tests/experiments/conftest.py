"""What tests of executors and of sweeps share: a real Slurm, where there is one."""

import shutil
import subprocess
import time

import pytest

from twophase.experiments.executors import Slurm


def slurm_missing():
    """Why nothing can be run on Slurm, or None."""
    if shutil.which("sinfo") is None:
        return "there is no Slurm here"
    pytest.importorskip("submitit")
    command = ["sinfo", "--noheader", "--states=idle,mixed,allocated"]
    said = subprocess.run(command, capture_output=True, text=True)
    return None if said.returncode == 0 and said.stdout else "Slurm has no node that works"


@pytest.fixture(scope="session")
def slurm():
    """Jobs of one thread on the Slurm that is here; without it the test is skipped."""
    if (reason := slurm_missing()) is not None:
        pytest.skip(reason)
    return Slurm(minutes=5, memory=1)


@pytest.fixture(scope="session")
def queued():
    """Tells the state, such as RUNNING, of each job in Slurm's queue."""

    def states():
        command = ["squeue", "--noheader", "--array", "--format", "%i %T"]
        said = subprocess.run(command, capture_output=True, text=True)
        return dict(line.split() for line in said.stdout.splitlines())

    return states


@pytest.fixture(scope="session")
def wait_until():
    """Waits until a condition holds."""

    def wait(condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.05)

    return wait
