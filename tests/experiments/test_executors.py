"""Executors: outcomes as they come, a failure costs one job, and nobody is left over."""

import math
import operator
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twophase.errors import InputError, TwoPhaseError, check_choice
from twophase.experiments import executors
from twophase.experiments.executors import ALONE, Job, Local, Slurm, named
from twophase.settings import from_text

BOTH = pytest.mark.parametrize("executor", [ALONE, Local(2)], ids=["here", "processes"])


def values(executor, jobs, folder, **more):
    return {outcome.job: outcome.value for outcome in executor.run(jobs, folder, **more)}


@BOTH
@pytest.mark.slow
def test_each_job_has_its_outcome(executor, tmp_path):
    jobs = [Job(math.factorial, (n,)) for n in range(5)]
    assert values(executor, jobs, tmp_path) == {
        job: math.factorial(job.arguments[0]) for job in jobs
    }


@BOTH
@pytest.mark.slow
def test_a_failure_costs_one_job_and_is_one_line(executor, tmp_path):
    jobs = [
        Job(operator.truediv, (1, 0)),
        Job(check_choice, ("rule", "x", ("y",))),
        Job(math.sqrt, (4.0,)),
    ]
    found = {outcome.job: outcome for outcome in executor.run(jobs, tmp_path)}
    assert [found[job].error for job in jobs] == [
        "ZeroDivisionError: division by zero",
        "rule: 'x' is not allowed; use one of y",
        "",
    ]
    assert found[jobs[2]].value == 2.0


@BOTH
@pytest.mark.slow
def test_files_that_cannot_be_written_end_all(executor, tmp_path):
    missing = tmp_path / "no folder" / "file"
    with pytest.raises(FileNotFoundError) as caught:
        list(executor.run([Job(Path.touch, (missing,)), *[Job(time.sleep, (600,))] * 2], tmp_path))
    assert caught.value.filename == str(missing)


@BOTH
@pytest.mark.slow
def test_what_an_outcome_makes_possible_is_next(executor, tmp_path):
    """In one process strictly; in several it comes before what waited from the beginning."""
    order = []

    def then(outcome):
        order.append(outcome.value)
        return [Job(math.factorial, (10,))] if outcome.value == 1 else []

    jobs = [Job(math.factorial, (n,)) for n in (1, 3, 4)]
    assert len(values(executor, jobs, tmp_path, then=then)) == 4
    assert sorted(order) == [1, 6, 24, math.factorial(10)]
    if executor == ALONE:
        assert order == [1, math.factorial(10), 6, 24]


@BOTH
@pytest.mark.slow
def test_it_is_told_how_many_are_computed(executor, tmp_path):
    told = []
    values(executor, [Job(math.sqrt, (n,)) for n in range(5)], tmp_path, on_running=told.append)
    slots = len(executor.environments())
    assert max(told) == slots and told[-1] == 0


def test_without_jobs_nothing_is_opened(tmp_path):
    assert list(Slurm().run([], tmp_path)) == []


@pytest.mark.slow
def test_a_process_that_is_killed_costs_its_own_job(tmp_path):
    jobs = [Job(signal.raise_signal, (signal.SIGKILL,)), *(Job(math.sqrt, (n,)) for n in range(4))]
    found = {outcome.job: outcome for outcome in Local(2).run(jobs, tmp_path)}
    assert "killed" in found[jobs[0]].error
    assert [found[job].value for job in jobs[1:]] == [math.sqrt(n) for n in range(4)]


# -- nobody is left over

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from twophase.experiments.executors import Job, Local
if __name__ == "__main__":
    # a shell hands down that Ctrl-C is ignored to what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(sys.argv[1])
    jobs = [Job(os.system, (f"echo $PPID > {folder / str(n)}",)) for n in range(2)]
    then = lambda outcome: [Job(time.sleep, (600,))] if outcome.value == 0 else []
    try:
        list(Local(2).run(jobs, folder, then))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def alive(pid):
    """Whether a process computes; one that has ended and is not waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tmp_path, wait_until, how):
    """Ctrl-C goes to all of them, the other signals to the first alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() and file.read_text().strip() for file in files))
    workers = {int(file.read_text()) for file in files}
    assert workers and all(map(alive, workers))
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    # the sleep of each would last ten minutes
    wait_until(lambda: not any(map(alive, workers)), seconds=60)
    assert process.wait(60) == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert process.stderr.read() == b"", "no traceback of anybody"
    process.stderr.close()


@pytest.mark.slow
def test_an_iterator_that_is_left_ends_its_processes(tmp_path):
    work = Local(2).run([Job(os.getpid), Job(time.sleep, (600,))], tmp_path)
    pid = next(work).value
    work.close()
    assert not alive(pid)


# -- which, and how many


def test_an_executor_has_a_name():
    assert named("local") == Local() and named("slurm") == Slurm()
    assert named("Local(4, threads=2)") == Local(4, 2)
    assert named("Slurm(partition='debug', minutes=5)") == Slurm("debug", 5)
    assert named(Local(3)) == Local(3)
    assert from_text(repr(Slurm(gpus=1))) == Slurm(gpus=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("locl", "executor: 'locl'"),
        ("GoldenSection", "executor: 'GoldenSection' is not allowed; use local, slurm"),
        ("Local(0)", "processes: 0"),
        ("Local(threads=1.5)", "threads: 1.5"),
        ("Local(cores=3)", "executor: 'cores' is not allowed; use fields of Local"),
        ("Slurm(minutes='an hour')", "minutes: 'an hour'"),
        ("Slurm(partition=3)", "partition: 3"),
        ("Slurm(parallel=0)", "parallel: 0"),
        ("Slurm(gpus=-1)", "gpus: -1"),
    ],
)
def test_what_is_no_executor_is_one_line(text, message):
    with pytest.raises(InputError) as caught:
        named(text)
    assert str(caught.value).startswith(message)


def test_processes_share_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(executors, "_cores", lambda: 8)
    assert len(Local().environments()) == 8
    assert len(Local(threads=3).environments()) == 2
    assert Local(threads=9).environments() == [{"OMP_NUM_THREADS": "9"}]
    assert len(Local(3).environments()) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    seen = [each["CUDA_VISIBLE_DEVICES"] for each in Local(3).environments()]
    assert seen == ["4", "7", "4"]
    assert len(Local().environments()) == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in Local().environments()] == ["0", "1"]


@pytest.mark.slow
def test_each_process_has_its_own_environment(tmp_path, monkeypatch):
    given = [{"OMP_NUM_THREADS": "3", "WHO": str(n)} for n in range(2)]
    monkeypatch.setattr(Local, "environments", lambda self: given)
    # the first two go to one process each
    jobs = [*[Job(os.getenv, ("WHO",))] * 2, Job(torch.get_num_threads)]
    found = [outcome.value for outcome in Local(2, 3).run(jobs, tmp_path)]
    assert set(found) == {"0", "1", 3}
    assert os.getenv("WHO") is None


# -- Slurm


def test_without_submitit_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^executor: .*pip install -e \"\.\[slurm\]\""):
        list(Slurm().run([Job(os.getpid)], tmp_path))


def test_without_slurm_it_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="^executor: .* there is no Slurm here"):
        list(Slurm().run([Job(os.getpid)], tmp_path))


@pytest.mark.slow
def test_slurm_runs_jobs_and_those_that_follow(slurm, tmp_path):
    jobs = [Job(math.sqrt, (4.0,)), Job(operator.truediv, (1, 0)), Job(torch.get_num_threads)]
    follow = Job(math.factorial, (5,))
    found = {}
    for outcome in slurm.run(jobs, tmp_path, lambda seen: [follow] if seen.value == 2.0 else []):
        found[outcome.job] = outcome
    assert found[jobs[0]].value == 2.0 and found[follow].value == 120
    assert found[jobs[1]].error == "ZeroDivisionError: division by zero"
    assert found[jobs[2]].value == slurm.cpus
    assert not list((tmp_path / "slurm").glob("*_result.pkl")), "nothing is left of what is done"


@pytest.mark.slow
def test_a_job_that_is_cancelled_fails_alone(slurm, queued, tmp_path):
    long, fine = Job(time.sleep, (600,)), Job(math.sqrt, (4.0,))
    outcomes = []
    for outcome in slurm.run([long, fine], tmp_path):
        outcomes.append(outcome)
        if outcome.job == fine:
            (submitted,) = set(queued()) & {
                path.name.removesuffix("_submitted.pkl")
                for path in (tmp_path / "slurm").glob("*_submitted.pkl")
            }
            subprocess.run(["scancel", submitted], check=True)
    assert [outcome.job for outcome in outcomes] == [fine, long]
    assert f"Slurm job {submitted} ended early" in outcomes[1].error
    assert "\n" not in outcomes[1].error


@pytest.mark.slow
def test_a_refused_job_is_one_line(slurm, tmp_path):
    with pytest.raises(TwoPhaseError, match="^Slurm takes no job: .*") as caught:
        list(replace(slurm, partition="nowhere").run([Job(os.getpid)], tmp_path))
    assert "partition" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_one_process_submits_from_a_folder(slurm, queued, wait_until, tmp_path):
    work = slurm.run([Job(math.sqrt, (4.0,)), Job(time.sleep, (600,))], tmp_path)
    assert next(work).value == 2.0
    with pytest.raises(InputError, match="^out: .* no other process submits"):
        list(slurm.run([Job(math.sqrt, (9.0,))], tmp_path))
    before = set(queued())
    work.close()
    wait_until(lambda: len(set(queued()) & before) < len(before))


SUBMITTER = """
import sys, time
from pathlib import Path
from twophase.experiments.executors import Job, Slurm
jobs = [Job(time.sleep, (10.5,)), Job(time.sleep, (600,))]
list(Slurm(minutes=5, memory=1).run(jobs, Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_jobs_of_a_process_that_was_killed_are_taken_over(slurm, queued, wait_until, tmp_path):
    """Those that are wanted go on, each in the job it had; the others are cancelled at the end."""
    process = subprocess.Popen([sys.executable, "-c", SUBMITTER, str(tmp_path)])
    pickles = lambda: list((tmp_path / "slurm").glob("*_submitted.pkl"))  # noqa: E731
    wait_until(lambda: len(pickles()) == 2)
    process.kill()
    process.wait()
    names = {path.name.removesuffix("_submitted.pkl") for path in pickles()}
    assert names <= set(queued())
    (outcome,) = slurm.run([Job(time.sleep, (10.5,))], tmp_path)
    assert outcome.error == "" and outcome.seconds > 10
    assert len(pickles()) == 1, "nothing was submitted anew"
    wait_until(lambda: not names & set(queued()))


@pytest.mark.slow
def test_a_queue_that_does_not_answer_is_one_line_or_waited_for(slurm, tmp_path, monkeypatch):
    cluster = pytest.importorskip("twophase.experiments.slurm").Cluster
    ask, answers = cluster._queue, []

    def mostly(self):
        answers.append(ask(self) if len(answers) in (0, 6) else None)
        return answers[-1]

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_queue", mostly)
        assert values(slurm, [Job(math.sqrt, (4.0,))], tmp_path) == {Job(math.sqrt, (4.0,)): 2.0}
    monkeypatch.setattr(cluster, "_queue", lambda self: None)
    with pytest.raises(TwoPhaseError, match="^Slurm does not answer"):
        list(slurm.run([Job(math.sqrt, (4.0,))], tmp_path))
