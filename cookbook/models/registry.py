"""Architectures by their configuration (lesson 00)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import nn

from cookbook.errors import UsageError
from cookbook.models.perceptron import Perceptron, PerceptronConfig
from cookbook.models.resnet import ResNet, ResNetConfig
from cookbook.models.separable import SeparableConfig, SeparableNet
from cookbook.models.torchvision_models import TorchvisionConfig, build_torchvision
from cookbook.models.transformer import VisionTransformer, VisionTransformerConfig

FAMILIES: dict[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "resnet": (ResNetConfig, ResNet),
    "separable": (SeparableConfig, SeparableNet),
    "transformer": (VisionTransformerConfig, VisionTransformer),
    "perceptron": (PerceptronConfig, Perceptron),
    "torchvision": (TorchvisionConfig, build_torchvision),
}


def build(config: Any) -> nn.Module:
    """Return a freshly initialized model for a configuration such as ``ResNetConfig(depth=20)``.

    Raises:
        UsageError: `config` is not a configuration of a known family.
    """
    for config_type, builder in FAMILIES.values():
        if isinstance(config, config_type):
            return builder(config)
    raise UsageError(f"{type(config).__name__} is not a model configuration: use one of {_names()}.")


def is_config(config: Any) -> bool:
    """Return whether `build` makes a model of it."""
    return isinstance(config, tuple(config_type for config_type, _ in FAMILIES.values()))


def config_to_json(config: Any) -> str:
    """Return the configuration with its family's name as JSON.

    Raises:
        UsageError: `config` is not a configuration of a known family.
    """
    for family, (config_type, _) in FAMILIES.items():
        if isinstance(config, config_type):
            return json.dumps({"family": family, **asdict(config)}, sort_keys=True)
    raise UsageError(f"{type(config).__name__} is not a model configuration: use one of {_names()}.")


def config_from_json(text: str) -> Any:
    """Return the configuration that `config_to_json` wrote.

    Raises:
        UsageError: the text names no known family, has fields that the family lacks, or a value
            that the family refuses.
    """
    try:
        fields = json.loads(text)
        config_type = FAMILIES[fields.pop("family")][0]
        return config_type(**fields)
    except UsageError:  # a ValueError, but one that already says what is wrong
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{text[:80]!r} is not a model configuration: use one of {_names()}.") from error


def _names() -> str:
    return ", ".join(config_type.__name__ for config_type, _ in FAMILIES.values())
