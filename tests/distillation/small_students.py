"""A student, teachers and data small enough for a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cookbook.data import Augmentation, ResidentLoader, Split
from cookbook.data.splits import Role

AUGMENTATION = Augmentation(crop=1, flip=True)


def small_split(size: int = 48, role: Role = "train", seed: int = 7) -> Split:
    """Return grey 8×8 images of three classes that differ in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 3
    noise = torch.randint(0, 128, (size, 1, 8, 8), generator=generator)
    images = (noise + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return Split(images, labels, role, ("dark", "grey", "bright"), (0.4,), (0.25,))


def small_loader(split: Split | None = None, batch_size: int = 8) -> ResidentLoader:
    return ResidentLoader(split or small_split(), batch_size, augmentation=AUGMENTATION, seed=3)


def small_net(seed: int = 0, channels: int = 4, classes: int = 3) -> nn.Sequential:
    """Return a network with everything that a careless teacher would change: BatchNorm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes),
    )  # fmt: skip


def small_teacher() -> nn.Sequential:
    """Return a wider network with statistics of its own, left in train mode."""
    teacher = small_net(seed=5, channels=6)
    teacher(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    return teacher


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
