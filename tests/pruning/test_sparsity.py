"""The objectives that shrink channels: their values by hand, their gradients by differences in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from small_nets import loader, make
from torch import nn

from cookbook.errors import UsageError
from cookbook.models import PerceptronConfig, ResNetConfig
from cookbook.pruning import GroupLasso, Slimming
from cookbook.training import Recipe, fit

RESNET = ResNetConfig(depth=8, width=2, classes=2)
X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 1])


def test_slimming_adds_the_absolute_scales() -> None:
    model = make(RESNET)
    scales = [abs(v) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for v in m.weight.tolist()]
    expected = F.cross_entropy(model(X), LABELS).item() + 0.3 * sum(scales)
    assert Slimming(0.3)(model, X, LABELS).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UsageError, match="Perceptron has no BatchNorm whose scales could shrink"):
        Slimming()(make(PerceptronConfig(height=8, width=8)), X, LABELS)


def test_group_lasso_takes_filters_that_are_added_as_one_channel() -> None:
    model = make(RESNET)

    def norm(channel: int, *layers: str) -> float:
        return math.hypot(*(v for layer in layers for v in model.get_submodule(layer).weight[channel].flatten().tolist()))

    expected = sum(norm(c, "stem.0", "blocks.0.conv2") + norm(c, "blocks.0.conv1") for c in range(2))
    expected += sum(norm(c, "blocks.1.conv1") + norm(c, "blocks.1.conv2", "blocks.1.shortcut.0") for c in range(4))
    expected += sum(norm(c, "blocks.2.conv1") + norm(c, "blocks.2.conv2", "blocks.2.shortcut.0") for c in range(8))
    lasso = GroupLasso(model, X, strength=0.3)
    assert lasso.penalty(model).item() == pytest.approx(expected, rel=1e-6)
    both = F.cross_entropy(model(X), LABELS).item() + 0.3 * expected
    assert lasso(model, X, LABELS).item() == pytest.approx(both, rel=1e-6)
    assert lasso.penalty(nn.DataParallel(model)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["slimming", "lasso"])
def test_the_gradient_is_that_of_the_penalty(kind: str) -> None:
    model = make(RESNET).double()
    objective = Slimming(0.3) if kind == "slimming" else GroupLasso(model, X.double(), strength=0.3)
    model.train()
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(objective(model, X.double(), LABELS), weights), strict=True))
    pick = torch.Generator().manual_seed(0)
    for name, gradient in gradients.items():
        place = int(torch.randint(gradient.numel(), (), generator=pick))
        losses = []
        for step in (1e-6, -1e-6):
            moved = copy.deepcopy(model)
            moved.get_parameter(name).data.view(-1)[place] += step
            losses.append(objective(moved, X.double(), LABELS).item())
        assert gradient.flatten()[place].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-7), name


def test_channels_that_are_zero_have_a_finite_gradient() -> None:
    model = make(RESNET)
    with torch.no_grad():
        model.blocks[0].conv1.weight[0] = 0
        model.blocks[0].bn1.weight[0] = 0
    for objective in (Slimming(1.0), GroupLasso(model, X, strength=1.0)):
        model.zero_grad()
        objective.penalty(model).backward()
        for parameter in (model.blocks[0].conv1.weight, model.blocks[0].bn1.weight):
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all() and not parameter.grad[0].any() and parameter.grad[1].any()


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_cannot_work_is_refused(strength: float) -> None:
    with pytest.raises(UsageError, match="use 0 or more"):
        Slimming(strength)
    with pytest.raises(UsageError, match="use 0 or more"):
        GroupLasso(make(RESNET), X, strength=strength)


def test_training_with_them_shrinks_what_they_penalize() -> None:
    example = X[:1]
    penalties = {}
    for name, strength in (("without", 0.0), ("with", 0.3)):
        slim, lasso = make(RESNET), make(RESNET)
        recipe = Recipe(epochs=4, learning_rate=0.05, weight_decay=0.0)
        fit(slim, loader(), recipe, objective=Slimming(strength))
        fit(lasso, loader(), recipe, objective=GroupLasso(lasso, example, strength=strength))
        penalties[name] = Slimming().penalty(slim).item(), GroupLasso(lasso, example).penalty(lasso).item()
    assert all(small < 0.9 * large for small, large in zip(penalties["with"], penalties["without"], strict=True))
