"""The benchmark compares like with like; its speeds are for `make bench`, not for a test."""

from __future__ import annotations

import pytest
from torch import nn

from cookbook import bench
from cookbook.data import ResidentLoader, Splits
from cookbook.errors import CookbookError
from cookbook.evidence import BenchRatio
from cookbook.models import ResNetConfig
from cookbook.training import Recipe

TINY = ResNetConfig(depth=8, width=2)


def test_fit_and_the_bare_loop_end_with_equal_weights(fashion_mnist: Splits) -> None:
    row = bench._fit_against_bare_loop(fashion_mnist.train, TINY, 4, 1, 3, BenchRatio)
    assert row.name == "fit, ResNet-8×2"
    assert row.ratio.low <= row.ratio.value <= row.ratio.high


def test_a_loop_that_learns_something_else_stops_the_benchmark(fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    original = bench.bare_loop

    def other_rate(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
        original(model, loader, Recipe(epochs=1, learning_rate=2e-3, schedule="constant"))

    monkeypatch.setattr(bench, "bare_loop", other_rate)
    with pytest.raises(CookbookError, match="must be bitwise equal"):
        bench._fit_against_bare_loop(fashion_mnist.train, TINY, 4, 1, 3, BenchRatio)
