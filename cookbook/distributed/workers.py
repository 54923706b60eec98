"""What lesson 03 and `make bench` let several processes do: sampling, training, and timing a step (lesson 03).

Each is a worker for `launch`, and computes the same in one process that calls it directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cookbook.data import Augmentation, ResidentLoader, load_fashion_mnist
from cookbook.distributed.context import Context, joined
from cookbook.environment import seed_everything
from cookbook.errors import UsageError
from cookbook.measure.latency import synchronizer
from cookbook.models import ResNetConfig, build
from cookbook.precision import PrecisionName
from cookbook.training import Recipe, evaluate_across_ranks, fit

NETWORK = ResNetConfig(depth=8, width=16, stem_stride=2)


def visited_samples(samples: int) -> dict[str, list[int]]:
    """Return which samples this rank visits in an epoch, in order, in three scripts that differ in one line.

    Each rank has the whole dataset, and the same seed, as scripts have. ``plain``: a shuffling DataLoader.
    ``sampler``: a `DistributedSampler` in it. ``second epoch``: the same without a call of ``set_epoch``.

    Args:
        samples: in the dataset.
    """
    with joined(device="cpu") as context:
        seed_everything(0)
        numbers: Dataset[int] = range(samples)  # type: ignore[assignment]
        sampler: DistributedSampler[int] = DistributedSampler(numbers, context.world, context.rank)
        plain, dealt = DataLoader(numbers, 8, shuffle=True), DataLoader(numbers, 8, sampler=sampler)
        loaders = {"plain": plain, "sampler": dealt, "second epoch": dealt}
        return {name: torch.cat(list(loader)).tolist() for name, loader in loaders.items()}


def training_trial(
    images: int,
    epochs: int,
    batch_size: int,
    precisions: Sequence[PrecisionName],
    seeds: Sequence[int],
    test_images: int,
    device: str | None = None,
) -> dict[str, Any]:
    """Train the lesson's network on Fashion-MNIST, once for each precision and seed, with all ranks together.

    Args:
        images: of the training split.
        epochs: passes over them.
        batch_size: images of a step, over all ranks.
        precisions: such as ``fp32`` and ``bf16``.
        seeds: of weights, order and augmentation.
        test_images: evaluated after training.
        device: as for `joined`.

    Returns:
        ``accuracy``, in percent by precision, one a seed; ``losses`` of the epochs of the last training; and
        ``images``, how many the evaluation counted, over all ranks.
    """
    with joined(device=device) as context:
        splits = load_fashion_mnist()
        pictures = splits.train.subset(images)
        test = ResidentLoader(splits.test.subset(test_images), 250, device=context.device)
        accuracy: dict[str, list[float]] = {precision: [] for precision in precisions}
        losses: list[float] = []
        counted = 0
        for precision in precisions:
            for seed in seeds:
                seed_everything(seed)
                network = build(NETWORK).to(context.device)
                loader = ResidentLoader(
                    pictures, batch_size, augmentation=Augmentation(crop=2, flip=True), device=context.device, seed=seed
                )
                recipe = Recipe(epochs=epochs, learning_rate=0.1, precision=precision, seed=seed)
                losses = [epoch.train_loss for epoch in fit(network, loader, recipe, progress=False)]
                result = evaluate_across_ranks(network, test)
                accuracy[precision].append(100 * result.accuracy)
                counted = len(result.labels)
        return {"accuracy": accuracy, "losses": losses, "images": counted}


def step_trial(
    batch: int, steps: int, rounds: int, device: str | None = None, data_parallel: bool = False
) -> dict[str, list[float]]:
    """Time a training step of rank 0 alone and of all ranks together, in turns, while those who do not compute wait.

    Args:
        batch: images of each rank; alone, rank 0 has as many.
        steps: in a sample.
        rounds: samples of each.
        device: as for `joined`.
        data_parallel: also time `torch.nn.DataParallel` in rank 0's process, on all GPUs, with the images of all.

    Returns:
        On rank 0 seconds for a step, one a round: ``alone``, ``together``, and ``data-parallel`` where it was asked
        for; elsewhere nothing.

    Raises:
        UsageError: DataParallel needs two GPUs.
    """
    with joined(device=device) as context:
        if data_parallel and torch.cuda.device_count() < 2:
            raise UsageError(f"DataParallel needs two GPUs, and this machine has {torch.cuda.device_count()}: leave it out.")
        ways = {"alone": _stepper(batch, context, lambda model: model)}
        if context.world > 1:
            device_ids = None if context.device.type == "cpu" else [context.device]
            ways["together"] = _stepper(batch, context, lambda model: DistributedDataParallel(model, device_ids=device_ids))
        if data_parallel:
            ways["data-parallel"] = _stepper(batch * context.world, context, nn.DataParallel)
        wait = synchronizer(context.device)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first warms up
            for name in list(ways)[:: 1 if number % 2 else -1]:
                _barrier(context)
                began = time.perf_counter()
                if name == "together" or context.first:
                    for _ in range(steps):
                        ways[name]()
                    wait()
                if number:
                    taken[name].append((time.perf_counter() - began) / steps)
                _barrier(context)
        return taken if context.first else {}


def _barrier(context: Context) -> None:
    if context.world > 1:
        dist.barrier()


def _stepper(batch: int, context: Context, wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], None]:
    """Return a function that takes one step on random images."""
    seed_everything(0)
    model = wrap(build(NETWORK).to(context.device).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 1, 28, 28, device=context.device)
    labels = torch.randint(10, (batch,), device=context.device)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
