"""What a file holds, and how a graph folds into boxes: against counts by hand and brute force."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from quantized_graphs import constant, convolution, model

from cookbook.deploy import graph_summary
from cookbook.deploy.folding import Box, folded_graph
from cookbook.errors import DeploymentError, UsageError


def saved(path: Path, nodes: list[NodeProto], outputs: list[str], initializers: list[TensorProto] | None = None) -> Path:
    onnx.save(model(nodes, initializers or [], outputs, ("batch", 4)), path)
    return path


def test_a_summary_by_hand(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=constant("k", np.ones(3), "f8")),
            helper.make_node("Relu", ["x0"], ["r"]),
        ],
        "branch", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)], [constant("unused", [1, 2], "i8")],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x0", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("If", ["condition"], ["c"], then_branch=branch, else_branch=branch),
    ]
    four_bits = helper.make_tensor("q", TensorProto.INT4, (5,), np.zeros(3, "i1").tobytes(), raw=True)
    weights = [constant("w", np.ones((4, 4)), "f4"), constant("condition", True, "?"), four_bits]
    summary = graph_summary(saved(tmp_path / "g.onnx", nodes, ["b"], weights))
    assert dict(summary.operators) == {"Relu": 3, "Constant": 2, "If": 1, "MatMul": 1}
    assert list(summary.operators) == ["Relu", "Constant", "If", "MatMul"]
    assert summary.nodes == 7
    assert summary.opset == 21
    assert summary.parameter_bytes == 16 * 4 + 1 + 3 + 2 * (3 * 8 + 2 * 8)
    assert str(summary.inputs["x0"]) == "float32 (batch, 4)"
    assert "7 nodes, opset 21, 148 bytes of weights" in str(summary)


def test_weights_in_a_side_file_count_too(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "g.onnx", [helper.make_node("MatMul", ["x0", "w"], ["a"])], ["a"], [constant("w", np.ones((4, 9)), "f4")]
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=0)
    (tmp_path / "w.data").unlink()
    assert graph_summary(path).parameter_bytes == 144


@pytest.mark.parametrize("content", [b"", b"\x00\x01nothing", None])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "g.onnx").write_bytes(content)
    words = "does not exist" if content is None else "not a readable ONNX model"
    for function in (graph_summary, folded_graph):
        with pytest.raises(DeploymentError, match=words):
            function(tmp_path / "g.onnx")


def test_a_diamond_has_four_boxes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x0"], ["a"]), helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Exp", ["b"], ["left"]), helper.make_node("Sin", ["left"], ["left2"]),
        helper.make_node("Cos", ["b"], ["right"]), helper.make_node("Add", ["left2", "right"], ["c"]),
        helper.make_node("Abs", ["c"], ["out"]), helper.make_node("Neg", ["w"], ["unused"]),
    ]  # fmt: skip
    graph = folded_graph(saved(tmp_path / "g.onnx", nodes, ["out"], [constant("w", 1.0, "f4")]))
    boxes = {box.operators: (box.column, box.lane) for box in graph.boxes}
    assert boxes == {("Relu", "Tanh"): (0, 0), ("Exp", "Sin"): (1, 0), ("Cos",): (1, 1), ("Add", "Abs"): (2, 0)}
    assert sorted(graph.edges) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert (graph.nodes, graph.hidden, graph.strips) == (7, 1, False)


@pytest.mark.parametrize("seed", range(4))
def test_columns_are_longest_ways(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    names = ["x0"]
    nodes = []
    for number in range(25):
        used = draw.sample(names, min(len(names), draw.choice((1, 1, 2))))
        nodes.append(helper.make_node("Sum", used, [f"t{number}"]))
        names.append(f"t{number}")
    path = saved(tmp_path / "g.onnx", nodes, ["t24"])
    graph = folded_graph(path)
    assert sum(len(box.operators) for box in graph.boxes) == graph.nodes == 25
    before = {end: [start for start, other in graph.edges if other == end] for end in range(len(graph.boxes))}

    @cache
    def longest(index: int) -> int:
        return max((1 + longest(parent) for parent in before[index]), default=0)

    assert [box.column for box in graph.boxes] == [longest(index) for index in range(len(graph.boxes))]
    assert len({(box.column, box.lane) for box in graph.boxes}) == len(graph.boxes)
    for start, end in graph.edges:  # otherwise the two would have been one chain
        outgoing = sum(edge[0] == start for edge in graph.edges)
        assert outgoing > 1 or len(before[end]) > 1
    few = folded_graph(path, limit=3)
    assert few.strips
    assert sum(len(box.operators) for box in few.boxes) == 25
    assert [box.column for box in few.boxes] == list(range(len(few.boxes)))


def test_weights_that_are_dequantized_are_hidden(tmp_path: Path) -> None:
    onnx.save(convolution(), tmp_path / "g.onnx")
    graph = folded_graph(tmp_path / "g.onnx")
    assert graph.hidden == 2
    assert [box.lines for box in graph.boxes] == [["Q + DQ", "Conv", "Q + DQ"]]


@pytest.mark.parametrize(
    ("operators", "summary", "lines"),
    [
        (("Conv", "Relu"), False, ["Conv", "Relu"]),
        (("Relu",) * 3, False, ["Relu ×3"]),
        (("Conv", "Relu") * 4, False, ["Conv", "Relu", "×4"]),
        (("Conv", "Relu", "Conv"), False, ["Conv", "Relu", "Conv"]),
        (tuple("ABCDEF"), False, list("ABCDEF")),
        (tuple("ABCDEFG"), False, [*"ABCDE", "… 2 more"]),
        (("Add", "Conv", "Conv"), True, ["Conv ×2", "Add"]),
        (("QuantizeLinear", "DequantizeLinear", "DequantizeLinear"), False, ["Q + DQ", "DequantizeLinear"]),
    ],
)
def test_the_text_of_a_box(operators: tuple[str, ...], summary: bool, lines: list[str]) -> None:
    assert Box(operators, 0, 0, summary).lines == lines


def test_wrong_arguments(tmp_path: Path) -> None:
    path = saved(tmp_path / "g.onnx", [helper.make_node("Relu", ["w"], ["a"])], ["a"], [constant("w", 1.0, "f4")])
    with pytest.raises(UsageError, match=r"No node of .* depends on an input"):
        folded_graph(path)
    with pytest.raises(UsageError, match="limit is 0"):
        folded_graph(path, limit=0)
