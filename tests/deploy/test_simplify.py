"""A simplifier may take nodes away, and nothing else: every planted fault is refused, and the file stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from quantized_graphs import constant, convolution, model

from cookbook.deploy import Runtime, simplify
from cookbook.deploy.simplify import SIMPLIFIERS
from cookbook.errors import DeploymentError, UsageError

Simplifier = Callable[[ModelProto], ModelProto]


def redundant() -> ModelProto:
    """Return a two-layer network with an identity, a constant sum and a shape that only constants determine."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Identity", ["x0"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Add", ["w1", "zeros"], ["w"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["out"]),
    ]
    initializers = [
        constant("w1", draw.normal(size=(16, 8)), "f4"), constant("zeros", np.zeros((16, 8)), "f4"),
        constant("w2", draw.normal(size=(8, 5)), "f4"),
    ]  # fmt: skip
    made = model(nodes, initializers, ["out"], ("batch", 1, 4, 4))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ("batch", 5)))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(redundant(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("name", ["onnxslim", "onnxsim"])
def test_redundant_nodes_go_and_the_answers_stay(path: Path, name: str) -> None:
    images = torch.randn(5, 1, 4, 4)
    before, size = Runtime(path)(images), path.stat().st_size
    result = simplify(path, path.with_name("out.onnx"), simplifier=name)  # type: ignore[arg-type]
    written = onnx.load(result.path)
    assert (result.nodes_before, result.nodes_after) == (6, len(written.graph.node))
    assert result.removed == {"Identity": 1, "Add": 1}
    assert result.added == {}
    assert result.nodes_before - result.nodes_after == 2
    assert (result.bytes_before, result.bytes_after) == (size, result.path.stat().st_size)
    torch.testing.assert_close(Runtime(result.path)(images), before)
    assert not written.metadata_props
    assert f"{name} left 4 of 6 nodes (removed 1 Add, 1 Identity)" in str(result)
    assert onnx.load(path).graph == redundant().graph


def test_in_place_is_the_default(path: Path) -> None:
    result = simplify(path)
    assert result.path == path
    assert len(onnx.load(path).graph.node) == 4
    assert "nothing changed" in str(simplify(path))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["onnxslim", "onnxsim"])
def test_quantizing_nodes_survive(tmp_path: Path, name: str) -> None:
    graph = convolution()
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("end0", onnx.TensorProto.FLOAT, ("batch", 4, 8, 8)))
    onnx.save(graph, tmp_path / "q.onnx")
    result = simplify(tmp_path / "q.onnx", simplifier=name)  # type: ignore[arg-type]
    counts = [node.op_type for node in onnx.load(result.path).graph.node]
    assert (counts.count("QuantizeLinear"), counts.count("DequantizeLinear")) == (2, 4)
    assert result.parity.largest == 0


def test_a_side_file_ends_up_inside(path: Path) -> None:
    side = path.with_name("weights.data")
    onnx.save(redundant(), path, save_as_external_data=True, location=side.name, size_threshold=0)
    total = path.stat().st_size + side.stat().st_size
    result = simplify(path, path.with_name("out.onnx"))
    assert result.bytes_before == total
    side.unlink()
    assert Runtime(result.path)(torch.zeros(2, 1, 4, 4)).shape == (2, 5)
    with pytest.raises(DeploymentError, match=r"keeps weights in .*weights\.data, which is missing"):
        simplify(path)


def scaled_weight(graph: ModelProto) -> ModelProto:
    weight = graph.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    return graph


def not_a_number(graph: ModelProto) -> ModelProto:
    weight = graph.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32("nan"), weight.name))
    return graph


def fixed_batch(graph: ModelProto) -> ModelProto:
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    return graph


def renamed_output(graph: ModelProto) -> ModelProto:
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "logits"
    return graph


def newer_opset(graph: ModelProto) -> ModelProto:
    graph.opset_import[0].version += 1
    return graph


def more_quantizing(graph: ModelProto) -> ModelProto:
    graph.graph.initializer.extend([constant("s", 1e-9, "f4"), constant("z", 0, "i1")])
    graph.graph.node.insert(0, helper.make_node("QuantizeLinear", ["zeros", "s", "z"], ["unused"]))
    return graph


def hidden_batch(graph: ModelProto) -> ModelProto:
    graph.graph.initializer.append(constant("shape", (2, 16), "i8"))
    graph.graph.node[1].CopyFrom(helper.make_node("Reshape", ["a", "shape"], ["b"]))
    return graph


def fixed_output(graph: ModelProto) -> ModelProto:
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    return graph


def narrower_output(graph: ModelProto) -> ModelProto:
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    return graph


def crash(graph: ModelProto) -> ModelProto:
    raise SystemError("out of patience\nand more")


PLANTED = {
    scaled_weight: "changed what .* computes",
    not_a_number: "changed what .* computes",
    fixed_batch: "changed the input .* from x0: float32 \\(batch, 1, 4, 4\\) to x0: float32 \\(3, 1, 4, 4\\)",
    renamed_output: "changed the output .* from out: float32 \\(batch, 5\\) to logits",
    fixed_output: "changed the output",
    narrower_output: "changed the output .* to out: float32 \\(batch, 4\\)",
    newer_opset: "changed the opset .* from 21 to 22",
    more_quantizing: "changed the number of QuantizeLinear nodes .* from 0 to 1",
    hidden_batch: "does not run as before",
    crash: "fails on .* \\(out of patience\\)",
}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_planted_fault_is_refused(path: Path, planted: Simplifier, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIMPLIFIERS, "onnxslim", planted)
    before = path.read_bytes()
    target = path if in_place else path.with_name("out.onnx")
    with pytest.raises(DeploymentError, match=f"(?s)onnxslim.*{PLANTED[planted]}") as error:
        simplify(path, None if in_place else target)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_users_images_decide(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clipped(graph: ModelProto) -> ModelProto:
        graph.graph.initializer.extend([constant("low", -8, "f4"), constant("high", 8, "f4")])
        graph.graph.node[0].CopyFrom(helper.make_node("Clip", ["x0", "low", "high"], ["a"]))
        return graph

    monkeypatch.setitem(SIMPLIFIERS, "onnxsim", clipped)
    with pytest.raises(DeploymentError, match="changed what"):
        simplify(path, simplifier="onnxsim", images=20 * torch.randn(4, 1, 4, 4))
    assert simplify(path, simplifier="onnxsim", images=torch.rand(4, 1, 4, 4)).added == {"Clip": 1}


def test_a_tiny_difference_that_changes_the_class_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_second(graph: ModelProto, value: float) -> ModelProto:
        (weight,) = [tensor for tensor in graph.graph.initializer if tensor.name == "w2"]
        array = numpy_helper.to_array(weight).copy()
        array[:, :2] = 10, value  # the two largest outputs
        weight.CopyFrom(numpy_helper.from_array(array, "w2"))
        return graph

    onnx.save(with_second(onnx.load(path), 10), path)
    monkeypatch.setitem(SIMPLIFIERS, "onnxslim", lambda graph: with_second(graph, 10.0001))
    with pytest.raises(DeploymentError, match=r"changed what .* same class on 0\.00%"):
        simplify(path)


def test_a_fixed_batch_and_free_sizes(tmp_path: Path) -> None:
    relu: list[NodeProto] = [helper.make_node("Relu", ["x0"], ["out"])]
    onnx.save(model(relu, [], ["out"], (2, 7)), tmp_path / "fixed.onnx")
    assert simplify(tmp_path / "fixed.onnx").parity.images == 2
    onnx.save(model(relu, [], ["out"], ("batch", "width")), tmp_path / "free.onnx")
    with pytest.raises(UsageError, match="pass images of your own"):
        simplify(tmp_path / "free.onnx")
    assert simplify(tmp_path / "free.onnx", images=torch.randn(4, 3)).parity.images == 4


def test_wrong_arguments(path: Path) -> None:
    with pytest.raises(UsageError, match="The simplifier is 'other': use 'onnxslim' or 'onnxsim'"):
        simplify(path, simplifier="other")  # type: ignore[arg-type]
    with pytest.raises(DeploymentError, match="does not exist"):
        simplify(path.with_name("absent.onnx"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DeploymentError, match="cannot load"):
        simplify(path)
