"""Recovery: pooled statistics against a brute force, fine-tuning against the fits it stands for, controls of equal budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cookbook.data import ResidentLoader, Splits
from cookbook.distillation import distill
from cookbook.errors import DataError, UsageError
from cookbook.models import ResNetConfig, TorchvisionConfig, build
from cookbook.pruning.recovery import fine_tune, fine_tuning_recipe, reestimate_batchnorm, scratch_control
from cookbook.training import Recipe, fit

CONFIG = ResNetConfig(depth=8, width=2, inner=(1, 3, 4), stem_stride=2)
RECIPE = Recipe(epochs=1, learning_rate=0.01)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build(CONFIG)


@pytest.fixture
def loader(fashion_mnist: Splits) -> ResidentLoader:
    return ResidentLoader(fashion_mnist.train.subset(40), 10)


def small_chain() -> nn.Sequential:
    """Two BatchNorms, so that the second one's input depends on how the first one normalizes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 3, 3, 2),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.BatchNorm2d(3),
        nn.Flatten(1),
        nn.Linear(507, 10),
    )


def test_statistics_are_those_of_all_images_together(loader: ResidentLoader) -> None:
    chain = small_chain().train()
    chain[4].eval()
    assert reestimate_batchnorm(chain, loader) == 4
    batches = [images.double() for images, _ in loader.batches(0)]
    first = torch.cat(batches)
    second = []
    conv = copy.deepcopy(chain[1]).double()
    for images in batches:  # each batch normalized by its own statistics
        variance = images.var((0, 2, 3), correction=0, keepdim=True)
        second.append(conv((images - images.mean((0, 2, 3), keepdim=True)) / torch.sqrt(variance + chain[0].eps)).relu())
    for norm, values in ((chain[0], first), (chain[4], torch.cat(second).detach())):
        torch.testing.assert_close(norm.running_mean.double(), values.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), values.var((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert chain.training and not chain[4].training, "the modes were not put back"
    assert chain[0].momentum == chain[4].momentum == 0.1
    assert chain[0].num_batches_tracked == 0


def test_batches_can_be_limited_and_weights_stay(loader: ResidentLoader) -> None:
    chain = small_chain()
    weights = copy.deepcopy(dict(chain.named_parameters()))
    assert reestimate_batchnorm(chain, loader, batches=2) == 2
    first_two = torch.cat([images for images, _ in list(loader.batches(0))[:2]])
    torch.testing.assert_close(chain[0].running_mean, first_two.mean((0, 2, 3)))
    assert all(torch.equal(weights[name], value) for name, value in chain.named_parameters())


class Broken(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        raise RuntimeError("broken")


def test_a_failure_leaves_the_statistics_as_they_were(loader: ResidentLoader) -> None:
    chain = nn.Sequential(nn.BatchNorm2d(1), Broken())
    before = copy.deepcopy(chain.state_dict())
    with pytest.raises(RuntimeError, match="broken"):
        reestimate_batchnorm(chain, loader)
    assert all(torch.equal(before[name], value) for name, value in chain.state_dict().items())
    assert chain[0].momentum == 0.1
    assert not chain[0]._forward_pre_hooks


class Silent:
    """A loader without batches, which the house's own loaders never are."""

    role = "train"

    def batches(self, epoch: int, first: int = 0) -> Any:
        return iter(())


def test_statistics_that_cannot_be_estimated_are_refused(fashion_mnist: Splits, loader: ResidentLoader) -> None:
    with pytest.raises(Exception, match="validation split must not be used to estimate statistics"):
        reestimate_batchnorm(small_chain(), ResidentLoader(fashion_mnist.validation.subset(10), 10))
    with pytest.raises(UsageError, match="no BatchNorm with running statistics"):
        reestimate_batchnorm(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)), loader)
    with pytest.raises(UsageError, match="batches is 0"):
        reestimate_batchnorm(small_chain(), loader, batches=0)
    with pytest.raises(DataError, match="yields no images"):
        reestimate_batchnorm(small_chain(), Silent())  # type: ignore[arg-type]
    lone = ResidentLoader(fashion_mnist.train.subset(10), 1)
    with pytest.raises(UsageError, match="one value a channel"):
        reestimate_batchnorm(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1)), lone)


def test_fine_tuning_is_fit_and_with_a_teacher_distill(model: nn.Module, loader: ResidentLoader) -> None:
    teacher = build(replace(CONFIG, inner=None)).eval()
    ours, theirs = [copy.deepcopy(model) for _ in range(2)], [copy.deepcopy(model) for _ in range(2)]
    fine_tune(ours[0], loader, RECIPE)
    fit(theirs[0], loader, RECIPE)
    fine_tune(ours[1], loader, RECIPE, teacher=teacher, alpha=0.5, temperature=2.0)
    distill(theirs[1], teacher, loader, RECIPE, alpha=0.5, temperature=2.0)
    for one, other in zip(ours, theirs, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert not torch.equal(ours[0].head.weight, ours[1].head.weight)


def test_the_recipe_takes_a_share_of_the_epochs() -> None:
    original = Recipe(epochs=14, learning_rate=0.2, ema_decay=0.99, label_smoothing=0.1)
    short = fine_tuning_recipe(original)
    assert (short.epochs, short.learning_rate, short.ema_decay) == (3, pytest.approx(0.02), None)
    assert short.label_smoothing == 0.1
    assert fine_tuning_recipe(original, share=0.15, rate=1).epochs == 3  # 2.1 epochs, rounded up
    assert fine_tuning_recipe(replace(original, epochs=30), share=0.1).epochs == 3
    for share, rate in ((0.0, 0.1), (1.1, 0.1), (0.2, 0.0)):
        with pytest.raises(UsageError, match="use a share above 0"):
            fine_tuning_recipe(original, share=share, rate=rate)


def test_the_control_has_the_shape_and_the_budget_but_not_the_weights(model: nn.Module) -> None:
    original, short = Recipe(epochs=10, learning_rate=0.2), Recipe(epochs=2, learning_rate=0.01)
    control, recipe = scratch_control(model, original, short, seed=3)
    assert recipe == replace(original, epochs=12, seed=3)
    assert control.config == CONFIG
    assert not torch.equal(control.stem[0].weight, model.stem[0].weight)
    torch.testing.assert_close(control.stem[0].weight, scratch_control(model, original, short, seed=3)[0].stem[0].weight)
    assert not torch.equal(control.stem[0].weight, scratch_control(model, original, short, seed=4)[0].stem[0].weight)


def test_a_control_without_a_fitting_configuration_is_initialized_layer_by_layer() -> None:
    narrow = build(TorchvisionConfig("resnet18", classes=10))
    narrow.fc = nn.Linear(512, 4)  # what its configuration does not describe
    narrow.layer1[0].bn1.running_mean.fill_(5)
    before = narrow.conv1.weight.clone()
    control, _ = scratch_control(narrow, RECIPE, RECIPE, seed=1)
    assert control.fc.weight.shape == (4, 512)
    assert control.layer1[0].bn1.running_mean.abs().max() == 0
    assert not torch.equal(control.conv1.weight, before)
    assert torch.equal(narrow.conv1.weight, before)
    with pytest.raises(UsageError, match="has parameters but no reset_parameters"):
        scratch_control(nn.ParameterList([torch.ones(2)]), RECIPE, RECIPE)
