from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operators that files are made of

from cookbook.errors import UsageError
from cookbook.quantization.affine import BINS, UNLIKELY, Affine, best_range, entropy_range

RANGES = [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (-1e-3, 4e-3), (0.5, 2.0), (-2.0, -1.0)]


def numbers(seed: int = 0, size: int = 4000) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_it_equals_torchs_own_quantizers(bits: int, symmetric: bool, low: float, high: float) -> None:
    affine = Affine.spanning(low, high, bits=bits, symmetric=symmetric)
    x = numbers()
    faked = torch.fake_quantize_per_tensor_affine(x, affine.scale, affine.zero_point, affine.lowest, affine.highest)
    assert torch.equal(affine(x), faked)
    if bits == 8:
        settings = (affine.scale, affine.zero_point, affine.lowest, affine.highest, torch.int8 if symmetric else torch.uint8)
        own = torch.ops.quantized_decomposed.quantize_per_tensor(x, *settings)
        assert torch.equal(affine.quantize(x), own.to(torch.int32))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_number_in_range_comes_back_within_half_a_step(low: float, high: float, symmetric: bool) -> None:
    affine = Affine.spanning(low, high, symmetric=symmetric)
    ends = affine.dequantize(torch.tensor([affine.lowest, affine.highest]))
    x = torch.linspace(ends[0].item(), ends[1].item(), 10_001)
    assert (affine(x) - x).abs().max() <= affine.scale / 2 * (1 + 1e-4)
    assert affine(torch.zeros(1)).item() == 0.0


def test_a_number_out_of_range_comes_back_as_the_nearest_end() -> None:
    affine = Affine.spanning(-1.0, 2.0)
    far = affine.quantize(torch.tensor([-100.0, 100.0, float("inf")]))
    assert far.tolist() == [affine.lowest, affine.highest, affine.highest]


@pytest.mark.parametrize(("low", "high", "bits"), [(1.0, 0.0, 8), (0.0, float("inf"), 8), (float("nan"), 1.0, 8), (0, 1, 1)])
def test_what_is_no_range_is_refused(low: float, high: float, bits: int) -> None:
    with pytest.raises(UsageError, match="are no range"):
        Affine.spanning(low, high, bits=bits)


def test_a_range_of_nothing_but_zero_has_the_smallest_scale() -> None:
    affine = Affine.spanning(0.0, 0.0)
    assert affine.scale > 0 and affine(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_best_range_equals_a_brute_force_search(bits: int, symmetric: bool) -> None:
    x = numbers(1, 500)
    low, high = best_range(x, bits=bits, symmetric=symmetric, shares=40)
    values = x.double().numpy()
    errors = {}
    for step in range(1, 41):
        if symmetric:
            largest = 2 ** (bits - 1) - 1
            scale, zero, lowest, highest = max(-values.min(), values.max()) * step / 40 / largest, 0, -largest, largest
        else:
            scale = (values.max() - values.min()) * step / 40 / (2**bits - 1)
            zero, lowest, highest = round(-values.min() * step / 40 / scale), 0, 2**bits - 1
        rounded = [(min(max(round(value / scale) + zero, lowest), highest) - zero) * scale for value in values]
        errors[step] = float(np.mean((np.array(rounded) - values) ** 2))
    best = min(errors, key=lambda step: errors[step])
    assert low == pytest.approx(values.min() * best / 40, rel=1e-5)
    assert high == pytest.approx(values.max() * best / 40, rel=1e-5)
    assert (best < 40) == (bits < 8)  # at few bits it pays to cut off


def test_the_range_of_least_entropy_equals_a_brute_force_search() -> None:
    x = torch.cat([numbers(2, 20_000), torch.tensor([40.0, -25.0])])
    low, high = entropy_range(x, bits=4, shares=12)
    counts, _ = np.histogram(x.numpy().astype(np.float32), BINS, (x.min().item(), x.max().item()))
    width = (x.max().item() - x.min().item()) / BINS
    divergences = {}
    for share in np.linspace(1.0, 16 / BINS, 12):
        cut_low = int(np.floor(x.min().item() * (share - 1) / width + 0.5))
        cut_high = int(np.floor(x.max().item() * (1 - share) / width + 0.5))
        kept = counts[cut_low : BINS - cut_high].astype(float)
        p = kept.copy()
        p[0] += counts[:cut_low].sum()
        p[-1] += counts[BINS - cut_high :].sum()
        q = np.zeros_like(p)
        for level in range(16):
            members = [bin_ for bin_ in range(len(p)) if bin_ * 16 // len(p) == level and p[bin_] > 0]
            for bin_ in members:
                q[bin_] = sum(kept[member] for member in members) / len(members)
        q /= q.sum()
        q[(q == 0) & (p > 0)] = UNLIKELY
        divergences[float(share)] = scipy.stats.entropy(p[p > 0], q[p > 0])
    best = min(divergences, key=lambda share: divergences[share])
    assert (low, high) == (pytest.approx(best * x.min().item()), pytest.approx(best * x.max().item()))
    assert best < 0.5  # the two outliers are cut off


def test_constant_zero_has_no_range() -> None:
    assert entropy_range(torch.zeros(10)) == (0.0, 0.0)
