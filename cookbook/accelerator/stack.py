"""The whole speed stack against the loop that everyone writes first, and each change by itself (lesson 02)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from cookbook.accelerator.setting import Setting
from cookbook.data import Augmentation
from cookbook.evidence import BenchRatio, Measurement
from cookbook.measure import Ratio
from cookbook.models import build
from cookbook.speed import (
    CHANNELS_LAST,
    COMPILED,
    CUDA_GRAPHS,
    FUSED,
    RESIDENT,
    SpeedChange,
    SpeedStack,
    TrainingSetup,
    in_precision,
    measure_stack,
    with_larger_batch,
)
from cookbook.training import Recipe

LESSON = "02"


def record_stack(setting: Setting) -> Iterator[BenchRatio]:
    """Compare the naive training with all changes at once; the target is ten times the images per second."""
    found = _measure(setting, [everything(setting)])
    unchanged, changed = found.measurements
    values = changed.values
    rates = f"{values['images_per_second']:.0f} against {unchanged.values['images_per_second']:.0f}"
    yield BenchRatio(
        name="whole speed stack", baseline=f"fp32, DataLoader, batches of {setting.scale.naive_batch}",
        candidate=", ".join(change.name for change in changes(setting)),
        ratio=Ratio(values["speedup"], values["speedup_low"], values["speedup_high"]),
        what=f"images per second in training with crop and flip, {rates}", provenance=changed.provenance,
    )  # fmt: skip


def record_changes(setting: Setting) -> Iterator[Measurement]:
    """Measure each change alone and on top of the ones before it; CUDA graphs replace the plain compilation at the end."""
    yield from _measure(setting, [*changes(setting), *([CUDA_GRAPHS] if setting.scale.compile else [])]).measurements


def changes(setting: Setting) -> list[SpeedChange]:
    """Return the stack in its order."""
    listed = [RESIDENT, in_precision("bf16"), CHANNELS_LAST, FUSED, with_larger_batch(setting.scale.batch_factor)]
    return [*listed, COMPILED] if setting.scale.compile else listed


def everything(setting: Setting) -> SpeedChange:
    """Return all changes as one, so that nothing of it was compiled for another batch before."""

    def apply(setup: TrainingSetup) -> TrainingSetup:
        for change in changes(setting):
            setup = change.apply(setup)
        return setup

    return SpeedChange("whole stack", apply, COMPILED.missing if setting.scale.compile else (lambda device: None), stacks=False)


def _measure(setting: Setting, stack: list[SpeedChange]) -> SpeedStack:
    scale = setting.scale
    start = TrainingSetup(
        recipe=Recipe(epochs=1, learning_rate=1e-3, schedule="constant"), split=setting.splits.train,
        batch_size=scale.naive_batch, device=setting.device, augmentation=Augmentation(crop=2, flip=True),
    )  # fmt: skip
    torch.compiler.reset()
    return measure_stack(
        stack, start, partial(build, scale.accuracy_model), lesson=LESSON, rounds=scale.loop_rounds,
        threads=torch.get_num_threads(),
    )  # fmt: skip
