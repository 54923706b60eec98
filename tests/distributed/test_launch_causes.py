"""Which of several failures is the one that is told: the books that the ranks and the agent leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cookbook.distributed.launch import _cause


def left(folder: Path, *failures: tuple[int, int, str, float], attempt: int = 0, exits: dict[str, int] | None = None) -> str:
    """Write what each (rank, attempt, kind, time) leaves, and return what is told."""
    for rank in (0, 1):
        (folder / f"process-{rank}").write_text(json.dumps([1, attempt]))
    for rank, at, kind, time in failures:
        content = {"rank": rank, "time": time, "kind": kind, "message": f"of {rank}", "explained": kind == "RankError"}
        (folder / f"failure-{rank}-{at}.json").write_text(json.dumps({**content, "traceback": f"trace of {rank}\n"}))
    if exits is not None:
        (folder / "agent.json").write_text(json.dumps({"exits": exits}))
    return _cause(folder, 1, 2)


def test_the_earliest_failure_wins_over_later_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert left(tmp_path, (0, 0, "ValueError", 5.0), (1, 0, "KeyError", 4.0)) == "Rank 1 of 2 failed: KeyError: of 1"
    assert capsys.readouterr().out == "[rank 1] trace of 1\n"


def test_a_rank_that_lost_touch_is_never_the_cause_of_another_failure(tmp_path: Path) -> None:
    assert left(tmp_path, (0, 0, "RankError", 1.0), (1, 0, "ValueError", 2.0)) == "Rank 1 of 2 failed: ValueError: of 1"


def test_a_kill_is_the_cause_that_others_lost_touch(tmp_path: Path) -> None:
    said = left(tmp_path, (0, 0, "RankError", 1.0), exits={"0": 1, "1": -11})
    assert said == "Rank 1 of 2 was killed by SIGSEGV: the others were stopped."


def test_failures_of_earlier_attempts_are_history(tmp_path: Path) -> None:
    said = left(tmp_path, (0, 0, "ValueError", 1.0), attempt=1, exits={"0": -15, "1": -9})
    assert said.startswith("Rank 1 of 2 was killed by SIGKILL, which the system does when memory runs out")


def test_what_nobody_explains_is_told_by_status(tmp_path: Path) -> None:
    assert left(tmp_path, exits={"1": 143}) == (
        "The ranks were stopped (rank 1 with status 143): see what they printed above."
    )  # fmt: skip
