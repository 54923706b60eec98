"""The course runner: every lesson in a fresh kernel, executed copies and pages in one folder (lesson 00).

build/course/
  index.html         links every lesson; the scoreboard below
  NN_name.html       a page that needs no network
  NN_name.ipynb      the executed copy; the folder with the lessons is never written to
  ledger.jsonl       what the lessons of this run measured
  timings.json       seconds of each cell in the last run, for the next run's estimate
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbconvert import HTMLExporter
from nbformat import NotebookNode

from cookbook.environment import Profile
from cookbook.errors import UsageError
from cookbook.evidence import Ledger, scoreboard
from cookbook.execution import LessonError, code_cells, execute, list_lessons, read_notebook, write_notebook
from cookbook.files import atomic_path

# the lab template fetches RequireJS, MathJax and Mermaid from other hosts: a page has to open without a network
OFFLINE_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""
INDEX_STYLE = """:root { color-scheme: light dark; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; } th, td { padding: .2rem .7rem; vertical-align: top; }"""


@dataclass(frozen=True)
class LessonResult:
    """How one lesson went.

    Attributes:
        name: the file's name without its ending.
        seconds: wall time, with the start of the kernel and the rendering.
        cells: code cells that ran to their end.
        error: what failed and where, in one sentence; None when nothing did.
    """

    name: str
    seconds: float
    cells: int
    error: str | None = None


class Watcher:
    """Told what the course is doing; this one keeps silent. A display overrides what it needs."""

    def begin(self, cells: Mapping[str, int], estimate: Estimate) -> None:
        """Take notice of the lessons to come, with the number of their code cells."""

    def cell(self, lesson: str, number: int) -> None:
        """Take notice that a code cell starts; `number` counts from 1."""

    def finished(self, result: LessonResult) -> None:
        """Take notice that a lesson ended, well or not."""


class Estimate:
    """Seconds that are left, from an earlier run's durations, else from the cells seen so far.

    Args:
        cells: number of code cells of each lesson, in the order of the run.
        past: seconds of each code cell in an earlier run, for the lessons that have one.
        clock: returns seconds; only differences count.
    """

    def __init__(
        self, cells: Mapping[str, int], past: Mapping[str, Sequence[float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Expect of a lesson that was edited since `past` its old mean for each cell."""
        self._clock = clock
        self._pending: dict[tuple[str, int], float | None] = {}
        self._seen: list[float] = []
        self._running: tuple[tuple[str, int], float] | None = None
        for name, total in cells.items():
            known = past.get(name) or ()
            mean = sum(known) / len(known) if known else None
            for number in range(1, total + 1):
                self._pending[name, number] = known[number - 1] if len(known) == total else mean

    def start(self, lesson: str, number: int) -> None:
        """Note that a cell starts now."""
        self._running = (lesson, number), self._clock()

    def end(self, lesson: str, number: int, seconds: float) -> None:
        """Note that a cell took `seconds`."""
        self._pending.pop((lesson, number), None)
        self._seen.append(seconds)
        self._running = None

    def drop(self, lesson: str) -> None:
        """Expect no further cell of `lesson`."""
        self._pending = {key: seconds for key, seconds in self._pending.items() if key[0] != lesson}
        self._running = None

    def remaining(self) -> float | None:
        """Return the seconds that are left, or None while nothing is known about some cell."""
        known = self._seen or [seconds for seconds in self._pending.values() if seconds is not None]
        if not known:
            return None if self._pending else 0.0
        mean = sum(known) / len(known)
        expected = {key: mean if seconds is None else seconds for key, seconds in self._pending.items()}
        total = sum(expected.values())
        if self._running is not None:
            key, began = self._running
            total -= min(self._clock() - began, expected.get(key, 0.0))
        return max(total, 0.0)


def run_course(
    folder: Path, out: Path, profile: Profile, *, lessons: Sequence[str] = (), watcher: Watcher | None = None
) -> list[LessonResult]:
    """Execute copies of the lessons one after the other, and write pages, an index and a ledger.

    Args:
        folder: where the notebooks are, and the kernels' working directory; it is not written to.
        out: where everything goes; `Ledger` reads ``out / "ledger.jsonl"``, which starts empty.
        profile: what the lessons see as ``COOKBOOK_PROFILE``.
        lessons: numbers or names; empty means all.
        watcher: told about every cell and lesson.

    Returns:
        One result a lesson, in order. A lesson that fails does not keep the others from running.

    Raises:
        UsageError: there is no such lesson, or `out` is the folder of the lessons.
        KeyboardInterrupt: Ctrl-C; the kernel is stopped and the finished lessons are kept.
    """
    folder, out = folder.resolve(), out.resolve()
    if out == folder:
        raise UsageError(f"--out is {out}, where the lessons are: name another folder, such as build/course.")
    paths = list_lessons(folder, lessons)
    out.mkdir(parents=True, exist_ok=True)
    ledger = out / "ledger.jsonl"
    ledger.unlink(missing_ok=True)
    environment = {"COOKBOOK_PROFILE": profile, "COOKBOOK_LEDGER": str(ledger), "COOKBOOK_PROGRESS": "off"}
    notebooks = {path.stem: _try_to_read(path) for path in paths}
    cells = {name: len(code_cells(book)) if isinstance(book, NotebookNode) else 0 for name, book in notebooks.items()}
    timings = _read_timings(out / "timings.json")
    past = timings.setdefault(profile, {})
    estimate, watcher = Estimate(cells, past), watcher or Watcher()
    watcher.begin(cells, estimate)
    results: list[LessonResult] = []
    for name, notebook in notebooks.items():
        began = time.perf_counter()
        durations: list[float] = []
        error = str(notebook) if isinstance(notebook, LessonError) else None
        if not isinstance(notebook, LessonError):
            try:
                execute(
                    notebook, folder, name=name, environment=environment, watch=_observe(name, durations, estimate, watcher)
                )
                past[name] = [round(seconds, 3) for seconds in durations]
            except LessonError as failure:
                error = str(failure)
            except KeyboardInterrupt:
                place = f"lesson {name}, cell {len(durations) + 1}"
                message = f"Interrupted in {place}: {len(results)} of {len(notebooks)} lessons are finished, in {out}."
                raise KeyboardInterrupt(message) from None
            write_notebook(notebook, out / f"{name}.ipynb")
            _write_text(out / f"{name}.html", render(notebook, name))
        estimate.drop(name)
        results.append(LessonResult(name, time.perf_counter() - began, len(durations), error))
        _write_text(out / "timings.json", json.dumps(timings, indent=1) + "\n")
        _write_text(out / "index.html", index_page(list_lessons(folder), results, out, profile))
        watcher.finished(results[-1])
    return results


def render(notebook: NotebookNode, name: str) -> str:
    """Return an executed notebook as one HTML page that loads nothing from a network."""
    exporter = HTMLExporter(raw_template=OFFLINE_TEMPLATE, embed_images=True)
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    return str(page)


def index_page(lessons: Sequence[Path], results: Sequence[LessonResult], out: Path, profile: Profile) -> str:
    """Return the page that links all lessons, with what this run measured below."""
    by_name = {result.name: result for result in results}
    items = "".join(f"<li>{_entry(path, by_name.get(path.stem), out)}</li>\n" for path in lessons)
    measured = Ledger(out / "ledger.jsonl").measurements()
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>The course</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{INDEX_STYLE}</style>\n</head>\n<body>\n'
        f"<h1>The course</h1>\n<p>Profile: {profile}.</p>\n<ul>\n{items}</ul>\n"
        f"{scoreboard(measured)._repr_html_() if measured else '<p>No measurement was recorded in this run.</p>'}\n"
        f"</body>\n</html>\n"
    )


def _entry(path: Path, result: LessonResult | None, out: Path) -> str:
    title = html.escape(_title(path))
    page = f"{path.stem}.html"
    if (out / page).is_file():
        title = f'<a href="{html.escape(page)}">{title}</a>'
    if result is None:
        return f"{title}: {'page of an earlier run' if (out / page).is_file() else 'not run yet'}"
    if result.error is not None:
        return f"{title}: failed: {html.escape(result.error)}"
    return f"{title}: {result.cells} cells in {result.seconds:.0f} s"


def _title(path: Path) -> str:
    """Return the notebook's first heading, or its name when there is none to read."""
    notebook = _try_to_read(path)
    cells = [] if isinstance(notebook, LessonError) else notebook.cells
    lines = cells[0].source.splitlines() if cells and cells[0].cell_type == "markdown" else []
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("# ")), path.stem)


def _try_to_read(path: Path) -> NotebookNode | LessonError:
    try:
        return read_notebook(path)
    except LessonError as error:
        return error


def _observe(name: str, durations: list[float], estimate: Estimate, watcher: Watcher) -> Callable[[int, float | None], None]:
    """Return the function that passes the start and the end of the cells of one lesson on."""

    def observe(number: int, seconds: float | None) -> None:
        if seconds is None:
            estimate.start(name, number)
            watcher.cell(name, number)
        else:
            durations.append(seconds)
            estimate.end(name, number, seconds)

    return observe


def _read_timings(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return seconds by profile and lesson; a missing or damaged file costs only the estimate."""
    try:
        timings: Any = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(profile): {str(name): [float(seconds) for seconds in cells] for name, cells in lessons.items()}
            for profile, lessons in timings.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


__all__ = ["Estimate", "LessonResult", "Watcher", "index_page", "list_lessons", "render", "run_course"]
