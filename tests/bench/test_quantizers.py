from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cookbook.bench import quantizers
from cookbook.bench.quantizers import quantizers_against_float
from cookbook.data import Splits
from cookbook.deploy import export
from cookbook.evidence import BenchRatio
from cookbook.models import ResNetConfig
from cookbook.quantization.peers import FLOAT, OURS, STATIC


def test_every_quantizer_is_a_row_at_every_batch(fashion_mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated: list[Tensor] = []

    def files(model: nn.Module, images: Tensor, folder: str) -> dict[str, Path]:
        calibrated.append(images)
        file = export(model, images, Path(folder) / "float.onnx")
        return {FLOAT: file, OURS: file, STATIC: file}

    monkeypatch.setattr(quantizers, "files_by_quantizer", files)
    rows = list(quantizers_against_float(fashion_mnist, ResNetConfig(depth=8, width=2), (1, 3), 1, 3, BenchRatio))
    kinds = (f"int8 by {OURS}", f"int8 by {STATIC}", "int8, ours over ONNX Runtime's")
    assert [row.name for row in rows] == [f"{kind}, batch {batch}" for batch in (1, 3) for kind in kinds]
    assert [row.baseline for row in rows] == [FLOAT, FLOAT, STATIC] * 2
    for ours, static, both in (rows[:3], rows[3:]):
        assert both.ratio.value == pytest.approx(ours.ratio.value / static.ratio.value)
        assert both.values == {"as_fast": float(both.ratio.value >= 0.97)}
    assert torch.equal(calibrated[0], fashion_mnist.train.subset(quantizers.CALIBRATION).normalized())
