"""ONNX Runtime as a callable: pinned threads, no spinning, clear errors (lesson 00, completed in lesson 07)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from cookbook.errors import DeploymentError, UsageError
from cookbook.measure import Candidate


class Runtime:
    """An ONNX file, loaded for inference on the CPU.

    Args:
        path: the file that `export` wrote.
        threads: of the session; they sleep between calls instead of spinning, so that they leave
            the cores to others.

    Attributes:
        path: the file.
        threads: the pinned number of threads.

    Raises:
        DeploymentError: the file is missing or is not a model that ONNX Runtime can load.
        UsageError: fewer than one thread.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        self.path = Path(path)
        self.threads = threads
        if threads < 1:
            raise UsageError(f"threads is {threads}: use 1 or more.")
        if not self.path.is_file():
            raise DeploymentError(f"{self.path} does not exist: export the model first.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            first_line = str(error).strip().splitlines()[0]
            raise DeploymentError(f"ONNX Runtime cannot load {self.path} ({first_line}): export the model again.") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise DeploymentError(f"{self.path} takes {len(inputs)} inputs, but one tensor of images was expected.")
        self._input = inputs[0]

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the float32 logits (B, classes) of float32 images (B, C, H, W).

        Raises:
            UsageError: the dtype or the shape is not what the file takes.
        """
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        expected = self._input.shape
        fits = array.ndim == len(expected) and all(
            not isinstance(size, int) or size == actual for size, actual in zip(expected, array.shape, strict=True)
        )
        if array.dtype != np.float32 or not fits:
            raise UsageError(
                f"{self.path.name} takes float32 of shape {tuple(expected)}, not {array.dtype} of shape {tuple(array.shape)}."
            )
        (logits,) = self._session.run(None, {self._input.name: np.ascontiguousarray(array)})
        return torch.from_numpy(logits)

    def candidate(
        self, name: str, *, parameters: int | None = None, macs: int | None = None, seed: int | None = None
    ) -> Candidate:
        """Return this session as a row for `cookbook.measure.measure_candidates`, with the file as what must be shipped."""
        return Candidate(
            name=name, runtime="ONNX Runtime", predict=self, parameters=parameters, macs=macs,
            artefacts=(self.path,), device=torch.device("cpu"), seed=seed,
        )  # fmt: skip
