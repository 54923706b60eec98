"""Run by test_resume.py: kills a training with SIGKILL again and again until it has finished.

Each attempt is a forked child, so that torch is imported once. Forking is safe here because
the parent never runs a kernel and one thread is used.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from helpers import RICH_RECIPE, small_loader, small_model

from cookbook.training import fit


def wait_for_writes(state: Path, number: int) -> None:
    """Return after `number` new versions of the file, so that a slow machine kills at the same stages."""
    seen = {modified(state)}
    deadline = time.monotonic() + 30
    while len(seen) <= number and time.monotonic() < deadline:
        seen.add(modified(state))
        time.sleep(0.0005)


def modified(state: Path) -> int:
    """Return the file's time of modification in nanoseconds, 0 when there is none."""
    return state.stat().st_mtime_ns if state.exists() else 0


def main(folder: Path, kills: int) -> None:
    """Kill `kills` attempts at random moments, let the next finish, and leave its weights in ``final.pt``."""
    torch.set_num_threads(1)
    moments = random.Random(5)
    survived = 0
    for attempt in range(10 * kills):
        child = os.fork()
        if child == 0:
            model = small_model()
            fit(model, small_loader(), RICH_RECIPE, checkpoint=folder / "run.state", checkpoint_every=1, progress=False)
            torch.save(model.state_dict(), folder / "final.pt")
            os._exit(0)
        if survived < kills:
            wait_for_writes(folder / "run.state", moments.choice([0, 1, 1, 2]))
            time.sleep(moments.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)  # a child that has just ended stays a zombie until waitpid
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            survived += 1
        elif os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"attempt {attempt} failed")
        else:
            print(f"finished after {survived} kills")
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
