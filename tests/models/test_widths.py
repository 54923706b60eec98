"""The sizes of the layers describe a pruned network completely."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, TorchvisionConfig, build
from cookbook.models.registry import config_from_json, config_to_json
from cookbook.models.widths import config_of_widths, layer_sizes, resize


def test_every_size_of_the_layers_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Linear(6, 2))
    assert layer_sizes(model) == {
        "0.in_channels": 4, "0.out_channels": 6, "0.groups": 2, "1.num_features": 6, "3.in_features": 6, "3.out_features": 2,
    }  # fmt: skip


def test_a_layer_keeps_its_leading_weights() -> None:
    layers = {"in_channels": 2, "out_channels": 3}, {"in_channels": 6, "out_channels": 6, "groups": 3}
    for sizes, conv in zip(layers, (nn.Conv2d(4, 5, 3), nn.Conv2d(8, 8, 3, groups=4)), strict=True):
        model = nn.Sequential(conv)
        weight, bias = conv.weight.clone(), conv.bias.clone()
        resize(model, {f"0.{name}": size for name, size in sizes.items()})
        out, inputs = sizes["out_channels"], sizes["in_channels"] // sizes.get("groups", 1)
        assert torch.equal(conv.weight, weight[:out, :inputs]) and torch.equal(conv.bias, bias[:out])
        assert conv(torch.randn(1, sizes["in_channels"], 5, 5)).shape[1] == out
    flipped = nn.ConvTranspose2d(4, 6, 3)
    weight = flipped.weight.clone()
    resize(nn.Sequential(flipped), {"0.in_channels": 3, "0.out_channels": 2})
    assert torch.equal(flipped.weight, weight[:3, :2]) and flipped.bias.shape == (2,)
    norm = nn.BatchNorm2d(4).requires_grad_(False)
    norm.running_mean += torch.arange(4)
    resize(nn.Sequential(norm), {"0.num_features": 2})
    assert norm.running_mean.tolist() == [0, 1] and norm.weight.shape == norm.bias.shape == (2,)
    assert not norm.weight.requires_grad and norm.num_batches_tracked.ndim == 0


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"1.out_features": 2}, "'1.out_features' is no size of Sequential: use names such as '0.in_features'"),
        ({"0.out_features": 4}, "0.out_features is 4: use a whole number from 1 to 3"),
        ({"0.out_features": 0}, "0.out_features is 0"),
        ({"0.out_features": 1.5}, "0.out_features is 1.5"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resize(nn.Sequential(nn.Linear(2, 3)), sizes)


def test_torchvision_models_are_built_in_the_widths_of_their_configuration() -> None:
    whole = TorchvisionConfig("squeezenet1_1", 3, 1)
    heard = ("squeeze.out_channels", "expand1x1.in_channels", "expand3x3.in_channels")
    config = TorchvisionConfig("squeezenet1_1", 3, 1, widths={f"features.3.{name}": 8 for name in heard})
    assert config_from_json(config_to_json(config)) == config
    model = build(config)
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 3)
    assert layer_sizes(model) == layer_sizes(build(whole)) | dict(config.widths)
    assert config_of_widths(model, build(whole)) == config
    with pytest.raises(UsageError, match=r"features\.0\.out_channels is 99"):
        build(TorchvisionConfig("squeezenet1_1", widths={"features.0.out_channels": 99}))
    with pytest.raises(UsageError, match="widths is 3: use a dictionary"):
        TorchvisionConfig("squeezenet1_1", widths=3)  # type: ignore[arg-type]


def test_other_models_have_no_configuration() -> None:
    assert config_of_widths(nn.Linear(1, 1), nn.Linear(1, 1)) is None


@pytest.mark.parametrize("projections", [(True,), (True, False, True), (False, True, True, True)])
def test_projections_must_fit_the_blocks(projections: tuple[bool, ...]) -> None:
    with pytest.raises(UsageError, match="give one truth value for each of the 3 blocks"):
        ResNetConfig(depth=8, projections=projections)


def test_a_projection_may_stand_where_the_shape_stays() -> None:
    config = ResNetConfig(depth=8, width=4, projections=[True, True, True])  # type: ignore[arg-type]
    assert config_from_json(config_to_json(config)) == config
    model = build(config)
    assert isinstance(model.blocks[0].shortcut, nn.Sequential) and model(torch.randn(1, 1, 8, 8)).shape == (1, 10)
