"""What the long experiments share: options, profiles, a plan's folder, processes that share a list, exit status."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from torch import nn

from cookbook.data import Splits
from cookbook.environment import current_profile
from cookbook.errors import CookbookError, UsageError
from cookbook.files import cache_directory
from cookbook.models import load

Work = TypeVar("Work", contravariant=True)


class Trains(Protocol[Work]):
    """An experiment that can train one network at a time."""

    def train(self, task: Work) -> object:
        """Train a network and keep it; nothing is done where it lies in the experiment's folder already."""


@dataclass(frozen=True)
class FixedPlan:
    """Everything that decides an experiment's outcome; another plan has another folder."""

    def digest(self) -> str:
        """Return 12 hexadecimal digits that name the folder of this plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Task:
    """One training: an arm of an experiment and a seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"{self.arm.replace(' → ', '-').replace(' ', '_')}-seed{self.seed}"


class KeepsNetworks:
    """An experiment whose trained networks lie in its folder, by the names of their tasks.

    Attributes:
        folder: of the experiment.
    """

    folder: Path

    def file(self, task: Task) -> Path:
        """Return where the trained network lies."""
        return self.folder / f"{task.name}.safetensors"

    def network(self, task: Task) -> nn.Module:
        """Return a trained network.

        Raises:
            CheckpointError: it was not trained yet.
        """
        return load(self.file(task))


class Options(argparse.ArgumentParser):
    """What every long experiment is asked on its command line; the others are added with `add_argument`.

    Args:
        documentation: of the experiment's module; its first line describes the command.
        experiment: name of its folder in the cache.
    """

    def __init__(self, documentation: str, experiment: str) -> None:
        super().__init__(description=documentation.split("\n", maxsplit=1)[0])
        self.experiment = experiment
        self.add_argument("--jobs", type=int, default=1, help="trainings at a time")
        self.add_argument("--threads", type=int, default=1, help="CPU threads of each")
        self.add_argument("--folder", type=Path, help="for everything that is trained; in the cache folder by default")
        self.add_argument("--rehearse", action="store_true", help="a miniature, recorded in the local ledger")

    def add_precision(self) -> None:
        """Ask for the precision of the trainings as well; each side of a comparison has the same."""
        words = "of every training without rounding; bf16 saves time where the processor multiplies it (cookbook doctor)"
        self.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=words)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Return the options, with the folder where everything that is trained goes.

        Raises:
            UsageError: fewer than one job or thread, or the wrong profile.
        """
        options = self.parse_args(arguments)
        if min(options.jobs, options.threads) < 1:
            raise UsageError("--jobs and --threads must be 1 or more.")
        require_profile(options.rehearse)
        options.folder = (options.folder or cache_directory() / "experiments" / self.experiment).expanduser()
        return options


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


def part_of(whole: Splits, images: int, tested: int | None) -> Splits:
    """Return the splits with so many training images, and so many of validation and of test each; None: all of those."""
    validation, test = (split if tested is None else split.subset(tested) for split in (whole.validation, whole.test))
    return Splits(whole.train.subset(images), validation, test)


def train_in_processes(
    experiment: Callable[..., Trains[Work]], arguments: Sequence[object], tasks: Sequence[Work], jobs: int, threads: int
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
    experiment: Callable[..., Trains[Work]], arguments: tuple[object, ...], tasks: list[Work], threads: int, turn: Any
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
