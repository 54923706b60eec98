"""A teacher answers once; what is on disk is the right thing or is refused; views are the same for everybody."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_students import AUGMENTATION, same_weights, small_net, small_split, small_teacher, weights_of
from torch import Tensor, nn

from cookbook.data import Augmentation, ResidentLoader
from cookbook.distillation import Ensemble, ViewLoader, augmented_views, fingerprint, teacher_logits
from cookbook.errors import CheckpointError, DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path))
    return tmp_path / "teacher-logits"


class Counting(nn.Module):
    """A teacher that counts the images that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_teacher()
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.net(images)


def test_the_logits_are_the_teachers_in_eval_mode_and_in_order() -> None:
    teacher, split = small_teacher(), small_split()
    before = weights_of(teacher)
    logits = teacher_logits(teacher, split)
    assert teacher.training
    assert same_weights(before, teacher.state_dict()), "asking must not move BatchNorm's statistics"
    with torch.no_grad():
        expected = copy.deepcopy(teacher).eval()(split.normalized())
    torch.testing.assert_close(logits, expected)
    assert logits.dtype == torch.float32
    (logits + torch.zeros(3, requires_grad=True)).sum().backward()  # no inference tensor, which autograd would refuse


def test_the_second_call_reads_the_disk_and_only_refresh_asks_again(cache: Path) -> None:
    teacher, split = Counting(), small_split()
    first = teacher_logits(teacher, split)
    assert torch.equal(first, teacher_logits(teacher, split))
    assert (teacher.asked, len(list(cache.iterdir()))) == (48, 1)
    teacher_logits(teacher, split, refresh=True)
    assert teacher.asked == 96


def test_other_weights_statistics_pixels_or_normalization_have_their_own_file(cache: Path) -> None:
    teacher, split = small_teacher(), small_split()
    teacher_logits(teacher, split)
    with torch.no_grad():
        teacher[1].running_mean[0] += 1e-3
    teacher_logits(teacher, split)
    teacher_logits(teacher, small_split(seed=8))
    moved = teacher_logits(teacher, replace(split, mean=(0.5,)))
    assert len(list(cache.iterdir())) == 4
    assert not torch.equal(moved, teacher_logits(teacher, split))


def test_the_teacher_answers_in_the_precision_that_is_asked_for(cache: Path) -> None:
    teacher, split = small_teacher(), small_split()
    exact, rounded = teacher_logits(teacher, split), teacher_logits(teacher, split, precision="bf16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = copy.deepcopy(teacher).eval()(split.normalized())
    assert torch.equal(rounded, expected.float()) and rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 2**-6 * exact.abs().max()  # bfloat16 keeps 8 bits
    assert len(list(cache.iterdir())) == 2
    with pytest.raises(UsageError, match="tf32"):
        teacher_logits(teacher, split, precision="tf32")


def test_a_stale_or_damaged_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    file, split, teacher = tmp_path / "mine.safetensors", small_split(), small_teacher()
    teacher_logits(teacher, split, path=file)
    content = file.read_bytes()
    with pytest.raises(CheckpointError, match="in another precision"):
        teacher_logits(teacher, split, path=file, precision="bf16")
    for other, images in ((small_net(), split), (teacher, small_split(seed=8))):
        with pytest.raises(
            CheckpointError, match="another teacher, of other images or in another precision: pass refresh=True"
        ):
            teacher_logits(other, images, path=file)
        assert file.read_bytes() == content
    for damaged in (content[:-5], content[:20], b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="does not hold a teacher's logits") as error:
            teacher_logits(teacher, split, path=file)
        assert "\n" not in str(error.value)
    assert torch.equal(teacher_logits(teacher, split, path=file, refresh=True), teacher_logits(teacher, split, path=file))


def test_the_test_split_and_a_teacher_without_logits_are_refused() -> None:
    with pytest.raises(UsageError, match="test split must not be used to distill"):
        teacher_logits(small_teacher(), small_split(role="test"))
    with pytest.raises(UsageError, match=r"returns \(48, 1, 8, 8\)"):
        teacher_logits(nn.Identity(), small_split())
    folder_in_the_way = small_split()
    with pytest.raises(CheckpointError, match="cannot be written"):
        teacher_logits(small_teacher(), folder_in_the_way, path=Path(__file__) / "x")


def test_the_fingerprint_knows_architecture_and_dtype() -> None:
    net = small_net()
    assert fingerprint(net) == fingerprint(copy.deepcopy(net))
    strided = copy.deepcopy(net)
    strided[0] = nn.Conv2d(1, 4, 3, padding=2)
    strided[0].load_state_dict(net[0].state_dict())
    assert len({fingerprint(net), fingerprint(strided), fingerprint(copy.deepcopy(net).bfloat16())}) == 3


def test_several_teachers_answer_with_their_weighted_mean() -> None:
    one, two = small_net(1).eval(), small_net(2).eval()
    images = small_split().normalized()
    weighted = Ensemble([one, two], weights=(3, 1)).eval()
    expected = 0.75 * one(images).softmax(1) + 0.25 * two(images).softmax(1)
    torch.testing.assert_close(weighted(images).softmax(1), expected)
    torch.testing.assert_close(weighted(images).exp(), expected)
    mean = Ensemble([one, two], averaging="logits").eval()(images)
    torch.testing.assert_close(mean, (one(images) + two(images)) / 2)
    kinds = [Ensemble([one, two], averaging=name) for name in ("probabilities", "logits")]  # type: ignore[arg-type]
    assert fingerprint(kinds[0]) != fingerprint(kinds[1])


def test_teachers_that_do_not_fit_together_are_refused() -> None:
    for teachers, weights in (([], None), ([small_net()], (1, 2)), ([small_net()], (0,))):
        with pytest.raises(UsageError, match="one positive weight"):
            Ensemble(teachers, weights=weights)
    with pytest.raises(UsageError, match="averaging is 'votes'"):
        Ensemble([small_net()], averaging="votes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="teachers of the same classes"):
        Ensemble([small_net(), small_net(classes=4)])(small_split().normalized())


def test_views_show_what_the_loader_shows_and_keep_bytes() -> None:
    split = small_split()
    plain = augmented_views(split, Augmentation(), 1)
    assert torch.equal(plain[0].images, split.images)
    views = augmented_views(split, AUGMENTATION, 3, seed=5)
    loader = ResidentLoader(split, 48, augmentation=AUGMENTATION, shuffle=False, seed=5)
    for number, view in enumerate(views):
        torch.testing.assert_close(view.normalized(), next(loader.batches(number))[0], atol=1e-5, rtol=0)
    assert not torch.equal(views[0].images, views[1].images)
    assert torch.equal(views[2].labels, split.labels)
    for wrong in ({"views": 0}, {"augmentation": Augmentation(resolutions=((0, 4),))}):
        with pytest.raises(UsageError, match=r"views is 0|one size"):
            augmented_views(**{"split": split, "augmentation": AUGMENTATION, "views": 1, **wrong})  # type: ignore[arg-type]


def test_every_image_comes_once_an_epoch_and_in_all_views_with_its_own_logits() -> None:
    views = augmented_views(small_split(), AUGMENTATION, 4)
    logits = torch.arange(4 * 48 * 3).view(4, 48, 3)  # which tell view and image
    loader = ViewLoader(views, 8, logits=logits, seed=2)
    seen: dict[int, set[int]] = {}
    for epoch in range(4):
        images, targets = (torch.cat(parts) for parts in zip(*loader.batches(epoch), strict=True))
        rows = [int(first) // 3 for first in targets[:, 1]]
        assert sorted(row % 48 for row in rows) == list(range(48))
        for row, image, label in zip(rows, images, targets[:, 0], strict=True):
            view, index = divmod(row, 48)
            seen.setdefault(index, set()).add(view)
            torch.testing.assert_close(image, views[view].normalized()[index], atol=1e-5, rtol=0)
            assert label == views[0].labels[index]
    assert all(shown == {0, 1, 2, 3} for shown in seen.values())


def test_the_loader_is_a_function_of_seed_epoch_and_step_and_hard_labels_see_the_same() -> None:
    views = augmented_views(small_split(), AUGMENTATION, 2)
    logits = torch.zeros(2, 48, 3)
    with_logits, without = ViewLoader(views, 8, logits=logits, seed=2), ViewLoader(views, 8, seed=2)
    whole = list(with_logits.batches(3))
    for (images, _), (again, _), (hard, labels) in zip(
        whole[4:], with_logits.batches(3, 4), list(without.batches(3))[4:], strict=True
    ):
        assert torch.equal(images, again)
        assert torch.equal(images, hard)
        assert labels.dtype == torch.int64
    assert not torch.equal(whole[0][0], next(ViewLoader(views, 8, seed=3).batches(3))[0])
    described = [loader.describe() for loader in (with_logits, without, ViewLoader(views[:1], 8, seed=2))]
    assert described[0] != described[1] != described[2]
    assert with_logits.describe() != ViewLoader(views, 8, logits=logits + 1, seed=2).describe()


def test_views_and_logits_that_do_not_fit_are_refused() -> None:
    views = augmented_views(small_split(), AUGMENTATION, 2)
    for wrong in ([], [views[0], small_split(24)]):
        with pytest.raises(UsageError, match="do not show the same images"):
            ViewLoader(wrong, 8)
    with pytest.raises(UsageError, match=r"\(2, 48, classes\) was expected"):
        ViewLoader(views, 8, logits=torch.zeros(1, 48, 3))
    with pytest.raises(DataError, match="do not fill a batch"):
        ViewLoader(views, 64)
