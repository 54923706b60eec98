"""BatchNorm in training for quantization: its scale goes into the weight before the weight is quantized (lesson 05).

A deployed convolution has BatchNorm's scale in its weights, so training has to quantize the weight times that scale. The
graph becomes: weight · gamma/sigma, quantized; convolution; divided by gamma/sigma again; BatchNorm, whose statistics
still see what they saw before (Krishnamoorthi, Quantizing deep convolutional networks, arXiv 1806.08342, section 3.2.2;
Jacob et al., arXiv 1712.05877, section 3.2). torchao's own pass does the same with a fixed epsilon of 1e-5 and a momentum
of 0.1, whatever the model says; this one keeps both.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from cookbook.quantization.graphs import BATCH_NORM, CONVOLUTIONS, LAYER, TRANSPOSED

SEPARATED = "cookbook_separated"  # where BatchNorm's `meta` keeps the names of its matrix operator and of the scaled weight
TINY = 1e-12  # instead of a scale of exactly zero, by which nothing can be divided

aten = torch.ops.aten


@runtime_checkable
class HasUnits(Protocol):
    """A fake quantizer whose steps are in units of BatchNorm's scale."""

    def absorb(self, unit: Tensor) -> None:
        """Tell the steps in the weight's own units from now on."""


def insert_convolutions(graph: GraphModule) -> None:
    """Put a depthwise 1×1 convolution of ones before each BatchNorm of images that follows no convolution.

    BatchNorm folds into it, and what remains is an operator with an int8 kernel. Its weight has one number a channel, which
    a scale for each channel represents exactly. The pre-activation blocks of DenseNet need this.

    Args:
        graph: captured, in eval mode; changed in place.
    """
    for norm in list(graph.graph.nodes):
        given = norm.args[0] if norm.target == BATCH_NORM else None
        if not isinstance(given, Node) or (_folds(given) and len(given.users) == 1) or norm.meta["val"].ndim != 4:
            continue
        channels = given.meta["val"].shape[1]
        name = f"{norm.name}_ones"
        like = _attribute(graph, str(norm.args[3].target))
        graph.register_parameter(name, nn.Parameter(torch.ones(channels, 1, 1, 1).to(like), requires_grad=False))
        with graph.graph.inserting_before(norm):
            ones = graph.graph.get_attr(name)
            arguments = (given, ones, None, [1, 1], [0, 0], [1, 1], channels)
            convolution = graph.graph.call_function(aten.conv2d.default, arguments)
        ones.meta["val"] = given.meta["val"].new_ones((channels, 1, 1, 1))
        convolution.meta = {"val": given.meta["val"], LAYER: str(norm.args[3].target).removesuffix(".running_mean")}
        norm.replace_input_with(given, convolution)
    graph.graph.lint()
    graph.recompile()


def separate_batch_norm(graph: GraphModule) -> None:
    """Rewrite every BatchNorm that alone follows a convolution or a linear layer, as the module's docstring says.

    Args:
        graph: captured, with ``batch_norm`` operators; changed in place.
    """
    for norm in list(graph.graph.nodes):
        source = norm.args[0] if norm.target == BATCH_NORM else None
        if not isinstance(source, Node) or not _folds(source) or len(source.users) > 1:
            continue
        _separate(graph, norm, source)
    graph.graph.lint()
    graph.recompile()


def scaled_weights(graph: GraphModule) -> list[tuple[Node, Node]]:
    """Return each fake quantizer of a weight that BatchNorm scales, with the product of weight and scale that it rounds."""
    scaled = {node.meta[SEPARATED]["scaled"] for node in graph.graph.nodes if SEPARATED in node.meta}
    return [
        (user, node) for node in graph.graph.nodes if node.name in scaled for user in node.users if user.op == "call_module"
    ]


def fold_batch_norm(graph: GraphModule) -> None:
    """Undo `separate_batch_norm`: write the scaled weight and the shifted bias as constants, and drop BatchNorm.

    In eval mode the graph computes what it computed before. Fake quantizers whose steps are in units of BatchNorm's scale
    absorb it.
    """
    quantizers = scaled_weights(graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    for norm in list(graph.graph.nodes):
        if norm.target != BATCH_NORM or SEPARATED not in norm.meta:
            continue
        names: dict[str, str] = norm.meta[SEPARATED]
        source, scaled = nodes[names["source"]], nodes[names["scaled"]]
        weight, bias, scale = _folded(graph, norm, scaled, names)
        for quantizer, product in quantizers:
            if product is scaled and len(quantizer.args) > 1:
                module = graph.get_submodule(str(quantizer.target))
                assert isinstance(module, HasUnits)
                module.absorb(scale)
                quantizer.args = (scaled,)
        _store(graph, scaled, weight, f"{names['layer']}_folded_weight")
        added = _store(graph, source, bias, f"{names['layer']}_folded_bias", replace=False)
        source.args = (*source.args[:2], added, *source.args[3:])
        norm.replace_all_uses_with(source)
        graph.graph.erase_node(norm)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def write_out_batch_norm(graph: GraphModule) -> None:
    """Write every BatchNorm that is left as a product and a sum; as in eval mode, where it is no more than that."""
    for norm in list(graph.graph.nodes):
        if norm.target != BATCH_NORM:
            continue
        gamma, beta, mean, variance = (_value(graph, argument) for argument in norm.args[1:5])
        assert mean is not None and variance is not None
        scale = torch.sqrt(variance + norm.args[7]).reciprocal() * (1.0 if gamma is None else gamma)
        shift = (0.0 if beta is None else beta) - mean * scale
        shape = [-1, *[1] * (norm.meta["val"].ndim - 2)]
        factor = _store(graph, norm, scale.detach().view(shape), f"{norm.name}_scale", replace=False)
        summand = _store(graph, norm, shift.detach().view(shape), f"{norm.name}_shift", replace=False)
        with graph.graph.inserting_before(norm):
            product = graph.graph.call_function(aten.mul.Tensor, (norm.args[0], factor))
            total = graph.graph.call_function(aten.add.Tensor, (product, summand))
        product.meta, total.meta = {"val": norm.meta["val"]}, {"val": norm.meta["val"]}
        norm.replace_all_uses_with(total)
        graph.graph.erase_node(norm)
    graph.graph.lint()
    graph.recompile()


def _folds(source: Node) -> bool:
    """Say whether BatchNorm's channels are the output channels of the operator."""
    if source.target == aten.linear.default:
        return source.meta["val"].ndim == 2
    return source.target in (*CONVOLUTIONS, *TRANSPOSED)


def _separate(graph: GraphModule, norm: Node, source: Node) -> None:
    _, gamma, _, _, variance, _, _, epsilon, *_ = norm.args
    weight = source.args[1]
    bias = source.args[2] if len(source.args) > 2 else None
    assert isinstance(weight, Node)
    dimensions = weight.meta["val"].ndim
    axis = 1 if source.target in TRANSPOSED else 0
    with graph.graph.inserting_before(source):
        call = graph.graph.call_function
        deviation = call(aten.sqrt.default, (call(aten.add.Tensor, (variance, epsilon)),))
        one_over = call(aten.reciprocal.default, (deviation,))
        scale = one_over if gamma is None else call(aten.mul.Tensor, (gamma, one_over))
        nonzero = call(aten.where.ScalarOther, (call(aten.ne.Scalar, (scale, 0.0)), scale, TINY))
        along = call(aten.view.default, (nonzero, [-1 if place == axis else 1 for place in range(dimensions)]))
        scaled = call(aten.mul.Tensor, (weight, along))
        scaled.meta["val"] = weight.meta["val"]
    source.args = (source.args[0], scaled, None, *source.args[3:])
    shape = [-1 if place == 1 else 1 for place in range(source.meta["val"].ndim)]
    with graph.graph.inserting_before(norm):
        output = call(aten.div.Tensor, (source, call(aten.view.default, (nonzero, shape))))
        if bias is not None:
            output = call(aten.add.Tensor, (output, call(aten.view.default, (bias, shape))))
    norm.replace_input_with(source, output)
    norm.meta[SEPARATED] = {
        "source": source.name,
        "scaled": scaled.name,
        "weight": str(weight.target),
        "bias": str(bias.target) if isinstance(bias, Node) else "",
        "layer": str(source.meta.get(LAYER, source.name)).replace(".", "_"),
    }


def _folded(graph: GraphModule, norm: Node, scaled: Node, names: dict[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weight times gamma/sigma, the bias that is left when BatchNorm goes, and gamma/sigma, as in the graph."""
    gamma, beta, mean, variance = (_value(graph, argument) for argument in norm.args[1:5])
    epsilon = norm.args[7]
    assert mean is not None and variance is not None and isinstance(epsilon, float)
    weight = _attribute(graph, names["weight"])
    one_over = torch.sqrt(variance + epsilon).reciprocal()
    scale = one_over if gamma is None else gamma * one_over
    safe = torch.where(scale != 0.0, scale, TINY)
    shape = scaled.args[1].args[1]  # type: ignore[union-attr]
    assert isinstance(shape, list)
    bias = _attribute(graph, names["bias"]) if names["bias"] else torch.zeros_like(mean)
    shifted = (bias - mean) * scale
    return (weight * safe.view(shape)).detach(), (shifted if beta is None else shifted + beta).detach(), safe.detach()


def _value(graph: GraphModule, argument: object) -> Tensor | None:
    return _attribute(graph, str(argument.target)) if isinstance(argument, Node) else None


def _attribute(graph: GraphModule, target: str) -> Tensor:
    value: object = graph
    for part in target.split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


def _store(graph: GraphModule, place: Node, value: Tensor, name: str, *, replace: bool = True) -> Node:
    """Register a constant, and put a node that reads it before `place`, or in its place."""
    graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
    with graph.graph.inserting_before(place):
        node = graph.graph.get_attr(name)
    node.meta = {key: place.meta[key] for key in ("val",) if key in place.meta and replace}
    if replace:
        place.replace_all_uses_with(node)
    return node
