"""What the long experiments share on the command line: profiles, processes that share a list, exit status."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar

import torch

from cookbook.environment import current_profile
from cookbook.errors import CookbookError, UsageError

Task = TypeVar("Task", contravariant=True)


class Trains(Protocol[Task]):
    """An experiment that can train one network at a time."""

    def train(self, task: Task) -> object:
        """Train a network and keep it; nothing is done where it lies in the experiment's folder already."""


def require_profile(rehearse: bool) -> None:
    """Refuse to record evidence in the quick profile, and to rehearse in the full one.

    Raises:
        UsageError: the profile is the wrong one.
    """
    full = current_profile() == "full"
    if not rehearse and not full:
        raise UsageError(
            "Evidence is recorded in the full profile only: set COOKBOOK_PROFILE=full, or rehearse with --rehearse."
        )
    if rehearse and full:
        raise UsageError("A rehearsal is no evidence: unset COOKBOOK_PROFILE, or leave --rehearse out.")


def train_in_processes(
    experiment: Callable[..., Trains[Task]], arguments: Sequence[object], tasks: Sequence[Task], jobs: int, threads: int
) -> None:
    """Train every network of a list, in `jobs` processes that share it.

    Args:
        experiment: its class, importable by name, from which each process makes one of its own.
        arguments: of the class.
        tasks: what is to be trained.
        jobs: processes at a time.
        threads: CPU threads of each.

    Raises:
        CookbookError: a process failed; what was finished is kept.
    """
    context = multiprocessing.get_context("spawn")  # a fork after torch has computed in threads can hang
    turn = context.Value("i", 0)
    work = (experiment, tuple(arguments), list(tasks), threads, turn)
    workers = [context.Process(target=_work, args=work, daemon=True) for _ in range(min(jobs, len(tasks)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [worker for worker in workers if worker.exitcode]
    if failed:
        raise CookbookError(
            f"{len(failed)} of {len(workers)} processes stopped early: the same command goes on where they were."
        )


def _work(
    experiment: Callable[..., Trains[Task]], arguments: tuple[object, ...], tasks: list[Task], threads: int, turn: Any
) -> None:
    """Train the next network that no process has taken, until there is none."""
    torch.set_num_threads(threads)
    own = experiment(*arguments)
    while True:
        with turn.get_lock():
            number, turn.value = turn.value, turn.value + 1
        if number >= len(tasks):
            return
        own.train(tasks[number])


def leave_on_termination() -> None:
    """Turn SIGTERM into an orderly exit, at which multiprocessing ends its daemons; they save first."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line and end this process: with what `main` returns, 2 after a wrong use, 1 after a failure."""
    try:
        raise SystemExit(main())
    except CookbookError as error:
        print(f"cookbook: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
