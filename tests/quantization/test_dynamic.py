from __future__ import annotations

import copy
import logging
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from cookbook.deploy import Runtime, export, kernels, parity
from cookbook.errors import UsageError
from cookbook.measure import bytes_on_disk
from cookbook.quantization.dynamic import dynamic_linear, quantize_dynamically, weights_only, without_advice


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).eval()


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(28, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[:, 0])[0][:, -1])


def test_linear_layers_run_dynamically_in_int8_and_are_smaller(
    perceptron: nn.Module, images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = quantize_dynamically(perceptron, images, tmp_path / "dynamic.onnx")
    report = kernels(path)
    assert report.coverage["linear"].share == 1
    assert parity(perceptron, Runtime(path), images).mean < 0.03
    assert bytes_on_disk(path) < 0.3 * bytes_on_disk(export(perceptron, images, tmp_path / "float.onnx"))
    assert "pre-processing" not in caplog.text


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the legacy exporter, about torch's own checks of shapes
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning")
def test_recurrent_layers_are_quantized_and_take_every_batch(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Rows().eval()
    path = quantize_dynamically(model, images, tmp_path / "rows.onnx")
    assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load(path).graph.node}
    for part in (images, images[:1], images[:5]):
        assert parity(model, Runtime(path), part).mean < 0.1


def test_a_model_without_such_layers_is_refused(images: Tensor, tmp_path: Path, perceptron: nn.Module) -> None:
    pooling = nn.Sequential(nn.AvgPool2d(7), nn.Flatten())
    with pytest.raises(UsageError, match="has no MatMul or Gemm or LSTM"):
        quantize_dynamically(pooling, images, tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="no linear layer"):
        weights_only(pooling)
    assert not list(tmp_path.iterdir())


def test_weights_alone_are_rounded_row_by_row(perceptron: nn.Module, images: Tensor) -> None:
    before = copy.deepcopy(perceptron.state_dict())
    rounded = weights_only(perceptron)
    weight = perceptron[1].weight
    scale = weight.abs().amax(1, keepdim=True) / 127.5  # torchao's symmetric range is from −128 to 127
    by_hand = torch.round(weight / scale).clamp(-128, 127) * scale
    difference = (rounded[1].weight.dequantize() - by_hand).abs() / scale
    assert difference.max() < 1.01 and (difference > 0.01).double().mean() < 1e-3  # borders between two integers
    with torch.no_grad():
        assert parity(perceptron, rounded, images).mean < 0.01
    assert all(torch.equal(value, before[name]) for name, value in perceptron.state_dict().items())


def test_dynamic_layers_in_torch_are_close(perceptron: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        assert 0 < parity(perceptron, dynamic_linear(perceptron), images).mean < 0.03


def test_only_one_line_is_kept_from_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with without_advice():
        logging.warning("Please consider to run pre-processing before quantization.")
        logging.warning("Please consider pre-processing before quantization.")
        logging.warning("something else")
    logging.warning("Please consider pre-processing before quantization.")
    assert [record.getMessage() for record in caplog.records] == [
        "something else", "Please consider pre-processing before quantization.",
    ]  # fmt: skip
