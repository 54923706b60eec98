"""A space of small networks, images to train them on, and scores without training or clocks."""

from __future__ import annotations

import torch

from cookbook.data import ResidentLoader, Role, Split
from cookbook.measure import Timing, count_macs
from cookbook.search import Candidate, Score, SearchSpace

SPACE = SearchSpace(
    depths=(8, 14), widths=((4, 8), (6, 8, 12), (8, 16)), pruning=(0.0, 0.5), classes=2, multiple=2
)  # fmt: skip
LARGEST = 14 * (8 + 12 + 16)


def loader(role: Role = "train", size: int = 24, batch_size: int = 8, seed: int = 3) -> ResidentLoader:
    """Return grey 8×8 images of two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(size) % 2
    images = (torch.randint(0, 128, (size, 1, 8, 8), generator=generator) + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ResidentLoader(Split(images, labels, role, ("dark", "bright"), (0.4,), (0.25,)), batch_size, seed=seed)


def score(candidate: Candidate) -> Score:
    """Return a score that favours depth and the last stage, in exact numbers."""
    size = candidate.config.depth * sum(candidate.widths) + sum(candidate.inner_widths)
    gain = candidate.config.depth * candidate.widths[2] / (14 * 16)
    return Score(0.5 + gain / 4 + sum(candidate.inner_widths) / 1000, size / (2 * LARGEST))


class CountingTimer:
    """Says that the reference takes a second and a candidate as many as it was told; counts its calls."""

    def __init__(self, seconds: float = 0.25) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, candidates: object, **settings: object) -> dict[str, Timing]:
        self.calls += 1
        return {"reference": Timing((1.0,) * 3, 1, 1), "candidate": Timing((self.seconds,) * 3, 1, 1)}


def macs(candidate: Candidate) -> int:
    """Return the multiply-accumulates for one image of 8×8 pixels."""
    return count_macs(candidate.build(), torch.zeros(1, 1, 8, 8))
