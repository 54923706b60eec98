"""Precision policies, the loss scale, and what 16 bits do to gradients."""

from cookbook.precision.gradients import GradientReport, gradient_survival
from cookbook.precision.policy import Precision, PrecisionName, clip_gradients
from cookbook.precision.scaling import LossScaling, StepOutcome

__all__ = [
    "GradientReport",
    "LossScaling",
    "Precision",
    "PrecisionName",
    "StepOutcome",
    "clip_gradients",
    "gradient_survival",
]
