"""torchvision's classifiers by name: built as torchvision builds them, and never downloaded."""

from __future__ import annotations

import urllib.request

import pytest
import torch
import torchvision
from torch import nn

from cookbook.errors import UsageError
from cookbook.models import TorchvisionConfig, build
from cookbook.models.registry import config_from_json, config_to_json

FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t",
    "vgg11_bn", "vit_b_16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was about to be downloaded")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_maps_grey_images_to_one_tensor_of_logits(name: str) -> None:
    with torch.device("meta"):  # shapes only: no memory, no arithmetic
        model = build(TorchvisionConfig(name, classes=7, in_channels=1)).train()
        size = 299 if name == "inception_v3" else 224
        logits = model(torch.empty(2, 1, size, size))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 7)


def test_a_family_that_computes_its_sizes_with_tensors() -> None:
    model = build(TorchvisionConfig("regnet_x_400mf", classes=3, in_channels=2)).eval()
    assert model(torch.rand(1, 2, 32, 32)).shape == (1, 3)


def test_colour_model_is_torchvisions_own_to_the_bit() -> None:
    torch.manual_seed(3)
    model = build(TorchvisionConfig("resnet18", classes=5))
    torch.manual_seed(3)
    reference = torchvision.models.resnet18(weights=None, num_classes=5)
    state = model.state_dict()
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in reference.state_dict().items())


def test_only_the_first_convolution_changes_with_the_channels() -> None:
    torch.manual_seed(3)
    colour = build(TorchvisionConfig("mobilenet_v3_small", classes=5))
    torch.manual_seed(3)
    grey = build(TorchvisionConfig("mobilenet_v3_small", classes=5, in_channels=1))
    expected = {name: tuple(value.shape) for name, value in colour.state_dict().items()}
    expected["features.0.0.weight"] = (16, 1, 3, 3)
    assert {name: tuple(value.shape) for name, value in grey.state_dict().items()} == expected
    others = [name for name in expected if name != "features.0.0.weight"]
    assert all(torch.equal(grey.state_dict()[name], colour.state_dict()[name]) for name in others)
    first = grey.get_submodule("features.0.0")
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 1
    assert (first.stride, first.padding) == ((2, 2), (1, 1))
    assert 0 < first.weight.std() < 1  # initialized, not left as memory was


def test_arguments_reach_the_builder_and_survive_json() -> None:
    config = TorchvisionConfig("vit_b_16", classes=4, arguments={"image_size": 32, "dropout": 0.25})
    restored = config_from_json(config_to_json(config))
    assert restored == config
    assert hash(restored) == hash(config)
    with torch.device("meta"):
        model = build(restored)
        assert model(torch.empty(1, 3, 32, 32)).shape == (1, 4)
    assert model.get_submodule("encoder.dropout").p == 0.25
    assert model.config is restored


def test_nested_lists_survive_json() -> None:
    config = TorchvisionConfig("resnet50", arguments={"replace_stride_with_dilation": [False, True, True]})
    assert config_from_json(config_to_json(config)) == config
    assert hash(config) == hash(TorchvisionConfig("resnet50", arguments={"replace_stride_with_dilation": (False, True, True)}))
    with torch.device("meta"):
        assert build(config).get_submodule("layer4.1.conv2").dilation == (4, 4)


def test_the_order_and_the_case_do_not_matter() -> None:
    a = TorchvisionConfig("ViT_B_16", arguments={"image_size": 32, "dropout": 0.1})
    assert a == TorchvisionConfig("vit_b_16", arguments=(("dropout", 0.1), ("image_size", 32)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet19", "resnet18"),
        ("mobilenetv2", "mobilenet_v2"),
        ("qqqq", "list_models()"),
        ("fcn_resnet50", "'fcn_resnet50' is not an image classifier"),  # would download its backbone
        ("quantized_resnet18", "not an image classifier"),
        (5, "'5' is not an image classifier"),
    ],
)
def test_unknown_names_are_answered_with_close_ones(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        TorchvisionConfig(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["weights", "pretrained", "weights_backbone", "num_classes", "aux_logits", "progress"])
def test_arguments_that_could_download_or_contradict_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match=f"arguments sets '{word}'"):
        TorchvisionConfig("googlenet", arguments={word: True})


@pytest.mark.parametrize("arguments", [{"norm_layer": nn.BatchNorm2d}, 5, ["ab", 3], {"weights": object()}])
def test_arguments_that_no_file_can_hold_are_refused(arguments: object) -> None:
    with pytest.raises(UsageError, match="use a dictionary of numbers, words and lists"):
        TorchvisionConfig("resnet18", arguments=arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "arguments"), [("resnet18", {"widht": 2}), ("vit_b_16", {"image_size": 33})])
def test_arguments_that_the_builder_refuses_are_explained(name: str, arguments: dict[str, int]) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=f"torchvision cannot build {name} with the arguments"):
        build(TorchvisionConfig(name, arguments=arguments))


@pytest.mark.parametrize("fields", [{"classes": 0}, {"in_channels": 1.5}])
def test_wrong_sizes_are_named(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        TorchvisionConfig("resnet18", **fields)  # type: ignore[arg-type]
