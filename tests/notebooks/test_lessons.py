"""Every committed lesson keeps to the spine and equals its twin; nbval executes them in `make test`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import spine

from cookbook.execution import notebooks_directory, read_notebook
from cookbook.notebooks import build, twin_of

FOLDER = notebooks_directory()
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MISSING = FOLDER / "00_start_here.ipynb"  # stands in when there is nothing, so that the suite fails instead of skipping


@pytest.fixture(params=NOTEBOOKS or [MISSING], ids=lambda path: path.stem, scope="module")
def lesson(request: pytest.FixtureRequest) -> spine.Lesson:
    path: Path = request.param
    if not path.is_file():
        pytest.fail(f"There is no notebook in {FOLDER.name}/: build the lessons with 'python -m cookbook.notebooks'.")
    return spine.Lesson(path.stem, read_notebook(path), build(twin_of(path)))


@pytest.mark.parametrize("check", spine.CHECKS.values(), ids=spine.CHECKS.keys())
def test_the_lesson_keeps_to(check: Callable[[spine.Lesson], list[str]], lesson: spine.Lesson) -> None:
    assert check(lesson) == []


def test_every_twin_has_its_notebook_and_every_notebook_its_twin() -> None:
    assert NOTEBOOKS, f"there is no notebook in {FOLDER.name}/"
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in (FOLDER / "src").glob("*.py"))


def test_lessons_are_numbered_in_the_file_name() -> None:
    assert [path.name for path in NOTEBOOKS if not (path.name[:2].isdigit() and path.name[2:3] == "_")] == []
