"""What every part of the GPU evidence shares: the device, and how large everything is (lessons 01 and 02)."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cookbook.data import Augmentation, Splits, load_fashion_mnist
from cookbook.environment import provenance
from cookbook.evidence import ClaimEvidence
from cookbook.models import ResNetConfig, TorchvisionConfig, VisionTransformerConfig
from cookbook.precision import PrecisionName
from cookbook.training import Recipe


@dataclass(frozen=True)
class Workload:
    """A model with the batch that it trains on in the timings; the images are random numbers.

    Attributes:
        key: how the values of a claim name it, such as ``resnet50``.
        name: how tables name it.
        config: of the model.
        shape: of one image: channels, height, width.
        batch: images a step.
        convolutional: whether the memory format matters to it.
    """

    key: str
    name: str
    config: Any
    shape: tuple[int, int, int]
    batch: int
    convolutional: bool = True

    def random_batch(self, device: torch.device, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Return float32 images (`size` or `batch`, *shape) and int64 labels on `device`, always the same ones."""
        generator = torch.Generator().manual_seed(0)
        count = size or self.batch
        images = torch.randn((count, *self.shape), generator=generator)
        labels = torch.randint(0, self.config.classes, (count,), generator=generator)
        return images.to(device), labels.to(device)


@dataclass(frozen=True, kw_only=True)
class Speedrun:
    """A recipe that shall reach an accuracy in the shortest time; tuned on validation by `choose`.

    Attributes:
        model: a network for 28×28 grey images.
        batch_size: images a step.
        recipe: of `fit`; it sets the seed anew for each run.
        augmentation: on the device, in whole batches.
        compile: run the model through `torch.compile`, once for all seeds.
    """

    model: ResNetConfig
    batch_size: int
    recipe: Recipe
    augmentation: Augmentation
    compile: bool


SPEEDRUN = Speedrun(
    model=ResNetConfig(depth=8, width=64),  # few, wide layers keep a GPU busier than many narrow ones
    batch_size=512,
    recipe=Recipe(epochs=14, learning_rate=0.4, label_smoothing=0.1, warmup=0.2, precision="bf16", channels_last=True),
    augmentation=Augmentation(crop=2, flip=True),
    compile=True,
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The sizes of all parts. `FULL` makes evidence, `REHEARSAL` shows in seconds on a CPU that everything runs.

    Attributes:
        name: ``full`` or ``rehearsal``.
        workloads: small ResNet, large ResNet, transformer, in this order.
        rounds: samples of every timing.
        images: training, validation and test images of Fashion-MNIST; None: all.
        accuracy_model: trained in each precision; it also takes part in the speed stack.
        accuracy_recipe: of these trainings.
        accuracy_batch: images a step in them.
        accuracy_seeds: the trainings of each precision; a paired test takes three or more.
        largest_batch: where the batch sweep stops when memory does not stop it before.
        loop_steps: steps of the loops that log.
        loop_rounds: samples of everything that takes a whole loop.
        loader_steps: batches of an epoch through a DataLoader.
        workers: processes of that DataLoader.
        naive_batch: images a step of the naive loop.
        batch_factor: by which the speed stack enlarges that batch.
        compile: let the speed stack compile.
        speedrun: the recipe of the headline figure.
        speedrun_seeds: its runs.
        baseline_seeds: trainings of the baseline's own recipe.
        baseline_epochs: of them; None: the recipe's own.
        longest_part: cap on the estimates, in seconds.
    """

    name: str
    workloads: tuple[Workload, Workload, Workload]
    rounds: int
    images: tuple[int, int, int] | None
    accuracy_model: ResNetConfig
    accuracy_recipe: Recipe
    accuracy_batch: int
    accuracy_seeds: tuple[int, ...]
    largest_batch: int
    loop_steps: int
    loop_rounds: int
    loader_steps: int
    workers: int
    naive_batch: int
    batch_factor: int
    compile: bool
    speedrun: Speedrun
    speedrun_seeds: tuple[int, ...]
    baseline_seeds: tuple[int, ...]
    baseline_epochs: int | None
    longest_part: float


FULL = Scale(
    name="full",
    workloads=(
        Workload("resnet20", "ResNet-20×32 at 28", ResNetConfig(), (1, 28, 28), 1024),
        Workload("resnet50", "ResNet-50 at 224", TorchvisionConfig("resnet50"), (3, 224, 224), 128),
        Workload(
            "transformer", "transformer of 256 tokens",
            VisionTransformerConfig(
                image_size=64, patch=4, in_channels=3, embedding=384, layers=6, heads=6, head_dim=64, hidden=1536
            ),
            (3, 64, 64), 128, convolutional=False,
        ),
    ),
    rounds=20,
    images=None,
    accuracy_model=ResNetConfig(),
    accuracy_recipe=Recipe(epochs=3, learning_rate=0.4, label_smoothing=0.1, channels_last=True),
    accuracy_batch=512,
    accuracy_seeds=(0, 1, 2, 3, 4),
    largest_batch=16_384,
    loop_steps=100,
    loop_rounds=10,
    loader_steps=20,
    workers=8,
    naive_batch=128,
    batch_factor=8,
    compile=True,
    speedrun=SPEEDRUN,
    speedrun_seeds=tuple(range(10)),
    baseline_seeds=(0, 1, 2),
    baseline_epochs=None,
    longest_part=600.0,
)  # fmt: skip

TINY = ResNetConfig(depth=8, width=16)  # 16 channels: fewer are not safe in the channels-last format on a CPU
TINY_RECIPE = Recipe(epochs=1, learning_rate=0.01)

REHEARSAL = Scale(
    name="rehearsal",
    workloads=(
        Workload("resnet20", "tiny ResNet", TINY, (1, 8, 8), 4),
        Workload("resnet50", "tiny colour ResNet", ResNetConfig(depth=8, width=16, in_channels=3), (3, 12, 12), 2),
        Workload(
            "transformer", "tiny transformer",
            VisionTransformerConfig(image_size=8, in_channels=3, embedding=8, layers=1, heads=2, head_dim=4, hidden=8),
            (3, 8, 8), 2, convolutional=False,
        ),
    ),
    rounds=3,
    images=(64, 20, 20),
    accuracy_model=TINY,
    accuracy_recipe=TINY_RECIPE,
    accuracy_batch=32,
    accuracy_seeds=(0, 1, 2),
    largest_batch=8,
    loop_steps=4,
    loop_rounds=3,
    loader_steps=2,
    workers=1,
    naive_batch=8,
    batch_factor=2,
    compile=False,
    speedrun=Speedrun(
        model=TINY, batch_size=32, compile=False, augmentation=SPEEDRUN.augmentation,
        recipe=Recipe(epochs=1, learning_rate=0.01, precision="bf16", channels_last=True),
    ),
    speedrun_seeds=(0, 1),
    baseline_seeds=(0, 1),
    baseline_epochs=1,
    longest_part=3.0,
)  # fmt: skip

SCALES = {scale.name: scale for scale in (FULL, REHEARSAL)}


@dataclass(frozen=True)
class Setting:
    """Where a part runs, and how large.

    Attributes:
        device: that computes.
        scale: the sizes.
    """

    device: torch.device
    scale: Scale

    @functools.cached_property
    def splits(self) -> Splits:
        """Fashion-MNIST, or the stratified parts of it that the scale asks for."""
        splits = load_fashion_mnist()
        if self.scale.images is None:
            return splits
        train, validation, test = self.scale.images
        return Splits(splits.train.subset(train), splits.validation.subset(validation), splits.test.subset(test))

    @property
    def precisions(self) -> tuple[PrecisionName, ...]:
        """What can be compared here: a CPU has no TF32, and no loss scaling."""
        return ("fp32", "tf32", "bf16", "fp16") if self.device.type == "cuda" else ("fp32", "bf16")

    @property
    def half_precisions(self) -> tuple[PrecisionName, ...]:
        """Those with 16 bits."""
        return tuple(name for name in self.precisions if name in ("bf16", "fp16"))

    def evidence(
        self, claim: str, lesson: str, values: dict[str, float], note: str = "", seeds: tuple[int, ...] = ()
    ) -> ClaimEvidence:
        """Return a row of evidence with the provenance of the device."""
        return ClaimEvidence(
            claim=claim, lesson=lesson, values=values, note=note, seeds=seeds, provenance=provenance(self.device)
        )


def release(device: torch.device) -> None:
    """Give a GPU's unused memory back, so that what comes next begins as in a fresh process."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


@contextlib.contextmanager
def usual_kernels() -> Iterator[None]:
    """Let cuDNN choose its kernels as torch does by default, which an earlier `fit` has narrowed to deterministic ones."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before
