"""Channels leave whole networks: what remains answers as if they had been silent."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from small_nets import CASES, Dense, Flat, Grouped, make
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models import ResNetConfig, SeparableConfig, TorchvisionConfig, build, load, save
from cookbook.models.widths import layer_sizes
from cookbook.pruning import mask_channels, prunable_layers, prune_channels

RESNET = ResNetConfig(depth=8, width=8)


def images(shape: Sequence[int], count: int = 3) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))


def out_channels(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def masked_by_hooks(model: nn.Module, listeners: Mapping[str, tuple[int, int]], removed: Sequence[int], x: Tensor) -> Tensor:
    """Run the whole network, with zeros where the listening layers would hear the channels."""

    def deafen(first: int, stride: int) -> object:
        def hook(module: nn.Module, given: tuple[Tensor]) -> Tensor:
            heard = given[0].clone()
            axis = 1 if isinstance(module, nn.Conv2d) else heard.ndim - 1
            for channel in removed:
                heard.narrow(axis, first + channel * stride, stride).zero_()
            return heard

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(deafen(*where)) for name, where in listeners.items()]
    with torch.no_grad():
        answer = model(x)
    for hook in hooks:
        hook.remove()
    return answer


@pytest.mark.parametrize("name", CASES)
def test_a_pruned_network_answers_as_one_that_does_not_hear_the_channels(name: str) -> None:
    description, shape, layer, listeners = CASES[name]
    model, x = make(description), images(shape)
    pruned = prune_channels(model, x, ratio={layer: 0.5}, multiple=1, importance="random")
    group = [other for other, width in layer_sizes(model).items() if layer_sizes(pruned)[other] != width]
    assert {f"{listener}.in_features" for listener in listeners} & set(group) or any(
        f"{listener}.in_channels" in group for listener in listeners
    )
    width = out_channels(model.get_submodule(layer))
    assert out_channels(pruned.get_submodule(layer)) == width // 2
    removed = _removed(model, pruned, layer)
    assert len(removed) == width - width // 2
    with torch.no_grad():
        found, whole = pruned(x), model(x)
    expected = masked_by_hooks(model, listeners, removed, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - whole).abs().max() > 1e-3  # or the comparison would prove nothing
    torch.testing.assert_close(mask_channels(model, x, {layer: removed})(x), expected, rtol=0, atol=1e-5)


def _removed(model: nn.Module, pruned: nn.Module, layer: str) -> list[int]:
    """Find the channels that left by the numbers of which each has its own: rows whose first weights survive nowhere."""
    before, after = (network.get_submodule(layer).weight.flatten(1) for network in (model, pruned))
    return [row for row in range(len(before)) if not any(torch.equal(before[row], kept) for kept in after)]


@pytest.mark.parametrize("name", CASES)
def test_the_given_model_stays_as_it_was(name: str) -> None:
    description, shape, _, _ = CASES[name]
    model = make(description).train()
    config = getattr(model, "config", None)
    before = copy.deepcopy(model.state_dict())
    pruned = prune_channels(model, images(shape), ratio=0.5, multiple=1)
    assert layer_sizes(pruned) != layer_sizes(model)
    assert getattr(model, "config", None) is config
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(module.training for module in [*model.modules(), *pruned.modules()])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_classes_stay_and_the_rest_keeps_whole_multiples(name: str, scope: str) -> None:
    description, shape, _, _ = CASES[name]
    model, x = make(description), images(shape)
    pruned = prune_channels(model, x, ratio=0.6, multiple=2, scope=scope)
    assert pruned(x).shape == model(x).shape
    before, after = layer_sizes(model), layer_sizes(pruned)
    for layer in prunable_layers(model, x):
        size = f"{layer}.out_channels" if f"{layer}.out_channels" in before else f"{layer}.out_features"
        assert after[size] == before[size] or after[size] % 2 == 0


def test_half_of_every_group_leaves_and_no_less_than_one_multiple_stays() -> None:
    pruned = prune_channels(make(RESNET), images((1, 8, 8)), ratio=0.5, multiple=4)
    assert pruned.config == ResNetConfig(depth=8, width=8, stem=4, inner=(4, 8, 16), outer=(4, 8, 16))
    pruned = prune_channels(make(RESNET), images((1, 8, 8)), ratio=0.25, multiple=4)  # of 4 and 8, the wider is taken for 6
    assert pruned.config == ResNetConfig(depth=8, width=8, stem=8, inner=(8, 12, 24), outer=(8, 12, 24))
    pruned = prune_channels(make(RESNET), images((1, 8, 8)), ratio=0.99, multiple=4)
    assert pruned.config == ResNetConfig(depth=8, width=8, stem=4, inner=(4, 4, 4), outer=(4, 4, 4))


def test_a_grouped_convolution_loses_whole_groups() -> None:
    pruned = prune_channels(make(Grouped), images((2, 8, 8)), ratio={"expand": 0.5}, multiple=1)
    assert (pruned.middle.groups, tuple(pruned.middle.weight.shape)) == (2, (6, 3, 3, 3))
    assert type(pruned.middle) is nn.Conv2d
    narrow = prune_channels(make(Grouped), images((2, 8, 8)), ratio={"middle": 0.4}, multiple=2)
    assert narrow.middle.groups == 2  # 7.2 channels wanted: 6 is the nearest multiple of two in whole groups


def test_the_global_scope_ranks_channels_across_layers_by_their_share_of_the_mean() -> None:
    model, x = make(RESNET), images((1, 8, 8))
    with torch.no_grad():
        model.blocks[0].conv1.weight[:6] *= 1e-3
    pruned = prune_channels(model, x, ratio={"blocks.0.conv1": 0.75}, multiple=1)
    assert _removed(model, pruned, "blocks.0.conv1") == [0, 1, 2, 3, 4, 5]
    names = prunable_layers(model, x)
    total = sum(names.values())
    everything = prune_channels(model, x, ratio=6 / total, multiple=1, scope="global")
    assert everything.config == ResNetConfig(depth=8, width=8, stem=8, inner=(2, 16, 32), outer=(8, 16, 32))
    half = prune_channels(model, x, ratio=0.5, multiple=1, scope="global")
    with torch.no_grad():
        model.blocks[1].conv1.weight *= 100  # the scale of a whole layer says nothing about its channels
    assert prune_channels(model, x, ratio=0.5, multiple=1, scope="global").config == half.config


def test_in_rounds_the_widths_fall_evenly_and_the_copy_may_be_tuned_between() -> None:
    seen: list[int] = []
    one_shot = prune_channels(make(RESNET), images((1, 8, 8)), ratio=0.75, multiple=1)
    rounds = prune_channels(
        make(RESNET), images((1, 8, 8)), ratio=0.75, multiple=1, steps=3,
        after_step=lambda model: seen.append(model.blocks[2].conv1.out_channels),
    )  # fmt: skip
    assert seen == [24, 16, 8]
    assert layer_sizes(rounds) == layer_sizes(one_shot)


def test_new_scores_count_in_every_round() -> None:
    def favor_the_first(model: nn.Module) -> None:
        with torch.no_grad():
            model.blocks[0].conv1.weight[0] = 100

    def first_kept(steps: int) -> Tensor:
        model = make(RESNET)
        with torch.no_grad():
            model.blocks[0].conv1.weight[7] = 0.5
        return prune_channels(
            model, images((1, 8, 8)), ratio={"blocks.0.conv1": 0.75}, multiple=1, steps=steps, after_step=favor_the_first
        ).blocks[0].conv1.weight  # fmt: skip

    assert (first_kept(2) == 100).flatten(1).all(1).sum() == 1
    assert len(first_kept(2)) == 2


def test_a_narrow_type_is_kept() -> None:
    pruned = prune_channels(make(RESNET).bfloat16(), images((1, 8, 8)).bfloat16(), ratio=0.5, multiple=1, importance="l2")
    assert {value.dtype for value in pruned.parameters()} == {torch.bfloat16}


def test_what_is_excluded_keeps_its_outputs() -> None:
    pruned = prune_channels(make(RESNET), images((1, 8, 8)), ratio=0.5, multiple=1, exclude=["blocks.0", "blocks.2.bn1"])
    assert pruned.config == ResNetConfig(depth=8, width=8, stem=8, inner=(8, 8, 32), outer=(8, 8, 16))


def test_frozen_parameters_stay_frozen_and_no_gradient_mode_is_needed() -> None:
    model = make(RESNET).requires_grad_(False)
    model.head.requires_grad_(True)
    with torch.inference_mode():
        pruned = prune_channels(model, images((1, 8, 8)), ratio=0.5, multiple=1)
    assert {name for name, value in pruned.named_parameters() if value.requires_grad} == {"head.weight", "head.bias"}
    pruned.train()(images((1, 8, 8))).sum().backward()
    assert not any(value.requires_grad for name, value in model.named_parameters() if not name.startswith("head"))


@pytest.mark.parametrize(
    "description",
    [RESNET, SeparableConfig(stem=8, channels=(8, 6), strides=(2, 1)), TorchvisionConfig("squeezenet1_1", 3, 1)],
)
def test_a_pruned_model_is_stored_with_its_widths(description: object, tmp_path: Path) -> None:
    shape = (1, 32, 32) if isinstance(description, TorchvisionConfig) else (1, 8, 8)
    model, x = make(description), images(shape)
    pruned = prune_channels(model, x, ratio=0.5, multiple=2)
    restored = load(save(pruned, tmp_path / "pruned.safetensors"))
    assert restored.config == pruned.config != model.config
    assert torch.equal(restored(x), pruned(x))
    twice = prune_channels(restored, x, ratio={next(iter(prunable_layers(restored, x))): 0.5}, multiple=1)
    again = load(save(twice, tmp_path / "twice.safetensors"))
    assert torch.equal(again(x), twice(x))
    assert layer_sizes(build(twice.config)) == layer_sizes(twice)


def test_a_shortcut_that_no_longer_changes_the_width_is_still_a_convolution(tmp_path: Path) -> None:
    model = make(ResNetConfig(depth=14, width=8, outer=(8, 6, 16, 16, 32, 32)))
    pruned = prune_channels(model, images((1, 8, 8)), ratio={"stem.0": 0.5, "blocks.1.conv2": 1 / 3}, multiple=1)
    assert (pruned.config.outer[:2], pruned.config.projections[:2]) == ((4, 4), (False, True))
    load(save(pruned, tmp_path / "pruned.safetensors"))


def test_layers_that_can_be_pruned_are_listed_by_the_first_that_makes_the_channels() -> None:
    assert prunable_layers(make(Dense), images((2, 8, 8)), exclude=["second"]) == {"stem": 8, "third": 6}
    assert prunable_layers(make(Flat), images((2, 8, 8))) == {"conv": 8}


def test_channels_that_do_not_exist_cannot_be_masked() -> None:
    with pytest.raises(UsageError, match="conv has the channels 0 to 7"):
        mask_channels(make(Flat), images((2, 8, 8)), {"conv": [8]})
