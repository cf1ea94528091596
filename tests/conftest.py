"""Threads of torch that wait shall sleep: spinning ones slow a busy machine down many times."""

import os

# read when torch is imported, here and in the notebooks' kernels
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
