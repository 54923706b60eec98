"""The sensitivity scan: each accuracy is that of one layer pruned alone, and ratios follow the drops and add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cookbook.data import ResidentLoader, Splits
from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, build
from cookbook.pruning import allocate_ratios, prunable_layers, prune_channels, scan_sensitivity
from cookbook.pruning.recovery import reestimate_batchnorm
from cookbook.pruning.sensitivity import Sensitivity
from cookbook.training import Recipe, evaluate, fit

LAYERS = ("blocks.0.conv1", "blocks.2.conv1")
SCAN = Sensitivity(0.9, {"a": {0.25: 0.9, 0.5: 0.86}, "b": {0.25: 0.91, 0.5: 0.9}, "c": {0.25: 0.5}})
WIDTHS = {"a": 10, "b": 30, "c": 20}


@pytest.fixture(scope="module")
def train(fashion_mnist: Splits) -> ResidentLoader:
    return ResidentLoader(fashion_mnist.train.subset(200), 20)


@pytest.fixture(scope="module")
def validation(fashion_mnist: Splits) -> ResidentLoader:
    return ResidentLoader(fashion_mnist.validation.subset(100), 50)


@pytest.fixture(scope="module")
def model(train: ResidentLoader) -> nn.Module:
    torch.manual_seed(0)
    network = build(ResNetConfig(depth=8, width=4, stem_stride=2))
    fit(network, train, Recipe(epochs=2, learning_rate=0.1))
    return network


def example() -> torch.Tensor:
    return torch.zeros(1, 1, 28, 28)


def test_each_accuracy_is_that_of_one_layer_pruned_alone(
    model: nn.Module, train: ResidentLoader, validation: ResidentLoader
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = scan_sensitivity(model, example(), validation, ratios=(0.75, 0.5), layers=LAYERS, multiple=1, importance="l2")
    assert found.baseline == evaluate(model, validation).accuracy
    assert all(list(ratios) == [0.5, 0.75] for ratios in found.accuracies.values())
    for name, ratio in ((LAYERS[0], 0.5), (LAYERS[1], 0.75)):
        alone = prune_channels(model, example(), ratio={name: ratio}, multiple=1, importance="l2")
        assert found.accuracies[name][ratio] == evaluate(alone, validation).accuracy
    renewed = scan_sensitivity(model, example(), validation, ratios=(0.75,), layers=LAYERS[1:], multiple=1, statistics=train)
    alone = prune_channels(model, example(), ratio={LAYERS[1]: 0.75}, multiple=1)
    reestimate_batchnorm(alone, train)
    assert renewed.accuracies[LAYERS[1]][0.75] == evaluate(alone, validation).accuracy
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_all_layers_are_scanned_and_ratios_without_effect_left_out(model: nn.Module, validation: ResidentLoader) -> None:
    found = scan_sensitivity(model, example(), validation, ratios=(0.25, 0.5), multiple=8)
    wide = {name for name, width in prunable_layers(model, example()).items() if width == 16}
    assert set(found.accuracies) == wide != set(), "widths of 4 and 8 have no smaller multiple of 8"
    assert all(list(ratios) == [0.5] for ratios in found.accuracies.values()), "12 of 16 channels are rounded to 16"
    with pytest.raises(UsageError, match="in multiples of 32"):
        scan_sensitivity(model, example(), validation, ratios=(0.25,), multiple=32)


def test_the_drop_is_the_mean_loss_in_points_and_ranks_the_layers() -> None:
    assert SCAN.drop("a") == pytest.approx((0 + 4) / 2)
    assert SCAN.drop("b") == 0
    assert SCAN.drop("c") == pytest.approx(40)
    assert SCAN.ranked() == ["b", "a", "c"]
    with pytest.raises(UsageError, match="d was not scanned"):
        SCAN.drop("d")
    lines = str(SCAN).splitlines()
    assert lines[0] == "unpruned 90.00%"
    assert lines[2].split() == ["b", "91.00%", "90.00%"]
    assert lines[4].split() == ["c", "50.00%", "—"]


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.85])
def test_ratios_add_up_and_fall_with_the_drop(ratio: float) -> None:
    found = allocate_ratios(SCAN, ratio, WIDTHS)
    removed = sum(found[name] * width for name, width in WIDTHS.items())
    assert removed == pytest.approx(ratio * sum(WIDTHS.values()))
    assert found["b"] >= found["a"] >= found["c"] > 0
    assert max(found.values()) <= 0.9
    if ratio == 0.2:
        assert found["a"] / found["b"] == pytest.approx(39 / 41)  # in proportion to 41 minus the drop


def test_equal_drops_mean_equal_ratios() -> None:
    flat = Sensitivity(0.9, {name: {0.5: 0.8} for name in WIDTHS})
    assert allocate_ratios(flat, 0.3, WIDTHS) == pytest.approx(dict.fromkeys(WIDTHS, 0.3))


@pytest.mark.parametrize("settings", [{"ratio": 0.0}, {"ratio": 0.95}, {"ratio": 0.5, "most": 1.0}])
def test_ratios_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="use 0 < ratio ≤ most < 1"):
        allocate_ratios(SCAN, widths=WIDTHS, **settings)
    with pytest.raises(UsageError, match="c has no width"):
        allocate_ratios(SCAN, 0.5, {"a": 10, "b": 30})


def test_what_cannot_be_scanned_is_refused(model: nn.Module, fashion_mnist: Splits, validation: ResidentLoader) -> None:
    with pytest.raises(Exception, match="test split must not be used to choose what to prune"):
        scan_sensitivity(model, example(), ResidentLoader(fashion_mnist.test.subset(10), 10))
    for ratios in ((), (0.0,), (1.0,)):
        with pytest.raises(UsageError, match="give one or more between 0 and 1"):
            scan_sensitivity(model, example(), validation, ratios=ratios)
    with pytest.raises(UsageError, match=r"There is no layer 'blocks\.9'"):
        scan_sensitivity(model, example(), validation, layers=["blocks.9"])
