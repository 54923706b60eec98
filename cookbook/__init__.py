"""Measured lessons and tested tools for training deep networks faster and making them smaller.

The names below are the face: what a lesson, or a program of yours, imports. Each is loaded from
its module when it is first used, so that ``import cookbook`` and ``cookbook --help`` answer at once.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# ONNX Runtime reads this when it is imported. Without it, release 1.31 writes an identifier into the reader's home and
# sends events (https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md); lessons write and send nothing.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "cookbook.data": (
        "Augmentation", "ResidentLoader", "Split", "Splits", "TorchvisionLoader",
        "load_dataset", "load_fashion_mnist", "load_image_folder",
    ),
    "cookbook.deploy": (
        "OpenVinoRuntime", "Runtime", "export", "export_executorch", "export_legacy", "export_openvino", "graph_summary",
        "kernels", "parity", "parity_suite", "simplify",
    ),
    "cookbook.distillation": ("distill",),
    "cookbook.distributed": ("joined", "launch", "shard"),
    "cookbook.doctor": ("diagnose",),
    "cookbook.environment": ("by_profile", "current_profile", "pick_device", "seed_everything", "stamp"),
    "cookbook.errors": ("CookbookError",),
    "cookbook.evidence": ("ClaimEvidence", "Ledger", "Table", "scoreboard", "verdicts"),
    "cookbook.files": ("cache_directory", "data_directory"),
    "cookbook.measure": (
        "Candidate", "Measurement", "bytes_on_disk", "compare_paired", "compare_seeds", "count_macs",
        "count_parameters", "interleave", "measure_candidates", "peak_memory", "speedup", "spread", "wilson_interval",
    ),
    "cookbook.models": ("ResNetConfig", "build", "load", "save"),
    "cookbook.pipeline": (
        "Budget", "Distill", "Outcome", "Prune", "Quantize", "Relative", "Student", "Work", "compress", "unpack_onnx",
    ),
    "cookbook.plots": ("scoreboard_figure",),
    "cookbook.precision": ("gradient_survival",),
    "cookbook.pruning": ("Latency", "MACs", "Parameters", "prune", "prune_channels"),
    "cookbook.quantization": ("Scheme", "quantize", "quantize_aware_training"),
    "cookbook.search": ("RelativeLatency", "SearchSpace", "SharedWeights", "SuperNet", "train_supernet"),
    "cookbook.serving": (
        "MicroBatcher", "QueueFullError", "ServingResult", "serve_arrivals", "serve_load", "serving_table",
        "throughput_by_batch",
    ),
    "cookbook.speed": ("TrainingSetup", "measure_stack"),
    "cookbook.throughput": (
        "count_synchronizations", "find_batch_size", "find_training_batch_size", "step_breakdown", "tune_loader",
        "watch_synchronizations",
    ),
    "cookbook.training": ("Parallel", "Recipe", "checkpoint_activations", "evaluate", "fit"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    """Load a name of the face from its module (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cookbook' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
