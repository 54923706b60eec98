"""What reading the loss in the loop costs: gpu-04 (lesson 01)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from cookbook.accelerator.mixed_precision import with_interval
from cookbook.accelerator.setting import Setting, Workload
from cookbook.accelerator.stepper import resident_step
from cookbook.evidence import ClaimEvidence
from cookbook.measure import interleave, speedup
from cookbook.throughput import count_synchronizations

LESSON = "01"
READS: dict[str, Callable[[Tensor], object]] = {
    "every_step": lambda loss: loss.item(),
    "every_step_numpy": lambda loss: loss.cpu().numpy(),
    "every_step_print": lambda loss: print(loss, file=io.StringIO()),  # the reading is timed, not the terminal
}


def record_reads(setting: Setting) -> Iterator[ClaimEvidence]:
    """Judge gpu-04: time loops that read the loss at each step, once in every 100, and never, in turns.

    The small ResNet decides; its steps are short, as in the course. The large one stands beside it, because
    a wait matters less the longer the GPU works by itself.
    """
    small, large, _ = setting.scale.workloads
    values = slowdowns(setting, small, 128) | slowdowns(setting, large, 32, of=f"_{large.key}")
    yield setting.evidence(
        "gpu-04", LESSON, values, f"loops of {setting.scale.loop_steps} steps in bf16, on one resident batch"
    )


def slowdowns(setting: Setting, workload: Workload, most: int, of: str = "") -> dict[str, float]:
    """Return how many times longer a loop takes with each way of reading, and the synchronizations of each.

    Args:
        setting: device and sizes.
        workload: model and images.
        most: images a step.
        of: ending of the values' names.
    """
    steps, device = setting.scale.loop_steps, setting.device
    step = resident_step(workload, "bf16", device, channels_last=True, batch=min(most, workload.batch))
    sides: dict[str, Callable[[], None]] = {
        name: partial(loop, step, steps, read, every=1) for name, read in READS.items()
    }  # fmt: skip
    sides["every_100"] = partial(loop, step, steps, READS["every_step"], every=100)
    sides["never"] = partial(loop, step, steps, READS["every_step"], every=0)
    timings = interleave(
        sides, batch=steps, rounds=setting.scale.loop_rounds, warmup=1, device=device, repeats=1
    )  # fmt: skip
    values = {f"step_seconds_never{of}": timings["never"].median / steps}
    for name, run in sides.items():
        if name != "never":
            values |= with_interval(f"slowdown_{name}{of}", speedup(timings[name], timings["never"]))
        values[f"synchronizations_{name}{of}"] = count_synchronizations(run, device=device).count
    return values


def loop(step: Callable[[], Tensor], steps: int, read: Callable[[Tensor], object], *, every: int) -> None:
    """Train and read the loss after `every` steps; 0 never reads."""
    for number in range(1, steps + 1):
        loss = step()
        if every and number % every == 0:
            read(loss)
