"""Executes one notebook through papermill, in this very Python, so that it is there whole or not at all."""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from mergekit_lite.cache import LEDGER, SHARD, check_writable, sweep_dead
from mergekit_lite.errors import KitError

ELSEWHERE = "Elsewhere"
"""The name of `study.shards.Elsewhere`, which would bring torch; of an error in a kernel no more than that is known."""


class Failed(Exception):
    """A notebook failed: why, and in which cell if it was one; `kept` if what it showed up to there was written."""

    def __init__(self, reason: str, cell: int | None = None, kept: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.cell, self.kept = reason, cell, kept


class ShareDone(Exception):
    """A notebook asked, in `cell`, for records that other shards compute; its own are recorded."""

    def __init__(self, cell: int) -> None:
        super().__init__(f"cell [{cell}]")
        self.cell = cell


# As `python -m ipykernel_launcher`, and quicker: the garbage collector would go through all of torch again and again
# while modules load, and at the end Python would take everything apart, object by object.
KERNEL = """
import atexit, gc, os, sys
del sys.path[0]
gc.set_threshold(100_000)
atexit.register(os._exit, 0)
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


class ThisPython(AsyncKernelManager):
    """Starts the kernel with the interpreter that runs this code, whatever a user's own kernel "python3" points to."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The command that starts the kernel."""
        # Without its own log: after Ctrl-C it would print a traceback. Errors of cells come another way.
        command = [sys.executable, "-c", KERNEL, "--log-level=50", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def execute(template: Path, target: Path, parameters: Mapping[str, Any], stamped: Mapping[str, str]) -> float:
    """Execute `template` into `target`, stamp it, and return the seconds that it took; they are in the stamp, too.

    Raises:
        Failed: a cell raised an error, the kernel died or never came, or the result cannot be written.
        ShareDone: this run is one of several shards, and the notebook needs what the others compute; nothing of it is
            kept, as all it showed will be shown again.
    """
    begun = time.perf_counter()
    partial = target.with_name(f".{target.stem}.{_host()}.{os.getpid()}.ipynb")
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    ledger = partial.with_suffix(".records")
    try:
        check_writable(target.parent)
        failed.unlink(missing_ok=True)
        _sweep(target)
        ledger.touch()
        os.environ[LEDGER] = str(ledger)  # the kernel inherits it
        notebook = papermill.execute_notebook(
            _literal(template),
            _literal(partial),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            kernel_manager_class=ThisPython,
            progress_bar=False,
            stdout_file=sys.stdout,  # what the notebook prints is the progress
            cwd=str(template.parent),  # as in Jupyter
        )
        seconds = time.perf_counter() - begun
        records = sorted(set(ledger.read_text(encoding="utf-8").split()))
        notebook.metadata["mergekit_lite"] = {**stamped, "records": records, "seconds": round(seconds, 1)}
        nbformat.write(notebook, partial)
        os.replace(partial, target)
        return seconds
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # Ctrl-C in a terminal reaches the kernel too, and sometimes first
            raise KeyboardInterrupt from error
        if os.environ.get(SHARD) and error.ename == ELSEWHERE:
            raise ShareDone(error.exec_count) from error
        reason = error.evalue if error.ename == KitError.__name__ else f"{error.ename}: {error.evalue}"
        raise Failed(reason, error.exec_count, kept=_moved(partial, failed)) from error
    except RuntimeError as error:
        reason = f"its kernel did not answer ({error})."
        if isinstance(error, DeadKernelError):
            reason = "its kernel died, most often because the memory ran out."
        raise Failed(reason, kept=_moved(partial, failed)) from error
    except KitError as error:  # the folder cannot be written to
        raise Failed(str(error), kept=False) from error
    except OSError as error:  # most often the disk is full
        raise Failed(f"it cannot be written ({error.strerror or error}).", kept=False) from error
    finally:
        os.environ.pop(LEDGER, None)
        with suppress(OSError):
            ledger.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)


@contextmanager
def for_kernels(variable: str, value: str | None) -> Iterator[None]:
    """Set a variable of the environment, which kernels inherit, unless `value` is None; it is as before afterwards."""
    before = os.environ.get(variable)
    try:
        if value is not None:
            os.environ[variable] = value
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


def _moved(partial: Path, failed: Path) -> bool:
    """Return whether the notebook up to its error could be kept as `failed`."""
    try:
        os.replace(partial, failed)
    except OSError:
        return False
    return True


def _sweep(target: Path) -> None:
    """Remove what runs that were killed left of a notebook; what belongs to a process that lives stays.

    So does what another machine wrote, of whose processes nothing is known here: several may share this folder.
    """
    sweep_dead(target.parent, rf"\.{re.escape(target.stem)}\.{re.escape(_host())}\.(\d+)\.(?:ipynb|records)")


def _host() -> str:
    return re.sub(r"\W", "-", socket.gethostname())


def _literal(path: Path) -> str:
    """Return `path` for papermill, which takes it for a format string."""
    return str(path).replace("{", "{{").replace("}", "}}")
