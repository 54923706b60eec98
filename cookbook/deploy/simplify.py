"""Simplifying an exported graph, and refusing a result that is not the same model (lesson 07)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor

from cookbook.deploy.export import strip_metadata
from cookbook.deploy.graph import Value, graph_values, operator_counts, opset, ranked, read_graph
from cookbook.deploy.operators import QUANTIZERS
from cookbook.deploy.parity import Parity, compare
from cookbook.deploy.runtime import Runtime
from cookbook.deploy.sessions import first_line
from cookbook.errors import DeploymentError, UsageError
from cookbook.files import atomic_path
from cookbook.measure import bytes_on_disk

TOLERANCE = 1e-4  # of the output's scale: far above the rounding of folded constants, far below one step of int8
BATCH = 3  # random images when none are passed: odd, and not what an exporter traced


@dataclass(frozen=True)
class Simplification:
    """What a simplifier did to a file.

    Attributes:
        path: the simplified file.
        simplifier: ``onnxslim`` or ``onnxsim``.
        nodes_before: nodes of the original.
        nodes_after: nodes of the simplified file.
        removed: nodes that are gone, by operator, the most frequent first.
        added: nodes that are new, by operator.
        bytes_before: on disk, with side files.
        bytes_after: on disk.
        parity: of the two files on the same images, both run without further optimization.
    """

    path: Path
    simplifier: str
    nodes_before: int
    nodes_after: int
    removed: Mapping[str, int]
    added: Mapping[str, int]
    bytes_before: int
    bytes_after: int
    parity: Parity

    def __str__(self) -> str:
        changes = [
            f"{word} {', '.join(f'{count} {name}' for name, count in changed.items())}"
            for word, changed in (("removed", self.removed), ("added", self.added))
            if changed
        ]
        return (
            f"{self.simplifier} left {self.nodes_after} of {self.nodes_before} nodes "
            f"({'; '.join(changes) or 'nothing changed'}) and {self.bytes_after:,} of {self.bytes_before:,} bytes, with "
            f"outputs within {self.parity.largest:.1e} of their scale."
        )


def simplify(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    simplifier: Literal["onnxslim", "onnxsim"] = "onnxslim",
    images: Tensor | None = None,
) -> Simplification:
    """Fold constants and remove redundant nodes from an ONNX file, and prove that it is still the same model.

    Beside the answers, what must stay: the numbers of quantizing nodes, inputs and outputs with
    their names and shapes (so also the free batch), and the opset. Weights end up inside the file.
    The simplifiers are OnnxSlim (https://github.com/inisis/OnnxSlim) and ONNX Simplifier
    (https://github.com/onnxsim/onnxsim).

    Args:
        path: the file, with one input and one output.
        out: where the result goes; None replaces `path`.
        simplifier: which of the two.
        images: to compare answers on, as the file takes them; None: three of standard normal noise.

    Raises:
        DeploymentError: the file cannot be loaded or run, the simplifier fails, or its result is
            another model; `path` and `out` stay as they were.
        UsageError: no such simplifier, or the file does not say what its images look like and none are passed.
    """
    if simplifier not in SIMPLIFIERS:
        raise UsageError(f"The simplifier is {simplifier!r}: use {' or '.join(map(repr, SIMPLIFIERS))}.")
    path, destination = Path(path), Path(path if out is None else out)
    before = Runtime(path, optimize=False)
    if images is None:
        images = _noise(before)
    original = read_graph(path, weights=True)
    reference = before(images)
    try:
        result = SIMPLIFIERS[simplifier](original)
    except Exception as error:  # two libraries with errors of every kind
        raise DeploymentError(f"{simplifier} fails on {path} ({first_line(error)}): ship the file as it is.") from error
    original = read_graph(path)  # a simplifier may have worked in place
    strip_metadata(result)
    _check_structure(original, result, simplifier, path)
    bytes_before = bytes_on_disk(path)
    with atomic_path(destination) as temporary:
        onnx.save(result, temporary)
        outcome = _check_answers(reference, temporary, images, simplifier, path)
    counts = Counter(operator_counts(original)), Counter(operator_counts(result))
    return Simplification(
        path=destination,
        simplifier=simplifier,
        nodes_before=counts[0].total(),
        nodes_after=counts[1].total(),
        removed=ranked((counts[0] - counts[1]).elements()),
        added=ranked((counts[1] - counts[0]).elements()),
        bytes_before=bytes_before,
        bytes_after=bytes_on_disk(destination),
        parity=outcome,
    )


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim  # imported when used: each takes longer to load than the rest of this package

    return onnxslim.slim(model)


def _sim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(model)[0]


SIMPLIFIERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"onnxslim": _slim, "onnxsim": _sim}


def _noise(runtime: Runtime) -> Tensor:
    """Return images of standard normal noise that the file takes: three, or its own fixed number."""
    fixed = runtime.input_shape[0] if runtime.input_shape else None
    shape = runtime.sample_shape(fixed if isinstance(fixed, int) else BATCH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _check_structure(original: onnx.ModelProto, result: onnx.ModelProto, simplifier: str, path: Path) -> None:
    """Refuse a result that differs in what a user or a runtime relies on."""
    counts = [operator_counts(model) for model in (original, result)]
    facts = [(f"number of {name} nodes", *(count.get(name, 0) for count in counts)) for name in QUANTIZERS]
    facts.append(("opset", opset(original), opset(result)))
    inputs, outputs = [[graph_values(getattr(model.graph, end)) for model in (original, result)] for end in ("input", "output")]
    facts.append(("input", *map(_listed, inputs)))
    if not _still_says(*outputs):
        facts.append(("output", *map(_listed, outputs)))
    for what, ours, theirs in facts:
        if ours != theirs:
            raise DeploymentError(
                f"{simplifier} changed the {what} of {path} from {ours} to {theirs}: it is refused, ship the file as it is."
            )


def _still_says(before: Mapping[str, Value], after: Mapping[str, Value]) -> bool:
    """Say whether what was known of the outputs is still true: sizes may become known, but the batch stays free."""
    if list(before) != list(after):
        return False
    for old, new in zip(before.values(), after.values(), strict=True):
        if old.dtype != new.dtype or (old.shape and len(old.shape) != len(new.shape)):
            return False
        for position, (size, other) in enumerate(zip(old.shape, new.shape, strict=False)):
            if size != other and (isinstance(size, int) or (position == 0 and isinstance(other, int))):
                return False
    return True


def _listed(values: Mapping[str, Value]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _check_answers(reference: Tensor, temporary: Path, images: Tensor, simplifier: str, path: Path) -> Parity:
    """Compare the answers of the two files, and refuse another model's."""
    try:
        outcome = compare(reference, Runtime(temporary, optimize=False)(images))
    except (DeploymentError, UsageError) as error:
        raise DeploymentError(
            f"What {simplifier} made of {path} does not run as before ({first_line(error)}): it is refused, ship the file "
            "as it is."
        ) from error
    if not (outcome.largest <= TOLERANCE and outcome.agreement == 1):  # false for NaN too
        raise DeploymentError(f"{simplifier} changed what {path} computes ({outcome}): it is refused, ship the file as it is.")
    return outcome
