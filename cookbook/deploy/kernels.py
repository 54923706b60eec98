"""Which kernels run: the graph that ONNX Runtime made of a file, and what of it computes in eight bits (lesson 07)."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from cookbook.deploy.graph import operator_counts, ranked, read_graph
from cookbook.deploy.islands import Island, float_islands
from cookbook.deploy.operators import (
    CONVERSIONS,
    FAMILIES,
    QUANTIZERS,
    canonical,
    data_input,
    element_types,
    family,
    label,
    precision,
)
from cookbook.deploy.sessions import open_session, session_options

FOLDED = ("Constant", "Identity")  # vanish whatever the kernels are
ERRORS_ONLY = 3  # of ONNX Runtime's levels of severity


@dataclass(frozen=True)
class Coverage:
    """How many nodes of one family compute in eight bits.

    Attributes:
        int8: nodes in eight bits.
        total: nodes in eight bits or in floats.
        kernels: all of these nodes by operator, as ONNX Runtime names it.
    """

    int8: int
    total: int
    kernels: Mapping[str, int]

    @property
    def share(self) -> float:
        """Share in eight bits, 0 to 1."""
        return self.int8 / self.total


@dataclass(frozen=True)
class KernelReport:
    """What ONNX Runtime runs for a file on this machine's CPU.

    Attributes:
        path: the file.
        original: nodes of the file by operator.
        optimized: nodes that run, by operator; ``(blocked)`` marks channels in blocks of 8 or 16.
        int8: of these, what works on eight-bit integers.
        floating: what works on floats.
        conversions: nodes that only change the type or the layout of numbers.
        fused: what one node does that was several before, such as ``Conv + Add + Relu``, and how often.
        absorbed: original nodes, by operator, that have no node of their own any more; constants are left out.
        coverage: by family of compute operators, such as ``conv``, where the model has any.
        islands: float nodes in a quantized model, each with the reason.
        quantized: whether anything in the model is quantized.
    """

    path: Path
    original: Mapping[str, int]
    optimized: Mapping[str, int]
    int8: Mapping[str, int]
    floating: Mapping[str, int]
    conversions: Mapping[str, int]
    fused: Mapping[str, int]
    absorbed: Mapping[str, int]
    coverage: Mapping[str, Coverage]
    islands: tuple[Island, ...]
    quantized: bool

    def __str__(self) -> str:
        lines = [f"{self.path.name}: {sum(self.original.values())} nodes became {sum(self.optimized.values())}"]
        lines.append(f"{'family':<13}  int8  float  coverage  kernels")
        for name, row in self.coverage.items():
            share = f"{row.share:.0%}"
            lines.append(f"{name:<13}  {row.int8:>4}  {row.total - row.int8:>5}  {share:>8}  {_listed(row.kernels)}")
        for title, counts in (("conversions", self.conversions), ("fused", self.fused), ("absorbed", self.absorbed)):
            lines.append(f"{title}: {_listed(counts) or 'none'}")
        if self.quantized:
            lines.append("float islands:" + ("" if self.islands else " none"))
            lines += [f"  {island}" for island in self.islands]
        return "\n".join(lines)


def kernels(path: str | os.PathLike[str], *, threads: int = 1) -> KernelReport:
    """Tell which kernels ONNX Runtime's CPU provider runs for a file, from the graph that it made of it.

    The answer holds for this machine: with other instructions ONNX Runtime chooses other layouts.
    The graph comes from the session's own ``optimized_model_filepath``
    (https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html).

    Args:
        path: the file.
        threads: of the session, as in `Runtime`.

    Raises:
        DeploymentError: the file or a side file is missing, or ONNX Runtime cannot load it.
        UsageError: fewer than one thread.
    """
    original, optimized = read_graph(path), optimized_graph(path, threads=threads)
    types = element_types(optimized)
    by_precision: dict[str, list[str]] = {"int8": [], "float": [], "other": []}
    conversions = []
    members: dict[str, list[tuple[str, str]]] = {name: [] for name in FAMILIES}
    for node in optimized.graph.node:
        kind = precision(node.op_type, types.get(data_input(node), 0))
        by_precision[kind].append(label(node))
        if node.op_type in CONVERSIONS:
            conversions.append(node.op_type)
        group = family(node.op_type)
        if group is not None and kind != "other":
            members[group].append((kind, label(node)))
    before = operator_counts(original)
    quantized = bool(by_precision["int8"]) or any(name in before for name in QUANTIZERS)
    return KernelReport(
        path=Path(path),
        original=before,
        optimized=ranked(label(node) for node in optimized.graph.node),
        int8=ranked(by_precision["int8"]),
        floating=ranked(by_precision["float"]),
        conversions=ranked(conversions),
        fused=_fused(before, optimized),
        absorbed=_absorbed(before, optimized),
        coverage={
            name: Coverage(sum(kind == "int8" for kind, _ in rows), len(rows), ranked(kernel for _, kernel in rows))
            for name, rows in members.items()
            if rows
        },
        # layouts do not change what is int8, but rename nodes and put others between them
        islands=tuple(float_islands(optimized_graph(path, threads=threads, layouts=False))) if quantized else (),
        quantized=quantized,
    )


def optimized_graph(path: str | os.PathLike[str], *, threads: int = 1, layouts: bool = True) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime's CPU provider runs for a file on this machine.

    Args:
        path: the file.
        threads: of the session.
        layouts: with the last step, which arranges channels for this machine; without, nodes keep their names.

    Raises:
        DeploymentError: the file or a side file is missing, or ONNX Runtime cannot load it.
        UsageError: fewer than one thread.
    """
    options = session_options(threads)
    if not layouts:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # ONNX Runtime warns that a graph with this machine's layouts must not be shipped; this one is read and deleted.
    options.log_severity_level = ERRORS_ONLY
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(written)
        open_session(path, options)
        return read_graph(written)


def _fused(original: Mapping[str, int], optimized: onnx.ModelProto) -> dict[str, int]:
    """Count the nodes that took over others' work, as far as they say so themselves."""
    found = []
    for node in optimized.graph.node:
        operator = canonical(node.op_type)
        parts = [operator]
        if operator == "Conv" and not node.op_type.startswith("QLinear") and len(node.input) > 3 and node.input[3]:
            parts.append("Add")  # a sum as fourth input
        parts += [attribute.s.decode() for attribute in node.attribute if attribute.name == "activation" and attribute.s]
        if len(parts) > 1 or (family(operator) is not None and operator not in original):
            found.append(" + ".join(parts))
    return ranked(found)


def _absorbed(original: Mapping[str, int], optimized: onnx.ModelProto) -> dict[str, int]:
    """Count the original nodes beyond those that still run, by operator."""
    left = Counter(original) - Counter(canonical(node.op_type) for node in optimized.graph.node)
    return {name: count for name, count in ranked(left.elements()).items() if name not in FOLDED}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in counts.items())
