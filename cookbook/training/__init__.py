"""Recipes, the training loop and evaluation."""

from cookbook.training.evaluation import Evaluation, evaluate, evaluate_across_ranks
from cookbook.training.fit import fit
from cookbook.training.parallel import Parallel
from cookbook.training.ranks import RankError, Ranks
from cookbook.training.recipe import CrossEntropy, Recipe, build_optimizer
from cookbook.training.recompute import checkpoint_activations
from cookbook.training.run import EpochRecord, Objective

__all__ = [
    "CrossEntropy",
    "EpochRecord",
    "Evaluation",
    "Objective",
    "Parallel",
    "RankError",
    "Ranks",
    "Recipe",
    "build_optimizer",
    "checkpoint_activations",
    "evaluate",
    "evaluate_across_ranks",
    "fit",
]
