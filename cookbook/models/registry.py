"""Architectures by their configuration (lesson 00)."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from torch import nn

from cookbook.errors import UsageError
from cookbook.models.resnet import ResNet, ResNetConfig

FAMILIES: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "resnet": (ResNetConfig, ResNet),
}


def build(config: Any) -> nn.Module:
    """Return a freshly initialized model for a configuration such as ``ResNetConfig(depth=20)``.

    Raises:
        UsageError: `config` is not a configuration of a known family.
    """
    for config_type, model_type in FAMILIES.values():
        if isinstance(config, config_type):
            return model_type(config)
    raise UsageError(f"{type(config).__name__} is not a model configuration: use one of {_names()}.")


def config_to_json(config: Any) -> str:
    """Return the configuration with its family's name as JSON."""
    for family, (config_type, _) in FAMILIES.items():
        if isinstance(config, config_type) and is_dataclass(config):
            return json.dumps({"family": family, **asdict(config)}, sort_keys=True)
    raise UsageError(f"{type(config).__name__} is not a model configuration: use one of {_names()}.")


def config_from_json(text: str) -> Any:
    """Return the configuration that `config_to_json` wrote.

    Raises:
        UsageError: the text names no known family, or has fields that the family lacks.
    """
    try:
        fields = json.loads(text)
        config_type = FAMILIES[fields.pop("family")][0]
        return config_type(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{text[:80]!r} is not a model configuration: use one of {_names()}.") from error


def _names() -> str:
    return ", ".join(config_type.__name__ for config_type, _ in FAMILIES.values())
