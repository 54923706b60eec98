"""The same model quantized by others, to stand beside ours in the table of quantizers (lesson 05)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from cookbook.deploy.export import INPUT_NAME, export, write_graph
from cookbook.deploy.sessions import first_line
from cookbook.errors import DeploymentError
from cookbook.quantization.capture import capture
from cookbook.quantization.dynamic import quantize_dynamically, without_advice
from cookbook.quantization.graphs import as_quantizable
from cookbook.quantization.pt2e import convert_pt2e, prepare_pt2e, x86_quantizer
from cookbook.quantization.ptq import CHUNK, calibrate, quantize_on
from cookbook.quantization.scheme import Scheme

FLOAT, OURS, STATIC = "float32", "this cookbook", "ONNX Runtime static, U8S8"


def quantize_by_onnxruntime(
    model: nn.Module,
    images: Tensor,
    path: str | os.PathLike[str],
    *,
    activations: Literal["u8", "s8"] = "u8",
    per_channel: bool = True,
    reduce_range: bool = False,
    exported: str | os.PathLike[str] | None = None,
) -> Path:
    """Export a model and quantize the file by ONNX Runtime's ``quantize_static``, with ranges from minimum and maximum.

    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#static-quantization)

    Args:
        model: as for `cookbook.quantization.quantize`.
        images: float32 (N, C, H, W), to calibrate on.
        path: the file, by custom ``*.onnx``.
        activations: ``u8``: unsigned, which runs fast; ``s8``: signed, which is the tool's default.
        per_channel: a scale for each output channel of a weight; the tool's default is one scale.
        reduce_range: weights of 7 bits.
        exported: the model in float32 where it was exported already; None: it is exported now.

    Raises:
        DeploymentError: as in `cookbook.deploy.export`, or the tool fails.
    """
    with tempfile.TemporaryDirectory(prefix="cookbook-") as folder:
        source = exported or export(model, images, Path(folder) / "float.onnx")
        target = Path(folder) / "integer.onnx"
        try:
            with without_advice():
                quantize_static(
                    source, target, CalibrationImages(images), quant_format=QuantFormat.QDQ, per_channel=per_channel,
                    reduce_range=reduce_range, weight_type=QuantType.QInt8,
                    activation_type=QuantType.QUInt8 if activations == "u8" else QuantType.QInt8,
                )  # fmt: skip
        except Exception as error:  # the tool raises errors of many kinds
            raise DeploymentError(
                f"ONNX Runtime's tool cannot quantize {type(model).__name__} ({first_line(error)}): use quantize() instead."
            ) from error
        graph = onnx.load(target)
    return write_graph(graph, model, images, path)


def quantize_for_inductor(model: nn.Module, images: Tensor, path: str | os.PathLike[str]) -> Path:
    """Quantize with torchao's own quantizer for x86, which annotates for ``torch.compile``, and export that to ONNX.

    (https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_x86_inductor.html)

    Args:
        model: as for `cookbook.quantization.quantize`.
        images: float32 (N, C, H, W), to calibrate on.
        path: the file, by custom ``*.onnx``.

    Raises:
        DeploymentError: the model cannot be captured or exported.
    """
    prepared = as_quantizable(prepare_pt2e(capture(model, images), x86_quantizer()))
    calibrate(prepared, images)
    return export(as_quantizable(convert_pt2e(prepared)), images, path)


def files_by_quantizer(
    model: nn.Module,
    images: Tensor,
    folder: str | os.PathLike[str],
    *,
    scheme: Scheme | None = None,
    exported: Path | None = None,
) -> Mapping[str, Path]:
    """Write the model in float32 and as each quantizer makes it; the names are those of the table's rows.

    Args:
        model: as for `cookbook.quantization.quantize`.
        images: float32 (N, C, H, W), from the training split, to calibrate on.
        folder: where the files go; it must exist.
        scheme: of our own file; None: `Scheme()`.
        exported: the model in float32 where it was exported already; None: it is exported into the folder.

    Raises:
        DeploymentError: one of them fails.
    """
    plain = exported or Path(folder) / "quantizer_0.onnx"
    makers: dict[str, Callable[[Path], Path]] = {
        FLOAT: lambda path: exported or export(model, images, path),
        OURS: lambda path: quantize_on(model, images, scheme=scheme).export(path),
        STATIC: lambda path: quantize_by_onnxruntime(model, images, path, exported=plain),
        "ONNX Runtime static, its defaults": lambda path: quantize_by_onnxruntime(
            model, images, path, activations="s8", per_channel=False, exported=plain
        ),
        "ONNX Runtime dynamic": lambda path: quantize_dynamically(model, images, path, operators=("Conv", "MatMul", "Gemm")),
        "torchao for Inductor": lambda path: quantize_for_inductor(model, images, path),
    }
    return {name: make(Path(folder) / f"quantizer_{number}.onnx") for number, (name, make) in enumerate(makers.items())}


class CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Hands images to ONNX Runtime's tool, batch by batch.

    Args:
        images: float32 (N, C, H, W).
    """

    def __init__(self, images: Tensor) -> None:
        self._batches = iter(images.detach().cpu().split(CHUNK))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by the name of the graph's input, or None behind the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch.numpy()}
