"""What results stand on."""

import pytest

from twophase.experiments.provenance import made_with, words


@pytest.mark.parametrize("threads", ["1 thread", "11 threads", "16 threads"])
def test_a_single_thread_is_in_the_singular(threads):
    recorded = threads if threads.endswith("s") else f"{threads}s"
    assert words(f"cpu (x86_64, {recorded})") == f"cpu (x86_64, {threads})"


def test_runs_are_named_by_device_torch_and_revision_each_once():
    def summary(device, revision):
        return {"device": device, "versions": {"torch": "2.6"}, "git_revision": revision}

    commit = "0123456789abcdef"
    found = [summary("gpu", None), summary("cpu", commit), summary("cpu", commit)]
    assert made_with([*found, summary("cpu", f"{commit}-dirty")]) == (
        "cpu, torch 2.6, revision 0123456789; cpu, torch 2.6, revision 0123456789-dirty; "
        "gpu, torch 2.6, revision unknown"
    )
    assert made_with([]) == ""
