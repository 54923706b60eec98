"""What two processes do together in a test of the batch-size finder; spawned, hence in a module of its own."""

from __future__ import annotations

import gc
import json
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from cookbook.errors import CookbookError
from cookbook.throughput import find_batch_size


def search(rank: int, folder: str, limits: list[list[int]], failing: int) -> None:
    """Search once for each pair of limits, this rank by its own, and write down what was found.

    Args:
        rank: 0 or 1.
        folder: for the meeting point and the results.
        limits: pairs, the largest batch that fits on rank 0 and on rank 1.
        failing: the rank whose step fails for another reason in the last search; -1: none.
    """
    torch.set_num_threads(1)
    gc.freeze()  # the collections between tries need not look at what was imported
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    found: list[object] = []
    for number, pair in enumerate(limits):
        calls: list[int] = []

        def step(batch: int, limit: int = pair[rank], fails: bool = failing == rank and number == len(limits) - 1) -> None:
            calls.append(batch)  # noqa: B023 - the step is used up within this turn of the loop
            if fails and batch > 64:
                raise ValueError("the labels are wrong")
            if batch > limit:
                raise torch.OutOfMemoryError("the test's memory is full")

        try:
            result = find_batch_size(step, start=64, limit=512, device="cpu", rounds=3, memory_limit=10**12)
            found.append([result.largest, result.best, [trial.batch for trial in result.trials]])
        except (ValueError, CookbookError) as error:
            found.append(f"{type(error).__name__}: {error}")
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
