"""Datasets from folders: the shipped files, damaged ones, and the readers by name."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import socket
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from cookbook.data import Splits, load_cifar10, load_dataset, load_fashion_mnist
from cookbook.errors import CookbookError, DataError, UsageError
from cookbook.files import data_directory


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was about to be downloaded")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def small_fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write 6,000 + 20 images of 2×2 in Fashion-MNIST's own format, with their checksums, and an empty cache."""
    raw = tmp_path / "source" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.RandomState(0)
    for prefix, count in (("train", 6_000), ("t10k", 20)):
        images = generator.randint(0, 256, (count, 2, 2)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
            (raw / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    resources = [(name, md5(raw / name)) for name, _ in datasets.FashionMNIST.resources]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "source"


def test_torchvision_itself_reads_the_shipped_files_offline(tmp_path: Path, fashion_mnist: Splits) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in (data_directory() / "FashionMNIST" / "raw").glob("*.gz"):
        shutil.copy(archive, raw)
    # with its own checksums: it fetches (which fails here) what does not have them
    theirs = datasets.FashionMNIST(str(tmp_path), train=False, download=True)
    assert torch.equal(theirs.data, fashion_mnist.test.images[:, 0])
    assert torch.equal(theirs.targets, fashion_mnist.test.labels)
    assert tuple(theirs.classes) == fashion_mnist.test.classes
    assert len(datasets.FashionMNIST(str(tmp_path), train=True, download=False)) == 60_000


def test_fashion_mnist_is_unpacked_once(small_fashion: Path, tmp_path: Path) -> None:
    first = load_fashion_mnist(small_fashion)
    assert (len(first.train), len(first.validation), len(first.test)) == (1_000, 5_000, 20)
    unpacked = sorted((tmp_path / "cache" / "datasets" / "FashionMNIST" / "raw").iterdir())
    assert len(unpacked) == 4
    times = [path.stat().st_mtime_ns for path in unpacked]
    again = load_fashion_mnist(small_fashion)
    assert [path.stat().st_mtime_ns for path in unpacked] == times
    assert again.train.fingerprint() == first.train.fingerprint()


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "gone"])
def test_a_damaged_copy_in_the_cache_is_unpacked_again(small_fashion: Path, tmp_path: Path, damage: str) -> None:
    first = load_fashion_mnist(small_fashion)
    copy = tmp_path / "cache" / "datasets" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    content = copy.read_bytes()
    if damage == "gone":
        copy.unlink()
    else:
        copy.write_bytes(content[:-5] if damage == "shorter" else content[:-1] + bytes([content[-1] ^ 1]))
    assert load_fashion_mnist(small_fashion).train.fingerprint() == first.train.fingerprint()
    assert copy.read_bytes() == content


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit", "empty", "another file"])
def test_missing_and_damaged_archives_are_named(small_fashion: Path, tmp_path: Path, index: int, damage: str) -> None:
    archive = small_fashion / "FashionMNIST" / "raw" / datasets.FashionMNIST.resources[index][0]
    content = bytearray(archive.read_bytes())
    if damage == "missing":
        archive.unlink()
    elif damage == "truncated":
        archive.write_bytes(content[:-20])
    elif damage == "one bit":
        content[len(content) // 2] ^= 16
        archive.write_bytes(content)
    else:
        archive.write_bytes(b"" if damage == "empty" else gzip.compress(b"a"))
    with pytest.raises(DataError) as caught:
        load_fashion_mnist(small_fashion)
    assert str(archive) in str(caught.value)
    assert ("is missing" if damage == "missing" else "is damaged (MD5") in str(caught.value)
    assert "git checkout" in str(caught.value)
    assert not (tmp_path / "cache" / "datasets" / "FashionMNIST" / "raw" / archive.stem).exists()


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a CIFAR-10 of 5 × 20 + 20 images in its own format, and let torchvision expect its checksums."""
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    generator = np.random.RandomState(1)
    for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list:
        batch = {"data": generator.randint(0, 256, (20, 3072)).astype(np.uint8), "labels": [n % 10 for n in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class {number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    for part in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(datasets.CIFAR10, part)]
        monkeypatch.setattr(datasets.CIFAR10, part, sums)
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


@pytest.mark.parametrize("inside", [False, True])
def test_cifar_is_read_plane_by_plane(small_cifar: Path, inside: bool) -> None:
    folder = small_cifar / "cifar-10-batches-py"
    splits = load_cifar10(folder if inside else small_cifar, validation_size=30)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [70, 30, 20]
    test = pickle.loads((folder / "test_batch").read_bytes())
    planes = test["data"].reshape(20, 3, 32, 32)  # the format: 1,024 red bytes row by row, then green, then blue
    assert np.array_equal(splits.test.images.numpy(), planes)
    assert splits.test.labels.tolist() == test["labels"]
    assert splits.test.classes[3] == "class 3"
    assert splits.test.images.is_contiguous()
    assert len(splits.train.mean) == 3


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_damaged_cifar_is_refused_before_anything_is_unpickled(small_cifar: Path, name: str) -> None:
    marker = small_cifar / "it ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    path = small_cifar / "cifar-10-batches-py" / name
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match=f"{name} is damaged"):
        load_cifar10(small_cifar)
    assert not marker.exists()
    path.unlink()
    with pytest.raises(DataError, match=rf"{name} is missing: unpack cifar-10-python.tar.gz"):
        load_cifar10(small_cifar)


def test_too_small_a_cifar_is_refused(small_cifar: Path) -> None:
    with pytest.raises(DataError, match="Cannot draw 5000 of 100 images"):
        load_cifar10(small_cifar)


def test_datasets_by_name(small_fashion: Path, small_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_DATA", str(small_fashion))
    assert len(load_dataset("fashion-mnist").train) == 1_000
    assert len(load_dataset(f"fashion-mnist:{small_fashion}").train) == 1_000
    assert len(load_dataset(f"cifar10:{small_cifar}", validation_size=20).train) == 80


def test_a_folder_of_images_by_its_path(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 1)):
        for name, colour in (("dark", 10), ("light", 200)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (6, 6), (colour, colour, number)).save(folder / f"{number}.png")
    splits = load_dataset(str(tmp_path), size=6, validation_size=2, grey=True)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [6, 2, 2]
    assert splits.train.classes == ("dark", "light")
    assert load_dataset(tmp_path, size=3, validation_size=2).train.images.shape == (6, 3, 3, 3)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar10", {}, "write cifar10:FOLDER"),
        ("cifar100:x", {}, "'cifar100:x' is no dataset and no folder"),
        ("/no/such/folder", {}, "is no dataset and no folder"),
        ("cifar10:x", {"size": 3}, "do not fit load_cifar10"),
        (".", {}, "missing a required argument: 'size'"),
        (".", {"size": 0, "validation_size": 1}, "size is 0"),
    ],
)
def test_wrong_requests_are_explained(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset(name, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_cifar_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CookbookError, match="data_batch_1 is missing"):
        load_dataset(f"cifar10:{tmp_path}")
