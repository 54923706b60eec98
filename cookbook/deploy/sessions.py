"""One way to open an ONNX Runtime session: pinned threads, no spinning, one sentence for a bad file (lesson 07)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from cookbook.errors import DeploymentError, UsageError
from cookbook.measure import bytes_on_disk

CPU = "CPUExecutionProvider"

Provider = tuple[str, Mapping[str, str]]


def session_options(threads: int, *, optimize: bool = True) -> onnxruntime.SessionOptions:
    """Return options for `threads` threads that sleep between calls, so that they leave the cores to others.

    Args:
        threads: inside one operator; operators run one after another.
        optimize: let ONNX Runtime fuse and rearrange the graph
            (https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html).

    Raises:
        UsageError: fewer than one thread.
    """
    if threads < 1:
        raise UsageError(f"threads is {threads}: use 1 or more.")
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return options


def open_session(
    path: str | os.PathLike[str],
    options: onnxruntime.SessionOptions,
    providers: Sequence[Provider] = ((CPU, {}),),
) -> onnxruntime.InferenceSession:
    """Load an ONNX file, with its side files if it has any.

    Raises:
        DeploymentError: the file or a side file is missing, or ONNX Runtime cannot load it.
    """
    path = Path(path)
    if not path.is_file():
        raise DeploymentError(f"{path} does not exist: export the model first.")
    try:
        return onnxruntime.InferenceSession(path, options, providers=[(name, dict(settings)) for name, settings in providers])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        try:
            bytes_on_disk(path)
        except DeploymentError as reason:  # damaged, or a side file is missing
            raise DeploymentError(f"ONNX Runtime cannot load {path}: {reason}") from error
        raise DeploymentError(f"ONNX Runtime cannot load {path} ({first_line(error)}): export the model again.") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, and the next after a colon, without a full stop; or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".:")
