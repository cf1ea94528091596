"""The tests run the notebooks under the preset smoke; the kernels inherit this variable."""

import os

os.environ["TWOPHASE_PRESET"] = "smoke"
