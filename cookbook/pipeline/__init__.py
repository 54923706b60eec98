"""The stages combined: one model, one budget, one file, one report."""

from cookbook.pipeline.budget import Budget, Relative, Violation
from cookbook.pipeline.compression import compress
from cookbook.pipeline.plan import Plan, make_plan
from cookbook.pipeline.pruning_stage import Prune
from cookbook.pipeline.result import Compressed, StageResult
from cookbook.pipeline.settings import build_stages, default_recipe
from cookbook.pipeline.stage import Gain, Outcome, Stage, Work
from cookbook.pipeline.storage import pack_onnx, unpack_onnx
from cookbook.pipeline.training_stages import Distill, Quantize, Student

__all__ = [
    "Budget",
    "Compressed",
    "Distill",
    "Gain",
    "Outcome",
    "Plan",
    "Prune",
    "Quantize",
    "Relative",
    "Stage",
    "StageResult",
    "Student",
    "Violation",
    "Work",
    "build_stages",
    "compress",
    "default_recipe",
    "make_plan",
    "pack_onnx",
    "unpack_onnx",
]
