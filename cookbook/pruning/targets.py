"""What pruning can aim at: so many multiplications or parameters instead of so many channels (lesson 04)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.measure import count_macs, count_parameters

Value = Callable[[nn.Module], float]


class Target(Protocol):
    """What `prune` aims at."""

    @property
    def share(self) -> float:
        """Of the unpruned model's value that shall remain, between 0 and 1."""

    @property
    def tolerance(self) -> float:
        """By which the result may miss the share, relative to it."""

    @property
    def needs_weights(self) -> bool:
        """False if shapes are enough to tell the value; models and example are then on the device ``meta``."""

    def predictor(self, model: nn.Module, example: Tensor) -> Value:
        """Return a function that says, for a candidate of any widths, its value as a share of `model`'s."""

    def confirmer(self, model: nn.Module, example: Tensor) -> Value | None:
        """Return a function that measures what `predictor` estimates; None: predictions are exact."""


@dataclass(frozen=True)
class _Counted:
    """A share of what the shapes alone decide, so that a prediction is exact.

    Attributes:
        share: that shall remain, between 0 and 1.
        tolerance: by which the result may miss the share, relative to it.

    Raises:
        UsageError: a value is out of range.
    """

    share: float
    tolerance: float = 0.05
    needs_weights: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require_share(self.share, self.tolerance)

    def confirmer(self, model: nn.Module, example: Tensor) -> None:
        """Return None: the count is exact."""


@dataclass(frozen=True)
class MACs(_Counted):
    """A share of the multiply-accumulates, counted by `count_macs`.

    Attributes:
        share: that shall remain, between 0 and 1.
        tolerance: by which the result may miss the share, relative to it.

    Raises:
        UsageError: a value is out of range.
    """

    def predictor(self, model: nn.Module, example: Tensor) -> Value:
        """Return a function that counts a candidate's multiply-accumulates, as a share of `model`'s."""
        whole = count_macs(model, example)
        return lambda candidate: count_macs(candidate, example) / whole


@dataclass(frozen=True)
class Parameters(_Counted):
    """A share of the weights and biases, counted by `count_parameters`.

    Attributes:
        share: that shall remain, between 0 and 1.
        tolerance: by which the result may miss the share, relative to it.

    Raises:
        UsageError: a value is out of range.
    """

    def predictor(self, model: nn.Module, example: Tensor) -> Value:
        """Return a function that counts a candidate's parameters, as a share of `model`'s."""
        whole = count_parameters(model)
        return lambda candidate: count_parameters(candidate) / whole


def require_share(share: float, tolerance: float) -> None:
    """Refuse a budget that is no share, or a tolerance that is not positive.

    Raises:
        UsageError: naming the value.
    """
    if not 0 < share < 1:
        raise UsageError(f"The target is {share} of the unpruned model: use a share between 0 and 1, such as 0.5.")
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance is {tolerance}: use a number between 0 and 1, such as 0.05.")
