"""Devices by name, for records, and their clock."""

import time

import pytest
import torch

from twophase.device import clock, device_name, resolve_device
from twophase.errors import InputError


def test_auto_takes_the_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99", "cpu:x", "", None, 10**30])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InputError, match="^device: .* use auto, cpu or cuda"):
        resolve_device(name)


def test_a_device_may_be_one_already():
    assert resolve_device(torch.device("cpu")) == resolve_device("cpu") == torch.device("cpu")


def test_the_cpu_is_named_with_its_threads():
    name = device_name(torch.device("cpu"))
    assert name.startswith("cpu (") and f", {torch.get_num_threads()} thread" in name
    assert device_name(torch.device("cpu"), 1).endswith(", 1 thread)")
    assert device_name(torch.device("cpu"), 3).endswith(", 3 threads)")


def test_the_clock_counts_seconds():
    began, ours = time.perf_counter(), clock(torch.device("cpu"))
    time.sleep(0.01)
    elapsed = clock(torch.device("cpu")) - ours
    assert 0.01 <= elapsed <= time.perf_counter() - began
