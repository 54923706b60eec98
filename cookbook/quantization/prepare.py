"""Prepare a captured model with observers, and convert what they saw into integers (lesson 05)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from cookbook.errors import UsageError
from cookbook.models.modes import to_eval
from cookbook.quantization.annotation import SUMMARY, summary
from cookbook.quantization.batchnorm import fold_batch_norm, insert_convolutions, separate_batch_norm, write_out_batch_norm
from cookbook.quantization.capture import capture
from cookbook.quantization.graphs import (
    BATCH_NORM,
    FROZEN,
    MATRIX,
    QuantizableGraph,
    as_quantizable,
    layer_names,
)
from cookbook.quantization.observers import Method, unseen
from cookbook.quantization.pt2e import FakeQuantizeBase, ObserverBase, convert_pt2e, insert_observers, prepare_pt2e
from cookbook.quantization.quantizer import OnnxRuntimeQuantizer
from cookbook.quantization.scheme import Scheme

aten = torch.ops.aten

__all__ = ["capture", "convert", "freeze_batch_norm", "prepare", "set_observers"]


def prepare(
    model: nn.Module, example: Tensor, scheme: Scheme | None = None, *, method: Method = "min-max", qat: bool = False
) -> QuantizableGraph:
    """Return a copy of `model` with observers, or for training with fake quantizers, in eval mode.

    After training-time preparation, `train()` and `eval()` switch BatchNorm and dropout; observers go on observing in both
    until `set_observers` stops them.

    Args:
        model: a module, or a graph that `capture` returned.
        example: as for `capture`.
        scheme: what to quantize to; None: `Scheme()`.
        method: how observers choose the range of an activation; see `cookbook.quantization.observers`. Training takes
            moving averages whatever the method.
        qat: insert fake quantizers that gradients pass, instead of observers.

    Raises:
        UsageError: the scheme excludes a layer that does not exist, or leaves nothing to quantize.
        DeploymentError: as in `capture`.
    """
    scheme = scheme or Scheme()
    graph = copy.deepcopy(model) if isinstance(model, QuantizableGraph) else capture(model, example)
    _require_layers(graph, scheme)
    quantizer = OnnxRuntimeQuantizer(scheme, method=method, qat=qat)
    insert_convolutions(graph)
    if qat:
        separate_batch_norm(graph)
        quantizer.annotate(graph)
        # torchao's prepare_qat_pt2e would first look for BatchNorm, for seconds, to separate it with an epsilon of its own
        prepared = insert_observers(graph, {}, is_qat=True, obs_or_fq_callback=quantizer.prepare_obs_or_fq_callback)
    else:
        _without_dropout(graph)
        prepared = prepare_pt2e(graph, quantizer)
    result = as_quantizable(prepared)
    result.meta[SUMMARY] = summary(quantizer.plan)
    return result.eval()


def convert(prepared: GraphModule) -> QuantizableGraph:
    """Return the integers that a calibrated or trained graph stands for: a graph with quantize and dequantize operators.

    The result computes in floats what a runtime will compute in integers: it is a simulation, slower than the original,
    and says nothing about speed. Export it and let a runtime time it.

    Args:
        prepared: from `prepare`, after it saw data. It is left as it is.

    Raises:
        UsageError: an observer saw no data, the graph holds nothing to convert, or a BatchNorm after a convolution could
            not be folded.
    """
    quantizers = [module for module in prepared.modules() if isinstance(module, ObserverBase | FakeQuantizeBase)]
    if not quantizers:
        raise UsageError("This graph has no observers: pass one that prepare() returned, and convert it once.")
    silent = unseen(prepared)
    if silent:
        raise UsageError(
            f"{len(silent)} observers saw no data (the first is {silent[0]}): run the prepared model on calibration images "
            "first."
        )
    graph = copy.deepcopy(prepared)
    to_eval(graph)
    fold_batch_norm(graph)
    _require_folded(graph)
    write_out_batch_norm(graph)  # torchao's convert would search it for a minute
    _observe_weights(graph)
    converted = as_quantizable(convert_pt2e(graph))
    converted.meta["simulates"] = "int8"
    return converted.eval()


def set_observers(prepared: nn.Module, *, observe: bool | None = None, quantize: bool | None = None) -> None:
    """Let the fake quantizers of a graph prepared for training observe or not, and quantize or not; None: as they are."""
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase):
            if observe is not None:
                module.enable_observer(observe)
            if quantize is not None:
                module.enable_fake_quant(quantize)


def freeze_batch_norm(prepared: nn.Module, frozen: bool = True) -> None:
    """Keep BatchNorm's statistics in training mode too, or let them follow the batches again."""
    for module in prepared.modules():
        if isinstance(module, QuantizableGraph):
            module.meta[FROZEN] = frozen
            module.train(module.training)


def _without_dropout(graph: GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.target == aten.dropout.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _observe_weights(graph: GraphModule) -> None:
    """Let the fake quantizers of weights see the weights that are written, not those before the last step of training."""
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        given = node.args[0] if node.args else None
        if isinstance(module, FakeQuantizeBase) and isinstance(given, Node) and given.op == "get_attr":
            module(graph.get_parameter(str(given.target)))


def _require_layers(graph: GraphModule, scheme: Scheme) -> None:
    names = layer_names(graph)
    for excluded in scheme.exclude:
        if not any(name == excluded or name.startswith(f"{excluded}.") for name in names):
            raise UsageError(f"There is no layer {excluded!r} to exclude: the layers are {', '.join(names)}.")
    if all(map(scheme.excludes, names)):
        raise UsageError(
            "There is nothing to quantize: a model with a convolution or a linear layer that is not excluded is needed."
        )


def _require_folded(graph: GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.target == BATCH_NORM and isinstance(node.args[0], Node) and node.args[0].target in MATRIX:
            raise UsageError(
                f"The BatchNorm {node.name} was not folded into {node.args[0].name}, so that the convolution would run in "
                "floats: prepare the model with prepare(), which separates the two."
            )
