from __future__ import annotations

import numpy as np
import pytest
import torch

from cookbook.quantization.affine import Affine, best_range
from cookbook.quantization.observers import KEPT, METHODS, OBSERVERS, SAMPLED, Follower, Method, PercentileObserver, unseen
from cookbook.quantization.pt2e import FakeQuantize, MinMaxObserver, MovingAverageMinMaxObserver

SETTINGS = {"dtype": torch.uint8, "quant_min": 0, "quant_max": 255, "qscheme": torch.per_tensor_affine}


def skewed(seed: int = 0) -> torch.Tensor:
    """Return many small numbers and a few large ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(SAMPLED - 2, generator=generator).relu(), torch.tensor([30.0, 50.0])])


def chosen(method: Method, *tensors: torch.Tensor, **settings: object) -> tuple[float, int]:
    observer = OBSERVERS[method](**{**SETTINGS, **settings})
    for tensor in tensors:
        assert observer(tensor) is tensor
    scale, zero = observer.calculate_qparams()
    return scale.item(), int(zero.item())


def error(scale: float, zero: int, x: torch.Tensor) -> float:
    return (torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255) - x).square().mean().item()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_spans_what_it_saw_or_less(method: Method) -> None:
    scale, zero = chosen(method, skewed(0), skewed(1))
    assert 0 < scale <= 50 / 255 * 1.001
    assert zero == 0  # nothing was negative, and a ReLU needs the range to begin at zero


def test_min_max_takes_everything() -> None:
    assert chosen("min-max", torch.tensor([-1.0, 0.0]), torch.tensor([2.0])) == (pytest.approx(3 / 255), 85)


def test_a_percentile_is_numpys() -> None:
    observer = PercentileObserver(**SETTINGS)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    low, high = observer.choose(x, 8)
    assert (low, high) == pytest.approx(tuple(np.percentile(x.numpy(), [0.01, 99.99])), rel=1e-4)


def test_the_smallest_squared_error_is_no_larger_than_that_of_any_other_method() -> None:
    x = skewed()
    errors = {method: error(*chosen(method, x), x) for method in METHODS}
    assert errors["mse"] <= min(errors.values()) * 1.05
    low, high = best_range(x)
    affine = Affine.spanning(low, high)
    assert errors["mse"] == pytest.approx(error(affine.scale, affine.zero_point, x), rel=0.1)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_outliers_are_cut_off(method: Method) -> None:
    assert chosen(method, skewed())[0] < 40 / 255


def test_the_width_decides_how_much_is_cut_off() -> None:
    narrow = chosen("mse", skewed(), quant_max=15)[0] * 15
    assert narrow < chosen("mse", skewed())[0] * 255


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_the_same_images_give_the_same_range(method: Method) -> None:
    x = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))
    assert chosen(method, *x) == chosen(method, *x)


def test_samples_do_not_grow_without_end() -> None:
    observer = PercentileObserver(**SETTINGS)
    for _ in range(3 * KEPT):
        observer(torch.randn(10))
    assert len(observer.samples) <= KEPT


def test_a_follower_has_its_leaders_scale_and_observes_nothing() -> None:
    leader = MinMaxObserver(**SETTINGS)
    leader(torch.tensor([-1.0, 2.0]))
    follower = Follower(leader)
    x = torch.tensor([100.0])
    assert follower(x) is x
    assert follower.calculate_qparams() == leader.calculate_qparams() and leader.max_val == 2


def test_a_follower_rounds_as_its_leader_does_without_moving_its_range() -> None:
    leader = FakeQuantize(observer=MovingAverageMinMaxObserver, **SETTINGS)
    x = torch.tensor([-1.0, 0.3, 2.0])
    leader(x)
    follower = Follower(leader)
    before = leader.scale.clone()
    assert torch.equal(follower(x / 10), torch.fake_quantize_per_tensor_affine(x / 10, before, leader.zero_point, 0, 255))
    assert torch.equal(leader.scale, before) and leader.observer_enabled.item() == 1
    leader.disable_fake_quant()
    assert torch.equal(follower(x / 10), x / 10)


def test_observers_without_data_are_named() -> None:
    both = torch.nn.ModuleDict({"seen": MinMaxObserver(**SETTINGS), "not": MinMaxObserver(**SETTINGS)})
    both["seen"](torch.ones(2))
    assert unseen(both) == ["not"]
