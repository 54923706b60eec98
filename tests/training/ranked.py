"""Running functions in two gloo processes, once for a whole test file."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

PATIENCE = 60  # seconds that a rank waits for the other


def run_on_ranks(module: str, names: Sequence[str], folder: Path, world: int = 2, limit: float = 280) -> dict[str, list[Any]]:
    """Run the functions of `module`, one after the other, on every rank; return by name what they returned, by rank.

    A function takes (rank, folder) and returns what ``torch.load(weights_only=True)`` reads. One that raises gives
    the text ``Type: message``.

    Raises:
        AssertionError: the processes did not end in time; they are killed.
    """
    places = [str(Path(__file__).parent)]
    multiprocessing.set_forkserver_preload(["cookbook.training", "torch._dynamo"])  # imported once, for all ranks of all files
    arguments = (world, module, list(names), str(folder), places)
    context = multiprocessing.start_processes(_serve, arguments, world, join=False, start_method="forkserver")
    deadline = time.monotonic() + limit
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"the ranks did not end within {limit} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    found = [[torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)] for name in names]
    return dict(zip(names, found, strict=True))


def _serve(rank: int, world: int, module: str, names: list[str], folder: str, places: list[str]) -> None:
    sys.path[:0] = places
    torch.set_num_threads(1)
    scenarios = importlib.import_module(module)
    for name in names:
        meeting = f"file://{folder}/meeting-{name}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=PATIENCE))
        try:
            result = getattr(scenarios, name)(rank, Path(folder))
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            result = f"{type(error).__name__}: {error}"
            Path(folder, f"{name}-{rank}.txt").write_text(traceback.format_exc())
        finally:
            dist.destroy_process_group()
        torch.save(result, Path(folder, f"{name}-{rank}.pt"))


def scenarios_of(module: Any) -> Iterator[str]:
    """Yield the names of the functions that `module` itself defines in public."""
    for name, value in vars(module).items():
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__:
            yield name
