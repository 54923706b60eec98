"""Datasets read from folders, never downloaded: Fashion-MNIST, CIFAR-10, and any by name or folder (lesson 00)."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from cookbook.data.conversion import load_image_folder
from cookbook.data.splits import Splits, make_splits
from cookbook.errors import DataError, UsageError
from cookbook.files import atomic_path, cache_directory, data_directory

FASHION_MNIST_VALIDATION = 5_000
CIFAR10_VALIDATION = 5_000


def load_dataset(name_or_folder: str | os.PathLike[str], **options: Any) -> Splits:
    """Read a dataset by its name, or a folder of images.

    Args:
        name_or_folder: ``fashion-mnist`` (the project's copy, or ``fashion-mnist:FOLDER``),
            ``cifar10:FOLDER``, or a folder for `load_image_folder`.
        options: what the reader of that dataset takes, such as ``size=64, validation_size=500`` for a
            folder of images.

    Raises:
        UsageError: the name is unknown and no folder, or the options do not fit.
        DataError: the dataset is missing, damaged or unfit.
    """
    name, _, folder = str(name_or_folder).partition(":")
    readers: dict[str, Callable[..., Splits]] = {"fashion-mnist": load_fashion_mnist, "cifar10": load_cifar10}
    if name == "cifar10" and not folder:
        raise UsageError("cifar10 does not come with the cookbook: write cifar10:FOLDER with the folder that holds it.")
    if name in readers:
        reader, arguments = readers[name], [folder] if folder else []
    elif Path(name_or_folder).expanduser().is_dir():
        reader, arguments = load_image_folder, [str(name_or_folder)]
    else:
        raise UsageError(
            f"{str(name_or_folder)!r} is no dataset and no folder: use fashion-mnist, cifar10:FOLDER or a folder of images."
        )
    try:
        inspect.signature(reader).bind(*arguments, **options)
    except TypeError as error:
        raise UsageError(
            f"The options {options} do not fit {reader.__name__} ({error}): it takes {inspect.signature(reader)}."
        ) from error
    return reader(*arguments, **options)


def load_fashion_mnist(root: str | os.PathLike[str] | None = None) -> Splits:
    """Read Fashion-MNIST: 55,000 training, 5,000 validation and 10,000 test images of 1×28×28.

    The four compressed files are checked against the checksums that torchvision publishes,
    unpacked once into the cache folder, and read by torchvision's own class. Nothing is downloaded.
    Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence.

    Args:
        root: the folder that holds ``FashionMNIST/raw/*.gz``; the project's data folder by default.

    Raises:
        DataError: a file is missing or damaged.
    """
    raw = Path(root or data_directory()).expanduser() / "FashionMNIST" / "raw"
    unpacked = cache_directory() / "datasets"
    for name, checksum in datasets.FashionMNIST.resources:
        packed = _checked_bytes(
            raw / name, checksum, "restore it with 'git checkout -- data', or point COOKBOOK_DATA at a folder that has it"
        )
        _unpack(packed, unpacked / "FashionMNIST" / "raw" / Path(name).stem)
    parts = [datasets.FashionMNIST(unpacked, train=train, download=False) for train in (True, False)]
    (train_images, train_labels), (test_images, test_labels) = ((part.data.unsqueeze(1), part.targets) for part in parts)
    return make_splits(
        train_images, train_labels, test_images, test_labels, parts[0].classes, validation_size=FASHION_MNIST_VALIDATION
    )  # fmt: skip


def load_cifar10(root: str | os.PathLike[str], *, validation_size: int = CIFAR10_VALIDATION) -> Splits:
    """Read CIFAR-10: 50,000 training images, of which some are set aside, and 10,000 test images of 3×32×32.

    The files are pickles, and unpickling can run code. They are therefore read, by torchvision's own
    class, only after each one's MD5 equals the published one: nobody knows how to make a second
    file with the MD5 of a given one, so these are the bytes that the authors published, and those
    hold nothing but arrays and names. Nothing is downloaded.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

    Args:
        root: the folder that holds ``cifar-10-batches-py``, or that folder itself.
        validation_size: training images to set aside, stratified and fixed.

    Raises:
        DataError: a file is missing or damaged, or there are too few images.
    """
    source = datasets.CIFAR10
    root = Path(root).expanduser()
    if root.name == source.base_folder:
        root = root.parent
    for name, checksum in [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]:
        advice = "unpack cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there"
        _checked_bytes(root / source.base_folder / name, checksum, advice)
    parts = [source(root, train=train, download=False) for train in (True, False)]
    train_images, test_images = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts)
    train_labels, test_labels = (torch.tensor(part.targets) for part in parts)
    return make_splits(
        train_images, train_labels, test_images, test_labels, parts[0].classes, validation_size=validation_size
    )  # fmt: skip


def _checked_bytes(path: Path, checksum: str, advice: str) -> bytes:
    """Return the file's bytes, after comparing their MD5 with the published one."""
    if not path.is_file():
        raise DataError(f"{path} is missing: {advice}.")
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != checksum:
        raise DataError(f"{path} is damaged (MD5 {found}, expected {checksum}): {advice}.")
    return content


def _unpack(packed: bytes, destination: Path) -> None:
    """Decompress gzip's bytes to `destination`, unless it already holds what they unpack to."""
    checksum, size = (int.from_bytes(field, "little") for field in (packed[-8:-4], packed[-4:]))  # gzip's last two fields
    if destination.is_file() and destination.stat().st_size == size and zlib.crc32(destination.read_bytes()) == checksum:
        return
    with atomic_path(destination) as temporary:
        temporary.write_bytes(gzip.decompress(packed))
