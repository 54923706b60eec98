"""Folding, equalized ranges with the same function, and biases that make up for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from narrow_models import blob_loader, blobs, lively, plain_net, resnet
from torch import Tensor, nn

from cookbook.data import ResidentLoader
from cookbook.errors import CookbookError, UsageError
from cookbook.quantization.equalization import correct_bias, equalizable_pairs, equalize
from cookbook.quantization.layers import fold_batchnorm, trace_layers, weighted
from cookbook.quantization.rounding import round_to_nearest, weight_scale
from cookbook.quantization.scheme import Scheme

IMAGES = blobs(24).normalized()
PER_TENSOR = Scheme(weight_bits=8, per_channel=False)


def outputs(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


@pytest.mark.parametrize("make", [plain_net, resnet])
def test_folding_keeps_the_function_and_leaves_no_batchnorm(make) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    folded = fold_batchnorm(model, IMAGES)
    assert close(outputs(folded), outputs(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batchnorm_that_follows_no_layer_alone_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.after = nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Tensor:
            found = self.conv(self.norm(images))
            return (self.after(found) + found).mean((2, 3))

    model = lively(Shared())
    folded = fold_batchnorm(model, IMAGES)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    assert isinstance(folded.after, nn.BatchNorm2d)
    assert close(outputs(folded), outputs(model))


def test_layers_are_found_in_order_without_those_that_run_twice() -> None:
    names = [layer.name for layer in trace_layers(resnet(), IMAGES)]
    assert names[:3] == ["stem.0", "blocks.0.conv1", "blocks.0.conv2"]
    assert names[-1] == "head"
    assert len(names) == 10

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.tied = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.tied.weight = nn.Parameter(torch.zeros(3, 3))
            self.copy = nn.Linear(3, 3)
            self.copy.weight = self.tied.weight

        def forward(self, values: Tensor) -> Tensor:
            return self.copy(self.tied(self.again(self.again(self.first(values)))))

    assert [layer.name for layer in trace_layers(Twice(), torch.zeros(2, 3))] == ["first"]


def unbalanced(seed: int = 0) -> nn.Module:
    """A network whose channels differ a hundredfold, which the next layer undoes."""
    net = fold_batchnorm(plain_net(seed), IMAGES)
    factors = torch.logspace(-1, 1, 8)
    with torch.no_grad():
        net[0].weight *= factors.view(-1, 1, 1, 1)
        net[0].bias *= factors
        net[3].weight /= factors.view(-1, 1, 1, 1)
    return net


@pytest.mark.parametrize("make", [plain_net, resnet, unbalanced])
def test_equalizing_keeps_the_function_in_float(make) -> None:
    model = make()
    equalized = equalize(model, IMAGES)
    assert close(outputs(equalized), outputs(model))
    folded = fold_batchnorm(model, IMAGES)
    for pair in equalizable_pairs(folded, IMAGES):
        assert not torch.equal(weighted(equalized, pair.first).weight, weighted(folded, pair.first).weight)


def test_after_convergence_every_channel_has_one_range_on_both_sides() -> None:
    equalized = equalize(plain_net(), IMAGES, rounds=200)
    pairs = equalizable_pairs(equalized, IMAGES)
    assert [(pair.first, pair.second, pair.repeat) for pair in pairs] == [
        ("0", "3", 1), ("3", "6", 1), ("6", "10", 9), ("10", "12", 1),
    ]  # fmt: skip
    for pair in pairs:
        first, second = weighted(equalized, pair.first), weighted(equalized, pair.second)
        own = first.weight.abs().flatten(1).amax(1)
        # which weights of the second read a channel, found by asking it: nothing else may change the output
        theirs = []
        for channel in range(len(own)):
            theirs.append(_readers_of(second, channel, pair.repeat, len(own)))
        torch.testing.assert_close(own, torch.stack(theirs), rtol=1e-4, atol=0)


def _readers_of(module: nn.Module, channel: int, repeat: int, channels: int) -> Tensor:
    """The largest absolute weight whose gradient does not vanish when only one channel is lit."""
    probe = copy.deepcopy(module)
    if isinstance(probe, nn.Linear):
        lit = torch.zeros(1, channels * repeat)
        lit[:, channel * repeat : (channel + 1) * repeat] = 1
    else:
        lit = torch.zeros(1, channels, 5, 5)
        lit[:, channel] = 1
    probe(lit).sum().backward()
    return (probe.weight.abs() * (probe.weight.grad != 0)).max()


def test_a_residual_block_is_equalized_inside_only() -> None:
    pairs = equalizable_pairs(fold_batchnorm(resnet(), IMAGES), IMAGES)
    assert [(pair.first, pair.second) for pair in pairs] == [
        (f"blocks.{number}.conv1", f"blocks.{number}.conv2") for number in range(3)
    ]


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Sigmoid(), nn.Hardswish()])
def test_what_does_not_pass_a_scale_ends_a_pair(between: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), between, nn.Conv2d(4, 3, 4), nn.Flatten()).eval()
    with pytest.raises(UsageError, match="leave equalization out"):
        equalize(net, IMAGES)


def test_pooling_behind_a_linear_layer_does_not_pass_it() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 2)

        def forward(self, values: Tensor) -> Tensor:
            return self.second(F.max_pool2d(F.relu(self.first(values)), (1, 2)))

    assert equalizable_pairs(Pooled(), torch.zeros(2, 1, 6, 6)) == []


def test_dead_channels_are_left_alone() -> None:
    net = plain_net()
    with torch.no_grad():
        net[0].weight[2] = 0
        net[3].weight[5] = 0
    equalized = equalize(net, IMAGES)
    assert all(bool(value.isfinite().all()) for value in equalized.state_dict().values())
    assert close(outputs(equalized), outputs(net))


def test_equalizing_helps_one_scale_a_layer() -> None:
    model = unbalanced()
    errors = [
        (outputs(round_to_nearest(net, IMAGES, scheme=PER_TENSOR, ranges="min-max")) - outputs(model)).square().mean()
        for net in (model, equalize(model, IMAGES))
    ]
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("bits", [3, 4])
def test_corrected_biases_bring_the_means_back(bits: int) -> None:
    scheme = Scheme(weight_bits=bits, per_channel=False)
    model, images = plain_net(3), blobs(48).normalized()
    corrected = correct_bias(model, blob_loader(48, 48), scheme=scheme, images=48)
    folded = fold_batchnorm(model, images)
    assert all(
        torch.equal(weighted(corrected, layer.name).weight, weighted(folded, layer.name).weight)
        for layer in trace_layers(folded, images)
    )
    means = {
        name: outputs(round_to_nearest(net, images, scheme=scheme, ranges="min-max"), images).double().mean(0)
        for name, net in {"plain": model, "corrected": corrected}.items()
    }
    wanted = outputs(model, images).double().mean(0)
    assert (means["plain"] - wanted).abs().max() > 5e-4
    torch.testing.assert_close(means["corrected"], wanted, atol=5e-6, rtol=0)  # the last layer's mean is exact by construction


def test_an_excluded_layer_keeps_its_bias() -> None:
    corrected = correct_bias(plain_net(), blob_loader(), scheme=Scheme(weight_bits=4, exclude=("12",)))
    assert torch.equal(corrected[12].bias, plain_net()[12].bias)
    assert not torch.equal(corrected[10].bias, plain_net()[10].bias)


def test_what_a_user_can_get_wrong() -> None:
    with pytest.raises(UsageError, match="rounds is 0"):
        equalize(plain_net(), IMAGES, rounds=0)
    with pytest.raises(UsageError, match="test split must not be used to correct biases"):
        correct_bias(plain_net(), ResidentLoader(blobs(12, role="test"), 6))
    with pytest.raises(UsageError, match="images is 0"):
        correct_bias(plain_net(), blob_loader(), images=0)
    with pytest.raises(CookbookError, match="Sequential"):
        equalize(plain_net(), torch.zeros(2, 3, 5, 5))
    with pytest.raises(UsageError, match="use min-max or mse"):
        weight_scale(torch.ones(2, 2), Scheme(), ranges="entropy")
