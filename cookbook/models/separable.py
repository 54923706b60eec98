"""A small network of depthwise-separable convolutions, described by the channels of every block (lesson 00)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models.sizes import as_tuple, require_sizes


@dataclass(frozen=True)
class SeparableConfig:
    """A chain of depthwise-separable blocks (Howard et al., MobileNets, arXiv 1704.04861).

    A depthwise convolution has the channels of the block before it, so that `stem` and `channels`
    describe a pruned network too.

    Attributes:
        in_channels: 1 for grey images, 3 for colour.
        classes: length of the output.
        stem: channels of the first, ordinary convolution.
        stem_stride: 2 halves the resolution in the first convolution.
        channels: channels that leave each block, one number a block.
        strides: of each block's depthwise convolution, one number a block.

    Raises:
        UsageError: a size is no whole number of at least 1, or there is not one stride for each block.
    """

    in_channels: int = 1
    classes: int = 10
    stem: int = 32
    stem_stride: int = 1
    channels: tuple[int, ...] = (64, 64, 128, 128, 256)
    strides: tuple[int, ...] = (2, 1, 2, 1, 1)

    def __post_init__(self) -> None:
        for name in ("channels", "strides"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        if not self.channels or len(self.channels) != len(self.strides):
            raise UsageError(
                f"channels names {len(self.channels)} blocks and strides {len(self.strides)}: give one of each for every block."
            )
        require_sizes(
            in_channels=self.in_channels, classes=self.classes, stem=self.stem, stem_stride=self.stem_stride,
            channels=self.channels, strides=self.strides,
        )  # fmt: skip


class SeparableBlock(nn.Module):
    """A 3×3 convolution within each channel, then a 1×1 convolution across them; BatchNorm and ReLU after both."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        inner = self.relu1(self.bn1(self.depthwise(x)))
        return self.relu2(self.bn2(self.pointwise(inner)))


class SeparableNet(nn.Module):
    """Stem, separable blocks, global average, linear head.

    Attributes:
        config: the `SeparableConfig` that rebuilds this architecture.
    """

    def __init__(self, config: SeparableConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, config.stem, 3, config.stem_stride, 1, bias=False),
            nn.BatchNorm2d(config.stem),
            nn.ReLU(),
        )
        inputs = (config.stem, *config.channels[:-1])
        self.blocks = nn.Sequential(
            *(SeparableBlock(*sizes) for sizes in zip(inputs, config.channels, config.strides, strict=True))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(config.channels[-1], config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, in_channels, H, W) of any height and width to logits (B, classes)."""
        return self.head(self.pool(self.blocks(self.stem(images))).flatten(1))
