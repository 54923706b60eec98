"""`cookbook train`: from images to a checkpoint with its record."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from cookbook.data import Augmentation, ResidentLoader, Splits, load_fashion_mnist
from cookbook.distributed import Context, joined, launch, launched
from cookbook.environment import provenance, seed_everything
from cookbook.errors import UsageError
from cookbook.files import atomic_path
from cookbook.models import ResNetConfig, build, save
from cookbook.precision import PrecisionName
from cookbook.training import EpochRecord, Recipe, evaluate, fit
from cookbook.training.recipe import OptimizerName, Schedule

MODEL, RECIPE, AUGMENTATION, MACHINE, PROCESSES = "Model", "Recipe", "Augmentation", "Machine", "Several processes"


def parse_resolutions(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``0:20,16:28`` as ((0, 20), (16, 28)): from epoch 0 at 20 pixels, from epoch 16 at 28."""
    try:
        pairs = [pair.split(":") for pair in text.split(",")] if text else []
        return tuple((int(epoch), int(pixels)) for epoch, pixels in pairs)
    except ValueError as error:
        raise UsageError(f"--resolutions is {text!r}: write pairs EPOCH:PIXELS, such as 0:20,16:28.") from error


def train(
    out: Annotated[
        Path, typer.Option(help="Where the trained model goes, a .safetensors file; its record lies beside it as .json.")
    ],
    depth: Annotated[int, typer.Option(help="Layers of the ResNet: 6n + 2.", rich_help_panel=MODEL)] = 20,
    width: Annotated[int, typer.Option(help="Channels of its first stage.", rich_help_panel=MODEL)] = 32,
    epochs: Annotated[int, typer.Option(help="Passes over the 55,000 training images.", rich_help_panel=RECIPE)] = 7,
    batch_size: Annotated[int, typer.Option(help="Images per batch, over all processes.", min=1, rich_help_panel=RECIPE)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.", rich_help_panel=RECIPE)] = 0.2,
    optimizer: Annotated[OptimizerName, typer.Option(help="What applies the gradients.", rich_help_panel=RECIPE)] = "sgd",
    schedule: Annotated[Schedule, typer.Option(help="Course of the learning rate.", rich_help_panel=RECIPE)] = "one-cycle",
    weight_decay: Annotated[
        float, typer.Option(help="On weights, not on biases and BatchNorm.", rich_help_panel=RECIPE)
    ] = 5e-4,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of the target spread over all classes.", rich_help_panel=RECIPE)
    ] = 0.1,
    clip_norm: Annotated[float | None, typer.Option(help="Bound on the gradient norm.", rich_help_panel=RECIPE)] = None,
    accumulate: Annotated[int, typer.Option(help="Batches per optimizer step.", rich_help_panel=RECIPE)] = 1,
    ema: Annotated[
        float, typer.Option(help="Decay of the moving average of the weights; 0 for none.", rich_help_panel=RECIPE)
    ] = 0.999,
    crop: Annotated[int, typer.Option(help="Shift by up to this many pixels.", rich_help_panel=AUGMENTATION)] = 2,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.", rich_help_panel=AUGMENTATION)] = True,
    erase: Annotated[float, typer.Option(help="Probability of erasing a rectangle.", rich_help_panel=AUGMENTATION)] = 0.0,
    resolutions: Annotated[str, typer.Option(help="Progressive resizing: EPOCH:PIXELS,…", rich_help_panel=AUGMENTATION)] = "",
    precision: Annotated[PrecisionName, typer.Option(help="Of the matrix products.", rich_help_panel=MACHINE)] = "fp32",
    channels_last: Annotated[bool, typer.Option(help="Keep a pixel's channels side by side.", rich_help_panel=MACHINE)] = True,
    compile: Annotated[bool, typer.Option(help="Use torch.compile.", rich_help_panel=MACHINE)] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.", rich_help_panel=MACHINE)] = 0,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of a process; torch decides.", min=1, rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps.", rich_help_panel=MACHINE)] = None,
    train_images: Annotated[int | None, typer.Option(help="Use a stratified part of the training images.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Training state to write and to resume from; OUT.state by default.")
    ] = None,
    report_test: Annotated[
        bool, typer.Option("--report-test", help="Evaluate the test split once, after training, for the record.")
    ] = False,
    nproc: Annotated[int, typer.Option(help="Processes on this machine.", min=1, rich_help_panel=PROCESSES)] = 1,
    nnodes: Annotated[int, typer.Option(help="Machines that train together.", min=1, rich_help_panel=PROCESSES)] = 1,
    rdzv_endpoint: Annotated[
        str | None, typer.Option(help="HOST:PORT where several machines meet, the same on all.", rich_help_panel=PROCESSES)
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(help="Go on from the last state when a process dies.", min=0, rich_help_panel=PROCESSES)
    ] = 0,
) -> None:
    """Train the running model on Fashion-MNIST; interrupt it at will, the same command resumes.

    Example: cookbook train --out my-model.safetensors --epochs 7 --nproc 2
    """
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in locals().items()}
    if out.suffix != ".safetensors":
        raise UsageError(f"--out is {out}: name a file that ends in .safetensors.")
    out.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out.parent).close()  # a folder that cannot be written to is said now, not after an epoch
    recipe = Recipe(
        epochs=epochs, learning_rate=learning_rate, optimizer=optimizer, schedule=schedule, weight_decay=weight_decay,
        label_smoothing=label_smoothing, clip_norm=clip_norm, accumulate=accumulate, ema_decay=ema or None, precision=precision,
        channels_last=channels_last, compile=compile, seed=seed,
    )  # fmt: skip
    augmentation = Augmentation(crop, flip, erase, parse_resolutions(resolutions))
    config = ResNetConfig(depth=depth, width=width)
    if (nproc > 1 or nnodes > 1 or max_restarts) and not launched():
        try:
            launch(
                train_on_rank, settings, sys.argv[1:], ranks=nproc, threads=threads, hosts=nnodes, endpoint=rdzv_endpoint,
                max_restarts=max_restarts,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Stopped all processes; the same command resumes.") from None
        return
    if threads is not None:
        torch.set_num_threads(threads)
    with joined(device=device) as context:
        _train(config, recipe, augmentation, context, train_images, batch_size, out, checkpoint, report_test)


def train_on_rank(settings: dict[str, Any], arguments: list[str]) -> None:
    """Train as one of several processes.

    Args:
        settings: of `train`, with paths as text.
        arguments: of the command line, for the record.
    """
    sys.argv = ["cookbook", *arguments]
    paths = {name: None if settings[name] is None else Path(settings[name]) for name in ("out", "checkpoint")}
    train(**{**settings, **paths})


def _train(
    config: ResNetConfig, recipe: Recipe, augmentation: Augmentation, context: Context, train_images: int | None,
    batch_size: int, out: Path, checkpoint: Path | None, report_test: bool,
) -> None:  # fmt: skip
    """Train with the other processes, if there are any; rank 0 writes and prints."""
    target, splits = context.device, load_fashion_mnist()
    images = splits.train if train_images is None else splits.train.subset(train_images)
    loader = ResidentLoader(images, batch_size, augmentation=augmentation, device=target, seed=recipe.seed)
    seed_everything(recipe.seed)
    model = build(config).to(target)
    state = checkpoint or out.with_suffix(".state")
    history = fit(
        model, loader, recipe, validation=ResidentLoader(splits.validation, 500, device=target),
        checkpoint=state, on_epoch=_print_epoch if context.first else None,
    )  # fmt: skip
    if not context.first:
        return
    save(model, out)
    record = _record(model, splits, target, recipe, augmentation, history, report_test)
    record["processes"] = context.world
    with atomic_path(out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    if checkpoint is None:
        state.unlink()
    print(
        f"validation {record['validation']['accuracy']:.2%}"
        + (f", test {record['test']['accuracy']:.2%}" if report_test else "")
    )
    print(f"{out} and {out.with_suffix('.json').name} written.")


def _print_epoch(record: EpochRecord) -> None:
    scores = f"loss {record.train_loss:.4f}, validation {record.validation_accuracy:.2%}"
    print(f"epoch {record.epoch + 1}: {scores}, {record.seconds:.0f} s", flush=True)


def _record(
    model: torch.nn.Module, splits: Splits, device: torch.device, recipe: Recipe, augmentation: Augmentation,
    history: list[EpochRecord], report_test: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return what a reader needs to repeat the run, and what came out, as plain JSON types."""
    scores: dict[str, Any] = {}
    parts: tuple[Literal["validation", "test"], ...] = ("validation", "test") if report_test else ("validation",)
    for part in parts:
        result = evaluate(model, ResidentLoader(getattr(splits, part), 500, device=device))
        scores[part] = {"correct": result.hits, "of": len(result.labels), "accuracy": result.accuracy, "loss": result.loss}
    return {
        "command": shlex.join(["cookbook", *sys.argv[1:]]),
        **scores,
        "seconds": sum(epoch.seconds for epoch in history),
        "recipe": asdict(recipe),
        "augmentation": asdict(augmentation),
        "provenance": provenance(device).to_dict(),
        "history": [asdict(epoch) for epoch in history],
    }
