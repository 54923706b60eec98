"""Datasets read from folders, never downloaded: Fashion-MNIST, CIFAR-10, folders of images (lesson 00)."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from pathlib import Path

from torchvision import datasets

from cookbook.data.splits import Splits, make_splits
from cookbook.errors import DataError
from cookbook.files import atomic_path, cache_directory, data_directory

FASHION_MNIST_VALIDATION = 5_000


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
    raw = Path(root or data_directory()) / "FashionMNIST" / "raw"
    unpacked = cache_directory() / "datasets"
    for name, checksum in datasets.FashionMNIST.resources:
        _unpack(raw / name, checksum, unpacked / "FashionMNIST" / "raw" / Path(name).stem)
    parts = [datasets.FashionMNIST(unpacked, train=train, download=False) for train in (True, False)]
    (train_images, train_labels), (test_images, test_labels) = ((part.data.unsqueeze(1), part.targets) for part in parts)
    return make_splits(
        train_images, train_labels, test_images, test_labels, parts[0].classes, validation_size=FASHION_MNIST_VALIDATION
    )  # fmt: skip


def _unpack(archive: Path, checksum: str, destination: Path) -> None:
    """Decompress `archive` to `destination` once, after comparing its MD5 with the published one."""
    if not archive.is_file():
        raise DataError(
            f"{archive} is missing: restore it with 'git checkout -- data', or point COOKBOOK_DATA at a folder that has it."
        )
    found = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    if found != checksum:
        raise DataError(
            f"{archive} is damaged (MD5 {found}, expected {checksum}): restore it with 'git checkout -- data'."
        )
    with archive.open("rb") as packed:
        packed.seek(-4, os.SEEK_END)
        size = int.from_bytes(packed.read(4), "little")  # gzip's last field: the length before compression
    if destination.is_file() and destination.stat().st_size == size:
        return
    with gzip.open(archive) as packed, atomic_path(destination) as temporary, temporary.open("wb") as plain:
        shutil.copyfileobj(packed, plain)

