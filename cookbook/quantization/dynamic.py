"""Weights in eight bits without calibration: dynamic and weight-only quantization (lesson 05).

What changes with every input, the range of an activation, is measured while the model runs. That costs a pass over each
activation, and pays where weights are what there is to read: large linear and recurrent layers at small batches. On
convolutions it is slower than float32.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

from cookbook.deploy.export import export, write_graph
from cookbook.deploy.legacy import export_legacy
from cookbook.deploy.sessions import first_line
from cookbook.errors import DeploymentError, UsageError
from cookbook.quantization.report import saturates

DYNAMIC = ("MatMul", "Gemm", "LSTM")  # what ONNX Runtime has dynamic kernels for, without the convolution, whose is slow
ADVICE = re.compile("Please consider .*pre-processing")  # ONNX Runtime says so of every graph, also of one that was processed


def quantize_dynamically(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    operators: Sequence[str] = DYNAMIC,
    per_channel: bool = True,
    reduce_range: bool | None = None,
) -> Path:
    """Export a model with int8 weights, for activations that are quantized as they come, by ONNX Runtime's own tool.

    Layers of type LSTM are quantized; a GRU stays in floats, for which ONNX Runtime has no dynamic kernel. Models with
    recurrent layers go through the legacy exporter, because the newer one fixes their batch.
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#dynamic-quantization)

    Args:
        model: maps one tensor to one tensor in eval mode; left as it is.
        example: images (B, C, H, W), or what else the model takes.
        path: the file, by custom ``*.onnx``.
        operators: ONNX operators to quantize; ``Conv`` is possible, and slow.
        per_channel: one scale for each column of a weight.
        reduce_range: weights of 7 bits, whose sums do not overflow on a processor without VNNI; None: on such a processor.

    Raises:
        UsageError: the example holds no image, or nothing in the model is of the operators' kind.
        DeploymentError: as in `cookbook.deploy.export`, or the tool fails.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with tempfile.TemporaryDirectory(prefix="cookbook-") as folder:
        source = (export_legacy if recurrent else export)(model, example, Path(folder) / "float.onnx")
        found = {node.op_type for node in onnx.load(source).graph.node}
        if not found & set(operators):
            raise UsageError(f"{type(model).__name__} has no {' or '.join(operators)}: there is nothing to quantize.")
        target = Path(folder) / "integer.onnx"
        try:
            with without_advice():
                quantize_dynamic(
                    source, target, op_types_to_quantize=list(operators), per_channel=per_channel,
                    reduce_range=saturates() if reduce_range is None else reduce_range, weight_type=QuantType.QInt8,
                )  # fmt: skip
        except Exception as error:  # the tool raises errors of many kinds
            raise DeploymentError(
                f"ONNX Runtime's tool cannot quantize {type(model).__name__} ({first_line(error)}): name fewer operators."
            ) from error
        graph = onnx.load(target)
    return write_graph(graph, model, example, path)


def weights_only(model: nn.Module) -> nn.Module:
    """Return a copy whose linear layers have int8 weights, one scale a row, that torchao turns into floats when it computes.

    It is smaller by a factor of almost 4 where linear layers dominate, and no faster in eager mode
    (https://docs.pytorch.org/ao/stable/api_reference/generated/torchao.quantization.Int8WeightOnlyConfig.html).

    Raises:
        UsageError: there is no linear layer.
    """
    return _with_linear(model, Int8WeightOnlyConfig(set_inductor_config=False))


def dynamic_linear(model: nn.Module) -> nn.Module:
    """Return a copy whose linear layers have int8 weights and quantize their input row by row as it comes, in torch.

    (https://docs.pytorch.org/ao/stable/api_reference/generated/torchao.quantization.Int8DynamicActivationInt8WeightConfig.html)

    Raises:
        UsageError: there is no linear layer.
    """
    return _with_linear(model, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))


@contextmanager
def without_advice() -> Iterator[None]:
    """Keep one line of ONNX Runtime's tool from the root logger inside the block; everything else is logged as ever."""

    def wanted(record: logging.LogRecord) -> bool:
        return not ADVICE.match(record.getMessage())

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)


def _with_linear(model: nn.Module, config: object) -> nn.Module:
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise UsageError(f"{type(model).__name__} has no linear layer: there is nothing to quantize.")
    copied = copy.deepcopy(model)
    quantize_(copied, config)
    return copied
