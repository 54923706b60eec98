"""What the long experiments share: each training done once by somebody, failures told, profiles kept apart."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cookbook.errors import CookbookError, UsageError
from cookbook.experiments import capstone, combination, distillation, pruning, search
from cookbook.experiments.command import leave_on_termination, require_profile, run, train_in_processes
from cookbook.experiments.pruning_plan import plan_of
from cookbook.files import data_directory


class Notes:
    """Trains nothing: a task leaves a file with a line for every time that it was done, and 13 fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def train(self, task: int) -> None:
        if task == 13:
            raise ValueError("unlucky")
        with (self.folder / str(task)).open("a") as file:
            file.write(f"{os.getpid()}\n")


@pytest.mark.timeout(120)
def test_processes_share_a_list_and_do_each_task_once(tmp_path: Path) -> None:
    train_in_processes(Notes, (tmp_path,), range(6), 2, 1)
    done = {int(file.name): file.read_text().split() for file in tmp_path.iterdir()}
    assert sorted(done) == list(range(6))
    assert all(len(processes) == 1 and int(processes[0]) != os.getpid() for processes in done.values())


@pytest.mark.timeout(120)
def test_a_failed_process_is_told_and_what_was_finished_stays(tmp_path: Path) -> None:
    with pytest.raises(CookbookError, match="1 of 1 processes stopped early: the same command goes on"):
        train_in_processes(Notes, (tmp_path,), [1, 13, 2], 1, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["1"]


def test_nothing_left_to_train_starts_no_process(tmp_path: Path) -> None:
    train_in_processes(Notes, (tmp_path,), [], 2, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("profile", "rehearse", "advice"), [("quick", False, "or rehearse"), ("full", True, "unset")])
def test_evidence_and_rehearsal_need_their_profiles(
    monkeypatch: pytest.MonkeyPatch, profile: str, rehearse: bool, advice: str
) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", profile)
    with pytest.raises(UsageError, match=advice):
        require_profile(rehearse)
    require_profile(not rehearse)


@pytest.mark.parametrize("main", [capstone.main, combination.main, distillation.main, pruning.main, search.main])
@pytest.mark.parametrize(
    ("profile", "arguments", "words"),
    [
        ("quick", [], "COOKBOOK_PROFILE=full"),
        ("full", ["--rehearse"], "is no evidence"),
        ("quick", ["--jobs", "0"], "1 or more"),
    ],
)
def test_the_experiments_ask_for_it_before_any_work(
    main: Callable[[list[str]], None],
    profile: str,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", profile)
    with pytest.raises(UsageError, match=words):
        main(arguments)


def test_every_training_without_rounding_has_the_precision_that_is_asked_for() -> None:
    plan = plan_of(data_directory() / "checkpoints" / "baseline.json", precision="bf16")
    recipes = (plan.original, plan.tuning, plan.small_recipe, plan.small_tuning)
    assert {recipe.precision for recipe in recipes} == {"bf16"}
    assert {combination.Plan(precision="bf16").recipe(0, epochs).precision for epochs in (None, 2)} == {"bf16"}


def ends_with(error: Exception | None, status: int | None = None) -> int | None:
    if error is not None:
        raise error
    return status


@pytest.mark.parametrize(
    ("error", "returned", "status"),
    [(None, None, None), (None, 3, 3), (CookbookError("It broke."), None, 1), (UsageError("Not so."), None, 2)],
)
def test_the_exit_status_tells_failure_from_wrong_use(
    error: Exception | None, returned: int | None, status: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(lambda: ends_with(error, returned))
    assert end.value.code == status
    assert capsys.readouterr().err == (f"cookbook: {error}\n" if error else "")


def test_termination_is_an_orderly_exit() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        leave_on_termination()
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
        assert end.value.code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
