"""Which operators of a captured graph compute in eight bits, and which stay in floats, with the reason (lesson 05).

The rule is the one that ONNX Runtime's fusions follow (https://onnxruntime.ai/docs/performance/model-optimizations/
quantization.html): an operator runs in integers where its inputs come from DequantizeLinear and its output goes to
QuantizeLinear. So the question is which tensors to quantize. A convolution or a matrix product always pays; a sum, a
product, a concatenation or a pooling pays where its result goes to one of them; all else stays in floats.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from cookbook.quantization.graphs import BATCH_NORM, CONVOLUTIONS, MATRIX, TRANSPOSED, data_inputs, layer_of
from cookbook.quantization.scheme import Scheme

aten = torch.ops.aten

ELEMENTWISE = (aten.add.Tensor, aten.mul.Tensor, aten.sigmoid.default)  # QLinearAdd, QLinearMul, QLinearSigmoid
# The result takes only values that the input has, or means of them: one scale serves both
POOLING = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.default,
)  # fmt: skip
MOVING = (
    aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten.unflatten.int, aten.permute.default,
    aten.transpose.int, aten.contiguous.default, aten.clone.default, aten.squeeze.dim, aten.unsqueeze.default,
    aten.select.int, aten.slice.Tensor, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default, operator.getitem,
)  # fmt: skip
PASSING = (*POOLING, *MOVING)
CONCATENATION = aten.cat.default
DROPOUT = aten.dropout.default  # only in training; what comes after it sees what was quantized before it
SUMMARY = "cookbook_summary"  # where a prepared graph's `meta` keeps what was decided
SEPARATE = (aten.div.Tensor, aten.add.Tensor)  # what stands between a convolution and its separated BatchNorm
RECTIFIERS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default, aten.clamp_min.default)

REASONS: dict[object, str] = {
    aten.hardswish.default: "ONNX Runtime has no int8 kernel for hard-swish",
    aten.hardsigmoid.default: "ONNX Runtime has no int8 kernel for hard-sigmoid; it works on one number a channel",
    aten.gelu.default: "ONNX Runtime has no int8 kernel for GELU",
    aten.layer_norm.default: "a mean and a variance over small integers lose what they are for, and there is no int8 kernel",
    aten.group_norm.default: "a mean and a variance over small integers lose what they are for, and there is no int8 kernel",
    aten.softmax.int: "its outputs lie close to zero, where 256 levels are too coarse",
    aten.scaled_dot_product_attention.default: "attention is one operator here; its two products are a small share of the work",
    aten.matmul.default: "a product of two activations; attention's are a small share of the work",
    aten.bmm.default: "a product of two activations; attention's are a small share of the work",
    aten.batch_norm.default: "it follows no convolution into which it folds, and has no int8 kernel",
    **dict.fromkeys(TRANSPOSED, "ONNX Runtime has no int8 kernel for a transposed convolution"),
}


@dataclass(frozen=True)
class Unit:
    """An operator that computes in eight bits.

    Attributes:
        node: the operator.
        inputs: the tensors that it takes in eight bits.
        end: the node whose result is quantized: the operator, or the last of BatchNorm and ReLU after it. None: floats leave.
        shares: whether all inputs and the output have one scale.
    """

    node: Node
    inputs: tuple[Node, ...]
    end: Node | None
    shares: bool


@dataclass(frozen=True)
class Plan:
    """What computes in eight bits.

    Attributes:
        units: these operators, in the order in which they run.
        floating: by the node's name, the operator that stays in floats, and why.
    """

    units: tuple[Unit, ...]
    floating: dict[str, tuple[str, str]]


def plan(graph: GraphModule, scheme: Scheme) -> Plan:
    """Decide which operators of a captured graph compute in eight bits."""
    takes: dict[Node, bool] = {}
    nodes = list(graph.graph.nodes)
    for node in reversed(nodes):
        if node.op != "call_function" or not _is_float(node):
            continue
        if node.target in MATRIX:
            takes[node] = not scheme.excludes(layer_of(node)) and _has_constant_weight(node)
        elif _shares(node) or node.target == DROPOUT or _is_elementwise(node):
            takes[node] = _wanted(_end(node), takes)
    units = [_unit(node, takes) for node in nodes if takes.get(node)]
    return Plan(
        tuple(units), {node.name: (_operator(node), reason) for node in nodes if (reason := _reason(node, takes, scheme))}
    )


def summary(decided: Plan) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    """Return the plan without nodes: operators in integers by name, those in floats by name, and why each of these."""
    integers = Counter(_operator(unit.node) for unit in decided.units if unit.node.target not in (*MOVING, DROPOUT))
    floats = Counter(operator for operator, _ in decided.floating.values())
    return dict(integers), dict(floats), {name: reason for name, (_, reason) in decided.floating.items()}


def _operator(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _unit(node: Node, takes: dict[Node, bool]) -> Unit:
    end = _end(node)
    # a convolution's kernel returns eight bits only; a linear layer's returns floats just as well
    quantized = node.target in CONVOLUTIONS or _wanted(end, takes)
    inputs = tuple(dict.fromkeys(given for given in data_inputs(node) if given.target != DROPOUT))
    if node.target == DROPOUT:
        return Unit(node, inputs, None, False)
    # a range that reaches below zero for one input would no longer do the ReLU of another
    shares = node.target in PASSING or (node.target == CONCATENATION and len(set(map(_is_rectified, inputs))) == 1)
    shares = shares and len(inputs) == len(set(data_inputs(node)))
    return Unit(node, inputs, end if quantized else None, shares)


def _end(node: Node) -> Node:
    """Return the last of what is fused into the operator: BatchNorm, then ReLU or a cut at zero and above."""
    if _shares(node) or node.target in (DROPOUT, aten.sigmoid.default):
        return node
    end = node
    if node.target in MATRIX and (norm := _separated_norm(node)) is not None:
        end = norm
    if len(end.users) == 1:
        (user,) = end.users
        if _rectifies(user):
            return user
    return end


def _separated_norm(node: Node) -> Node | None:
    """Return the BatchNorm that `separate_batch_norm` put behind a division, if there is one."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.target == BATCH_NORM:
            return node
        if node.target not in SEPARATE:
            return None
    return None


def _rectifies(node: Node) -> bool:
    """Say whether a node cuts at zero, and so is done by an unsigned range that begins there."""
    if node.target not in RECTIFIERS:
        return False
    if node.target in (aten.relu.default, aten.relu6.default):
        return True
    lowest = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    return isinstance(lowest, int | float) and lowest == 0


def _is_rectified(node: Node) -> bool:
    """Say whether a tensor comes from a ReLU, perhaps through operators that pass its values on."""
    if _shares(node):
        return all(map(_is_rectified, data_inputs(node)))
    return _rectifies(node)


def _shares(node: Node) -> bool:
    return node.target in PASSING or node.target == CONCATENATION


def _is_elementwise(node: Node) -> bool:
    """Say whether a node is a sum or a product of two activations, or a sigmoid."""
    if node.target not in ELEMENTWISE:
        return False
    needed = 1 if node.target == aten.sigmoid.default else 2
    given = data_inputs(node)
    return len(given) == needed and all(_is_activation(item) for item in given) and "alpha" not in node.kwargs


def _is_activation(node: Node) -> bool:
    return node.op != "get_attr" and _is_float(node)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(item, torch.Tensor) and item.dtype == torch.float32 for item in values)


def _has_constant_weight(node: Node) -> bool:
    weight = node.args[1]
    return isinstance(weight, Node) and not _depends_on_input(weight)


def _depends_on_input(node: Node) -> bool:
    return node.op == "placeholder" or any(map(_depends_on_input, node.all_input_nodes))


def _wanted(node: Node, takes: dict[Node, bool]) -> bool:
    """Say whether anything takes the node's result in eight bits."""
    return any(takes.get(user, False) and node in data_inputs(user) for user in node.users)


def _reason(node: Node, takes: dict[Node, bool], scheme: Scheme) -> str | None:
    if node.op != "call_function" or takes.get(node) or node.target == operator.getitem:
        return None
    if node.target in MATRIX:
        return "excluded by name" if scheme.excludes(layer_of(node)) else "its weight is not a constant float32 tensor"
    if node.target == BATCH_NORM and _is_folded(node):
        return None
    return REASONS.get(node.target)


def _is_folded(norm: Node) -> bool:
    given = norm.args[0]
    while isinstance(given, Node) and given.target in SEPARATE:
        given = given.args[0]
    return isinstance(given, Node) and given.target in MATRIX
