"""Scales by brute force, and learned rounding: on the grid, with the scale an observer finds, closer than the nearest."""

from __future__ import annotations

import copy

import pytest
import torch
from narrow_models import blob_loader, blobs, plain_net, resnet
from torch import Tensor

from cookbook.data import ResidentLoader
from cookbook.errors import UsageError
from cookbook.quantization.adaround import STRETCH, _Rounding, adaround
from cookbook.quantization.layers import fold_batchnorm, trace_layers, weighted
from cookbook.quantization.pt2e import PerChannelMinMaxObserver
from cookbook.quantization.rounding import first_images, on_grid, round_to_nearest, weight_scale
from cookbook.quantization.scheme import Scheme

IMAGES = blobs(24).normalized()


def observed_integers(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the integers and the scales that torchao's own observer finds."""
    low, high = scheme.weight_range
    observer = PerChannelMinMaxObserver(dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=low, quant_max=high)
    observer(weight)
    scale, _ = observer.calculate_qparams()
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return torch.round(weight / scale).clamp(low, high), scale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_min_max_scale_is_the_observers(bits: int) -> None:
    scheme, weight = Scheme(weight_bits=bits), torch.randn(5, 4, 3, 3)
    _, expected = observed_integers(weight, scheme)
    torch.testing.assert_close(weight_scale(weight, scheme), expected)
    whole = weight_scale(weight, Scheme(weight_bits=bits, per_channel=False))
    assert whole.shape == (1, 1, 1, 1)
    torch.testing.assert_close(whole.flatten(), expected.max().view(1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_mse_scale_is_close_to_the_best_by_brute_force(bits: int) -> None:
    scheme, weight = Scheme(weight_bits=bits), torch.randn(3, 50, generator=torch.Generator().manual_seed(bits))
    top = scheme.weight_range[1]
    found = (on_grid(weight, weight_scale(weight, scheme, ranges="mse"), top) - weight).square().sum(1)
    for row, error in zip(weight, found, strict=True):
        tried = [float((on_grid(row, row.abs().max() / top * n / 5000, top) - row).square().sum()) for n in range(250, 5001)]
        assert error <= 1.02 * min(tried)
    plain = (on_grid(weight, weight_scale(weight, scheme), top) - weight).square().sum(1)
    assert bool((found <= plain).all())


def test_a_channel_of_zeros_stays_one() -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    for ranges in ("min-max", "mse"):
        scale = weight_scale(weight, Scheme(weight_bits=4), ranges=ranges)
        assert torch.equal(on_grid(weight, scale, 7)[1], torch.zeros(4))


@pytest.mark.parametrize(("make", "bits"), [(plain_net, 2), (plain_net, 3), (plain_net, 4), (resnet, 2)])
def test_learned_rounding_is_closer_than_the_nearest_and_an_observer_represents_it_exactly(make, bits: int) -> None:
    scheme, model = Scheme(weight_bits=bits), make()
    loader = blob_loader(96, 96)
    rounded, records = adaround(model, loader, scheme=scheme, steps=40, learning_rate=0.05, images=96, progress=False)
    folded = fold_batchnorm(model, IMAGES)
    names = [layer.name for layer in trace_layers(folded, IMAGES)]
    assert [record.name for record in records] == names
    assert all(record.error <= record.nearest_error for record in records)
    assert sum(record.error for record in records) < 0.97 * sum(record.nearest_error for record in records)
    assert any(record.moved > 0 for record in records)
    top = scheme.weight_range[1]
    for name in names:
        weight, before = weighted(rounded, name).weight.detach(), weighted(folded, name).weight.detach()
        scale = weight_scale(before, scheme, ranges="mse")
        integers, seen = observed_integers(weight, scheme)
        torch.testing.assert_close(integers * scale, weight, rtol=1e-6, atol=0)  # exactly representable
        torch.testing.assert_close(seen, scale, rtol=1e-6, atol=0)  # the scale trained on is the scale that is found
        clipped = before.clamp(-scale * top, scale * top)
        assert bool(((weight - clipped).abs() < scale * (1 + 1e-5)).all()), "not one of the two neighbours on the grid"


def test_the_recorded_error_is_the_layers_own() -> None:
    scheme, model = Scheme(weight_bits=3), plain_net()
    loader = blob_loader(48, 48)
    images = first_images(loader, 48)
    rounded, records = adaround(model, loader, scheme=scheme, steps=30, images=48, progress=False)
    folded = fold_batchnorm(model, images)
    with torch.no_grad():
        wanted, found = torch.relu(folded[0](images)), torch.relu(rounded[0](images))
        nearest = torch.relu(round_to_nearest(model, images, scheme=scheme)[0](images))
    assert records[0].error == pytest.approx(float((found - wanted).square().mean()), rel=1e-4)
    assert records[0].nearest_error == pytest.approx(float((nearest - wanted).square().mean()), rel=1e-4)


def test_a_rounding_begins_at_the_weights_themselves() -> None:
    weight = torch.randn(4, 9, dtype=torch.float64)
    scale = weight_scale(weight, Scheme(weight_bits=4))
    rounding = _Rounding(weight, scale, 7)
    torch.testing.assert_close(rounding.soft().detach(), weight, atol=float(2e-4 * scale.max()), rtol=0)
    assert STRETCH[0] < 0 < 1 < STRETCH[1]
    # the regularizer vanishes only where every choice is made
    assert rounding.regularizer(0.9).item() > 0
    assert rounding.regularizer(0.1).item() == 0
    with torch.no_grad():
        rounding.variable.copy_(torch.where(rounding.variable > 0, 9.0, -9.0))
    assert rounding.regularizer(0.9).item() == 0
    torch.testing.assert_close(rounding.soft().detach(), rounding.hard())


@pytest.mark.parametrize("ranges", ["min-max", "mse"])
@pytest.mark.parametrize("push", [-20.0, 20.0])
def test_the_ends_of_the_grid_stay_whatever_is_learned(ranges, push: float) -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(2))
    scale = weight_scale(weight, Scheme(weight_bits=4), ranges=ranges)
    rounding = _Rounding(weight, scale, 7)
    with torch.no_grad():
        rounding.variable.fill_(push)
    integers = (rounding.hard() / scale).round()
    assert integers.abs().amax(1).tolist() == [7.0] * 6
    ends = weight.abs() >= 6.999 * scale
    assert torch.equal(integers[ends], 7 * weight[ends].sign())


def test_the_same_seed_rounds_the_same_way_and_the_model_is_left_alone() -> None:
    model = plain_net()
    before = copy.deepcopy(model.state_dict())
    settings = {"scheme": Scheme(weight_bits=3), "steps": 20, "images": 24, "progress": False}
    one, other = (adaround(model, blob_loader(), seed=7, **settings)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_excluded_layers_stay_in_float() -> None:
    rounded, records = adaround(
        plain_net(), blob_loader(), scheme=Scheme(weight_bits=2, exclude=("0", "12")), steps=2, progress=False
    )
    folded = fold_batchnorm(plain_net(), IMAGES)
    assert [record.name for record in records] == ["3", "6", "10"]
    for number in (0, 12):
        assert torch.equal(rounded[number].weight, folded[number].weight)
    nearest = round_to_nearest(plain_net(), IMAGES, scheme=Scheme(weight_bits=2, exclude=("0",)))
    assert torch.equal(nearest[0].weight, folded[0].weight)
    assert not torch.equal(nearest[12].weight, folded[12].weight)


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": 0}, "steps is 0"), ({"batch_size": 0}, "batch_size is 0"), ({"learning_rate": 0.0}, "learning_rate is 0"),
    ({"images": 0}, "images is 0"), ({"ranges": "entropy"}, "use min-max or mse"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adaround(plain_net(), blob_loader(), scheme=Scheme(weight_bits=4), **settings)


def test_the_test_split_is_refused() -> None:
    with pytest.raises(UsageError, match="test split must not be used to calibrate"):
        adaround(plain_net(), ResidentLoader(blobs(12, role="test"), 6), scheme=Scheme(weight_bits=4))
