"""What the ranks of test_launch.py do; importable, as a worker must be. Those that need no torch start at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cookbook.errors import UsageError


def add(first: int, second: float) -> dict[str, Any]:
    """Add up over the ranks, and tell who was there."""
    import torch

    from cookbook.distributed import joined

    with joined(timeout=60) as context:
        total = torch.tensor(first + second * context.rank)
        torch.distributed.all_reduce(total)
        print(f"rank {context.rank} is here")
        found = {"rank": context.rank, "world": context.world, "sum": total.item()}
        return {**found, "pid": os.getpid(), "threads": torch.get_num_threads()}


def fail(how: str) -> None:
    """Let rank 1 end in some way while rank 0 waits."""
    if os.environ["RANK"] == "0":
        time.sleep(60)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "explained":
        raise UsageError("The labels are wrong.")
    raise ValueError("the labels are wrong")


def fail_once(folder: str) -> list[int]:
    """Let rank 0 vanish in the first attempt, and come late to the second, when its old address is still in the store."""
    import torch

    from cookbook.distributed import joined

    attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), os.environ["RANK"]
    Path(folder, f"{attempt}-{rank}").touch()
    if attempt == 1 and rank == "0":
        time.sleep(4)
    with joined(device="cpu", timeout=60) as context:
        if attempt == 0:
            if rank == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        total = torch.tensor(context.rank + 1)
        torch.distributed.all_reduce(total)
        return [context.restarts, int(total)]


def hang(folder: str) -> None:
    """Wait for ever, with a child process, deaf to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    file = Path(folder, f"pids-{os.environ['RANK']}")
    file.with_suffix(".new").write_text(f"{os.getpid()} {child.pid}")
    file.with_suffix(".new").rename(file)
    wait_in_this_function()


def wait_in_this_function() -> None:
    while True:
        time.sleep(0.1)


def every_trial() -> dict[str, Any]:
    """Run the lesson's workers one after the other, each in a group of its own."""
    from cookbook.distributed.workers import step_trial, training_trial, visited_samples

    return {
        "visited": visited_samples(21),
        "trained": training_trial(64, 1, 16, ("fp32", "bf16"), (0, 1), 100),
        "steps": step_trial(2, 1, 3),
    }


if __name__ == "__main__":
    from launched_workers import hang as imported_hang

    from cookbook.distributed import launch

    launch(imported_hang, sys.argv[1], grace=1)
