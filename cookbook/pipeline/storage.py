"""An ONNX file, entropy-coded: smaller to store and to send, the same file again to run (lesson 08)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from cookbook.errors import CheckpointError, UsageError
from cookbook.files import atomic_path
from cookbook.measure.size import read_onnx
from cookbook.quantization.packing import load_packed, save_packed

DIGEST = "sha256"
GRAPH, WEIGHTS = "graph", "weights"


def pack_onnx(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write an ONNX file entropy-coded, atomically; `unpack_onnx` gives it back byte for byte.

    The int8 weights of all layers, most of which are near zero, become one sequence, and everything else another; both
    are compressed by zstandard, whose entropy coder is a table-based Huffman coder for literals
    (https://www.rfc-editor.org/rfc/rfc8878). It is the last step of Deep Compression (Han et al., arXiv 1510.00149);
    no accuracy is lost, and no time is saved in a runtime, which needs the plain file.

    Args:
        source: an ONNX file with its weights inside.
        path: of the packed file.

    Raises:
        DeploymentError: the source is not readable as ONNX.
        UsageError: the source cannot be restored byte for byte, because another library wrote it.
    """
    source = Path(source)
    content = source.read_bytes()
    model = read_onnx(source)
    weights = []
    for tensor in _narrow(model):
        weights.append(np.frombuffer(tensor.raw_data, np.int8))
        tensor.ClearField("raw_data")
    parts = {GRAPH: _as_tensor(model.SerializeToString())}
    if weights:
        parts[WEIGHTS] = torch.from_numpy(np.concatenate(weights))
    if _restored(parts) != content:
        raise UsageError(f"{source} cannot be restored byte for byte from its parts: write it with onnx.save first.")
    digest = hashlib.sha256(content).hexdigest()
    return save_packed(parts, path, coding="entropy", metadata={DIGEST: digest})


def unpack_onnx(packed: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write the ONNX file that `pack_onnx` packed, byte for byte, atomically.

    Raises:
        CheckpointError: the packed file is missing, damaged, or holds no ONNX file.
    """
    parts, metadata = load_packed(packed)
    if GRAPH not in parts or DIGEST not in metadata:
        raise CheckpointError(f"{packed} holds no ONNX file: pass one that pack_onnx wrote.")
    content = _restored(parts)
    if hashlib.sha256(content).hexdigest() != metadata[DIGEST]:
        raise CheckpointError(f"{packed} does not give back the file that was packed: pack it again.")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _restored(parts: dict[str, Tensor]) -> bytes:
    """Return the bytes of the file whose parts these are."""
    model = onnx.ModelProto.FromString(parts[GRAPH].numpy().tobytes())
    weights = parts[WEIGHTS].numpy().tobytes() if WEIGHTS in parts else b""
    start = 0
    for tensor in _narrow(model):
        length = int(np.prod(tensor.dims, dtype=np.int64))
        tensor.raw_data = weights[start : start + length]
        start += length
    return model.SerializeToString()


def _narrow(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [
        tensor for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and not tensor.int32_data
    ]  # fmt: skip


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
