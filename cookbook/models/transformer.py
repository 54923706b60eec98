"""A small vision transformer whose attention heads are explicit, so that they can be removed (lesson 00)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models.sizes import as_tuple, require_probability, require_sizes


@dataclass(frozen=True)
class VisionTransformerConfig:
    """A transformer over the patches of an image (Dosovitskiy et al., arXiv 2010.11929).

    The class token of the source is replaced by the mean over the patches (Beyer, Zhai and
    Kolesnikov, arXiv 2205.01580). `heads`, `head_dim` and `hidden` are one number for all layers or
    one number a layer, so that a pruned network is described too.

    Attributes:
        image_size: height and width of the images, in pixels.
        patch: height and width of a patch; it divides `image_size`.
        in_channels: 1 for grey images, 3 for colour.
        classes: length of the output.
        embedding: width of the tokens.
        layers: number of transformer blocks.
        heads: attention heads.
        head_dim: width of each head's queries, keys and values.
        hidden: width inside the two-layer perceptron of each block.
        dropout: probability after the embedding, the attention and both perceptron layers.

    Raises:
        UsageError: a size is no whole number of at least 1, a tuple has not one number a layer, the
            patch does not divide the image, or the dropout is no probability below 1.
    """

    image_size: int = 28
    patch: int = 4
    in_channels: int = 1
    classes: int = 10
    embedding: int = 64
    layers: int = 4
    heads: int | tuple[int, ...] = 4
    head_dim: int | tuple[int, ...] = 16
    hidden: int | tuple[int, ...] = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_sizes(
            image_size=self.image_size, patch=self.patch, in_channels=self.in_channels, classes=self.classes,
            embedding=self.embedding, layers=self.layers,
        )  # fmt: skip
        for name in ("heads", "head_dim", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int):
                value = as_tuple(name, value)
                object.__setattr__(self, name, value)
                if len(value) != self.layers:
                    raise UsageError(f"{name} names {len(value)} layers, but there are {self.layers}: give one number a layer.")
            require_sizes(**{name: value})
        require_probability(dropout=self.dropout)
        if self.image_size % self.patch:
            raise UsageError(f"patch is {self.patch}: use a divisor of the image size {self.image_size}.")

    @property
    def tokens(self) -> int:
        """Number of patches of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def heads_per_layer(self) -> tuple[int, ...]:
        """Attention heads of each layer."""
        return self._per_layer(self.heads)

    @property
    def head_dim_per_layer(self) -> tuple[int, ...]:
        """Width of a head in each layer."""
        return self._per_layer(self.head_dim)

    @property
    def hidden_per_layer(self) -> tuple[int, ...]:
        """Width inside the perceptron of each layer."""
        return self._per_layer(self.hidden)

    def _per_layer(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * self.layers if isinstance(value, int) else value


class Attention(nn.Module):
    """Multi-head self-attention with four separate projections.

    Head h owns the rows h·head_dim … (h+1)·head_dim − 1 of `q`, `k` and `v`, and the same columns of
    `out`: taking them away removes the head.
    """

    def __init__(self, embedding: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q = nn.Linear(embedding, heads * head_dim)
        self.k = nn.Linear(embedding, heads * head_dim)
        self.v = nn.Linear(embedding, heads * head_dim)
        self.out = nn.Linear(heads * head_dim, embedding)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T, embedding) to the same shape."""
        q, k, v = (
            projection(tokens).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """LayerNorm and attention, then LayerNorm and a perceptron, each added to its input."""

    def __init__(self, embedding: int, heads: int, head_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embedding)
        self.attention = Attention(embedding, heads, head_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(embedding)
        self.mlp = nn.Sequential(
            nn.Linear(embedding, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, embedding), nn.Dropout(dropout)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T, embedding) to the same shape."""
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(nn.Module):
    """Patches, learned positions, transformer blocks, mean over the tokens, linear head.

    Attributes:
        config: the `VisionTransformerConfig` that rebuilds this architecture.
    """

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(config.in_channels, config.embedding, config.patch, config.patch)
        self.positions = nn.Parameter(torch.empty(1, config.tokens, config.embedding))
        self.dropout = nn.Dropout(config.dropout)
        shapes = zip(config.heads_per_layer, config.head_dim_per_layer, config.hidden_per_layer, strict=True)
        self.blocks = nn.Sequential(*(TransformerBlock(config.embedding, *shape, config.dropout) for shape in shapes))
        self.norm = nn.LayerNorm(config.embedding)
        self.head = nn.Linear(config.embedding, config.classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, in_channels, image_size, image_size) to logits (B, classes).

        Raises:
            UsageError: the images have another size, for which there are no positions.
        """
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            raise UsageError(
                f"The images are {tuple(images.shape[-2:])} pixels: this transformer takes {size}×{size}, so resize them."
            )
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.blocks(self.dropout(tokens + self.positions))
        return self.head(self.norm(tokens).mean(1))
