"""Masks: exactly so many zeros, the right ones, for as long as the network trains."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zstandard
from safetensors.torch import save_file
from small_nets import CASES, Grouped, loader, make
from torch import Tensor, nn

from cookbook.errors import DataError, UsageError
from cookbook.models import PerceptronConfig, ResNetConfig, load, save
from cookbook.pruning import MaskReport, attach_masks, make_permanent, mask_report, mask_two_of_four, mask_weights
from cookbook.training import Recipe, fit

RESNET = ResNetConfig(depth=8, width=4, classes=2)
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
RECIPE = Recipe(epochs=2, learning_rate=0.1, weight_decay=0.01)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that the layers compute with."""
    return {
        name: layer.weight.detach().clone() for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("name", CASES)
def test_each_layer_loses_its_smallest_weights_and_no_other(name: str, sparsity: float) -> None:
    model = make(CASES[name][0])
    before, after = weights(model), weights(mask_weights(model, sparsity=sparsity))
    for layer, dense in before.items():
        values = sorted(dense.flatten().tolist(), key=abs)
        gone = round(sparsity * len(values))
        assert sorted(after[layer].flatten().tolist(), key=abs) == [0.0] * gone + values[gone:]
        alive = after[layer] != 0
        assert torch.equal(after[layer][alive], dense[alive])


def test_globally_the_smallest_of_all_weights_leave() -> None:
    model = make(RESNET)
    before, after = weights(model), weights(mask_weights(model, sparsity=0.6, scope="global", exclude=["head"]))
    assert torch.equal(before.pop("head"), after.pop("head"))
    every = sorted(abs(value) for layer in before.values() for value in layer.flatten().tolist())
    gone = round(0.6 * len(every))
    assert sum(int((layer == 0).sum()) for layer in after.values()) == gone
    for layer, dense in before.items():
        assert torch.equal(after[layer] == 0, dense.abs() <= every[gone - 1])
    shares = [float((layer == 0).float().mean()) for layer in after.values()]
    assert max(shares) - min(shares) > 0.1


def test_equal_magnitudes_do_not_change_the_count() -> None:
    model = nn.Sequential(nn.Linear(10, 10))
    nn.init.constant_(model[0].weight, 0.5)
    assert int((weights(mask_weights(model, sparsity=0.37))["0"] == 0).sum()) == 37


def test_taylor_removes_where_weight_times_gradient_is_small() -> None:
    model = make(PerceptronConfig(height=8, width=8, hidden=(3,), classes=2))
    batches = [(X, torch.tensor([0, 1, 0, 1])), (2 * X, torch.tensor([1, 1, 0, 0]))]
    masked = mask_weights(model, sparsity=0.5, criterion="taylor", batches=batches)
    exact = copy.deepcopy(model).double()
    weight, step = exact.head.weight.data, 1e-6
    products = torch.zeros_like(weight)
    for row, column in itertools.product(range(2), range(3)):
        for images, labels in batches:
            losses = []
            for sign in (1, -1):
                weight[row, column] += sign * step
                losses.append(F.cross_entropy(exact(images.double()), labels).item())
                weight[row, column] -= sign * step
            products[row, column] += abs(weight[row, column] * (losses[0] - losses[1]) / (2 * step))
    assert torch.equal(weights(masked)["head"] == 0, products <= products.flatten().sort().values[2])
    with pytest.raises(UsageError, match="criterion 'taylor' needs gradients"):
        mask_weights(model, sparsity=0.5, criterion="taylor")
    with pytest.raises(DataError, match="no batch to take gradients from"):
        mask_weights(model, sparsity=0.5, criterion="taylor", batches=[])


def test_two_of_every_four_inputs_remain_and_they_are_the_larger() -> None:
    model = make(ResNetConfig(depth=8, width=8))
    before, after = weights(model), weights(mask_two_of_four(model))
    assert torch.equal(before.pop("stem.0"), after.pop("stem.0"))  # one input
    for layer, dense in before.items():
        columns = dense.flatten(2).transpose(1, 2).tolist() if dense.ndim == 4 else [[row] for row in dense.tolist()]
        kept = after[layer].flatten(2).transpose(1, 2).tolist() if dense.ndim == 4 else [[row] for row in after[layer].tolist()]
        for old, new in zip(itertools.chain(*columns), itertools.chain(*kept), strict=True):
            for first in range(0, len(old), 4):
                four = old[first : first + 4]
                larger = sorted(four, key=abs)[2:]
                assert new[first : first + 4] == [value if value in larger else 0.0 for value in four]
    with pytest.raises(UsageError, match="No layer of Grouped has a multiple of four inputs"):
        mask_two_of_four(make(Grouped), exclude=["project"])


def grow(model: nn.Module) -> nn.Module:
    return mask_weights(model, sparsity=0.5, scope="global")


@pytest.mark.parametrize("mask", [grow, mask_two_of_four])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_zeros_stay_through_a_training_and_the_others_move(mask: Callable[[nn.Module], nn.Module], ema: float | None) -> None:
    masked = mask(make(RESNET))
    before = weights(masked)
    recipe = Recipe(epochs=2, learning_rate=0.1, weight_decay=0.01, ema_decay=ema)
    fit(masked, loader(), recipe)
    for layer, after in weights(masked).items():
        assert torch.equal(after == 0, before[layer] == 0)
        assert not torch.equal(after, before[layer])


def test_permanent_zeros_are_plain_weights_that_can_be_stored(tmp_path: Path) -> None:
    model = make(RESNET).requires_grad_(False)
    masked = mask_weights(model, sparsity=0.5)
    plain = make_permanent(masked)
    assert plain.state_dict().keys() == model.state_dict().keys() and type(plain.head) is nn.Linear
    assert torch.equal(plain(X), masked(X)) and not torch.equal(plain(X), model(X))
    assert not any(value.requires_grad for value in plain.parameters())
    assert torch.equal(make_permanent(copy.deepcopy(masked))(X), make_permanent(masked)(X))
    assert torch.equal(load(save(plain, tmp_path / "sparse.safetensors"))(X), plain(X))
    with pytest.raises(UsageError, match="ResNet has no masks"):
        make_permanent(model)


def test_masks_grow_and_never_give_back() -> None:
    first = mask_weights(make(RESNET), sparsity=0.3)
    with torch.no_grad():
        for layer in first.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                factor = 1 + 99 * (layer.weight == 0)  # the removed ones are the largest now
                layer.parametrizations.weight.original.mul_(factor)
    second = mask_weights(first, sparsity=0.6)
    for layer, dense in weights(first).items():
        after = weights(second)[layer]
        assert not (after[dense == 0]).any() and int((after == 0).sum()) == round(0.6 * after.numel())
        assert int((dense == 0).sum()) == round(0.3 * dense.numel())  # what was given is not touched
    with pytest.raises(UsageError, match=r"removed already, more than a sparsity of 0\.3"):
        mask_weights(second, sparsity=0.3)


def test_the_report_counts_zeros_and_bytes(tmp_path: Path) -> None:
    model = make(ResNetConfig(depth=8, width=8))
    dense, sparse = mask_report(model), mask_report(mask_weights(model, sparsity=0.9))
    count = {name: weight.numel() for name, weight in weights(model).items()}
    assert {name: pair for name, pair in sparse.layers.items()} == {n: (round(0.9 * size), size) for n, size in count.items()}
    assert (dense.zeros, sparse.weights) == (0, sum(count.values()))
    assert sparse.sparsity == pytest.approx(0.9, abs=0.01)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    assert dense.dense_bytes == sparse.dense_bytes == path.stat().st_size
    packed = zstandard.ZstdCompressor(level=19).compress(path.read_bytes())
    assert dense.compressed_bytes == len(packed)
    assert sparse.compressed_bytes < 0.4 * dense.compressed_bytes
    text = str(MaskReport({"a": (1, 2)}, 1234, 99))
    assert "1 of" in text and "1,234 bytes, 99 compressed by zstandard" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0: use a share of zeros"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"sparsity": 0.5, "scope": "layer"}, "scope is 'layer': use local or global"),
        ({"sparsity": 0.5, "criterion": "chance"}, "criterion is 'chance': use magnitude, taylor, movement"),
        ({"sparsity": 0.5, "exclude": ["tail"]}, "no layer 'tail' in ResNet"),
        ({"sparsity": 0.5, "exclude": ["stem", "blocks", "head"]}, "no convolution and no linear layer"),
    ],
)
def test_an_argument_that_cannot_work_is_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        mask_weights(make(RESNET), **arguments)  # type: ignore[arg-type]


def test_masks_are_attached_once() -> None:
    masked = attach_masks(make(RESNET))
    assert torch.equal(masked(X), make(RESNET)(X))
    with pytest.raises(UsageError, match="has masks or parametrizations already"):
        attach_masks(masked)
