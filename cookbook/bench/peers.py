"""What users would pick instead: the cost of a step in other training loops, and other compressors (`make bench-peers`)."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from cookbook.bench.compressors import REHEARSAL, Sizes, baseline_given, named_artefacts, peers_table, run_compressors
from cookbook.bench.loops import STEPS, Loop, cost_per_step
from cookbook.data import ResidentLoader, load_fashion_mnist
from cookbook.environment import provenance
from cookbook.errors import UsageError
from cookbook.evidence import BenchRatio, Ledger
from cookbook.experiments.command import require_profile, run
from cookbook.training import Recipe, build_optimizer


def fabric_loop() -> Loop:
    """Return a loop in Lightning Fabric (https://lightning.ai/docs/fabric/stable/).

    Raises:
        ImportError: it is not installed.
    """
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)

    def loop(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
        wrapped, optimizer = fabric.setup(model, build_optimizer(model, recipe))
        wrapped.train()
        for images, labels in loader.batches(0):
            loss = F.cross_entropy(wrapped(images), labels)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return loop


def ignite_loop() -> Loop:
    """Return a loop in PyTorch Ignite, by its own supervised trainer (https://docs.pytorch.org/ignite/).

    Raises:
        ImportError: it is not installed.
    """
    from ignite.engine import create_supervised_trainer

    def loop(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
        trainer = create_supervised_trainer(model, build_optimizer(model, recipe), F.cross_entropy)
        trainer.run(loader.batches(0), max_epochs=1, epoch_length=len(loader))

    return loop


def accelerate_loop() -> Loop:
    """Return a loop in Accelerate (https://huggingface.co/docs/accelerate).

    Raises:
        ImportError: it is not installed.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)

    def loop(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
        wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
        wrapped.train()
        for images, labels in loader.batches(0):
            loss = F.cross_entropy(wrapped(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return loop


PEERS: dict[str, tuple[str, Callable[[], Loop]]] = {  # by name, the package to install and what makes the loop
    "Fabric": ("lightning", fabric_loop),
    "Ignite": ("pytorch-ignite", ignite_loop),
    "Accelerate": ("accelerate", accelerate_loop),
}


def run_peers(*, rounds: int = 15, steps: int = STEPS, say: Callable[[str], object] = print) -> Iterator[BenchRatio]:
    """Yield the cost of a step of `fit` and of each peer that is installed, over the bare loop, from one interleaved run.

    Every loop is written as its documentation shows, on the same batches, with the same optimizer, and must end with
    the same weights. What a library sets up once, such as an ``Accelerator``, is left out of its time.

    Args:
        rounds: samples of each.
        steps: in a sample.
        say: takes the sentence on a peer that is not installed.

    Raises:
        UsageError: fewer than three rounds or one step.
        CookbookError: two loops end with different weights.
    """
    if rounds < 3 or steps < 1:
        raise UsageError(f"{rounds} rounds of {steps} steps give no interval: use 3 rounds of 1 step or more.")
    loops: dict[str, Loop] = {}
    for name, (package, make) in PEERS.items():
        try:
            loops[name] = make()
        except ImportError as error:
            say(f"{name} is absent ({error}): run 'pip install {package}'.")
    measured = functools.partial(BenchRatio, provenance=provenance("cpu"))
    yield from cost_per_step(load_fashion_mnist().train, loops, measured=measured, rounds=rounds, steps=steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare with other libraries and keep the rows in a ledger: ``python -m cookbook.bench.peers``.

    Raises:
        UsageError: evidence is asked for in the quick profile or of a rehearsal, or another wrong argument.
    """
    parser = argparse.ArgumentParser(prog="python -m cookbook.bench.peers", description=__doc__)
    parser.add_argument("--only", choices=("loops", "compressors"), help="one of the two comparisons; both by default")
    parser.add_argument("--rounds", type=int, help="samples of each side; 15 of each loop, 30 of each compressor by default")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning after pruning, for every compressor that prunes")
    another = "model.onnx of 'cookbook compress', beside the one that the course ships; repeatable"
    parser.add_argument("--artefact", type=Path, action="append", default=[], help=another)
    parser.add_argument("--rehearse", action="store_true", help="in miniature, to see that everything runs")
    parser.add_argument("--record", action="store_true", help="write to the committed evidence, not to this machine's ledger")
    chosen = parser.parse_args(arguments)
    if chosen.record:
        require_profile(chosen.rehearse)
    ledger = Ledger.recorded() if chosen.record else Ledger.local()
    if chosen.only != "compressors":
        short = {"rounds": 3, "steps": 50} if chosen.rehearse else {}
        asked = {"rounds": chosen.rounds} if chosen.rounds else {}
        for row in run_peers(**{**short, **asked}):
            ledger.append(row)
            print(f"{row.name:28} {row.ratio}  {row.what}")
    if chosen.only != "loops":
        sizes = replace(REHEARSAL if chosen.rehearse else Sizes(), epochs=chosen.epochs)
        sizes = replace(sizes, rounds=chosen.rounds or sizes.rounds)
        splits = load_fashion_mnist()
        rows = run_compressors(baseline_given(splits, sizes), splits, sizes=sizes, artefacts=named_artefacts(chosen.artefact))
        for measured in rows:
            ledger.append(measured)
        print(peers_table(rows))
    print(f"Written to {ledger.path}.")


if __name__ == "__main__":
    run(main)
