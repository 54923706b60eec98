"""Policies against autocast and GradScaler used by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cookbook.errors import UsageError
from cookbook.precision import Precision, PrecisionName, clip_gradients


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


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_batch_norm_and_the_loss_stay_in_float32(name: PrecisionName) -> None:
    """The running statistics, the input of the softmax and the loss; the products before them have 16 bits."""
    seen: dict[str, torch.dtype] = {}
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.Flatten(), nn.Linear(12, 2))
    images, labels = 3000 * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    with Precision(name, "cpu").autocast():
        logits = model(images)
        with _Recorder(seen):
            loss = F.cross_entropy(logits, labels)
    assert logits.dtype == Precision(name, "cpu").autocast_dtype
    assert seen == {"aten._log_softmax.default": torch.float32, "aten.nll_loss_forward.default": torch.float32}
    assert loss.dtype == norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    variance = norm.running_var.clone()
    assert variance.isfinite().all() and (variance > torch.finfo(torch.float16).max).any(), "too small to show anything"


class _Recorder(TorchDispatchMode):
    """Notes the dtype of what goes into the two halves of cross-entropy."""

    def __init__(self, seen: dict[str, torch.dtype]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "softmax" in str(func) or "nll_loss" in str(func):
            self.seen[str(func)] = args[0].dtype
        return func(*args, **(kwargs or {}))


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
    ("fp8", "cpu", "one of fp32, tf32, bf16, fp16"), ("tf32", "cpu", "needs an NVIDIA GPU"),
])  # fmt: skip
def test_policies_that_cannot_work_are_refused(name: str, device: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Precision(name, device)  # type: ignore[arg-type]
