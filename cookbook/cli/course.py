"""`cookbook course`: run the lessons, watch them, end with the scoreboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from cookbook.course import Estimate, LessonResult, Watcher, run_course
from cookbook.environment import Profile, current_profile
from cookbook.errors import CookbookError
from cookbook.evidence import Ledger, scoreboard
from cookbook.execution import notebooks_directory
from cookbook.progress import progress_wanted


def course(
    lessons: Annotated[str, typer.Option(help="Only these, by number or name: 00,01_gpu_setup.", metavar="NN,…")] = "",
    profile: Annotated[
        Profile | None, typer.Option(help="quick shows how things work in minutes; full is evidence and takes hours.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where pages, copies and ledger go; build/course by default.")] = None,
    notebooks: Annotated[Path | None, typer.Option(help="The folder with the lessons; this checkout's by default.")] = None,
) -> None:
    """Run the lessons on copies, render them as pages, and print the scoreboard of what they measured.

    A lesson that fails is named with its cell and error; the others still run. Ctrl-C keeps what is
    finished. Without --profile, COOKBOOK_PROFILE decides; without that, it is quick.

    Example: cookbook course --lessons 00,01
    """
    folder = (notebooks or notebooks_directory()).resolve()
    target = (out or folder.parent / "build" / "course").resolve()
    names = [name.strip() for name in lessons.split(",") if name.strip()]
    console = Console()
    profile = profile or current_profile()
    if progress_wanted(console):
        display = LiveDisplay(console)
        with display.progress:
            results = run_course(folder, target, profile, lessons=names, watcher=display)
    else:
        results = run_course(folder, target, profile, lessons=names, watcher=PlainLines())
    measured = Ledger(target / "ledger.jsonl").measurements()
    print(f"\n{scoreboard(measured)}\n" if measured else "\nNo measurement was recorded in this run.\n")
    print(f"Open {_short(target / 'index.html')}")
    failures = [result.error for result in results if result.error is not None]
    if failures:
        raise CookbookError(f"{len(failures)} of {len(results)} lessons failed, first {failures[0]}")


class PlainLines(Watcher):
    """One line a lesson, for logs and pipes."""

    def finished(self, result: LessonResult) -> None:
        """Print how the lesson went."""
        print(line(result), flush=True)


class LiveDisplay(Watcher):
    """A moving line at a terminal: lesson, cell, elapsed time and estimate."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`, and print finished lessons above the moving line."""
        self._console = console
        self._cells: Mapping[str, int] = {}
        self._estimate: Estimate | None = None
        columns = (
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), RemainingColumn(self._remaining)
        )  # fmt: skip
        self.progress = Progress(*columns, console=console, transient=True, refresh_per_second=4)

    def begin(self, cells: Mapping[str, int], estimate: Estimate) -> None:
        """Show the bar for all cells of all lessons."""
        self._cells, self._estimate = cells, estimate
        self._task = self.progress.add_task("starting", total=sum(cells.values()))

    def cell(self, lesson: str, number: int) -> None:
        """Show where the course is; the kernel of a lesson starts before its first cell."""
        names = list(self._cells)
        behind = sum(self._cells[name] for name in names[: names.index(lesson)])
        place = f"lesson {names.index(lesson) + 1}/{len(names)} {lesson}, cell {number}/{self._cells[lesson]}"
        self.progress.update(self._task, description=place, completed=behind + number - 1)

    def finished(self, result: LessonResult) -> None:
        """Print the lesson's line above the bar."""
        self._console.print(line(result), markup=False, highlight=False, soft_wrap=True)

    def _remaining(self) -> float | None:
        return self._estimate.remaining() if self._estimate is not None else None


class RemainingColumn(ProgressColumn):
    """The estimate, counting down between two cells."""

    def __init__(self, remaining: Callable[[], float | None]) -> None:
        """Ask `remaining` for the seconds left whenever the line is drawn."""
        super().__init__()
        self._seconds = remaining

    def render(self, task: Task) -> Text:
        """Return the time left as text."""
        return Text(time_left(self._seconds()))


def time_left(seconds: float | None) -> str:
    """Return the time left in words that do not promise more than an estimate can."""
    return "estimating" if seconds is None else f"about {timedelta(seconds=round(seconds))} left"


def line(result: LessonResult) -> str:
    """Return how a lesson went, in one line."""
    if result.error is not None:
        return f"failed  {result.error}"
    return f"ok      {result.name}: {result.cells} cells in {result.seconds:.0f} s"


def _short(path: Path) -> str:
    """Return `path` relative to the working directory where that is possible."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
