"""Figures of a deployed model: what they draw and what their sentence says are the numbers given."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.patches import FancyArrowPatch, Rectangle
from onnx import TensorProto, helper

from cookbook.deploy import GraphSummary, OperatorTime, Profile
from cookbook.plots import graph_figure, kernel_figure, operator_figure
from cookbook.plots.kernels import ROWS
from cookbook.plots.picture import GROUND


def profiled(rows: int = 3) -> Profile:
    kinds: list[Any] = ["int8", "float", "other"]
    weights = np.arange(rows, 0, -1) / sum(range(rows + 1))
    times = [OperatorTime(f"Op{at}", kinds[at % 3], 2e-3 * share, share, at + 1) for at, share in enumerate(weights)]
    return Profile(Path("model.onnx"), tuple(times), runs=10, batch=4, threads=1)


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_bars_are_as_long_as_the_times() -> None:
    profile = profiled()
    picture = kernel_figure(profile)
    axes = picture.axes[0]
    assert [bar.get_width() for bar in bars(axes)] == pytest.approx([1e3 * row.seconds for row in profile.operators])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Op0 ×1", "Op1 ×2", "Op2 ×3"]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars(axes)}) == 3
    assert picture.finding == ("model.onnx: Op0 takes 50% of the 2 ms in operators; kernels on int8 take 50%, on floats 33%.")
    assert "mean of 10 runs; batch size 4, threads: 1" in axes.get_xlabel()


def test_many_rows_are_summed_up() -> None:
    profile = profiled(ROWS + 6)
    axes = kernel_figure(profile).axes[0]
    assert len(bars(axes)) == ROWS + 1
    assert sum(bar.get_width() for bar in bars(axes)) == pytest.approx(2.0)
    summary = GraphSummary(Path("m.onnx"), {f"Op{at}": 40 - at for at in range(ROWS + 6)}, 20, {}, {}, 0)
    figure = operator_figure(summary)
    assert sum(bar.get_width() for bar in bars(figure.axes[0])) == summary.nodes
    assert figure.finding == f"m.onnx has {summary.nodes} nodes of {ROWS + 6} operators; 40 are Op0."
    assert operator_figure(GraphSummary(Path("m.onnx"), {}, 20, {}, {}, 0)).finding == "m.onnx has no nodes."


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    """Write a chain of ten blocks: two branches, and a sum of both with what went into them."""
    nodes, name = [], "x"
    for block in range(10):
        nodes += [
            helper.make_node("Tanh", [name], [f"a{block}"]),
            helper.make_node("MatMul", [f"a{block}", "w"], [f"b{block}"]),
            helper.make_node("Exp", [name], [f"d{block}"]),
            helper.make_node("Sum", [f"b{block}", f"d{block}", name], [f"c{block}"]),
        ]
        name = f"c{block}"
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ("batch", 4)) for end in ("x", name)]
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), "f4"), "w")
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_graph_is_drawn_with_every_box_and_edge(residual: Path, theme: Any) -> None:
    picture = graph_figure(residual, theme=theme)
    axes = picture.axes[0]
    boxes = bars(axes)
    assert len(boxes) == 30
    assert sum(isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 2 + 9 * 5
    assert picture.finding == "g.onnx: 40 nodes in 30 chains, 20 one after another."
    frames = [box.get_bbox() for box in boxes]
    assert not any(one.overlaps(other) for at, one in enumerate(frames) for other in frames[:at])
    inside = axes.viewLim
    assert all(inside.containsx(x) and inside.containsy(y) for frame in frames for x, y in frame.corners())
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("Tanh\nMatMul") == texts.count("Exp") == texts.count("Sum") == 10
    assert imread(io.BytesIO(picture.png()))[0, 0, :3] == pytest.approx(to_rgb(GROUND[theme]), abs=0.01)


def test_text_stays_in_its_box(residual: Path) -> None:
    graph = onnx.load(residual)
    graph.graph.node[0].op_type = "AnOperatorWithAVeryLongName"
    onnx.save(graph, residual)
    picture = graph_figure(residual)
    picture.draw_without_rendering()
    axes = picture.axes[0]
    for box, text in zip(bars(axes), axes.texts, strict=True):
        frame, extent = box.get_window_extent(), text.get_window_extent()
        assert frame.x0 <= extent.x0
        assert extent.x1 <= frame.x1
        assert frame.y0 <= extent.y0
        assert extent.y1 <= frame.y1


def test_a_large_graph_becomes_a_strip(residual: Path) -> None:
    picture = graph_figure(residual, limit=5)
    assert picture.finding == "g.onnx: 40 nodes in 20 stretches, 20 one after another."
    assert any(text.get_text() == "Tanh\nMatMul\nExp" for text in picture.axes[0].texts)
