"""What a training step waits for: batch size, loader, hidden synchronizations, and where its time goes (lesson 01)."""

from cookbook.throughput.batch_size import BatchSizeResult, Trial, find_batch_size, find_training_batch_size
from cookbook.throughput.breakdown import PHASES, Breakdown, step_breakdown
from cookbook.throughput.loader_tuning import LoaderSetting, LoaderTuning, tune_loader
from cookbook.throughput.out_of_memory import is_out_of_memory
from cookbook.throughput.synchronizations import (
    Synchronization,
    SynchronizationReport,
    count_synchronizations,
    watch_synchronizations,
)

__all__ = [
    "PHASES",
    "BatchSizeResult",
    "Breakdown",
    "LoaderSetting",
    "LoaderTuning",
    "Synchronization",
    "SynchronizationReport",
    "Trial",
    "count_synchronizations",
    "find_batch_size",
    "find_training_batch_size",
    "is_out_of_memory",
    "step_breakdown",
    "tune_loader",
    "watch_synchronizations",
]
