"""BatchNorm layers are exchanged for a training and come back: on the device ``meta``, because torch has no CPU kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cookbook.errors import UsageError
from cookbook.training.parallel import SynchronizedBatchNorm


def network() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3))
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, eps=0.5), inner, nn.GroupNorm(1, 3)).to("meta")


def test_every_batchnorm_is_exchanged_by_one_with_the_same_tensors_and_comes_back() -> None:
    model = network()
    own, tensors = dict(model.named_modules()), dict(model.state_dict(keep_vars=True))
    synchronized = SynchronizedBatchNorm(model)
    layers = dict(model.named_modules())
    assert [name for name, layer in layers.items() if isinstance(layer, nn.SyncBatchNorm)] == ["1", "2.1"]
    assert (layers["1"].eps, layers["2.1"].momentum) == (0.5, 0.3)
    assert all(tensor is tensors[name] for name, tensor in model.state_dict(keep_vars=True).items()), "the optimizer's, too"
    model.eval()
    synchronized.undo()
    assert all(layer is own[name] for name, layer in model.named_modules())
    assert not any(layer.training for layer in model.modules()), "what has come back is in the mode of its model"


def test_what_has_nowhere_to_be_exchanged_is_refused() -> None:
    with pytest.raises(UsageError, match="put it into a Sequential"):
        SynchronizedBatchNorm(nn.BatchNorm2d(3, device="meta"))
    with pytest.raises(UsageError, match="sync_batchnorm needs GPUs"):
        SynchronizedBatchNorm(nn.BatchNorm2d(3, device=torch.device("cpu")))
