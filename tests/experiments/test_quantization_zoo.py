"""The table of quantized torchvision models: one real row, and a row that must fail."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from cookbook.errors import CookbookError, DeploymentError, UsageError
from cookbook.experiments import quantization_zoo
from cookbook.experiments.quantization_zoo import COLUMNS, main, quantization_table, quantize_one, quantize_zoo


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


def test_a_failure_names_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **settings: int) -> None:
        raise DeploymentError("no kernel.")

    monkeypatch.setattr(quantization_zoo, "quantize_one", fail)
    with pytest.raises(CookbookError, match="resnet18: no kernel"):
        quantize_zoo(("resnet18",))


def test_an_unknown_model_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="resnet1000"):
        main(["resnet1000"])
