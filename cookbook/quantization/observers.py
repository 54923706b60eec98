"""Observers: how the range of an activation is chosen from calibration images (lesson 05)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cookbook.quantization.affine import best_range, entropy_range
from cookbook.quantization.pt2e import FakeQuantizeBase, HistogramObserver, MinMaxObserver, ObserverBase

Method = Literal["min-max", "histogram", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)

SAMPLED = 16_384  # values of one tensor that are kept; all of a smaller one
KEPT = 16  # samples at most; then every second one goes
PERCENTILE = 99.99  # Wu et al., arXiv 2004.09602, section 4.2: the best of its calibrations for most networks


class SampledObserver(MinMaxObserver):  # type: ignore[misc]
    """Chooses a range from values drawn at random from every tensor that it sees; also keeps their minimum and maximum.

    Args:
        settings: as for torchao's ``MinMaxObserver``, with an unsigned range of integers from 0.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.samples: list[Tensor] = []
        self._chosen: tuple[Tensor, Tensor] | None = None
        self._generator_seed = 0

    def forward(self, x_orig: Tensor) -> Tensor:
        """Keep a sample of x and return x."""
        values = super().forward(x_orig).detach().flatten()
        if values.numel():
            self._chosen = None
            self._generator_seed += 1
            if len(values) > SAMPLED:
                drawn = torch.Generator().manual_seed(self._generator_seed)
                values = values[torch.randint(len(values), (SAMPLED,), generator=drawn).to(values.device)]
            self.samples.append(values.float())
            if len(self.samples) > KEPT:
                self.samples = self.samples[::2]
        return x_orig

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, float32 and integer, (1,) each."""
        if not self.samples:
            return super().calculate_qparams()
        if self._chosen is None:
            low, high = self.choose(torch.cat(self.samples), (self.quant_max - self.quant_min + 1).bit_length() - 1)
            self._chosen = self._calculate_qparams(torch.tensor(low), torch.tensor(high))
        return self._chosen

    def choose(self, x: Tensor, bits: int) -> tuple[float, float]:
        """Return the range for the values x, float32 (N,), and integers of so many bits."""
        raise NotImplementedError


class PercentileObserver(SampledObserver):
    """Leaves out the smallest and the largest 0.01 % of the values."""

    def choose(self, x: Tensor, bits: int) -> tuple[float, float]:
        """Return the two percentiles of x."""
        ends = torch.quantile(x, torch.tensor([1 - PERCENTILE / 100, PERCENTILE / 100]).to(x))
        return ends[0].item(), ends[1].item()


class MseObserver(SampledObserver):
    """Takes the range whose rounding and cutting have the smallest squared error; see `best_range`."""

    def choose(self, x: Tensor, bits: int) -> tuple[float, float]:
        """Return the best share of x's range."""
        return best_range(x, bits=bits)


class EntropyObserver(SampledObserver):
    """Takes the range that loses the least information; see `entropy_range`."""

    def choose(self, x: Tensor, bits: int) -> tuple[float, float]:
        """Return the best share of x's range."""
        return entropy_range(x, bits=bits)


OBSERVERS: dict[Method, type[ObserverBase]] = {
    "min-max": MinMaxObserver,
    "histogram": HistogramObserver,
    "percentile": PercentileObserver,
    "mse": MseObserver,
    "entropy": EntropyObserver,
}


class Follower(ObserverBase):  # type: ignore[misc]
    """Takes over the scale of another observer, for a result whose values are the input's, or means of them.

    It observes nothing itself: a mean has a narrower range than what it is taken of, and would pull a moving average down.

    Args:
        leader: what observes the input. A fake quantizer also quantizes the result, on the same scale.
    """

    def __init__(self, leader: ObserverBase | FakeQuantizeBase) -> None:
        super().__init__(leader.dtype)
        self.leader = leader
        self.qscheme = leader.qscheme
        self.quant_min, self.quant_max = leader.quant_min, leader.quant_max

    def forward(self, x: Tensor) -> Tensor:
        """Return x, quantized as the leader does it, if it does."""
        if not isinstance(self.leader, FakeQuantizeBase):
            return x
        observing = bool(self.leader.observer_enabled[0])
        self.leader.enable_observer(False)
        quantized = self.leader(x)
        self.leader.enable_observer(observing)
        return quantized

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the leader's scale and zero point."""
        return self.leader.calculate_qparams()


def unseen(prepared: nn.Module) -> list[str]:
    """Return the names of the observers that saw no data."""
    names = []
    for name, module in prepared.named_modules():
        if isinstance(module, FakeQuantizeBase) or not isinstance(module, ObserverBase):
            continue
        low, high = getattr(module, "min_val", None), getattr(module, "max_val", None)
        if low is not None and high is not None and (not low.numel() or bool((low > high).any())):
            names.append(name)
    return names
