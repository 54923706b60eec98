"""From a torch model to one ONNX file that can be shipped (lesson 00, completed in lesson 07)."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from cookbook.errors import DeploymentError
from cookbook.files import atomic_path
from cookbook.models import eval_mode

INPUT_NAME, OUTPUT_NAME = "images", "logits"


def export(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write `model` as one ONNX file with a dynamic batch and the weights inside.

    The exporter's metadata (source lines, module names) is stripped: it can more than double a
    small model. The file is checked and written atomically; the model is left in the mode in which it came.
    Uses ``torch.onnx.export`` through ``torch.export``
    (https://docs.pytorch.org/docs/stable/onnx_export.html).

    Args:
        model: maps one tensor to one tensor; exported in eval mode.
        example: float32 images of shape (B, C, H, W) on the model's device; only the shape counts.
        path: the file, by custom ``*.onnx``.

    Raises:
        DeploymentError: torch cannot trace the model, or the result is not a valid ONNX model.
    """
    batch = example[:1].repeat_interleave(2, 0)  # torch.export takes a dimension of size 1 for a constant
    try:
        with eval_mode(model):
            program = torch.onnx.export(
                model,
                (batch,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter lets errors of every kind through
        raise DeploymentError(
            f"{type(model).__name__} cannot be exported: {_first_line(error)}. Run torch.export.export(model, (example,)) "
            "for the line that stops it."
        ) from error
    if program is None:
        raise DeploymentError(f"{type(model).__name__} cannot be exported: torch.onnx.export returned nothing.")
    graph = program.model_proto
    strip_metadata(graph)
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise DeploymentError(f"The exported graph is not valid ONNX: {_first_line(error)}.") from error
    with atomic_path(path) as temporary:
        onnx.save(graph, temporary)
    return Path(path)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove everything from `model` that no runtime reads: documentation, metadata, intermediate shapes."""
    model.doc_string = ""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]


def _first_line(error: Exception) -> str:
    """Return the innermost cause of `error` in one line, without a closing full stop."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__).rstrip(".")
