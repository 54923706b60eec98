"""Corrupted images and long tails: deterministic, as strong as they say, and still the split they were."""

from __future__ import annotations

import pytest
import torch

from cookbook.data import Split
from cookbook.errors import UsageError
from cookbook.experiments.quantization_conditions import CORRUPTIONS, corrupted, long_tailed


def split(number: int = 200, classes: int = 5) -> Split:
    images = torch.randint(60, 160, (number, 1, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Split(images, torch.arange(number) % classes, "test", tuple("abcde"[:classes]), (0.3,), (0.2,))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_always_the_same_and_keeps_role_labels_and_range(kind: str) -> None:
    clean = split()
    found = corrupted(clean, kind)
    assert torch.equal(found.images, corrupted(clean, kind).images)
    assert not torch.equal(found.images, clean.images)
    assert (found.role, found.mean, found.std) == (clean.role, clean.mean, clean.std)
    assert torch.equal(found.labels, clean.labels)
    assert found.images.dtype is torch.uint8


def test_corruptions_are_as_strong_as_they_say() -> None:
    clean = split().images.float()
    changed = {kind: corrupted(split(), kind).images.float() for kind in CORRUPTIONS}
    assert (changed["brightness"] - clean).mean().item() == 76
    assert changed["contrast"].std((1, 2, 3)).mean().item() == pytest.approx(0.4 * clean.std((1, 2, 3)).mean().item(), rel=0.02)
    assert (changed["noise"] - clean).std().item() == pytest.approx(38, rel=0.05)
    inside = clean[:, :, 4:7, 4:7].mean((2, 3))
    assert (changed["blur"][:, :, 5, 5] - inside).abs().max() <= 0.5


def test_a_long_tail_falls_by_the_imbalance() -> None:
    tail = long_tailed(split(1000), 100)
    counts = torch.bincount(tail.labels).tolist()
    assert counts == [int(200 * 100 ** (-label / 4)) for label in range(5)]
    assert torch.equal(long_tailed(split(), 1).labels, split().labels)


def test_impossible_conditions_are_refused() -> None:
    with pytest.raises(UsageError, match="use one of noise, blur"):
        corrupted(split(), "fog")
    with pytest.raises(UsageError, match=r"imbalance is 0\.5"):
        long_tailed(split(), 0.5)
    with pytest.raises(UsageError, match="leaves a class without images"):
        long_tailed(split(50), 1000)
