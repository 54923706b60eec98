"""An affine quantizer in ten lines, and the range whose rounding hurts least (lesson 05).

Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, arXiv 1712.05877:
a real number x is stood for by the integer q = round(x / scale) + zero_point, cut to the range of the integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cookbook.errors import UsageError

SMALLEST_SCALE = torch.finfo(torch.float32).eps  # as in torch's observers
SHARES = 100  # of a range that are tried
UNLIKELY = 1e-4  # the probability of what the quantized histogram does not have
BINS = 2048  # of the histogram whose entropy is compared


@dataclass(frozen=True)
class Affine:
    """Integers for real numbers: q = round(x / scale) + zero_point, at least `lowest` and at most `highest`.

    Attributes:
        scale: distance of two neighbouring numbers that integers stand for.
        zero_point: the integer that stands for 0.
        lowest: the smallest integer.
        highest: the largest integer.
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int

    @classmethod
    def spanning(cls, low: float, high: float, *, bits: int = 8, symmetric: bool = False) -> Affine:
        """Return the quantizer whose integers just reach from `low` to `high`, and stand for 0 exactly.

        Args:
            low: smallest number; above 0 it counts as 0.
            high: largest number; below 0 it counts as 0.
            bits: width of the integers, at least 2.
            symmetric: integers from −(2^(bits−1) − 1) to 2^(bits−1) − 1 with 0 for 0, as for weights; else from 0 to
                2^bits − 1, as for activations.

        Raises:
            UsageError: fewer than 2 bits, or ends that are not finite or in the wrong order.
        """
        if bits < 2 or not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise UsageError(f"{bits} bits from {low} to {high} are no range: use 2 bits or more and two ascending numbers.")
        low, high = min(low, 0.0), max(high, 0.0)
        if symmetric:
            largest = 2 ** (bits - 1) - 1
            return cls(_at_least_smallest(max(-low, high) / largest), 0, -largest, largest)
        highest = 2**bits - 1
        scale = _at_least_smallest((high - low) / highest)
        return cls(scale, min(max(-round(low / scale), 0), highest), 0, highest)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the int32 integers of x, in its shape."""
        return (torch.round(x * (1 / self.scale)) + self.zero_point).clamp(self.lowest, self.highest).to(torch.int32)

    def dequantize(self, q: Tensor) -> Tensor:
        """Return the float32 numbers that the integers stand for."""
        return (q - self.zero_point).to(torch.float32) * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """Return x as it comes back from its integers."""
        return self.dequantize(self.quantize(x))


def best_range(x: Tensor, *, bits: int = 8, symmetric: bool = False, shares: int = SHARES) -> tuple[float, float]:
    """Return the share of x's range whose quantizer has the smallest mean squared error on x.

    A narrower range has a finer scale and cuts off more (Nagel et al., A White Paper on Neural Network Quantization,
    arXiv 2106.08295, section 3.1).

    Args:
        x: float32, any shape, not empty.
        bits: as in `Affine.spanning`, as for `symmetric`.
        shares: how many are tried, evenly up to the whole range, to which ties go.
    """
    low, high = (end.item() for end in torch.aminmax(x))
    best, chosen = math.inf, 1.0
    for step in range(shares, 0, -1):
        share = step / shares
        error = (Affine.spanning(share * low, share * high, bits=bits, symmetric=symmetric)(x) - x).square().mean().item()
        if error < best:
            best, chosen = error, share
    return chosen * low, chosen * high


def entropy_range(x: Tensor, *, bits: int = 8, shares: int = SHARES) -> tuple[float, float]:
    """Return the share of x's range whose quantized histogram loses the least information against the whole one.

    It is measured by the Kullback-Leibler divergence of the histogram, with what is cut off counted at its ends, from the
    histogram that `2**bits` levels leave (Migacz, 8-bit Inference with TensorRT, GTC 2017; Wu et al., arXiv 2004.09602,
    section 4.2).

    Args:
        x: float32, any shape, not empty.
        bits: of the quantizer.
        shares: how many are tried, evenly from one bin a level up to the whole range, to which ties go.
    """
    low, high = (end.item() for end in torch.aminmax(x))
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return low, high
    counts = torch.histc(x.float(), BINS, low, high).double().cpu().numpy()
    width = (high - low) / BINS
    best, chosen = math.inf, 1.0
    for share in np.linspace(1.0, 2**bits / BINS, shares):
        first = math.floor(low * (share - 1) / width + 0.5)
        last = BINS - math.floor(high * (1 - share) / width + 0.5)
        divergence = _divergence(counts, first, last, 2**bits)
        if divergence < best:
            best, chosen = divergence, float(share)
    return chosen * low, chosen * high


def _divergence(counts: np.ndarray, first: int, last: int, levels: int) -> float:
    """Return the divergence, in nats, of bins `first` to `last` with the rest at their ends from the same in `levels`."""
    kept = counts[first:last]
    reference = kept.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    level = np.arange(len(kept)) * levels // len(kept)
    occupied = reference > 0
    share = np.bincount(level, kept) / np.maximum(np.bincount(level, occupied), 1)
    quantized = np.where(occupied, share[level], 0.0)
    p, q = reference[occupied] / reference.sum(), quantized[occupied] / max(quantized.sum(), 1.0)
    q = np.where(q > 0, q, UNLIKELY)  # what was cut off may lie where nothing else does
    return float((p * np.log(p / (q / q.sum()))).sum())


def _at_least_smallest(scale: float) -> float:
    return max(torch.tensor(scale, dtype=torch.float32).item(), SMALLEST_SCALE)
