"""Datasets, splits and loaders."""

from cookbook.data.augmentation import Augmentation
from cookbook.data.loaders import Batch, Loader, ResidentLoader, TorchvisionLoader
from cookbook.data.sources import load_fashion_mnist
from cookbook.data.splits import Role, Split, Splits, make_splits, require_role

__all__ = [
    "Augmentation",
    "Batch",
    "Loader",
    "ResidentLoader",
    "Role",
    "Split",
    "Splits",
    "TorchvisionLoader",
    "load_fashion_mnist",
    "make_splits",
    "require_role",
]
