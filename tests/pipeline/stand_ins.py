"""What takes long in a compression, in short: files written by hand, a clock that counts operations, a plain page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cookbook.data import ResidentLoader
from cookbook.files import atomic_path
from cookbook.measure import Candidate, Measurement, Timing
from cookbook.pipeline import runner, training_stages, writing
from cookbook.pipeline.result import Compressed


def export(model: Any, example: object, path: Path, label: str = "float") -> Path:
    """Write a perceptron as ONNX, as the exporter would, and in its producer's name what it stands for."""
    layers = [*(layer for layer in model.hidden if isinstance(layer, nn.Linear)), model.head]
    nodes, constants, before = [helper.make_node("Flatten", ["images"], ["x0"])], [], "x0"
    for number, layer in enumerate(layers):
        for name, value in (("w", layer.weight), ("b", layer.bias)):
            constants.append(numpy_helper.from_array(value.detach().numpy(), f"{name}{number}"))
        last = number == len(layers) - 1
        sums = "logits" if last else f"y{number}"
        nodes.append(helper.make_node("Gemm", [before, f"w{number}", f"b{number}"], [sums], transB=1))
        before = f"x{number + 1}"
        nodes += [] if last else [helper.make_node("Relu", [sums], [before])]
    shapes = {"images": ["batch", 1, 8, 8], "logits": ["batch", 3]}
    images, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph(nodes, "perceptron", [images], [logits], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name=label)
    with atomic_path(path) as temporary:
        onnx.save(made, temporary)
    return path


def label(path: Path) -> str:
    """Return what a file of `export` stands for."""
    return onnx.load(path).producer_name


class Integers:
    """A quantized model that writes its floats."""

    def __init__(self, model: nn.Module, label: str) -> None:
        self.model, self.label = model, label

    def export(self, path: Path) -> Path:
        return export(self.model, None, path, self.label)


def quantized(graph: Any, scheme: object, method: str, example: object) -> Integers:
    """Stand in for the report of a trained graph; only its weights are taken along."""
    weights = {name: value.detach() for name, value in graph.state_dict().items()}
    holder = nn.Module()
    names = sorted(name.removesuffix(".weight") for name in weights if name.endswith(".weight") and name != "head.weight")
    layers = []
    for name in (*names, "head"):
        layer = nn.Linear(*reversed(weights[f"{name}.weight"].shape))
        layer.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
        layers.append(layer)
    holder.hidden, holder.head = nn.ModuleList(layers[:-1]), layers[-1]
    return Integers(holder, "trained integers")


def measure(candidates: Sequence[Candidate], loader: ResidentLoader, **settings: Any) -> list[Measurement]:
    """Count right predictions, and take a nanosecond for an operation."""
    rows = []
    for candidate in candidates:
        with torch.no_grad():
            hits = sum(int((candidate.predict(images).argmax(1) == labels).sum()) for images, labels in loader.batches(0))
        timing = Timing((1e-9 * (candidate.macs or 0),) * 3, 1, 1)
        (file,) = candidate.artefacts
        rows.append(
            Measurement(
                subject=candidate.name,
                lesson=settings["lesson"],
                runtime=candidate.runtime,
                split=loader.role,
                correct=hits,
                images=len(loader.split),
                bytes=file.stat().st_size,
                parameters=candidate.parameters,
                macs=candidate.macs,
                latency={1: timing},
                recorded="in one run",
            )
        )
    return rows


def write_report(compressed: Compressed) -> Path:
    compressed.report.write_text(compressed.verdict)
    return compressed.report


def install(replace: Callable[[object, str, object], object]) -> None:
    """Put the stand-ins in place with a function such as ``monkeypatch.setattr``."""
    for module in (runner, writing):
        replace(module, "export", export)
    replace(writing, "quantize", lambda model, loader, scheme: Integers(model, "integers"))
    replace(training_stages, "convert", lambda graph: graph)
    replace(training_stages, "quantized", quantized)
    replace(runner, "measure_candidates", measure)
    replace(runner, "write_report", write_report)
