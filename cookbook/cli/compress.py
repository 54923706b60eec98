"""`cookbook compress`: a model of the cookbook's, of torchvision's or of yours, under a budget."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from cookbook.data import Augmentation, ResidentLoader, Splits, load_dataset
from cookbook.environment import pick_device, seed_everything
from cookbook.errors import CookbookError, UsageError
from cookbook.models import TorchvisionConfig, build, load, save
from cookbook.training import Recipe, fit

if TYPE_CHECKING:
    from torch import nn

MISSED = 3  # exit status: everything ran, but the budget is not met
BUDGET, TRAINING, DATA, MACHINE = "Budget", "Training", "Data", "Machine"


def compress(
    model: Annotated[
        str, typer.Option(help="package.module:factory, a classifier of torchvision such as resnet18, or a .safetensors file.")
    ],
    data: Annotated[str, typer.Option(help="A folder of images, fashion-mnist, cifar10:FOLDER, or package.module:factory.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("compressed"),
    weights: Annotated[Path | None, typer.Option(help="Trained weights for the model, a .safetensors file.")] = None,
    train: Annotated[
        int | None, typer.Option(help="First train the model for so many epochs; for one without weights.", min=1)
    ] = None,
    latency: Annotated[
        float, typer.Option(help="Bound, as a ratio to fp32 in ONNX Runtime; 0 for none.", rich_help_panel=BUDGET)
    ] = 0.1,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="Points of accuracy that may be lost on validation.", rich_help_panel=BUDGET)
    ] = 0.5,
    bytes: Annotated[float | None, typer.Option(help="Bound on the file, as a ratio to fp32.", rich_help_panel=BUDGET)] = None,
    macs: Annotated[
        float | None,
        typer.Option(help="Prune to this share of the operations, not to what the budget asks.", rich_help_panel=BUDGET),
    ] = None,
    stages: Annotated[
        str, typer.Option(help="In their order, with commas between: student, prune, distill, quantize.")
    ] = "prune,distill,quantize",
    student: Annotated[
        str | None,
        typer.Option(help="Classifier of torchvision for the stage student, which takes the model's place; else a ResNet-8."),
    ] = None,
    ptq: Annotated[bool, typer.Option("--ptq", help="Quantize after training instead of by training.")] = False,
    entropy_coded: Annotated[bool, typer.Option("--entropy-coded", help="Also write the file packed.")] = False,
    epochs: Annotated[int, typer.Option(help="Of each long training.", min=1, rich_help_panel=TRAINING)] = 10,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.", rich_help_panel=TRAINING)] = 0.05,
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=1, rich_help_panel=TRAINING)] = 128,
    crop: Annotated[int, typer.Option(help="Shift by up to this many pixels.", min=0, rich_help_panel=TRAINING)] = 2,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.", rich_help_panel=TRAINING)] = True,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.", rich_help_panel=TRAINING)] = 0,
    size: Annotated[int, typer.Option(help="Pixels of a folder's images.", min=1, rich_help_panel=DATA)] = 64,
    validation_images: Annotated[
        int | None,
        typer.Option(help="Set aside from a folder's training images; a tenth by default.", min=1, rich_help_panel=DATA),
    ] = None,
    train_images: Annotated[
        int | None, typer.Option(help="Use a stratified part of the training images.", min=1, rich_help_panel=DATA)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the training.", min=1, rich_help_panel=MACHINE)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps.", rich_help_panel=MACHINE)] = None,
    rounds: Annotated[int, typer.Option(help="Samples of every latency.", min=3, rich_help_panel=MACHINE)] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and an estimate, and change nothing.")] = False,
) -> None:
    """Prune, distill and quantize a model until it keeps a budget; write an ONNX file and a report.

    Interrupt it at will, the same command goes on where it was. A factory is a function without arguments: of a
    model it returns a torch module that maps float32 images to logits, of data the cookbook's Splits, for
    instance from cookbook.data.from_torchvision. Modules are looked for in the current folder first.

    Exit status: 0 the budget is met, 3 it is not, 1 failure, 2 wrong use.

    Example: cookbook compress --model resnet18 --train 20 --data photos --latency 0.2 --accuracy-drop 1

    Example: cookbook compress --model net.safetensors --data fashion-mnist --stages student,quantize --epochs 20

    Example: cookbook compress --model my_package.nets:make_net --weights net.safetensors --data fashion-mnist --dry-run
    """
    from cookbook.pipeline import Budget, make_plan
    from cookbook.pipeline import compress as run

    budget = Budget(latency or None, accuracy_drop, bytes)
    chosen = parse_stages(stages, ptq, macs)
    if student is not None and not any(stage.name == "student" for stage in chosen):
        raise UsageError(f"--student names a network for the stage student, but the stages are {stages}: add student.")
    if threads is not None:
        torch.set_num_threads(threads)
    target = pick_device(device)
    splits = read_data(data, size, validation_images)
    if student is not None:
        shape = TorchvisionConfig(student, len(splits.train.classes), splits.train.images.shape[1])
        chosen = tuple(replace(stage, config=shape) if stage.name == "student" else stage for stage in chosen)
    if train_images is not None:
        splits = Splits(splits.train.subset(train_images), splits.validation, splits.test)
    augmentation = Augmentation(crop, flip)
    recipe = Recipe(epochs=epochs, learning_rate=learning_rate, seed=seed)
    network = make_model(model, splits, weights, trained_here=train is not None, seed=seed)
    settings: dict[str, Any] = {
        "stages": chosen, "recipe": recipe, "batch_size": batch_size, "augmentation": augmentation, "device": target,
    }  # fmt: skip
    if dry_run:
        print(f"Budget: {budget}.")
        if train is not None:
            print(f"First the model is trained for {train} epochs.")
        print(make_plan(network, splits, **settings))
        return
    if train is not None:
        first = Recipe(epochs=train, learning_rate=learning_rate, seed=seed)
        train_first(
            network, ResidentLoader(splits.train, batch_size, augmentation=augmentation, device=target, seed=seed), first, out
        )
    result = run(
        network, splits, budget=budget, folder=out, entropy_coded=entropy_coded, rounds=rounds, announce=_say, **settings
    )
    print(result)
    if not result.met:
        raise typer.Exit(MISSED)


def parse_stages(text: str, ptq: bool, macs: float | None = None) -> tuple[Any, ...]:
    """Read ``prune,quantize`` as stages.

    Raises:
        UsageError: a stage does not exist, there is none, or the share of operations is out of range.
    """
    from cookbook.pipeline import Prune, Quantize, build_stages
    from cookbook.pruning import MACs

    built = list(build_stages([name.strip() for name in text.split(",") if name.strip()]))
    for number, stage in enumerate(built):
        if ptq and isinstance(stage, Quantize):
            built[number] = Quantize("ptq")
        if macs is not None and isinstance(stage, Prune):
            built[number] = Prune(MACs(macs))
    if macs is not None and not any(isinstance(stage, Prune) for stage in built):
        raise UsageError(f"--macs says how far to prune, but the stages are {text}: add prune, or leave --macs out.")
    return tuple(built)


def read_data(source: str, size: int, validation_images: int | None) -> Splits:
    """Return the data of a name, a folder or a factory.

    Raises:
        UsageError: there is no such data, or the factory returns something else.
        DataError: the data are missing, damaged or unfit.
    """
    if ":" in source and not source.startswith(("fashion-mnist", "cifar10")) and not Path(source).exists():
        made = call_factory(source, "--data")
        if not isinstance(made, Splits):
            raise UsageError(
                f"--data {source} returned {type(made).__name__}: return cookbook.data.Splits, as from_torchvision does."
            )
        return made
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return load_dataset(source)
    if validation_images is None:
        images = sum(1 for _ in (folder / "train").glob("*/*"))
        validation_images = max(1, images // 10)
    return load_dataset(source, size=size, validation_size=validation_images)


def make_model(source: str, splits: Splits, weights: Path | None, *, trained_here: bool, seed: int) -> nn.Module:
    """Return the model of a name, a file or a factory, with its weights.

    Raises:
        UsageError: there is no such model, the factory returns something else, or a model of torchvision has no weights.
        CheckpointError: a file is missing or of another model.
    """
    seed_everything(seed)
    if source.endswith(".safetensors"):
        network = load(source)
    elif ":" in source:
        network = call_factory(source, "--model")
        if not isinstance(network, torch.nn.Module):
            raise UsageError(f"--model {source} returned {type(network).__name__}: return a torch.nn.Module.")
    else:
        network = build(TorchvisionConfig(source, len(splits.train.classes), splits.train.images.shape[1]))
        if weights is None and not trained_here:
            raise UsageError(
                f"{source} comes without weights: name a file with --weights, or train it first with --train EPOCHS."
            )
    return network if weights is None else load(weights, into=network)


def call_factory(source: str, option: str) -> Any:
    """Import ``package.module:name``, from the current folder too, and call it.

    Raises:
        UsageError: the module or the name does not exist, cannot be called, or fails.
    """
    module, _, name = source.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module), name)
        return factory()
    except CookbookError:
        raise
    except Exception as error:  # the reader's own code
        reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        raise UsageError(
            f"{option} {source} cannot be called ({type(error).__name__}: {reason}): name package.module:function, a function "
            "that needs no arguments."
        ) from error


def train_first(network: nn.Module, loader: ResidentLoader, recipe: Recipe, out: Path) -> None:
    """Train the model before it is compressed; interrupted, the same command goes on."""
    out.mkdir(parents=True, exist_ok=True)
    _say("training the model")
    network.to(loader.device)
    fit(network, loader, recipe, checkpoint=out / "baseline.state")
    network.cpu()
    if getattr(network, "config", None) is not None and not (out / "baseline.safetensors").exists():
        save(network, out / "baseline.safetensors")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
