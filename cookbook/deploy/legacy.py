"""The TorchScript-based exporter, kept for comparison with its replacement (lesson 07)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from cookbook.deploy.deprecations import expected_deprecations
from cookbook.deploy.export import INPUT_NAME, OUTPUT_NAME, TRACED, repeated, try_eagerly, write_graph
from cookbook.deploy.failures import stopped
from cookbook.models import eval_mode

EXPECTED = r"You are using the legacy TorchScript-based ONNX export|The feature will be removed"  # its words on itself


def export_legacy(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write `model` with the legacy exporter, ``torch.onnx.export(dynamo=False)``; for comparison only.

    It records the operators of one run, so that Python conditions freeze into the branch that the
    example took, and it is deprecated: use `export`. Batch, weights, checks and errors are as there.

    Args:
        model: maps one tensor to one tensor in eval mode, in which it is exported.
        example: images of shape (B, C, H, W) on the model's device.
        path: the file, by custom ``*.onnx``.

    Raises:
        DeploymentError, UsageError: as for `export`.
    """
    batch = repeated(example, TRACED)
    with eval_mode(model), tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "legacy.onnx"
        try_eagerly(model, example)
        try:
            # The exporter says of itself that it is deprecated, and so does this function's name. Any other warning is
            # passed on: it may be about the user's model.
            with expected_deprecations(EXPECTED):
                torch.onnx.export(
                    model,
                    (batch,),
                    written,
                    dynamo=False,
                    input_names=[INPUT_NAME],
                    output_names=[OUTPUT_NAME],
                    dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
                )
        except Exception as error:  # the exporter lets errors of every kind through
            raise stopped(model, error, "cannot be exported by the legacy exporter") from error
        graph = onnx.load(written)
    return write_graph(graph, model, example, path)
