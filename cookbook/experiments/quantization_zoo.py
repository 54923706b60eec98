"""Does int8 work, and pay, beyond the running model? Torchvision's classifiers say (lesson 05).

    python -m cookbook.experiments.quantization_zoo [--size 224] [--rounds 20] [name …]
    COOKBOOK_PROFILE=full python -m cookbook.experiments.quantization_zoo --record

Weights are random, so that nothing is downloaded; what is shown is which kernels run, and how fast. Every file is timed in
turns with the float32 file and with what ONNX Runtime's own tool makes of the same model. ``--record`` keeps the figures in
the committed ledger, from where the lesson shows them.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.deploy import KernelReport, Runtime, export, kernels, parity
from cookbook.environment import processor_name
from cookbook.errors import CookbookError
from cookbook.evidence import BenchRatio, Ledger, Table
from cookbook.evidence.tables import NOTHING_RECORDED
from cookbook.experiments.command import require_profile, run
from cookbook.measure import Ratio, bytes_on_disk, interleave, pinned_threads, speedup
from cookbook.models.random_weights import random_model
from cookbook.models.torchvision_models import TorchvisionConfig
from cookbook.progress import progress_bar
from cookbook.quantization import Quantized, Scheme, convert, freeze_batch_norm, prepare, quantize_on, quantized
from cookbook.quantization.peers import quantize_by_onnxruntime

QUANTIZED = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet", "shufflenet_v2_x1_0",
    "regnet_y_400mf", "squeezenet1_1", "vit_b_16",
)  # fmt: skip
BATCHES = (1, 8)
CALIBRATION = 16  # images
STEPS = 2  # of training
RECORDED = "int8 in ONNX Runtime, torchvision's {name}, batch {batch}"
COLUMNS = (
    "model", "int8 kernels", "after training", "bytes",
    *(f"against float32, batch {batch}" for batch in BATCHES),
    *(f"against quantize_static, batch {batch}" for batch in BATCHES),
    "difference", "of quantize_static",
)  # fmt: skip
RECORDED_COLUMNS = ("model", "int8 kernels", "bytes", *(column for column in COLUMNS if "against" in column))


@dataclass(frozen=True)
class QuantizedRow:
    """One model, quantized in every way.

    Attributes:
        name: as torchvision calls it.
        size: height and width of the images, in pixels.
        kernels: what ONNX Runtime runs for the file after calibration.
        trained: the same after training with rounding.
        bytes: of the int8 file over those of the float32 file.
        against_float: by batch, how many times faster than float32.
        against_static: by batch, how many times faster than the file of ONNX Runtime's own tool.
        difference: mean difference of the logits from float32's, in units of their spread.
        static_difference: the same of the tool's file.
    """

    name: str
    size: int
    kernels: KernelReport
    trained: KernelReport
    bytes: float
    against_float: dict[int, Ratio]
    against_static: dict[int, Ratio]
    difference: float
    static_difference: float


def quantize_zoo(names: Sequence[str] = QUANTIZED, *, size: int = 224, rounds: int = 20) -> list[QuantizedRow]:
    """Quantize, export and time every model on one thread, one after the other.

    Args:
        names: of torchvision's image classifiers.
        size: height and width of the images, in pixels.
        rounds: samples of each latency.

    Raises:
        UsageError: a name is no classifier of torchvision.
        CookbookError: a step fails; the message names the model.
    """
    for name in names:
        TorchvisionConfig(name)
    rows = []
    with progress_bar("models", len(names)) as advance:
        for name in names:
            try:
                rows.append(quantize_one(name, size=size, rounds=rounds))
            except CookbookError as error:
                raise CookbookError(f"{name}: {error}") from error
            advance(name)
    return rows


def quantize_one(name: str, *, size: int = 224, rounds: int = 20) -> QuantizedRow:
    """Quantize one model in every way, in a temporary folder; see `quantize_zoo`."""
    model = random_model(name, size)
    images = torch.randn(CALIBRATION, 3, size, size, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory(prefix="cookbook-quantized-") as folder, pinned_threads(1):
        plain = export(model, images, Path(folder) / "float.onnx")
        ours = quantize_on(model, images).export(Path(folder) / "ours.onnx")
        static = quantize_by_onnxruntime(model, images, Path(folder) / "static.onnx", exported=plain)
        trained = train_briefly(model, images).export(Path(folder) / "trained.onnx")
        runtimes = {path.stem: Runtime(path) for path in (plain, ours, static)}
        timings = {}
        for batch in BATCHES:
            calls = {stem: functools.partial(runtime, images[:batch]) for stem, runtime in runtimes.items()}
            timings[batch] = interleave(calls, batch=batch, rounds=rounds, threads=1, device="cpu")
        return QuantizedRow(
            name=name,
            size=size,
            kernels=kernels(ours),
            trained=kernels(trained),
            bytes=bytes_on_disk(ours) / bytes_on_disk(plain),
            against_float={batch: speedup(taken["float"], taken["ours"]) for batch, taken in timings.items()},
            against_static={batch: speedup(taken["static"], taken["ours"]) for batch, taken in timings.items()},
            difference=parity(model, runtimes["ours"], images).mean,
            static_difference=parity(model, runtimes["static"], images).mean,
        )


def train_briefly(model: nn.Module, images: Tensor, *, scheme: Scheme | None = None) -> Quantized:
    """Return a model after a few steps of training with rounding on random labels: the way, not the destination."""
    scheme = scheme or Scheme()
    prepared = prepare(model, images, scheme, qat=True)
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-4)
    with torch.no_grad():
        prepared(images)
    for step in range(STEPS):
        prepared.train()
        freeze_batch_norm(prepared, step > 0)
        logits = prepared(images)
        F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return quantized(convert(prepared.eval()), scheme, "training", images, images=len(images))


def quantization_table(rows: Iterable[QuantizedRow]) -> Table:
    """Return one row a model; below the table stands what computes in floats, with the reasons."""
    rows = list(rows)
    cells = []
    for row in rows:
        speeds = (*row.against_float.values(), *row.against_static.values())
        cells.append(
            (
                row.name, _coverage(row.kernels), _coverage(row.trained), f"{row.bytes:.2f}", *map(str, speeds),
                f"{row.difference:.2f}", f"{row.static_difference:.2f}",
            )
        )  # fmt: skip
    sizes = ", ".join(f"{size} × {size}" for size in sorted({row.size for row in rows}))
    note = [
        f"Random weights, images of {sizes} pixels, one thread of {processor_name()}, all files timed in turns.",
        "difference: mean difference of the logits from float32's, in units of their spread, with the same calibration images.",
        *(f"{row.name} keeps in floats {reason}" for row in rows for reason in _reasons(row.kernels)),
    ]
    return Table(COLUMNS, cells, "\n".join(note), "Quantized models")


def bench_ratios(rows: Iterable[QuantizedRow]) -> list[BenchRatio]:
    """Return what is recorded of each model: one ratio a batch size, with the kernels and all else among its values."""
    found = []
    for row in rows:
        coverage = row.kernels.coverage.values()
        for batch, ratio in row.against_float.items():
            static = row.against_static[batch]
            values: dict[str, float] = {"int8_nodes": sum(part.int8 for part in coverage)}
            values["nodes"] = sum(part.total for part in coverage)
            values |= {"over_static": static.value, "over_static_low": static.low, "over_static_high": static.high}
            values |= {"bytes_ratio": row.bytes, "difference": row.difference, "static_difference": row.static_difference}
            what = f"speed at {row.size} × {row.size} pixels on one thread"
            name = RECORDED.format(name=row.name, batch=batch)
            found.append(BenchRatio(name=name, baseline="float32", candidate="int8", ratio=ratio, what=what, values=values))
    return found


def recorded_table(ledger: Ledger) -> Table:
    """Return the newest recorded figures of each model in a ledger; a model without any has no row."""
    newest = {row.name: row for row in ledger.bench()}
    cells, machines = [], set()
    for name in QUANTIZED:
        names = [RECORDED.format(name=name, batch=batch) for batch in BATCHES]
        if not set(names) <= set(newest):
            continue
        rows = [newest[name] for name in names]
        values = rows[0].values
        statics = [Ratio(*(row.values[f"over_static{end}"] for end in ("", "_low", "_high"))) for row in rows]
        coverage = f"{values['int8_nodes']:.0f} of {values['nodes']:.0f}"
        speeds = map(str, (*(row.ratio for row in rows), *statics))
        cells.append((name, coverage, f"{values['bytes_ratio']:.2f}", *speeds))
        machines |= {f"{row.provenance.processor}, {row.what}" for row in rows}
    note = f"Measured on {'; '.join(sorted(machines))}." if cells else NOTHING_RECORDED
    return Table(RECORDED_COLUMNS, cells, note, "Torchvision's models in int8, recorded")


def _coverage(report: KernelReport) -> str:
    partly = [f"{name} {row.int8} of {row.total}" for name, row in report.coverage.items() if row.share < 1]
    return ", ".join(partly) if partly else "all"


def _reasons(report: KernelReport) -> list[str]:
    counted = Counter((island.operator, island.reason.split(" (")[0]) for island in report.islands)
    return [f"{operator} ×{count}: {reason}." for (operator, reason), count in counted.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return 0."""
    parser = argparse.ArgumentParser(description="Quantize torchvision's classifiers and time them.")
    parser.add_argument("names", nargs="*", default=QUANTIZED)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each latency")
    parser.add_argument("--record", action="store_true", help="keep the figures in the committed ledger")
    given = parser.parse_args(arguments)
    if given.record:
        require_profile(rehearse=False)
    rows = quantize_zoo(given.names, size=given.size, rounds=given.rounds)
    print(quantization_table(rows))
    if given.record:
        ledger = Ledger.recorded()
        for row in bench_ratios(rows):
            ledger.append(row)
        print(f"Written to {ledger.path}.")
    return 0


if __name__ == "__main__":
    run(main)
