"""Pruning to a share of the latency, told a second time: with clocks that cannot err, and with one that flatters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cookbook.errors import CookbookError, UsageError
from cookbook.evidence import Ledger
from cookbook.experiments import pruning_latency
from cookbook.experiments.pruning_latency import LatencyRow, latency_table, main, prune_to_latency
from cookbook.measure import Ratio, Timing, count_macs
from cookbook.models import ResNetConfig, build
from cookbook.pruning import Latency
from cookbook.pruning.layer_table import LayerTable

ROUNDS = 3


class MacClock:
    """A clock on which time is proportional to the multiply-accumulates, and which may flatter what was pruned."""

    def __init__(self, flattery: float = 1.0) -> None:
        self.flattery = flattery

    def __call__(self, models: Mapping[str, nn.Module], example: Tensor) -> dict[str, Timing]:
        times = {name: 1e-9 * count_macs(model, example) for name, model in models.items()}
        times["pruned"] *= self.flattery
        return {name: Timing(samples=(seconds,) * ROUNDS, threads=1, batch=1) for name, seconds in times.items()}


class MacTable(LayerTable):
    """Predicts by operations, too, so that nothing in these tests depends on how busy the machine is."""

    def seconds(self, model: nn.Module, example: Tensor) -> float:
        return 1e-9 * count_macs(model, example)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small network stand in for every model, and a clock of operations for the one of new sessions."""
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=8, stem_stride=2)).eval()
    monkeypatch.setattr(pruning_latency, "_model", lambda name, size: (model, torch.randn(2, 1, 28, 28)))
    monkeypatch.setattr(pruning_latency, "OrtClock", lambda **_: MacClock())


def attempt(flattery: float) -> LatencyRow:
    target = Latency(0.5, tolerance=0.1, rounds=ROUNDS, clock=MacClock(flattery), table=MacTable())
    return prune_to_latency("resnet20", target, multiple=1)


def test_an_honest_clock_tells_the_same_share_twice(tiny: None) -> None:
    row = attempt(1.0)
    assert row.chosen == pytest.approx(0.5, rel=0.1)
    assert 1 / row.speed.value == pytest.approx(row.chosen) == pytest.approx(row.macs)
    assert row.missed == pytest.approx(abs(row.chosen / 0.5 - 1))
    assert row.seconds > 0


def test_the_second_timing_finds_out_a_clock_that_flatters(tiny: None) -> None:
    row = attempt(0.7)
    assert row.chosen == pytest.approx(0.5, rel=0.1)
    assert 1 / row.speed.value == pytest.approx(row.chosen / 0.7)
    assert row.missed > 0.2


def given(name: str, speed: float) -> LatencyRow:
    return LatencyRow(name, 0.5, 0.49, Ratio(speed, 0.9 * speed, 1.1 * speed), 0.4, 3.0)


def record(monkeypatch: pytest.MonkeyPatch, data: Path, speed: float, *arguments: str) -> Ledger:
    (data / "results").mkdir(exist_ok=True)
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    monkeypatch.setenv("COOKBOOK_DATA", str(data))
    monkeypatch.setattr(pruning_latency, "prune_to_latency", lambda name, target, size: given(name, speed))
    main(["--models", "resnet20", "resnet18", *arguments])
    return Ledger.recorded()


def test_what_is_recorded_is_what_the_lesson_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not record(monkeypatch, tmp_path, 2.0).bench()
    assert "Nothing was recorded yet." in str(latency_table([]))
    record(monkeypatch, tmp_path, 1.95, "--record")
    rows = latency_table(record(monkeypatch, tmp_path, 2.0, "--record").bench()).rows
    assert rows == (
        ("resnet20", "0.50", "0.490", "0.500 [0.455, 0.556]", "+0.0%", "0.40"),
        ("resnet18", "0.50", "0.490", "0.500 [0.455, 0.556]", "+0.0%", "0.40"),
    )


def test_a_missed_share_is_recorded_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CookbookError, match=r"tolerance of 5%: resnet20 by 11\.1%, resnet18 by 11\.1%"):
        record(monkeypatch, tmp_path, 1.8, "--record")
    assert [row[4] for row in latency_table(Ledger.recorded().bench()).rows] == ["+11.1%", "+11.1%"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--record"], "full profile only"),
        (["--models", "resnet81"], "did you mean resnet18"),
        (["--share", "1.5"], "use a share between 0 and 1"),
        (["--rounds", "1"], "rounds is 1"),
    ],
)
def test_arguments_are_checked_before_anything_runs(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    monkeypatch.setattr(pruning_latency, "prune_to_latency", lambda *_, **__: pytest.fail("a model ran"))
    with pytest.raises(UsageError, match=words):
        main(arguments)
