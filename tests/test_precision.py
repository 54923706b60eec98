"""Policies against autocast and GradScaler used by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cookbook.errors import UsageError
from cookbook.precision import Precision, clip_gradients


def test_bf16_computes_products_in_bfloat16_and_keeps_weights_in_float32() -> None:
    policy = Precision("bf16", "cpu")
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with policy.autocast():
        out = model(x)
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(out, model(x))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32


def test_fp32_changes_nothing() -> None:
    policy = Precision("fp32", "cpu")
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with policy.matmul_mode(), policy.autocast():
        assert torch.equal(model(x), torch.nn.functional.linear(x, model.weight, model.bias))
    assert not policy.scaler().is_enabled()
    assert policy.scaler().get_scale() == 1.0


def test_the_matmul_mode_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError, match="planted"), Precision("tf32", "cuda").matmul_mode():
        assert torch.get_float32_matmul_precision() == "high"
        raise RuntimeError("planted")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_clipping_comes_after_undoing_the_loss_scale() -> None:
    """With the loss scaled by 1024, the clipped gradient must have the norm of the true one."""
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((parameter**2).sum() / 2).backward()
    norm = clip_gradients([parameter], 1.0, scaler, optimizer)
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(("name", "device", "words"), [
    ("fp8", "cpu", "one of fp32, tf32, bf16, fp16"), ("fp16", "cpu", "needs a GPU"), ("tf32", "cpu", "needs a GPU"),
])  # fmt: skip
def test_policies_that_cannot_work_are_refused(name: str, device: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Precision(name, device)  # type: ignore[arg-type]
