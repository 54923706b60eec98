"""A model's convolutions and linear layers in the order in which they run, and BatchNorm folded into them (lesson 05)."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import fusion

from cookbook.quantization.capture import capture
from cookbook.quantization.graphs import BATCH_NORM, MATRIX, layer_of

aten = torch.ops.aten

RELUS = (aten.relu.default, aten.relu_.default)
WEIGHTED_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

WeightedModule = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that runs once in a forward pass.

    Attributes:
        name: path of the module, such as ``blocks.0.conv1``.
        norm: path of the BatchNorm that takes its output and nothing else does; None: there is none.
        relu: whether a ReLU takes the output, behind the BatchNorm where there is one, and nothing else does.
        node: its operator in the captured graph.
    """

    name: str
    norm: str | None
    relu: bool
    node: Node


def trace_layers(model: nn.Module, example: Tensor) -> list[Layer]:
    """Return the layers in the order in which they run.

    A layer that runs more than once, or whose weight is another one's too, is left out: what is done for
    one of its places would be wrong for the other. (Captured, two such layers are one that runs twice.)

    Args:
        model: any module that `capture` accepts; it is not changed.
        example: images (B, C, H, W), on the model's device.

    Raises:
        DeploymentError: the model cannot be captured.
    """
    graph = capture(model, example)
    calls = [node for node in graph.graph.nodes if node.target in MATRIX]
    runs = Counter(layer_of(node) for node in calls)
    modules = dict(model.named_modules())
    layers = []
    for node in calls:
        name = layer_of(node)
        module = modules.get(name)
        if runs[name] > 1 or not isinstance(module, WEIGHTED_MODULES):
            continue
        norm, user = None, only_user(node)
        if user is not None and user.target is BATCH_NORM:
            statistics = user.args[3]
            path = str(statistics.target).removesuffix(".running_mean") if isinstance(statistics, Node) else ""
            if isinstance(modules.get(path), NORMS):
                norm, user = path, only_user(user)
        layers.append(Layer(name, norm, user is not None and user.target in RELUS, node))
    return layers


def only_user(node: Node) -> Node | None:
    """Return the one call that takes a node's result, None when there are several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def weighted(model: nn.Module, name: str) -> WeightedModule:
    """Return the convolution or linear layer of that path."""
    return cast(WeightedModule, model.get_submodule(name))


def fold_batchnorm(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy in eval mode with every BatchNorm behind a convolution or linear layer folded into it.

    A BatchNorm in eval mode multiplies and shifts each channel, which the layer before it can do itself
    (Jacob et al., arXiv 1712.05877, section 3.2); the BatchNorm's place is taken by an identity. A BatchNorm that
    follows no such layer, and one whose layer has other readers, stays.

    Args:
        model: with statistics; it is not changed.
        example: images (B, C, H, W), on the model's device.

    Raises:
        DeploymentError: the model cannot be captured.
    """
    folded = copy.deepcopy(model).eval()
    for layer in trace_layers(model, example):
        module = weighted(folded, layer.name)
        if layer.norm is not None:
            norm = cast(nn.BatchNorm2d, folded.get_submodule(layer.norm))
            fuse = fusion.fuse_linear_bn_weights if isinstance(module, nn.Linear) else fusion.fuse_conv_bn_weights
            module.weight, module.bias = fuse(
                module.weight, module.bias, cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var), norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
            folded.set_submodule(layer.norm, nn.Identity())
        if module.bias is None:
            channels = module.weight.shape[0]
            module.bias = nn.Parameter(module.weight.new_zeros(channels))
    return folded
