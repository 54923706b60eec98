"""Channels-last is refused where it would corrupt memory, and only there."""

from __future__ import annotations

import pytest
import torch
from helpers import small_loader
from torch import nn

from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, build
from cookbook.training import Recipe, fit
from cookbook.training.memory_format import fitting_recipe, require_safe_channels_last

CPU = torch.device("cpu")


def test_a_narrow_strided_shortcut_is_refused_by_fit_and_named() -> None:
    model = build(ResNetConfig(depth=8, width=8, classes=2))
    with pytest.raises(UsageError, match=r"blocks\.1\.shortcut\.0 is a strided 1×1 convolution of 8 channels"):
        fit(model, small_loader(), Recipe(epochs=1, learning_rate=0.1, channels_last=True), progress=False)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 4, 1, stride=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, stride=2), nn.Conv1d(4, 4, 1, stride=2),
        build(ResNetConfig(width=32)),
    ],
    ids=["wide", "not-strided", "3×3", "1d", "baseline"],
)  # fmt: skip
def test_others_are_not(layer: nn.Module) -> None:
    refused = False
    try:
        require_safe_channels_last(layer, CPU)
    except UsageError:
        refused = True
    assert not refused


def test_groups_narrow_the_input_and_an_accelerator_is_not_concerned() -> None:
    grouped = nn.Conv2d(32, 32, 1, stride=2, groups=4)
    require_safe_channels_last(grouped, torch.device("cuda"))
    with pytest.raises(UsageError, match="8 channels"):
        require_safe_channels_last(grouped, CPU)


@pytest.mark.parametrize(("width", "kept"), [(8, False), (16, True)])
def test_a_recipe_gives_the_format_up_where_the_model_is_too_narrow(width: int, kept: bool) -> None:
    recipe = Recipe(epochs=1, learning_rate=0.1, channels_last=True)
    model = build(ResNetConfig(depth=8, width=width))
    assert fitting_recipe(recipe, model, CPU).channels_last is kept
    assert fitting_recipe(recipe, model, torch.device("cuda")) == recipe
