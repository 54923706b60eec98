"""Does the way to a served file work beyond the running model? Torchvision's classifiers say (lesson 07)."""

from __future__ import annotations

import asyncio
import copy
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor

from cookbook.deploy import Runtime, export, parity, parity_suite, simplify
from cookbook.deploy.parity import OUT_OF_RANGE, Parity, compare
from cookbook.errors import CookbookError, DeploymentError
from cookbook.evidence import Table
from cookbook.evidence.tables import MISSING, quantity
from cookbook.measure import bytes_on_disk, pinned_threads
from cookbook.models import eval_mode
from cookbook.models.random_weights import random_model
from cookbook.models.torchvision_models import TorchvisionConfig
from cookbook.progress import progress_bar
from cookbook.serving import MicroBatcher

ZOO = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "squeezenet1_1",
    "shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "googlenet", "mnasnet0_5",
)  # fmt: skip
STEPS = ("logits", "export", "file", "parity", "onnxslim", "onnxsim", "serve")
NEEDED = ("logits", "export")  # without these two there is nothing to look at

CLASSES = 100
IMAGES = 7  # odd, so that a batch size that was baked in shows
CLOSE = 1e-3  # of the logits' scale: hundreds of float32's rounding errors, and far less than what parts two classes
SUMMATION = 30  # times float32's own error: other kernels add in another order, which costs several times as much
DISTINCT = 0.01  # of the logits' scale: what must lie between images, not only between classes

Status = Literal["pass", "limit", "fail", "not reached"]


@dataclass(frozen=True)
class Limit:
    """Something upstream that stops a step.

    Attributes:
        step: one of `STEPS`.
        words: regular expression for what the error says.
        issue: that tracks it, such as ``onnx/onnx#4394``.
        reason: in one sentence without a full stop.
    """

    step: str
    words: str
    issue: str
    reason: str


LIMITS = (
    Limit(
        step="export",
        words=r"2 ?Gi?B|Failed to serialize proto",
        issue="onnx/onnx#4394",
        reason="one protobuf message, and so one ONNX file, holds less than 2 GB",
    ),
)


@dataclass(frozen=True)
class Step:
    """How far one step came.

    Attributes:
        status: ``limit`` where `LIMITS` explains why it failed, ``fail`` where nothing does.
        detail: a figure for the table, or the sentence that says what failed.
    """

    status: Status
    detail: str = ""

    def __str__(self) -> str:
        if self.status == "not reached":
            return MISSING
        return f"{self.status}, {self.detail}" if self.status == "pass" and self.detail else self.status


@dataclass(frozen=True)
class ZooRow:
    """One model on its way from torch to a served file.

    Attributes:
        name: as torchvision calls it.
        size: height and width of the images, in pixels.
        steps: by the names in `STEPS`, in that order.
    """

    name: str
    size: int
    steps: Mapping[str, Step]

    def stopped(self, status: Literal["limit", "fail"]) -> list[str]:
        """Return one sentence for each step that an upstream limit stops, or that fails for no known reason."""
        return [f"{self.name}, {name}: {step.detail}" for name, step in self.steps.items() if step.status == status]


def run_zoo(names: Sequence[str] = ZOO, *, size: int = 224) -> list[ZooRow]:
    """Try every model, one after the other; one that fails does not keep the others from their turn.

    Args:
        names: of torchvision's image classifiers.
        size: height and width of the images, in pixels.

    Raises:
        UsageError: a name is no classifier of torchvision.
    """
    for name in names:
        TorchvisionConfig(name)
    rows = []
    with progress_bar("models", len(names)) as advance:
        for name in names:
            rows.append(try_model(name, size=size))
            advance(name)
    return rows


def try_model(name: str, *, size: int = 224) -> ZooRow:
    """Take one model from random weights to a served file, on one thread; an exception becomes part of the row.

    All files lie in a temporary folder that is removed before this returns.

    Args:
        name: of a torchvision classifier.
        size: height and width of the images, in pixels.
    """
    steps: dict[str, Step] = {}
    with tempfile.TemporaryDirectory(prefix="cookbook-zoo-") as folder, pinned_threads(1):
        trial = _Trial(name, size, Path(folder))
        for step in STEPS:
            if any(steps[needed].status != "pass" for needed in NEEDED if needed in steps):
                steps[step] = Step("not reached")
            else:
                steps[step] = _attempt(step, getattr(trial, step), Path(folder))
    return ZooRow(name, size, steps)


def zoo_table(rows: Iterable[ZooRow]) -> Table:
    """Return one row a model and one column a step; what did not pass is explained below the table."""
    rows = list(rows)
    cells = [(row.name, *(str(row.steps[step]) for step in STEPS)) for row in rows]
    sizes = ", ".join(f"{size} × {size}" for size in sorted({row.size for row in rows}))
    note = [
        f"Random weights, images of {sizes} pixels. logits: share of their spread that lies between images.",
        f"parity: largest difference over all kinds of images, in units of that spread, below {CLOSE:g}, or else explained by",
        "what float32 itself loses against float64, in brackets. Where that too is above the bound on images out of range,",
        "the untrained network amplifies rounding on some of them, and the median image decides.",
        "onnxslim, onnxsim: nodes before and after. serve: batches that the queue made of single images.",
        *(f"Limit: {sentence}" for row in rows for sentence in row.stopped("limit")),
        *(f"Failure: {sentence}" for row in rows for sentence in row.stopped("fail")),
        f"{sum(not row.stopped('fail') for row in rows)} of {len(rows)} models are without an unexplained failure.",
    ]
    return Table(("model", *STEPS), cells, "\n".join(note), "Model zoo")


class _Trial:
    """The steps of one model; each returns the figure for its cell, or raises."""

    def __init__(self, name: str, size: int, folder: Path) -> None:
        self._name, self._size = name, size
        self._path = folder / "model.onnx"
        generator = torch.Generator().manual_seed(1)
        self._images = torch.randn(IMAGES, 3, size, size, generator=generator)

    def logits(self) -> str:
        self._model = random_model(self._name, self._size, classes=CLASSES)
        with eval_mode(self._model), torch.inference_mode():
            self._logits = self._model(self._images)
        share = (self._logits.std(0).mean() / self._logits.std()).item()
        if not share > DISTINCT:  # also when it is not a number
            raise DeploymentError(
                f"Only {share:.1e} of the logits' spread lies between images, so that any comparison would pass: "
                f"more than {DISTINCT} was expected."
            )
        return f"{share:.2f}"

    def export(self) -> str:
        export(self._model, self._images, self._path)
        return ""

    def file(self) -> str:
        onnx.checker.check_model(os.fspath(self._path), full_check=True)
        files = [path.name for path in self._path.parent.iterdir()]
        if files != [self._path.name]:
            raise DeploymentError(f"The export left {', '.join(sorted(files))}: one file was expected.")
        (given,) = onnx.load(self._path, load_external_data=False).graph.input
        if not given.type.tensor_type.shape.dim[0].dim_param:
            raise DeploymentError("The batch has a fixed size: a free one was expected.")
        return quantity(bytes_on_disk(self._path), "B")

    def parity(self) -> str:
        report = parity_suite(self._model, Runtime(self._path), self._images)
        if report.worst.largest < CLOSE:
            return f"{report.worst.largest:.0e}"
        exact = copy.deepcopy(self._model).double()
        with torch.inference_mode():
            rounding = parity_suite(self._model, lambda images: exact(images.double()), self._images)
        chaotic = any(rounding.cases[kind].largest >= CLOSE for kind in OUT_OF_RANGE if kind in rounding.cases)
        for kind, case in report.cases.items():
            lost = rounding.cases[kind]
            # where a gate turns on the last bit of a sum, it is chance which image that hits; most it does not
            by_median = chaotic and kind in OUT_OF_RANGE
            difference, own = (case.typical, lost.typical) if by_median else (case.largest, lost.largest)
            _close(difference, max(CLOSE, SUMMATION * own), f" on images of the kind {kind!r}")
        return f"{report.worst.largest:.0e} ({rounding.worst.largest:.0e})"

    def onnxslim(self) -> str:
        return self._simplified("onnxslim")

    def onnxsim(self) -> str:
        return self._simplified("onnxsim")

    def serve(self) -> str:
        runtime = Runtime(self._path)
        for batch in (1, IMAGES):
            _close(compare(self._logits[:batch], runtime(self._images[:batch])))
        server = MicroBatcher(runtime, max_batch=IMAGES // 2, max_wait=0, queue_size=IMAGES)

        async def answers() -> list[Tensor]:
            async with server:
                return await asyncio.gather(*map(server.submit, self._images))

        with ThreadPoolExecutor(1) as beside:  # a notebook's thread has a running loop already
            _close(compare(self._logits, torch.stack(beside.submit(asyncio.run, answers()).result())))
        return f"{server.batches} batches"

    def _simplified(self, simplifier: Literal["onnxslim", "onnxsim"]) -> str:
        path = self._path.with_name(f"{simplifier}.onnx")
        try:
            result = simplify(self._path, path, simplifier=simplifier, images=self._images)
            _close(parity(self._model, Runtime(path), self._images))
        finally:
            path.unlink(missing_ok=True)
        return f"{result.nodes_before} to {result.nodes_after}"


def _attempt(name: str, action: Callable[[], str], folder: Path) -> Step:
    try:
        return Step("pass", action())
    except Exception as error:  # of any library on the way: the row says which step failed, and the others go on
        said = " ".join(str(error).split()).replace(f"{folder}{os.sep}", "")
        sentence = said if isinstance(error, CookbookError) and said else f"{type(error).__name__}: {said or 'no message'}"
    for limit in LIMITS:
        if limit.step == name and re.search(limit.words, sentence):
            return Step("limit", f"{limit.reason} ({limit.issue}).")
    return Step("fail", sentence)


def _close(difference: Parity | float, allowed: float = CLOSE, where: str = "") -> None:
    """Refuse a difference that is more than rounding.

    Raises:
        DeploymentError: the difference, of a comparison the largest, is above `allowed`, or not a number.
    """
    size = difference.largest if isinstance(difference, Parity) else difference
    if not size <= allowed:
        raise DeploymentError(f"The logits differ by {size:.1e} of their scale{where}: at most {allowed:.0e} was expected.")
