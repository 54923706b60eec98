"""The table of quantized torchvision models: one real row, and a row that must fail."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from cookbook.errors import CookbookError, DeploymentError, UsageError
from cookbook.evidence import BenchRatio, Ledger
from cookbook.experiments import quantization_zoo
from cookbook.experiments.quantization_zoo import (
    BATCHES,
    COLUMNS,
    RECORDED,
    bench_ratios,
    main,
    quantization_table,
    quantize_one,
    quantize_zoo,
    recorded_table,
)
from cookbook.measure import Ratio


def test_a_real_model_is_quantized_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    row = quantize_one("squeezenet1_1", size=64, rounds=3)
    for report in (row.kernels, row.trained):
        assert not report.islands, str(report)
        # the last pooling leads to no product any more
        assert {name for name, row in report.coverage.items() if row.share < 1} == {"pool"}, str(report)
    assert row.bytes < 0.3
    assert row.difference > 0 and row.static_difference > 0
    text = str(quantization_table([row]))
    assert "squeezenet1_1" in text and "images of 64 × 64 pixels" in text
    assert len(quantization_table([row]).rows[0]) == len(COLUMNS)
    assert not list(tmp_path.iterdir())

    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert "Nothing was recorded yet." in str(recorded_table(ledger))
    older, *_ = bench_ratios([replace(row, against_float={1: Ratio(9.0, 9.0, 9.0), 8: Ratio(9.0, 9.0, 9.0)})])
    for ratio in (older, *bench_ratios([row])):
        ledger.append(ratio)
    coverage = row.kernels.coverage.values()
    (shown,) = recorded_table(ledger).rows
    assert shown == (
        "squeezenet1_1",
        f"{sum(part.int8 for part in coverage)} of {sum(part.total for part in coverage)}",
        f"{row.bytes:.2f}",
        *(str(ratio) for ratio in (*row.against_float.values(), *row.against_static.values())),
    )


def test_figures_of_one_batch_alone_are_not_shown(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(
        BenchRatio(name=RECORDED.format(name="resnet18", batch=1), baseline="", candidate="", ratio=Ratio(1, 1, 1), what="")
    )
    assert not recorded_table(ledger).rows


def test_the_quick_profile_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "quick")
    monkeypatch.setattr(quantization_zoo, "quantize_one", lambda *_, **__: pytest.fail("a model ran"))
    with pytest.raises(UsageError, match="full profile only"):
        main(["--record"])


def test_what_is_recorded_goes_to_the_committed_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path))
    main(["squeezenet1_1", "--size", "64", "--rounds", "3", "--record"])
    assert [row.name for row in Ledger.recorded().bench()] == [
        RECORDED.format(name="squeezenet1_1", batch=batch) for batch in BATCHES
    ]
    assert str(Ledger.recorded().path) in capsys.readouterr().out


def test_a_failure_names_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **settings: int) -> None:
        raise DeploymentError("no kernel.")

    monkeypatch.setattr(quantization_zoo, "quantize_one", fail)
    with pytest.raises(CookbookError, match="resnet18: no kernel"):
        quantize_zoo(("resnet18",))


def test_an_unknown_model_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="resnet1000"):
        main(["resnet1000"])
