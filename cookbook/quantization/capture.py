"""Capture a model as a graph of ATen operators that quantizers and runtimes know (lesson 05)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from cookbook.deploy.export import TRACED, repeated, try_eagerly
from cookbook.deploy.failures import stopped
from cookbook.deploy.parity import compare
from cookbook.errors import DeploymentError, UsageError
from cookbook.models import eval_mode
from cookbook.models.modes import to_eval
from cookbook.quantization.graphs import LAYER, MATRIX, TRANSPOSED, QuantizableGraph, as_quantizable

SAME = 1e-4  # of the logits' scale: what capturing may change, which is the order of sums
aten = torch.ops.aten


def capture(model: nn.Module, example: Tensor) -> QuantizableGraph:
    """Return `model` as a graph of ATen operators with a dynamic batch, in eval mode; the model itself is left as it came.

    The graph holds copies of the weights. Operators that write into their input become such that do not, ``padding="same"``
    becomes numbers, and SiLU becomes a product with a sigmoid, because a runtime has 8-bit kernels for both.
    Uses ``torch.export`` (https://docs.pytorch.org/docs/stable/export.html).

    Args:
        model: maps one tensor to one tensor in eval mode.
        example: images (B, C, H, W) on the model's device; only shape and dtype count.

    Raises:
        UsageError: the example holds no image.
        DeploymentError: the model does not run on the example, cannot be captured, or computes something else as a graph.
    """
    batch = repeated(example, TRACED)
    with eval_mode(model):
        try_eagerly(model, example)
    copied = copy.deepcopy(model)
    to_eval(copied)
    for module in copied.modules():
        _number_padding(module)
    try:
        program = torch.export.export(copied, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        graph = as_quantizable(program.module(check_guards=False))
    except Exception as error:  # torch.export lets errors of every kind through
        raise stopped(model, error, "cannot be captured") from error
    _without_writing(graph)
    _silu_as_product(graph)
    _mean_as_pooling(graph)
    _name_layers(graph)
    graph.graph.lint()
    graph.recompile()
    graph.eval()
    _require_same(model, graph, batch)
    return graph


def _number_padding(module: nn.Module) -> None:
    """Write the padding of a convolution in numbers where they are the same on both sides."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(module.padding, str):
        totals = [
            dilation * (size - 1) if module.padding == "same" else 0
            for dilation, size in zip(module.dilation, module.kernel_size, strict=True)
        ]
        if not any(total % 2 for total in totals):
            module.padding = tuple(total // 2 for total in totals)


def _without_writing(graph: GraphModule) -> None:
    """Replace operators that write into their input; torch.export lets whoever reads the input afterwards read the result."""
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.name.endswith("_") or not schema.is_mutable:
            continue
        packet = getattr(aten, schema.name.split("::")[1].rstrip("_"), None)
        node.target = getattr(packet, schema.overload_name or "default", node.target)


def _silu_as_product(graph: GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.target == aten.silu.default:
            (given,) = node.args
            with graph.graph.inserting_before(node):
                gate = graph.graph.call_function(aten.sigmoid.default, (given,))
                product = graph.graph.call_function(aten.mul.Tensor, (given, gate))
            gate.meta, product.meta = dict(node.meta), dict(node.meta)
            node.replace_all_uses_with(product)
            graph.graph.erase_node(node)


def _mean_as_pooling(graph: GraphModule) -> None:
    """Write a mean over all positions as a pooling and a flattening, for which there are kernels."""
    for node in list(graph.graph.nodes):
        if node.target != aten.mean.dim or node.args[0].meta["val"].ndim != 4 or len(node.args) > 2 or node.kwargs:
            continue
        given, dimensions = node.args
        if {dimension % 4 for dimension in dimensions} != {2, 3}:
            continue
        with graph.graph.inserting_before(node):
            pooled = graph.graph.call_function(aten.adaptive_avg_pool2d.default, (given, [1, 1]))
            flat = graph.graph.call_function(aten.flatten.using_ints, (pooled, 1))
        flat.meta = dict(node.meta)
        pooled.meta = {**node.meta, "val": node.meta["val"][:, :, None, None]}
        node.replace_all_uses_with(flat)
        graph.graph.erase_node(node)


def _name_layers(graph: GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.target in (*MATRIX, *TRANSPOSED):
            weight = node.args[1]
            if isinstance(weight, Node) and weight.op == "get_attr":
                node.meta[LAYER] = str(weight.target).removesuffix(".weight")


def _require_same(model: nn.Module, graph: GraphModule, batch: Tensor) -> None:
    with eval_mode(model), torch.inference_mode():
        expected, captured = model(batch), graph(batch)
    if not isinstance(expected, Tensor):
        raise UsageError(f"{type(model).__name__} returns a {type(expected).__name__}: wrap it so that it returns one tensor.")
    difference = compare(expected, captured).largest
    if not difference <= SAME:
        raise DeploymentError(
            f"{type(model).__name__} computes something else once it is captured (by {difference:.1e} of its outputs' scale): "
            "look for an operator that writes into a view of its input, and write its result to a new tensor."
        )
