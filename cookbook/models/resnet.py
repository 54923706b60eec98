"""The CIFAR-style residual network, described by the channels of every layer (lesson 00)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models.sizes import as_tuple, require_sizes


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network for small images (He et al., arXiv 1512.03385, section 4.2).

    Attributes:
        depth: 6·n + 2 layers: three stages of n blocks (8, 14, 20, 32, 44, 56, 110).
        width: channels of the first stage; the second has twice, the third four times as many.
        in_channels: 1 for grey images, 3 for colour.
        classes: length of the output.
        stem_stride: 2 halves the resolution in the first convolution.
        stem: channels of the first convolution; None: `width`.
        inner: channels between the two convolutions of each block, one number a block; None: those
            of the block's stage. A pruned network is described by `stem`, `inner`, `outer`
            and `projections`.
        outer: channels that leave each block, one number a block; None: those of the stage.
        projections: whether a block's shortcut is a convolution, one truth value a block; None: where the
            shape changes.

    Raises:
        UsageError: a size is no whole number of at least 1, the depth is not 6·n + 2, a tuple has not
            one entry a block, or a block that changes the shape has no projection.
    """

    depth: int = 20
    width: int = 32
    in_channels: int = 1
    classes: int = 10
    stem_stride: int = 1
    stem: int | None = None
    inner: tuple[int, ...] | None = None
    outer: tuple[int, ...] | None = None
    projections: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        require_sizes(
            depth=self.depth, width=self.width, in_channels=self.in_channels, classes=self.classes,
            stem_stride=self.stem_stride, stem=1 if self.stem is None else self.stem,
        )  # fmt: skip
        if self.depth < 8 or (self.depth - 2) % 6:
            raise UsageError(f"depth is {self.depth}: use 6·n + 2 with n ≥ 1, such as 8, 14, 20 or 56.")
        for name in ("inner", "outer"):
            channels = getattr(self, name)
            if channels is None:
                continue
            channels = as_tuple(name, channels)
            object.__setattr__(self, name, channels)
            if len(channels) != self.blocks:
                raise UsageError(f"{name} names {len(channels)} blocks, but depth {self.depth} has {self.blocks}.")
            require_sizes(**{name: channels})
        if self.projections is not None:
            object.__setattr__(self, "projections", tuple(map(bool, self.projections)))
            if len(self.projections) != self.blocks or any(map(int.__lt__, self.projections, projects(self))):
                raise UsageError(
                    f"projections is {self.projections}: give one truth value for each of the {self.blocks} blocks, "
                    "and True where the shape changes."
                )

    @property
    def blocks(self) -> int:
        """Number of residual blocks."""
        return (self.depth - 2) // 2

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each block by its stage."""
        return tuple(self.width * 2 ** (3 * block // self.blocks) for block in range(self.blocks))

    @property
    def inner_channels(self) -> tuple[int, ...]:
        """Channels between the convolutions of each block."""
        return self.inner or self.stage_channels

    @property
    def outer_channels(self) -> tuple[int, ...]:
        """Channels that leave each block."""
        return self.outer or self.stage_channels


def projects(config: ResNetConfig) -> tuple[bool, ...]:
    """Return for each block whether it changes resolution or channels, so that its shortcut must be a convolution."""
    channels = (config.stem or config.width, *config.outer_channels)
    per_stage = config.blocks // 3
    return tuple(
        number in (per_stage, 2 * per_stage) or before != after for number, (before, after) in enumerate(pairwise(channels))
    )


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, added to a shortcut, which is a convolution where `project` says so."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if project:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """The running model of the course, in any depth and with any channels.

    Attributes:
        config: the `ResNetConfig` that rebuilds this architecture.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        stem = config.stem or config.width
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, stem, 3, config.stem_stride, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        blocks, channels, per_stage = [], stem, config.blocks // 3
        shapes = zip(config.inner_channels, config.outer_channels, config.projections or projects(config), strict=True)
        for number, (inner, outer, project) in enumerate(shapes):
            stride = 2 if number in (per_stage, 2 * per_stage) else 1
            blocks.append(ResidualBlock(channels, inner, outer, stride, project))
            channels = outer
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, in_channels, H, W), H and W at least 4, to logits (B, classes)."""
        return self.head(self.pool(self.blocks(self.stem(images))).flatten(1))
