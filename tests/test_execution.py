"""Lessons run in a fresh kernel that does not outlive them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cookbook.errors import UsageError
from cookbook.execution import LessonError, execute, list_lessons, notebooks_directory, read_notebook, write_notebook


def kernels() -> list[psutil.Process]:
    """Return this process's children that are kernels."""
    return [child for child in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(child.cmdline())]


@pytest.mark.timeout(120)
def test_cells_run_until_one_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stale = [new_output("stream", name="stdout", text="from last year\n")]
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# 00 Title"),
            new_code_cell(
                "import os, sys\nprint(os.environ['COOKBOOK_PROGRESS'], os.getcwd(), sys.executable)",
                execution_count=99, outputs=stale,
            ),
            new_code_cell("  \n"),
            new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
            new_code_cell("6 * 7"),
            new_code_cell("undefined_name"),
            new_code_cell("print('not reached')", execution_count=5, outputs=stale),
        ]
    )  # fmt: skip
    events: list[tuple[int, bool]] = []
    with pytest.raises(LessonError, match=r"^00_title, cell 4: NameError: name 'undefined_name' is not defined$") as caught:
        execute(
            notebook, tmp_path, name="00_title", environment={"COOKBOOK_PROGRESS": "off"},
            watch=lambda number, seconds: events.append((number, seconds is not None)),
        )  # fmt: skip
    assert (caught.value.lesson, caught.value.cell) == ("00_title", 4)
    assert events == [(1, False), (1, True), (2, False), (2, True), (3, False), (3, True), (4, False)]
    outputs = [cell.get("outputs") for cell in notebook.cells]
    assert outputs[1][0].text.split() == ["off", str(tmp_path.resolve()), sys.executable]
    assert outputs[3][0].ename == "ZeroDivisionError" and outputs[4][0].data["text/plain"] == "42"
    assert outputs[5][0].ename == "NameError" and outputs[6] == []
    assert [cell.get("execution_count") for cell in notebook.cells[1:]] == [1, None, 2, 3, 4, None]
    assert kernels() == [] and capfd.readouterr() == ("", "")


@pytest.mark.timeout(120)
def test_ctrl_c_stops_the_kernel(tmp_path: Path) -> None:
    def interrupt(number: int, seconds: float | None) -> None:
        if number == 2:
            assert len(kernels()) == 1
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    notebook = new_notebook(cells=[new_code_cell("print(1)"), new_code_cell("import time\ntime.sleep(90)")])
    with pytest.raises(KeyboardInterrupt):
        execute(notebook, tmp_path, name="00_slow", watch=interrupt)
    assert kernels() == [] and notebook.cells[0].outputs[0].text == "1\n"


@pytest.mark.timeout(180)
def test_nbval_skips_the_cells_after_a_failing_one(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_bytes((notebooks_directory() / "conftest.py").read_bytes())
    sources = ["print(1)", "undefined_name", "print(2)", "print(3)"]
    write_notebook(new_notebook(cells=[new_code_cell(source) for source in sources]), tmp_path / "00_broken.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-current-env",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert "1 failed, 1 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert "Cell 1 of this notebook failed" in done.stdout


def test_lessons_are_picked_by_number_or_name(tmp_path: Path) -> None:
    for name in ("01_b.ipynb", "00_a.ipynb", "10_c.ipynb", "notes.ipynb", "02_d.py"):
        (tmp_path / name).touch()
    stems = [path.stem for path in list_lessons(tmp_path)]
    assert stems == ["00_a", "01_b", "10_c"]
    assert [path.stem for path in list_lessons(tmp_path, ["10", "00_a"])] == ["00_a", "10_c"]
    for wrong in ("1", "b", "01_c", ""):
        with pytest.raises(UsageError, match="choose from 00_a, 01_b, 10_c"):
            list_lessons(tmp_path, [wrong])
    with pytest.raises(UsageError, match="There is no lesson in"):
        list_lessons(tmp_path / "none")


DAMAGED = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"nbformat": 3, "cells": 5}', b'{"cells": []}',
    b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}}]}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_notebook_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "00_a.ipynb"
    path.write_bytes(content)
    with pytest.raises(LessonError, match="is not a readable notebook: restore it"):
        read_notebook(path)


def test_a_missing_notebook_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LessonError, match="is missing"):
        read_notebook(tmp_path / "00_a.ipynb")
