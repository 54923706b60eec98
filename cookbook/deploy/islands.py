"""Nodes of a quantized graph that still compute in floats, each with the reason (lesson 07)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from cookbook.deploy.operators import (
    EIGHT_BITS,
    INT8_OPERATORS,
    MATRIX,
    canonical,
    data_input,
    element_types,
    family,
    precision,
)

WEIGHTED = ("Conv", "Gemm")  # their second input is the weights, the third a bias


@dataclass(frozen=True)
class Island:
    """A node that computes in floats although the graph is quantized.

    Attributes:
        node: its name.
        operator: as ONNX Runtime names it.
        reason: in words.
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.reason}"


def float_islands(model: onnx.ModelProto) -> list[Island]:
    """Return the float islands of a graph that ONNX Runtime optimized.

    They are the compute nodes in floats that lie between two in eight bits, on any path, and every
    convolution and matrix product in floats.
    """
    graph = _Graph(model)
    before, after = graph.between()
    return [
        Island(node.name or node.output[0], node.op_type, graph.reason(node))
        for node in model.graph.node
        if graph.precision(node) == "float"
        and (kind := family(node.op_type)) is not None
        and (kind in MATRIX or (before & set(node.input) and after & set(node.output)))
    ]


class _Graph:
    """Who makes and who uses each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.types = element_types(model)
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.users.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        self.constants: Mapping[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}

    def precision(self, node: onnx.NodeProto) -> str:
        return precision(node.op_type, self.types.get(data_input(node), 0))

    def between(self) -> tuple[set[str], set[str]]:
        """Return the tensors that depend on a compute node in eight bits, and those on which one depends."""
        before: set[str] = set()
        after: set[str] = set()
        for node in self.nodes:
            if self._computes_in_int8(node) or before & set(node.input):
                before |= set(node.output)
        for node in reversed(self.nodes):
            if self._computes_in_int8(node) or after & set(node.output):
                after |= set(node.input)
        return before, after

    def _computes_in_int8(self, node: onnx.NodeProto) -> bool:
        return family(node.op_type) is not None and self.precision(node) == "int8"

    def reason(self, node: onnx.NodeProto) -> str:
        """Return why a node stayed in floats: the first of the conditions of a fusion that does not hold."""
        operator = canonical(node.op_type)
        if operator not in INT8_OPERATORS:
            return f"no int8 kernel in ONNX Runtime for {operator}"
        return next(self._obstacles(node, operator), "quantized on all sides, and yet ONNX Runtime did not fuse it")

    def _obstacles(self, node: onnx.NodeProto, operator: str) -> Iterator[str]:
        data = [name for name in node.input[: 1 if operator in WEIGHTED else None] if name]
        weights = node.input[1] if operator in WEIGHTED else ""
        quantized = [self._dequantizer(name) is not None for name in data]
        if not any(quantized) and not (weights and self._dequantizer(weights)) and not self._quantizers(node):
            yield "deliberately excluded or never quantized: nothing around it is"
        if weights and self._dequantizer(weights) is None:
            yield "its weights are not quantized: it was left out"
        for name, given in zip(data, quantized, strict=True):
            if not given:
                which = "its input" if len(data) == 1 else "one of its inputs"
                yield f"{which} is not quantized ({self._origin(name)})"
        types = [self._stored_type(name) for name in (*data, *filter(None, [weights]))]
        for kind in types:
            if kind not in EIGHT_BITS:
                yield f"quantized to {_type_name(kind)}, for which it has no kernel"
        if operator in WEIGHTED and len(node.input) > 2 and node.input[2]:
            yield from self._bias_obstacles(node)
        yield from self._output_obstacles(node)
        for user in self._quantizers(node):
            kind = self.types.get(user.output[0], 0)
            if kind != types[0]:
                yield f"it takes {_type_name(types[0])}, but its output is quantized to {_type_name(kind)}"
        for attribute in node.attribute:
            if attribute.name == "activation" and attribute.s:
                yield f"{attribute.s.decode()} comes before QuantizeLinear, whose range does not do the same"

    def _bias_obstacles(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yield what is wrong with the third input: an int32 constant with the scale of the products was expected.

        ONNX Runtime quantizes a constant bias in floats by itself.
        """
        maker = self._dequantizer(node.input[2])
        if maker is None:
            if node.input[2] not in self.constants:
                yield f"its bias is not a constant ({self._origin(node.input[2])})"
            return
        scales = [self._constant(source.input[1]) for name in node.input[:2] if (source := self._dequantizer(name))]
        scale = self._constant(maker.input[1])
        if len(scales) == 2 and scale is not None and scales[0] is not None and scales[1] is not None:
            product = scales[0] * scales[1]
            if product.size != scale.size or not np.allclose(product.ravel(), scale.ravel(), rtol=1e-2, atol=0):
                yield "its bias has another scale than its input times its weights"

    def _output_obstacles(self, node: onnx.NodeProto) -> Iterator[str]:
        users = self.users.get(node.output[0], [])
        quantizers = self._quantizers(node)
        others = [user for user in users if user not in quantizers]
        if node.output[0] in self.outputs:
            yield "its output is not quantized: it leaves the graph"
        elif quantizers and others:
            yield f"several consumers, and {others[0].op_type} takes its output before quantization"
        elif len(quantizers) > 1:
            yield "several consumers, each of which quantizes its output anew"
        elif not quantizers and others:
            yield f"its output is not quantized (no QuantizeLinear after it, but {others[0].op_type})"

    def _quantizers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [user for user in self.users.get(node.output[0], []) if user.op_type == "QuantizeLinear"]

    def _dequantizer(self, name: str) -> onnx.NodeProto | None:
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def _stored_type(self, name: str) -> int:
        """Return the element type that a DequantizeLinear turns into the tensor."""
        maker = self._dequantizer(name)
        return self.types.get(maker.input[0], 0) if maker is not None else 0

    def _origin(self, name: str) -> str:
        maker = self.makers.get(name)
        if maker is not None:
            return f"it comes from {maker.op_type} {maker.name!r}"
        return "a constant" if name in self.constants else "it comes from outside"

    def _constant(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None


def _type_name(element_type: int) -> str:
    return onnx.TensorProto.DataType.Name(element_type).lower()
