"""TorchScript traces, as history: how models were shipped before ``torch.export`` (lesson 07)."""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from cookbook.deploy.deprecations import expected_deprecations
from cookbook.deploy.failures import stopped
from cookbook.deploy.sessions import first_line
from cookbook.errors import DeploymentError
from cookbook.files import atomic_path
from cookbook.models import eval_mode

OBSOLETE = r"`torch\.jit\.\w+` is deprecated"


def trace_torchscript(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write the operators that `model` runs on `example` as a TorchScript file. History: use `export`, or ``torch.export``.

    A trace records one run. A condition on a tensor's values freezes into the branch that the example took,
    of which ``torch.jit.trace`` only warns; here it is an error. ``torch.export`` refuses such a model with
    the line that stops it. Torch's own warnings that ``torch.jit`` is deprecated are held back, because this
    function exists to show what they replace; any other warning is passed on.
    (https://docs.pytorch.org/docs/stable/generated/torch.jit.trace.html)

    Args:
        model: maps one tensor to one tensor; traced in eval mode and left in the mode in which it came.
        example: images (B, C, H, W) on the model's device; the file takes any batch.
        path: the file, by custom ``*.pt``.

    Raises:
        DeploymentError: the model cannot be traced, or its trace would hold for this example only.
    """
    buffer = io.BytesIO()
    with eval_mode(model), torch.no_grad():
        try:
            with expected_deprecations(OBSOLETE) as said:
                torch.jit.save(torch.jit.trace(model, (example,)), buffer)
                frozen = [warning.message for warning in said if warning.category.__name__ == "TracerWarning"]
                if frozen:
                    raise RuntimeError(frozen[0])
        except Exception as error:  # the model's own code, and the tracer's many kinds
            raise stopped(model, error, "cannot be traced") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return Path(path)


def load_torchscript(path: str | os.PathLike[str]) -> torch.jit.ScriptModule:
    """Return the model of a TorchScript file on the CPU, in eval mode. History: see `trace_torchscript`.

    Raises:
        DeploymentError: the file is missing or is not a TorchScript file.
    """
    path = Path(path)
    if not path.is_file():
        raise DeploymentError(f"{path} does not exist: trace the model first.")
    try:
        with expected_deprecations(OBSOLETE):
            return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise DeploymentError(f"{path} is no TorchScript file ({first_line(error)}): trace the model again.") from error
