"""Quantizers side by side: how fast ONNX Runtime runs what each makes of one model (lesson 05; `make bench`)."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch

from cookbook.data import Splits
from cookbook.deploy import Runtime
from cookbook.evidence import BenchRatio
from cookbook.measure import interleave, speedup
from cookbook.models import ResNetConfig, build
from cookbook.quantization.peers import FLOAT, OURS, STATIC, files_by_quantizer

CALIBRATION = 128  # training images
AS_FAST = 0.97  # of the speed of ONNX Runtime's own static quantizer, at least


def quantizers_against_float(
    splits: Splits,
    config: ResNetConfig,
    batches: Sequence[int],
    threads: int,
    rounds: int,
    measured: Callable[..., BenchRatio],
) -> Iterator[BenchRatio]:
    """Yield for each quantizer the speed of its file over the file in float32, all timed in turns in ONNX Runtime.

    A further row for each batch holds the speed of our file over that of ONNX Runtime's own static quantizer with the
    same types, with a 1 among its values where the ratio is at least `AS_FAST`, else a 0.

    Args:
        splits: training images calibrate, validation images are predicted.
        config: of the network, with random weights, which do not change the speed.
        batches: sizes to time.
        threads: of ONNX Runtime.
        rounds: samples of each.
        measured: makes a row.

    Raises:
        DeploymentError: a quantizer fails.
    """
    torch.manual_seed(0)
    model = build(config).eval()
    calibration = splits.train.subset(CALIBRATION).normalized()
    images = splits.validation.normalized()[: max(batches)].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        files = files_by_quantizer(model, calibration, folder)
        runtimes = {name: Runtime(file, threads=threads) for name, file in files.items()}
        for batch in batches:
            calls = {name: functools.partial(runtime, images[:batch]) for name, runtime in runtimes.items()}
            timings = interleave(calls, batch=batch, rounds=rounds, threads=threads, device="cpu")
            plain = timings.pop(FLOAT)
            for name, timing in timings.items():
                yield measured(
                    name=f"int8 by {name}, batch {batch}", baseline=FLOAT, candidate=name, ratio=speedup(plain, timing),
                    what=f"speed of the ResNet-{config.depth}×{config.width} in ONNX Runtime",
                )  # fmt: skip
            own = speedup(timings[STATIC], timings[OURS])
            yield measured(
                name=f"int8, ours over ONNX Runtime's, batch {batch}", baseline=STATIC, candidate=OURS, ratio=own,
                what=f"speed of the ResNet-{config.depth}×{config.width} in ONNX Runtime, {AS_FAST} or more expected",
                values={"as_fast": float(own.value >= AS_FAST)},
            )  # fmt: skip
