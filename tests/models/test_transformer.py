"""The vision transformer against torch's own attention, the formula, and itself with heads removed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.models import VisionTransformer, VisionTransformerConfig, build
from cookbook.models.transformer import Attention

SMALL = VisionTransformerConfig(image_size=8, patch=4, embedding=12, layers=2, heads=3, head_dim=4, hidden=10)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def test_attention_equals_torchs_when_the_head_dimension_divides() -> None:
    attention = Attention(embedding=12, heads=3, head_dim=4)
    randomized(attention)
    reference = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
        reference.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.k.bias, attention.v.bias]))
        reference.out_proj.weight.copy_(attention.out.weight)
        reference.out_proj.bias.copy_(attention.out.bias)
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    expected, _ = reference(tokens, tokens, tokens, need_weights=False)
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-10, atol=1e-12)


def test_attention_with_free_sizes_equals_the_formula() -> None:
    attention = Attention(embedding=6, heads=2, head_dim=5)
    randomized(attention)
    tokens = torch.randn(3, 4, 6, dtype=torch.float64)
    expected = attention.out.bias.expand(3, 4, 6).clone()
    for head in range(2):
        own = slice(head * 5, head * 5 + 5)
        q, k, v = (tokens @ p.weight[own].T + p.bias[own] for p in (attention.q, attention.k, attention.v))
        weights = torch.exp(q @ k.mT / math.sqrt(5))
        expected += (weights / weights.sum(-1, keepdim=True)) @ v @ attention.out.weight[:, own].T
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-10, atol=1e-12)


def test_a_removed_head_equals_a_silenced_head() -> None:
    full = randomized(VisionTransformer(SMALL))
    pruned = VisionTransformer(VisionTransformerConfig(**{**vars(SMALL), "heads": (2, 3)})).double().eval()
    kept = torch.cat([torch.arange(0, 4), torch.arange(8, 12)])  # the first layer loses its middle head
    smaller = dict(full.state_dict())
    for name in ("q", "k", "v"):
        for part in ("weight", "bias"):
            key = f"blocks.0.attention.{name}.{part}"
            smaller[key] = smaller[key][kept]
    smaller["blocks.0.attention.out.weight"] = smaller["blocks.0.attention.out.weight"][:, kept]
    pruned.load_state_dict(smaller)
    full.get_parameter("blocks.0.attention.out.weight").data[:, 4:8] = 0
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(pruned(images), full(images), rtol=1e-10, atol=1e-12)


def test_forward_equals_the_formula_in_float64() -> None:
    model = VisionTransformer(SMALL)
    randomized(model)
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)

    def normalized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias

    x = model.patches(images).flatten(2).transpose(1, 2) + model.positions
    for block in model.blocks:
        x = x + block.attention(normalized(x, block.norm1))  # compared with the formula above
        first, last = block.mlp[0], block.mlp[3]
        hidden = normalized(x, block.norm2) @ first.weight.T + first.bias
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + hidden @ last.weight.T + last.bias
    expected = normalized(x, model.norm).mean(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)


def test_patches_are_cut_row_by_row() -> None:
    model = VisionTransformer(SMALL)
    randomized(model)
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    tokens = model.patches(images).flatten(2).transpose(1, 2)
    weight, bias = model.patches.weight.flatten(1), model.patches.bias
    for number, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        patch = images[:, :, top : top + 4, left : left + 4].flatten(1)
        torch.testing.assert_close(tokens[:, number], patch @ weight.T + bias, rtol=1e-10, atol=1e-12)


def test_positions_tell_patches_apart() -> None:
    model = VisionTransformer(SMALL)
    randomized(model)
    images = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    swapped = images.roll(4, dims=3)  # exchanges left and right patches
    assert not torch.allclose(model(images), model(swapped))
    nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(images), model(swapped), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        VisionTransformerConfig(),
        VisionTransformerConfig(image_size=12, patch=3, in_channels=3, classes=4, embedding=10, layers=3,
                                heads=(1, 2, 3), head_dim=(4, 3, 5), hidden=(6, 7, 8)),
    ],
)  # fmt: skip
def test_parameters_follow_the_closed_form(config: VisionTransformerConfig) -> None:
    model = build(config)
    e = config.embedding
    expected = config.in_channels * config.patch**2 * e + e + (config.image_size // config.patch) ** 2 * e
    for layer in range(config.layers):
        heads, dim, hidden = (
            value if isinstance(value, int) else value[layer] for value in (config.heads, config.head_dim, config.hidden)
        )
        inner = heads * dim
        expected += 4 * e + 3 * (e * inner + inner) + inner * e + e + e * hidden + hidden + hidden * e + e
    expected += 2 * e + e * config.classes + config.classes
    assert sum(p.numel() for p in model.parameters()) == expected
    images = torch.rand(2, config.in_channels, config.image_size, config.image_size)
    assert model(images).shape == (2, config.classes)


def test_one_number_means_the_same_for_every_layer() -> None:
    torch.manual_seed(0)
    short = build(SMALL)
    torch.manual_seed(0)
    long = build(VisionTransformerConfig(**{**vars(SMALL), "heads": [3, 3], "head_dim": [4, 4], "hidden": [10, 10]}))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(short(images), long(images))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = build(VisionTransformerConfig(**{**vars(SMALL), "dropout": 0.5}))
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_every_parameter_gets_a_gradient() -> None:
    model = build(SMALL)
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        # a bias of the keys adds one number to all scores of a query, which softmax ignores
        assert parameter.grad.abs().sum() > 0 or name.endswith("attention.k.bias"), name


def test_logits_of_a_fresh_model_differ_between_images() -> None:
    torch.manual_seed(0)
    logits = build(VisionTransformerConfig()).eval()(torch.rand(2, 1, 28, 28))
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)


def test_other_image_sizes_are_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"\(28, 27\) pixels: this transformer takes 28×28"):
        build(VisionTransformerConfig())(torch.rand(1, 1, 28, 27))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"patch": 5}, "patch is 5: use a divisor of the image size 28"),
        ({"heads": (4, 4)}, "heads names 2 layers, but there are 4"),
        ({"heads": 0}, "heads is 0"),
        ({"heads": True}, "heads is True"),
        ({"heads": (4, 4, 0, 4)}, "heads is (4, 4, 0, 4)"),
        ({"head_dim": 2.5}, "head_dim is 2.5"),
        ({"hidden": None}, "hidden is None"),
        ({"layers": 0}, "layers is 0"),
        ({"dropout": 1}, "dropout is 1"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        VisionTransformerConfig(**fields)  # type: ignore[arg-type]
    assert words in str(caught.value)
