"""What a larger batch brings, up to what fits: gpu-03 (lesson 01)."""

from __future__ import annotations

from collections.abc import Iterator

from cookbook.accelerator.setting import Setting
from cookbook.accelerator.stepper import Stepper, step_recipe
from cookbook.evidence import ClaimEvidence
from cookbook.models import build
from cookbook.throughput import find_batch_size

LESSON = "01"
SMALLEST = 4096  # times smaller than the largest: from 4 images on


def record_batches(setting: Setting) -> Iterator[ClaimEvidence]:
    """Judge gpu-03: double the batch from 4 images on, as far as memory or the scale allows, and time all in turns.

    ``throughput_gain`` compares the largest batch that fitted with the smallest, and
    ``gain_of_last_doubling`` says whether the curve still rises at its end.
    """
    workload, largest = setting.scale.workloads[0], setting.scale.largest_batch
    stepper = Stepper(build(workload.config).to(setting.device), step_recipe("bf16", channels_last=True))
    images, labels = workload.random_batch(setting.device, largest)
    found = find_batch_size(
        lambda batch: stepper(images[:batch], labels[:batch]),
        start=max(2, largest // SMALLEST), limit=largest, device=setting.device,
    )  # fmt: skip
    speeds = found.throughputs
    first, last = min(speeds), max(speeds)
    half = max(size for size in speeds if 2 * size <= last or size == first)
    values = {
        "throughput_gain": speeds[last] / speeds[first], "gain_of_last_doubling": speeds[last] / speeds[half],
        "best_batch": found.best, "largest_batch": found.largest, "smallest_batch": first,
        "memory_bytes_largest": max(trial.memory or 0 for trial in found.trials if trial.fits),
    }  # fmt: skip
    values |= {f"images_per_second_{size}": speed for size, speed in speeds.items()}
    yield setting.evidence("gpu-03", LESSON, values, f"{workload.name} in bf16, training steps on resident images")
