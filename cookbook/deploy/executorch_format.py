"""ExecuTorch: models for phones and microcontrollers as ``.pte`` files (lesson 07)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cookbook.deploy.deprecations import expected_deprecations
from cookbook.deploy.failures import stopped
from cookbook.deploy.images import checked_images
from cookbook.deploy.sessions import first_line
from cookbook.errors import DeploymentError, UsageError
from cookbook.files import atomic_path
from cookbook.measure import Candidate
from cookbook.models import eval_mode

# What executorch 1.5 and torchao 0.18 say of their own calls, and of the Python runtime as a whole.
OWN_WARNINGS = r"(read|open)_(text|binary) is deprecated|invalid escape sequence|This API is experimental"
FLOAT = 6  # float32 among ExecuTorch's numbers for dtypes


def export_executorch(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write `model` as one ExecuTorch program for CPUs, through ``torch.export`` and XNNPACK.

    What XNNPACK has kernels for is handed to it; ExecuTorch's portable kernels, which are slow, do the rest.
    Memory is planned ahead: the file takes batches of up to as many images as the example has. The model
    is left in the mode in which it came.
    (https://docs.pytorch.org/executorch/stable/using-executorch-export.html)

    Args:
        model: maps one tensor to one tensor; exported in eval mode.
        example: float32 images (B, C, H, W) on the CPU; only the shape counts. Of one image the file takes no more.
        path: the file, by custom ``*.pte``.

    Raises:
        DeploymentError: ExecuTorch is not installed, or the model cannot be exported.
        UsageError: there is no image.
    """
    if not len(example):
        raise UsageError("There is no image in the example: pass as many as the largest batch shall have.")
    # One more than asked for: where the bound equals a number of channels, the lowering takes one off it.
    sizes = None if len(example) == 1 else ({0: torch.export.Dim("batch", min=1, max=len(example) + 1)},)
    with expected_deprecations(OWN_WARNINGS):
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise _absent(error) from error
        with eval_mode(model):
            try:
                program = torch.export.export(model, (example,), dynamic_shapes=sizes)
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
            except Exception as error:  # the model's own code, and errors of every kind from below
                raise stopped(model, error, "cannot be exported to ExecuTorch") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(lowered.buffer)
    return Path(path)


class ExecutorchRuntime:
    """An ExecuTorch program, loaded for inference on the CPU, by a Python runtime that its makers call experimental.

    Args:
        path: the file that `export_executorch` wrote.

    Attributes:
        path: the file.
        largest_batch: most images in one call, by the memory that the file plans for.

    Raises:
        DeploymentError: ExecuTorch is not installed, the file is missing, or is not a program with one input.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DeploymentError(f"{self.path} does not exist: export the model first.")
        try:
            with expected_deprecations(OWN_WARNINGS):
                from executorch.runtime import Runtime
        except ImportError as error:
            raise _absent(error) from error
        try:
            self._program: Any = Runtime.get().load_program(self.path.read_bytes())  # owns the memory that the method uses
            self._method: Any = self._program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise DeploymentError(
                f"ExecuTorch cannot load {self.path} ({first_line(error)}): export the model again."
            ) from error
        described = self._method.metadata
        if described.num_inputs() != 1:
            raise DeploymentError(f"{self.path} takes {described.num_inputs()} inputs, but one tensor of images was expected.")
        given = described.input_tensor_meta(0)
        self.largest_batch, *self._image = given.sizes()
        if given.dtype() != FLOAT:
            raise DeploymentError(f"{self.path} takes another dtype than float32: export the model with float32 images.")

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the float32 logits (B, classes) of float32 images (B, C, H, W).

        Raises:
            UsageError: the dtype or the shape is not what the file takes, or there are no images or too many.
            DeploymentError: the program fails on these images.
        """
        array = checked_images(images, self.path.name, np.dtype(np.float32), ("batch", *self._image))
        if len(array) > self.largest_batch:
            raise UsageError(
                f"{self.path.name} takes batches of up to {self.largest_batch} images, not of {len(array)}: send fewer, or "
                "export it again with a larger example."
            )
        try:
            answers = self._method.execute([torch.from_numpy(array)])
        except RuntimeError as error:
            raise DeploymentError(
                f"{self.path.name} fails on images of shape {array.shape} ({first_line(error)}): export the model again."
            ) from error
        return answers[0]

    def candidate(
        self, name: str, *, parameters: int | None = None, macs: int | None = None, seed: int | None = None
    ) -> Candidate:
        """Return this program as a row for `cookbook.measure.measure_candidates`, with the file as what must be shipped."""
        return Candidate(
            name=name, runtime="ExecuTorch", predict=self, parameters=parameters, macs=macs,
            artefacts=(self.path,), device=torch.device("cpu"), seed=seed,
        )  # fmt: skip


def _absent(error: ImportError) -> DeploymentError:
    return DeploymentError(f"ExecuTorch cannot be imported ({first_line(error)}): run 'pip install executorch'.")
