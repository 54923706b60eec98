"""Attention heads: which matter, by the gradient of the loss, and a network without the others (lesson 04).

The importance is that of Michel, Levy and Neubig, Are sixteen heads really better than one? (arXiv 1905.10650).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.data import Loader, require_role
from cookbook.errors import DataError, UsageError
from cookbook.models import VisionTransformer, eval_mode
from cookbook.models.transformer import Attention

Heads = Mapping[str, Sequence[int]]


class MultiheadInterface(nn.Module):
    """An `Attention` with explicit heads where a self-attention of type `torch.nn.MultiheadAttention` stood."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """Map the tokens (B, T, embedding), passed three times, to the same shape and no weights.

        Raises:
            UsageError: query, key and value differ, or the attention's weights are asked for.
        """
        if need_weights or key is not query or value is not query:
            raise UsageError(
                "An attention with explicit heads takes one tensor as query, key and value and returns no weights: "
                "leave this layer as it was."
            )
        return self.attention(query), None


def explicit_heads(model: nn.Module) -> nn.Module:
    """Return a copy in which every `torch.nn.MultiheadAttention` has explicit heads, so that they can be removed.

    It computes the same. Made for self-attention as torchvision's vision transformers use it; `save` does not
    know the new architecture, so keep its state_dict, and remove the same heads again before loading it.

    Raises:
        UsageError: there is none, or one has dropout, keys of another width, extra keys, or takes (T, B, embedding).
    """
    model = copy.deepcopy(model)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    if not found:
        raise UsageError(f"{type(model).__name__} has no torch.nn.MultiheadAttention: pass torchvision's vision transformer.")
    for name, module in found:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, MultiheadInterface(_explicit(name, module)))
    return model


def _explicit(name: str, module: nn.MultiheadAttention) -> Attention:
    plain = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    if not (plain and module.batch_first and module.in_proj_bias is not None and module.dropout == 0):
        raise UsageError(
            f"{name} has dropout, no biases, extra keys, keys of another width or takes (T, B, embedding): "
            "only a plain self-attention with batch_first=True becomes one with explicit heads."
        )
    attention = Attention(module.embed_dim, module.num_heads, module.head_dim)
    projections = zip(
        (attention.q, attention.k, attention.v), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True
    )
    for projection, weight, bias in projections:
        projection.load_state_dict({"weight": weight.detach().clone(), "bias": bias.detach().clone()})
    attention.out.load_state_dict(module.out_proj.state_dict())
    reference = module.in_proj_weight
    return attention.to(device=reference.device, dtype=reference.dtype).train(module.training)


def attentions(model: nn.Module) -> dict[str, Attention]:
    """Return the attention layers with explicit heads, by name.

    Raises:
        UsageError: there is none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no attention with explicit heads: use the cookbook's VisionTransformer, or pass "
            "the model through explicit_heads first."
        )
    return found


def head_importance(
    model: nn.Module, loader: Loader, *, batches: int | None = None, normalize: bool = True
) -> dict[str, Tensor]:
    """Return how much the loss depends on each head: the mean over images of its derivative's absolute value.

    The derivative is that of an image's cross-entropy with respect to a factor, 1, on what the head contributes
    (equation 2 of the source). Computed in eval mode; no weight and no gradient is touched.

    Args:
        model: with explicit heads, on the device of the batches.
        loader: training images.
        batches: how many of its batches are used; None: all of them.
        normalize: divide by the Euclidean norm over the heads of the layer, as in the source, so that layers
            can be compared.

    Returns:
        By attention layer, float64 (heads,) on the CPU.

    Raises:
        UsageError: no attention with explicit heads, fewer than one batch, or another split than train.
        DataError: the loader yields nothing.
    """
    require_role(loader.role, ("train",), "rank heads")
    if batches is not None and batches < 1:
        raise UsageError(f"batches is {batches}: use 1 or more, or None for all.")
    layers = attentions(model)
    sums = {name: torch.zeros(layer.heads, dtype=torch.float64) for name, layer in layers.items()}
    images_seen = 0
    with eval_mode(model), torch.enable_grad():
        for images, labels in islice(loader.batches(0), batches):
            factors = {
                name: torch.ones(len(images), layer.heads, device=images.device, dtype=images.dtype, requires_grad=True)
                for name, layer in layers.items()
            }
            with _scaled(layers, factors):
                loss = F.cross_entropy(model(images), labels, reduction="sum")
            for name, gradient in zip(factors, torch.autograd.grad(loss, list(factors.values())), strict=True):
                sums[name] += gradient.double().abs().sum(0).cpu()
            images_seen += len(images)
    if not images_seen:
        raise DataError("The loader yields no images: there is nothing to rank heads by.")
    means = {name: total / images_seen for name, total in sums.items()}
    return {name: mean / mean.norm().clamp_min(1e-30) for name, mean in means.items()} if normalize else means


def least_important_heads(importance: Mapping[str, Tensor], count: int) -> dict[str, list[int]]:
    """Return the `count` heads of least importance over all layers; each layer keeps at least one.

    Args:
        importance: by layer, (heads,), from `head_importance`.
        count: heads to remove; 0 or more.

    Raises:
        UsageError: that many cannot be removed.
    """
    removable = sum(len(scores) - 1 for scores in importance.values())
    if not 0 <= count <= removable:
        raise UsageError(
            f"{count} heads cannot be removed: each layer keeps one, so use 0 to {removable} in {len(importance)} layers."
        )
    ranked = sorted((score, name, head) for name, scores in importance.items() for head, score in enumerate(scores.tolist()))
    chosen: dict[str, list[int]] = {name: [] for name in importance}
    for _, name, head in ranked:
        if sum(map(len, chosen.values())) < count and len(chosen[name]) < len(importance[name]) - 1:
            chosen[name].append(head)
    return {name: sorted(heads) for name, heads in chosen.items() if heads}


@contextlib.contextmanager
def masked_heads(model: nn.Module, heads: Heads) -> Iterator[nn.Module]:
    """Silence heads inside the block: what they contribute is multiplied by zero. The weights stay as they are.

    Args:
        model: with explicit heads.
        heads: numbers of the silenced heads, by the name of their attention layer.

    Raises:
        UsageError: a layer or a head does not exist, is named twice, or a layer would lose all its heads.
    """
    layers = attentions(model)
    kept = _kept(layers, heads)
    factors = {}
    for name, indices in kept.items():
        weight = layers[name].out.weight
        factors[name] = torch.zeros(1, layers[name].heads, device=weight.device, dtype=weight.dtype)
        factors[name][:, indices] = 1
    with _scaled(layers, factors):
        yield model


def remove_heads(model: nn.Module, heads: Heads) -> nn.Module:
    """Return a copy without these heads: its projections are smaller, its outputs those of the model with the heads masked.

    The cookbook's transformers keep a configuration that describes them, so that `save` and `load` work. An
    optimizer that was built before belongs to the unpruned model.

    Args:
        model: with explicit heads; it is left as it is.
        heads: numbers of the heads to remove, by the name of their attention layer.

    Raises:
        UsageError: a layer or a head does not exist, is named twice, or a layer would lose all its heads.
    """
    kept = _kept(attentions(model), heads)
    model = copy.deepcopy(model)
    layers = attentions(model)
    for name, indices in kept.items():
        layer = layers[name]
        numbers = torch.tensor(indices)[:, None] * layer.head_dim + torch.arange(layer.head_dim)
        rows = numbers.flatten().to(layer.out.weight.device)
        for projection in (layer.q, layer.k, layer.v):
            projection.weight = _part(projection.weight, rows, 0)
            projection.bias = _part(projection.bias, rows, 0)
            projection.out_features = len(rows)
        layer.out.weight = _part(layer.out.weight, rows, 1)
        layer.out.in_features = len(rows)
        layer.heads = len(indices)
    if isinstance(model, VisionTransformer):
        model.config = replace(model.config, heads=tuple(layer.heads for layer in layers.values()))
    return model


def _part(values: Tensor, index: Tensor, dimension: int) -> nn.Parameter:
    return nn.Parameter(values.detach().index_select(dimension, index), requires_grad=values.requires_grad)


def _kept(layers: Mapping[str, Attention], heads: Heads) -> dict[str, list[int]]:
    """Return the heads that stay, of the layers that lose some.

    Raises:
        UsageError: as in `remove_heads`.
    """
    kept = {}
    for name, numbers in heads.items():
        if name not in layers:
            raise UsageError(f"There is no attention layer {name!r}: use one of {', '.join(layers)}.")
        present = range(layers[name].heads)
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(present):
            raise UsageError(f"{name} has the heads 0 to {len(present) - 1}, not {list(numbers)}: name each head once.")
        kept[name] = [head for head in present if head not in numbers]
        if not kept[name]:
            raise UsageError(f"{name} would lose all its {len(present)} heads: keep at least one.")
    return kept


@contextlib.contextmanager
def _scaled(layers: Mapping[str, Attention], factors: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply what each head hands to the output projection by its factor, (B or 1, heads)."""

    def hook(layer: Attention, factor: Tensor) -> Any:
        def scale(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            parts = inputs[0].unflatten(-1, (layer.heads, layer.head_dim))
            return ((parts * factor[:, None, :, None]).flatten(2),)

        return layer.out.register_forward_pre_hook(scale)

    handles = [hook(layers[name], factor) for name, factor in factors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
