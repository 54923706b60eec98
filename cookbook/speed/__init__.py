"""The speed stack: one change to a training at a time, each measured alone and on top of the others."""

from cookbook.speed.changes import (
    CHANNELS_LAST,
    COMPILED,
    CUDA_GRAPHS,
    FUSED,
    RESIDENT,
    SpeedChange,
    TrainingSetup,
    in_precision,
    with_accumulation,
    with_larger_batch,
    with_recomputation,
)
from cookbook.speed.stack import SpeedStack, measure_stack

__all__ = [
    "CHANNELS_LAST",
    "COMPILED",
    "CUDA_GRAPHS",
    "FUSED",
    "RESIDENT",
    "SpeedChange",
    "SpeedStack",
    "TrainingSetup",
    "in_precision",
    "measure_stack",
    "with_accumulation",
    "with_larger_batch",
    "with_recomputation",
]
