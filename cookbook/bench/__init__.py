"""What the library itself costs, as ratios of interleaved runs (lesson 00; `make bench`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from cookbook.bench.loops import cost_per_step, fit_against_bare_loop, two_ranks_against_one
from cookbook.bench.quantizers import quantizers_against_float
from cookbook.bench.runtimes import resident_against_dataloader, runtimes_against_eager
from cookbook.data import load_fashion_mnist
from cookbook.environment import provenance
from cookbook.evidence import BenchRatio
from cookbook.measure import pinned_threads
from cookbook.models import ResNetConfig

__all__ = ["run_bench"]

SMALL = ResNetConfig(depth=8, width=8)  # its steps are short, so that what `fit` adds to each shows most


def run_bench(*, threads: int = 1, rounds: int = 15, say: Callable[[str], object] = print) -> Iterator[BenchRatio]:
    """Yield the benchmark's ratios, each as soon as it is measured.

    Args:
        threads: of torch, ONNX Runtime and OpenVINO.
        rounds: samples of each side.
        say: takes the sentence that says why a row is missing, such as one that needs a compiler.

    Raises:
        CookbookError: `fit` and the bare loop end with different weights, or a rank failed.
    """
    splits = load_fashion_mnist()
    with pinned_threads(threads):
        measured = functools.partial(BenchRatio, provenance=provenance("cpu"))
        yield fit_against_bare_loop(splits.train, ResNetConfig(), 4, threads, rounds, measured)
        yield fit_against_bare_loop(splits.train, SMALL, 100, threads, rounds, measured)
        yield from cost_per_step(splits.train, {}, rounds=rounds, measured=measured)
        yield resident_against_dataloader(splits.train, threads, rounds, measured)
        for batch in (1, 64):
            yield from runtimes_against_eager(splits, ResNetConfig(), batch, threads, rounds, measured, say)
        yield from quantizers_against_float(splits, ResNetConfig(), (1, 64), threads, rounds, measured)
        yield two_ranks_against_one(rounds, measured)
