"""Captured graphs that know `train()` and `eval()`, and the names of their layers (lesson 05)."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from cookbook.models.modes import write_modes, written_modes

LAYER = "cookbook_layer"  # where a node's `meta` keeps the name of the layer whose weight it takes
FROZEN = "cookbook_frozen_batch_norm"  # where a graph's `meta` says that BatchNorm keeps its statistics

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
MATRIX = (*CONVOLUTIONS, aten.linear.default)  # what becomes QLinearConv, QGemm and QLinearMatMul
BATCH_NORM = aten.batch_norm.default


class QuantizableGraph(GraphModule):
    """A captured graph whose `train()` and `eval()` work, unlike those of torch.export and torchao.

    They rewrite the mode of BatchNorm and dropout, which a captured graph holds as an argument. torchao's own functions for
    that replace the operators, and with them every other momentum and epsilon than torch's default.
    """

    def train(self, mode: bool = True) -> QuantizableGraph:
        """Switch BatchNorm and dropout to training or evaluation; frozen BatchNorm stays in evaluation."""
        frozen = self.meta.get(FROZEN, False)
        write_modes(self, {node: mode and not (frozen and node.target == BATCH_NORM) for node in written_modes(self)})
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> QuantizableGraph:
        """Switch BatchNorm and dropout to evaluation."""
        return self.train(False)


def as_quantizable(module: GraphModule) -> QuantizableGraph:
    """Return the same graph and weights with working `train()` and `eval()`."""
    meta: dict[str, Any] = dict(module.meta)
    graph = QuantizableGraph(module, module.graph)
    graph.meta.update(meta)
    return graph


def layer_names(graph: GraphModule) -> tuple[str, ...]:
    """Return the names of the convolutions and linear layers of a captured graph, in the order in which they run."""
    return tuple(dict.fromkeys(layer_of(node) for node in graph.graph.nodes if node.target in MATRIX))


def layer_of(node: Node) -> str:
    """Return the name of the layer that a convolution or a linear operator belongs to; the node's own where it has none."""
    name = node.meta.get(LAYER)
    return name if isinstance(name, str) else node.name


def data_inputs(node: Node) -> list[Node]:
    """Return the tensors that a node computes on, without weights and sizes."""
    first = node.args[0] if node.args else None
    if isinstance(first, list | tuple):
        return [item for item in first if isinstance(item, Node)]
    count = 2 if node.target in (aten.add.Tensor, aten.mul.Tensor) else 1
    return [argument for argument in node.args[:count] if isinstance(argument, Node)]
