"""From a torch model to one ONNX file that can be shipped (lesson 00, completed in lesson 07)."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from cookbook.deploy.failures import stopped
from cookbook.deploy.graph import graph_values
from cookbook.deploy.sessions import first_line, open_session, session_options
from cookbook.errors import DeploymentError, UsageError
from cookbook.files import atomic_path
from cookbook.models import eval_mode

INPUT_NAME, OUTPUT_NAME = "images", "logits"
LARGEST_FILE = 2**31  # bytes of one protobuf message, which an ONNX file with its weights inside is
TRACED, TRIED = 2, 3  # images: while exporting, and afterwards; torch.export takes a dimension of size 1 for a constant


def export(model: nn.Module, example: Tensor, path: str | os.PathLike[str], *, optimize: bool = True) -> Path:
    """Write `model` as one ONNX file with a dynamic batch and the weights inside.

    The exporter's metadata (source lines, module names) is stripped: it can more than double a
    small model. Before the file takes its place, it is checked and run at another batch size than
    the one that was traced. The model is left in the mode in which it came.
    Uses ``torch.onnx.export`` through ``torch.export``
    (https://docs.pytorch.org/docs/stable/onnx_export.html).

    Args:
        model: maps one tensor to one tensor in eval mode, in which it is exported.
        example: images of shape (B, C, H, W) on the model's device; only shape and dtype count.
        path: the file, by custom ``*.onnx``.
        optimize: let the exporter fold constants and fuse; without, the graph is what the decomposition gave.

    Raises:
        UsageError: the example holds no image.
        DeploymentError: the model does not run on the example, torch cannot trace it (the message
            names the line or the operator that stops it), its graph holds for one batch size only, or
            the result is not a valid ONNX model.
    """
    batch = repeated(example, TRACED)
    with eval_mode(model):
        try_eagerly(model, example)
        try:
            program = torch.onnx.export(
                model,
                (batch,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                external_data=False,
                optimize=optimize,
                verbose=False,
            )
        except Exception as error:  # the exporter lets errors of every kind through
            raise stopped(model, error, "cannot be exported") from error
    if program is None:
        raise DeploymentError(f"{type(model).__name__} cannot be exported: torch.onnx.export returned nothing.")
    return write_graph(program.model_proto, model, example, path)


def write_graph(graph: onnx.ModelProto, model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Path:
    """Strip, check and write what an exporter made of `model`, and try it at another batch size; atomically.

    Raises:
        DeploymentError: the graph is not valid ONNX, is too large for one file, has not one input and one
            output, or does not take every batch.
    """
    name = type(model).__name__
    strip_metadata(graph)
    outputs = graph_values(graph.graph.output)
    if len(graph.graph.input) != 1 or len(outputs) != 1:
        raise DeploymentError(
            f"{name} became a graph with {len(graph.graph.input)} inputs and {len(outputs)} outputs in eval mode, but one of "
            "each was expected: wrap it so that its forward maps one tensor to one."
        )
    for value in (*graph_values(graph.graph.input).values(), *outputs.values()):
        if value.shape and isinstance(value.shape[0], int):
            raise DeploymentError(_baked(name, f"the first size of {value} is fixed"))
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if weights >= LARGEST_FILE:
        raise DeploymentError(
            f"{name} has {weights / 2**30:.1f} GiB of weights, but one ONNX file holds less than "
            f"{LARGEST_FILE / 2**30:.0f} GiB: quantize the weights or split the model first."
        )
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise DeploymentError(f"The exported graph of {name} is not valid ONNX: {first_line(error)}.") from error
    with atomic_path(path) as temporary:
        onnx.save(graph, temporary)
        images = repeated(example, TRIED).detach().cpu().numpy()
        try:
            session = open_session(temporary, session_options(1))
            (logits,) = session.run(None, {graph.graph.input[0].name: images})
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise DeploymentError(
                f"The exported graph of {name} does not run in ONNX Runtime on {TRIED} images ({first_line(error)}): "
                "look for a size that is written as a number in its forward."
            ) from error
        if logits.shape[:1] != (TRIED,):
            raise DeploymentError(_baked(name, f"{TRIED} images give an output of shape {logits.shape}"))
    return Path(path)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove everything from `model` that no runtime reads: documentation, metadata, intermediate shapes."""
    model.doc_string = ""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]


def repeated(example: Tensor, count: int) -> Tensor:
    """Return the first image of the example `count` times.

    Raises:
        UsageError: the example holds no image.
    """
    if example.ndim < 2 or not len(example):
        raise UsageError(f"The example has the shape {tuple(example.shape)}: pass a batch with at least one image.")
    return example[:1].detach().repeat_interleave(count, 0)


def try_eagerly(model: nn.Module, example: Tensor) -> None:
    """Run the model as it is: what fails here is no matter of exporting, and is told with the model's own line.

    Raises:
        DeploymentError: it fails, or its output's first size is not the batch.
    """
    images = repeated(example, TRIED)
    try:
        with torch.no_grad():
            output = model(images)
    except Exception as error:  # the model's own code
        shape = tuple(images.shape)
        raise stopped(model, error, f"does not run on {images.dtype} images of shape {shape} on {images.device}") from error
    if isinstance(output, Tensor) and output.shape[:1] != images.shape[:1]:
        raise DeploymentError(_baked(type(model).__name__, f"{TRIED} images give an output of shape {tuple(output.shape)}"))


def _baked(name: str, reason: str) -> str:
    return (
        f"{name} does not keep the batch as its first dimension ({reason}): look for a batch size that is written as a "
        "number in its forward, and use x.shape[0] instead."
    )
