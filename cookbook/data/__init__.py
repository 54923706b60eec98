"""Datasets, splits and loaders."""

from cookbook.data.augmentation import Augmentation
from cookbook.data.conversion import from_torchvision, load_image_folder
from cookbook.data.loaders import Batch, Loader, LoaderWrapper, ResidentLoader, TorchvisionLoader
from cookbook.data.sources import load_cifar10, load_dataset, load_fashion_mnist
from cookbook.data.splits import Role, Split, Splits, make_splits, require_role

__all__ = [
    "Augmentation",
    "Batch",
    "Loader",
    "LoaderWrapper",
    "ResidentLoader",
    "Role",
    "Split",
    "Splits",
    "TorchvisionLoader",
    "from_torchvision",
    "load_cifar10",
    "load_dataset",
    "load_fashion_mnist",
    "load_image_folder",
    "make_splits",
    "require_role",
]
