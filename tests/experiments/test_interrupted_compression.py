"""The experiment with killed compressions: real processes and real kills, with a stand-in that is quick, and its books."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cookbook.cli import compress as command_line
from cookbook.errors import CookbookError, UsageError
from cookbook.experiments import interrupted_compression
from cookbook.experiments.compression_case import images, network
from cookbook.experiments.interrupted_compression import Compared, compress_command, kill_and_compare
from cookbook.pipeline import Plan

STEPS = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
for step in range(6):
    file = folder / str(step) / "model.onnx"
    if not file.exists():
        time.sleep(0.1)
        file.parent.mkdir(exist_ok=True)
        partial = folder / "partial"
        partial.write_text({content})
        partial.replace(file)
"""


def steps(content: str) -> Callable[[Path], Sequence[str]]:
    """Return a command that leaves six files, one after the other, and goes on where it was killed."""
    return lambda folder: [sys.executable, "-S", "-E", "-c", STEPS.format(content=content), str(folder)]


def test_what_resumes_well_ends_with_the_same_files() -> None:
    said: list[str] = []
    found = kill_and_compare(4, command=steps("str(step)"), say=said.append)
    assert sum(len(one.kills) for one in found) == 4 and not any(one.differing for one in found)
    assert "6 files to compare" in said[0] and "files that differ: none" in said[-1]


def test_a_trace_of_the_interruption_is_found() -> None:
    first_here = "'begun' not in globals()"
    content = f"'resumed' if step and {first_here} else globals().update(begun=1) or 'whole'"
    found = kill_and_compare(3, command=steps(content), say=lambda line: None)
    assert any(one.differing for one in found) and all("0/model.onnx" not in one.differing for one in found)


def test_a_session_that_fails_by_itself_is_an_error() -> None:
    with pytest.raises(CookbookError, match=r"status 1 \(ValueError: no\)"):
        kill_and_compare(1, command=lambda folder: [sys.executable, "-c", "raise ValueError('no')"])


def test_sessions_that_are_over_at_once_are_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupted_compression, "_session", lambda command, seconds: True)
    with pytest.raises(CookbookError, match="Only 0 of 13"):
        kill_and_compare(1, say=lambda line: None)


def test_the_case_is_what_the_command_line_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, flag, code, *arguments = compress_command(tmp_path)
    assert (program, flag) == (sys.executable, "-c")
    monkeypatch.setattr(sys, "argv", ["cookbook", *arguments, "--dry-run"])
    said: list[object] = []
    monkeypatch.setattr(command_line, "print", said.append, raising=False)
    exec(code)
    assert not any(tmp_path.iterdir())
    (chosen,) = [line for line in said if isinstance(line, Plan)]
    assert [step.name for step in chosen.steps] == ["prune", "distill", "quantize"]
    splits = images()
    assert network()(splits.test.normalized()[:2]).shape == (2, 3) and len(splits.train) == 300


@pytest.mark.parametrize(
    ("found", "status"),
    [([Compared((1.0, 2.0))], 0), ([Compared((1.0,)), Compared((2.0,), ("model.onnx",))], 1)],
    ids=["all well", "another file"],
)
def test_the_status_says_whether_all_went_well(
    found: list[Compared], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(interrupted_compression, "kill_and_compare", lambda kills, seed: asked.append(kills) or found)
    assert interrupted_compression.main(["--rehearse"]) == status
    assert asked == [2] and "killed at random moments" in capsys.readouterr().out


def test_nothing_to_kill_is_refused() -> None:
    with pytest.raises(UsageError, match="0 kills show nothing"):
        kill_and_compare(0)
