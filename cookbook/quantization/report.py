"""What came out of quantization: the graph, and in words what runs in eight bits and what does not (lesson 05)."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cookbook.environment import instruction_sets
from cookbook.errors import UsageError
from cookbook.quantization.annotation import SUMMARY
from cookbook.quantization.graphs import QuantizableGraph
from cookbook.quantization.onnx_file import export_quantized
from cookbook.quantization.scheme import Scheme

DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}  # sum products of 8 bits in 32
SATURATION = (
    "This processor sums pairs of 8-bit products in 16 bits (it has no VNNI), where a sum beyond 32,767 is cut: compare "
    "the file's accuracy with this graph's, and if it is lower, use Scheme(reduce_range=True)."
)


@dataclass(frozen=True)
class Report:
    """What was quantized and how.

    Attributes:
        integers: operators in eight bits or fewer, by ATen's name.
        floats: operators left in floats, by ATen's name.
        reasons: why, by the name of the operator in the graph.
        images: from which the ranges were chosen; 0: from none.
        warning: about this processor; empty: nothing to say.
        notes: further sentences, such as what a limit on the accuracy's drop left in floats.
    """

    integers: Mapping[str, int]
    floats: Mapping[str, int]
    reasons: Mapping[str, str]
    images: int
    warning: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = list(dict.fromkeys((*self.integers, *self.floats)))
        width = max(map(len, ("operator", *names)))
        lines = [f"{'operator':<{width}}  integer  float"]
        lines += [f"{name:<{width}}  {self.integers.get(name, 0):>7}  {self.floats.get(name, 0):>5}" for name in names]
        if self.reasons:
            lines.append("left in floats:")
            grouped: dict[str, list[str]] = {}
            for name, reason in self.reasons.items():
                grouped.setdefault(reason, []).append(name)
            for reason, members in grouped.items():
                more = f" and {len(members) - 1} more" if len(members) > 1 else ""
                lines.append(f"  {members[0]}{more}: {reason}")
        return "\n".join([*lines, *self.notes, *filter(None, [self.warning])])


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized model.

    Attributes:
        module: the converted graph: it rounds as the integers will, but computes in floats. It is a simulation, for
            accuracy and comparison; its speed says nothing. Time the exported file.
        scheme: what it was quantized to.
        method: how ranges were chosen, such as ``min-max``, or ``training``.
        report: what was quantized, and why the rest was not.
        example: two images (2, C, H, W), for the export.
    """

    module: QuantizableGraph
    scheme: Scheme
    method: str
    report: Report
    example: Tensor

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write an ONNX file that ONNX Runtime runs with int8 kernels; `cookbook.deploy.kernels` shows which.

        Args:
            path: the file, by custom ``*.onnx``.

        Raises:
            UsageError: the activations have 4 or 6 bits, whose range no QuantizeLinear of 8 bits keeps.
            DeploymentError: as in `cookbook.deploy.export`.
        """
        if self.scheme.activation_bits not in (None, 8):
            raise UsageError(
                f"Activations of {self.scheme.activation_bits} bits cannot be written to a file, whose 8-bit operators would "
                "use the whole range: evaluate the simulation (.module), or use activation_bits=8."
            )
        return export_quantized(self.module, self.example, path)

    def __str__(self) -> str:
        seen = f", over {self.report.images} images" if self.report.images else ""
        return f"{self.scheme}; ranges by {self.method}{seen}\n{self.report}"


def quantized(
    converted: QuantizableGraph, scheme: Scheme, method: str, example: Tensor, *, images: int = 0, notes: tuple[str, ...] = ()
) -> Quantized:
    """Return a converted graph with its report.

    Args:
        converted: from `cookbook.quantization.prepare.convert`.
        scheme: it was prepared with.
        method: how the ranges were chosen, in a word.
        example: images (B, C, H, W); two are kept.
        images: how many the ranges were chosen from.
        notes: further sentences for the report.
    """
    integers, floats, reasons = converted.meta.get(SUMMARY, ({}, {}, {}))
    eight = scheme.activation_bits == 8 and scheme.weight_range[1] > 64
    warning = SATURATION if eight and saturates() else ""
    report = Report(Counter(integers), Counter(floats), dict(reasons), images, warning, notes)
    return Quantized(converted, scheme, method, report, example[:1].detach().repeat_interleave(2, 0))


def saturates() -> bool:
    """Say whether this processor's kernels for unsigned times signed bytes sum two products in 16 bits.

    x86 without VNNI does, with the instruction ``vpmaddubsw``
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html); Arm widens to 32 bits.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and not DOT_PRODUCTS & set(instruction_sets())
