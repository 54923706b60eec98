"""Recipes, the training loop and evaluation."""

from cookbook.training.evaluation import Evaluation, evaluate
from cookbook.training.fit import fit
from cookbook.training.recipe import CrossEntropy, Recipe, build_optimizer
from cookbook.training.recompute import checkpoint_activations
from cookbook.training.run import EpochRecord, Objective

__all__ = [
    "CrossEntropy",
    "EpochRecord",
    "Evaluation",
    "Objective",
    "Recipe",
    "build_optimizer",
    "checkpoint_activations",
    "evaluate",
    "fit",
]
