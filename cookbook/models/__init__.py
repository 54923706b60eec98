"""Architectures, and models on disk."""

from cookbook.models.registry import build
from cookbook.models.resnet import ResNet, ResNetConfig
from cookbook.models.storage import load, save

__all__ = ["ResNet", "ResNetConfig", "build", "load", "save"]
