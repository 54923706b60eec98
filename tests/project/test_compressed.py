"""The compressed file that the project ships is the one that its row in the ledger tells of, on any processor."""

from __future__ import annotations

import onnx
import pytest
from house import ROOT
from onnx import numpy_helper

from cookbook.data import ResidentLoader, Splits
from cookbook.deploy import Runtime
from cookbook.evidence import Ledger, Measurement
from cookbook.experiments.capstone import PACKED
from cookbook.measure import bytes_on_disk

FILE = ROOT / "data" / "checkpoints" / "compressed.onnx"
ROUNDING = 10  # of 10,000 images: processors round sums of floats in another order


@pytest.fixture(scope="module")
def row() -> Measurement:
    rows = Ledger.recorded().measurements(profile="full")
    return [row for row in rows if PACKED in row.values and row.subject.endswith("distilled, int8")][-1]


def test_the_file_has_the_accuracy_and_the_bytes_that_were_recorded(row: Measurement, fashion_mnist: Splits) -> None:
    runtime = Runtime(FILE, threads=1)
    loader = ResidentLoader(fashion_mnist.test, 250, shuffle=False)
    correct = sum(int((runtime(images).argmax(1) == labels).sum()) for images, labels in loader)
    assert row.correct is not None and abs(correct - row.correct) <= ROUNDING
    assert bytes_on_disk(FILE) == row.bytes


def test_its_sums_saturate_on_no_processor() -> None:
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(FILE).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    matrices = [values for values in weights if values.ndim > 1]
    assert len(matrices) == 10, "nine convolutions of a ResNet-8 with its shortcuts, and the head"
    assert max(abs(values.astype(int)).max() for values in matrices) <= 64
