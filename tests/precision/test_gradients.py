"""Gradients in 16 bits against closed forms: what rounds to zero, what overflows, which weights stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.precision import gradient_survival

LABELS = torch.arange(8) % 2


class Dial(nn.Module):
    """Logits of a linear layer; its input carries gradients of any size into the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def images(size: float) -> Tensor:
    return size * (1 + torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(1)))


def test_ordinary_gradients_survive_in_every_way() -> None:
    for name, report in gradient_survival(Dial(), images(1.0), LABELS).items():
        assert report.count == 8
        assert report.underflow == report.overflow == report.lost == 0.0, name
        assert 0 < report.error < (0.03 if "bf" in name else 0.005), name


def test_tiny_gradients_round_to_zero_unless_the_loss_is_scaled() -> None:
    """Logits of ±9 leave gradients of exp(-18): below half of the smallest float16, 2**-25, but in bfloat16's range."""
    model, ones = Dial(), torch.ones(8, 1, 2, 2)
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([[2.25], [-2.25]]).expand(2, 4))
    reports = gradient_survival(model, ones, torch.zeros(8, dtype=torch.int64))
    zeroed = {name: report.underflow for name, report in reports.items()}
    assert zeroed == {
        ".half()": 1.0, "fp16 autocast": 1.0, "fp16 autocast, loss scaled": 0.0, ".bfloat16()": 0.0, "bf16 autocast": 0.0,
    }  # fmt: skip
    assert reports["fp16 autocast"].error == 1.0
    assert reports["fp16 autocast, loss scaled"].error < 0.01


def test_large_gradients_overflow_and_the_scale_gives_way() -> None:
    """With inputs of 3e4 the weights' gradients times 65,536 leave the range; the scale halves until they fit."""
    model = Dial()
    with torch.no_grad():
        model.layer.weight.zero_()
    reports = gradient_survival(model, images(2e4), LABELS)
    scaled = reports["fp16 autocast, loss scaled"]
    assert scaled.overflow == 0.0 and scaled.scale < 65536
    largest = max_gradient(model, images(2e4))
    assert largest * scaled.scale < torch.finfo(torch.float16).max < 2.5 * largest * scaled.scale


def max_gradient(model: nn.Module, batch: Tensor) -> float:
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(batch), LABELS).backward()
    return max(float(parameter.grad.abs().max()) for parameter in twin.parameters())


def test_overflow_is_counted() -> None:
    """Inputs beyond 65,504 are infinite in float16, so that by hand nothing finite is left."""
    model = Dial()
    with torch.no_grad():
        model.layer.weight.zero_()
    reports = gradient_survival(model, images(1e5), LABELS)
    assert reports[".half()"].overflow == 1.0
    assert reports[".half()"].lost == 1.0
    assert reports[".bfloat16()"].overflow == 0.0


def test_small_steps_leave_16_bit_weights_where_they_are() -> None:
    """A step of a thousandth of a weight moves it in float32 and in float16 (2**-11 of it), but not in bfloat16 (2**-8)."""
    model = Dial()
    with torch.no_grad():
        model.layer.weight.fill_(1.0)
    rate = 1e-3 / max_gradient(model, images(1.0))
    reports = gradient_survival(model, images(1.0), LABELS, learning_rate=rate)
    assert reports["bf16 autocast"].stuck == reports["fp16 autocast, loss scaled"].stuck == 0.0
    assert reports[".bfloat16()"].stuck == 1.0
    assert reports[".half()"].stuck < 1.0
    assert gradient_survival(model, images(1.0), LABELS, learning_rate=rate / 100)[".half()"].stuck == 1.0


def test_the_model_and_the_random_numbers_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 2)).eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    reports = gradient_survival(model, images(1.0), LABELS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert reports["fp16 autocast"].error < 0.1, "another dropout mask would be far off"


def test_what_cannot_be_compared_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"layer.weight is torch.float16: pass the model in float32"):
        gradient_survival(Dial().half(), images(1.0), LABELS)
    with pytest.raises(UsageError, match="No parameter of the model received a gradient"):
        gradient_survival(nn.Sequential(Dial().requires_grad_(False), Offset()), images(1.0), LABELS)
    with pytest.raises(UsageError, match="zero or not finite"):
        gradient_survival(Dial(), images(float("nan")), LABELS)
    with pytest.raises(UsageError, match="zero or not finite"):
        gradient_survival(Dial(), images(0.0), LABELS)


class Offset(nn.Module):
    """Makes the graph without a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(2, requires_grad=True)
