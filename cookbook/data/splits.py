"""Images in memory with their role: train, validation or test (lesson 00)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cookbook.errors import DataError, UsageError

Role = Literal["train", "validation", "test"]

SPLIT_SEED = 20171


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a dataset, held as bytes in memory.

    Attributes:
        images: uint8 of shape (N, C, H, W), 0 to 255.
        labels: int64 of shape (N,), 0 to ``len(classes) - 1``.
        role: what the images may be used for. Functions that train, calibrate or choose refuse
            the role ``test``.
        classes: the names of the classes, in the order of the labels.
        mean: per channel, of the *training* split's pixels scaled to 0…1.
        std: standard deviation per channel, likewise.
    """

    images: Tensor
    labels: Tensor
    role: Role
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _require_form(self.images, self.labels, len(self.classes))
        channels = self.images.shape[1]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std, default=1) <= 0:
            raise DataError(
                f"The images have {channels} channels: give a mean and a positive std for each, not {self.mean} and {self.std}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({self.role}, {len(self)} images of {tuple(self.images.shape[1:])}, {len(self.classes)} classes)"

    def subset(self, size: int) -> Split:
        """Return `size` images with the classes' shares kept, always the same ones.

        Raises:
            DataError: the split has fewer images, or `size` leaves a class without an image.
        """
        if size == len(self):
            return self
        chosen, _ = stratified_indices(self.labels, size, SPLIT_SEED)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def normalized(self) -> Tensor:
        """Return all images as float32 of shape (N, C, H, W), normalized by `mean` and `std`."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (self.images.float() / 255 - mean) / std

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with any pixel, label or their order."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Splits:
    """The three parts of a dataset: fit on train, choose on validation, touch test once, to report."""

    train: Split
    validation: Split
    test: Split


def require_role(role: Role, allowed: tuple[Role, ...], purpose: str) -> None:
    """Refuse a split whose role does not fit the purpose.

    Args:
        purpose: what is about to happen, such as ``"calibrate"``.

    Raises:
        UsageError: `role` is not among `allowed`.
    """
    if role not in allowed:
        raise UsageError(f"The {role} split must not be used to {purpose}: pass the {' or '.join(sorted(allowed))} split.")


def stratified_indices(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `size` indices with each class's share kept; return them and the others, both ascending.

    Shares that are no whole numbers are rounded by the largest remainder. NumPy's ``RandomState``
    is used because its stream is frozen: the split is the same with every version.

    Args:
        labels: int64 of shape (N,).

    Raises:
        DataError: there are fewer labels than `size`, or a class would get no image.
    """
    values = labels.numpy()
    names, counts = np.unique(values, return_counts=True)
    if not 0 < size < len(values):
        raise DataError(f"Cannot draw {size} of {len(values)} images: ask for at least 1 and fewer than there are.")
    exact = counts * (size / len(values))
    take = np.floor(exact).astype(int)
    for index in np.argsort(take - exact, kind="stable")[: size - take.sum()]:
        take[index] += 1
    if (take == 0).any():
        raise DataError(f"{size} images leave the class {names[take == 0][0]} without any: ask for more images.")
    generator = np.random.RandomState(seed)
    chosen = np.concatenate(
        [generator.permutation(np.flatnonzero(values == name))[:number] for name, number in zip(names, take, strict=True)]
    )
    mask = np.zeros(len(values), dtype=bool)
    mask[chosen] = True
    return torch.from_numpy(np.flatnonzero(mask)), torch.from_numpy(np.flatnonzero(~mask))


def make_splits(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    classes: Collection[str],
    *,
    validation_size: int,
) -> Splits:
    """Set `validation_size` training images aside, stratified and fixed, and normalize by the rest.

    Args:
        train_images: uint8 of shape (N, C, H, W); `train_labels`: int64 of shape (N,). The test
            arrays have the same form.

    Raises:
        DataError: the shapes or dtypes are wrong, the training and test images differ in size, or
            there are too few images for both training and validation to have every class.
    """
    names = tuple(classes)
    _require_form(train_images, train_labels, len(names))
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"Training images are {tuple(train_images.shape[1:])} and test images {tuple(test_images.shape[1:])}: "
            "bring all to one size."
        )
    held_out, kept = stratified_indices(train_labels, validation_size, SPLIT_SEED)
    without = sorted(set(train_labels.tolist()) - set(train_labels[kept].tolist()))
    if without:
        raise DataError(f"{validation_size} validation images leave the class {without[0]} none to train on: ask for fewer.")
    mean, std = channel_statistics(train_images[kept])
    return Splits(
        train=Split(train_images[kept], train_labels[kept], "train", names, mean, std),
        validation=Split(train_images[held_out], train_labels[held_out], "validation", names, mean, std),
        test=Split(test_images, test_labels, "test", names, mean, std),
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 images scaled to 0…1.

    They come from integer histograms, hence exactly, whatever the order of the images; they are
    rounded to six digits.
    """
    values = np.arange(256, dtype=np.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        histogram = torch.bincount(images[:, channel].flatten(), minlength=256).numpy()
        mean = float(histogram @ values / histogram.sum())
        variance = float(histogram @ (values - mean) ** 2 / histogram.sum())
        means.append(round(mean, 6))
        stds.append(round(max(variance, 1e-12) ** 0.5, 6))
    return tuple(means), tuple(stds)


def _require_form(images: Tensor, labels: Tensor, classes: int) -> None:
    """Refuse images and labels of another form than `Split` describes."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"Images must be uint8 of shape (N, C, H, W), not {images.dtype} of shape {tuple(images.shape)}.")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"Labels must be int64, one for each of the {len(images)} images, "
            f"not {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"Labels run from {labels.min()} to {labels.max()}, but there are {classes} classes.")
