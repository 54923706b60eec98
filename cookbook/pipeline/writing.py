"""From a stage's model to the file that could be shipped after it (lesson 08)."""

from __future__ import annotations

import shutil
from pathlib import Path

from cookbook.deploy import export
from cookbook.files import atomic_path
from cookbook.pipeline.stage import Outcome, Work
from cookbook.quantization.ptq import quantize


def write_file(outcome: Outcome, work: Work, path: Path) -> Path:
    """Write the ONNX file of what a stage left: its own, or the model exported, in integers where it has a scheme.

    Raises:
        DeploymentError: the model cannot be exported.
    """
    if outcome.file is not None:
        return copy_file(outcome.file, path)
    if outcome.scheme is None:
        return export(outcome.model, work.example, path)
    return quantize(outcome.model, work.calibration(), scheme=outcome.scheme).export(path)


def copy_file(source: Path, destination: Path) -> Path:
    """Copy a file atomically."""
    with atomic_path(destination) as temporary:
        shutil.copyfile(source, temporary)
    return destination
