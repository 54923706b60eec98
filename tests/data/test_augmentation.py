"""Batched augmentation against loops over single pixels, PIL and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cookbook.data import Augmentation
from cookbook.data.augmentation import crop_and_flip, erase_rectangles, resize
from cookbook.errors import UsageError


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (1, False), (2, True), (3, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_equals_a_loop_over_pixels(crop: int, flip: bool, dtype: torch.dtype) -> None:
    images = torch.randint(1, 256, (7, 2, 5, 4), generator=torch.Generator().manual_seed(1)).to(dtype)
    found = crop_and_flip(images, crop, flip, torch.Generator().manual_seed(9))
    draws = torch.Generator().manual_seed(9)  # the same numbers in the same order
    down = torch.randint(0, 2 * crop + 1, (7, 1), generator=draws).flatten().tolist()
    right = torch.randint(0, 2 * crop + 1, (7, 1), generator=draws).flatten().tolist()
    mirrored = (torch.rand((7, 1), generator=draws) < 0.5).flatten().tolist() if flip else [False] * 7
    expected = torch.zeros_like(images)
    for n in range(7):
        for row in range(5):
            for column in range(4):
                source_row, source_column = row + down[n] - crop, column + right[n] - crop
                target = 3 - column if mirrored[n] else column
                if 0 <= source_row < 5 and 0 <= source_column < 4:
                    expected[n, :, row, target] = images[n, :, source_row, source_column]
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_every_shift_and_both_sides_occur_equally_often() -> None:
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(4_500, 1, 3, 3)
    found = crop_and_flip(images, 1, True, torch.Generator().manual_seed(0))
    _, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 18  # three rows, three columns, two sides
    assert counts.min() > 250 - 5 * math.sqrt(250)
    assert counts.max() < 250 + 5 * math.sqrt(250)


def test_the_input_is_left_alone() -> None:
    images = torch.rand(4, 1, 6, 6)
    before = images.clone()
    crop_and_flip(images, 2, True, torch.Generator().manual_seed(0))
    erase_rectangles(images, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(images, before)


def test_erased_pixels_are_one_rectangle_of_the_promised_area_and_aspect() -> None:
    size, count = 96, 400
    found = erase_rectangles(torch.ones(count, 2, size, size), 1.0, torch.Generator().manual_seed(2))
    assert torch.equal(found[:, 0], found[:, 1])  # all channels alike
    areas, aspects = [], []
    for image in found[:, 0]:
        erased = image == 0
        rows, columns = erased.any(1).sum().item(), erased.any(0).sum().item()
        assert erased.sum() == rows * columns  # nothing but a rectangle
        areas.append(rows * columns / size**2)
        aspects.append(rows / columns)
    assert 0.3 / 1.15 < min(aspects) < 0.33  # up to the rounding to whole pixels
    assert 3.0 < max(aspects) < 3.34 * 1.15
    assert np.mean(np.log(aspects)) == pytest.approx(0, abs=0.15)  # as many tall ones as wide ones
    assert 0.02 / 1.15 < min(areas) < 0.03
    assert 0.31 < max(areas) < 0.33 * 1.05
    assert np.mean(areas) == pytest.approx(0.175, abs=0.015)  # uniform between 2 and 33 %


def test_rectangles_reach_every_edge() -> None:
    found = erase_rectangles(torch.ones(2_000, 1, 12, 12), 1.0, torch.Generator().manual_seed(2))
    touched = (found[:, 0] == 0).float().mean(0)
    assert touched.min() > 0.002
    torch.testing.assert_close(touched, touched.flip(0), atol=0.05, rtol=0)
    torch.testing.assert_close(touched, touched.flip(1), atol=0.05, rtol=0)
    torch.testing.assert_close(touched, touched.T, atol=0.05, rtol=0)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_probability_of_erasing(probability: float) -> None:
    found = erase_rectangles(torch.ones(2_000, 1, 10, 10), probability, torch.Generator().manual_seed(4))
    share = (found == 0).flatten(1).any(1).double().mean().item()
    assert share == pytest.approx(probability, abs=5 * math.sqrt(probability * (1 - probability) / 2_000))


@pytest.mark.parametrize("pixels", [9, 14, 20, 40])
def test_resize_equals_pil(pixels: int) -> None:
    images = torch.rand(2, 2, 28, 28, generator=torch.Generator().manual_seed(0))
    found = resize(images, pixels)
    assert found.shape == (2, 2, pixels, pixels)
    for n in range(2):
        for channel in range(2):
            picture = Image.fromarray(images[n, channel].numpy()).resize((pixels, pixels), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(found[n, channel].numpy(), np.asarray(picture), atol=2e-6)


def test_resize_smooths_where_plain_interpolation_does_not() -> None:
    stripes = (torch.arange(32) % 2).float().expand(1, 1, 32, 32)
    centre = resize(stripes, 12)[..., 2:-2]
    plain = F.interpolate(stripes, size=(12, 12), mode="bilinear")[..., 2:-2]
    assert (centre - 0.5).abs().max() < 0.1
    assert (plain - 0.5).abs().max() > 0.3


def test_resize_to_the_own_size_is_the_image() -> None:
    images = torch.rand(1, 1, 8, 8)
    assert resize(images, 8) is images
    assert resize(torch.rand(1, 1, 8, 6), 8).shape == (1, 1, 8, 8)


def test_resolution_follows_the_epochs() -> None:
    augmentation = Augmentation(resolutions=((0, 20), (3, 24), (5, 28)))
    assert [augmentation.resolution_at(epoch) for epoch in range(7)] == [20, 20, 20, 24, 24, 28, 28]
    assert Augmentation().resolution_at(0) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"crop": -1}, "crop is -1"),
        ({"erase": 1.5}, "erase is 1.5"),
        ({"erase": math.nan}, "erase is nan"),
        ({"resolutions": ((1, 20),)}, "must begin at epoch 0"),
        ({"resolutions": ((0, 20), (0, 28))}, "ascend"),
        ({"resolutions": ((0, 20), (5, 24), (3, 28))}, "ascend"),
        ({"resolutions": ((0, 0),)}, "positive sizes"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Augmentation(**fields)  # type: ignore[arg-type]
