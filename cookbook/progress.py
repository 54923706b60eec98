"""Progress bars that know when to be silent: in CI, in pipes and in committed notebooks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Advance(Protocol):
    """Moves a bar on by one step."""

    def __call__(self, text: str = "") -> None:
        """Show `text` behind the bar."""


def progress_wanted(console: Console | None = None) -> bool:
    """Say whether a progress bar would be seen: at a terminal or in JupyterLab, and not in CI.

    ``COOKBOOK_PROGRESS=off`` silences every bar.
    """
    if os.environ.get("COOKBOOK_PROGRESS", "").lower() == "off" or os.environ.get("CI"):
        return False
    console = console or Console(stderr=True)
    return console.is_terminal or console.is_jupyter


@contextlib.contextmanager
def progress_bar(description: str, total: int, *, done: int = 0, show: bool | None = None) -> Iterator[Advance]:
    """Show a bar with elapsed and remaining time; yield a function that advances it by one.

    Args:
        description: what is under way.
        total: number of steps; `done` of them lie behind.
        show: None decides by `progress_wanted`.

    The yielded function takes a short text that is shown behind the bar, such as the latest loss.
    """
    console = Console(stderr=True)
    if not (progress_wanted(console) if show is None else show):
        yield _advance_nothing
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task(description, total=total, completed=done, text="")

        def advance(text: str = "") -> None:
            progress.update(task, advance=1, text=text)

        yield advance


def _advance_nothing(text: str = "") -> None:
    """Stand in for a bar that nobody would see."""
