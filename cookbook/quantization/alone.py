"""Switching the fake quantizers of one layer on alone, and the noise that this makes (lesson 05)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from cookbook.quantization.graphs import MATRIX, QuantizableGraph, layer_of
from cookbook.quantization.layers import RELUS
from cookbook.quantization.prepare import set_observers
from cookbook.quantization.pt2e import FakeQuantizeBase

FUSED = (*RELUS, torch.ops.aten.hardtanh.default)  # what runs inside of the layer's kernel


@dataclass(frozen=True)
class LayerQuantizers:
    """A layer of a prepared graph: its fake quantizers, and the node with its output behind what is fused into it."""

    quantizers: frozenset[FakeQuantizeBase]
    output: Node


def quantizers_of_layers(prepared: GraphModule) -> dict[str, LayerQuantizers]:
    """Return each layer's fake quantizers, those of its input, weights and output, by the layer's name."""
    modules = dict(prepared.named_modules())

    def quantizer(node: object) -> FakeQuantizeBase | None:
        if isinstance(node, Node) and node.op == "call_module":
            found = modules.get(str(node.target))
            return found if isinstance(found, FakeQuantizeBase) else None
        return None

    layers: dict[str, LayerQuantizers] = {}
    for node in prepared.graph.nodes:
        if node.target not in MATRIX or quantizer(node.args[1]) is None:
            continue
        output = node
        while len(output.users) == 1:
            user = next(iter(output.users))
            if quantizer(user) is not None:
                output = user
                break
            if user.target not in FUSED:
                break
            output = user
        found = (quantizer(node.args[0]), quantizer(node.args[1]), quantizer(output))
        layers[layer_of(node)] = LayerQuantizers(frozenset(item for item in found if item is not None), output)
    return layers


@contextlib.contextmanager
def only(prepared: nn.Module, chosen: Iterable[FakeQuantizeBase]) -> Iterator[None]:
    """Round with these fake quantizers and no others inside the block; with none after it."""
    set_observers(prepared, quantize=False)
    for module in chosen:
        module.enable_fake_quant(True)
    try:
        yield
    finally:
        set_observers(prepared, quantize=False)


class _Watching(Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph: GraphModule, nodes: Iterable[Node]) -> None:
        super().__init__(graph)
        self.nodes, self.values = set(nodes), dict[Node | None, Tensor]()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            self.values[n] = value
        return value


def outputs_of(prepared: QuantizableGraph, images: Tensor, nodes: Iterable[Node]) -> Mapping[Node | None, Tensor]:
    """Return the values of the nodes, and under None that of the whole graph."""
    watching = _Watching(prepared, nodes)
    with torch.no_grad():
        logits = watching.run(images)
    watching.values[None] = logits[0] if isinstance(logits, tuple) else logits
    return watching.values


class Noise:
    """Sums of squares of signal and noise, of a layer's output and of the logits."""

    def __init__(self) -> None:
        self.own, self.logits = [0.0, 0.0], [0.0, 0.0]

    def add(self, expected: Tensor, found: Tensor, logits: Tensor, found_logits: Tensor) -> None:
        """Count a batch of images."""
        for sums, wanted, got in ((self.own, expected, found), (self.logits, logits, found_logits)):
            sums[0] += float(wanted.double().square().sum())
            sums[1] += float((wanted.double() - got.double()).square().sum())

    def decibels(self, sums: Sequence[float]) -> float:
        """Return the ratio of `own` or `logits`; infinite without noise."""
        signal, noise = sums
        if not noise:
            return math.inf
        return 10 * math.log10(signal / noise) if signal else -math.inf
