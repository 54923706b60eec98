"""What the processes of one training say to each other: who they are, and what they agree on (lesson 03).

A *rank* is one process of a group that `torch.distributed` has formed; ranks are counted from 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cookbook.data import Loader
from cookbook.errors import CookbookError


class RankError(CookbookError):
    """A process of a group failed, was lost, or disagrees with the others."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together, and what passes between them.

    Every method is a collective: all ranks call it, in the same order, or all wait for ever.

    Attributes:
        rank: of this process, from 0.
        world: number of processes.
        device: where tensors lie while they are exchanged: the model's.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> Ranks | None:
        """Return the place in the group that was formed, or None: no group, or this process is alone in it."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add `tensor` up over the ranks, in place, and return it; it must lie on the exchanging device."""
        dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        tensor = torch.tensor(number, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the ranks' tensors, in order, on this rank's CPU. They have one dtype and one shape."""
        mine = tensor.to(self.device).contiguous()
        everyone = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(everyone, mine)
        return [one.cpu() for one in everyone]

    def share(self, payload: bytes) -> bytes:
        """Return rank 0's bytes, whatever the others pass."""
        size = torch.tensor(len(payload), device=self.device)
        dist.broadcast(size, 0)
        content = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.first and payload:
            content.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        dist.broadcast(content, 0)
        return content.cpu().numpy().tobytes()

    def share_buffers(self, model: nn.Module) -> None:
        """Overwrite every rank's buffers, such as BatchNorm's statistics, by rank 0's."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def let_first(self, action: Callable[[], bytes | None]) -> bytes:
        """Let rank 0 alone act, while the others wait; return what it returned, as bytes, everywhere.

        Raises:
            RankError: on the other ranks, when rank 0 raised, with its message. Rank 0 raises its own error.
        """
        answer, failure = b"", None
        if self.first:
            try:
                answer = action() or b""
            except Exception as error:
                failure = error
        told = self.share(str(failure).encode() if failure is not None else b"")
        if failure is not None:
            raise failure
        if told:
            raise RankError(f"Rank 0 stopped: {told.decode()}")
        return self.share(answer)

    def require_same(self, things: Mapping[str, Any]) -> None:
        """Make sure that all ranks were given the same things.

        Args:
            things: by name, plain JSON types.

        Raises:
            RankError: on every rank; the message names the thing and the ranks that differ from rank 0.
        """
        digests = self.gather(torch.tensor([digest(value) for value in things.values()]))
        for number, name in enumerate(things):
            odd = [str(rank) for rank, found in enumerate(digests) if found[number] != digests[0][number]]
            if odd:
                many = len(odd) > 1
                raise RankError(
                    f"Rank{'s' * many} {', '.join(odd)} {'have' if many else 'has'} another {name} than rank 0: "
                    "run the same program with the same settings on all."
                )


def digest(value: Any) -> int:
    """Return 63 bits that identify plain JSON types."""
    text = json.dumps(value, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def rows_of(rank: int, world: int, images: int) -> int:
    """Return how many of a batch's images belong to `rank`: every `world`-th, from number `rank` on."""
    return len(range(rank, images, world))


def in_group() -> bool:
    """Say whether `torch.distributed` has formed a group of two or more processes."""
    return Ranks.current(torch.device("cpu")) is not None


def shared_batches(loader: Loader, ranks: Ranks, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield this rank's part of each batch, and how many images the whole batch has.

    A rank that has no image in a batch gets one of another rank, so that it can take part in the backward pass.
    Loaders with `shard` and `images_in`, such as those of `cookbook.data`, prepare only what the rank needs.
    """
    rank, world = ranks.rank, ranks.world
    if not hasattr(loader, "shard"):
        for images, labels in loader.batches(epoch, first):
            rows = slice(rank if rank < len(labels) else 0, None, world)
            yield images[rows], labels[rows], len(labels)
        return
    part = loader.shard(rank, world)
    for number, (images, labels) in enumerate(part.batches(epoch, first), first):
        yield images, labels, part.images_in(number)
