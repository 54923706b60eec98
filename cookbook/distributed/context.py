"""This process's place among those that were launched together, and the group that they form (lesson 03).

``torchrun``, and `launch` through it, tell each process by environment variables who it is: ``RANK`` of
``WORLD_SIZE`` processes in all, ``LOCAL_RANK`` of ``LOCAL_WORLD_SIZE`` on this machine; and where they meet:
``MASTER_ADDR`` and ``MASTER_PORT``, the machine and the TCP port at which rank 0's machine listens. Who sets these
variables by hand needs no launcher (https://docs.pytorch.org/docs/stable/distributed.html).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from cookbook.environment import pick_device
from cookbook.errors import UsageError
from cookbook.training import RankError

_GROUPS = itertools.count()  # a process may form one group after the other
PATIENCE = 600.0  # seconds: longer than any rank should keep the others waiting, such as rank 0 with a checkpoint


@dataclass(frozen=True)
class Context:
    """Who this process is.

    Attributes:
        rank: from 0, over all machines.
        world: processes in all.
        local_rank: from 0, on this machine.
        local_world: processes on this machine.
        device: this process's own.
        restarts: how often this machine's processes were started again after a failure.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0


def launched() -> bool:
    """Say whether this process was started as one of several, by a launcher or by hand."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def joined(*, device: str | None = None, timeout: float = PATIENCE) -> Iterator[Context]:
    """Form the group of all processes that were launched together, for the length of the block.

    GPUs talk through NCCL, and CPUs through gloo. A process that was not launched as one of several is alone:
    no group is formed, and the same program runs as ever.

    Args:
        device: as for `pick_device`; each process of a machine takes the GPU of its local rank.
        timeout: seconds that a rank waits for the others, at the meeting point and in every exchange.

    Raises:
        UsageError: the environment variables make no sense, or there are more processes than GPUs.
        RankError: the processes do not agree how many they are, one does not arrive, the port is taken, or
            a rank is lost later on.
    """
    if not launched():
        yield Context(0, 1, 0, 1, pick_device(device))
        return
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    local_rank, local_world = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world)
    if not 0 <= rank < world:
        raise UsageError(f"RANK is {rank} and WORLD_SIZE is {world}: ranks run from 0 to {max(world - 1, 0)}.")
    context = Context(
        rank, world, local_rank, local_world, _own_device(device, local_rank, local_world, world),
        _number("TORCHELASTIC_RESTART_COUNT", 0),
    )  # fmt: skip
    try:
        _form_group(context, timedelta(seconds=timeout))
        yield context
    except RuntimeError as error:
        reason = _lost_touch(error)
        if reason is None:
            raise
        raise RankError(
            f"Rank {rank} of {world} lost touch with the others ({reason}): look for the rank that failed first, "
            "or for a network that is cut."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"The environment variable {name} is {text!r}: set it to a whole number.") from None


def _own_device(wish: str | None, local_rank: int, local_world: int, world: int) -> torch.device:
    """Return the device of this process, and make it the current one."""
    device = pick_device(wish)
    if device.type == "mps" and world > 1:
        if wish or os.environ.get("COOKBOOK_DEVICE"):
            raise UsageError("Several processes cannot train together on 'mps': use the device 'cpu'.")
        return torch.device("cpu")
    if device.type != "cuda":
        return device
    if local_world > torch.cuda.device_count():
        raise UsageError(
            f"{local_world} processes on this machine need a GPU each, and it has {torch.cuda.device_count()}: "
            "start one for each GPU, or set COOKBOOK_DEVICE=cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _form_group(context: Context, limit: timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if context.device.type == "cuda" else "gloo"
    if dist.is_torchelastic_launched():  # the launcher counted the processes, and its agent keeps the meeting point
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=limit)))  # type: ignore[attr-defined]
        if _number("GROUP_WORLD_SIZE", 1) == 1:
            # torchrun keeps one store over all restarts, in which the addresses of dead ranks are still written; on
            # several machines, where restarts are counted apart, `launch` lets it make a new one each time
            store = dist.PrefixStore(f"attempt-{context.restarts}-{next(_GROUPS)}", store)  # type: ignore[attr-defined]
    else:
        store = dist.PrefixStore("group", _meeting_point(context, limit))  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=context.rank, world_size=context.world, timeout=limit)


def _meeting_point(context: Context, limit: timedelta) -> Any:
    """Open the store at MASTER_ADDR:MASTER_PORT, in which all ranks say how many they think they are."""
    host, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 29500)
    if not host:
        raise UsageError("MASTER_ADDR is not set: name the machine of rank 0, or start the processes with torchrun.")
    rank, world = context.rank, context.world
    try:
        store = dist.TCPStore(host, port, None, rank == 0, limit, wait_for_workers=False)  # type: ignore[attr-defined]
        if store.add(f"claims/{rank}", 1) > 1:
            raise RankError(f"Two processes say that they are rank {rank}: give each a RANK of its own.")
        store.set(f"world/{rank}", str(world))
        for other in range(world):
            theirs = int(store.get(f"world/{other}"))
            if theirs != world:
                store.set(f"heard/{rank}", "")
                if rank == 0:  # the store ends with this process: let the other hear of it first
                    with contextlib.suppress(dist.DistError):
                        store.wait([f"heard/{other}"], timedelta(seconds=5))
                raise RankError(
                    f"Rank {rank} counts {world} processes and rank {other} counts {theirs}: "
                    "start all with the same WORLD_SIZE (--nnodes times --nproc)."
                )
    except dist.DistError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        if "EADDRINUSE" in str(error):
            raise RankError(f"Port {port} is in use on this machine: choose another as MASTER_PORT.") from error
        raise RankError(
            f"Rank {rank} of {world} waited {limit.total_seconds():.0f} s for the others at {host}:{port} ({reason}): "
            "check that all were started and that the address can be reached."
        ) from error
    return store


def _lost_touch(error: RuntimeError) -> str | None:
    """Return what a failed exchange between ranks says, in a line, or None for any other error."""
    text = " ".join(str(error).split("\n")[0].split())
    return text if isinstance(error, dist.DistError) or "gloo/" in text else None
