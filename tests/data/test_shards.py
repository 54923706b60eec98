"""Shards of a loader: together the whole, each image once, and what torch's own sampler would deal out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from cookbook.data import Augmentation, ResidentLoader, Split, TorchvisionLoader
from cookbook.errors import UsageError

EVERYTHING = Augmentation(crop=1, flip=True, erase=0.5, resolutions=((0, 3), (1, 4)))
LOADERS: list[Callable[..., Any]] = [ResidentLoader, TorchvisionLoader]


def split(count: int) -> Split:
    """Return 4×4 images of noise, with their number as label."""
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Split(images, torch.arange(count), "train", tuple(map(str, range(count))), (0.4,), (0.3,))


def dealt(loader: Any, world: int, epoch: int, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Put the ranks' parts of each batch together again, row by row; leave out what only fills up."""
    parts = [list(loader.shard(rank, world).batches(epoch, first)) for rank in range(world)]
    whole = []
    for number, ranks in enumerate(zip(*parts, strict=True), first):
        size = loader.images_in(number)
        images = torch.empty(size, *ranks[0][0].shape[1:])
        labels = torch.empty(size, dtype=torch.int64)
        for rank, (own_images, own_labels) in enumerate(ranks):
            count = len(range(rank, size, world))
            assert len(own_labels) == len(own_images) == max(count, 1)
            images[rank::world], labels[rank::world] = own_images[:count], own_labels[:count]
        whole.append((images, labels))
    return whole


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("augmentation", [None, EVERYTHING], ids=["plain", "augmented"])
@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_parts_are_together_the_batches(
    loader: Callable[..., Any], augmentation: Augmentation | None, world: int, shuffle: bool
) -> None:
    """Batches of 7, of which the last has 3 images when it is not dropped; five ranks share them."""
    made = loader(split(17), 7, augmentation=augmentation, shuffle=shuffle, seed=3)
    for epoch, first in ((0, 0), (1, 1)):
        found, expected = dealt(made, world, epoch, first), list(made.batches(epoch, first))
        assert len(found) == len(expected) > 0
        for (images, labels), (whole, truth) in zip(found, expected, strict=True):
            assert torch.equal(images, whole) and torch.equal(labels, truth)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_shard_holds_what_torchs_sampler_deals_out_of_the_same_order(loader: Callable[..., Any]) -> None:
    made, orders = loader(split(24), 6, seed=3), []
    for epoch in (0, 1):
        orders.append([int(label) for _, labels in made.batches(epoch) for label in labels])
        for rank in range(2):
            own = [int(label) for _, labels in made.shard(rank, 2).batches(epoch) for label in labels]
            sampler = DistributedSampler(orders[-1], num_replicas=2, rank=rank, shuffle=False)
            assert own == [orders[-1][place] for place in sampler]
    assert orders[0] != orders[1], "the epoch decides the order, as set_epoch does for the sampler"


def test_a_shard_says_what_the_loader_says() -> None:
    made = ResidentLoader(split(17), 7, seed=3)
    part = made.shard(1, 2)
    assert len(part) == len(made) == 2 and part.describe() == made.describe() and part.role == made.role
    assert [ResidentLoader(split(17), 7, shuffle=False).images_in(batch) for batch in range(3)] == [7, 7, 3]
    assert [len(labels) for _, labels in made.batches(0)] == [7, 7], "the loader itself stays whole"


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_does_not_exist_is_refused(rank: int, world: int) -> None:
    with pytest.raises(UsageError, match=f"Rank {rank} of {world}"):
        ResidentLoader(split(9), 3).shard(rank, world)
