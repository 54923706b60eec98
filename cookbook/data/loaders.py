"""Two loaders with one interface: tensors resident on the device, and torchvision with DataLoader (lesson 01).

Both are pure functions of (seed, epoch, step): the batch that a run sees at a step does not depend
on how it got there, so that an interrupted run resumes with the very data it would have seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cookbook.data.augmentation import Augmentation, crop_and_flip, erase_rectangles, resize
from cookbook.data.splits import Role, Split
from cookbook.environment import derive_seed
from cookbook.errors import DataError, UsageError

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class Loader(Protocol):
    """What `fit` and `evaluate` need: batches of float32 images (B, C, H, W) and int64 labels (B,)."""

    @property
    def role(self) -> Role:
        """What the images may be used for."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `first` on."""

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the data and their order, for checkpoints."""


class LoaderWrapper:
    """A loader that hands on another's batches; a subclass changes what it needs to, such as the description.

    Args:
        loader: the one whose role, length, batches and description these are.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    @property
    def role(self) -> Role:
        """The wrapped loader's role."""
        return self.loader.role

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the wrapped loader's batches of `epoch` from number `first` on."""
        return self.loader.batches(epoch, first)

    def describe(self) -> dict[str, object]:
        """Return the wrapped loader's description."""
        return self.loader.describe()


class _SplitLoader:
    """What both loaders share: the order of the images, and the cut into batches."""

    def __init__(
        self, split: Split, batch_size: int, augmentation: Augmentation | None, shuffle: bool | None, seed: int
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}: use 1 or more.")
        self.split = split
        self.batch_size = batch_size
        self.augmentation = augmentation or Augmentation()
        self.shuffle = split.role == "train" if shuffle is None else shuffle
        self.seed = seed
        self._rank, self._world = 0, 1
        if self.shuffle and len(split) < batch_size:
            raise DataError(f"{len(split)} images do not fill a batch of {batch_size}: use a smaller batch.")

    @property
    def role(self) -> Role:
        """The split's role."""
        return self.split.role

    def __len__(self) -> int:
        if self.shuffle:  # a short last batch would weigh its images more than the others
            return len(self.split) // self.batch_size
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(0)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `first` on."""
        raise NotImplementedError

    def shard(self, rank: int, world: int) -> Self:
        """Return a loader of one process's part: every `world`-th image of each batch, from number `rank` on.

        The parts of all ranks are together the batches of this loader, each image once, with the same
        augmentation; what a batch holds does not depend on `world`. In a full epoch of batches that `world`
        divides, these are the images that `torch.utils.data.DistributedSampler` would deal out of the same
        order, without the ones that it repeats to fill up (lesson 03). A rank without an image in a batch
        gets the batch's first, which the caller must leave out.

        Raises:
            UsageError: `rank` is not from 0 to `world` − 1.
        """
        if not 0 <= rank < world:
            raise UsageError(f"Rank {rank} of {world}: ranks run from 0 to {world - 1}.")
        part = copy.copy(self)
        part._rank, part._world = rank, world
        return part

    def images_in(self, batch: int) -> int:
        """Return how many images batch number `batch` of an epoch holds, over all ranks."""
        return min(self.batch_size, len(self.split) - batch * self.batch_size)

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify the data and their order; a shard's are the whole loader's."""
        return {
            "loader": type(self).__name__,
            "data": self.split.fingerprint(),
            "batch_size": self.batch_size,
            "augmentation": repr(self.augmentation),
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def _index_batches(self, epoch: int, first: int, whole: bool = False) -> list[Tensor]:
        """Return the int64 indices of each batch of the epoch from number `first` on: this rank's, or the whole batch's."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(len(self.split), generator=generator)
        else:
            order = torch.arange(len(self.split))
        size = self.batch_size
        batches = [order[step * size : (step + 1) * size] for step in range(first, len(self))]
        return batches if self._world == 1 or whole else [self._own(batch) for batch in batches]

    def _own(self, batch: Tensor) -> Tensor:
        """Return this rank's rows, or the first row where it has none."""
        return batch[self._rank if self._rank < len(batch) else 0 :: self._world]


class ResidentLoader(_SplitLoader):
    """Keeps the whole split as uint8 on the device; augments and normalizes whole batches there.

    No worker process, no copy per step: on small images it is far faster than a DataLoader.

    Args:
        split: the images.
        batch_size: images per step. While shuffling, the incomplete last batch is dropped.
        augmentation: for training; None changes nothing.
        device: where the images live and the batches appear.
        shuffle: a new order each epoch; by default only for the role ``train``.
        seed: determines order and augmentation together with the epoch and the step.

    Raises:
        UsageError: the batch size is below 1.
        DataError: shuffling, and the split does not fill one batch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        shuffle: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(split, batch_size, augmentation, shuffle, seed)
        self.device = torch.device(device)
        self._images = split.images.to(self.device)
        self._labels = split.labels.to(self.device)
        scale = torch.tensor(split.std).mul(255).reciprocal().view(1, -1, 1, 1)
        shift = (-torch.tensor(split.mean) / torch.tensor(split.std)).view(1, -1, 1, 1)
        self._scale, self._shift = scale.to(self.device), shift.to(self.device)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `first` on."""
        augmentation = self.augmentation
        pixels = augmentation.resolution_at(epoch)
        generator = torch.Generator(self.device)
        random = bool(augmentation.crop or augmentation.flip or augmentation.erase)
        parted = random and self._world > 1  # the whole batch draws, so that each image gets what it gets in one process
        for step, index in enumerate(self._index_batches(epoch, first, whole=random), first):
            index = index.to(self.device, non_blocking=True)
            generator.manual_seed(derive_seed(self.seed, epoch, step))
            images = self._images[index]
            if augmentation.crop or augmentation.flip:
                images = crop_and_flip(images, augmentation.crop, augmentation.flip, generator)
            images = torch.addcmul(self._shift, images, self._scale)
            if augmentation.erase:
                images = erase_rectangles(images, augmentation.erase, generator)
            if parted:
                images, index = self._own(images), self._own(index)
            if pixels:
                images = resize(images, pixels)
            yield images, self._labels[index]


class TorchvisionLoader(_SplitLoader):
    """The conventional way: one image at a time through torchvision transforms, batched by DataLoader.

    It takes the arguments of `ResidentLoader` and draws its own augmentations from the same
    families. Each sample is seeded by (seed, epoch, index), so that the number of workers does not
    change what is seen.

    Args:
        workers: processes that prepare batches ahead; 0 prepares them in this process.
        pin_memory: page-locked host memory, from which copies to a GPU can overlap with compute;
            by default on when the device is a GPU.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        shuffle: bool | None = None,
        seed: int = 0,
        workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(split, batch_size, augmentation, shuffle, seed)
        if workers < 0:
            raise UsageError(f"workers is {workers}: use 0 or more processes.")
        self.device = torch.device(device)
        self.workers = workers
        self.pin_memory = self.device.type == "cuda" if pin_memory is None else pin_memory

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `first` on."""
        loader = DataLoader(
            self.dataset(epoch),
            batch_sampler=[index.tolist() for index in self._index_batches(epoch, first)],
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            # without its own generator each iterator draws from the global one, and dropout would differ after a resume
            generator=torch.Generator().manual_seed(derive_seed(self.seed, epoch)),
        )
        for images, labels in loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def dataset(self, epoch: int = 0) -> Dataset[tuple[Tensor, int]]:
        """Return the epoch's images one by one, transformed, for a DataLoader with settings of its own."""
        return _TransformedImages(self.split, self.augmentation, self.seed, epoch)


class _TransformedImages(Dataset[tuple[Tensor, int]]):
    """One epoch's view of a split: every image transformed with its own seed."""

    def __init__(self, split: Split, augmentation: Augmentation, seed: int, epoch: int) -> None:
        self.split, self.augmentation, self.seed, self.epoch = split, augmentation, seed, epoch
        self.transform = torchvision_transform(split, augmentation, epoch)
        self.random = augmentation != Augmentation(resolutions=augmentation.resolutions)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.split.images[index], int(self.split.labels[index])
        if not self.random:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, self.epoch, index))
            return self.transform(image), label


def torchvision_transform(split: Split, augmentation: Augmentation, epoch: int = 0) -> v2.Transform:
    """Return torchvision's transforms for what `augmentation` describes, from uint8 to normalized float32."""
    height, width = split.images.shape[-2:]
    steps: list[v2.Transform] = []
    if augmentation.crop:
        steps.append(v2.RandomCrop((height, width), padding=augmentation.crop))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(split.mean), list(split.std))]
    if augmentation.erase:
        steps.append(v2.RandomErasing(p=augmentation.erase))
    if pixels := augmentation.resolution_at(epoch):
        steps.append(v2.Resize((pixels, pixels), antialias=True))
    return v2.Compose(steps)
