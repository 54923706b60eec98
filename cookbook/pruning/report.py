"""What zeros are worth on disk (lesson 04)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.conv import _ConvNd

from cookbook.measure import bytes_on_disk
from cookbook.pruning.masks import has_masks, make_permanent

LEVEL = 19  # of zstandard: slow to write, as fast to read as any


@dataclass(frozen=True)
class MaskReport:
    """Zeros and bytes of a network; what they do for its latency is measured apart, on the file that is served.

    Attributes:
        layers: for each convolution and linear layer by its name, its zeros and its weights.
        dense_bytes: of all tensors as a safetensors file.
        compressed_bytes: of the same file through zstandard.
    """

    layers: Mapping[str, tuple[int, int]]
    dense_bytes: int
    compressed_bytes: int

    @property
    def zeros(self) -> int:
        """Weights of these layers that are zero."""
        return sum(zeros for zeros, _ in self.layers.values())

    @property
    def weights(self) -> int:
        """Weights of these layers."""
        return sum(weights for _, weights in self.layers.values())

    @property
    def sparsity(self) -> float:
        """Share of the zeros, 0 to 1."""
        return self.zeros / self.weights

    def __str__(self) -> str:
        length = max(map(len, self.layers))
        rows = [f"{name:<{length}}  {zeros:>10,} of {weights:>10,} zero" for name, (zeros, weights) in self.layers.items()]
        total = f"{'all':<{length}}  {self.zeros:>10,} of {self.weights:>10,} zero"
        return "\n".join([*rows, total, f"{self.dense_bytes:,} bytes, {self.compressed_bytes:,} compressed by zstandard"])


def mask_report(model: nn.Module) -> MaskReport:
    """Count the zeros and bytes of a network, masked or not, in float32 as it is.

    Raises:
        UsageError: it has no convolution and no linear layer.
    """
    if has_masks(model):
        model = make_permanent(model)
    layers = {
        name: (int((layer.weight == 0).sum()), layer.weight.numel())
        for name, layer in model.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
    }
    with tempfile.TemporaryDirectory(prefix="cookbook-masks-") as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, path)
        compressed = zstandard.ZstdCompressor(level=LEVEL).compress(path.read_bytes())
        return MaskReport(layers, bytes_on_disk(path), len(compressed))
