"""Models that stop an exporter are told where; what an exporter bakes in is found; nothing half-written stays."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from quantized_graphs import constant, model
from torch import Tensor, nn

from cookbook.deploy import Runtime, export, export_legacy, graph_summary, parity
from cookbook.deploy.export import write_graph
from cookbook.errors import DeploymentError, UsageError
from cookbook.models import ResNetConfig, SeparableConfig, build

EXAMPLE = torch.randn(5, 1, 4, 4)
Exporter = Callable[[nn.Module, Tensor, Path], Path]


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x  # stops


class NoKernel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, 0]).real


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.zeros(3, 2)  # stops


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))  # stops


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class BakedShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class BakedBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.shape[0] == 2 else -x.flatten(1)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.mean((2, 3))


Outputs = namedtuple("Outputs", ["logits", "auxiliary"])


class LikeGoogLeNet(nn.Module):
    """Returns a named tuple while it is trained, and logits afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        logits = self.layer(x.flatten(1))
        return Outputs(logits, -logits) if self.training else logits


def marked_line(model: nn.Module) -> str:
    lines, start = inspect.getsourcelines(type(model))
    (number,) = [start + at for at, line in enumerate(lines) if "# stops" in line]
    return f"{__file__}:{number}"


def refused(exporter: Exporter, model: nn.Module, folder: Path) -> str:
    """Export over an older file, and return the sentence of the refusal."""
    target = folder / "model.onnx"
    target.write_bytes(b"older file")
    with pytest.raises(DeploymentError) as error:
        exporter(model, EXAMPLE, target)
    assert "\n" not in str(error.value)
    assert target.read_bytes() == b"older file"
    assert list(folder.iterdir()) == [target]
    return str(error.value)


def test_a_branch_on_values_is_told_with_its_line(tmp_path: Path) -> None:
    said = refused(export, Branch(), tmp_path)
    assert "Branch cannot be exported because of" in said
    assert marked_line(Branch()) in said


@pytest.mark.parametrize("exporter", [export, export_legacy])
def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path, exporter: Exporter) -> None:
    said = refused(exporter, NoKernel(), tmp_path)
    assert re.search(r"NoKernel cannot be exported.* because of the operator aten(\.|::)linalg_eig", said)


@pytest.mark.parametrize("exporter", [export, export_legacy])
def test_a_model_that_does_not_even_run_is_told_with_its_line(tmp_path: Path, exporter: Exporter) -> None:
    said = refused(exporter, Broken(), tmp_path)
    assert "Broken does not run on torch.float32 images of shape (3, 1, 4, 4) on cpu" in said
    assert marked_line(Broken()) in said
    # the model's innermost line, neither the caller's nor torch's
    said = refused(exporter, Outer(), tmp_path)
    assert "Outer does not run" in said
    assert marked_line(Inner()) in said


@pytest.mark.parametrize("exporter", [export, export_legacy])
@pytest.mark.parametrize(
    ("model", "words"),
    [(BakedShape(), r"does not keep the batch as its first dimension \(3 images give"), (Two(), "1 inputs and 2 outputs")],
)
def test_another_shape_of_answer_is_refused(tmp_path: Path, exporter: Exporter, model: nn.Module, words: str) -> None:
    assert re.search(words, refused(exporter, model, tmp_path))


def test_a_branch_on_the_batch_is_refused(tmp_path: Path) -> None:
    assert re.search(r"it fixes the batch size, so look for .* x\.shape\[0\]", refused(export, BakedBranch(), tmp_path))


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, -1), r"does not run in ONNX Runtime on 3 images"), ((1, -1), r"3 images give an output of shape \(1, 16\)")],
)
def test_a_graph_that_holds_for_one_batch_is_found_by_running_it(tmp_path: Path, shape: tuple[int, int], words: str) -> None:
    nodes = [helper.make_node("Reshape", ["x0", "shape"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["out"])]
    weights = [constant("shape", shape, "i8"), constant("w", torch.ones(48 if shape[0] == 1 else 16, 16).numpy(), "f4")]
    graph = model(nodes, weights, ["out"], ("batch", 1, 4, 4))
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ("batch", 16)))
    assert re.search(words, refused(partial(write_graph, graph), nn.Flatten(), tmp_path))


@pytest.mark.parametrize("end", ["input", "output"])
def test_a_graph_with_a_fixed_batch_is_refused(tmp_path: Path, end: str) -> None:
    graph = model([helper.make_node("Flatten", ["x0"], ["out"])], [], ["out"], ("batch", 1, 4, 4))
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ("batch", 16)))
    getattr(graph.graph, end)[0].type.tensor_type.shape.dim[0].dim_value = 3
    assert "is fixed" in refused(partial(write_graph, graph), nn.Flatten(), tmp_path)


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    graph = model([helper.make_node("NoSuchOperator", ["x0"], ["out"])], [], ["out"], ("batch", 1, 4, 4))
    assert "Flatten is not valid ONNX" in refused(partial(write_graph, graph), nn.Flatten(), tmp_path)


def test_a_model_too_large_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
    module = importlib.import_module("cookbook.deploy.export")  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "LARGEST_FILE", 4 * (16 * 8 + 8))
    with pytest.raises(DeploymentError, match="one ONNX file holds less than"):
        export(linear, EXAMPLE, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert export(linear, EXAMPLE, tmp_path / "model.onnx").is_file()


def test_modes_come_back_and_a_training_output_is_no_obstacle(tmp_path: Path) -> None:
    network = LikeGoogLeNet().train()
    path = export(network, EXAMPLE, tmp_path / "model.onnx")
    assert network.training
    assert network.layer.training
    assert parity(network, Runtime(path), EXAMPLE).largest < 1e-5


@pytest.mark.parametrize("count", [0, 1])
def test_an_example_needs_an_image(tmp_path: Path, count: int) -> None:
    example = torch.zeros(0, 1, 4, 4) if count == 0 else torch.tensor(1.0)
    for exporter in (export, export_legacy):
        with pytest.raises(UsageError, match="at least one image"):
            exporter(LikeGoogLeNet(), example, tmp_path / "model.onnx")


def test_without_optimization_the_graph_is_larger_and_means_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=2))
    example = torch.randn(2, 1, 28, 28)
    summaries = []
    for optimize in (True, False):
        path = export(model, example, tmp_path / f"{optimize}.onnx", optimize=optimize)
        assert parity(model, Runtime(path), torch.randn(5, 1, 28, 28)).largest < 1e-4
        summaries.append(graph_summary(path))
    assert summaries[0].nodes < summaries[1].nodes
    assert summaries[0].opset == summaries[1].opset


@pytest.mark.parametrize("config", [ResNetConfig(depth=8, width=2), SeparableConfig()])
def test_the_legacy_exporter_writes_the_same_model(tmp_path: Path, config: ResNetConfig | SeparableConfig) -> None:
    torch.manual_seed(0)
    model = build(config)
    path = export_legacy(model, torch.randn(1, 1, 28, 28), tmp_path / "legacy.onnx")
    assert model.training
    assert parity(model, Runtime(path), torch.randn(7, 1, 28, 28)).largest < 1e-4
    written = onnx.load(path)
    assert not any(node.doc_string or node.metadata_props for node in written.graph.node)
    assert list(tmp_path.iterdir()) == [path]


def test_the_legacy_exporter_holds_back_only_what_it_says_of_itself(tmp_path: Path) -> None:
    class Talkative(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.jit.is_tracing():
                warnings.warn("the user's own", UserWarning, stacklevel=1)
            return x.flatten(1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_legacy(Talkative(), EXAMPLE, tmp_path / "model.onnx")
    assert [(warning.category, str(warning.message)) for warning in caught] == [(UserWarning, "the user's own")]
