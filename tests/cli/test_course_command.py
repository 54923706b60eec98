"""`cookbook course`: what it prints, at a terminal and in a log."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from cookbook.cli.course import LiveDisplay, line, time_left
from cookbook.course import Estimate, LessonResult, Watcher
from cookbook.evidence import Ledger, Measurement

Run = Callable[..., tuple[int, str, str]]
course = importlib.import_module("cookbook.cli.course")
GOOD = LessonResult("00_one", 61.6, 12)
BAD = LessonResult("01_two", 3.0, 2, "01_two, cell 3: NameError: name 'x' is not defined")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Replace the runner by one that records its arguments, measures once and reports two lessons."""
    seen: list[dict[str, object]] = []

    def run_course(folder: Path, out: Path, profile: str, *, lessons: Sequence[str], watcher: Watcher) -> list[LessonResult]:
        seen.append({"folder": folder, "out": out, "profile": profile, "lessons": list(lessons)})
        results = [GOOD] if lessons == ["00"] else [GOOD, BAD]
        if "nothing" not in lessons:
            Ledger(out / "ledger.jsonl").append(Measurement(subject="the baseline", lesson="00", runtime="torch eager"))
        for result in results:
            watcher.finished(result)
        return results

    monkeypatch.setattr(course, "run_course", run_course)
    return seen


def test_it_prints_a_line_a_lesson_the_scoreboard_and_what_to_open(
    run: Run, calls: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    status, out, err = run("course", "--notebooks", "notebooks", "--lessons", "00")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "ok      00_one: 12 cells in 62 s"
    assert "the baseline" in out and out.splitlines()[-1] == f"Open {Path('build', 'course', 'index.html')}"
    folder = tmp_path.resolve() / "notebooks"
    assert calls == [{"folder": folder, "out": folder.parent / "build" / "course", "profile": "quick", "lessons": ["00"]}]


def test_a_failed_lesson_is_the_exit_status(run: Run, calls: list[dict[str, object]], tmp_path: Path) -> None:
    status, out, err = run("course", "--out", tmp_path, "--profile", "full", "--lessons", " 00, 01_two ,")
    assert status == 1
    assert "failed  01_two, cell 3: NameError: name 'x' is not defined" in out and "the baseline" in out
    assert err == "cookbook: 1 of 2 lessons failed, first 01_two, cell 3: NameError: name 'x' is not defined\n"
    assert (calls[0]["profile"], calls[0]["lessons"]) == ("full", ["00", "01_two"])


def test_a_run_without_a_measurement_says_so(run: Run, calls: list[dict[str, object]], tmp_path: Path) -> None:
    _, out, _ = run("course", "--out", tmp_path, "--lessons", "nothing")
    assert "No measurement was recorded in this run." in out


def test_the_profile_comes_from_the_environment(
    run: Run, calls: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    run("course", "--out", tmp_path, "--lessons", "00")
    assert calls[0]["profile"] == "full"
    monkeypatch.setenv("COOKBOOK_PROFILE", "fast")
    status, _, err = run("course", "--out", tmp_path)
    assert status == 2 and err.startswith("cookbook: COOKBOOK_PROFILE is 'fast'") and err.count("\n") == 1


def test_a_folder_without_lessons_is_wrong_use(run: Run, tmp_path: Path) -> None:
    status, _, err = run("course", "--notebooks", tmp_path)
    assert status == 2 and "There is no lesson in" in err and err.count("\n") == 1


def test_an_output_folder_that_cannot_be_made_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "00_a.ipynb").touch()
    (tmp_path / "file").touch()
    status, _, err = run("course", "--notebooks", tmp_path, "--out", tmp_path / "file" / "below")
    assert status == 1 and "below cannot be read or written" in err and err.count("\n") == 1


def test_the_display_shows_lesson_cell_elapsed_and_estimate() -> None:
    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, force_terminal=True, width=120))
    cells = {"00_one": 2, "01_two": 3}
    with display.progress:
        display.begin(cells, Estimate(cells, {"00_one": [30.0, 40.0], "01_two": [1.0, 2.0, 3.0]}))
        display.cell("01_two", 2)
        display.progress.refresh()
        display.finished(BAD)
    text = screen.getvalue()
    assert "lesson 2/2 01_two, cell 2/3" in text and "0:00:00" in text and "about 0:01:16 left" in text
    assert f"{line(BAD)}\n" in text
    (task,) = display.progress.tasks
    assert (task.completed, task.total) == (3, 5)


def test_an_estimate_is_a_word_until_something_is_known() -> None:
    assert time_left(None) == "estimating"
    assert time_left(3723.4) == "about 1:02:03 left"
