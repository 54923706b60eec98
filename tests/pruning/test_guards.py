"""Optimizer, average and checkpoint of the unpruned network are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_nets import loader, make
from torch.optim.swa_utils import AveragedModel

from cookbook.errors import CheckpointError, UsageError
from cookbook.models import ResNetConfig, load, save
from cookbook.pruning import attach_masks, prune_channels, require_fresh_average, require_fresh_optimizer
from cookbook.training import Recipe, fit

RESNET = ResNetConfig(depth=8, width=4, classes=2)
X = torch.randn(2, 1, 8, 8)
RECIPE = Recipe(epochs=1, learning_rate=0.1, ema_decay=0.9)


def test_an_optimizer_from_before_the_surgery_is_refused() -> None:
    model = make(RESNET)
    stale = torch.optim.SGD(model.parameters(), 0.1)
    require_fresh_optimizer(model, stale)
    pruned = prune_channels(model, X, ratio=0.5, multiple=1)
    with pytest.raises(UsageError, match=r"holds \d+ parameters that ResNet does not have and misses \d+ of its own"):
        require_fresh_optimizer(pruned, stale)
    require_fresh_optimizer(pruned, torch.optim.SGD(pruned.parameters(), 0.1))
    with pytest.raises(UsageError, match=r"holds 0 parameters .* misses 2 of its own"):
        require_fresh_optimizer(pruned, torch.optim.SGD(list(pruned.parameters())[:-2], 0.1))
    with pytest.raises(UsageError, match="holds 1 parameters that ResNet does not have and misses 0"):
        require_fresh_optimizer(pruned, torch.optim.SGD([*pruned.parameters(), torch.nn.Parameter(torch.ones(1))], 0.1))
    pruned.head.requires_grad_(False)
    require_fresh_optimizer(pruned, torch.optim.SGD(list(pruned.parameters())[:-2], 0.1))


def test_an_average_of_other_shapes_or_names_is_refused() -> None:
    model = make(RESNET)
    average = AveragedModel(model)
    require_fresh_average(model, average)
    pruned = prune_channels(model, X, ratio={"blocks.0.conv1": 0.5}, multiple=1)
    with pytest.raises(UsageError, match=r"differs from ResNet in 6 tensors, first blocks\.0\.bn1\.bias"):
        require_fresh_average(pruned, average)
    with pytest.raises(UsageError, match="differs from ResNet"):
        require_fresh_average(attach_masks(model), average)


def test_checkpoints_and_files_of_the_unpruned_network_are_refused(tmp_path: Path) -> None:
    model = make(RESNET)
    pruned = prune_channels(model, X, ratio=0.5, multiple=1)
    whole = save(model, tmp_path / "whole.safetensors")
    fit(model, loader(), RECIPE, checkpoint=tmp_path / "run.pt")
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    with pytest.raises(CheckpointError, match="belongs to a training with another model"):
        fit(pruned, loader(), RECIPE, checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="does not hold a ResNet like this one"):
        load(whole, into=pruned)
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())
    fit(pruned, loader(), RECIPE, checkpoint=tmp_path / "pruned.pt")
