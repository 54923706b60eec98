"""Heads: the gradient's importance against finite differences, removal against masking, and what is refused."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from cookbook.data import ResidentLoader, Splits
from cookbook.deploy import Runtime, export
from cookbook.errors import CheckpointError, UsageError
from cookbook.models import ResNetConfig, VisionTransformer, VisionTransformerConfig, build, load, save
from cookbook.models.transformer import Attention
from cookbook.pruning.heads import (
    attentions,
    explicit_heads,
    head_importance,
    least_important_heads,
    masked_heads,
    remove_heads,
)

SMALL = VisionTransformerConfig(patch=7, embedding=12, layers=2, heads=3, head_dim=4, hidden=10, dropout=0.3)
LAYERS = ("blocks.0.attention", "blocks.1.attention")
TO_REMOVE = {LAYERS[0]: [1], LAYERS[1]: [2, 0]}


@pytest.fixture
def model() -> VisionTransformer:
    return randomized(VisionTransformer(SMALL))


def randomized(model: nn.Module) -> nn.Module:
    """Draw every parameter, so that no zero of the initialization makes a comparison vacuous."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def loader(fashion_mnist: Splits) -> ResidentLoader:
    return ResidentLoader(fashion_mnist.train.subset(20), 10, shuffle=False)


def images(size: int = 28, channels: int = 1) -> Tensor:
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_importance_is_the_mean_of_the_absolute_derivatives(model: VisionTransformer, loader: ResidentLoader) -> None:
    found = head_importance(model.train(), loader, batches=1, normalize=False)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    exact = copy.deepcopy(model).double().eval()
    pictures, labels = next(iter(loader))
    step = 1e-6
    for name, head in itertools.product(LAYERS, range(3)):
        own = slice(4 * head, 4 * head + 4)
        weight = exact.get_submodule(name).out.weight.data
        losses = []
        for factor in (1 + step, 1 - step):
            before = weight.clone()
            weight[:, own] *= factor  # as if the head's contribution were multiplied
            with torch.no_grad():
                losses.append(F.cross_entropy(exact(pictures.double()), labels, reduction="none"))
            weight.copy_(before)
        expected = ((losses[0] - losses[1]) / (2 * step)).abs().mean()
        torch.testing.assert_close(found[name][head], expected, rtol=1e-4, atol=1e-6)


def test_importance_is_scaled_by_layer_and_covers_all_batches(model: VisionTransformer, loader: ResidentLoader) -> None:
    both = head_importance(model, loader, normalize=False)
    one = head_importance(model, loader, batches=1, normalize=False)
    scaled = head_importance(model, loader)
    for name in LAYERS:
        assert not torch.equal(both[name], one[name])
        torch.testing.assert_close(scaled[name], both[name] / both[name].square().sum().sqrt())


def test_removed_heads_compute_as_masked_ones_in_smaller_projections(model: VisionTransformer) -> None:
    whole = model(images())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = remove_heads(model, TO_REMOVE)
    with masked_heads(model, TO_REMOVE):
        masked = model(images())
    torch.testing.assert_close(pruned(images()), masked, rtol=0, atol=1e-5)
    assert (masked - whole).abs().max() > 1e-2, "the masked heads said nothing"
    assert torch.equal(model(images()), whole), "the mask outlived its block"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert pruned.config.heads == (2, 1)
    for layer, heads in zip(attentions(pruned).values(), (2, 1), strict=True):
        assert layer.q.weight.shape == layer.k.weight.shape == layer.v.weight.shape == (4 * heads, 12)
        assert layer.out.weight.shape == (12, 4 * heads)
        assert layer.q.out_features == layer.out.in_features == len(layer.v.bias) == 4 * heads


def test_a_masked_head_is_one_whose_columns_are_zero(model: VisionTransformer) -> None:
    silenced = copy.deepcopy(model)
    silenced.blocks[0].attention.out.weight.data[:, 4:8] = 0
    with masked_heads(model, {LAYERS[0]: [1]}):
        torch.testing.assert_close(model(images()), silenced(images()), rtol=0, atol=1e-6)


def test_pruned_heads_are_saved_trained_and_exported(model: VisionTransformer, tmp_path: Path) -> None:
    pruned = remove_heads(remove_heads(model, {LAYERS[1]: [0]}), {LAYERS[1]: [1], LAYERS[0]: [1]})
    torch.testing.assert_close(pruned(images()), remove_heads(model, TO_REMOVE)(images()))  # in steps as at once
    again = load(save(pruned, tmp_path / "pruned.safetensors"))
    assert again.config == pruned.config
    assert torch.equal(again(images()), pruned(images()))
    F.cross_entropy(pruned.train()(images()), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    runtime = Runtime(export(pruned.eval(), images(), tmp_path / "pruned.onnx"))
    torch.testing.assert_close(runtime(images()), pruned(images()), rtol=0, atol=1e-4)
    with pytest.raises(CheckpointError):
        load(tmp_path / "pruned.safetensors", into=model)


def test_the_least_important_heads_go_first_and_each_layer_keeps_one() -> None:
    importance = {"a": torch.tensor([0.2, 0.1, 0.3]), "b": torch.tensor([0.9, 0.5])}
    expected = [{}, {"a": [1]}, {"a": [0, 1]}, {"a": [0, 1], "b": [1]}]
    assert [least_important_heads(importance, count) for count in range(4)] == expected
    for count in (-1, 4):
        with pytest.raises(UsageError, match="use 0 to 3 in 2 layers"):
            least_important_heads(importance, count)


def test_torchvisions_transformer_gets_explicit_heads() -> None:
    torch.manual_seed(0)
    original = torchvision.models.VisionTransformer(16, 8, 2, 4, 24, 16, num_classes=5)
    randomized(original)
    explicit = explicit_heads(original)
    pictures = images(16, 3)
    torch.testing.assert_close(explicit(pictures), original(pictures), rtol=0, atol=1e-5)
    name = next(iter(attentions(explicit)))
    pruned = remove_heads(explicit, {name: [0, 3]})
    with masked_heads(explicit, {name: [0, 3]}):
        torch.testing.assert_close(pruned(pictures), explicit(pictures), rtol=0, atol=1e-5)
    assert isinstance(pruned.get_submodule(name), Attention)
    assert pruned.get_submodule(name).q.out_features == 12
    assert any(isinstance(module, nn.MultiheadAttention) for module in original.modules()), "the original was changed"


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"blocks.7.attention": [0]}, "no attention layer 'blocks.7.attention': use one of blocks.0.attention"),
        ({LAYERS[0]: [3]}, "has the heads 0 to 2, not [3]"),
        ({LAYERS[0]: [-1]}, "has the heads 0 to 2, not [-1]"),
        ({LAYERS[0]: [1, 1]}, "name each head once"),
        ({LAYERS[0]: [0, 1, 2]}, "would lose all its 3 heads"),
    ],
)
def test_wrong_heads_are_refused(model: VisionTransformer, heads: dict[str, list[int]], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        remove_heads(model, heads)
    assert words in str(caught.value)
    with pytest.raises(UsageError), masked_heads(model, heads):
        pass


def test_what_has_no_heads_or_no_training_images_is_refused(model: VisionTransformer, fashion_mnist: Splits) -> None:
    for function in (attentions, explicit_heads):
        with pytest.raises(UsageError, match="ResNet has no"):
            function(build(ResNetConfig(depth=8, width=2)))
    with pytest.raises(Exception, match="test split must not be used to rank heads"):
        head_importance(model, ResidentLoader(fashion_mnist.test.subset(10), 10))
    with pytest.raises(UsageError, match="batches is 0"):
        head_importance(model, ResidentLoader(fashion_mnist.train.subset(10), 10), batches=0)


@pytest.mark.parametrize(
    "settings", [{"batch_first": False}, {"dropout": 0.1}, {"bias": False}, {"kdim": 4}, {"add_bias_kv": True}]
)
def test_attention_that_is_not_plain_is_refused(settings: dict[str, object]) -> None:
    layer = nn.Sequential(nn.MultiheadAttention(8, 2, **{"batch_first": True, **settings}))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="only a plain self-attention"):
        explicit_heads(layer)


def test_explicit_heads_take_one_tensor() -> None:
    layer = explicit_heads(nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True)))[0]
    tokens = torch.rand(1, 3, 8)
    assert layer(tokens, tokens, tokens)[1] is None
    with pytest.raises(UsageError, match="takes one tensor as query"):
        layer(tokens, tokens, tokens + 1)
    with pytest.raises(UsageError, match="returns no weights"):
        layer(tokens, tokens, tokens, need_weights=True)
