"""ONNX Runtime as a callable: pinned threads, no spinning, clear errors (lesson 00, completed in lesson 07)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from cookbook.deploy.images import checked_images
from cookbook.deploy.sessions import CPU, Provider, first_line, open_session, session_options
from cookbook.errors import DeploymentError, UsageError
from cookbook.measure import Candidate

ProviderName = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]

CUDA = "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": "TensorrtExecutionProvider", "openvino": "OpenVINOExecutionProvider"}
DTYPES: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
}


class Runtime:
    """An ONNX file, loaded for inference.

    Args:
        path: the file that `export` wrote, or another with one input and one output.
        threads: of the session; they sleep between calls instead of spinning, so that they leave
            the cores to others.
        provider: what executes it. ``auto`` takes CUDA where ONNX Runtime has it and it starts, and
            the CPU otherwise. An operator that an accelerator's provider lacks runs on the CPU
            (https://onnxruntime.ai/docs/execution-providers/).
        optimize: let ONNX Runtime fuse and rearrange the graph first; without, it runs node by node as it was written.

    Attributes:
        path: the file.
        threads: the pinned number of threads.

    Raises:
        DeploymentError: the file or a side file is missing, or is not a model that ONNX Runtime can
            load; the provider is not installed or does not start; the model has several inputs or outputs.
        UsageError: fewer than one thread, or an unknown provider.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 1, provider: ProviderName = "cpu", optimize: bool = True
    ) -> None:
        self.path = Path(path)
        self.threads = threads
        wanted = _providers(provider, threads)
        self._session = open_session(self.path, session_options(threads, optimize=optimize), wanted)
        if provider != "auto" and wanted[0][0] not in self.providers:
            raise DeploymentError(
                f"ONNX Runtime has {wanted[0][0]}, but it did not start and left {self.path} to {', '.join(self.providers)}: "
                "install the libraries that it needs, or pass provider='cpu'."
            )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise DeploymentError(
                f"{self.path} takes {len(inputs)} inputs and returns {len(outputs)} outputs, but one tensor of images in and "
                "one of logits out were expected: export a model whose forward maps one tensor to one."
            )
        (self._input,) = inputs
        if self._input.type not in DTYPES:
            raise DeploymentError(f"{self.path} takes {self._input.type}, but one of {', '.join(DTYPES)} was expected.")
        self._dtype = DTYPES[self._input.type]

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that the session really uses, the preferred one first."""
        return tuple(self._session.get_providers())

    @property
    def input_shape(self) -> tuple[int | str | None, ...]:
        """The shape that the file takes; a name or None stands for a size that is free, such as the batch."""
        return tuple(self._input.shape)

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the float32 logits (B, classes) of float32 images (B, C, H, W), on the CPU.

        Raises:
            UsageError: the dtype or the shape is not what the file takes, or there are no images.
            DeploymentError: the file fails on these images.
        """
        array = self.as_array(images)
        try:
            (logits,) = self._session.run(None, {self._input.name: array})
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise DeploymentError(
                f"{self.path.name} fails on images of shape {tuple(array.shape)} ({first_line(error)}): "
                "export the model again with an example of this shape."
            ) from error
        return torch.from_numpy(logits)

    def warm_up(self, images: Tensor | np.ndarray | int = 1, *, runs: int = 3) -> None:
        """Run a few times, so that the first timed call neither allocates memory nor tunes a kernel.

        Args:
            images: a batch as for a call, or the size of a batch of zeros.
            runs: how often.

        Raises:
            UsageError: fewer than one run, or images that the file does not take.
        """
        if runs < 1:
            raise UsageError(f"runs is {runs}: use 1 or more.")
        batch = np.zeros(self.sample_shape(images), self._dtype) if isinstance(images, int) else images
        for _ in range(runs):
            self(batch)

    def sample_shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of `batch` images that the file takes.

        Raises:
            UsageError: the batch is below 1 or the file takes another one, or a size beside the batch is free.
        """
        fixed, *rest = self.input_shape
        sizes = [size for size in rest if isinstance(size, int)]
        if batch < 1 or len(sizes) < len(rest) or (isinstance(fixed, int) and fixed != batch):
            raise UsageError(
                f"{self.path.name} takes {self._dtype} of shape {self.input_shape}, which does not say what a batch of {batch} "
                "looks like: pass images of your own."
            )
        return (batch, *sizes)

    def as_array(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Return the images as the contiguous array that the session takes.

        Raises:
            UsageError: the dtype or the shape is not what the file takes, or there are no images.
        """
        return checked_images(images, self.path.name, self._dtype, self.input_shape)

    def candidate(
        self, name: str, *, parameters: int | None = None, macs: int | None = None, seed: int | None = None
    ) -> Candidate:
        """Return this session as a row for `cookbook.measure.measure_candidates`, with the file as what must be shipped."""
        first = self.providers[0]
        runtime = "ONNX Runtime" if first == CPU else f"ONNX Runtime ({first.removesuffix('ExecutionProvider')})"
        return Candidate(
            name=name, runtime=runtime, predict=self, parameters=parameters, macs=macs,
            artefacts=(self.path,), device=torch.device("cpu"), seed=seed,
        )  # fmt: skip


def _providers(name: str, threads: int) -> tuple[Provider, ...]:
    """Return the execution providers to ask for, in order; the CPU is always the last."""
    available = onnxruntime.get_available_providers()
    if name == "auto":
        name = "cuda" if CUDA in available else "cpu"
    if name not in PROVIDERS:
        raise UsageError(f"The provider is {name!r}: use 'auto', {', '.join(map(repr, PROVIDERS))}.")
    wanted = PROVIDERS[name]
    if wanted not in available:
        ours = ", ".join(repr(short) for short, full in PROVIDERS.items() if full in available)
        raise DeploymentError(
            f"This ONNX Runtime has no {wanted}: install its build for {name}, or use one that it has ({ours})."
        )
    settings = {"openvino": {"device_type": "CPU", "num_of_threads": str(threads), "precision": "FP32"}}.get(name, {})
    return ((wanted, settings),) if wanted == CPU else ((wanted, settings), (CPU, {}))
