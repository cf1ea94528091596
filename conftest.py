"""What the tests' processes and the notebooks' kernels inherit."""

import os

import pytest

os.environ["TWOPHASE_PRESET"] = "smoke"
# Read when torch is imported. The tests' tensors are too small for threads to pay, and with one
# thread the processes of a pool compute the same to the last bit. Threads that wait shall sleep,
# since spinning ones slow a busy machine down many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")
