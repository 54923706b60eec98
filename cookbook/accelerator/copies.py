"""Whether pinned memory and workers hide the copy to the GPU: gpu-05 (lesson 01)."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cookbook.accelerator.mixed_precision import with_interval
from cookbook.accelerator.setting import Setting, Workload
from cookbook.accelerator.stepper import Stepper, step_recipe
from cookbook.errors import CookbookError
from cookbook.evidence import ClaimEvidence
from cookbook.measure import interleave, speedup
from cookbook.models import build
from cookbook.throughput.loader_tuning import SHARED_MEMORY

LESSON = "01"
PREFETCH = 2  # batches that a worker prepares ahead, torch's default
MOST_IMAGES = 64  # a step; float32 pictures of 224 pixels: 39 MB a batch to copy


class Photos(Dataset[tuple[Tensor, int]]):
    """Random pictures as bytes, each turned into normalized float32 when it is asked for, as torchvision's transforms do."""

    def __init__(self, shape: tuple[int, int, int], count: int) -> None:
        self.pixels = torch.randint(0, 256, (16, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (self.pixels[index % len(self.pixels)].float() / 255 - 0.5) / 0.25, index % 2


def record_copies(setting: Setting) -> Iterator[ClaimEvidence]:
    """Judge gpu-05: time an epoch of the large ResNet in bf16 under the four combinations, and on a resident batch.

    The workers live on between the epochs, so that their start is not timed. Copies are asynchronous
    wherever the memory is pinned; from other memory torch can't make them so.
    """
    scale, workload, device = setting.scale, setting.scale.workloads[1], setting.device
    batch = fitting_batch(workload, scale.workers)
    stepper = Stepper(build(workload.config).to(device), step_recipe("bf16", channels_last=True))
    sides: dict[str, Callable[[], None]] = {
        name: partial(epoch, stepper, loader, device)
        for name, loader in loaders(workload, batch, scale.loader_steps, scale.workers, device).items()
    }
    resident = workload.random_batch(device, batch)
    sides["resident"] = lambda: epoch(stepper, [resident] * scale.loader_steps, device)
    timings = interleave(
        sides, batch=batch * scale.loader_steps, rounds=max(3, scale.loop_rounds // 2), warmup=1, device=device, repeats=1
    )
    values = with_interval("step_time_ratio", speedup(timings["unpinned_no_workers"], timings["pinned_workers"]))
    values |= with_interval("pinning_ratio_workers", speedup(timings["unpinned_workers"], timings["pinned_workers"]))
    values |= with_interval("step_time_over_resident", speedup(timings["pinned_workers"], timings["resident"]))
    values |= {f"step_seconds_{name}": timing.median / scale.loader_steps for name, timing in timings.items()}
    values |= {"workers": scale.workers, "batch": batch}
    yield setting.evidence("gpu-05", LESSON, values, f"{workload.name} in bf16, epochs of {scale.loader_steps} batches")


def loaders(
    workload: Workload, batch: int, steps: int, workers: int, device: torch.device
) -> dict[str, DataLoader[tuple[Tensor, int]]]:
    """Return the four combinations by name; without a GPU there is nothing to pin memory for.

    The workers come from a process that never computed, where the system has such: a plain fork copies
    the locks of this one's threads, and can hang.
    """
    photos = Photos(workload.shape, batch * steps)
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if context == "forkserver":
        multiprocessing.set_forkserver_preload([Photos.__module__])  # imports torch once for all workers
    return {
        f"{'pinned' if pinned else 'unpinned'}_{'workers' if number else 'no_workers'}": DataLoader(
            photos, batch, num_workers=number, persistent_workers=number > 0, pin_memory=pinned and device.type == "cuda",
            prefetch_factor=PREFETCH if number else None, multiprocessing_context=context if number else None,
        )
        for pinned in (False, True)
        for number in (0, workers)
    }  # fmt: skip


def epoch(
    stepper: Stepper, batches: DataLoader[tuple[Tensor, int]] | list[tuple[Tensor, Tensor]], device: torch.device
) -> None:
    """Train one step on every batch; a batch that is on the device already is not copied."""
    for images, labels in batches:
        stepper(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))


def fitting_batch(workload: Workload, workers: int) -> int:
    """Return how many images a batch may have so that the workers' batches fit into half of the shared memory.

    Containers often have no more than 64 MB of it, and a worker that finds it full is killed.

    Raises:
        CookbookError: not even one image a batch fits.
    """
    wanted = min(workload.batch, MOST_IMAGES)
    if not SHARED_MEMORY.is_dir():
        return wanted
    free = shutil.disk_usage(SHARED_MEMORY).free // 2
    image = 4 * workload.shape[0] * workload.shape[1] * workload.shape[2]
    sides = 2  # with pinned memory and without, both sets of workers live at once
    fitting = min(wanted, free // (sides * workers * (PREFETCH + 1) * image))
    if fitting < 1:
        raise CookbookError(
            f"{SHARED_MEMORY} has {2 * free / 1e6:.0f} MB free, too little for {workers} workers: "
            "give the container more shared memory, such as --shm-size=2g."
        )
    return fitting
