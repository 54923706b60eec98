"""Torchvision-style datasets and folders of images as splits: pixels kept, everything unfit refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from torchvision import datasets
from torchvision.transforms import v2

from cookbook.data import from_torchvision, load_image_folder
from cookbook.errors import DataError, UsageError

Samples = list[tuple[Any, Any]]


def pictures(count: int, channels: int = 3, seed: int = 0) -> list[Image.Image]:
    generator = np.random.RandomState(seed)
    shape = (5, 4, 3) if channels == 3 else (5, 4)
    return [Image.fromarray(generator.randint(0, 256, shape).astype(np.uint8)) for _ in range(count)]


def samples(count: int = 8, **options: int) -> Samples:
    return [(picture, number % 2) for number, picture in enumerate(pictures(count, **options))]


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_images_and_both_kinds_of_tensors_give_the_same_bytes(channels: int) -> None:
    plain = samples(10, channels=channels)
    to_bytes, to_floats = v2.PILToTensor(), v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    variants = [plain, *([(to(image), label) for image, label in plain] for to in (to_bytes, to_floats))]
    made = [from_torchvision(variant, plain[:4], validation_size=4) for variant in variants]
    pixels = np.stack([np.asarray(image).reshape(5, 4, channels).transpose(2, 0, 1) for image, _ in plain])
    assert np.array_equal(made[0].test.images.numpy(), pixels[:4])
    everything = torch.cat([made[0].train.images, made[0].validation.images]).flatten(1).tolist()
    assert sorted(everything) == sorted(pixels.reshape(10, -1).tolist())
    assert made[0].train.fingerprint() == made[1].train.fingerprint() == made[2].train.fingerprint()


def test_floats_between_two_bytes_go_to_the_nearer_one() -> None:
    data = [(torch.full((1, 2, 2), value / 255), number % 2) for number, value in enumerate([10.3, 10.7, 0.0, 254.6])]
    splits = from_torchvision(data, data, validation_size=2)
    assert splits.test.images[:, 0, 0, 0].tolist() == [10, 11, 0, 255]


def test_torchvisions_own_datasets_are_read() -> None:
    fake = [datasets.FakeData(size, (1, 6, 7), 4, random_offset=size) for size in (40, 20)]
    splits = from_torchvision(*fake, validation_size=8)
    assert splits.train.images.shape == (32, 1, 6, 7)
    assert splits.train.classes == ("0", "1", "2", "3")
    assert splits.test.labels.tolist() == [int(fake[1][index][1]) for index in range(20)]
    assert np.array_equal(splits.test.images[7, 0].numpy(), np.asarray(fake[1][7][0]))


@pytest.mark.parametrize("convert", [int, np.int64, torch.tensor, lambda number: torch.tensor([number])])
def test_labels_of_every_whole_kind_are_taken(convert: Callable[[int], Any]) -> None:
    data = [(image, convert(label)) for image, label in samples()]
    assert from_torchvision(data, data, validation_size=2).test.labels.tolist() == [0, 1] * 4


class Named(list[Any]):
    """Samples with the attribute that torchvision's datasets have."""

    def __init__(self, values: Samples, classes: list[str]) -> None:
        super().__init__(values)
        self.classes = classes


def test_class_names_come_from_the_argument_or_the_datasets_or_the_numbers() -> None:
    plain, named = samples(), Named(samples(), ["cat", "dog"])
    assert from_torchvision(plain, plain, validation_size=2).train.classes == ("0", "1")
    assert from_torchvision(named, named, validation_size=2).train.classes == ("cat", "dog")
    assert from_torchvision(plain, named, validation_size=2).train.classes == ("cat", "dog")
    assert from_torchvision(named, named, validation_size=2, classes=["a", "b"]).train.classes == ("a", "b")
    with pytest.raises(DataError, match=r"differ in their classes \('dog' and 'cow'\)"):
        from_torchvision(named, Named(samples(), ["cat", "cow"]), validation_size=2)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(samples())


def with_one(index: int, sample: Any) -> Samples:
    data = samples()
    data[index] = sample
    return data


def failing() -> Any:
    class Failing(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise OSError("image file is truncated")

    return Failing(samples())


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "other size": (
        lambda: with_one(3, (Image.new("RGB", (4, 4)), 0)),
        r"Image 3 .* is \(3, 4, 4\), but the first is \(3, 5, 4\)",
    ),
    "other mode": (lambda: with_one(2, (Image.new("L", (4, 5)), 0)), r"Image 2 .* is \(1, 5, 4\)"),
    "palette": (lambda: with_one(0, (Image.new("P", (4, 5)), 0)), "Image 0 .* mode P: convert it"),
    "no label": (lambda: with_one(1, pictures(1)[0]), "Image 1 .* comes without a label"),
    "label None": (lambda: with_one(1, (pictures(1)[0], None)), "Image 1 .* has the label None"),
    "label fraction": (lambda: with_one(1, (pictures(1)[0], 0.5)), "has the label 0.5: labels must be whole numbers"),
    "labels of boxes": (lambda: with_one(1, (pictures(1)[0], torch.tensor([1, 2]))), "has the label tensor"),
    "label negative": (lambda: with_one(1, (pictures(1)[0], -1)), "Labels run from -1 to 1"),
    "normalized": (lambda: with_one(4, (torch.full((3, 5, 4), -0.1), 0)), r"Image 4 .*float32 outside 0…1"),
    "nan": (lambda: with_one(4, (torch.full((3, 5, 4), torch.nan), 0)), r"Image 4 .*float32 outside 0…1"),
    "int64 pixels": (lambda: with_one(4, (torch.zeros(3, 5, 4, dtype=torch.int64), 0)), r"int64 outside 0…1: give uint8"),
    "no channel": (lambda: with_one(0, (torch.zeros(5, 4), 0)), r"a tensor of shape \(5, 4\): it must be"),
    "an array": (lambda: with_one(0, (np.zeros((5, 4, 3)), 0)), "is a ndarray: it must be a PIL image or a tensor"),
    "empty": (lambda: [], "dataset is empty"),
    "a stream": (Stream, "has no length"),
    "unreadable": (failing, "Image 0 .* cannot be read .*truncated"),
}


@pytest.mark.parametrize("case", list(UNFIT))
def test_unfit_data_is_refused_in_one_sentence(case: str) -> None:
    make, words = UNFIT[case]
    with pytest.raises(DataError, match=words):
        from_torchvision(make(), samples(), validation_size=2)
    if case != "label negative":
        with pytest.raises(DataError) as caught:
            from_torchvision(samples(), make(), validation_size=2)
        assert "\n" not in str(caught.value)


def test_training_and_test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(3, 5, 4\) and test images \(1, 5, 4\)"):
        from_torchvision(samples(), samples(channels=1), validation_size=2)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="Cannot draw 8 of 8"):
        from_torchvision(samples(), samples(), validation_size=8)
    with pytest.raises(DataError, match="Labels run from 0 to 1, but there are 1 classes"):
        from_torchvision(samples(), samples(), validation_size=2, classes=["a"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write ten training and two test images for each of two classes."""
    generator = np.random.RandomState(0)
    for part, count in (("train", 10), ("test", 2)):
        for name in ("apple", "pear"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.randint(0, 256, (12, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_folder_images_are_resized_by_the_shorter_side_and_cut_in_the_middle(folder: Path) -> None:
    splits = load_image_folder(folder, size=4, validation_size=4)
    assert [tuple(part.images.shape) for part in (splits.train, splits.validation, splits.test)] == [
        (16, 3, 4, 4), (4, 3, 4, 4), (4, 3, 4, 4),
    ]  # fmt: skip
    assert splits.test.classes == ("apple", "pear")
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    with Image.open(folder / "test" / "pear" / "1.png") as image:
        expected = np.asarray(image.resize((4, 6), Image.Resampling.BILINEAR))[1:5]
    assert np.array_equal(splits.test.images[3].permute(1, 2, 0).numpy(), expected)


def test_folder_images_of_every_mode_and_size_can_be_mixed(folder: Path) -> None:
    Image.new("L", (30, 9), 40).save(folder / "train" / "apple" / "grey.png")
    Image.new("RGBA", (3, 3), (255, 0, 0, 255)).save(folder / "train" / "apple" / "alpha.png")
    assert load_image_folder(folder, size=8, validation_size=4).train.images.shape[1:] == (3, 8, 8)
    grey = load_image_folder(folder, size=8, validation_size=4, grey=True)
    assert grey.train.images.shape[1:] == (1, 8, 8)
    with Image.open(folder / "test" / "apple" / "0.png") as image:
        expected = np.asarray(image.convert("L"))[2:10]
    assert np.array_equal(grey.test.images[0, 0].numpy(), expected)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_image_is_named(folder: Path, damage: str) -> None:
    path = folder / "train" / "pear" / "3.png"
    path.write_bytes({"truncated": path.read_bytes()[:-60], "text": b"no image", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"3\.png is not a readable image"):
        load_image_folder(folder, size=4, validation_size=4)


def test_missing_folders_and_classes_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="train is no folder of images"):
        load_image_folder(folder / "train" / "apple", size=4, validation_size=4)
    for image in (folder / "test" / "pear").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"test is no folder of images .*pear"):
        load_image_folder(folder, size=4, validation_size=4)
    (folder / "test" / "pear").rmdir()
    with pytest.raises(DataError, match=r"differ in their classes \('pear' and None\)"):
        load_image_folder(folder, size=4, validation_size=4)


def test_a_size_below_one_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="size is 0"):
        load_image_folder(folder, size=0, validation_size=4)
