"""Small ONNX graphs for several tests: written by hand with every freedom, and quantized by ONNX Runtime's own tool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


def constant(name: str, value: Any, dtype: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model(
    nodes: Sequence[NodeProto],
    initializers: Iterable[TensorProto],
    outputs: Sequence[str],
    shape: Sequence[Any],
    count: int = 1,
) -> onnx.ModelProto:
    """Return a model with float inputs x0, x1, … of one shape."""
    inputs = [helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, shape) for number in range(count)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "graph", inputs, ends, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def quantize(name: str, result: str, *, scale: str = "scale", zero: str = "zero") -> list[NodeProto]:
    """Return a QuantizeLinear and a DequantizeLinear after it."""
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{result}_q"]),
        helper.make_node("DequantizeLinear", [f"{result}_q", scale, zero], [result]),
    ]


def around(
    operator: str, *, inputs: int = 1, weight: Sequence[int] = (), constants: Sequence[Any] = (),
    shape: Sequence[int] = (1, 4, 6, 6), **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """Return one operator named ``target`` between quantized tensors, with constants after its data inputs."""
    initializers = [constant("scale", 0.05, "f4"), constant("zero", 128, "u1")]
    nodes = [node for number in range(inputs) for node in quantize(f"x{number}", f"d{number}")]
    names = [f"d{number}" for number in range(inputs)]
    if weight:
        integers = np.random.default_rng(0).integers(-127, 127, weight)
        initializers += [constant("w", integers, "i1"), constant("w_scale", 0.01, "f4"), constant("w_zero", 0, "i1")]
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weight"]))
        names.append("weight")
    for number, value in enumerate(constants):
        names.append(f"c{number}")
        array = np.asarray(value)
        initializers.append(constant(names[-1], array, "i8" if array.dtype == np.int64 else "f4"))
    nodes.append(helper.make_node(operator, names, ["y"], name="target", **attributes))
    return model([*nodes, *quantize("y", "out")], initializers, ["out"], shape, inputs)


def convolution(
    *, activation: str = "u1", output: str = "", input_quantized: bool = True, weight_quantized: bool = True,
    bias: str = "int32", relu: bool = False, zero: int = 128, ends: Sequence[str] = ("quantized",),
) -> onnx.ModelProto:  # fmt: skip
    """Return a 3×3 convolution named ``target`` with one thing or another around it amiss.

    Args:
        activation: NumPy's code for the type of its input.
        output: the same for its output; empty: as the input.
        input_quantized: put a QuantizeLinear and a DequantizeLinear before it.
        weight_quantized: let its weights come from a DequantizeLinear.
        bias: ``int32`` with the right scale, ``scaled`` wrongly, ``float``, ``computed`` from the input, or ``none``.
        relu: put a Relu after it.
        zero: zero point of its output.
        ends: what takes its output: ``quantized`` (twice: anew), ``shared`` (once, for two), ``tanh``, the graph's ``output``.
    """
    code, centre = output or activation, {"u1": 128, "i1": 0, "u2": 32768}[activation]
    draw = np.random.default_rng(0)
    initializers = [
        constant("scale", 0.05, "f4"), constant("zero", centre, activation), constant("out_scale", 0.1, "f4"),
        constant("out_zero", 0 if code == "i1" else 2**15 if code == "u2" else zero, code),
        constant("w", draw.integers(-100, 100, (4, 4, 3, 3)), "i1"), constant("w_float", draw.normal(size=(4, 4, 3, 3)), "f4"),
        constant("w_scale", 0.01, "f4"), constant("w_zero", 0, "i1"), constant("b", range(4), "i4"),
        constant("b_scale", 0.05 * 0.01 if bias != "scaled" else 0.3, "f4"), constant("b_zero", 0, "i4"),
        constant("b_float", range(4), "f4"), constant("axes", (0, 2, 3), "i8"),
    ]  # fmt: skip
    nodes = quantize("x0", "d") if input_quantized else []
    names = ["d" if input_quantized else "x0", "weight" if weight_quantized else "w_float"]
    if weight_quantized:
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weight"]))
    if bias in ("int32", "scaled"):
        nodes.append(helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["bias"]))
        names.append("bias")
    elif bias == "computed":
        nodes.append(helper.make_node("ReduceMean", ["x0", "axes"], ["bias"], name="mean", keepdims=0))
        names.append("bias")
    elif bias == "float":
        names.append("b_float")
    nodes.append(helper.make_node("Conv", names, ["y"], name="target", pads=[1, 1, 1, 1]))
    if relu:
        nodes.append(helper.make_node("Relu", ["y"], ["r"]))
    last, outputs = "r" if relu else "y", []
    for number, end in enumerate(ends):
        outputs.append(last if end == "output" else f"end{number}")
        if end == "shared":
            nodes += quantize(last, "other", scale="out_scale", zero="out_zero")
            nodes.append(helper.make_node("DequantizeLinear", ["other_q", "out_scale", "out_zero"], [f"end{number}"]))
            outputs.append("other")
        elif end == "quantized":
            scale, point = ("out_scale", "out_zero") if number == 0 else ("scale", "zero")
            nodes += quantize(last, f"end{number}", scale=scale, zero=point)
        elif end == "tanh":
            nodes.append(helper.make_node("Tanh", [last], [f"end{number}"]))
    return model(nodes, initializers, outputs, ("batch", 4, 8, 8))


class Calibration(CalibrationDataReader):
    """Yields a few batches of noise."""

    def __init__(self, name: str, shape: Sequence[int]) -> None:
        draw = np.random.default_rng(0)
        self.batches = iter([{name: draw.normal(size=(8, *shape)).astype("f4")} for _ in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantize_file(path: Path, result: Path, shape: Sequence[int], **settings: Any) -> Path:
    """Quantize a file with ONNX Runtime's own tool: unsigned activations, signed weights with a scale for each channel."""
    name = onnx.load(path).graph.input[0].name
    quantize_static(
        path, result, Calibration(name, shape), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **settings,
    )  # fmt: skip
    return result
