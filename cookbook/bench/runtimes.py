"""Loaders and runtimes against what torch does by itself (lesson 00; `make bench`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from cookbook.data import Augmentation, ResidentLoader, Split, Splits, TorchvisionLoader
from cookbook.deploy import Runtime, export
from cookbook.deploy.openvino_format import OpenVinoRuntime
from cookbook.deploy.sessions import first_line
from cookbook.errors import CookbookError, DeploymentError
from cookbook.evidence import BenchRatio
from cookbook.measure import interleave, speedup
from cookbook.models import ResNetConfig, build, eval_mode

LOADED = 2560  # images


def resident_against_dataloader(split: Split, threads: int, rounds: int, measured: Callable[..., BenchRatio]) -> BenchRatio:
    """Compare the two loaders' samples per second under the same augmentation."""
    part = split.subset(LOADED)
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
        what=f"samples per second with crop and flip, {LOADED:,} images in batches of 128",
    )  # fmt: skip


def runtimes_against_eager(
    splits: Splits,
    config: ResNetConfig,
    batch: int,
    threads: int,
    rounds: int,
    measured: Callable[..., BenchRatio],
    say: Callable[[str], object],
) -> Iterator[BenchRatio]:
    """Yield the speed of ``torch.compile``, ONNX Runtime and OpenVINO over eager torch, all timed in turns.

    Args:
        splits: whose validation images are predicted.
        config: of the network, in fp32 with random weights.
        batch: images in a call.
        threads: of all four.
        rounds: half of the samples of each.
        measured: makes a row.
        say: takes the sentence on a runtime that is not here.

    Raises:
        CookbookError: two of them disagree.
    """
    images = splits.validation.normalized()[:batch].contiguous()
    torch.manual_seed(0)
    model = build(config)
    with tempfile.TemporaryDirectory() as folder, eval_mode(model), torch.inference_mode():
        file = export(model, images, Path(folder) / "model.onnx")
        runtimes: dict[str, Callable[[Tensor], Tensor]] = {"eager torch": model}
        makers: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
            "torch.compile": lambda: compiled(model, images),
            "ONNX Runtime": lambda: Runtime(file, threads=threads),
            "OpenVINO": lambda: OpenVinoRuntime(file, threads=threads),
        }
        for name, make in makers.items():
            try:
                runtimes[name] = make()
            except DeploymentError as reason:
                say(f"{name}, batch {batch}, is skipped: {reason}")
        _require_agreement(runtimes, images)
        calls = {name: (lambda predict=predict: predict(images)) for name, predict in runtimes.items()}
        timings = interleave(calls, batch=batch, rounds=2 * rounds, threads=threads, device="cpu")
    eager = timings.pop("eager torch")
    for name, timing in timings.items():
        yield measured(
            name=f"{name}, batch {batch}", baseline="eager torch", candidate=name, ratio=speedup(eager, timing),
            what=f"speed of the fp32 ResNet-{config.depth}×{config.width}",
        )  # fmt: skip


def compiled(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the model after ``torch.compile`` with its defaults, compiled for this shape already.

    Raises:
        DeploymentError: it cannot be compiled, for example because there is no C++ compiler.
    """
    fast = torch.compile(model, dynamic=False)
    try:
        fast(images)
    except Exception as error:  # Dynamo, Inductor and the compiler beneath each have kinds of their own
        raise DeploymentError(
            f"torch.compile cannot compile {type(model).__name__} ({first_line(error)}): it needs a C++ compiler such as g++."
        ) from error
    return fast


def _require_agreement(runtimes: dict[str, Callable[[Tensor], Tensor]], images: Tensor) -> None:
    answers = {name: predict(images) for name, predict in runtimes.items()}
    reference = answers["eager torch"]
    for name, answer in answers.items():
        if not torch.allclose(answer, reference, rtol=1e-3, atol=1e-3 * reference.std().item()):
            raise CookbookError(f"{name} and eager torch disagree by {(answer - reference).abs().max():.1e}: they must agree.")
