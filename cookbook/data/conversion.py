"""Any torchvision-style dataset, and any folder of images, as the cookbook's splits (lesson 00)."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Collection, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from cookbook.data.splits import Splits, make_splits
from cookbook.errors import DataError, UsageError
from cookbook.progress import progress_bar

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises for a damaged file


class MapDataset(Protocol):
    """What torchvision's datasets have in common: a length, and pairs of image and label by index."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return the pair (image, label)."""


def from_torchvision(
    train: MapDataset, test: MapDataset, *, validation_size: int, classes: Collection[str] | None = None
) -> Splits:
    """Read two datasets into memory and set validation images aside.

    Args:
        train: pairs of an image and a whole number. An image is a PIL image in mode ``L`` or ``RGB``,
            a uint8 tensor (C, H, W), or a float tensor (C, H, W) from 0 to 1, which is rounded to
            bytes; all have one size. Random transforms would be frozen: leave them to the loader.
        test: likewise.
        validation_size: training images to set aside, stratified and fixed.
        classes: the names of the labels 0, 1, …; by default those of the datasets, or the numbers.

    Raises:
        DataError: a dataset is empty or has no length, images differ in size or have another form,
            a label is missing or no whole number, or there are too few images.
    """
    names = tuple(classes) if classes is not None else _class_names(train, test)
    train_images, train_labels = _read(train, "training")
    test_images, test_labels = _read(test, "test")
    if names is None:
        names = tuple(str(number) for number in range(int(max(train_labels.max(), test_labels.max())) + 1))
    return make_splits(train_images, train_labels, test_images, test_labels, names, validation_size=validation_size)


def load_image_folder(root: str | os.PathLike[str], *, size: int, validation_size: int, grey: bool = False) -> Splits:
    """Read ``root/train/CLASS/*.png`` and ``root/test/CLASS/*.png``, or any other format that PIL reads.

    Each image's shorter side is resized to `size`, smoothed against aliasing; the middle is kept.

    Args:
        root: the folder with the sub-folders ``train`` and ``test`` of the same classes.
        size: height and width of the images in memory, in pixels.
        validation_size: training images to set aside, stratified and fixed.
        grey: one channel instead of three.

    Raises:
        UsageError: `size` is below 1.
        DataError: a sub-folder, a class or all its images are missing, an image is damaged, or there
            are too few images.
    """
    if size < 1:
        raise UsageError(f"size is {size}: use 1 or more pixels.")
    transform = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    reader = functools.partial(_read_image, mode="L" if grey else "RGB")
    parts = []
    for name in ("train", "test"):
        folder = Path(root).expanduser() / name
        try:
            parts.append(datasets.ImageFolder(str(folder), transform, loader=reader))
        except OSError as error:
            reason = str(error).rstrip(".")
            raise DataError(f"{folder} is no folder of images ({reason}): give each class a sub-folder in it.") from error
    return from_torchvision(*parts, validation_size=validation_size)


def _read_image(path: str, mode: str) -> Image.Image:
    """Decode one file completely."""
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except UNREADABLE as error:
        raise DataError(f"{path} is not a readable image ({error}): replace it or remove it.") from error


def _class_names(train: MapDataset, test: MapDataset) -> tuple[str, ...] | None:
    """Return the names that torchvision's datasets carry, which must be those of both."""
    carried = (getattr(part, "classes", None) for part in (train, test))
    known: list[Sequence[str]] = [names for names in carried if names]
    if not known:
        return None
    for mine, other in zip_longest(known[0], known[-1]):
        if mine != other:
            raise DataError(
                f"The training and the test images differ in their classes ({mine!r} and {other!r}): give both the same."
            )
    return tuple(str(name) for name in known[0])


def _read(dataset: MapDataset, role: str) -> tuple[Tensor, Tensor]:
    """Return uint8 images (N, C, H, W) and int64 labels (N,)."""
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise DataError(f"The {role} dataset has no length: pass one that is indexed, not one that is streamed.") from error
    if not count:
        raise DataError(f"The {role} dataset is empty: pass one with images.")
    labels = torch.empty(count, dtype=torch.int64)
    images = torch.empty(0, dtype=torch.uint8)
    with progress_bar(f"reading the {role} images", count) as advance:
        for index in range(count):
            where = f"Image {index} of the {role} dataset"
            image, labels[index] = _sample(dataset, index, where)
            if index == 0:
                images = torch.empty((count, *image.shape), dtype=torch.uint8)
            elif image.shape != images.shape[1:]:
                raise DataError(
                    f"{where} is {tuple(image.shape)}, but the first is {tuple(images.shape[1:])}: "
                    "bring all to one size with the dataset's transform."
                )
            images[index] = image
            advance("")
    return images, labels


def _sample(dataset: MapDataset, index: int, where: str) -> tuple[Tensor, int]:
    """Return one sample as a uint8 tensor (C, H, W) and a number."""
    try:
        sample = dataset[index]
    except UNREADABLE as error:
        raise DataError(f"{where} cannot be read ({error}): replace it or remove it.") from error
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise DataError(f"{where} comes without a label: the dataset must give pairs of image and label.")
    image, label = sample
    try:
        number = operator.index(label)
    except TypeError as error:
        raise DataError(f"{where} has the label {label!r}: labels must be whole numbers from 0.") from error
    return _to_bytes(image, where), number


def _to_bytes(image: Any, where: str) -> Tensor:
    """Return a PIL image or a tensor as uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise DataError(f"{where} has PIL's mode {image.mode}: convert it to 'L' or 'RGB' in the dataset's transform.")
        return v2.functional.pil_to_tensor(image)
    if not isinstance(image, Tensor) or image.ndim != 3:
        form = f"a tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise DataError(f"{where} is {form}: it must be a PIL image or a tensor of shape (C, H, W).")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point() or not (image.min() >= 0 and image.max() <= 1):
        raise DataError(f"{where} is {image.dtype} outside 0…1: give uint8, or floats from 0 to 1 that are not normalized yet.")
    return image.mul(255).round().to(torch.uint8)
