"""Does `Latency(0.5)` find networks that take half of the time? Three architectures are asked, on the clock (lesson 04).

    python -m cookbook.experiments.pruning_latency --models resnet20 --rounds 30
    COOKBOOK_PROFILE=full python -m cookbook.experiments.pruning_latency --record

The running model, and torchvision's with random weights, lose channels until ONNX Runtime needs the asked share of the time
for one image. Whoever tries several networks and keeps the one that measures best flatters it, so the share is told a second
time: by new files in new sessions, timed in turns. The exit status is 1 if a second share lies outside the tolerance.
``--record`` keeps the figures in the committed ledger, from where the lesson shows them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cookbook.errors import CookbookError
from cookbook.evidence import BenchRatio, Ledger, Table
from cookbook.evidence.tables import NOTHING_RECORDED
from cookbook.experiments.command import require_profile, run
from cookbook.files import data_directory
from cookbook.measure import Ratio, count_macs, pinned_threads, speedup
from cookbook.models import TorchvisionConfig, load
from cookbook.models.random_weights import random_model
from cookbook.progress import progress_bar
from cookbook.pruning import Latency, OrtClock, prune

RUNNING_MODEL = "resnet20"
MODELS = (RUNNING_MODEL, "resnet18", "mobilenet_v2")
RECORDED = "pruned to a latency"
COLUMNS = ("model", "share asked", "while choosing", "told again", "off by", "MACs")


@dataclass(frozen=True)
class LatencyRow:
    """One model and what its budget came to.

    Attributes:
        name: of the model.
        asked: share of the latency.
        chosen: share that was measured while networks were tried.
        speed: of the second timing, over the unpruned model's.
        macs: share of the multiply-accumulates that remains.
        seconds: that the search took.
    """

    name: str
    asked: float
    chosen: float
    speed: Ratio
    macs: float
    seconds: float

    @property
    def missed(self) -> float:
        """By how much the second share lies off the asked one, relative to it."""
        return abs(1 / self.speed.value / self.asked - 1)


def prune_to_latency(name: str, target: Latency, *, size: int = 224, multiple: int = 16) -> LatencyRow:
    """Prune one model to a share of its latency, and measure that share anew.

    Args:
        name: of a torchvision classifier, or ``resnet20``: the shipped running model.
        target: with the rounds of both timings.
        size: height and width in pixels of the images for torchvision's models.
        multiple: what is left of the channels is a multiple of this.

    Raises:
        UsageError: the share is out of reach, or the machine is too busy to tell.
        DeploymentError: a network cannot be exported.
    """
    model, example = _model(name, size)
    with pinned_threads(target.threads):
        begin = time.perf_counter()
        pruned = prune(model, example, target=target, multiple=multiple)
        seconds = time.perf_counter() - begin
        clock = OrtClock(threads=target.threads, batch=target.batch, rounds=target.rounds)
        timings = clock({"unpruned": model, "pruned": pruned.model}, example)
    macs = count_macs(pruned.model, example) / count_macs(model, example)
    speed = speedup(timings["unpruned"], timings["pruned"])
    return LatencyRow(name, target.share, pruned.reached, speed, macs, seconds)


def _model(name: str, size: int) -> tuple[nn.Module, Tensor]:
    if name == RUNNING_MODEL:
        return load(data_directory() / "checkpoints" / "baseline.safetensors"), torch.randn(2, 1, 28, 28)
    return random_model(name, size), torch.randn(2, 3, size, size)


def bench_ratios(rows: Iterable[LatencyRow]) -> list[BenchRatio]:
    """Return what is recorded: the second timing, with the share that was asked and the first one among its values."""
    return [
        BenchRatio(
            name=f"{RECORDED}, {row.name}", baseline=row.name, candidate="pruned", ratio=row.speed,
            what="speed on one thread in ONNX Runtime, batch 1",
            values={"asked": row.asked, "chosen": row.chosen, "macs_ratio": row.macs, "search_seconds": row.seconds},
        )
        for row in rows
    ]  # fmt: skip


def latency_table(ratios: Iterable[BenchRatio]) -> Table:
    """Return one row a model, of its newest figures among `ratios`; other ratios are passed over."""
    newest = {row.name: row for row in ratios if row.name.startswith(f"{RECORDED}, ")}
    cells = []
    for row in newest.values():
        told, asked = 1 / row.ratio.value, row.values["asked"]
        interval = f"{told:.3f} [{1 / row.ratio.high:.3f}, {1 / row.ratio.low:.3f}]"
        measured = (f"{row.values['chosen']:.3f}", interval, f"{told / asked - 1:+.1%}", f"{row.values['macs_ratio']:.2f}")
        cells.append((row.baseline, f"{asked:.2f}", *measured))
    machines = sorted({f"{row.provenance.processor}, {row.what}" for row in newest.values()})
    note = f"Measured on {'; '.join(machines)}." if cells else NOTHING_RECORDED
    return Table(COLUMNS, cells, note, "Pruned to a share of the latency")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        UsageError: an argument cannot work, or a share is out of reach.
        CookbookError: a share that was told again lies outside the tolerance.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="resnet20, or image classifiers of torchvision")
    parser.add_argument("--share", type=float, default=0.5, help="of the latency that shall remain")
    parser.add_argument("--tolerance", type=float, default=0.05, help="by which it may be missed, relative to it")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images for torchvision's models")
    parser.add_argument("--rounds", type=int, default=60, help="samples of each latency")
    parser.add_argument("--record", action="store_true", help="keep the figures in the committed ledger")
    options = parser.parse_args(arguments)
    if options.record:
        require_profile(rehearse=False)
    for name in options.models:
        if name != RUNNING_MODEL:
            TorchvisionConfig(name)
    rows = []
    with progress_bar("models", len(options.models)) as advance:
        for name in options.models:
            target = Latency(options.share, tolerance=options.tolerance, rounds=options.rounds)
            rows.append(prune_to_latency(name, target, size=options.size))
            advance(name)
    ratios = bench_ratios(rows)
    print(latency_table(ratios))
    if options.record:
        ledger = Ledger.recorded()
        for ratio in ratios:
            ledger.append(ratio)
        print(f"Written to {ledger.path}.")
    missed = [f"{row.name} by {row.missed:.1%}" for row in rows if row.missed > options.tolerance]
    if missed:
        raise CookbookError(
            f"Told again, the share lies outside the tolerance of {options.tolerance:.0%}: {', '.join(missed)}."
        )


if __name__ == "__main__":
    run(main)
