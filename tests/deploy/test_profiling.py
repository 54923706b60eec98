"""Where the time goes: against the graph that runs, and against a trace written by hand."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from quantized_graphs import convolution

from cookbook.deploy import optimized_graph, profile
from cookbook.deploy.profiling import operator_times
from cookbook.errors import DeploymentError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(convolution(), tmp_path / "int8.onnx")
    return tmp_path / "int8.onnx"


def test_every_node_that_runs_is_counted(path: Path) -> None:
    result = profile(path, torch.randn(3, 4, 8, 8), runs=4)
    counted: Counter[str] = Counter()
    for row in result.operators:
        counted[row.operator] += row.count
    assert counted == Counter(node.op_type for node in optimized_graph(path).graph.node)
    assert sum(row.share for row in result.operators) == pytest.approx(1)
    assert result.seconds == pytest.approx(sum(row.seconds for row in result.operators))
    assert (result.runs, result.batch, result.threads) == (4, 3, 1)
    precisions = {row.operator: row.precision for row in result.operators}
    assert precisions["QLinearConv"] == "int8"
    assert precisions["QuantizeLinear"] == precisions["DequantizeLinear"] == "other"
    assert "mean of 4 runs; batch size 3, threads: 1" in str(result)


def event(name: str, start: int, duration: int, operator: str = "", kind: str = "") -> dict[str, Any]:
    arguments = {"op_name": operator, "input_type_shape": [{kind: [1]}] if kind else []}
    return {"name": name, "ts": start, "dur": duration, "args": arguments}


def test_a_trace_by_hand() -> None:
    events = [event("session_initialization", 0, 10)]
    for run, factor in enumerate((50, 1, 3)):  # the first is warm-up, and slow
        start = 1000 * (run + 1)
        events += [
            event("a_kernel_time", start + 1, 10 * factor, "Conv", "float"),
            event("b_kernel_time", start + 2, 4 * factor, "Conv", "float"),
            event("c_kernel_time", start + 3, 2 * factor, "QLinearAdd", "uint8"),
            event("d_kernel_time", start + 4, 3 * factor, "Transpose", "int8"),
            event("e_kernel_time", start + 5, 1 * factor, "Shape"),
            event("SequentialExecutor::Execute", start, 900),
            event("model_run", start, 950),
        ]
    rows = operator_times(events, warmup=1, runs=2)
    assert [(row.operator, row.precision, row.count) for row in rows] == [
        ("Conv", "float", 2), ("Transpose", "int8", 1), ("QLinearAdd", "int8", 1), ("Shape", "other", 1),
    ]  # fmt: skip
    assert [row.seconds for row in rows] == pytest.approx([28e-6, 6e-6, 4e-6, 2e-6])
    assert [row.share for row in rows] == pytest.approx([0.7, 0.15, 0.1, 0.05])
    assert operator_times(events, warmup=0, runs=3)[0].seconds == pytest.approx(14e-6 * 18)
    with pytest.raises(DeploymentError, match="trace has 3 of 5 runs"):
        operator_times(events, warmup=1, runs=4)


def test_nothing_is_left_behind(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    profile(path, np.zeros((1, 4, 8, 8), "f4"), runs=1, warmup=0)
    assert list(scratch.iterdir()) == []


def test_wrong_arguments(path: Path, tmp_path: Path) -> None:
    images = torch.zeros(1, 4, 8, 8)
    for settings, words in (({"runs": 0}, "0 runs"), ({"warmup": -1}, "-1 for warm-up"), ({"threads": 0}, "threads is 0")):
        with pytest.raises(UsageError, match=words):
            profile(path, images, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="takes float32 of shape"):
        profile(path, images[:, :3])
    with pytest.raises(DeploymentError, match="does not exist"):
        profile(tmp_path / "absent.onnx", images)
