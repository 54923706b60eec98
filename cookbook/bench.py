"""What the library itself costs, as ratios of interleaved runs (lesson 00; `make bench`)."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cookbook.data import Augmentation, ResidentLoader, Split, Splits, TorchvisionLoader, load_fashion_mnist
from cookbook.deploy import Runtime, export
from cookbook.environment import provenance
from cookbook.errors import CookbookError
from cookbook.evidence import BenchRatio
from cookbook.measure import interleave, pinned_threads, speedup
from cookbook.models import ResNetConfig, build, eval_mode
from cookbook.training import Recipe, build_optimizer, fit

SMALL = ResNetConfig(depth=8, width=8)  # its steps are short, so that what `fit` adds to each shows most


def run_bench(*, threads: int = 1, rounds: int = 15) -> Iterator[BenchRatio]:
    """Yield the benchmark's ratios, each as soon as it is measured.

    Args:
        threads: of torch and of ONNX Runtime.
        rounds: samples of each side.

    Raises:
        CookbookError: `fit` and the bare loop end with different weights.
    """
    splits = load_fashion_mnist()
    with pinned_threads(threads):
        origin = provenance("cpu")
        measured = functools.partial(BenchRatio, provenance=origin)
        yield _fit_against_bare_loop(splits.train, ResNetConfig(), 4, threads, rounds, measured)
        yield _fit_against_bare_loop(splits.train, SMALL, 100, threads, rounds, measured)
        yield _resident_against_dataloader(splits.train, threads, rounds, measured)
        yield from (_onnx_runtime_against_eager(splits, batch, threads, rounds, measured) for batch in (1, 64))


def bare_loop(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
    """Train as `fit` does under a constant rate, written by hand with nothing around it."""
    optimizer = build_optimizer(model, recipe)
    model.train()
    for epoch in range(recipe.epochs):
        for images, labels in loader.batches(epoch):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def _fit_against_bare_loop(
    split: Split, config: ResNetConfig, steps: int, threads: int, rounds: int, measured: Callable[..., BenchRatio]
) -> BenchRatio:
    loader = ResidentLoader(split.subset(32 * steps), 32)
    recipe = Recipe(epochs=1, learning_rate=1e-3, schedule="constant")
    torch.manual_seed(0)
    start = build(config)
    ends: dict[str, nn.Module] = {}

    def run(name: str, train: Callable[[nn.Module], object]) -> None:
        ends[name] = copy.deepcopy(start)
        train(ends[name])

    timings = interleave(
        {
            "fit": lambda: run("fit", lambda model: fit(model, loader, recipe, progress=False)),
            "bare": lambda: run("bare", lambda model: bare_loop(model, loader, recipe)),
        },
        batch=32, rounds=rounds, warmup=2, threads=threads, device="cpu", repeats=1,
    )  # fmt: skip
    pairs = zip(ends["fit"].state_dict().items(), ends["bare"].state_dict().values(), strict=True)
    differing = [name for (name, fitted), bare in pairs if not torch.equal(fitted, bare)]
    if differing:
        raise CookbookError(f"fit and the bare loop differ in {differing[0]}: they must be bitwise equal.")
    name = f"ResNet-{config.depth}×{config.width}"
    return measured(
        name=f"fit, {name}", baseline="fit", candidate="bare loop", ratio=speedup(timings["fit"], timings["bare"]),
        what=f"wall time of fit over that of a bare loop, {steps} steps of 32 images, weights bitwise equal",
    )  # fmt: skip


def _resident_against_dataloader(split: Split, threads: int, rounds: int, measured: Callable[..., BenchRatio]) -> BenchRatio:
    part = split.subset(2560)
    augmentation = Augmentation(crop=2, flip=True)

    def drain(loader: ResidentLoader | TorchvisionLoader) -> None:
        for _ in loader.batches(0):
            pass

    resident = ResidentLoader(part, 128, augmentation=augmentation)
    conventional = TorchvisionLoader(part, 128, augmentation=augmentation)
    timings = interleave(
        {"resident": lambda: drain(resident), "DataLoader": lambda: drain(conventional)},
        batch=len(part), rounds=rounds, warmup=2, threads=threads, device="cpu",
    )  # fmt: skip
    return measured(
        name="loader", baseline="torchvision transforms in a DataLoader", candidate="resident loader",
        ratio=speedup(timings["DataLoader"], timings["resident"]),
        what="samples per second with crop and flip, 2,560 images in batches of 128",
    )  # fmt: skip


def _onnx_runtime_against_eager(
    splits: Splits, batch: int, threads: int, rounds: int, measured: Callable[..., BenchRatio]
) -> BenchRatio:
    images = splits.validation.normalized()[:batch].contiguous()
    torch.manual_seed(0)
    model = build(ResNetConfig())
    with tempfile.TemporaryDirectory() as folder, eval_mode(model), torch.inference_mode():
        runtime = Runtime(export(model, images, Path(folder) / "model.onnx"), threads=threads)
        timings = interleave(
            {"eager": lambda: model(images), "onnx": lambda: runtime(images)},
            batch=batch, rounds=2 * rounds, threads=threads, device="cpu",
        )  # fmt: skip
    return measured(
        name=f"ONNX Runtime, batch {batch}", baseline="eager torch", candidate="ONNX Runtime",
        ratio=speedup(timings["eager"], timings["onnx"]), what="speed of the fp32 ResNet-20×32",
    )  # fmt: skip
