"""From a converted graph to an ONNX file whose operators ONNX Runtime fuses into int8 kernels (lesson 05)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cookbook.deploy.export import export, write_graph
from cookbook.measure.size import read_onnx

LARGEST_BIAS = 2**31 - 1
WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


def export_quantized(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write a converted graph as one ONNX file, as `cookbook.deploy.export` does, and mend what keeps ONNX Runtime from fusing.

    Three things change, none of which changes what is computed by more than the rounding of a bias to 32 bits: a mean over
    all positions becomes GlobalAveragePool, for which there is an int8 kernel; the bias of a Gemm whose output stays in
    floats becomes int32, without which it would run in floats; and a layer that was left in floats takes its input through
    a scale for each channel, because ONNX Runtime would quantize the weights of such a layer by itself
    (WeightBiasQuantization).

    Args:
        model: what `convert` returned.
        example: as for `cookbook.deploy.export`.
        path: the file.

    Raises:
        UsageError: the example holds no image.
        DeploymentError: as in `cookbook.deploy.export`.
    """
    with tempfile.TemporaryDirectory(prefix="cookbook-") as folder:
        graph = read_onnx(export(model, example, Path(folder) / "graph.onnx"))
    editor = _Editor(graph)
    editor.name_global_averages()
    editor.quantize_biases()
    editor.protect_floats()
    editor.drop_unused()
    return write_graph(graph, model, example, path)


class _Editor:
    """A graph, and who makes and takes each of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}

    def takers(self, name: str) -> list[NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def constant(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def dequantizer(self, name: str) -> NodeProto | None:
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def add_constant(self, name: str, value: np.ndarray) -> str:
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def insert_before(self, node: NodeProto, new: NodeProto) -> None:
        self.graph.node.insert(list(self.graph.node).index(node), new)
        self.makers[new.output[0]] = new

    def name_global_averages(self) -> None:
        """Write a mean over all positions as GlobalAveragePool."""
        for node in self.graph.node:
            axes = self.constant(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
            rank = self.ranks.get(node.input[0], 0)
            if axes is None or rank < 3 or not _attribute(node, "keepdims", 1):
                continue
            if {axis % rank for axis in axes.ravel().tolist()} == set(range(2, rank)):
                node.op_type = "GlobalAveragePool"
                del node.input[1:]
                del node.attribute[:]

    def quantize_biases(self) -> None:
        """Give a Gemm between integers and floats the int32 bias that its kernel takes."""
        for node in list(self.graph.node):
            if node.op_type != "Gemm" or len(node.input) < 3 or self._is_quantized(node):
                continue
            sources = [self.dequantizer(name) for name in node.input[:2]]
            bias = self.constant(node.input[2])
            if None in sources or bias is None:
                continue
            scales = [self.constant(source.input[1]) for source in sources if source is not None]
            if any(scale is None for scale in scales):
                continue
            scale = np.asarray(scales[0] * scales[1], np.float32)  # type: ignore[operator]
            integers = np.rint(bias.astype(np.float64) / scale)
            if np.abs(integers).max() > LARGEST_BIAS:
                continue
            name = node.input[2]
            node.input[2] = f"{name}_dequantized"
            inputs = [
                self.add_constant(f"{name}_int32", integers.astype(np.int32)),
                self.add_constant(f"{name}_scale", scale),
            ]
            self.insert_before(node, helper.make_node("DequantizeLinear", inputs, [node.input[2]], axis=0))

    def protect_floats(self) -> None:
        """Let a layer with float weights take its input through a scale for each channel, which is the same everywhere."""
        for node in list(self.graph.node):
            if node.op_type not in WEIGHTED or not self._is_quantized(node):
                continue
            weight, source = self.constants.get(node.input[1]), self.dequantizer(node.input[0])
            if weight is None or source is None or weight.data_type != TensorProto.FLOAT:
                continue
            scale, zero = self.constant(source.input[1]), self.constant(source.input[2])
            if scale is None or zero is None or scale.size != 1:
                continue
            channels = _input_channels(node, tuple(weight.dims))
            name = f"{node.output[0]}_input"
            inputs = [
                source.input[0],
                self.add_constant(f"{name}_scale", np.full(channels, scale.item(), scale.dtype)),
                self.add_constant(f"{name}_zero", np.full(channels, zero.item(), zero.dtype)),
            ]
            node.input[0] = name
            self.insert_before(node, helper.make_node("DequantizeLinear", inputs, [name], axis=1))

    def drop_unused(self) -> None:
        """Remove constants that no node takes any more."""
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _is_quantized(self, node: NodeProto) -> bool:
        """Say whether a QuantizeLinear takes the output, directly or after a cut."""
        return any(taker.op_type == "QuantizeLinear" for taker in self._after_cuts(node.output[0]))

    def _after_cuts(self, name: str) -> Iterator[NodeProto]:
        for taker in self.takers(name):
            if taker.op_type in ("Relu", "Clip"):
                yield from self._after_cuts(taker.output[0])
            else:
                yield taker


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _input_channels(node: NodeProto, shape: tuple[int, ...]) -> int:
    """Return how many channels an operator takes, from the shape of its weight."""
    if node.op_type == "Conv":
        return shape[1] * _attribute(node, "group", 1)
    if node.op_type == "ConvTranspose":
        return shape[0]
    return shape[1] if _attribute(node, "transB", 0) else shape[0]
