"""Which kernels run: against what ONNX Runtime itself says, and every reason for a float island against a fix."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from quantized_graphs import around, constant, convolution, model, quantize, quantize_file

from cookbook.deploy import KernelReport, export, kernels, optimized_graph
from cookbook.deploy.operators import INT8_OPERATORS, data_input, element_types, family
from cookbook.errors import DeploymentError, UsageError
from cookbook.models import ResNetConfig, build

ONES = np.ones(4)
OPERATORS: dict[str, dict[str, Any]] = {
    "Conv": {"weight": (4, 4, 1, 1)},
    "ConvTranspose": {"weight": (4, 4, 1, 1)},
    "MatMul": {"weight": (4, 4), "shape": (3, 4)},
    "Gemm": {"weight": (4, 4), "shape": (3, 4)},
    **{name: {"inputs": 2} for name in ("Add", "Sub", "Mul", "Div")},
    "Concat": {"inputs": 2, "axis": 1},
    **{name: {"kernel_shape": [2, 2]} for name in ("MaxPool", "AveragePool")},
    **{name: {} for name in ("GlobalAveragePool", "GlobalMaxPool", "Sigmoid", "LeakyRelu", "Elu", "HardSigmoid", "Tanh")},
    **{name: {} for name in ("Gelu", "Erf", "Softplus", "Softmax", "LogSoftmax", "Relu")},
    **{name: {"constants": [[2, 3]]} for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum")},
    "Clip": {"constants": [0.0, 6.0]},
    "PRelu": {"constants": [np.full((4, 1, 1), 0.1)]},
    "LayerNormalization": {"constants": [np.ones(6)]},
    "InstanceNormalization": {"constants": [ONES, ONES]},
    "BatchNormalization": {"constants": [ONES, ONES, ONES, ONES]},
    "Resize": {"constants": [np.zeros(0), [1.0, 1.0, 2.0, 2.0]], "mode": "nearest"},
}


def report(graph: onnx.ModelProto, folder: Path) -> KernelReport:
    onnx.save(graph, folder / "graph.onnx")
    return kernels(folder / "graph.onnx")


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_list_of_int8_operators_is_what_this_onnx_runtime_does(tmp_path: Path, operator: str) -> None:
    found = report(around(operator, **OPERATORS[operator]), tmp_path)
    group = family(operator)
    assert group is not None
    assert found.coverage[group].total == 1
    assert found.coverage[group].int8 == (operator in INT8_OPERATORS)


def test_every_int8_operator_is_asked_about() -> None:
    assert set(OPERATORS) >= INT8_OPERATORS


REASONS: dict[str, dict[str, Any]] = {
    "its input is not quantized (it comes from outside)": {"input_quantized": False},
    "its weights are not quantized": {"weight_quantized": False},
    "its bias has another scale": {"bias": "scaled"},
    "its bias is not a constant (it comes from ReduceMean 'mean')": {"bias": "computed"},
    "several consumers, and Tanh takes its output before quantization": {"ends": ("quantized", "tanh")},
    "several consumers, each of which quantizes its output anew": {"ends": ("quantized", "quantized")},
    "its output is not quantized: it leaves the graph": {"ends": ("quantized", "output")},
    "its output is not quantized (no QuantizeLinear after it, but Tanh)": {"ends": ("tanh", "tanh")},
    "Relu comes before QuantizeLinear": {"relu": True},
    "quantized to uint16, for which it has no kernel": {"activation": "u2"},
    "it takes uint8, but its output is quantized to int8": {"output": "i1", "ends": ("shared",)},
    "deliberately excluded or never quantized": {"input_quantized": False, "weight_quantized": False, "ends": ("tanh",) * 2},
}


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_keeps_a_convolution_in_floats(tmp_path: Path, reason: str) -> None:
    found = report(convolution(**REASONS[reason]), tmp_path)
    assert (found.coverage["conv"].int8, found.coverage["conv"].total) == (0, 1)
    (island,) = [island for island in found.islands if island.node == "target"]
    assert island.reason.startswith(reason)
    assert reason in str(found)


@pytest.mark.parametrize("settings", [{}, {"bias": "float"}, {"bias": "none"}, {"relu": True, "zero": 0}, {"activation": "i1"}])
def test_without_an_obstacle_it_runs_in_int8(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = report(convolution(**settings), tmp_path)
    assert found.coverage["conv"].share == 1
    assert found.islands == ()
    assert found.quantized
    assert "float islands: none" in str(found)


def test_an_island_lies_between_int8_nodes_and_what_follows_them_is_none(tmp_path: Path) -> None:
    initializers = [constant("scale", 0.05, "f4"), constant("zero", 128, "u1")]
    nodes = [
        *quantize("x0", "a"), helper.make_node("Sigmoid", ["a"], ["b"], name="first"), *quantize("b", "c"),
        helper.make_node("Tanh", ["c"], ["d"], name="between"), *quantize("d", "e"),
        helper.make_node("LeakyRelu", ["e"], ["f"], name="last"), *quantize("f", "g"),
        helper.make_node("Tanh", ["g"], ["out"], name="after"),
    ]  # fmt: skip
    found = report(model(nodes, initializers, ["out"], ("batch", 4)), tmp_path)
    assert [(island.node, island.reason) for island in found.islands] == [
        ("between", "no int8 kernel in ONNX Runtime for Tanh")
    ]
    assert (found.coverage["activation"].int8, found.coverage["activation"].total) == (2, 4)


@pytest.fixture(scope="module")
def floating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    resnet = build(ResNetConfig(depth=8, width=4))
    with torch.no_grad():
        resnet(torch.randn(16, 1, 28, 28))
    return export(resnet, torch.randn(1, 1, 28, 28), tmp_path_factory.mktemp("kernels") / "float.onnx")


@pytest.fixture(scope="module")
def quantized(floating: Path) -> Path:
    return quantize_file(floating, floating.with_name("int8.onnx"), (1, 28, 28))


def test_a_quantized_network_is_covered(quantized: Path, floating: Path) -> None:
    found = kernels(quantized)
    names = [node.op_type for node in optimized_graph(quantized).graph.node]
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(floating).graph.node)
    assert convolutions == 9
    assert (found.coverage["conv"].int8, found.coverage["conv"].total) == (names.count("QLinearConv"), convolutions)
    assert {group: row.share for group, row in found.coverage.items()} == {"conv": 1, "linear": 1, "add": 1, "pool": 0}
    assert [(island.operator, island.reason) for island in found.islands] == [
        ("ReduceMean", "no int8 kernel in ONNX Runtime for ReduceMean")
    ]
    assert sum(found.optimized.values()) == len(names)
    assert sum(found.conversions.values()) == sum(name in ("QuantizeLinear", "DequantizeLinear") for name in names)


def test_excluded_nodes_are_named(quantized: Path, floating: Path, tmp_path: Path) -> None:
    # two in a row: the constant weights of a single one, between quantized tensors, ONNX Runtime quantizes by itself
    excluded = [node.name for node in onnx.load(floating).graph.node if node.op_type == "Conv"][1:3]
    path = quantize_file(floating, tmp_path / "part.onnx", (1, 28, 28), nodes_to_exclude=excluded)
    found = kernels(path)
    assert (found.coverage["conv"].int8, found.coverage["conv"].total) == (7, 9)
    convolutions = [island for island in found.islands if island.operator != "ReduceMean"]
    assert [island.node for island in convolutions] == excluded
    assert sum(row.total - row.int8 for row in found.coverage.values()) == len(found.islands)
    assert all("was left out" in island.reason for island in convolutions)


def test_a_float_network_has_fusions_and_no_islands(floating: Path) -> None:
    found = kernels(floating)
    assert not found.quantized
    assert found.islands == ()
    assert found.absorbed["Relu"] == 7
    assert sum(count for name, count in found.fused.items() if name.startswith("Conv") and name.endswith("Relu")) == 7
    assert (found.coverage["conv"].int8, found.coverage["conv"].total) == (0, 9)
    assert "float islands" not in str(found)


@pytest.mark.parametrize("which", ["quantized", "floating"])
def test_element_types_are_those_that_onnx_runtime_traces(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "trace")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: np.zeros((2, 1, 28, 28), "f4")})
    events = json.loads(Path(session.end_profiling()).read_text())
    traced = {
        event["name"].removesuffix("_kernel_time"): next(iter(event["args"]["input_type_shape"][0]))
        for event in events
        if event["name"].endswith("_kernel_time")
    }
    graph = optimized_graph(path)
    types = element_types(graph)
    names = {onnx.TensorProto.FLOAT: "float", onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT32: "int32"}
    ours = {node.name: names.get(types[data_input(node)]) for node in graph.graph.node}
    assert len(traced) == len(ours)
    assert {name: ours[name] for name in traced if name in ours} == {name: traced[name] for name in traced if name in ours}
    assert len(traced.keys() & ours.keys()) > 0.9 * len(traced)


def test_nothing_is_left_behind(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(quantized.parent.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kernels(quantized)
    assert list(tmp_path.iterdir()) == []
    assert set(quantized.parent.iterdir()) == before


def test_wrong_arguments(tmp_path: Path, floating: Path) -> None:
    with pytest.raises(DeploymentError, match="does not exist"):
        kernels(tmp_path / "absent.onnx")
    with pytest.raises(UsageError, match="threads is 0"):
        kernels(floating, threads=0)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(floating.read_bytes()[:500])
    with pytest.raises(DeploymentError, match="not a readable ONNX model"):
        kernels(damaged)
