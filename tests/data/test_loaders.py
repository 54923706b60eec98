"""Both loaders: the same interface, order and pixels, and batches that depend on nothing but their number."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cookbook.data import Augmentation, Loader, LoaderWrapper, ResidentLoader, Split, Splits, TorchvisionLoader, require_role
from cookbook.data.splits import Role
from cookbook.errors import DataError, UsageError

EVERYTHING = Augmentation(crop=1, flip=True, erase=0.5, resolutions=((0, 3), (1, 4)))
LOADERS: list[Callable[..., Any]] = [ResidentLoader, TorchvisionLoader]


def numbered(count: int, role: Role = "train") -> Split:
    """Return 4×4 images whose first pixel is their number; the others come from a fixed stream."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3, role, ("a", "b", "c"), (0.4,), (0.3,))


def numbers(images: Tensor) -> list[int]:
    """Undo the normalization of the first pixel."""
    return ((images[:, 0, 0, 0].double() * 0.3 + 0.4) * 255).round().int().tolist()


def order(batches: Iterable[tuple[Tensor, Tensor]]) -> list[int]:
    return [number for images, _ in batches for number in numbers(images)]


def assert_same(found: list[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> None:
    assert len(found) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


def test_the_arguments_of_one_are_those_of_the_other() -> None:
    resident, conventional = (inspect.signature(loader).parameters for loader in LOADERS)
    assert dict(resident) == {name: conventional[name] for name in resident}
    assert set(conventional) - set(resident) == {"workers", "pin_memory"}


@pytest.mark.parametrize("loader", LOADERS)
def test_what_every_loader_gives(loader: Callable[..., Any]) -> None:
    made = loader(numbered(10, "validation"), 4)
    assert isinstance(made, Loader)
    assert made.role == "validation"
    assert len(made) == 3
    batches = list(made.batches(0))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]  # the incomplete last batch is evaluated too
    for images, labels in batches:
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.shape == (len(labels), 1, 4, 4)
    assert order(batches) == list(range(10))  # in the order of the split
    assert_same(list(made), batches)


@pytest.mark.parametrize("loader", LOADERS)
def test_every_image_is_seen_once_an_epoch_in_another_order_each(loader: Callable[..., Any]) -> None:
    split = numbered(24)
    made = loader(split, 6, seed=5)
    orders = []
    for epoch in range(3):
        seen = []
        for images, labels in made.batches(epoch):
            seen += numbers(images)
            assert torch.equal(labels, split.labels[numbers(images)])
        assert sorted(seen) == list(range(24))
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("loader", LOADERS)
def test_while_shuffling_the_incomplete_batch_is_dropped(loader: Callable[..., Any]) -> None:
    made = loader(numbered(11), 4)
    assert len(made) == 2
    assert [len(labels) for _, labels in made.batches(0)] == [4, 4]
    ordered = loader(numbered(11), 4, shuffle=False)
    assert order(ordered.batches(3)) == list(range(11))
    shuffled = loader(numbered(12, "validation"), 4, shuffle=True)
    assert order(shuffled.batches(0)) != list(range(12))


def test_both_have_the_same_order_and_the_same_pixels() -> None:
    for seed in (0, 1):
        resident, conventional = (list(loader(numbered(20), 5, seed=seed).batches(2)) for loader in LOADERS)
        for (images, labels), (expected_images, expected_labels) in zip(resident, conventional, strict=True):
            assert torch.equal(labels, expected_labels)
            torch.testing.assert_close(images, expected_images, rtol=1e-5, atol=1e-6)
    other = next(iter(ResidentLoader(numbered(20), 5, seed=0).batches(2)))
    assert numbers(other[0]) != numbers(resident[0][0])


def test_normalization_equals_torchvisions(fashion_mnist: Splits) -> None:
    split = fashion_mnist.validation.subset(50)
    expected = v2.functional.normalize(v2.functional.to_dtype(split.images, torch.float32, scale=True), split.mean, split.std)
    for loader in LOADERS:
        images = torch.cat([images for images, _ in loader(split, 20).batches(0)])
        torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)
    float64 = (split.images.numpy().astype(np.float64) / 255 - split.mean[0]) / split.std[0]
    np.testing.assert_allclose(expected.numpy(), float64, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_can_be_entered_at_any_batch(loader: Callable[..., Any], epoch: int) -> None:
    made = loader(numbered(20), 4, augmentation=EVERYTHING, seed=2)
    whole = list(made.batches(epoch))
    for first in range(6):
        assert_same(list(made.batches(epoch, first)), whole[first:])
    fresh = loader(numbered(20), 4, augmentation=EVERYTHING, seed=2)
    assert_same(list(fresh.batches(epoch, first=3)), whole[3:])


@pytest.mark.parametrize("loader", LOADERS)
def test_augmentation_differs_between_epochs_and_seeds(loader: Callable[..., Any]) -> None:
    augmentation = Augmentation(crop=1, flip=True)
    batches = [
        next(iter(loader(numbered(20), 20, augmentation=augmentation, shuffle=False, seed=seed).batches(epoch)))[0]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("loader", LOADERS)
def test_crop_and_flip_give_the_possible_images_and_no_other(loader: Callable[..., Any]) -> None:
    split = numbered(1)
    padded = np.pad(split.images[0, 0].numpy(), 1)
    windows = [padded[row : row + 4, column : column + 4] for row in range(3) for column in range(3)]
    possible = {candidate.tobytes() for window in windows for candidate in (window, window[:, ::-1])}
    made = loader(split, 1, augmentation=Augmentation(crop=1, flip=True), shuffle=False)
    found = set()
    for epoch in range(200):
        images, _ = next(iter(made.batches(epoch)))
        found.add(((images[0, 0].double() * 0.3 + 0.4) * 255).round().to(torch.uint8).numpy().tobytes())
    assert found == possible


@pytest.mark.parametrize("loader", LOADERS)
def test_erasing_covers_with_the_mean(loader: Callable[..., Any]) -> None:
    split = numbered(200)
    plain = next(iter(loader(split, 200, shuffle=False).batches(0)))[0]
    erased = next(iter(loader(split, 200, shuffle=False, augmentation=Augmentation(erase=0.5)).batches(0)))[0]
    changed = erased != plain
    assert (erased[changed] == 0).all()
    assert changed.flatten(1).any(1).double().mean().item() == pytest.approx(0.5, abs=0.18)


@pytest.mark.parametrize("loader", LOADERS)
def test_resolution_follows_the_epoch(loader: Callable[..., Any]) -> None:
    made = loader(numbered(8), 4, augmentation=Augmentation(resolutions=((0, 2), (2, 6))))
    assert [next(iter(made.batches(epoch)))[0].shape[2:] for epoch in range(3)] == [(2, 2), (2, 2), (6, 6)]
    resident, conventional = (
        next(iter(each(numbered(8), 4, augmentation=Augmentation(resolutions=((0, 2),))).batches(0)))[0] for each in LOADERS
    )
    torch.testing.assert_close(resident, conventional, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loader", LOADERS)
def test_the_global_random_numbers_are_neither_read_nor_advanced(loader: Callable[..., Any]) -> None:
    made = loader(numbered(12), 4, augmentation=EVERYTHING)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = list(made.batches(0))
    assert torch.equal(torch.get_rng_state(), before)  # else dropout would differ after a resume
    torch.manual_seed(2)
    assert_same(list(made.batches(0)), first)


def test_workers_do_not_change_what_is_seen() -> None:
    made = [TorchvisionLoader(numbered(20), 4, augmentation=EVERYTHING, seed=3, workers=workers) for workers in (0, 2)]
    for first in (0, 2):
        assert_same(list(made[1].batches(1, first)), list(made[0].batches(1, first)))


@pytest.mark.parametrize("loader", LOADERS)
def test_describe_tells_apart_what_changes_the_batches(loader: Callable[..., Any]) -> None:
    def described(count: int = 12, batch_size: int = 4, **options: Any) -> str:
        return repr(loader(numbered(count), batch_size, **options).describe())

    variants = [
        described(),
        described(count=13),
        described(batch_size=5),
        described(seed=1),
        described(shuffle=False),
        described(augmentation=Augmentation(crop=1)),
    ]
    assert len(set(variants)) == len(variants)
    assert described() == described()


def test_a_loaders_role_can_be_refused() -> None:
    loader = ResidentLoader(numbered(4, "test"), 2)
    with pytest.raises(UsageError, match="The test split must not be used to train"):
        require_role(loader.role, ("train",), "train")


@pytest.mark.parametrize("loader", LOADERS)
def test_wrong_arguments_are_refused(loader: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="batch_size is 0"):
        loader(numbered(4), 0)
    with pytest.raises(DataError, match="4 images do not fill a batch of 5"):
        loader(numbered(4), 5)
    assert len(loader(numbered(4, "test"), 5)) == 1


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(UsageError, match="workers is -1"):
        TorchvisionLoader(numbered(4), 2, workers=-1)


def test_a_wrapper_is_a_loader_and_hands_everything_on() -> None:
    loader = ResidentLoader(numbered(10), 3, augmentation=EVERYTHING, seed=4)
    wrapper = LoaderWrapper(loader)
    assert isinstance(wrapper, Loader)
    assert (wrapper.role, len(wrapper), wrapper.describe()) == (loader.role, len(loader), loader.describe())
    assert_same(list(wrapper.batches(2, 1)), list(loader.batches(2, 1)))
