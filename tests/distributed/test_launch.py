"""Launching: results, output, failures in a sentence, and no process left behind, however it ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import launched_workers
import psutil
import pytest

from cookbook.distributed import launch
from cookbook.errors import UsageError
from cookbook.training import RankError

LIMIT = 150  # seconds for what takes some five on an idle machine


def gone(pids: list[int], seconds: float = 60) -> bool:
    """Say whether none of the processes is left, after waiting for it."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def noted(folder: Path, seconds: float = LIMIT) -> list[int]:
    """Wait until both ranks of `hang` have said who they and their children are."""
    deadline = time.monotonic() + seconds
    while not all((folder / f"pids-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.1)
    return [int(pid) for rank in (0, 1) for pid in (folder / f"pids-{rank}").read_text().split()]


def test_results_come_back_by_rank_and_output_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = launch(launched_workers.add, 1, 2.5, ranks=2, threads=1, timeout=LIMIT)
    assert [(one["rank"], one["world"], one["sum"], one["threads"]) for one in found] == [(0, 2, 4.5, 1), (1, 2, 4.5, 1)]
    lines = capsys.readouterr().out.splitlines()
    printed = [line for line in lines if "[c10d]" not in line]  # without a network torch says that it cannot name the host
    assert sorted(printed) == ["[rank 0] rank 0 is here", "[rank 1] rank 1 is here"]
    assert gone([one["pid"] for one in found])


@pytest.mark.parametrize(
    ("how", "sentence"),
    [("raised", "Rank 1 of 2 failed: ValueError: the labels are wrong"),
     ("explained", "Rank 1 of 2 failed: The labels are wrong."),
     ("killed", "Rank 1 of 2 was killed by SIGKILL, which the system does when memory runs out: the others were stopped.")],
)  # fmt: skip
def test_the_rank_that_failed_first_is_the_one_that_is_shown(
    how: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RankError) as error:
        launch(launched_workers.fail, how, timeout=LIMIT)
    assert str(error.value) == sentence
    printed = capsys.readouterr().out
    assert ("[rank 1] ValueError: the labels are wrong" in printed) is (how == "raised")
    assert "[rank 0]" not in printed


def test_a_killed_rank_starts_again_and_all_meet_anew(tmp_path: Path) -> None:
    assert launch(launched_workers.fail_once, str(tmp_path), max_restarts=1, timeout=LIMIT) == [[1, 3], [1, 3]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "0-1", "1-0", "1-1"]


def test_a_hang_ends_at_the_timeout_with_the_stacks_of_all_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RankError, match="2 ranks had not ended after 35 s: the stacks above say where"):
        launch(launched_workers.hang, str(tmp_path), timeout=35, grace=1)
    printed = capsys.readouterr().out
    for rank in (0, 1):
        assert any(line.startswith(f"[rank {rank}]") and "wait_in_this_function" in line for line in printed.splitlines())
    assert gone(noted(tmp_path, 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_launching_process_is_interrupted_or_killed(tmp_path: Path, number: int) -> None:
    """The ranks are deaf to SIGTERM and have children; SIGKILL is what the restart of a kernel may come to."""
    script = Path(launched_workers.__file__)
    launching = subprocess.Popen([sys.executable, script, tmp_path], stderr=subprocess.PIPE, text=True)
    try:
        pids = noted(tmp_path)
        agents = [child.pid for child in psutil.Process(launching.pid).children()]
        launching.send_signal(number)
        _, said = launching.communicate(timeout=LIMIT)
        assert launching.returncode == -number
        assert ("KeyboardInterrupt" in said) is (number == signal.SIGINT)
        assert len(agents) == 1 and gone(pids + agents)
    finally:
        launching.kill()


def not_importable() -> None: ...


@pytest.mark.parametrize("worker", [lambda: None, print.__call__])
def test_a_worker_without_a_name_is_refused(worker: Callable[[], None]) -> None:
    with pytest.raises(UsageError, match="has no name to import it by"):
        launch(worker)


def test_a_worker_of_a_notebook_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(not_importable, "__module__", "__main__")
    with pytest.raises(
        UsageError, match=r"'not_importable' is defined in a notebook's cell .* put it into a module, such as my_w"
    ):
        launch(not_importable)


def test_settings_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = launched_workers.add
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(UsageError, match=f"Port {busy.getsockname()[1]} is in use"):
            launch(worker, endpoint=f"127.0.0.1:{busy.getsockname()[1]}")
    with pytest.raises(UsageError, match="ranks is 0"):
        launch(worker, ranks=0)
    with pytest.raises(UsageError, match=r"arguments cannot be passed on .*set"):
        launch(worker, {1, 2})
    with pytest.raises(UsageError, match="2 machines need a place to meet"):
        launch(worker, hosts=2)
    with pytest.raises(UsageError, match="endpoint is 'node0': write HOST:PORT"):
        launch(worker, hosts=2, endpoint="node0")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="itself a rank"):
        launch(worker)
