"""One optimizer step as a function that can be timed, and the memory that it takes (lesson 02)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.accelerator.setting import Workload, release
from cookbook.measure import peak_memory
from cookbook.models import build
from cookbook.precision import PrecisionName
from cookbook.throughput.rehearsal import RepeatedBatch, preserved_randomness
from cookbook.training import Recipe
from cookbook.training.run import Run

WARMUP_STEPS = 3  # the optimizer makes its state in the first; libraries choose kernels in the first two


class Stepper:
    """Trains a model one step of `fit` at each call, on whatever batch it is given.

    Other than `fit` it reads no loss, so that it never waits for the device by itself, and it leaves
    torch's usual choice of kernels in force.

    Args:
        model: on the device where it shall train.
        recipe: precision, memory format, optimizer and compilation; its rate should be constant.

    Raises:
        UsageError: the device lacks the precision, or a layer is unsafe in the channels-last format.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.loss = torch.zeros(())
        with preserved_randomness():
            self.run = Run(model, RepeatedBatch(self.loss, self.loss.view(1), 1), recipe, self._objective)
        model.train()

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step on float32 images (B, C, H, W) and labels (B,); return the loss, still on the device."""
        with self.run.precision.matmul_mode():
            self.run.step(iter([(images, labels)]))
        self.run.unread_losses.clear()
        return self.loss

    def _objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        self.loss = loss.detach()
        return loss


def step_recipe(precision: PrecisionName, *, channels_last: bool = False) -> Recipe:
    """Return a recipe for timing steps: a constant rate at which weights stay finite however often a batch is repeated."""
    return Recipe(epochs=1, learning_rate=1e-4, schedule="constant", precision=precision, channels_last=channels_last)


def resident_step(
    workload: Workload, precision: PrecisionName, device: torch.device, *, channels_last: bool = False, batch: int | None = None
) -> Callable[[], Tensor]:
    """Return a function that trains the workload's model one step, always on the same batch that lies on the device."""
    torch.manual_seed(0)
    stepper = Stepper(build(workload.config).to(device), step_recipe(precision, channels_last=channels_last))
    return partial(stepper, *workload.random_batch(device, batch))


def training_memory(make_step: Callable[[], Callable[[], object]], device: torch.device) -> tuple[int, int]:
    """Return the peaks of allocated and of reserved memory in one step of a training, in bytes.

    Both count everything that the training holds: batch, weights, optimizer state, activations and
    gradients. Allocated is what tensors need; reserved is what torch's allocator took from the GPU for
    them (https://docs.pytorch.org/docs/stable/notes/cuda.html). On a CPU both are the growth of
    the resident set during the step.

    Args:
        make_step: builds model and optimizer on `device` and returns a function that takes one step.
        device: where.
    """
    on_gpu = device.type == "cuda"
    release(device)
    allocated = torch.cuda.memory_allocated(device) if on_gpu else 0
    reserved = torch.cuda.memory_reserved(device) if on_gpu else 0
    step = make_step()
    for _ in range(WARMUP_STEPS):
        step()
    release(device)
    held = torch.cuda.memory_allocated(device) - allocated if on_gpu else 0
    peak = held + peak_memory(step, device)
    return peak, torch.cuda.max_memory_reserved(device) - reserved if on_gpu else peak
