"""A torchao quantizer whose graphs ONNX Runtime runs with int8 kernels (lesson 05)."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from cookbook.errors import UsageError
from cookbook.quantization.annotation import CONCATENATION, Plan, Unit, plan
from cookbook.quantization.graphs import MATRIX
from cookbook.quantization.observers import METHODS, OBSERVERS, Follower, Method
from cookbook.quantization.pt2e import (
    ANNOTATION,
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from cookbook.quantization.scheme import Scheme

NEWEST = 1.0  # weight of the newest range in a weight's moving average: the scale follows the weight without delay


class OnnxRuntimeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a captured graph so that ONNX Runtime fuses what is quantized into int8 kernels.

    Activations are annotated where they leave an operator, after the BatchNorm and the ReLU that are fused into it, and
    where they enter one; torchao's own quantizers leave out most outputs, and ONNX Runtime then converts to floats and back
    (https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quantizer.html).

    Args:
        scheme: what to quantize to.
        method: which observer chooses the range of an activation.
        qat: fake quantizers for training, with moving averages of the range. They are torchao's plain ones: the
            fused ones train on another scale than is written in the end.

    Attributes:
        plan: what was decided for the graph that was annotated last.

    Raises:
        UsageError: an unknown method.
    """

    def __init__(self, scheme: Scheme | None = None, *, method: Method = "min-max", qat: bool = False) -> None:
        super().__init__()
        if method not in METHODS:
            raise UsageError(f"The calibration method is {method!r}: use one of {', '.join(map(repr, METHODS))}.")
        self.scheme = scheme or Scheme()
        self.method = method
        self.qat = qat
        self.plan = Plan((), {})
        self._weight = self._weight_spec()
        self._activation = None if self.scheme.activation_bits is None else self._activation_spec()

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write into each node what is quantized there; torchao calls this."""
        self.plan = plan(model, self.scheme)
        for unit in self.plan.units:
            self._annotate(unit)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every graph: what cannot be quantized stays in floats. torchao calls this."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Any, Any]) -> None:
        """Let results that share their input's scale follow it without being observed; torchao calls this."""
        observers = edge_or_node_to_obs_or_fq
        followers = {
            unit.end: Follower(observers[unit.end])
            for unit in self.plan.units
            if unit.end in observers and unit.shares and unit.node.target != CONCATENATION
        }
        for key in observers:
            made = key[0] if isinstance(key, tuple) else key
            if made in followers:
                observers[key] = followers[made]

    def _annotate(self, unit: Unit) -> None:
        inputs: dict[Node, Any] = {}
        output: Any = None
        if self._activation is not None:
            inputs = dict.fromkeys(unit.inputs, self._activation)
            output = self._activation
            # a moving average over the inputs of a concatenation would cut off the widest
            if unit.shares and not (self.qat and unit.node.target == CONCATENATION):
                first, *others = unit.inputs
                output = SharedQuantizationSpec((first, unit.node))
                inputs |= dict.fromkeys(others, output)
                if isinstance(first.meta.get("val"), list | tuple):  # a part of what was split shares the scale of the whole
                    inputs, output = {}, SharedQuantizationSpec((first.args[0], first))
        if unit.node.target in MATRIX:
            weight = unit.node.args[1]
            assert isinstance(weight, Node)
            inputs[weight] = self._weight
        self._write(unit.node, inputs, output if unit.end is unit.node else None)
        if unit.end is not None and unit.end is not unit.node:
            self._write(unit.end, {}, output)

    def _write(self, node: Node, inputs: dict[Node, Any], output: Any) -> None:
        node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)

    def _weight_spec(self) -> QuantizationSpec:
        per_channel = self.scheme.per_channel
        lowest, highest = self.scheme.weight_range
        constructor: Any = PerChannelMinMaxObserver if per_channel else MinMaxObserver
        if self.qat:
            moving = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
            axis = {"ch_axis": 0} if per_channel else {}
            constructor = FakeQuantize.with_args(observer=moving, averaging_constant=NEWEST, **axis)
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=lowest,
            quant_max=highest,
            qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
            ch_axis=0 if per_channel else None,
            observer_or_fake_quant_ctr=constructor,
        )

    def _activation_spec(self) -> QuantizationSpec:
        lowest, highest = self.scheme.activation_range
        constructor: Any = OBSERVERS[self.method]
        if self.qat:
            constructor = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
        return QuantizationSpec(
            dtype=torch.uint8,
            quant_min=lowest,
            quant_max=highest,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=constructor,
        )
