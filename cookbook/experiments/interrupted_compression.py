"""Kill `cookbook compress` at random moments, again and again: is the file the same as if nothing had happened? (lesson 08).

    python -m cookbook.experiments.interrupted_compression --kills 20
    python -m cookbook.experiments.interrupted_compression --rehearse     two kills

One undisturbed compression gives the files to compare with and the time in which a kill can fall. Every further one is
ended by SIGKILL at a random moment, imports included, and started again by the same command, until it comes through a
session unharmed; a session that ended before its moment counts as no kill. Then the files that it left, the one to ship and
that of every stage, must be the undisturbed ones byte for byte. It prunes to counted operations, because widths
that follow from a measured latency may differ between two undisturbed runs as well.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cookbook.errors import CookbookError, UsageError
from cookbook.evidence import Table
from cookbook.experiments.command import run

CASE = "cookbook.experiments.compression_case"
SESSION_SECONDS = 1800.0  # a session that takes longer hangs
FINISHED = (0, 3)  # exit statuses of `cookbook compress`: the budget is met, or it is not


def compress_command(folder: Path) -> list[str]:
    """Return the command line that compresses the case into a folder."""
    options = ["--model", f"{CASE}:network", "--data", f"{CASE}:images", "--out", str(folder), "--train", "2"]
    options += ["--stages", "prune,distill,quantize", "--macs", "0.5", "--latency", "0", "--accuracy-drop", "100"]
    options += ["--epochs", "2", "--batch-size", "20", "--rounds", "3", "--threads", "1", "--device", "cpu"]
    return [sys.executable, "-c", "from cookbook.cli import main; main()", "compress", *options]


@dataclass(frozen=True)
class Compared:
    """One compression with kills in it.

    Attributes:
        kills: seconds after which its sessions were killed, in their order.
        differing: files that are not those of the undisturbed compression byte for byte, or that one of the two lacks.
    """

    kills: tuple[float, ...]
    differing: tuple[str, ...] = ()


def kill_and_compare(
    kills: int,
    *,
    seed: int = 0,
    command: Callable[[Path], Sequence[str]] = compress_command,
    say: Callable[[str], object] = print,
) -> list[Compared]:
    """Return what became of compressions that were killed `kills` times in all.

    Args:
        kills: sessions that are ended by SIGKILL.
        seed: of the moments.
        command: returns the command line for a folder; the same one starts and resumes.
        say: takes a line after each compression.

    Raises:
        UsageError: there is nothing to kill, or this system has no SIGKILL.
        CookbookError: a session failed by itself, or nearly all sessions end before their moment.
    """
    if kills < 1:
        raise UsageError(f"{kills} kills show nothing: use 1 or more.")
    if not hasattr(signal, "SIGKILL"):
        raise UsageError("This system has no SIGKILL: run the experiment on Linux or macOS.")
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        _session(command(Path(place)), SESSION_SECONDS)
        lasts, expected = time.perf_counter() - started, digests(Path(place))
    say(f"undisturbed: {lasts:.1f} s, {len(expected)} files to compare")
    found: list[Compared] = []
    left, attempts = kills, 0
    while left:
        attempts += 1
        if attempts > 3 * kills + 10:
            raise CookbookError(f"Only {kills - left} of {attempts - 1} compressions met a kill: give them more to do.")
        with tempfile.TemporaryDirectory() as place:
            ended = list[float]()
            while len(ended) < left and not _session(command(Path(place)), after := moments.uniform(0.0, lasts)):
                ended.append(after)
            if len(ended) == left:
                _session(command(Path(place)), SESSION_SECONDS)
            differing = tuple(sorted({name for name, _ in digests(Path(place)).items() ^ expected.items()}))
        if ended:
            left -= len(ended)
            found.append(Compared(tuple(ended), differing))
            times = ", ".join(f"{after:.1f}" for after in ended)
            say(f"{kills - left:3}: killed after {times} s; files that differ: {', '.join(differing) or 'none'}")
    return found


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of ONNX in a folder, by its place there."""
    files = sorted(folder.rglob("*.onnx"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _session(command: Sequence[str], seconds: float) -> bool:
    """Run a command for so long at most; return True when it came to its end, False when it was killed.

    Raises:
        CookbookError: it failed by itself, or hangs.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            if seconds >= SESSION_SECONDS:
                raise CookbookError(
                    f"A session did not end within {seconds:.0f} s: run the command by itself to see why."
                ) from None
            return False
        finally:
            process.kill()  # SIGKILL; nothing happens to a process that is over
            process.wait()
        if status not in FINISHED:
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise CookbookError(f"A session ended with status {status} ({last}): run the command by itself to see why.")
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when every killed compression left the undisturbed files."""
    parser = argparse.ArgumentParser(
        prog="python -m cookbook.experiments.interrupted_compression", description=str(__doc__).split("\n", 1)[0]
    )
    parser.add_argument("--kills", type=int, default=20, help="sessions that are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--rehearse", action="store_true", help="two kills")
    options = parser.parse_args(arguments)
    found = kill_and_compare(2 if options.rehearse else options.kills, seed=options.seed)
    same = sum(not one.differing for one in found)
    rows = [("kills", sum(len(one.kills) for one in found)), ("compressions", len(found)), ("with the undisturbed files", same)]
    print(
        Table(("figure", "value"), [(name, str(value)) for name, value in rows], title="Compressions killed at random moments")
    )
    return 0 if same == len(found) else 1


if __name__ == "__main__":
    run(main)
