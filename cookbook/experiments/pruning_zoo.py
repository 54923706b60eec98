"""Torchvision's classifiers with half of their multiplications, all the way to a served file (lesson 04).

    python -m cookbook.experiments.pruning_zoo
    python -m cookbook.experiments.pruning_zoo --models resnet18 vit_b_16 --size 64
    COOKBOOK_PROFILE=full python -m cookbook.experiments.pruning_zoo --record

Each model gets random weights, loses channels until half of its multiply-accumulates are left, is stored and loaded
by its widths, exported, run in ONNX Runtime at two batch sizes, compared with torch, and timed in turns with the unpruned
model. Nothing is downloaded. The exit status is 1 if a step fails. ``--record`` keeps the figures in the committed ledger,
from where the lesson shows them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cookbook.deploy import Runtime, export
from cookbook.deploy.parity import compare
from cookbook.errors import CookbookError, DeploymentError, UsageError
from cookbook.evidence import BenchRatio, Ledger, Table
from cookbook.evidence.tables import MISSING, NOTHING_RECORDED
from cookbook.experiments.command import require_profile, run
from cookbook.files import atomic_path
from cookbook.measure import Ratio, count_macs, count_parameters, interleave, pinned_threads, speedup
from cookbook.models import TorchvisionConfig, eval_mode, load, save
from cookbook.models.random_weights import random_model
from cookbook.progress import progress_bar
from cookbook.pruning import MACs, prune

MODELS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "googlenet", "regnet_y_400mf",
    "squeezenet1_1", "convnext_tiny", "vit_b_16",
)  # fmt: skip
STEPS = ("prune", "forward", "store", "export", "parity", "time")
RECORDED = "pruned by operations, torchvision's {name}, batch 1"
CLASSES = 100
IMAGES = 7  # odd, so that a batch size that was baked in shows
CLOSE = 1e-3  # of the logits' scale: hundreds of float32's rounding errors, and far less than what parts two classes
DISTINCT = 0.01  # of the logits' scale: what must lie between images, or any comparison would pass


@dataclass(frozen=True)
class ZooRow:
    """How far one model came.

    Attributes:
        name: as torchvision calls it.
        size: height and width of the images, in pixels.
        macs: share of the multiply-accumulates that remains; None: it was not pruned.
        parameters: share of the parameters that remains.
        narrowed: convolutions and linear layers that have fewer output channels, and all of them.
        steps: those that were passed, in order.
        stopped: the step that was not, with the sentence that says why; empty: none.
        speed: of one image in ONNX Runtime, over the unpruned model's.
    """

    name: str
    size: int
    macs: float | None = None
    parameters: float | None = None
    narrowed: tuple[int, int] | None = None
    steps: tuple[str, ...] = ()
    stopped: str = ""
    speed: Ratio | None = None


def prune_model(name: str, *, size: int = 224, share: float = 0.5, multiple: int = 16, rounds: int = 20) -> ZooRow:
    """Take one model from random weights to a pruned, served file, on one thread; an exception becomes part of the row.

    All files lie in a temporary folder that is removed before this returns.

    Args:
        name: of a torchvision classifier.
        size: height and width of the images, in pixels.
        share: of the multiply-accumulates that shall remain, within 10 %.
        multiple: what is left of the channels is a multiple of this.
        rounds: samples of each latency.
    """
    with tempfile.TemporaryDirectory(prefix="cookbook-pruning-") as folder, pinned_threads(1):
        trial = _Trial(name, size, Path(folder))
        try:
            trial.run(share, multiple, rounds)
        except Exception as error:  # of any library on the way: the row says what failed, and the others go on
            said = " ".join(str(error).split()) or "no message"
            sentence = said if isinstance(error, CookbookError) else f"{type(error).__name__}: {said}"
            return trial.row(stopped=f"{trial.step}: {sentence}")
    return trial.row()


def zoo_table(rows: Iterable[ZooRow]) -> Table:
    """Return one row a model; what did not pass is explained below the table."""
    rows = list(rows)
    cells = [
        (
            row.name,
            MISSING if row.macs is None else f"{row.macs:.3f}",
            MISSING if row.parameters is None else f"{row.parameters:.3f}",
            MISSING if row.narrowed is None else "{} of {}".format(*row.narrowed),
            MISSING if row.speed is None else str(row.speed),
            *(_outcome(row, step) for step in STEPS),
        )
        for row in rows
    ]
    sizes = ", ".join(f"{size} × {size}" for size in sorted({row.size for row in rows}))
    note = [
        f"Random weights, images of {sizes} pixels. MACs, parameters: share that remains.",
        "narrowed: convolutions and linear layers that have fewer output channels, of all.",
        f"parity: ONNX Runtime's logits lie within {CLOSE:g} of their spread of torch's, at batch 1 and {IMAGES}.",
        *(f"Failure: {row.name}, {row.stopped}" for row in rows if row.stopped),
        f"{sum(not row.stopped for row in rows)} of {len(rows)} models passed.",
    ]
    return Table(("model", "MACs", "parameters", "narrowed", "speed, batch 1", *STEPS), cells, "\n".join(note), "Pruning zoo")


def bench_ratios(rows: Iterable[ZooRow]) -> list[BenchRatio]:
    """Return what is recorded of the models that were timed: the speed, with the shares that remain among its values."""
    return [
        BenchRatio(
            name=RECORDED.format(name=row.name), baseline="unpruned", candidate="pruned", ratio=row.speed,
            what=f"speed at {row.size} × {row.size} pixels on one thread in ONNX Runtime",
            values={"macs_ratio": row.macs, "parameters_ratio": row.parameters},
        )
        for row in rows
        if row.speed is not None and row.macs is not None and row.parameters is not None
    ]  # fmt: skip


def recorded_table(ledger: Ledger) -> Table:
    """Return the newest recorded figures of each model in a ledger; a model without any has no row."""
    newest = {row.name: row for row in ledger.bench()}
    found = {name: newest[RECORDED.format(name=name)] for name in MODELS if RECORDED.format(name=name) in newest}
    cells = [
        (name, f"{row.values['macs_ratio']:.2f}", f"{row.values['parameters_ratio']:.2f}", str(row.ratio))
        for name, row in found.items()
    ]
    machines = sorted({f"{row.provenance.processor}, {row.what}" for row in found.values()})
    note = f"Measured on {'; '.join(machines)}." if cells else NOTHING_RECORDED
    return Table(("model", "MACs", "parameters", "speed, batch 1"), cells, note, "Torchvision's models, pruned by operations")


class _Trial:
    """One model on its way; `step` is the one under way."""

    def __init__(self, name: str, size: int, folder: Path) -> None:
        self.name, self.size, self._folder = name, size, folder
        self.step = STEPS[0]
        self._passed: list[str] = []
        self._figures: tuple[float, float, tuple[int, int]] | None = None
        self._speed: Ratio | None = None

    def run(self, share: float, multiple: int, rounds: int) -> None:
        """Go through all steps.

        Raises:
            Exception: whatever stops the step that `step` names.
        """
        images = torch.randn(IMAGES, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))
        whole = random_model(self.name, self.size, classes=CLASSES)
        result = prune(whole, images[:2], target=MACs(share, tolerance=0.1), multiple=multiple)
        narrowed = sum(before != after for before, after in result.widths.values()), len(result.widths)
        macs = count_macs(result.model, images) / count_macs(whole, images)
        self._figures = macs, count_parameters(result.model) / count_parameters(whole), narrowed
        self._next("forward")
        logits = _logits(result.model, images)
        apart = (logits.std(0).mean() / logits.std()).item()
        if logits.shape != (IMAGES, CLASSES) or not apart > DISTINCT:  # also when it is not a number
            raise DeploymentError(
                f"Logits of shape {tuple(logits.shape)} of which {apart:.1e} lies between images compare nothing."
            )
        self._next("store")
        stored = load(save(result.model, self._folder / "model.safetensors"))
        if not torch.equal(_logits(stored, images), logits):
            raise DeploymentError("The model that was loaded answers otherwise than the one that was saved.")
        self._next("export")
        runtime = Runtime(export(result.model, images, self._folder / "model.onnx"), threads=1)
        self._next("parity")
        for batch in (1, IMAGES):
            difference = compare(logits[:batch], runtime(images[:batch])).largest
            if not difference <= CLOSE:
                raise DeploymentError(f"The logits differ by {difference:.1e} of their scale: at most {CLOSE:g} was expected.")
        self._next("time")
        unpruned = Runtime(export(whole, images, self._folder / "whole.onnx"), threads=1)
        calls = {"unpruned": partial(unpruned, images[:1]), "pruned": partial(runtime, images[:1])}
        timings = interleave(calls, batch=1, rounds=rounds, threads=1, device="cpu")
        self._speed = speedup(timings["unpruned"], timings["pruned"])
        self._passed.append(self.step)

    def row(self, *, stopped: str = "") -> ZooRow:
        """Return what is known by now."""
        macs, parameters, narrowed = self._figures or (None, None, None)
        return ZooRow(self.name, self.size, macs, parameters, narrowed, tuple(self._passed), stopped, self._speed)

    def _next(self, step: str) -> None:
        self._passed.append(self.step)
        self.step = step


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with eval_mode(model), torch.inference_mode():
        return model(images)


def _outcome(row: ZooRow, step: str) -> str:
    if step in row.steps:
        return "pass"
    return "fail" if row.stopped.startswith(f"{step}: ") else MISSING


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        UsageError: an argument cannot work.
        CookbookError: a step failed.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="image classifiers of torchvision")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, in pixels")
    parser.add_argument("--share", type=float, default=0.5, help="of the multiply-accumulates that shall remain")
    parser.add_argument("--multiple", type=int, default=16, help="of which the remaining channels are a multiple")
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each latency")
    parser.add_argument("--record", action="store_true", help="keep the figures in the committed ledger")
    options = parser.parse_args(arguments)
    if options.record:
        require_profile(rehearse=False)
    if options.size < 1:
        raise UsageError(f"--size is {options.size}: use a number of pixels, such as 224.")
    MACs(options.share)
    for name in options.models:
        TorchvisionConfig(name)
    rows = []
    with progress_bar("models", len(options.models)) as advance:
        for name in options.models:
            settings = {"size": options.size, "multiple": options.multiple, "rounds": options.rounds}
            rows.append(prune_model(name, share=options.share, **settings))
            advance(name)
    table = zoo_table(rows)
    print(table)
    if options.out is not None:
        with atomic_path(options.out) as temporary:
            temporary.write_text(f"{table.to_markdown()}\n", encoding="utf-8")
        print(f"{options.out} written.")
    if options.record:
        ledger = Ledger.recorded()
        for ratio in bench_ratios(rows):
            ledger.append(ratio)
        print(f"Written to {ledger.path}.")
    failures = [f"{row.name}, {row.stopped}" for row in rows if row.stopped]
    if failures:
        raise CookbookError(f"{len(failures)} of {len(rows)} models failed, first {failures[0]}")


if __name__ == "__main__":
    run(main)
