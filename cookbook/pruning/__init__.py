"""Pruning: masks, channels and heads, to a measured budget."""

from cookbook.pruning.budget import Pruned, prune
from cookbook.pruning.channels import Scope, mask_channels, prunable_layers, prune_channels
from cookbook.pruning.clock import Clock, OrtClock
from cookbook.pruning.gradual import CubicSchedule, GradualMasking
from cookbook.pruning.guards import require_fresh_average, require_fresh_optimizer
from cookbook.pruning.heads import (
    explicit_heads,
    head_importance,
    least_important_heads,
    masked_heads,
    remove_heads,
)
from cookbook.pruning.importance import Importance, channel_scores
from cookbook.pruning.latency import Latency, width_of_equal_latency
from cookbook.pruning.layer_table import LayerTable
from cookbook.pruning.masks import attach_masks, make_permanent, mask_two_of_four, mask_weights
from cookbook.pruning.recovery import fine_tune, fine_tuning_recipe, reestimate_batchnorm, scratch_control
from cookbook.pruning.report import MaskReport, mask_report
from cookbook.pruning.sensitivity import Sensitivity, allocate_ratios, scan_sensitivity
from cookbook.pruning.sparsity import GroupLasso, Slimming
from cookbook.pruning.staircase import PreferredMultiple, Staircase, Step, preferred_multiple, width_staircase
from cookbook.pruning.targets import MACs, Parameters, Target

__all__ = [
    "Clock",
    "CubicSchedule",
    "GradualMasking",
    "GroupLasso",
    "Importance",
    "Latency",
    "LayerTable",
    "MACs",
    "MaskReport",
    "OrtClock",
    "Parameters",
    "PreferredMultiple",
    "Pruned",
    "Scope",
    "Sensitivity",
    "Slimming",
    "Staircase",
    "Step",
    "Target",
    "allocate_ratios",
    "attach_masks",
    "channel_scores",
    "explicit_heads",
    "fine_tune",
    "fine_tuning_recipe",
    "head_importance",
    "least_important_heads",
    "make_permanent",
    "mask_channels",
    "mask_report",
    "mask_two_of_four",
    "mask_weights",
    "masked_heads",
    "preferred_multiple",
    "prunable_layers",
    "prune",
    "prune_channels",
    "reestimate_batchnorm",
    "remove_heads",
    "require_fresh_average",
    "require_fresh_optimizer",
    "scan_sensitivity",
    "scratch_control",
    "width_of_equal_latency",
    "width_staircase",
]
