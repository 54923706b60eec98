"""Architectures, and models on disk."""

from cookbook.models.modes import eval_mode
from cookbook.models.perceptron import Perceptron, PerceptronConfig
from cookbook.models.registry import build
from cookbook.models.resnet import ResNet, ResNetConfig
from cookbook.models.separable import SeparableConfig, SeparableNet
from cookbook.models.storage import load, save
from cookbook.models.torchvision_models import TorchvisionConfig
from cookbook.models.transformer import VisionTransformer, VisionTransformerConfig

__all__ = [
    "Perceptron",
    "PerceptronConfig",
    "ResNet",
    "ResNetConfig",
    "SeparableConfig",
    "SeparableNet",
    "TorchvisionConfig",
    "VisionTransformer",
    "VisionTransformerConfig",
    "build",
    "eval_mode",
    "load",
    "save",
]
