"""Configurations as JSON, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cookbook.errors import UsageError
from cookbook.models import (
    Perceptron,
    PerceptronConfig,
    ResNet,
    ResNetConfig,
    SeparableConfig,
    SeparableNet,
    TorchvisionConfig,
    VisionTransformer,
    VisionTransformerConfig,
    build,
)
from cookbook.models.registry import FAMILIES, config_from_json, config_to_json

CONFIGS: dict[str, tuple[Any, type]] = {
    "resnet": (ResNetConfig(depth=8, width=4, stem=3, inner=(2, 3, 4), outer=(5, 6, 7)), ResNet),
    "separable": (SeparableConfig(stem=4, channels=(5, 6), strides=(2, 1)), SeparableNet),
    "transformer": (VisionTransformerConfig(embedding=8, layers=2, heads=(1, 2), head_dim=3, hidden=(4, 5)), VisionTransformer),
    "perceptron": (PerceptronConfig(hidden=(5, 4), dropout=0.1), Perceptron),
    "torchvision": (TorchvisionConfig("squeezenet1_1", 10, 1, {"dropout": 0.2}), torch.nn.Module),
}


def test_there_is_an_example_of_every_family() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_configuration_survives_json_and_rebuilds_the_same_tensors(family: str) -> None:
    config, model_type = CONFIGS[family]
    text = config_to_json(config)
    assert json.loads(text)["family"] == family
    restored = config_from_json(text)
    assert restored == config
    assert type(restored) is type(config)
    assert hash(restored) == hash(config)
    model, again = build(config), build(restored)
    assert isinstance(model, model_type)
    assert model.config == config
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (model, again)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"family": "unknown"}',
        '{"family": ["resnet"]}',
        '{"family": "resnet", "colour": 1}',
        '{"family": "torchvision"}',
    ],
)
def test_text_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a model configuration: use one of ResNetConfig"):
        config_from_json(text)


def test_a_refused_value_is_named() -> None:
    with pytest.raises(UsageError, match="depth is 21"):
        config_from_json('{"family": "resnet", "depth": 21}')


@pytest.mark.parametrize("wrong", [None, {"depth": 20}, ResNetConfig, torch.nn.Linear(1, 1)])
def test_what_is_no_configuration_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match="is not a model configuration"):
        build(wrong)
    with pytest.raises(UsageError, match="is not a model configuration"):
        config_to_json(wrong)


def test_one_seed_gives_one_model() -> None:
    for config, _ in CONFIGS.values():
        models = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            models.append(torch.cat([p.flatten() for p in build(config).parameters()]))
        assert torch.equal(models[0], models[1])
        assert not torch.equal(models[0], models[2])
