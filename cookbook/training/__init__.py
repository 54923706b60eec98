"""Recipes, the training loop and evaluation."""

from cookbook.training.evaluation import Evaluation, evaluate
from cookbook.training.fit import EpochRecord, Objective, fit
from cookbook.training.recipe import CrossEntropy, Recipe, build_optimizer

__all__ = ["CrossEntropy", "EpochRecord", "Evaluation", "Objective", "Recipe", "build_optimizer", "evaluate", "fit"]
