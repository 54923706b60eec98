"""What ONNX Runtime's operators do, and whether a node computes in eight bits (lesson 07)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import onnx
from onnx import TensorProto

Precision = Literal["int8", "float", "other"]

EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

# An operator that ONNX Runtime puts in another's place, with the standard operator that it computes
# (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md)
CANONICAL = {
    "QGemm": "Gemm",
    "FusedGemm": "Gemm",
    "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulInteger16": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "MatMulNBits": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "FusedMatMul": "MatMul",
    "TransposeMatMul": "MatMul",
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
    "ConvInteger": "Conv",
    "NhwcMaxPool": "MaxPool",
    "QAttention": "Attention",
}
FAMILIES = {
    "conv": ("Conv", "ConvTranspose"),
    "linear": ("Gemm", "MatMul", "Attention", "MultiHeadAttention"),
    "add": ("Add", "Sub", "Sum"),
    "multiply": ("Mul", "Div"),
    "pool": (
        "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum",
    ),
    "concat": ("Concat",),
    "activation": (
        "Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "QuickGelu", "Gelu", "BiasGelu", "FastGelu",
        "Clip", "Tanh", "Erf", "Softplus", "Mish",
    ),
    "softmax": ("Softmax", "LogSoftmax"),
    "normalization": (
        "BatchNormalization", "LayerNormalization", "SkipLayerNormalization", "InstanceNormalization", "GroupNormalization",
        "LpNormalization", "LRN",
    ),
    "resize": ("Resize", "Upsample"),
}  # fmt: skip
FAMILY_OF = {operator: family for family, operators in FAMILIES.items() for operator in operators}
MATRIX = ("conv", "linear")  # the families in which the time goes
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
CONVERSIONS = (*QUANTIZERS, "Cast", "ReorderInput", "ReorderOutput")

# Compute operators that ONNX Runtime's CPU provider runs in eight bits when a DequantizeLinear comes before and a
# QuantizeLinear after them; a test asks the installed version about each.
INT8_OPERATORS = frozenset(
    {
        "Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
        "ReduceMax", "ReduceMin", "Sigmoid", "LeakyRelu", "Softmax", "Resize",
    }
)  # fmt: skip
ALWAYS_INT8 = ("QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention")
TO_FLOAT = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention")


def canonical(operator: str) -> str:
    """Return the standard operator that a kernel of ONNX Runtime computes, such as Conv for QLinearConv."""
    return CANONICAL.get(operator, operator.removeprefix("QLinear"))


def family(operator: str) -> str | None:
    """Return the family of a compute operator, such as ``conv``; None for what only moves or converts data."""
    return FAMILY_OF.get(canonical(operator))


def label(node: onnx.NodeProto) -> str:
    """Return a node's operator, with the layout where ONNX Runtime has rearranged the channels in blocks."""
    blocked = node.domain == "com.microsoft.nchwc" and node.op_type not in CONVERSIONS
    return f"{node.op_type} (blocked)" if blocked else node.op_type


def precision(operator: str, data_type: int) -> Precision:
    """Return in what an operator computes.

    Args:
        operator: as ONNX Runtime names it.
        data_type: ONNX element type of its first data input; 0: not known.
    """
    if operator in CONVERSIONS:
        return "other"
    if operator.startswith("QLinear") or operator in ALWAYS_INT8 or data_type in EIGHT_BITS:
        return "int8"
    return "float" if data_type in FLOATS else "other"


def data_input(node: onnx.NodeProto) -> str:
    """Return the name of the tensor that a node works on, which is not always its first."""
    position = {"Where": 1, "QLinearWhere": 1, "QLinearConcat": 2}.get(node.op_type, 0)
    return node.input[position] if len(node.input) > position else ""


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the ONNX element type of every tensor of an optimized graph, by name.

    ONNX's own inference does not know ONNX Runtime's operators. Nodes stand in topological order,
    as ONNX requires.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name, element_type in zip(node.output, _output_types(node, types), strict=False):
            types.setdefault(name, element_type)
    return types


def _output_types(node: onnx.NodeProto, types: dict[str, int]) -> Iterable[int]:
    """Return the element types of a node's outputs."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    name = node.op_type
    if name == "QuantizeLinear":
        declared = attributes["output_dtype"].i if "output_dtype" in attributes else 0
        return [types.get(node.input[2], 0) if len(node.input) > 2 and node.input[2] else declared or TensorProto.UINT8]
    if name == "DequantizeLinear":
        return [types.get(node.input[1], 0)]
    if name == "DynamicQuantizeLinear":
        return [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8]
    if name == "Cast":
        return [attributes["to"].i]
    if name == "Constant":
        return [attributes["value"].t.data_type if "value" in attributes else 0]
    if name in ("Shape", "Size", "ArgMax", "ArgMin", "NonZero"):
        return [TensorProto.INT64] * len(node.output)
    if name in ("ConvInteger", "MatMulInteger"):
        return [TensorProto.INT32]
    if name in TO_FLOAT or (name == "QGemm" and len(node.input) < 8):  # without a scale for its output it returns floats
        return [TensorProto.FLOAT]
    if name in ("Equal", "Greater", "Less", "And", "Or", "Not"):
        return [TensorProto.BOOL]
    return [types.get(data_input(node), 0)] * len(node.output)
