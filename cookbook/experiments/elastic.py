"""Kill a rank of a training at a random moment, again and again: does each run end as if nothing had happened? (lesson 03).

    python -m cookbook.experiments.elastic --kills 20
    python -m cookbook.experiments.elastic --rehearse     two kills of a shorter training

One undisturbed run gives the weights to compare with and the time in which a kill can fall. Every further run has
one rank, drawn at random, killed by SIGKILL at a random moment of its life, imports included; torchrun starts all
ranks again, `fit` goes on from the last state, and the weights must be the same bit for bit. A run that ended
before its moment came does not count. No process may be left.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cookbook.distributed import launch
from cookbook.errors import UsageError
from cookbook.evidence import Table
from cookbook.experiments.command import run
from cookbook.experiments.elastic_worker import train


@dataclass(frozen=True)
class Killed:
    """One run with a kill in it.

    Attributes:
        rank: that was killed.
        after: seconds of its life.
        same: whether the weights of all ranks are those of the undisturbed run, bit for bit.
        left: processes that were still there afterwards.
    """

    rank: int
    after: float
    same: bool
    left: int


def kill_and_compare(
    kills: int, *, ranks: int = 2, images: int = 1600, epochs: int = 4, seed: int = 0, say: Callable[[str], object] = print
) -> list[Killed]:
    """Return what became of `kills` runs in each of which a rank was killed.

    Args:
        ranks: of every run, with one CPU thread each.
        images: of Fashion-MNIST to train on, in batches of 32.
        epochs: passes over them; the state is saved after every step.
        seed: of the ranks and moments.
        say: takes a line after each run.

    Raises:
        UsageError: there is nothing to kill.
        RankError: a run was not completed.
    """
    if kills < 1 or ranks < 2:
        raise UsageError(f"{kills} kills of {ranks} ranks show nothing: use 1 kill or more, of 2 ranks or more.")
    moments = random.Random(seed)
    undisturbed, _ = _run(ranks, images, epochs, -1, 0.0)
    expected, lasts = str(undisturbed[0]["weights"]), min(float(str(one["seconds"])) for one in undisturbed)
    say(f"undisturbed: {lasts:.1f} s, the same weights on all ranks: {all(one['weights'] == expected for one in undisturbed)}")
    runs: list[Killed] = []
    attempts = 0
    while len(runs) < kills and attempts < 3 * kills:
        attempts += 1
        rank, after = moments.randrange(ranks), moments.uniform(0.0, lasts)
        ended, left = _run(ranks, images, epochs, rank, after)
        if ended[0]["restarts"] == 0:
            continue
        same = all(one["weights"] == expected for one in ended)
        runs.append(Killed(rank, after, same, left))
        say(f"{len(runs):3}: rank {rank} killed after {after:5.1f} s, same weights: {same}, processes left: {left}")
    return runs


def _run(ranks: int, images: int, epochs: int, rank: int, after: float) -> tuple[list[dict[str, object]], int]:
    """Train once; return what the ranks returned, and how many of all processes that took part are still there."""
    with tempfile.TemporaryDirectory() as folder:
        ended = launch(
            train, folder, images, epochs, rank, after, ranks=ranks, threads=1, max_restarts=1, timeout=900
        )  # fmt: skip
        took_part = [int(path.name.partition("-")[2]) for path in Path(folder).glob("process-*")]
    return ended, sum(psutil.pid_exists(pid) for pid in took_part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when every run ended with the same weights and no process was left."""
    parser = argparse.ArgumentParser(prog="python -m cookbook.experiments.elastic", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20, help="runs in which a rank is killed")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the ranks and moments")
    parser.add_argument("--rehearse", action="store_true", help="two kills of a shorter training")
    options = parser.parse_args(arguments)
    kills, images, epochs = (2, 320, 1) if options.rehearse else (options.kills, 1600, 4)
    runs = kill_and_compare(kills, ranks=options.ranks, images=images, epochs=epochs, seed=options.seed)
    same, left = sum(run.same for run in runs), sum(run.left for run in runs)
    rows = [("kills", kills), ("completed runs", len(runs)), ("with the undisturbed weights", same), ("processes left", left)]
    print(Table(("figure", "value"), [(name, str(value)) for name, value in rows], title="Ranks killed at random moments"))
    return 0 if (len(runs), same, left) == (kills, kills, 0) else 1


if __name__ == "__main__":
    run(main)
