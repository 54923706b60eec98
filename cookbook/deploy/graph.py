"""Reading ONNX graphs: which operators, of which opset, with how many bytes of weights (lesson 07)."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import onnx

from cookbook.errors import DeploymentError
from cookbook.measure.size import read_onnx

DEFAULT_DOMAINS = ("", "ai.onnx")


class Value(NamedTuple):
    """What goes into a graph or comes out of it.

    Attributes:
        dtype: such as ``float32``.
        shape: a name stands for a size that is free, ``?`` for one without a name.
    """

    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphSummary:
    """What an ONNX file holds.

    Attributes:
        path: the file.
        operators: number of nodes by operator, the most frequent first; those inside control flow count.
        opset: version of the standard operators.
        inputs: by name.
        outputs: by name.
        parameter_bytes: of all stored tensors, wherever they are stored.
    """

    path: Path
    operators: Mapping[str, int]
    opset: int
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    parameter_bytes: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.operators.values())

    def __str__(self) -> str:
        ends = [f"{name}: {value}" for name, value in self.inputs.items()]
        ends += [f"→ {name}: {value}" for name, value in self.outputs.items()]
        lines = [f"{self.path.name}: {self.nodes} nodes, opset {self.opset}, {self.parameter_bytes:,} bytes of weights", *ends]
        width = max((len(name) for name in self.operators), default=0)
        return "\n".join([*lines, *(f"{name:<{width}}  {count:>5}" for name, count in self.operators.items())])


def graph_summary(path: str | os.PathLike[str]) -> GraphSummary:
    """Return what an ONNX file holds, as it is written; `kernels` tells what a runtime makes of it.

    Raises:
        DeploymentError: the file is missing or not readable as ONNX.
    """
    model = read_graph(path)
    return GraphSummary(
        path=Path(path),
        operators=operator_counts(model),
        opset=opset(model),
        inputs=graph_values(model.graph.input),
        outputs=graph_values(model.graph.output),
        parameter_bytes=sum(map(_bytes, _tensors(model))),
    )


def read_graph(path: str | os.PathLike[str], *, weights: bool = False) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Args:
        path: the file.
        weights: read side files with external data too.

    Raises:
        DeploymentError: the file is missing or not readable as ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise DeploymentError(f"{path} does not exist: export the model first.")
    return read_onnx(path, weights=weights)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a graph, also of the graphs inside its control flow."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_of(inner)


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of nodes by operator, the most frequent first, then by name."""
    return ranked(node.op_type for node in nodes_of(model.graph))


def ranked(names: Iterable[str]) -> dict[str, int]:
    """Count the names; the most frequent comes first, equal ones by name."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators, or 0 when the model declares none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def graph_values(values: Iterable[onnx.ValueInfoProto]) -> dict[str, Value]:
    """Return dtype and shape of inputs or outputs by name."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in tensor.shape.dim)
        found[value.name] = Value(dtype_name(tensor.elem_type), shape)
    return found


def dtype_name(element_type: int) -> str:
    """Return NumPy's name of an ONNX element type, such as ``float32``."""
    return str(onnx.helper.tensor_dtype_to_np_dtype(element_type))


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in nodes_of(model.graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.g.initializer


def _bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a tensor's elements, which need not be loaded."""
    packed = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)  # two to a byte
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    elements = math.prod(tensor.dims)
    return (elements + 1) // 2 if packed else elements * size
