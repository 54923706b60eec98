"""What the processes of a launch leave in its folder, read by the one that launched them (lesson 03).

`cookbook.distributed.supervised` says which file is what.
"""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import psutil

from cookbook.training import RankError


def processes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the newest process of each rank: its id, and how often the ranks had been started again before."""
    return {path.name.partition("-")[2]: tuple(json.loads(path.read_text())) for path in sorted(folder.glob("process-*"))}


def failed_for_good(folder: Path, max_restarts: int) -> bool:
    """Say whether a rank has failed that will not be started again, and all of them are gone."""
    if not any(folder.glob(f"failure-*-{max_restarts}.json")):
        return False
    return not any(rank_process(pid, str(folder)) for pid, _ in processes(folder).values())


def rank_process(pid: int, mark: str) -> psutil.Process | None:
    """Return the process if it is still that rank, and not another one that was given its number."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        if mark in " ".join(process.cmdline()):  # one that has ended, but was not waited for, has none
            return process
    return None


def results(folder: Path, status: int, world: int) -> list[Any]:
    """Return what the ranks returned.

    Raises:
        RankError: one failed.
    """
    if status == 0:
        files = sorted(folder.glob("result-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
        return [json.loads(path.read_text(encoding="utf-8")) for path in files]
    raise RankError(cause(folder, status, world))


def cause(folder: Path, status: int, world: int) -> str:
    """Print the traceback of the rank that failed first, and return the sentence about it."""
    newest = max((attempt for _, attempt in processes(folder).values()), default=0)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"failure-*-{newest}.json")]
    file = folder / "agent.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"exits": {}}
    killed = {rank: -code for rank, code in said["exits"].items() if code < 0 and -code != signal.SIGTERM}
    own = sorted((one for one in found if one["kind"] != RankError.__name__), key=lambda one: one["time"])
    if not own and killed:
        rank, number = next(iter(killed.items()))
        hint = ", which the system does when memory runs out" if number == signal.SIGKILL else ""
        return f"Rank {rank} of {world} was killed by {signal.Signals(number).name}{hint}: the others were stopped."
    first = next(iter(own or sorted(found, key=lambda one: one["time"])), None)
    if first is not None:
        if not first["explained"]:
            for line in first["traceback"].rstrip().splitlines():
                print(f"[rank {first['rank']}] {line}")
        message = first["message"] if first["explained"] else f"{first['kind']}: {first['message']}"
        return f"Rank {first['rank']} of {world} failed: {message}"
    if "message" in said:
        return f"The processes could not be started together ({said['message']}): check hosts and endpoint."
    exits = ", ".join(f"rank {rank} with status {code}" for rank, code in said["exits"].items()) or f"status {status}"
    return f"The ranks were stopped ({exits}): see what they printed above."
