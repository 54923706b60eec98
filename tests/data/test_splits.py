"""The fixed split, its statistics, and the refusal of data in another form."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cookbook.data import Split, Splits, make_splits, require_role
from cookbook.data.splits import SPLIT_SEED, channel_statistics, stratified_indices
from cookbook.errors import DataError, UsageError
from cookbook.files import data_directory

VALIDATION_SHA256 = "c727c406f60849ecb8b23d3a68fd39ba6a02ab312f636c91e495b64ab9d7ebc9"


def raw(name: str) -> np.ndarray:
    """Read an idx file without the cookbook and without torchvision."""
    content = gzip.decompress((data_directory() / "FashionMNIST" / "raw" / name).read_bytes())
    sizes = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(sizes)


def some_images(count: int = 40, channels: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 3, 2), generator=generator, dtype=torch.uint8)


def test_fashion_mnist_validation_images_never_change(fashion_mnist: Splits) -> None:
    labels = torch.from_numpy(raw("train-labels-idx1-ubyte.gz").astype(np.int64))
    chosen, others = stratified_indices(labels, 5_000, SPLIT_SEED)
    assert hashlib.sha256(chosen.numpy().astype("<i8").tobytes()).hexdigest() == VALIDATION_SHA256
    images = torch.from_numpy(raw("train-images-idx3-ubyte.gz").copy()).unsqueeze(1)
    assert torch.equal(fashion_mnist.validation.images, images[chosen])
    assert torch.equal(fashion_mnist.validation.labels, labels[chosen])
    assert torch.equal(fashion_mnist.train.images, images[others])
    assert torch.equal(fashion_mnist.train.labels, labels[others])


def test_fashion_mnist_test_images_are_the_files(fashion_mnist: Splits) -> None:
    assert np.array_equal(fashion_mnist.test.images[:, 0].numpy(), raw("t10k-images-idx3-ubyte.gz"))
    assert np.array_equal(fashion_mnist.test.labels.numpy(), raw("t10k-labels-idx1-ubyte.gz"))


def test_fashion_mnist_is_balanced(fashion_mnist: Splits) -> None:
    for split, per_class in ((fashion_mnist.train, 5_500), (fashion_mnist.validation, 500), (fashion_mnist.test, 1_000)):
        assert split.labels.bincount().tolist() == [per_class] * 10
    assert (fashion_mnist.train.role, fashion_mnist.validation.role, fashion_mnist.test.role) == ("train", "validation", "test")
    assert fashion_mnist.train.classes[9] == "Ankle boot"


def test_statistics_equal_numpys_in_float64(fashion_mnist: Splits) -> None:
    images = fashion_mnist.train.images.numpy()
    mean = images.mean(dtype=np.float64) / 255
    variance = np.mean([np.square(part / 255.0 - mean).mean() for part in np.split(images, 11)])
    assert fashion_mnist.train.mean == (round(mean, 6),)
    assert fashion_mnist.train.std == (round(variance**0.5, 6),)
    assert fashion_mnist.test.mean == fashion_mnist.validation.mean == fashion_mnist.train.mean
    assert fashion_mnist.test.std == fashion_mnist.validation.std == fashion_mnist.train.std


def test_statistics_are_taken_per_channel() -> None:
    images = some_images(channels=3)
    images[:, 1] = 7
    images[:, 2] //= 4
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), atol=5.1e-7)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), atol=1.1e-6)
    assert std[1] > 0  # a constant channel can still be divided by it


def test_normalized_is_what_the_statistics_say() -> None:
    split = Split(some_images(channels=2), torch.zeros(40, dtype=torch.int64), "train", ("a",), (0.5, 0.25), (0.5, 2.0))
    expected = split.images.numpy().astype(np.float64) / 255
    expected[:, 0] = (expected[:, 0] - 0.5) / 0.5
    expected[:, 1] = (expected[:, 1] - 0.25) / 2.0
    assert split.normalized().dtype == torch.float32
    np.testing.assert_allclose(split.normalized().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([10, 10, 10], 6, [2, 2, 2]),
        ([50, 30, 20], 10, [5, 3, 2]),
        ([5, 3, 2], 5, [3, 1, 1]),  # 2.5, 1.5 and 1: the largest remainders, the first of equals
        ([7, 7, 7], 4, [2, 1, 1]),
        ([90, 6, 4], 33, [30, 2, 1]),  # 29.7, 1.98 and 1.32
    ],
)
def test_shares_are_kept_to_the_image(counts: list[int], size: int, expected: list[int]) -> None:
    labels = torch.cat([torch.full((count,), name) for name, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    chosen, others = stratified_indices(labels, size, seed=3)
    assert labels[chosen].bincount(minlength=len(counts)).tolist() == expected
    assert sorted(chosen.tolist() + others.tolist()) == list(range(len(labels)))
    assert chosen.tolist() == sorted(chosen.tolist())
    assert others.tolist() == sorted(others.tolist())


def test_the_seed_decides_which_images() -> None:
    labels = torch.arange(100) % 5
    draws = [stratified_indices(labels, 20, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("size", "words"), [(0, "Cannot draw 0 of 6"), (6, "Cannot draw 6 of 6"), (-1, "Cannot draw -1")])
def test_impossible_sizes_are_refused(size: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        stratified_indices(torch.tensor([0, 0, 0, 1, 1, 1]), size, 0)


def test_a_class_without_any_image_is_named() -> None:
    with pytest.raises(DataError, match="2 images leave the class 1 without any"):
        stratified_indices(torch.tensor([0] * 20 + [1]), 2, 0)


def test_a_class_with_nothing_left_to_train_on_is_named() -> None:
    labels = torch.tensor([0] * 9 + [1])
    images = some_images(10)
    with pytest.raises(DataError, match="9 validation images leave the class 1 none to train on"):
        make_splits(images, labels, images, labels, ("a", "b"), validation_size=9)


def test_subset_is_stratified_and_always_the_same(fashion_mnist: Splits) -> None:
    part, again = fashion_mnist.test.subset(200), fashion_mnist.test.subset(200)
    assert part.labels.bincount().tolist() == [20] * 10
    assert torch.equal(part.images, again.images)
    assert (part.role, part.mean, part.classes) == ("test", fashion_mnist.test.mean, fashion_mnist.test.classes)
    assert part.subset(200) is part
    with pytest.raises(DataError, match="Cannot draw 201 of 200"):
        part.subset(201)


def test_make_splits_is_disjoint_and_covers_everything() -> None:
    images = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1)
    labels = torch.arange(60) % 3
    splits = make_splits(images, labels, images[:9], labels[:9], ("a", "b", "c"), validation_size=15)
    seen = torch.cat([splits.train.images, splits.validation.images]).flatten().tolist()
    assert sorted(seen) == list(range(60))
    assert len(splits.validation) == 15
    for split in (splits.train, splits.validation):
        assert torch.equal(split.images.flatten().long() % 3, split.labels)  # labels went with their images
    pixels = splits.train.images.numpy().astype(np.float64) / 255
    assert splits.train.mean == (round(pixels.mean(), 6),)  # of the training part alone


def test_fingerprint_changes_with_pixel_label_and_order() -> None:
    def split(images: Tensor, labels: Tensor) -> Split:
        return Split(images, labels, "train", ("a", "b"), (0.5,), (0.5,))

    images, labels = some_images(6), torch.tensor([0, 1, 0, 1, 0, 1])
    other_pixel, other_label = images.clone(), labels.clone()
    other_pixel[3, 0, 1, 1] ^= 1
    other_label[3] = 0
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    variants = [(images, labels), (other_pixel, labels), (images, other_label), (images[order], labels[order])]
    assert len({split(*variant).fingerprint() for variant in variants}) == 4
    assert split(images, labels).fingerprint() == split(images.clone(), labels.clone()).fingerprint()


WRONG: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str]] = {
    "float images": (lambda: (some_images(4).float(), torch.zeros(4, dtype=torch.int64)), "uint8"),
    "no channels": (lambda: (some_images(4)[:, 0], torch.zeros(4, dtype=torch.int64)), r"\(N, C, H, W\)"),
    "int32 labels": (lambda: (some_images(4), torch.zeros(4, dtype=torch.int32)), "int64"),
    "too few labels": (lambda: (some_images(4), torch.zeros(3, dtype=torch.int64)), "each of the 4 images"),
    "label too large": (lambda: (some_images(4), torch.tensor([0, 1, 0, 2])), "from 0 to 2, but there are 2 classes"),
    "label negative": (lambda: (some_images(4), torch.tensor([0, 1, 0, -1])), "from -1 to 1"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_data_of_another_form_is_refused(case: str) -> None:
    build, words = WRONG[case]
    images, labels = build()
    right_images, right_labels = some_images(6), torch.tensor([0, 1] * 3)
    with pytest.raises(DataError, match=words):
        Split(images, labels, "train", ("a", "b"), (0.5,), (0.5,))
    with pytest.raises(DataError, match=words):
        make_splits(images, labels, right_images, right_labels, ("a", "b"), validation_size=2)
    with pytest.raises(DataError):
        make_splits(right_images, right_labels, images, labels, ("a", "b"), validation_size=2)


def test_training_and_test_images_must_have_one_size() -> None:
    labels = torch.tensor([0, 1] * 3)
    with pytest.raises(DataError, match=r"\(1, 3, 2\) and test images \(3, 3, 2\)"):
        make_splits(some_images(6), labels, some_images(6, channels=3), labels, ("a", "b"), validation_size=2)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5,)), ((0.5,) * 3, (0.5,) * 2), ((0.5,) * 3, (0.5, 0.0, 0.5))])
def test_statistics_must_fit_the_channels(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="The images have 3 channels"):
        Split(some_images(4, channels=3), torch.zeros(4, dtype=torch.int64), "train", ("a",), mean, std)


def test_a_wrong_role_is_refused_with_the_right_ones() -> None:
    require_role("train", ("train",), "train")
    with pytest.raises(UsageError, match="The test split must not be used to calibrate: pass the train or validation split"):
        require_role("test", ("validation", "train"), "calibrate")
