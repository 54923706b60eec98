"""Clocks that count instead of measuring, so that no test depends on the speed of a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from cookbook.measure import Timing
from cookbook.pruning.layer_table import LayerShape


class BlockClock:
    """A runtime that computes channels in whole blocks, at a fixed cost a layer; it remembers what it was asked.

    Args:
        block: channels that cost as much as one.
        overhead: seconds a layer.
    """

    def __init__(self, block: int = 8, overhead: float = 0.0) -> None:
        self.block, self.overhead = block, overhead
        self.asked: list[tuple[str, ...]] = []

    def seconds(self, model: nn.Module) -> float:
        return sum(self._layer(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))

    def __call__(self, models: Mapping[str, nn.Module], example: Tensor) -> dict[str, Timing]:
        self.asked.append(tuple(models))
        return {name: Timing((self.seconds(model),) * 3, 1, 1) for name, model in models.items()}

    def layers(self, shapes: Sequence[LayerShape]) -> list[float]:
        """Return the seconds of single layers, as a `LayerTable` asks for them."""
        return [self._layer(shape.weight, shape.groups) for shape in shapes]

    def _layer(self, weight: Sequence[int], groups: int = 1) -> float:
        return self.overhead + 1e-6 * -(-weight[0] // self.block) * -(-weight[1] * groups // self.block) * self.block**2
