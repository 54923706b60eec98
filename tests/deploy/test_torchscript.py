"""A TorchScript file computes what its model computes, and warns of its age only."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cookbook.deploy import parity
from cookbook.deploy.deprecations import expected_deprecations
from cookbook.deploy.torchscript import load_torchscript, trace_torchscript
from cookbook.errors import DeploymentError
from cookbook.models import ResNetConfig, build


def test_a_trace_equals_its_model_for_every_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=4))
    model(torch.randn(8, 1, 28, 28))  # BatchNorm statistics other than the initial ones
    loaded = load_torchscript(trace_torchscript(model, torch.randn(2, 1, 28, 28), tmp_path / "m.pt"))
    assert model.training
    for batch in (1, 2, 5):
        result = parity(model, loaded, torch.randn(batch, 1, 28, 28))
        assert (result.largest, result.agreement) == (0.0, 1.0)


def test_a_branch_that_would_freeze_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    target = tmp_path / "m.pt"
    target.write_bytes(b"older file")
    with pytest.raises(DeploymentError, match=r"Branch cannot be traced .*Converting a tensor to a Python float") as error:
        trace_torchscript(Branch(), torch.randn(1, 4), target)
    assert "\n" not in str(error.value)
    assert target.read_bytes() == b"older file"
    assert list(tmp_path.iterdir()) == [target]


def test_damaged_and_missing_files_are_one_sentence(tmp_path: Path) -> None:
    damaged = tmp_path / "m.pt"
    whole = trace_torchscript(nn.Linear(3, 2), torch.zeros(1, 3), tmp_path / "whole.pt").read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        damaged.write_bytes(content)
        with pytest.raises(DeploymentError, match="is no TorchScript file") as error:
            load_torchscript(damaged)
        assert "\n" not in str(error.value)
    with pytest.raises(DeploymentError, match="does not exist"):
        load_torchscript(tmp_path / "absent.pt")


def test_only_the_deprecation_that_is_expected_is_held_back() -> None:
    with warnings.catch_warnings(record=True) as passed:
        warnings.simplefilter("always")
        with expected_deprecations("old thing") as said:
            warnings.warn("old thing is deprecated", DeprecationWarning, stacklevel=1)
            warnings.warn("old thing is deprecated", FutureWarning, stacklevel=1)
            warnings.warn("old thing is odd", UserWarning, stacklevel=1)
            warnings.warn("another old thing is deprecated", FutureWarning, stacklevel=1)
        assert len(said) == 4
    assert [str(warning.message) for warning in passed] == ["old thing is odd", "another old thing is deprecated"]
    with pytest.raises(FutureWarning, match="another"), expected_deprecations("old thing"):
        warnings.warn("another old thing is deprecated", FutureWarning, stacklevel=1)
