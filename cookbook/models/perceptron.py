"""The multilayer perceptron: nothing but linear layers, of any width (lesson 00)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from cookbook.models.sizes import as_tuple, require_probability, require_sizes


@dataclass(frozen=True)
class PerceptronConfig:
    """Linear layers with ReLU between them.

    Attributes:
        in_channels: 1 for grey images, 3 for colour.
        height: of the images, in pixels.
        width: of the images, in pixels.
        classes: length of the output.
        hidden: width of each hidden layer; an empty tuple gives a linear classifier.
        dropout: probability after each hidden layer.

    Raises:
        UsageError: a size is no whole number of at least 1, or the dropout no probability below 1.
    """

    in_channels: int = 1
    height: int = 28
    width: int = 28
    classes: int = 10
    hidden: tuple[int, ...] = (512, 256)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", as_tuple("hidden", self.hidden))
        require_sizes(
            in_channels=self.in_channels, height=self.height, width=self.width, classes=self.classes, hidden=self.hidden
        )  # fmt: skip
        require_probability(dropout=self.dropout)

    @property
    def in_features(self) -> int:
        """Numbers in one image."""
        return self.in_channels * self.height * self.width


class Perceptron(nn.Module):
    """A perceptron on flattened images.

    Attributes:
        config: the `PerceptronConfig` that rebuilds this architecture.
    """

    def __init__(self, config: PerceptronConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((config.in_features, *config.hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(config.dropout)]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear((config.in_features, *config.hidden)[-1], config.classes)
        for module in self.hidden:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, in_channels, height, width) to logits (B, classes)."""
        return self.head(self.hidden(images.flatten(1)))
