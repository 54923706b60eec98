"""Forming a group from environment variables, and the ways in which that fails."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest
import torch
from meeting_ranks import meet
from torch import multiprocessing

from cookbook.distributed import joined, launched
from cookbook.errors import UsageError

PATIENT = 60.0  # seconds for processes that do come


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def met(
    folder: Path, *ranks: tuple[int, int], timeout: float = PATIENT, leaving: int = -1, port: int | None = None
) -> list[str]:
    """Start one process for each pair of rank and world size; return what each wrote."""
    multiprocessing.set_forkserver_preload(["cookbook.training", "torch._dynamo"])
    context = multiprocessing.get_context("forkserver")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
    processes = [
        context.Process(
            target=meet,
            args=(number, {**place, "RANK": str(rank), "WORLD_SIZE": str(world)}, str(folder), timeout, number == leaving),
        )
        for number, (rank, world) in enumerate(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    files = [folder / str(number) for number in range(len(ranks)) if number != leaving]
    assert all(file.exists() for file in files), "a process did not end in time"
    return [file.read_text() for file in files]


def test_two_processes_meet_by_environment_variables(tmp_path: Path) -> None:
    for rank, said in enumerate(met(tmp_path, (0, 2), (1, 2))):
        assert f"rank={rank}, world=2, local_rank={rank}, local_world=2, device=device(type='cpu')" in said
        assert said.endswith(" gloo 3 False"), "the sum of 1 and 2, and no group afterwards"


def test_unequal_world_sizes_are_said_on_both_sides(tmp_path: Path) -> None:
    one, other = met(tmp_path, (0, 3), (1, 2), timeout=20)
    assert one.startswith("RankError: ") and other.startswith("RankError: ")
    assert "Rank 1 counts 2 processes and rank 0 counts 3" in other
    assert "Rank 0 counts 3 processes and rank 1 counts 2" in one


def test_a_rank_that_comes_twice_or_never_is_said(tmp_path: Path) -> None:
    assert "Two processes say that they are rank 1" in " ".join(met(tmp_path, (0, 3), (1, 3), (1, 3), timeout=5))
    [lonely] = met(tmp_path, (0, 2), timeout=2)
    assert lonely.startswith("RankError: Rank 0 of 2 waited 2 s for the others at 127.0.0.1:") and "\n" not in lonely


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("0.0.0.0", 0))
        busy.listen()
        port = busy.getsockname()[1]
        [said] = met(tmp_path, (0, 2), timeout=2, port=port)
    assert said.startswith(f"RankError: Port {port} is in use on this machine: choose another as MASTER_PORT.")


def test_a_rank_that_leaves_is_no_hang(tmp_path: Path) -> None:
    [said] = met(tmp_path, (0, 2), (1, 2), leaving=1)
    assert said.startswith("RankError: Rank 0 of 2 lost touch with the others (") and "\n" not in said


def test_a_process_by_itself_forms_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not launched()
    with joined(device="cpu") as context:
        assert (context.rank, context.world, context.first, context.device) == (0, 1, True, torch.device("cpu"))
        assert not torch.distributed.is_initialized()


def test_an_error_of_the_block_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(RuntimeError, match="mine"), joined(device="cpu"):
        assert torch.distributed.is_initialized()
        raise RuntimeError("mine")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE is 2"), ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
     ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set")],
)  # fmt: skip
def test_variables_that_make_no_sense_are_refused(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=sentence), joined(device="cpu"):
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes on this machine need a GPU each, and it has 1"), joined(device="cuda"):
        pass
