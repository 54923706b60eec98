"""Models on disk: what is written comes back to the bit, and everything else is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cookbook.errors import CheckpointError, UsageError
from cookbook.models import PerceptronConfig, ResNetConfig, TorchvisionConfig, VisionTransformerConfig, build, load, save
from cookbook.models.registry import config_to_json
from cookbook.models.storage import METADATA_KEY

TINY = PerceptronConfig(height=2, width=2, classes=2, hidden=(3,))


def rewrite(path: Path, tensors: dict[str, Tensor], config: object = TINY) -> None:
    save_file(tensors, path, metadata={METADATA_KEY: config_to_json(config)})


def refusal(path: Path, into: nn.Module | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, into=into)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(build(TINY), tmp_path / "tiny.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        ResNetConfig(depth=8, width=4, inner=(1, 2, 3), outer=(4, 6, 6)),
        VisionTransformerConfig(image_size=4, patch=2, embedding=4, layers=2, heads=(1, 2), head_dim=2, hidden=3),
        TorchvisionConfig("squeezenet1_1", 3, 1),
    ],
)
def test_round_trip_is_equal_to_the_bit(config: object, tmp_path: Path) -> None:
    model = build(config).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.num_batches_tracked.fill_(12345678901)
    restored = load(save(model, tmp_path / "deep" / "model.safetensors"))
    assert restored.config == config
    assert not any(module.training for module in restored.modules())
    assert model.training
    expected, found = model.state_dict(), restored.state_dict()
    assert list(expected) == list(found)
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name])


def test_the_file_is_plain_safetensors_with_a_readable_header(tiny: Path) -> None:
    with safe_open(tiny, framework="pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY])["hidden"] == [3]
    assert load_file(tiny)["hidden.0.weight"].shape == (3, 4)


def test_channels_last_weights_come_back(tmp_path: Path) -> None:
    model = build(ResNetConfig(depth=8, width=2)).to(memory_format=torch.channels_last)
    restored = load(save(model, tmp_path / "m.safetensors"))
    assert all(torch.equal(value, restored.state_dict()[name]) for name, value in model.state_dict().items())


def test_into_fills_the_model_that_is_given(tiny: Path) -> None:
    target = build(TINY)
    before = target.get_parameter("head.weight").clone()
    assert load(tiny, into=target) is target
    assert not torch.equal(before, target.get_parameter("head.weight"))
    assert torch.equal(target.get_parameter("head.weight"), load_file(tiny)["head.weight"])


def test_neither_saving_nor_loading_advances_the_random_numbers(tmp_path: Path) -> None:
    model = build(TINY)
    before = torch.get_rng_state()
    load(save(model, tmp_path / "m.safetensors"))
    assert torch.equal(before, torch.get_rng_state())


def test_every_truncation_is_refused(tiny: Path) -> None:
    content = tiny.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    middle = (header + len(content)) // 2
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, middle, len(content) - 1):
        tiny.write_bytes(content[:length])
        assert "truncated or not a safetensors file" in refusal(tiny), length
    tiny.write_bytes(content + b"\0")
    assert "truncated or not a safetensors file" in refusal(tiny)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a torch archive", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0[1,2,3]"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert "not a safetensors file" in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "none.safetensors")
    assert "There is no file" in refusal(tmp_path)


def test_extra_and_missing_tensors_are_named(tiny: Path) -> None:
    tensors = load_file(tiny)
    rewrite(tiny, {**tensors, "head.scale": torch.ones(1), "another": torch.ones(1)})
    assert "2 extra tensors, the first another" in refusal(tiny)
    tensors.pop("head.bias")
    rewrite(tiny, tensors)
    assert "1 missing tensors, the first head.bias" in refusal(tiny)
    rewrite(tiny, {**tensors, "head.scale": torch.ones(1)})
    sentence = refusal(tiny)
    assert "1 extra" in sentence
    assert "1 missing" in sentence


def test_another_dtype_and_another_shape_are_named(tiny: Path) -> None:
    tensors = load_file(tiny)
    rewrite(tiny, {**tensors, "head.bias": tensors["head.bias"].half()})
    assert "head.bias is (2,) of torch.float16, expected (2,) of torch.float32" in refusal(tiny)
    rewrite(tiny, {**tensors, "head.weight": torch.ones(3, 2)})
    assert "head.weight is (3, 2) of torch.float32, expected (2, 3)" in refusal(tiny)


def test_another_architecture_leaves_the_given_model_untouched(tiny: Path) -> None:
    for config in (PerceptronConfig(height=2, width=2, classes=2, hidden=(4,)), ResNetConfig(depth=8, width=2)):
        target = build(config)
        before = {name: value.clone() for name, value in target.state_dict().items()}
        assert type(target).__name__ in refusal(tiny, into=target)
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_without_a_configuration_a_model_must_be_given(tiny: Path) -> None:
    save_file(load_file(tiny), tiny)
    assert "no model configuration in its header" in refusal(tiny)
    assert load(tiny, into=build(TINY)).get_parameter("head.weight").shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "words"), [("{}", "is not a model configuration"), ('{"family": "resnet", "depth": 21}', "depth is 21")]
)
def test_a_configuration_that_cannot_be_built_is_explained(tiny: Path, text: str, words: str) -> None:
    save_file(load_file(tiny), tiny, metadata={METADATA_KEY: text})
    sentence = refusal(tiny)
    assert "describes a model that this version cannot build" in sentence
    assert words in sentence


def test_a_model_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Linear carries no configuration"):
        save(nn.Linear(1, 1), tmp_path / "m.safetensors")
    foreign = nn.Linear(1, 1)
    foreign.config = {"hidden": 3}  # type: ignore[assignment]
    with pytest.raises(UsageError, match="dict is not a model configuration"):
        save(foreign, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_model_that_outgrew_its_configuration_is_refused_while_it_still_lives(tmp_path: Path) -> None:
    model = build(TINY)
    model.head = nn.Linear(3, 5)  # surgery that forgot the configuration
    with pytest.raises(CheckpointError, match=r"head.weight is \(5, 3\).*set model.config"):
        save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiny.read_bytes()

    def disk_full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cookbook.models.storage.save_file", disk_full)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left on device"):
        save(build(TINY), tiny)
    assert tiny.read_bytes() == content
    assert [path.name for path in tiny.parent.iterdir()] == [tiny.name]


def test_a_parent_that_is_a_file_is_explained(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(build(TINY), tiny / "m.safetensors")
