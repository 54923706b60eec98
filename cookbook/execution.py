"""Lessons as files, and their execution in a fresh kernel (lesson 00).

Source of the execution: https://nbclient.readthedocs.io.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nbformat
import zmq
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbclient.util import ensure_async
from nbformat import NotebookNode

from cookbook.errors import CookbookError, UsageError
from cookbook.files import atomic_path

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}

Watch = Callable[[int, float | None], None]


class LessonError(CookbookError):
    """A lesson could not be read, or one of its cells failed.

    Attributes:
        lesson: the file's name without its ending.
        cell: number of the failing code cell, from 1; None when no cell is to blame.
    """

    def __init__(self, lesson: str, cell: int | None, reason: str) -> None:
        """Join place and reason into the message."""
        where = lesson if cell is None else f"{lesson}, cell {cell}"
        super().__init__(f"{where}: {reason}")
        self.lesson, self.cell, self.reason = lesson, cell, reason


def notebooks_directory() -> Path:
    """Return the ``notebooks`` folder of the checkout that this package belongs to."""
    return Path(__file__).resolve().parents[1] / "notebooks"


def list_lessons(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks ``NN_*.ipynb`` of `folder` in order, or those that `names` picks.

    Args:
        folder: the folder with the notebooks.
        names: numbers such as ``"00"`` or names such as ``"00_start_here"``; empty means all.

    Raises:
        UsageError: the folder has no lesson, or a name fits none.
    """
    return pick_lessons({path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}, names, folder)


def pick_lessons(lessons: Mapping[str, Path], names: Sequence[str], folder: Path) -> list[Path]:
    """Return those of `lessons` (by name) that `names` picks, by name or number; raises as `list_lessons` does."""
    if not lessons:
        raise UsageError(f"There is no lesson in {folder}: name the folder that holds notebooks such as 00_start_here.ipynb.")
    unknown = [name for name in names if not any(name in (stem, stem[:2]) for stem in lessons)]
    if unknown:
        raise UsageError(f"There is no lesson {unknown[0]!r}: choose from {', '.join(lessons)}, by name or by number.")
    return [path for stem, path in lessons.items() if not names or stem in names or stem[:2] in names]


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook file.

    Raises:
        LessonError: the file is missing, or not a notebook of format 4.
    """
    if not path.is_file():
        raise LessonError(path.stem, None, f"{path} is missing: run 'python -m cookbook.notebooks {path.stem}' to build it.")
    try:
        notebook = nbformat.v4.reads(path.read_text(encoding="utf-8"))
        nbformat.validate(notebook, version=4)
        return notebook
    except (
        ValueError,
        TypeError,
        AttributeError,
        nbformat.ValidationError,
    ) as error:  # the parser takes any JSON for a notebook
        reason = f"{path} is not a readable notebook: restore it with 'git checkout -- {path.parent.name}/{path.name}'."
        raise LessonError(path.stem, None, reason) from error


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Validate `notebook` and write it atomically."""
    nbformat.validate(notebook)
    with atomic_path(path) as temporary:
        temporary.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8", newline="\n")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that hold code, in order: the cells that are executed and counted."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def clear_outputs(notebook: NotebookNode) -> None:
    """Remove outputs and execution counts in place, so that nothing stale survives a failing run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def execute(
    notebook: NotebookNode, folder: Path, *, name: str, environment: Mapping[str, str] | None = None, watch: Watch | None = None
) -> None:
    """Run every code cell of `notebook` in place, in a fresh kernel that is gone afterwards.

    Args:
        notebook: what to run; outputs are stored in it up to the cell that fails.
        folder: the kernel's working directory.
        name: the lesson's name, for error messages.
        environment: variables that are set for the kernel on top of this process's own.
        watch: called with a cell's number (from 1) and None when it starts, and with the number
            and the seconds it took when it ended well.

    Raises:
        LessonError: a cell failed, or the kernel died. A cell tagged ``raises-exception`` may raise.
        KeyboardInterrupt: Ctrl-C; the kernel has been stopped.
    """
    clear_outputs(notebook)
    variables = {**os.environ, **(environment or {})}
    # a selector loop is the default everywhere except on Windows, where ZeroMQ's sockets need it asked for
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(_execute(notebook, folder, name, variables, watch or (lambda number, seconds: None)))


async def _execute(notebook: NotebookNode, folder: Path, name: str, environment: dict[str, str], watch: Watch) -> None:
    client = NotebookClient(notebook, kernel_name=KERNEL["name"], timeout=None, coalesce_streams=True)
    manager = client.create_kernel_manager()
    if manager.has_trait("transport_encryption") and zmq.has("curve"):  # older kernels know no encryption
        manager.transport_encryption = "auto"
    number = 0
    try:
        # NotebookClient.execute would install signal handlers that turn Ctrl-C into a dead kernel
        try:
            await client.async_start_new_kernel(env=environment, cwd=str(folder))
            await client.async_start_new_kernel_client()
        except (RuntimeError, NoSuchKernel) as error:
            reason = f"the kernel did not start ({error}): install the extra 'lessons', then run 'cookbook doctor'."
            raise LessonError(name, None, reason) from error
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            number += 1
            watch(number, None)
            began = time.perf_counter()
            await client.async_execute_cell(cell, index, execution_count=number)
            watch(number, time.perf_counter() - began)
    except CellExecutionError as error:
        raise LessonError(name, number, " ".join(f"{error.ename}: {error.evalue}".split()).rstrip(":")) from error
    except DeadKernelError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # nbclient takes every cancellation for a dead kernel
            raise asyncio.CancelledError from error
        reason = "the kernel died: the machine may be out of memory; close programs and rerun."
        raise LessonError(name, number, reason) from error
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        if manager.has_kernel:
            await ensure_async(manager.shutdown_kernel(now=True))
