"""Where the time of one inference goes, from ONNX Runtime's own profiler (lesson 07)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from cookbook.deploy.operators import Precision, precision
from cookbook.deploy.runtime import Runtime
from cookbook.deploy.sessions import open_session, session_options
from cookbook.errors import DeploymentError, UsageError

NODE_SUFFIX = "_kernel_time"
RUN = "model_run"
TRACE_TYPES: dict[str, int] = {  # the trace has C++'s names
    "float": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "double": onnx.TensorProto.DOUBLE,
    "int8": onnx.TensorProto.INT8,
    "uint8": onnx.TensorProto.UINT8,
}


@dataclass(frozen=True)
class OperatorTime:
    """The time in one type of operator.

    Attributes:
        operator: as ONNX Runtime names it.
        precision: ``int8``, ``float``, or ``other`` for conversions and work on shapes.
        seconds: in one run, mean over the runs.
        share: of all operators' time, 0 to 1.
        count: nodes of this type that ran in one run.
    """

    operator: str
    precision: Precision
    seconds: float
    share: float
    count: int


@dataclass(frozen=True)
class Profile:
    """Time by operator type, the longest first.

    Attributes:
        path: the profiled file.
        operators: one row a type and precision.
        runs: over which the times are means.
        batch: images in one run.
        threads: of the session.
    """

    path: Path
    operators: tuple[OperatorTime, ...]
    runs: int
    batch: int
    threads: int

    @property
    def seconds(self) -> float:
        """Seconds in operators in one run; less than a run's latency, which has the time between them too."""
        return sum(row.seconds for row in self.operators)

    def __str__(self) -> str:
        width = max(len(row.operator) for row in self.operators)
        lines = [f"{'operator':<{width}}  in     nodes        ms   share"]
        for row in self.operators:
            milliseconds = f"{1e3 * row.seconds:.3f}"
            lines.append(f"{row.operator:<{width}}  {row.precision:<5}  {row.count:>5}  {milliseconds:>8}  {row.share:>6.1%}")
        return "\n".join([*lines, f"mean of {self.runs} runs; batch size {self.batch}, threads: {self.threads}"])


def profile(
    path: str | os.PathLike[str], images: Tensor | np.ndarray, *, threads: int = 1, runs: int = 10, warmup: int = 2
) -> Profile:
    """Tell where the time of one inference goes, by operator type.

    ONNX Runtime's profiler does the timing
    (https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html). It counts whole
    microseconds and slows the run down, so that the shares tell where to look, while latency is what
    `cookbook.measure` reports. The trace is deleted.

    Args:
        path: the file.
        images: one batch, as the file takes it.
        threads: of the session, as in `Runtime`.
        runs: counted runs.
        warmup: runs beforehand, which do not count.

    Raises:
        DeploymentError: the file or a side file is missing, or ONNX Runtime cannot load or run it.
        UsageError: fewer than one thread or run, a negative warm-up, or images that the file does not take.
    """
    if runs < 1 or warmup < 0:
        raise UsageError(f"{runs} runs after {warmup} for warm-up cannot be profiled: use 1 or more, and 0 or more.")
    runtime = Runtime(path, threads=threads)
    runtime(images)  # refuses wrong images in one sentence
    options = session_options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "trace")
        session = open_session(path, options)
        feed = {session.get_inputs()[0].name: runtime.as_array(images)}
        for _ in range(warmup + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return Profile(Path(path), operator_times(events, warmup, runs), runs, len(images), threads)


def operator_times(events: Sequence[dict[str, Any]], warmup: int, runs: int) -> tuple[OperatorTime, ...]:
    """Sum the nodes of ONNX Runtime's trace by operator and precision, without those of the warm-up runs.

    Args:
        events: of the trace, with times in microseconds.
        warmup: runs at the trace's beginning that do not count.
        runs: that follow.

    Raises:
        DeploymentError: the trace has not all runs.
    """
    ends = sorted(event["ts"] + event["dur"] for event in events if event["name"] == RUN)
    if len(ends) != warmup + runs:
        raise DeploymentError(f"ONNX Runtime's trace has {len(ends)} of {warmup + runs} runs: use fewer runs.")
    start = ends[warmup - 1] if warmup else 0
    times: dict[tuple[str, Precision], list[int]] = {}
    for event in events:
        if event["name"].endswith(NODE_SUFFIX) and event["ts"] >= start:
            name = event["args"]["op_name"]
            times.setdefault((name, precision(name, _data_type(event["args"]))), []).append(event["dur"])
    total = max(sum(map(sum, times.values())), 1)
    rows = [
        OperatorTime(name, kind, 1e-6 * sum(taken) / runs, sum(taken) / total, len(taken) // runs)
        for (name, kind), taken in times.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.seconds, row.operator)))


def _data_type(arguments: dict[str, Any]) -> int:
    """Return the ONNX element type of a node's first input in the trace; 0: it has none, or of another type."""
    inputs = arguments["input_type_shape"]
    return TRACE_TYPES.get(next(iter(inputs[0])), 0) if inputs else 0
