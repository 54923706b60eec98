"""The experiment with killed ranks: one real kill, and the books it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cookbook.errors import UsageError
from cookbook.experiments import elastic
from cookbook.experiments.elastic import Killed, kill_and_compare


def test_a_rank_killed_at_a_random_moment_changes_nothing_and_leaves_nothing() -> None:
    said: list[str] = []
    [run] = kill_and_compare(1, images=160, epochs=1, say=said.append)
    assert (run.same, run.left) == (True, 0)
    assert "the same weights on all ranks: True" in said[0] and "same weights: True" in said[1]


class Launches:
    """Stands in for `launch`: what the ranks of each run return, the undisturbed first."""

    def __init__(self, *ends: tuple[str, int]) -> None:
        self.ends, self.moments = list(ends), []

    def __call__(
        self, worker: object, folder: str, images: int, epochs: int, rank: int, after: float, **ignored: Any
    ) -> list[Any]:
        self.moments.append((rank, after))
        Path(folder, f"process-{2**22 + 1}").touch()  # above the largest id that Linux gives
        weights, restarts = self.ends.pop(0)
        return [{"weights": weights, "restarts": restarts, "seconds": seconds} for seconds in (8.0, 9.0)]


def test_runs_that_ended_before_their_moment_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(("a", 0), ("a", 0), ("a", 1), ("b", 1))
    monkeypatch.setattr(elastic, "launch", launches)
    runs = kill_and_compare(2, say=lambda text: None)
    assert [run.same for run in runs] == [True, False]
    assert launches.moments[0] == (-1, 0.0)
    assert all(rank in (0, 1) and 0 <= after <= 8 for rank, after in launches.moments[1:])
    assert [(run.rank, run.after) for run in runs] == launches.moments[2:]


@pytest.mark.parametrize(
    ("runs", "status"),
    [([Killed(0, 1.0, True, 0)] * 2, 0), ([Killed(0, 1.0, True, 0)], 1),
     ([Killed(0, 1.0, True, 0), Killed(1, 1.0, False, 0)], 1), ([Killed(0, 1.0, True, 0), Killed(1, 1.0, True, 1)], 1)],
    ids=["all well", "one did not count", "other weights", "a process left"],
)  # fmt: skip
def test_the_status_says_whether_all_went_well(
    runs: list[Killed], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(elastic, "kill_and_compare", lambda kills, **settings: runs)
    assert elastic.main(["--kills", "2"]) == status
    assert "Ranks killed at random moments" in capsys.readouterr().out


def test_nothing_to_kill_is_refused() -> None:
    with pytest.raises(UsageError, match="0 kills of 2 ranks"):
        kill_and_compare(0)
    with pytest.raises(UsageError, match="1 kills of 1 ranks"):
        kill_and_compare(1, ranks=1)
