"""Which of several failures is the one that is told: the books that the ranks and the agent leave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cookbook.distributed.launch import _ending, _follow
from cookbook.distributed.traces import cause, failed_for_good
from cookbook.training import RankError


def left(folder: Path, *failures: tuple[int, int, str, float], attempt: int = 0, exits: dict[str, int] | None = None) -> str:
    """Write what each (rank, attempt, kind, time) leaves, and return what is told."""
    for rank in (0, 1):
        (folder / f"process-{rank}").write_text(json.dumps([1, attempt]))
    for rank, at, kind, time in failures:
        content = {"rank": rank, "time": time, "kind": kind, "message": f"of {rank}", "explained": kind == "RankError"}
        (folder / f"failure-{rank}-{at}.json").write_text(json.dumps({**content, "traceback": f"trace of {rank}\n"}))
    if exits is not None:
        (folder / "agent.json").write_text(json.dumps({"exits": exits}))
    return cause(folder, 1, 2)


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


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that does not end by itself, nor by SIGTERM, and names the folder, as the agent and the ranks do."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"  # from now on it is deaf
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def test_ranks_have_failed_for_good_when_one_has_in_the_last_attempt_and_all_are_gone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    left(tmp_path, (0, 1, "ValueError", 1.0), attempt=1)
    for rank in (0, 1):
        (tmp_path / f"process-{rank}").write_text(json.dumps([2**22 + 1 + rank, 1]))  # no process has this number
    assert failed_for_good(tmp_path, max_restarts=1)
    assert not failed_for_good(tmp_path, max_restarts=2), "they will be started again"
    (tmp_path / "process-1").write_text(json.dumps([sleeper.pid, 1]))
    assert not failed_for_good(tmp_path, max_restarts=1), "one is left"
    sleeper.kill()
    sleeper.wait()
    assert failed_for_good(tmp_path, max_restarts=1)


@pytest.mark.timeout(60)
def test_an_agent_that_waits_for_ever_after_its_ranks_have_failed_is_ended(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    left(tmp_path, (0, 0, "ValueError", 1.0))
    for rank in (0, 1):
        (tmp_path / f"process-{rank}").write_text(json.dumps([2**22 + 1 + rank, 0]))
    _follow(sleeper, tmp_path, None, 0, grace=0.5)
    assert sleeper.returncode == -signal.SIGKILL


@pytest.mark.timeout(60)
def test_a_machine_that_fell_silent_is_told_at_once(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cookbook.distributed.launch"], "GRACE_APART", 0.2)
    (tmp_path / "lost").write_text(json.dumps("Nothing was heard of b."))
    with pytest.raises(RankError, match=r"^Nothing was heard of b\.$"), _ending(sleeper, tmp_path, grace=600):
        _follow(sleeper, tmp_path, None, 0, grace=600)
    assert sleeper.returncode == -signal.SIGKILL, "it was asked in vain, and not for ten minutes"
