"""Executes notebooks through papermill, in kernels of this very interpreter."""

import os
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from twophase.experiments.progress import PROGRESS_VARIABLE

# in the temporary folder of a notebook
UNFINISHED, LOG, PROGRESS = "notebook.ipynb", "kernel.log", "progress.json"


class Kernels:
    """Kernels for several threads; `threads` (None: torch's choice) is what each computes with."""

    def __init__(self, threads: int | None = None):
        self._threads = threads
        self._running: set[AsyncKernelManager] = set()
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Kill every kernel, also those about to start; their `execute` raises an error."""
        self._stopped.set()
        for manager in list(self._running):
            _kill(manager)

    def execute(self, path: Path, parameters: Mapping[str, object], scratch: Path) -> NotebookNode:
        """The executed notebook; the folder `scratch` gets it as far as it is, and the log."""
        # papermill leaves the event loop of a thread open
        with (scratch / LOG).open("w") as log, closing(ensure_event_loop()):
            return papermill.execute_notebook(
                path,
                scratch / UNFINISHED,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                # a busy machine with a cold disk can take minutes to import what a kernel needs
                start_timeout=300,
                shutdown_kernel="immediate",
                kernel_manager_class=self._manager(
                    env=self._environment(scratch), cwd=path.parent, stdout=log, stderr=log
                ),
            )

    def _environment(self, scratch: Path) -> dict[str, str]:
        return {
            # torch's waiting threads shall sleep: spinning ones slow a busy machine down many times
            "OMP_WAIT_POLICY": "passive",
            **({"OMP_NUM_THREADS": str(self._threads)} if self._threads else {}),
            **os.environ,
            PROGRESS_VARIABLE: str(scratch / PROGRESS),
            # a person's own choice of windows for figures is of no use here
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }

    def _manager(self, **launch: object) -> type[AsyncKernelManager]:
        kernels = self

        class Manager(AsyncKernelManager):
            # this interpreter's, whatever kernels the user has installed
            kernel_spec = KernelSpec(**get_kernel_dict())

            async def start_kernel(self, **options: object) -> None:
                await super().start_kernel(**options, **launch)
                kernels._running.add(self)
                if kernels.stopped:
                    _kill(self)

            async def cleanup_resources(self, restart: bool = False) -> None:
                kernels._running.discard(self)
                await super().cleanup_resources(restart)

        return Manager


def _kill(manager: AsyncKernelManager) -> None:
    # it can have ended by itself in the meantime
    with suppress(AttributeError, OSError):
        manager.provisioner.process.kill()


def one_line(error: Exception, scratch: Path) -> str:
    """What went wrong, with the cell, or else with the kernel's last words from its log."""
    if isinstance(error, PapermillExecutionError):
        cell = error.source.strip().partition("\n")[0]
        parts = [f"cell [{error.exec_count}] {cell!r}", error.ename, error.evalue]
    else:
        log = scratch / LOG
        # the last line that the kernel wrote to its own stderr, but for its remarks on the network
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        last = [line for line in lines if line.strip() and "[IPKernelApp]" not in line][-1:]
        parts = [type(error).__name__, str(error), *last]
    return ": ".join(part.strip().partition("\n")[0] for part in parts if part.strip())
