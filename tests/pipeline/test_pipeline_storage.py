"""Entropy-coded ONNX files: the same bytes back, fewer in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cookbook.deploy import Runtime
from cookbook.errors import CheckpointError, DeploymentError, UsageError
from cookbook.pipeline import pack_onnx, unpack_onnx
from cookbook.quantization.packing import save_packed


def write_model(path: Path, spread: float = 6.0) -> Path:
    """Write a graph with an int8 matrix of normally distributed weights, as a quantized layer has."""
    integers = np.clip(np.rint(np.random.RandomState(0).normal(0, spread, (64, 200))), -127, 127).astype(np.int8)
    constants = [
        numpy_helper.from_array(integers, "integers"),
        numpy_helper.from_array(np.float32(0.01), "scale"),
        helper.make_tensor("zero", TensorProto.INT8, (), [0]),  # in int32_data, as helpers write scalars
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["weights"]),
        helper.make_node("MatMul", ["images", "weights"], ["logits"]),
    ]
    sizes = {"images": 64, "logits": 200}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", size]) for name, size in sizes.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_the_file_comes_back_byte_for_byte_and_runs(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain.onnx")
    packed = pack_onnx(plain, tmp_path / "model.packed")
    restored = unpack_onnx(packed, tmp_path / "restored.onnx")
    assert restored.read_bytes() == plain.read_bytes()
    images = torch.rand(2, 64)
    assert torch.equal(Runtime(restored)(images), Runtime(plain)(images))


@pytest.mark.parametrize("spread", [2.0, 6.0])
def test_the_packed_file_is_near_the_entropy_of_its_weights(tmp_path: Path, spread: float) -> None:
    plain = write_model(tmp_path / "plain.onnx", spread)
    values = numpy_helper.to_array(onnx.load(plain).graph.initializer[0])
    shares = np.unique(values, return_counts=True)[1] / values.size
    entropy = -(shares * np.log2(shares)).sum() * values.size / 8  # Shannon's bound, in bytes
    packed = pack_onnx(plain, tmp_path / "model.packed").stat().st_size
    assert entropy < packed < 1.05 * entropy + 700


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    packed = pack_onnx(write_model(tmp_path / "plain.onnx"), tmp_path / "model.packed")
    content = bytearray(packed.read_bytes())
    content[-5] ^= 1
    packed.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        unpack_onnx(packed, tmp_path / "x.onnx")
    save_packed({"other": torch.zeros(3)}, packed)
    with pytest.raises(CheckpointError, match="holds no ONNX file"):
        unpack_onnx(packed, tmp_path / "x.onnx")
    save_packed({"graph": torch.zeros(0, dtype=torch.uint8)}, packed, metadata={"sha256": "0"})
    with pytest.raises(CheckpointError, match="does not give back"):
        unpack_onnx(packed, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
    (tmp_path / "plain.onnx").write_bytes(b"no graph")
    with pytest.raises(DeploymentError, match="not a readable ONNX"):
        pack_onnx(tmp_path / "plain.onnx", packed)


def test_a_file_that_would_not_come_back_is_refused(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain.onnx")
    plain.write_bytes(plain.read_bytes() + b"\x08\x0a")  # the field ir_version for a second time
    with pytest.raises(UsageError, match="byte for byte"):
        pack_onnx(plain, tmp_path / "model.packed")
