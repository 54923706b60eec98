"""All parts of the GPU evidence by name, with estimates for one H100 (lesson 01)."""

from __future__ import annotations

from collections.abc import Iterator

from cookbook.accelerator.batches import record_batches
from cookbook.accelerator.copies import record_copies
from cookbook.accelerator.loops import record_reads
from cookbook.accelerator.mixed_precision import record_accuracy, record_step_costs
from cookbook.accelerator.placement import record_mismatches
from cookbook.accelerator.runner import Part
from cookbook.accelerator.seeds import record_seeds
from cookbook.accelerator.setting import Setting
from cookbook.accelerator.speedrun import candidates, choose, record_speedrun
from cookbook.accelerator.stack import record_changes, record_stack
from cookbook.evidence import Measurement


def record_choice(setting: Setting) -> Iterator[Measurement]:
    """Yield what each candidate for the speedrun reached on validation, the chosen one last."""
    offered = candidates(setting.scale.speedrun)
    chosen, rows = choose(offered, setting)
    last = offered.index(chosen)
    yield from (*rows[:last], *rows[last + 1 :], rows[last])


PARTS = (
    Part("placement", "gpu-02, devices that don't match", 5, record_mismatches),
    Part("amp", "amp-01 and amp-02, time and memory of a step in four precisions", 75, record_step_costs),
    Part("speedrun", "time to 94 % on Fashion-MNIST, ten seeds and a cold start", 150, record_speedrun),
    Part("stack", "the whole speed stack against a naive loop", 75, record_stack),
    Part("reads", "gpu-04, reading the loss in the loop", 30, record_reads),
    Part("batches", "gpu-03, throughput against the batch", 30, record_batches),
    Part("copies", "gpu-05, pinned memory and workers", 50, record_copies),
    Part("accuracy", "amp-03, accuracy of 16 bits against fp32", 60, record_accuracy),
    Part("changes", "each change of the speed stack alone and stacked", 240, record_changes, by_default=False),
    Part("seeds", "measure-01, three trainings of the baseline", 300, record_seeds, by_default=False),
    Part("choose", "candidates for the speedrun, on validation", 550, record_choice, by_default=False),
)
