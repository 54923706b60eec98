"""The benchmark of training loops compares like with like; its speeds are for `make bench`, not for a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from cookbook.bench import loops
from cookbook.bench.loops import cost_per_step, fit_against_bare_loop
from cookbook.data import ResidentLoader, Splits
from cookbook.errors import CookbookError
from cookbook.evidence import BenchRatio
from cookbook.measure import Energy, Timing
from cookbook.models import ResNetConfig
from cookbook.training import Recipe

TINY = ResNetConfig(depth=8, width=2)


def other_rate(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
    loops.bare_loop(model, loader, Recipe(epochs=1, learning_rate=2e-3, schedule="constant"))


def test_fit_and_the_bare_loop_end_with_equal_weights(fashion_mnist: Splits) -> None:
    row = fit_against_bare_loop(fashion_mnist.train, TINY, 4, 1, 3, BenchRatio)
    assert row.name == "fit, ResNet-8×2"
    assert row.ratio.low <= row.ratio.value <= row.ratio.high


def test_a_loop_that_learns_something_else_stops_the_benchmark(fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CookbookError, match="other and the bare loop differ in hidden"):
        list(cost_per_step(fashion_mnist.train, {"other": other_rate}, measured=BenchRatio, rounds=3, steps=5))
    monkeypatch.setattr(loops, "quiet_fit", other_rate)
    with pytest.raises(CookbookError, match="fit and the bare loop differ"):
        fit_against_bare_loop(fashion_mnist.train, TINY, 4, 1, 3, BenchRatio)


def test_the_cost_of_a_step_is_given_for_every_loop_in_microseconds(
    fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = 0.0

    def costly(model: nn.Module, loader: ResidentLoader, recipe: Recipe) -> None:
        nonlocal spent
        loops.bare_loop(model, loader, recipe)
        spent += 0.5

    def clocked(function: Callable[[], object]) -> Energy:
        before = spent
        function()
        return Energy(None, 1.0 + spent - before, "a clock that only a costly loop moves")

    monkeypatch.setattr(loops, "energy_of", clocked)
    rows = list(cost_per_step(fashion_mnist.train, {"costly": costly}, measured=BenchRatio, rounds=4, steps=10))
    assert [row.name for row in rows] == ["fit, cost of a step", "costly, cost of a step"]
    assert [row.values["microseconds_per_step"] for row in rows] == [0, 50_000]
    assert [row.ratio.value for row in rows] == [1, 1.5]
    assert "50000.0 µs [50000.0, 50000.0] more a step" in rows[1].what


def test_the_cost_is_the_median_of_paired_differences() -> None:
    ours, theirs = Timing((5.0, 9.0, 4.0, 100.0, 3.0), 1, 8), Timing((4.0, 6.0, 2.0, 1.0, 1.0), 1, 8)
    median, low, high = loops._median_difference(ours, theirs, 1e6 / 1000)
    assert median == pytest.approx(2000)  # of 1, 3, 2, 99 and 2 seconds over 1000 steps
    assert 1000 <= low <= median <= high <= 99_000


def test_two_ranks_are_compared_with_one_process_for_as_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone 128 images take 1 s; together two ranks take 1.25 s for 256: 1.6 times as many a second."""
    asked: list[object] = []

    def launched(*arguments: object, **settings: object) -> list[dict[str, list[float]]]:
        asked.extend((*arguments[1:], settings))
        return [{"alone": [1.0] * 4, "together": [1.25] * 4}, {}]

    monkeypatch.setattr(loops, "launch", launched)
    row = loops.two_ranks_against_one(4, BenchRatio)
    assert row.ratio.value == row.ratio.low == 1.6
    assert row.values == {"images_per_second_alone": 128.0, "images_per_second_together": 204.8}
    assert asked[-2:] == [4, {"ranks": 2, "threads": 1}]
