"""Bytes on disk of everything that must be shipped (lesson 00)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from cookbook.errors import DeploymentError, UsageError


def bytes_on_disk(*paths: str | os.PathLike[str]) -> int:
    """Return the summed length in bytes of the files, each counted once.

    Args:
        paths: files, and folders with everything below them. An ``.onnx`` file brings its side
            files with external data (https://onnx.ai/onnx/repo-docs/ExternalData.html).

    Raises:
        UsageError: no path is given.
        DeploymentError: a file or a side file is missing, or an ``.onnx`` file is damaged.
    """
    if not paths:
        raise UsageError("There is nothing to weigh: name at least one file or folder.")
    files: dict[Path, int] = {}
    for path in map(Path, paths):
        for file in _files(path):
            files[file.resolve()] = file.stat().st_size
    return sum(files.values())


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for inside in path.rglob("*"):
            if not inside.is_dir():
                yield from _files(inside)
        return
    if not path.is_file():
        raise DeploymentError(f"{path} does not exist, so that it cannot be weighed: export or save it first.")
    yield path
    if path.suffix.lower() == ".onnx":
        for side_file in _side_files(path):
            if not side_file.is_file():
                raise DeploymentError(f"{path} keeps weights in {side_file}, which is missing: ship and weigh both together.")
            yield side_file


def read_onnx(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Args:
        path: a file that exists.
        weights: read side files with external data too.

    Raises:
        DeploymentError: the file is not readable as ONNX.
    """
    damaged = f"{path} is not a readable ONNX model: export it again."
    try:
        model = onnx.load(path, load_external_data=weights)
    except Exception as error:  # protobuf raises its own types, which it does not annotate
        raise DeploymentError(damaged) from error
    if not model.ir_version:  # an empty file, and many another, parses as a model without any field
        raise DeploymentError(damaged)
    return model


def _side_files(path: Path) -> set[Path]:
    model = read_onnx(path)
    tensors = list(_graph_tensors(model.graph))
    for function in model.functions:
        for node in function.node:
            tensors += _node_tensors(node)
    return {path.parent / ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor of a graph, also of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)
