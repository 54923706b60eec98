"""The course runner around a pretended execution; tests/test_execution.py starts real kernels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cookbook import course
from cookbook.course import Estimate, LessonResult, Watcher, render, run_course
from cookbook.errors import UsageError
from cookbook.evidence import Ledger, Measurement
from cookbook.execution import LessonError, Watch, read_notebook, write_notebook

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Recorder(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def begin(self, cells: Mapping[str, int], estimate: Estimate) -> None:
        self.estimate = estimate
        self.events.append(dict(cells))

    def cell(self, lesson: str, number: int) -> None:
        self.events.append((lesson, number))

    def finished(self, result: LessonResult) -> None:
        self.events.append(result.name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with three lessons; a cell `fail` fails, `measure` records, `interrupt` is Ctrl-C."""
    folder = tmp_path / "notebooks"
    lessons = {"00_one": ["a", "measure"], "01_two": ["b", "fail", "c"], "02_<three>": ["d"]}
    for name, sources in lessons.items():
        cells = [new_markdown_cell(f"# {name[:2]} Lesson & <{name[3:]}>\n\nText."), *map(new_code_cell, sources)]
        write_notebook(new_notebook(cells=cells), folder / f"{name}.ipynb")
    monkeypatch.setattr(course, "execute", pretend)
    return folder


def pretend(notebook: NotebookNode, folder: Path, *, name: str, environment: Mapping[str, str], watch: Watch) -> None:
    for number, cell in enumerate(notebook.cells[1:], start=1):
        watch(number, None)
        if cell.source == "fail":
            raise LessonError(name, number, "ValueError: no")
        if cell.source == "interrupt":
            raise KeyboardInterrupt
        if cell.source == "measure":
            row = Measurement(subject="baseline", lesson="00", runtime="torch eager", split="test", correct=9, images=10)
            Ledger(environment["COOKBOOK_LEDGER"]).append(row)
        cell.outputs = [new_output("stream", name="stdout", text=f"{cell.source} in {environment['COOKBOOK_PROFILE']}\n")]
        watch(number, 0.5 * number)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failing_lesson_is_named_and_the_others_run(folder: Path, tmp_path: Path) -> None:
    before, out, watcher = snapshot(folder), tmp_path / "build" / "course", Recorder()
    results = run_course(folder, out, "quick", watcher=watcher)
    assert [result.error for result in results] == [None, "01_two, cell 2: ValueError: no", None]
    assert [result.cells for result in results] == [2, 1, 1]
    assert watcher.estimate.remaining() == 0  # nothing more is expected of the lesson that failed
    assert snapshot(folder) == before
    assert sorted(snapshot(out)) == sorted(
        [f"{name}.{kind}" for name in ("00_one", "01_two", "02_<three>") for kind in ("html", "ipynb")]
        + ["index.html", "ledger.jsonl", "timings.json"]
    )
    assert read_notebook(out / "00_one.ipynb").cells[1].outputs[0].text == "a in quick\n"
    assert watcher.events == [
        {"00_one": 2, "01_two": 3, "02_<three>": 1}, ("00_one", 1), ("00_one", 2), "00_one", ("01_two", 1), ("01_two", 2),
        "01_two", ("02_<three>", 1), "02_<three>",
    ]  # fmt: skip


class Links(HTMLParser):
    """Collects the addresses that a page points to, and those that it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.points_to: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a":
            self.points_to.append(values.get("href") or "")
        self.loads += [values["src"] or ""] if "src" in values else []
        self.loads += [values["href"] or ""] if tag == "link" else []


def test_the_index_links_every_lesson_and_shows_the_scoreboard(folder: Path, tmp_path: Path) -> None:
    run_course(folder, tmp_path / "out", "quick")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert Links(page).points_to == ["00_one.html", "01_two.html", "02_<three>.html"]
    assert "00 Lesson &amp; &lt;one&gt;</a>: 2 cells" in page and "<three>" not in page
    assert "failed: 01_two, cell 2: ValueError: no" in page and "baseline" in page
    assert Links(page).loads == []


def test_the_ledger_starts_fresh_and_other_lessons_pages_stay(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_course(folder, out, "full", lessons=["00"])
    assert len(Ledger(out / "ledger.jsonl").measurements()) == 1
    results = run_course(folder, out, "full", lessons=["02"])
    assert [result.name for result in results] == ["02_<three>"]
    assert not (out / "ledger.jsonl").exists()
    page = (out / "index.html").read_text(encoding="utf-8")
    assert Links(page).points_to == ["00_one.html", "02_<three>.html"]
    assert "page of an earlier run" in page and "not run yet" in page and "No measurement was recorded" in page


def test_ctrl_c_keeps_the_finished_lessons(folder: Path, tmp_path: Path) -> None:
    cells = [new_markdown_cell("# 01"), new_code_cell("b"), new_code_cell("interrupt")]
    write_notebook(new_notebook(cells=cells), folder / "01_two.ipynb")
    out = tmp_path / "out"
    with pytest.raises(
        KeyboardInterrupt, match=r"^Interrupted in lesson 01_two, cell 2: 1 of 3 lessons are finished, in .*out\.$"
    ):
        run_course(folder, out, "quick")
    assert sorted(snapshot(out)) == ["00_one.html", "00_one.ipynb", "index.html", "ledger.jsonl", "timings.json"]
    assert set(json.loads((out / "timings.json").read_text())["quick"]) == {"00_one"}


def test_a_damaged_notebook_fails_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "00_one.ipynb").write_text("{")
    results = run_course(folder, tmp_path / "out", "quick", lessons=["00", "02"])
    assert results[0].error is not None and "not a readable notebook" in results[0].error and results[1].error is None
    assert not (tmp_path / "out" / "00_one.html").exists()


def test_the_folder_of_the_lessons_is_never_the_output(folder: Path) -> None:
    before = snapshot(folder)
    with pytest.raises(UsageError, match="where the lessons are"):
        run_course(folder, folder.parent / "other" / ".." / folder.name, "quick")
    assert snapshot(folder) == before


def test_timings_are_kept_by_profile_and_damaged_ones_are_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "timings.json").write_text('{"quick": [')
    run_course(folder, out, "quick", lessons=["00", "01"])
    run_course(folder, out, "full", lessons=["02"])
    timings = json.loads((out / "timings.json").read_text())
    assert timings == {"quick": {"00_one": [0.5, 1.0]}, "full": {"02_<three>": [0.5]}}  # a failed lesson tells nothing


class Clock:
    """A clock that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_estimate_comes_from_the_last_run() -> None:
    clock = Clock()
    estimate = Estimate({"a": 3, "b": 2}, {"a": [1.0, 2.0, 3.0], "b": [10.0, 20.0]}, clock)
    assert estimate.remaining() == 36
    estimate.start("a", 1)
    clock.now = 0.75
    assert estimate.remaining() == 35.25
    clock.now = 50.0  # a cell that takes longer than last time does not make the rest shorter
    assert estimate.remaining() == 35
    estimate.end("a", 1, 50.0)
    assert estimate.remaining() == 35
    estimate.drop("a")
    assert estimate.remaining() == 30
    estimate.drop("b")
    assert estimate.remaining() == 0


def test_the_estimate_takes_edited_and_new_lessons_by_their_cells() -> None:
    assert Estimate({"a": 3}, {"a": [1.0, 3.0]}).remaining() == 6  # edited since: its mean of 2 s a cell
    assert Estimate({"a": 1, "new": 4}, {"a": [2.0]}).remaining() == 10
    estimate = Estimate({"a": 2, "b": 3}, {})
    assert estimate.remaining() is None
    estimate.start("a", 1)
    estimate.end("a", 1, 4.0)
    assert estimate.remaining() == 16


def test_a_page_loads_nothing_and_holds_its_pictures() -> None:
    figure = new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"})
    cells = [
        new_markdown_cell("# 00 Title\n\n```mermaid\ngraph TD\n```\n\nA formula $x^2$."),
        new_code_cell("print(1)", execution_count=1, outputs=[new_output("stream", name="stdout", text="one\n"), figure]),
    ]
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    page = render(new_notebook(cells=cells, metadata={"widgets": widgets}), "00_title")
    assert "one" in page and "<title>00_title</title>" in page
    loads = Links(page).loads
    assert [address[:22] for address in loads] == ["data:image/png;base64,"]
    scripts = "".join(re.findall(r"<script.*?</script>", page, re.DOTALL))
    assert "http:" not in scripts and "https:" not in scripts and "import(" not in scripts
    assert not re.search(r"@import|url\(\s*['\"]?https?:", page)
