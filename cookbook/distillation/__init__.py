"""Distillation: losses as pure functions, a distilling fit, a teacher's answers computed once."""

from cookbook.distillation.distill import Distillation, Method, distill, student_config
from cookbook.distillation.features import Feature, FeatureLoss
from cookbook.distillation.losses import (
    attention_transfer,
    decoupled,
    decoupled_parts,
    hint,
    logit_mse,
    relational,
    soft_targets,
)
from cookbook.distillation.teacher_cache import Ensemble, ViewLoader, augmented_views, fingerprint, teacher_logits

__all__ = [
    "Distillation",
    "Ensemble",
    "Feature",
    "FeatureLoss",
    "Method",
    "ViewLoader",
    "attention_transfer",
    "augmented_views",
    "decoupled",
    "decoupled_parts",
    "distill",
    "fingerprint",
    "hint",
    "logit_mse",
    "relational",
    "soft_targets",
    "student_config",
    "teacher_logits",
]
