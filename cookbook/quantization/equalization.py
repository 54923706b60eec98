"""Data-free equalization of neighbouring layers' ranges, and biases corrected from data (lesson 05)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from cookbook.data import Loader, require_role
from cookbook.errors import UsageError
from cookbook.quantization.layers import RELUS, aten, fold_batchnorm, only_user, trace_layers, weighted
from cookbook.quantization.rounding import CHUNK, first_images, round_to_nearest
from cookbook.quantization.scheme import Scheme

# f(s·x) = s·f(x) for every s > 0 and channel, so that a scale passes through
ELEMENTWISE = (*RELUS, aten.leaky_relu.default, aten.dropout.default)
HOMOGENEOUS = (*ELEMENTWISE, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)


@dataclass(frozen=True)
class Pair:
    """Two layers between which every channel can be scaled freely.

    Attributes:
        first: path of the layer that makes the channels.
        second: path of the only one that reads them.
        repeat: inputs of `second` for each channel of `first`: 1, or the pixels that a flatten put behind each other.
    """

    first: str
    second: str
    repeat: int = 1


def equalize(model: nn.Module, example: Tensor, *, rounds: int = 20) -> nn.Module:
    """Return a copy whose neighbouring layers have equal weight ranges, channel by channel; its function is the same.

    A ReLU passes positive scales: what the first layer's channel is divided by, the second layer's input is multiplied
    by. With s = √(r₁/r₂) both have the range √(r₁·r₂) afterwards (Nagel et al., arXiv 1906.04721, section 4.1). It
    helps weights with one scale a layer; with one scale a channel there is little left to gain. Pairs are layers with
    only ReLU, leaky ReLU, pooling, dropout or a flatten between them and no other reader; a ReLU6 or a sum ends a pair.

    Args:
        model: not changed. The copy is in eval mode, with BatchNorm folded.
        example: images (B, C, H, W), on the model's device.
        rounds: passes over all pairs; a layer can be the second of one pair and the first of the next.

    Raises:
        UsageError: fewer than one round, or no pair in the model.
        DeploymentError: the model cannot be captured.
    """
    if rounds < 1:
        raise UsageError(f"rounds is {rounds}: use 1 or more.")
    equalized = fold_batchnorm(model, example)
    pairs = equalizable_pairs(equalized, example)
    if not pairs:
        raise UsageError(
            f"{type(model).__name__} has no two layers with nothing but ReLU or pooling between them: leave equalization out."
        )
    with torch.no_grad():
        for _ in range(rounds):
            for pair in pairs:
                _equalize(equalized, pair)
    return equalized


def equalizable_pairs(model: nn.Module, example: Tensor) -> list[Pair]:
    """Return the pairs of a model without BatchNorm between its layers, in the order in which they run.

    Args:
        model: as `fold_batchnorm` returns it.
        example: images (B, C, H, W), on the model's device.

    Raises:
        DeploymentError: the model cannot be captured.
    """
    layers = trace_layers(model, example)
    by_node = {layer.node: layer.name for layer in layers}
    found = []
    for layer in layers:
        reader, flattened = _reader(layer.node)
        if layer.norm is not None or reader not in by_node:
            continue
        first, second = weighted(model, layer.name), weighted(model, by_node[reader])
        inputs = second.in_features if isinstance(second, nn.Linear) else second.in_channels
        channels = first.weight.shape[0]
        if isinstance(first, nn.Linear) == isinstance(second, nn.Linear) or flattened:
            found.append(Pair(layer.name, by_node[reader], inputs // channels))
    return found


def _reader(node: Node) -> tuple[Node | None, bool]:
    """Return the only call that reads a layer's channels, each of them scaled or not, and whether a flatten lies between."""
    convolution, flattened = node.target is not aten.linear.default, False
    user = only_user(node)
    while user is not None:
        if user.target is aten.flatten.using_ints and convolution and user.args[1:] == (1,):
            flattened = True
        elif user.target not in (HOMOGENEOUS if convolution else ELEMENTWISE):
            break
        user = only_user(user)
    return user, flattened


def _equalize(model: nn.Module, pair: Pair) -> None:
    first, second = weighted(model, pair.first), weighted(model, pair.second)
    groups = 1 if isinstance(second, nn.Linear) else second.groups
    channels = first.weight.shape[0]
    own = first.weight.abs().flatten(1).amax(1)
    # the second's weights as (groups, outputs of a group, channels of a group, what belongs to one channel)
    view = second.weight.reshape(groups, second.weight.shape[0] // groups, channels // groups, -1)
    theirs = view.abs().amax((1, 3)).flatten()
    scale = torch.sqrt(own / theirs)
    scale = torch.where((own > 0) & (theirs > 0), scale, torch.ones_like(scale))
    first.weight /= scale.view(-1, *[1] * (first.weight.ndim - 1))
    if first.bias is not None:
        first.bias /= scale
    second.weight.copy_((view * scale.view(groups, 1, -1, 1)).view_as(second.weight))


def correct_bias(model: nn.Module, calibration: Loader, *, scheme: Scheme | None = None, images: int = 512) -> nn.Module:
    """Return a copy whose biases make up for what rounding the weights will do to each channel's mean.

    Rounded weights shift the mean of a layer's output, and a shift adds up over the layers. Layer after layer, the mean
    over calibration images with rounded weights, where the layers before are corrected already, is compared with the
    float model's, and the difference goes into the bias (Nagel et al., arXiv 1906.04721, section 4.2, with the
    empirical expectation). The copy's weights stay in float: quantize it by the same scheme.

    Args:
        model: not changed. The copy is in eval mode, with BatchNorm folded.
        calibration: its role must be ``train``.
        scheme: how the weights will be rounded; None: the default one. Layers that it excludes are not corrected.
        images: of the loader's first epoch that are used at most; every layer costs one pass over them.

    Raises:
        UsageError: the split has another role, or the loader is empty.
        DeploymentError: the model cannot be captured.
    """
    require_role(calibration.role, ("train",), "correct biases")
    batch = first_images(calibration, images)
    corrected = fold_batchnorm(model, batch[:2])
    scheme = scheme or Scheme()
    names = [layer.name for layer in trace_layers(corrected, batch[:2]) if not scheme.excludes(layer.name)]
    targets = _means(corrected, names, batch)
    rounded = round_to_nearest(corrected, batch[:2], scheme=scheme, ranges="min-max")
    with torch.no_grad():
        for name in names:
            shift = targets[name] - _means(rounded, [name], batch)[name]
            for part in (corrected, rounded):
                bias = weighted(part, name).bias
                assert bias is not None  # folding gives every layer one
                bias += shift.to(bias.dtype)
    return corrected


def _means(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return the mean of each layer's output by channel, float64 (channels,)."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, output: Tensor) -> None:
        flat = output.double().flatten(0, -2) if isinstance(weighted(model, name), nn.Linear) else (
            output.double().transpose(0, 1).flatten(1).T
        )  # fmt: skip
        sums[name] = sums.get(name, torch.zeros(())) + flat.sum(0)
        counts[name] = counts.get(name, 0) + len(flat)

    hooks = [
        weighted(model, name).register_forward_hook(lambda _, __, output, name=name: watch(name, output)) for name in names
    ]
    try:
        with torch.no_grad():
            for part in images.split(CHUNK):
                model(part)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}
