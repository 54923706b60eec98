"""A table of layer latencies: each convolution and linear layer timed alone in ONNX Runtime, once a shape (lesson 04)."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cookbook.deploy import Runtime
from cookbook.measure import interleave
from cookbook.models import eval_mode

OPSET, IR_VERSION = 18, 10  # read by every ONNX Runtime since 1.18


@dataclass(frozen=True)
class LayerShape:
    """What decides how long a convolution or a linear layer takes.

    Attributes:
        weight: shape of the weight.
        inputs: shape of the input without the batch: (C, H, W) for a convolution, (…, features) for a linear layer.
        stride: of a convolution, by dimension; empty for a linear layer, as are the next two.
        padding: at the beginning of each dimension, then at the end of each.
        dilation: by dimension.
        groups: of a convolution.
    """

    weight: tuple[int, ...]
    inputs: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


Measure = Callable[[Sequence[LayerShape]], Sequence[float]]
"""Seconds of each layer."""


def layer_shapes(model: nn.Module, example: Tensor) -> Counter[LayerShape]:
    """Return how often each shape of layer runs on an image like the example.

    Args:
        model: on the example's device; its modes are left as they were.
        example: images (B, C, H, W); the first one is used.
    """
    found: Counter[LayerShape] = Counter()

    def note(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        weight, sizes = tuple(module.weight.shape), tuple(inputs[0].shape[1:])
        if isinstance(module, nn.Linear):
            found[LayerShape(weight, sizes)] += 1
            return
        before = module._reversed_padding_repeated_twice  # the last dimension first, and a pair for each
        padding = tuple(reversed(before[0::2])) + tuple(reversed(before[1::2]))
        found[LayerShape(weight, sizes, module.stride, padding, module.dilation, module.groups)] += 1

    layers = [module for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with eval_mode(model), torch.no_grad():
            model(example[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return found


class LayerTable:
    """Seconds by shape of layer, measured when a shape is met for the first time and kept in memory.

    The sum over a network's layers leaves out what stands between them. Good enough to compare two networks of one
    family, it chooses candidates; what is reported comes from the whole network.

    Args:
        threads: of the session, when nothing else measures.
        batch: images a call.
        rounds: samples of each layer, whose median counts.
        measure: another way to get the seconds.
    """

    def __init__(self, *, threads: int = 1, batch: int = 1, rounds: int = 7, measure: Measure | None = None) -> None:
        self._measure = measure or functools.partial(time_layers, threads=threads, batch=batch, rounds=rounds)
        self._seconds: dict[LayerShape, float] = {}

    @property
    def known(self) -> Mapping[LayerShape, float]:
        """What was measured so far."""
        return dict(self._seconds)

    def seconds(self, model: nn.Module, example: Tensor) -> float:
        """Return the sum over the model's convolutions and linear layers.

        Args:
            model: on the example's device.
            example: images (B, C, H, W).

        Raises:
            DeploymentError: ONNX Runtime refuses a layer.
        """
        shapes = layer_shapes(model, example)
        new = [shape for shape in shapes if shape not in self._seconds]
        if new:
            self._seconds.update(zip(new, self._measure(new), strict=True))
        return sum(self._seconds[shape] * count for shape, count in shapes.items())


def time_layers(shapes: Sequence[LayerShape], *, threads: int = 1, batch: int = 1, rounds: int = 7) -> list[float]:
    """Return the median seconds of each layer alone in ONNX Runtime, timed in turns.

    Args:
        shapes: of the layers.
        threads: of each session.
        batch: images a call.
        rounds: samples of each.

    Raises:
        DeploymentError: ONNX Runtime refuses a layer.
    """
    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, shape in enumerate(shapes):
            path = Path(folder) / f"{number}.onnx"
            onnx.save(layer_graph(shape), path)
            images = np.zeros((batch, *shape.inputs), np.float32)
            calls[str(number)] = functools.partial(Runtime(path, threads=threads), images)
        timings = interleave(calls, batch=batch, rounds=rounds, warmup=2, threads=threads, device="cpu")
    return [timing.median for timing in timings.values()]


def layer_graph(shape: LayerShape) -> onnx.ModelProto:
    """Return an ONNX graph with this one layer; exporting hundreds of one-layer models through torch would take minutes."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(shape.weight, np.float32) / 100
    if shape.stride:
        node = helper.make_node(
            "Conv", ["x", "weight", "bias"], ["y"], strides=shape.stride, pads=shape.padding, dilations=shape.dilation,
            group=shape.groups,
        )  # fmt: skip
        nodes = [node]
    else:
        weight = weight.T
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["z"]), helper.make_node("Add", ["z", "bias"], ["y"])]
    constants: dict[str, np.ndarray] = {"weight": np.ascontiguousarray(weight), "bias": np.zeros(shape.weight[0], np.float32)}
    graph = helper.make_graph(
        nodes, "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape.inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"size{at}" for at in range(len(shape.inputs) + 1)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
